//! Follows one QEMU process: its state as events tell it, and the reason for its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use camino::Utf8PathBuf;
use microvm_confinement::{ExitRecord, ProcessRecord};
use microvm_ports::hypervisor::{MachineExit, MachineState};
use tokio::sync::{mpsc, watch};

use crate::control::qmp::Event;
use crate::process::console;

/// Time that the supervisor has to record an exit.
pub(crate) const EXIT_NOTE_DEADLINE: Duration = Duration::from_secs(2);

pub(super) struct Watched<F> {
    pub(super) directory: Utf8PathBuf,
    pub(super) process: ProcessRecord,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) publish: watch::Sender<MachineState>,
    /// Told whenever the guest has given up memory or taken some.
    pub(super) ballooned: watch::Sender<()>,
    pub(super) killed: Arc<AtomicBool>,
    pub(super) descriptor_ended: F,
}

/// Follows events until the process ends, then tells why it did.
pub(super) async fn watch_over<F: Future<Output = std::io::Result<()>> + Send>(watched: Watched<F>) {
    let Watched { directory, process, mut events, publish, ballooned, killed, descriptor_ended } = watched;
    tokio::pin!(descriptor_ended);
    let mut reason = None;
    let mut listening = true;
    let mut disk_full = false;
    loop {
        tokio::select! {
            biased;
            event = events.recv(), if listening => match event {
                Some(event) => match event.name.as_str() {
                    // Comes before the stop that it causes.
                    "BLOCK_IO_ERROR" => disk_full = event.data["action"].as_str() == Some("stop"),
                    "STOP" => {
                        let full = std::mem::take(&mut disk_full);
                        let state = if full { MachineState::DiskFull } else { MachineState::Paused };
                        publish.send_replace(state);
                    }
                    "RESUME" => { publish.send_replace(MachineState::Running); }
                    "SHUTDOWN" => reason = event.data["reason"].as_str().map(str::to_owned),
                    // QEMU tells the last one of many within a second.
                    "BALLOON_CHANGE" => { ballooned.send_replace(()); }
                    _ => {}
                },
                // A closed socket is not the end: only the process tells that.
                None => listening = false,
            },
            _ = &mut descriptor_ended => break,
        }
    }
    // The last event may still be in the queue.
    while let Ok(event) = events.try_recv() {
        if event.name == "SHUTDOWN" {
            reason = event.data["reason"].as_str().map(str::to_owned);
        }
    }
    wait_for_note(&process).await;
    let exit = if killed.load(Ordering::Acquire) {
        MachineExit::Killed
    } else {
        match reason.as_deref() {
            Some("guest-shutdown") => MachineExit::GuestShutdown,
            Some("guest-reset") if console::tells_of_a_panic(&directory) => MachineExit::GuestPanic,
            Some("guest-reset") if console::tells_of_a_power_off(&directory) => MachineExit::GuestShutdown,
            Some("guest-reset") => MachineExit::GuestReset,
            Some("guest-panic") => MachineExit::GuestPanic,
            _ => {
                let how = ExitRecord::read(&directory).ok().flatten();
                let how = how.map_or_else(|| "nobody saw how".to_owned(), |exit| exit.to_string());
                let words = console::last_words(&directory);
                MachineExit::Vmm(if words.is_empty() { how } else { format!("{how}: {words}") })
            }
        }
    };
    publish.send_replace(MachineState::Exited(exit));
}

/// The supervisor ends after it has emptied the logs and noted the exit.
pub(super) async fn wait_for_note(process: &ProcessRecord) {
    if let Ok(Some(supervisor)) = process.supervisor.open()
        && let Ok(ended) = supervisor.ended()
    {
        let _ = tokio::time::timeout(EXIT_NOTE_DEADLINE, ended).await;
    }
}
