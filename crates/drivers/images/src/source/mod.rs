//! Sources of the content of images. Everything ends in a [`Builder`](builder::Builder); nothing is ever unpacked onto a file system of
//! the host.

mod acl;
pub(crate) mod apt_sources;
pub(crate) mod builder;
mod choice;
pub(crate) mod compression;
pub(crate) mod debian;
pub(crate) mod docker;
pub(crate) mod folder;
#[cfg(test)]
mod fuzz;
pub(crate) mod oci;
pub(crate) mod path;
pub(crate) mod recipe;
pub(crate) mod registry;
pub(crate) mod tar_image;
