//! Named volumes.

use crate::operation::{Created, Json, LongJson, Nothing, VolumeRef};
use crate::queries::NoQuery;
use crate::volume::{CreateVolume, PrunedVolumes, Volume, VolumeList};

crate::rows! {
    /// List volumes
    List = VOLUME_LIST, Get "/volumes", Safe, Offered, ((), NoQuery) Nothing => Json<VolumeList>;

    /// Create a volume
    ///
    /// It has an empty ext4 file system. A VM that names a volume which does not exist creates it, too.
    Create = VOLUME_CREATE, Post "/volumes", Never, Offered, ((), NoQuery) LongJson<CreateVolume> => Created<Volume>;

    /// Remove all volumes that no VM has
    Prune = VOLUME_PRUNE, Post "/volumes/prune", Never, Withheld, ((), NoQuery) Nothing => Json<PrunedVolumes>;

    /// Show a volume
    Get = VOLUME_GET, Get "/volumes/{name}", Safe, Offered, (VolumeRef, NoQuery) Nothing => Json<Volume>;

    /// Remove a volume with all that is on it
    Remove = VOLUME_REMOVE, Delete "/volumes/{name}", Never, Withheld, (VolumeRef, NoQuery) Nothing => Nothing;
}
