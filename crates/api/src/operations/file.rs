//! Files of a guest. Paths are bytes, percent-encoded in the query.

use microvm_types::VmRef;
use microvm_types::files::{FileStat, TransferSummary};

use crate::files::{EncodedContent, FileHash, FileList, WatchLine, WriteEncoded as Encoded};
use crate::operation::{Archive, Bytes, Data, Extents, FileJson, Json, Lines, Nothing};
use crate::queries::{
    AtPath, ListFiles, MakeDirectory, NoQuery, PullArchive, PushArchive, ReadFile, RemoveFile, RenameFile,
    WatchFiles, WriteFile,
};

crate::rows! {
    /// Read a file
    ///
    /// The header `x-file-stat` describes it (`FileStat` in JSON); the trailer `x-content-sha256` is the SHA-256 of the body.
    Read = FILE_READ, Get "/vms/{vm}/files", Safe, Offered, (VmRef, ReadFile) Nothing => Data<Bytes>;

    /// Write a file
    ///
    /// A SHA-256 in the header or trailer `x-content-sha256` is held against what arrives; if they differ, nothing is kept.
    Write = FILE_WRITE, Put "/vms/{vm}/files", Never, Offered, (VmRef, WriteFile) Data<Bytes> => Json<TransferSummary>;

    /// Read a file as base64
    ///
    /// At most 10 MiB of it, whole or from `offset` on.
    ReadEncoded = FILE_READ_ENCODED, Get "/vms/{vm}/files/base64", Safe, Offered, (VmRef, ReadFile) Nothing => Json<EncodedContent>;

    /// Write a file from base64
    ///
    /// At most 10 MiB. With another `sha256` than that of the content nothing is written.
    WriteEncoded = FILE_WRITE_ENCODED, Put "/vms/{vm}/files/base64", Never, Offered, (VmRef, NoQuery) FileJson<Encoded> => Json<TransferSummary>;

    /// Read a file, its holes told by their length
    ReadExtents = FILE_READ_EXTENTS, Get "/vms/{vm}/files/extents", Safe, Withheld, (VmRef, AtPath) Nothing => Data<Extents>;

    /// Write a file, its holes told by their length
    WriteExtents = FILE_WRITE_EXTENTS, Put "/vms/{vm}/files/extents", Never, Withheld, (VmRef, WriteFile) Data<Extents> => Json<TransferSummary>;

    /// Remove a file or directory
    Remove = FILE_REMOVE, Delete "/vms/{vm}/files", Never, Offered, (VmRef, RemoveFile) Nothing => Nothing;

    /// Show what is at a path
    Stat = FILE_STAT, Get "/vms/{vm}/files/stat", Safe, Offered, (VmRef, AtPath) Nothing => Json<FileStat>;

    /// List a directory
    ///
    /// At most 100,000 entries; `truncated`, `unreadable` and `first_unreadable` say what is left out.
    List = FILE_LIST, Get "/vms/{vm}/files/list", Safe, Offered, (VmRef, ListFiles) Nothing => Json<FileList>;

    /// Compute the SHA-256 of a file in the guest
    Hash = FILE_HASH, Get "/vms/{vm}/files/hash", Safe, Offered, (VmRef, AtPath) Nothing => Json<FileHash>;

    /// Make a directory
    MakeDir = FILE_MAKE_DIRECTORY, Post "/vms/{vm}/files/mkdir", Never, Offered, (VmRef, MakeDirectory) Nothing => Nothing;

    /// Rename within the guest
    Rename = FILE_RENAME, Post "/vms/{vm}/files/rename", Never, Offered, (VmRef, RenameFile) Nothing => Nothing;

    /// Watch a path for changes
    ///
    /// A change of kind `overflow`: some are left out here, look at the directories again.
    Watch = FILE_WATCH, Get "/vms/{vm}/files/watch", Safe, Withheld, (VmRef, WatchFiles) Nothing => Lines<WatchLine>;

    /// Pack a file or directory as a tar stream
    ///
    /// Names are relative to its parent. The trailer `x-left-out` says what is not in it (`LeftOut` in JSON).
    Pull = FILE_PULL, Get "/vms/{vm}/archive", Safe, Withheld, (VmRef, PullArchive) Nothing => Data<Archive>;

    /// Unpack a tar stream below a directory
    Push = FILE_PUSH, Put "/vms/{vm}/archive", Never, Withheld, (VmRef, PushArchive) Data<Archive> => Json<TransferSummary>;
}
