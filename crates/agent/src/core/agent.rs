//! State that all operations share.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};

use microvm_protocol::messages::NotStarted;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::epoch::Epoch;
use super::platform::{Defaults, Platform};
use super::process::Table;

/// State of the start commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StartCommands {
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
pub(crate) struct Agent<P: Platform> {
    pub(crate) platform: P,
    pub(super) processes: Table<P>,
    defaults: Mutex<Defaults>,
    start_commands: Mutex<StartCommands>,
    not_started: Mutex<Option<NotStarted>>,
    epoch: Mutex<Epoch>,
    tasks: Mutex<JoinSet<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<P: Platform> Agent<P> {
    pub(crate) fn new(platform: P) -> Self {
        Self {
            platform,
            processes: Table::default(),
            defaults: Mutex::default(),
            start_commands: Mutex::new(StartCommands::NotGiven),
            not_started: Mutex::default(),
            epoch: Mutex::default(),
            tasks: Mutex::new(JoinSet::new()),
        }
    }

    /// Runs a task that may live as long as the agent.
    pub(super) fn spawn(&self, runtime: &Handle, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        // Ended tasks are taken out here, or the set would grow for ever.
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, runtime);
    }

    pub(super) fn defaults(&self) -> Defaults {
        lock(&self.defaults).clone()
    }

    pub(super) fn set_defaults(&self, defaults: Defaults) {
        *lock(&self.defaults) = defaults;
    }

    /// The epoch of this guest.
    pub(super) fn epoch(&self) -> MutexGuard<'_, Epoch> {
        lock(&self.epoch)
    }

    pub(super) fn start_commands(&self) -> StartCommands {
        *lock(&self.start_commands)
    }

    /// The start command that could not be started.
    pub(super) fn not_started(&self) -> Option<NotStarted> {
        lock(&self.not_started).clone()
    }

    /// Keeps which start command could not be started.
    pub(super) fn set_not_started(&self, command: NotStarted) {
        *lock(&self.not_started) = Some(command);
    }

    /// Changes the state of the start commands; `false` if it was not `from`.
    pub(super) fn change_start_commands(&self, from: StartCommands, to: StartCommands) -> bool {
        let mut state = lock(&self.start_commands);
        let fits = *state == from;
        if fits {
            *state = to;
        }
        fits
    }
}
