//! The only place that waits for children: those of the agent and, as PID 1, all orphans.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use microvm_protocol::messages::Exited;
use rustix::process::{WaitOptions, wait};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

#[derive(Default)]
struct Waiting {
    claimed: HashMap<u32, oneshot::Sender<Exited>>,
    /// Children that ended during a spawn: the caller of that spawn may not know the number yet.
    early: HashMap<u32, Exited>,
    spawning: u32,
}

/// Hands exit statuses to the commands they belong to.
#[derive(Clone, Default)]
pub(in crate::platform::linux) struct Reaper {
    waiting: Arc<Mutex<Waiting>>,
}

/// Held from before a spawn until its process number is claimed.
pub(in crate::platform::linux) struct SpawnGuard {
    reaper: Reaper,
}

impl Reaper {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces a spawn, so that a child that ends at once is not lost.
    pub(in crate::platform::linux) fn announce(&self) -> SpawnGuard {
        self.lock().spawning += 1;
        SpawnGuard { reaper: self.clone() }
    }

    /// Collects children until the process ends.
    pub(in crate::platform::linux) async fn run(&self) -> std::io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        loop {
            self.collect();
            if children.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    /// Collects the children that have ended.
    pub(in crate::platform::linux) fn collect(&self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let exited = Exited {
                code: status.exit_status().map(i32::cast_unsigned),
                signal: status.terminating_signal().map(i32::cast_unsigned),
                timed_out: false,
            };
            let pid = pid.as_raw_nonzero().get().cast_unsigned();
            let mut waiting = self.lock();
            if let Some(claimed) = waiting.claimed.remove(&pid) {
                // The command may have been dropped meanwhile.
                let _ = claimed.send(exited);
            // Otherwise it is an orphan that nobody asks for.
            } else if waiting.spawning > 0 {
                waiting.early.insert(pid, exited);
            }
        }
    }
}

impl SpawnGuard {
    /// Waits for this child.
    pub(in crate::platform::linux) fn claim(self, pid: u32) -> oneshot::Receiver<Exited> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.reaper.lock();
        match waiting.early.remove(&pid) {
            Some(exited) => drop(sender.send(exited)),
            None => drop(waiting.claimed.insert(pid, sender)),
        }
        drop(waiting);
        receiver
    }
}

impl Drop for SpawnGuard {
    fn drop(&mut self) {
        let mut waiting = self.reaper.lock();
        waiting.spawning -= 1;
        // Every start has claimed its child by now: what is left are orphans, whose numbers may be given again.
        if waiting.spawning == 0 {
            waiting.early.clear();
        }
    }
}
