//! Identity of a guest.

/// A shared folder as the guest mounts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestShare {
    /// Name by which the machine offers it.
    pub tag: String,
    /// Absolute path in the guest.
    pub target: String,
    /// True if it is mounted read-only.
    pub read_only: bool,
}

/// A named volume as the guest mounts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestVolume {
    /// Serial number of its disk.
    pub serial: String,
    /// Absolute path in the guest.
    pub target: String,
    /// True if it is mounted read-only.
    pub read_only: bool,
}

/// Identity that a VM is given at the start of every epoch: after a boot, a fork or a restore. The wall clock is
/// taken when it is sent. Values of `environment` may be secrets: they are never logged.
#[derive(Clone, Default)]
pub struct Identity {
    /// Host name.
    pub host_name: String,
    /// 32 lower-case hexadecimal characters for `/etc/machine-id`.
    pub machine_id: String,
    /// Seed for the guest's random number generator.
    pub entropy: [u8; 32],
    /// Variables of every command.
    pub environment: Vec<(String, String)>,
    /// Commands to run once, in order, each by `sh -c`; empty after an adoption.
    pub start_commands: Vec<String>,
    /// Folders to mount, before the start commands run; only after a boot.
    pub shares: Vec<GuestShare>,
    /// Volumes to mount, before the start commands run; only after a boot.
    pub volumes: Vec<GuestVolume>,
    /// Default user for commands, from the image; empty: root.
    pub user: String,
    /// Default working directory for commands, from the image; empty: the user's home.
    pub working_directory: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Identity")
            .field("host_name", &self.host_name)
            .field("variables", &self.environment.len())
            .field("start_commands", &self.start_commands.len())
            .finish_non_exhaustive()
    }
}
