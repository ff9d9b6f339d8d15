//! Processes by id.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::started::Process;
use crate::core::failure::{AgentError, AgentResult};
use crate::core::platform::Programs;
use crate::core::start_commands::START_COMMAND;

/// Time for which an ended process is remembered, so that its status and output can still be asked for.
const REMEMBER: Duration = Duration::from_secs(300);
/// Most ended processes remembered.
const MOST_ENDED: usize = 64;
/// Most bytes of output kept of ended processes together.
const MOST_OUTPUT: usize = 16 * 1024 * 1024;

/// All processes started for the host.
pub(in crate::core) struct Table<P: Programs> {
    processes: Mutex<ById<P>>,
}

type ById<P> = BTreeMap<String, Arc<Process<P>>>;

impl<P: Programs> Default for Table<P> {
    fn default() -> Self {
        Self { processes: Mutex::default() }
    }
}

impl<P: Programs> Table<P> {
    fn lock(&self) -> MutexGuard<'_, ById<P>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::core) fn insert(&self, process: Arc<Process<P>>) {
        let mut processes = self.lock();
        Self::prune(&mut processes);
        processes.insert(process.id.clone(), process);
    }

    pub(in crate::core) fn get(&self, id: &str) -> AgentResult<Arc<Process<P>>> {
        self.lock().get(id).cloned().ok_or_else(|| {
            AgentError::not_found(format!("no process {id} is known: it never was, or it ended a while ago"))
        })
    }

    /// Removes a process from the table. Readers that hold it go on.
    pub(in crate::core) fn forget(&self, id: &str) {
        self.lock().remove(id);
    }

    pub(in crate::core) fn contains(&self, id: &str) -> bool {
        self.lock().contains_key(id)
    }

    pub(in crate::core) fn all(&self) -> Vec<Arc<Process<P>>> {
        let mut processes = self.lock();
        Self::prune(&mut processes);
        // Commands of the server itself are not shown to users.
        processes.values().filter(|process| !process.unlisted).cloned().collect()
    }

    /// Removes the oldest ended processes; one with a reader stays, and a start command that failed, of which there is one a boot:
    /// it can still be looked up days later.
    fn prune(processes: &mut ById<P>) {
        let mut ended: Vec<_> = processes
            .values()
            .filter_map(|process| {
                let state = process.lock();
                let kept: usize = state.outputs.iter().map(super::output::OutputBuffer::kept).sum();
                let ended = state.ended.filter(|_| state.is_complete() && !state.has_reader)?;
                if process.id.starts_with(START_COMMAND)
                    && state.exit.is_some_and(|exit| exit.code != Some(0))
                {
                    return None;
                }
                Some((ended, process.id.clone(), kept))
            })
            .collect();
        // The newest first: they are the likeliest to be asked for.
        ended.sort_unstable_by_key(|(when, ..)| std::cmp::Reverse(*when));
        let mut output = 0;
        for (position, (when, id, kept)) in ended.into_iter().enumerate() {
            output += kept;
            if position >= MOST_ENDED || when.elapsed() > REMEMBER {
                processes.remove(&id);
            } else if output > MOST_OUTPUT
                && let Some(process) = processes.get(&id)
            {
                for output in &mut process.lock().outputs {
                    output.forget();
                }
            }
        }
    }
}
