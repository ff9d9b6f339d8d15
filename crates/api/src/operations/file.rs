//! Files of a guest. Paths are bytes, percent-encoded in the query.

use microvm_types::VmRef;
use microvm_types::files::{FileStat, TransferSummary};

use crate::files::{FileHash, FileList, WatchLine};
use crate::operation::{Archive, Bytes, Data, Extents, Json, Lines, Nothing};
use crate::queries::{
    AtPath, ListFiles, MakeDirectory, PullArchive, PushArchive, ReadFile, RemoveFile, RenameFile, WatchFiles,
    WriteFile,
};

crate::rows! {
    /// Read a file
    ///
    /// The header `x-file-stat` describes it (`FileStat` in JSON); the trailer `x-content-sha256` is the SHA-256 of the body.
    Read = "file.read", Get "/vms/{vm}/files", GuestFiles, Safe, Offered, (VmRef, ReadFile) Nothing => Data<Bytes>;

    /// Write a file
    ///
    /// A SHA-256 in the header or trailer `x-content-sha256` is held against what arrives; if they differ, nothing is kept.
    Write = "file.write", Put "/vms/{vm}/files", GuestFiles, Never, Offered, (VmRef, WriteFile) Data<Bytes> => Json<TransferSummary>;

    /// Read a file, its holes told by their length
    ReadExtents = "file.read_extents", Get "/vms/{vm}/files/extents", GuestFiles, Safe, Withheld, (VmRef, AtPath) Nothing => Data<Extents>;

    /// Write a file, its holes told by their length
    WriteExtents = "file.write_extents", Put "/vms/{vm}/files/extents", GuestFiles, Never, Withheld, (VmRef, WriteFile) Data<Extents> => Json<TransferSummary>;

    /// Remove a file or directory
    Remove = "file.remove", Delete "/vms/{vm}/files", GuestFiles, Never, Offered, (VmRef, RemoveFile) Nothing => Nothing;

    /// Show what is at a path
    Stat = "file.stat", Get "/vms/{vm}/files/stat", GuestFiles, Safe, Offered, (VmRef, AtPath) Nothing => Json<FileStat>;

    /// List a directory
    ///
    /// At most 100,000 entries; `truncated`, `unreadable` and `first_unreadable` say what is left out.
    List = "file.list", Get "/vms/{vm}/files/list", GuestFiles, Safe, Offered, (VmRef, ListFiles) Nothing => Json<FileList>;

    /// Compute the SHA-256 of a file in the guest
    Hash = "file.hash", Get "/vms/{vm}/files/hash", GuestFiles, Safe, Offered, (VmRef, AtPath) Nothing => Json<FileHash>;

    /// Make a directory
    MakeDir = "file.make_directory", Post "/vms/{vm}/files/mkdir", GuestFiles, Never, Offered, (VmRef, MakeDirectory) Nothing => Nothing;

    /// Rename within the guest
    Rename = "file.rename", Post "/vms/{vm}/files/rename", GuestFiles, Never, Offered, (VmRef, RenameFile) Nothing => Nothing;

    /// Watch a path for changes
    ///
    /// A change of kind `overflow`: some are left out here, look at the directories again.
    Watch = "file.watch", Get "/vms/{vm}/files/watch", GuestFiles, Safe, Withheld, (VmRef, WatchFiles) Nothing => Lines<WatchLine>;

    /// Pack a file or directory as a tar stream
    ///
    /// Names are relative to its parent. The trailer `x-left-out` says what is not in it (`LeftOut` in JSON).
    Pull = "file.pull", Get "/vms/{vm}/archive", GuestFiles, Safe, Withheld, (VmRef, PullArchive) Nothing => Data<Archive>;

    /// Unpack a tar stream below a directory
    Push = "file.push", Put "/vms/{vm}/archive", GuestFiles, Never, Withheld, (VmRef, PushArchive) Data<Archive> => Json<TransferSummary>;
}
