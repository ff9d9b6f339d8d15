//! The start of a session.

/// Bits of the `features` in the handshake.
pub mod features {
    /// The host accepts credit up to [`crate::flow::WIDE_WINDOW`].
    pub const WIDE_WINDOWS: u64 = 1;
    /// The agent gives what it writes to the owner that a request names.
    pub const OWNERS: u64 = 1 << 1;
}

/// First frame of the host.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Hello {
    /// Lowest protocol version the host speaks.
    #[prost(uint32, tag = "1")]
    pub min_version: u32,
    /// Highest protocol version the host speaks.
    #[prost(uint32, tag = "2")]
    pub max_version: u32,
    /// Optional abilities of the host, one bit each: see [`features`].
    #[prost(fixed64, tag = "3")]
    pub features: u64,
    /// Random; the reply repeats it, so that an answer of an older session is told apart.
    #[prost(fixed64, tag = "4")]
    pub nonce: u64,
    /// Epoch of the machine: one more after every boot, fork or restore.
    #[prost(uint64, tag = "5")]
    pub epoch: u64,
}

/// First frame of the agent.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct HelloReply {
    /// Version chosen; 0 when there is no common one.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Optional abilities of the agent: see [`features`].
    #[prost(fixed64, tag = "2")]
    pub features: u64,
    /// The host's nonce.
    #[prost(fixed64, tag = "3")]
    pub nonce: u64,
    /// The host's epoch; a newer one is a refusal: the newest the agent has had.
    #[prost(uint64, tag = "4")]
    pub epoch: u64,
    /// Version of the agent.
    #[prost(string, tag = "5")]
    pub agent_version: String,
    /// Release of the guest's kernel.
    #[prost(string, tag = "6")]
    pub kernel_release: String,
    /// Milliseconds from the kernel's start to the agent being ready.
    #[prost(uint64, tag = "7")]
    pub boot_ms: u64,
    /// Syntax of the guest's paths.
    #[prost(enumeration = "PathStyle", tag = "8")]
    pub path_style: i32,
    /// Firmware that the guest was started by.
    #[prost(enumeration = "Firmware", tag = "9")]
    pub firmware: i32,
}

/// Syntax of paths. Older agents are all of the first kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum PathStyle {
    /// `/folder/name`.
    Posix = 0,
    /// `C:\folder\name`.
    Windows = 1,
}

/// Firmware of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Firmware {
    /// An older agent does not tell.
    Untold = 0,
    /// None that the system uses: the kernel was loaded by the VMM, or by a BIOS.
    None = 1,
    /// UEFI.
    Uefi = 2,
}

/// A variable of the environment.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Variable {
    /// Name, without `=` and NUL.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Value, without NUL.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A folder of the host that the machine offers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Share {
    /// Tag of the virtio-9p device.
    #[prost(string, tag = "1")]
    pub tag: String,
    /// Absolute path where it is mounted; made if missing.
    #[prost(string, tag = "2")]
    pub target: String,
    /// Mounted read-only.
    #[prost(bool, tag = "3")]
    pub read_only: bool,
}

/// A disk with an ext4 that the machine has.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Volume {
    /// Serial number of the disk.
    #[prost(string, tag = "1")]
    pub serial: String,
    /// Absolute path where it is mounted; made if missing.
    #[prost(string, tag = "2")]
    pub target: String,
    /// Mounted read-only.
    #[prost(bool, tag = "3")]
    pub read_only: bool,
}

/// Identity of this epoch.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Configure {
    /// 32 bytes for the random number generator; empty: none.
    #[prost(bytes = "vec", tag = "1")]
    pub entropy: Vec<u8>,
    /// Wall clock in nanoseconds since 1970-01-01T00:00:00Z; 0: leave it.
    #[prost(int64, tag = "2")]
    pub wall_clock_ns: i64,
    /// Host name; empty: leave it.
    #[prost(string, tag = "3")]
    pub host_name: String,
    /// Machine id; empty: leave it.
    #[prost(string, tag = "4")]
    pub machine_id: String,
    /// Variables of every command.
    #[prost(message, repeated, tag = "5")]
    pub environment: Vec<Variable>,
    /// Default user; empty: root.
    #[prost(string, tag = "6")]
    pub user: String,
    /// Default working directory; empty: the user's home.
    #[prost(string, tag = "7")]
    pub working_directory: String,
    /// Run once per boot, in order, by `sh -c`.
    #[prost(string, repeated, tag = "8")]
    pub start_commands: Vec<String>,
    /// Mounted before the start commands run; sent once per boot. If there are any, the agent confirms the part
    /// [`SHARES_PART`] too.
    #[prost(message, repeated, tag = "9")]
    pub shares: Vec<Share>,
    /// The epoch it is the identity of, newer than any the agent has had; 0: that of the [`Hello`].
    #[prost(uint64, tag = "10")]
    pub epoch: u64,
    /// Mounted before the start commands run; sent once per boot. If there are any, the agent confirms the part
    /// [`VOLUMES_PART`] too.
    #[prost(message, repeated, tag = "11")]
    pub volumes: Vec<Volume>,
}

/// Outcome of one part of a [`Configure`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Part {
    /// Name of the part, as in [`PARTS`].
    #[prost(string, tag = "1")]
    pub name: String,
    /// Why it failed; empty: it is done.
    #[prost(string, tag = "2")]
    pub problem: String,
}

/// Parts every agent confirms, in this order.
pub const PARTS: [&str; 6] =
    ["entropy", "wall_clock", "host_name", "machine_id", "environment", "start_commands"];

/// Part that an agent confirms besides [`PARTS`] when it was given shares.
pub const SHARES_PART: &str = "shares";

/// Part that an agent confirms besides [`PARTS`] when it was given volumes.
pub const VOLUMES_PART: &str = "volumes";

/// Answer to [`Configure`]: every part by itself.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Configured {
    /// The parts.
    #[prost(message, repeated, tag = "1")]
    pub parts: Vec<Part>,
}

/// Body of a `Reset` frame: why a stream is dead.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Failure {
    /// The class of the failure.
    #[prost(enumeration = "FailureKind", tag = "1")]
    pub kind: i32,
    /// Description of the failure.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// Classes of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FailureKind {
    /// A defect or an unexpected failure.
    Internal = 0,
    /// The request can never be.
    Invalid = 1,
    /// It may not be done.
    Forbidden = 2,
    /// The named thing does not exist.
    NotFound = 3,
    /// It clashes with the present state.
    Conflict = 4,
    /// This guest cannot do it at all.
    Unsupported = 5,
    /// A limit or resource is used up.
    Exhausted = 6,
    /// Something needed is not there right now.
    Unavailable = 7,
    /// A deadline passed.
    Timeout = 8,
    /// The other side does not want the stream any more.
    Cancelled = 9,
}
