//! Processes that are known by id.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::process::Process;
use crate::failure::{AgentError, AgentResult};

/// How long an ended process is remembered.
const REMEMBER: Duration = Duration::from_secs(300);
/// Most ended processes remembered.
const MOST_ENDED: usize = 64;
/// Most bytes of output kept of ended processes together.
const MOST_OUTPUT: usize = 16 * 1024 * 1024;

/// All processes started for the host.
#[derive(Default)]
pub(crate) struct Table {
    processes: Mutex<BTreeMap<String, Arc<Process>>>,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Process>>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, process: Arc<Process>) {
        let mut processes = self.lock();
        Self::prune(&mut processes);
        processes.insert(process.id.clone(), process);
    }

    pub(crate) fn get(&self, id: &str) -> AgentResult<Arc<Process>> {
        self.lock().get(id).cloned().ok_or_else(|| {
            AgentError::not_found(format!("no process {id} is known: it never was, or it ended a while ago"))
        })
    }

    /// Whoever takes its output goes on with it.
    pub(crate) fn forget(&self, id: &str) {
        self.lock().remove(id);
    }

    pub(crate) fn contains(&self, id: &str) -> bool {
        self.lock().contains_key(id)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Process>> {
        let mut processes = self.lock();
        Self::prune(&mut processes);
        // What the service runs by itself is nobody else's business, also while it lives.
        processes.values().filter(|process| !process.unlisted).cloned().collect()
    }

    /// Forgets the oldest of the ended; one whose output someone is taking stays.
    fn prune(processes: &mut BTreeMap<String, Arc<Process>>) {
        let mut ended: Vec<_> = processes
            .values()
            .filter_map(|process| {
                let state = process.lock();
                let kept: usize = state.outputs.iter().map(super::output::Output::kept).sum();
                let ended = state.ended.filter(|_| state.is_complete() && !state.has_reader)?;
                Some((ended, process.id.clone(), kept))
            })
            .collect();
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
