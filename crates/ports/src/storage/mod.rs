//! Stores of images, kernels and the files of VMs.

mod disk;
mod error;
mod image;
mod kernel;
mod volume;

pub use disk::{LostDisks, Space, VmFiles, VmStorage};
pub use error::StorageError;
pub use image::{
    Additions, ChangedPath, CopyStep, DirectoryStep, ExtendedImage, FileSystem, ImageConfig, ImageInfo,
    ImageSource, ImageStore, Placement, RecipeFile, RegistryLogin, ResolvedImage,
};
pub use kernel::{KernelInfo, KernelSource, KernelStore, ResolvedKernel};
pub use microvm_types::template::DiskFormat;
pub use volume::VolumeStore;
