//! Images.

use crate::image::{AddImage, CommitImage, Freed, Image, ImageList, TagImage};
use crate::operation::{Archive, Data, ImageRef, Json, Lines, LongJson, Nothing};
use crate::progress::ProgressLine;
use crate::queries::NoQuery;

crate::rows! {
    /// List images
    ///
    /// Newest first. `unreadable` names those that are stored and cannot be read.
    List = IMAGE_LIST, Get "/images", Safe, Offered, ((), NoQuery) Nothing => Json<ImageList>;

    /// Add an image
    ///
    /// Lines of type `progress`, then one of type `image` or `failed`.
    Add = IMAGE_ADD, Post "/images", Never, Withheld, ((), NoQuery) LongJson<AddImage> => Lines<ProgressLine>;

    /// Remove unreferenced images
    Prune = IMAGE_PRUNE, Post "/images/prune", Never, Withheld, ((), NoQuery) Nothing => Json<Freed>;

    /// Make an image of a VM
    ///
    /// The changes of the VM's root disk as a layer over its image. The VM runs on; what writes to its disk waits until it is read.
    /// Lines of type `progress`, then one of type `image` or `failed`.
    Commit = IMAGE_COMMIT, Post "/images/commit", Never, Withheld, ((), NoQuery) LongJson<CommitImage> => Lines<ProgressLine>;

    /// Give an image a further name
    Tag = IMAGE_TAG, Post "/images/tag", Never, Withheld, ((), NoQuery) LongJson<TagImage> => Json<Image>;

    /// Export an image
    ///
    /// One archive that is both an OCI image layout and what `docker save` writes, with the configuration. Equal images give equal
    /// archives.
    Export = IMAGE_EXPORT, Get "/images/{name}/export", Safe, Withheld, (ImageRef, NoQuery) Nothing => Data<Archive>;

    /// Show an image
    Get = IMAGE_GET, Get "/images/{name}", Safe, Offered, (ImageRef, NoQuery) Nothing => Json<Image>;

    /// Remove an image
    ///
    /// Removes a name, and the image with its last name.
    Remove = IMAGE_REMOVE, Delete "/images/{name}", Never, Withheld, (ImageRef, NoQuery) Nothing => Nothing;
}
