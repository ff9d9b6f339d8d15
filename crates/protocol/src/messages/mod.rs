//! Bodies of control frames (protobuf, written by hand as `prost` derives; field numbers are for ever).

mod exec;
mod files;
mod handshake;
mod system;

pub use exec::*;
pub use files::*;
pub use handshake::*;
pub use system::*;

/// No content.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Empty {}

/// A path in the guest: absolute bytes without NUL.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Path {
    /// Its bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
}

/// Body of an `Open` frame: what the stream is for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// The request; absent if it is one this version does not know.
    #[prost(
        oneof = "Operation",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29"
    )]
    pub operation: Option<Operation>,
}

/// Everything the agent can be asked for.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Operation {
    /// Push of the identity of this epoch; answered by `Configured`.
    #[prost(message, tag = "1")]
    Configure(Configure),
    /// Start of a process; answered by `Started`, then output, then `Exited`.
    #[prost(message, tag = "2")]
    Exec(Exec),
    /// Taking up the output of a process again; answered like `Exec`.
    #[prost(message, tag = "3")]
    Attach(Attach),
    /// List of processes started through the agent.
    #[prost(message, tag = "4")]
    Processes(Empty),
    /// Signal to a process group.
    #[prost(message, tag = "5")]
    Signal(Signal),
    /// New size of a terminal.
    #[prost(message, tag = "6")]
    Resize(Resize),
    /// Content of a file; answered by `Stat`, then `Data` and `Zeros`.
    #[prost(message, tag = "7")]
    ReadFile(ReadFile),
    /// New content of a file, sent as `Data` and `Zeros`; answered by `Written` after the host's `End`.
    #[prost(message, tag = "8")]
    WriteFile(WriteFile),
    /// Description of the entry at a path.
    #[prost(message, tag = "9")]
    Stat(Path),
    /// Entries of a directory, in several `Stats`.
    #[prost(message, tag = "10")]
    List(List),
    /// A new directory.
    #[prost(message, tag = "11")]
    MakeDirectory(MakeDirectory),
    /// A new name.
    #[prost(message, tag = "12")]
    Rename(Rename),
    /// Removal.
    #[prost(message, tag = "13")]
    Remove(Remove),
    /// Changes below a path, as `Changed`, until the host resets.
    #[prost(message, tag = "14")]
    Watch(Watch),
    /// Tar stream to unpack below a directory; answered by `Written` after the host's `End`.
    #[prost(message, tag = "15")]
    PushArchive(PushArchive),
    /// Tar stream of a file or directory, as `Data` and `Zeros`, then `Packed` if it was asked for.
    #[prost(message, tag = "16")]
    PullArchive(PullArchive),
    /// Connection to a TCP port on loopback; answered by `Done`, then bytes both ways.
    #[prost(message, tag = "17")]
    ConnectPort(ConnectPort),
    /// SHA-256 of a file.
    #[prost(message, tag = "18")]
    HashFile(Path),
    /// The guest as a system.
    #[prost(message, tag = "19")]
    SystemInfo(Empty),
    /// All processes of the guest, in several `GuestProcesses`.
    #[prost(message, tag = "20")]
    GuestProcesses(Empty),
    /// Health of the guest.
    #[prost(message, tag = "21")]
    Health(Empty),
    /// End of the guest; answered by `Done` before it begins.
    #[prost(message, tag = "22")]
    Shutdown(Shutdown),
    /// Bytes to throw away; answered by `Written` after the host's `End`.
    #[prost(message, tag = "23")]
    MeasureSink(Empty),
    /// Bytes made up by the agent.
    #[prost(message, tag = "24")]
    MeasureSource(MeasureSource),
    /// Times of fork, exec and wait.
    #[prost(message, tag = "25")]
    MeasureSpawn(MeasureSpawn),
    /// The wall clock after the guest stood still; answered by `Done`. An older agent answers `Unsupported`.
    #[prost(message, tag = "26")]
    SetClock(SetClock),
    /// Output of a process for one more reader, who changes nothing: answered by `Started` and output, then `Exited` if
    /// the process has ended, else the end of the stream. An older agent answers `Unsupported`.
    #[prost(message, tag = "27")]
    ReadOutput(ReadOutput),
    /// Tar stream of a file system from which an image is made, as `Data` and `Zeros`, then `Packed`. An older agent answers
    /// `Unsupported`.
    #[prost(message, tag = "28")]
    PullRoot(Path),
    /// Tar stream of the changes of the root against the image (a layer with whiteouts), as for `PullRoot`. Writes to the root wait
    /// until it is packed. An older agent answers `Unsupported`.
    #[prost(message, tag = "29")]
    PullLayer(Empty),
}

/// Body of a `Message` frame.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Message {
    /// The content; absent if it is one this version does not know.
    #[prost(oneof = "Reply", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14")]
    pub reply: Option<Reply>,
}

/// Everything the agent can say within a stream.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Reply {
    /// It was done.
    #[prost(message, tag = "1")]
    Done(Empty),
    /// Outcome of each part of a `Configure`.
    #[prost(message, tag = "2")]
    Configured(Configured),
    /// The process runs, or is attached to.
    #[prost(message, tag = "3")]
    Started(Started),
    /// The process has ended and all of its output was sent before.
    #[prost(message, tag = "4")]
    Exited(Exited),
    /// Processes started through the agent.
    #[prost(message, tag = "5")]
    Processes(Processes),
    /// One file.
    #[prost(message, tag = "6")]
    Stat(Stat),
    /// Some of many files.
    #[prost(message, tag = "7")]
    Stats(Stats),
    /// A change of a file.
    #[prost(message, tag = "8")]
    Changed(Changed),
    /// A transfer to the guest is complete.
    #[prost(message, tag = "9")]
    Written(Written),
    /// A hash.
    #[prost(message, tag = "10")]
    Hash(Hash),
    /// The guest as a system.
    #[prost(message, tag = "11")]
    System(System),
    /// Some of all processes.
    #[prost(message, tag = "12")]
    GuestProcesses(GuestProcesses),
    /// Health, or times of spawns.
    #[prost(message, tag = "13")]
    Measured(Measured),
    /// End of an archive from the guest.
    #[prost(message, tag = "14")]
    Packed(Packed),
}
