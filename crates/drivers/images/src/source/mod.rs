//! Sources of the content of images. Everything ends in a [`Builder`](builder::Builder); nothing is ever unpacked onto a file system of
//! the host.

mod acl;
pub(crate) mod additions;
pub(crate) mod apt_sources;
pub(crate) mod build_key;
pub(crate) mod builder;
mod choice;
pub(crate) mod compression;
pub(crate) mod context;
mod deb;
pub(crate) mod debian;
pub(crate) mod disk;
pub(crate) mod docker;
pub(crate) mod folder;
#[cfg(test)]
mod fuzz;
mod npm;
pub(crate) mod oci;
pub(crate) mod package_cache;
mod packages;
pub(crate) mod path;
mod pip;
mod pip_replace;
pub(crate) mod recipe;
pub(crate) mod registry;
pub(crate) mod tar_image;
mod words;

pub(crate) use choice::architecture;

/// Origin of an image that this program exported, in its history. An import keeps the labels of such images.
pub(crate) const EXPORTED_BY: &str = "microvm image export";
