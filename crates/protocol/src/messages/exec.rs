//! Processes started through the agent.

use super::Variable;

/// Size of a terminal.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Terminal {
    /// Columns.
    #[prost(uint32, tag = "1")]
    pub columns: u32,
    /// Rows.
    #[prost(uint32, tag = "2")]
    pub rows: u32,
}

/// Start of a process. Its standard input is the stream's `Data`, ended by `End`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Exec {
    /// Id given by the host, never used twice.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Program and arguments.
    #[prost(string, repeated, tag = "2")]
    pub command: Vec<String>,
    /// Variables on top of the identity's.
    #[prost(message, repeated, tag = "3")]
    pub environment: Vec<Variable>,
    /// Working directory; empty: the default.
    #[prost(string, tag = "4")]
    pub working_directory: String,
    /// User; empty: the default.
    #[prost(string, tag = "5")]
    pub user: String,
    /// Terminal; absent: pipes.
    #[prost(message, optional, tag = "6")]
    pub terminal: Option<Terminal>,
    /// Standard input will be sent.
    #[prost(bool, tag = "7")]
    pub stdin: bool,
    /// Time limit in milliseconds; 0: none.
    #[prost(uint64, tag = "8")]
    pub timeout_ms: u64,
    /// It lives on without a reader.
    #[prost(bool, tag = "9")]
    pub detach: bool,
    /// It is forgotten when it has ended.
    #[prost(bool, tag = "10")]
    pub unlisted: bool,
}

/// Taking up output again.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Attach {
    /// Which process.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Offset in standard output; absent: the oldest byte kept.
    #[prost(uint64, optional, tag = "2")]
    pub stdout: Option<u64>,
    /// Offset in standard error; absent: the oldest byte kept.
    #[prost(uint64, optional, tag = "3")]
    pub stderr: Option<u64>,
}

/// A look at output, beside whoever takes it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReadOutput {
    /// Which process.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Offset in standard output; absent: the oldest byte kept.
    #[prost(uint64, optional, tag = "2")]
    pub stdout: Option<u64>,
    /// Offset in standard error; absent: the oldest byte kept.
    #[prost(uint64, optional, tag = "3")]
    pub stderr: Option<u64>,
    /// Later output of the process is wanted too.
    #[prost(bool, tag = "4")]
    pub follow: bool,
}

/// A process runs.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Started {
    /// Process number.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Offset of the first byte of standard output that comes.
    #[prost(uint64, tag = "2")]
    pub stdout_offset: u64,
    /// Offset of the first byte of standard error that comes.
    #[prost(uint64, tag = "3")]
    pub stderr_offset: u64,
}

/// A process has ended.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Exited {
    /// Exit code, if it ended by itself: 32 bits.
    #[prost(uint32, optional, tag = "1")]
    pub code: Option<u32>,
    /// Signal that ended it.
    #[prost(uint32, optional, tag = "2")]
    pub signal: Option<u32>,
    /// Its time was up.
    #[prost(bool, tag = "3")]
    pub timed_out: bool,
}

/// Signal to a process group.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Signal {
    /// Which process.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Number of the signal.
    #[prost(uint32, tag = "2")]
    pub signal: u32,
}

/// New size of a terminal.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Resize {
    /// Which process.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The size.
    #[prost(message, optional, tag = "2")]
    pub terminal: Option<Terminal>,
}

/// One process started through the agent.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Process {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Process number.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// Program and arguments, shortened.
    #[prost(string, repeated, tag = "3")]
    pub command: Vec<String>,
    /// Milliseconds since its start.
    #[prost(uint64, tag = "4")]
    pub age_ms: u64,
    /// Its end, if it has ended.
    #[prost(message, optional, tag = "5")]
    pub exit: Option<Exited>,
    /// Bytes of standard output so far.
    #[prost(uint64, tag = "6")]
    pub stdout_bytes: u64,
    /// Bytes of standard error so far.
    #[prost(uint64, tag = "7")]
    pub stderr_bytes: u64,
    /// The host asked for it to live on without a reader.
    #[prost(bool, tag = "8")]
    pub detached: bool,
    /// Bytes of the command that are left out.
    #[prost(uint64, tag = "9")]
    pub command_omitted: u64,
    /// True if it has a terminal.
    #[prost(bool, tag = "10")]
    pub terminal: bool,
    /// True if it was started with a standard input that can be written.
    #[prost(bool, tag = "11")]
    pub stdin: bool,
}

/// Some of the processes.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Processes {
    /// The processes.
    #[prost(message, repeated, tag = "1")]
    pub processes: Vec<Process>,
}
