//! The guest as a system.

/// A TCP port on the guest's loopback.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ConnectPort {
    /// Its number.
    #[prost(uint32, tag = "1")]
    pub port: u32,
}

/// The guest as a system.
#[derive(Clone, PartialEq, prost::Message)]
pub struct System {
    /// Name of the operating system.
    #[prost(string, tag = "1")]
    pub operating_system: String,
    /// Kernel release.
    #[prost(string, tag = "2")]
    pub kernel_release: String,
    /// Host name.
    #[prost(string, tag = "3")]
    pub host_name: String,
    /// Machine architecture.
    #[prost(string, tag = "4")]
    pub architecture: String,
    /// Processors on line.
    #[prost(uint32, tag = "5")]
    pub vcpus: u32,
    /// Memory in bytes.
    #[prost(uint64, tag = "6")]
    pub memory_total: u64,
    /// Available memory in bytes.
    #[prost(uint64, tag = "7")]
    pub memory_available: u64,
    /// Size of the root file system in bytes.
    #[prost(uint64, tag = "8")]
    pub disk_total: u64,
    /// Free bytes of the root file system.
    #[prost(uint64, tag = "9")]
    pub disk_available: u64,
    /// Seconds since boot.
    #[prost(uint64, tag = "10")]
    pub uptime_seconds: u64,
    /// Load averages over 1, 5 and 15 minutes.
    #[prost(double, repeated, tag = "11")]
    pub load_average: Vec<f64>,
    /// Wall clock in milliseconds since 1970-01-01T00:00:00Z.
    #[prost(int64, tag = "12")]
    pub wall_clock_ms: i64,
}

/// One process of the guest.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GuestProcess {
    /// Process number.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Of its parent.
    #[prost(uint32, tag = "2")]
    pub parent: u32,
    /// User id.
    #[prost(uint32, tag = "3")]
    pub uid: u32,
    /// State letter.
    #[prost(uint32, tag = "4")]
    pub state: u32,
    /// Resident memory in bytes.
    #[prost(uint64, tag = "5")]
    pub resident_bytes: u64,
    /// Processor time in milliseconds.
    #[prost(uint64, tag = "6")]
    pub cpu_ms: u64,
    /// Command line, or the kernel's name in brackets.
    #[prost(string, tag = "7")]
    pub command: String,
    /// Bytes of the command line that are left out.
    #[prost(uint64, tag = "8")]
    pub command_omitted: u64,
}

/// Some of all processes.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GuestProcesses {
    /// The processes.
    #[prost(message, repeated, tag = "1")]
    pub processes: Vec<GuestProcess>,
}

/// An end of the guest.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Shutdown {
    /// Boot again instead of powering off.
    #[prost(bool, tag = "1")]
    pub reboot: bool,
    /// Time between SIGTERM and SIGKILL in milliseconds.
    #[prost(uint64, tag = "2")]
    pub grace_ms: u64,
}

/// Bytes to make up.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct MeasureSource {
    /// How many.
    #[prost(uint64, tag = "1")]
    pub bytes: u64,
}

/// Spawns to time.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MeasureSpawn {
    /// Program; empty: `/bin/true`.
    #[prost(string, tag = "1")]
    pub program: String,
    /// Number of spawns, at most 1000.
    #[prost(uint32, tag = "2")]
    pub rounds: u32,
}

/// A start command that could not be started, so that there is no process of it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NotStarted {
    /// Its place among the start commands, from 0.
    #[prost(uint32, tag = "1")]
    pub place: u32,
    /// The command, its end left out where it is long.
    #[prost(string, tag = "2")]
    pub command: String,
    /// Bytes that are left out.
    #[prost(uint64, tag = "3")]
    pub command_omitted: u64,
    /// The reason, for people.
    #[prost(string, tag = "4")]
    pub reason: String,
}

/// Figures: for `Health` the three percentages, `start_commands_done` and `not_started`, for `MeasureSpawn` the times.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Measured {
    /// Processor use.
    #[prost(double, tag = "1")]
    pub cpu_percent: f64,
    /// Memory in use.
    #[prost(double, tag = "2")]
    pub memory_percent: f64,
    /// Root file system in use.
    #[prost(double, tag = "3")]
    pub disk_percent: f64,
    /// The start commands are done.
    #[prost(bool, tag = "4")]
    pub start_commands_done: bool,
    /// Times in nanoseconds.
    #[prost(uint64, repeated, tag = "5")]
    pub nanoseconds: Vec<u64>,
    /// The start command that could not be started, if there is one. Agents of before this field do not tell.
    #[prost(message, optional, tag = "6")]
    pub not_started: Option<NotStarted>,
}

/// The time of day. Sent when a guest runs again in the same epoch: its clocks stood still with it.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct SetClock {
    /// Wall clock in nanoseconds since 1970-01-01T00:00:00Z, at least 1.
    #[prost(int64, tag = "1")]
    pub wall_clock_ns: i64,
}
