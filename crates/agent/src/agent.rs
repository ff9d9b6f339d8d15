//! What all operations share.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::epoch::Epoch;
use crate::exec::{ControlGroups, Defaults, Reaper, Table};
use crate::system::entropy::EntropyPool;
use crate::system::health::Sampler;

/// How the agent was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a guest: the whole machine is ours.
    Guest,
    /// Beside others on a host, for tests: nothing of the system may be changed.
    Host,
}

/// State of the start commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartCommands {
    /// None were given yet.
    NotGiven,
    /// They are being run.
    Running,
    /// All were started and none has failed.
    Done,
    /// One failed.
    Failed,
}

/// The agent: one per guest.
pub(crate) struct Agent {
    pub(crate) place: Place,
    /// Whether only a score keeps the out-of-memory killer away from the agent. The kernel never ends PID 1.
    pub(crate) shielded: bool,
    pub(crate) entropy: EntropyPool,
    pub(crate) kernel_release: String,
    pub(crate) boot_ms: u64,
    pub(crate) processes: Table,
    pub(crate) reaper: Reaper,
    pub(crate) control_groups: ControlGroups,
    pub(crate) sampler: Sampler,
    defaults: Mutex<Defaults>,
    start_commands: Mutex<StartCommands>,
    epoch: Mutex<Epoch>,
    tasks: Mutex<JoinSet<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    pub(crate) fn new(place: Place) -> Self {
        let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let boot_ms = uptime.tv_sec.unsigned_abs() * 1000 + uptime.tv_nsec.unsigned_abs() / 1_000_000;
        Self {
            place,
            shielded: place == Place::Guest && !rustix::process::getpid().is_init(),
            entropy: EntropyPool::open(),
            kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
            boot_ms,
            processes: Table::default(),
            reaper: Reaper::default(),
            control_groups: match place {
                Place::Guest => ControlGroups::prepare(),
                Place::Host => ControlGroups::none(),
            },
            sampler: Sampler::default(),
            defaults: Mutex::default(),
            start_commands: Mutex::new(StartCommands::NotGiven),
            epoch: Mutex::default(),
            tasks: Mutex::new(JoinSet::new()),
        }
    }

    /// Runs something for as long as the agent lives.
    pub(crate) fn spawn(&self, runtime: &Handle, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, runtime);
    }

    pub(crate) fn defaults(&self) -> Defaults {
        lock(&self.defaults).clone()
    }

    pub(crate) fn set_defaults(&self, defaults: Defaults) {
        *lock(&self.defaults) = defaults;
    }

    /// Which epoch this guest is in.
    pub(crate) fn epoch(&self) -> MutexGuard<'_, Epoch> {
        lock(&self.epoch)
    }

    pub(crate) fn start_commands(&self) -> StartCommands {
        *lock(&self.start_commands)
    }

    /// Changes the state of the start commands; `false` if it was not `from`.
    pub(crate) fn change_start_commands(&self, from: StartCommands, to: StartCommands) -> bool {
        let mut state = lock(&self.start_commands);
        let fits = *state == from;
        if fits {
            *state = to;
        }
        fits
    }
}
