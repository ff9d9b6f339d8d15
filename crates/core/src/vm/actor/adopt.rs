//! Taking up VMs of an earlier server process, and agents that were lost.

use std::sync::Arc;

use microvm_ports::hypervisor::{MachineRecord, MachineState};
use microvm_ports::{LaunchError, Machine};
use microvm_types::lifecycle::LifecycleEvent;
use microvm_types::{Phase, StopReason};

use super::disks::write_back_or_log;
use super::ending::{stopped_by_force, sweep_or_log};
use super::journal::Journal;
use super::power::Vm;
use super::reach::connect_in_some_epoch;
use super::told::Told;
use super::{VmActor, memory};
use crate::launch;

/// Failure to take up a machine.
enum AdoptFailure {
    /// It is gone; says how that is known.
    Gone(String),
    /// It lives and may answer later.
    NotYet(String),
}

/// Look of a server for a machine that an earlier one started.
#[derive(Debug, Clone, Copy)]
enum Lookup {
    /// The first one, at its start.
    First,
    /// One after others that did not reach it.
    Later,
}

impl VmActor {
    /// Takes up a VM of an earlier server process.
    pub(super) async fn adopt(&mut self) {
        if !matches!(self.vm.journal.phase(), Phase::Creating | Phase::Deleting) {
            finish_files(&self.vm.journal).await;
        }
        match self.vm.journal.phase() {
            Phase::Creating if may_be_whole(&self.vm.journal).await => {
                // Its machine may live, and a newer copy takes it up again; a start ends it first.
                let reason = "its record is older than its disk: it was whole before this copy of the database was put \
                              back. Its disk is kept: start it, or put a newer copy back";
                let told = Told::stop_with(StopReason::RecordOutdated, reason);
                self.vm.journal.note(LifecycleEvent::Lost, told).await;
            }
            Phase::Creating | Phase::Deleting => {
                let record = &self.vm.journal.record;
                tracing::info!(vm = %record.id, phase = %record.phase(), "undoing what a crash interrupted");
                self.discard().await;
            }
            phase @ (Phase::Starting | Phase::Stopping) => {
                // The start or stop was never answered: its caller has seen an error and may try again.
                self.vm.end_machine_or_log().await;
                if self.vm.journal.record.life.asleep().is_none() {
                    write_back_or_log(&self.vm.journal).await;
                }
                let told = match phase {
                    // Noted with its reason, unless an older server noted it.
                    Phase::Stopping => {
                        let noted = self.vm.journal.record.last_stop.clone();
                        noted.map_or(Told::stop(StopReason::Unknown), Told::noted)
                    }
                    _ => Told::stop(StopReason::ServerShutdown),
                };
                stopped_by_force(&mut self.vm.journal, told).await;
            }
            // A server that died between the end of a machine and its note may have left the process.
            Phase::Stopped | Phase::Hibernated | Phase::Failed => {
                sweep_or_log(&self.vm.journal).await;
                // One that its guest had reset does not start by itself any more.
                if self.vm.journal.phase() == Phase::Stopped
                    && self.vm.journal.record.planned_shutdown.take().is_some()
                {
                    self.vm.journal.save_or_log(Told::NOTHING).await;
                }
            }
            Phase::Running | Phase::Paused | Phase::Pooled => self.adopt_machine().await,
            Phase::Deleted => {}
        }
    }

    /// Takes the machine up again. One that is gone fails the VM; one that lives and does not answer (a host under load
    /// after a restart) goes on, and is tried until it does.
    async fn adopt_machine(&mut self) {
        // A failure of the take-up changed the phase already if the machine is gone.
        let Err(reason) = self.take_up(Lookup::First).await else { return };
        let Vm { journal, reach, .. } = &mut self.vm;
        if matches!(journal.phase(), Phase::Running | Phase::Paused | Phase::Pooled) {
            reach.lost(journal, reason);
            // Whoever waits for it has waited for this try.
            if let Some(unreachable) = &mut journal.unreachable {
                unreachable.tried = true;
            }
            journal.publish();
        }
    }

    /// Takes the machine and its agent up, or tells why not. A machine that is gone has failed the VM then.
    async fn take_up(&mut self, lookup: Lookup) -> Result<(), String> {
        match self.vm.try_adopt().await {
            Ok(()) => {
                let Vm { journal, reach, .. } = &mut self.vm;
                // The server died between the wake and the end of the sleep.
                let slept = journal.record.life.give_up_sleep();
                reach.settled(journal);
                journal.save_or_log(Told::NOTHING).await;
                memory::end(&journal.shared, &journal.record, slept).await;
                Ok(())
            }
            Err(AdoptFailure::Gone(reason)) => {
                let (stop, reason) = match lookup {
                    Lookup::First => (
                        StopReason::LostWhileServerDown,
                        format!("its machine ended while the server was away: {reason}"),
                    ),
                    Lookup::Later => (
                        StopReason::VmmDied,
                        format!("its machine ended before the server reached it: {reason}"),
                    ),
                };
                self.fail(Told::stop_with(stop, reason.clone())).await;
                Err(reason)
            }
            Err(AdoptFailure::NotYet(reason)) => Err(reason),
        }
    }

    /// Tries to reach the agent, and the machine where that is not taken up yet. A command goes before it.
    pub(super) async fn reach_again(&mut self) {
        let Vm { journal, reach, inbox, .. } = &mut self.vm;
        // Processors that stand still answer nothing; a machine that was never taken up is tried all the same.
        let due = journal.phase() == Phase::Running
            || (matches!(journal.phase(), Phase::Paused | Phase::Pooled) && journal.machine.is_none());
        if !due {
            return reach.settled(journal);
        }
        let outcome = match journal.machine.clone() {
            None => self.take_up(Lookup::Later).await,
            Some(machine) => {
                let connect = async {
                    // Whatever paused it (a server that died in the middle of something): it is to run. One that runs
                    // goes on.
                    machine.resume().await.map_err(|error| error.to_string())?;
                    let opened = connect_in_some_epoch(&journal.shared, &journal.record, &machine).await;
                    opened.map_err(|error| error.to_string())
                };
                let tried = async {
                    tokio::select! {
                        biased;
                        exit = launch::exited(machine.state()) => Err(exit),
                        opened = connect => Ok(opened),
                    }
                };
                // Any command overtakes the try: a stop or a delete must not wait for an agent that is silent.
                match inbox.unless(&journal.shared.ending, |_| Some(()), tried).await {
                    Err(_) => return,
                    Ok(Err(exit)) => return self.machine_exited(exit).await,
                    Ok(Ok(opened)) => opened.map(|(guest, epoch)| reach.connected(journal, guest, epoch)),
                }
            }
        };
        let Vm { journal, reach, activity, .. } = &mut self.vm;
        match outcome {
            Ok(()) => {
                tracing::info!(vm = %journal.record.id, "the agent answers again");
                // Nobody could use it meanwhile.
                activity.touch(journal.now_ms());
                journal.save_or_log(Told::words("its agent answers again")).await;
            }
            Err(reason) => reach.missed(journal, &reason),
        }
    }
}

impl Vm {
    async fn try_adopt(&mut self) -> Result<(), AdoptFailure> {
        // An earlier try may have taken up the machine and failed at its agent.
        let machine = match self.journal.machine.clone() {
            Some(machine) => machine,
            None => adopted_machine(&self.journal).await?,
        };
        let not_yet =
            |what: &str, error: &dyn std::fmt::Display| AdoptFailure::NotYet(format!("{what}: {error}"));
        // From here on its end is noticed, and a stop finds it.
        self.journal.machine = Some(Arc::clone(&machine));
        // Of a record that an older server wrote: as early as can be.
        let fixed = launch::fix_formats(&self.journal.shared.ports, &mut self.journal.record).await;
        if let Err(error) = fixed {
            tracing::warn!(vm = %self.journal.record.id, %error, "the format of a disk is not known: the VM cannot be branched");
        }
        if self.journal.phase() != Phase::Running {
            // A server that died in the middle of a wake leaves a machine that runs while its row says paused.
            return machine.pause().await.map_err(|error| not_yet("its machine does not pause", &error));
        }
        if *machine.state().borrow() == MachineState::DiskFull {
            // It stopped while no server was there; its agent is reached when there is room.
            self.disk_is_full().await;
            return Ok(());
        }
        // The server may have died between the VMM's pause or resume and its own note of it.
        machine.resume().await.map_err(|error| not_yet("its machine does not resume", &error))?;
        let connected = self.reach.connect_unless_ended(&mut self.journal, &mut self.inbox, &machine).await;
        connected.map_err(|error| not_yet("its agent does not answer", &error))
    }
}

/// True unless the directory of a VM is surely what an interrupted creation left.
async fn may_be_whole(journal: &Journal) -> bool {
    match journal.shared.ports.vm_storage.is_unfinished(&journal.record.id).await {
        Ok(unfinished) => !unfinished,
        Err(error) => {
            tracing::error!(vm = %journal.record.id, %error, "it cannot be told whether this VM is whole: it is kept");
            true
        }
    }
}

/// Marks the directory as whole. Its creation was reported, whatever its directory says: the last server may have died
/// between the row and the mark in the directory, by which another one that does not know the row would take the VM for half
/// made.
async fn finish_files(journal: &Journal) {
    if let Err(error) = journal.shared.ports.vm_storage.finish_vm_files(&journal.record.id).await {
        tracing::warn!(vm = %journal.record.id, %error, "its directory cannot be marked as whole");
    }
}

async fn adopted_machine(journal: &Journal) -> Result<Arc<dyn Machine>, AdoptFailure> {
    let Journal { shared, record, .. } = journal;
    let known: MachineRecord = record
        .machine
        .clone()
        .and_then(|value| serde_json::from_value(value).ok())
        .ok_or_else(|| AdoptFailure::Gone("it was not recorded".to_owned()))?;
    let directory = shared.ports.vm_storage.vm_directory(&record.id);
    let hypervisor = shared.ports.hypervisor(&record.template);
    let hypervisor = hypervisor.map_err(|error| AdoptFailure::NotYet(error.to_string()))?;
    let adopted = hypervisor.adopt(&record.id, &directory, &known).await;
    adopted.map_err(|error| match error {
        LaunchError::Gone(_) | LaunchError::Died { .. } => AdoptFailure::Gone(error.to_string()),
        _ => AdoptFailure::NotYet(format!("its machine does not answer: {error}")),
    })
}
