//! Beginnings of a machine: at the creation of a VM, at a start, and back on a snapshot.

use std::sync::Arc;

use microvm_ports::snapshot::BranchSource;
use microvm_ports::storage::{LostDisks, VmFiles};
use microvm_types::lifecycle::{LifecycleEvent, Work};
use microvm_types::template::HookPoint;
use microvm_types::vm::{Origin, VmRecord};
use microvm_types::{ErrorKind, StopReason};

use super::disks::write_back;
use super::ending::{end_last_machine, request_stop, still_lives, stopped_by_force, sweep_or_log};
use super::hooks;
use super::inbox::Interrupted;
use super::journal::Journal;
use super::memory;
use super::power::Vm;
use super::told::Told;
use crate::error::ServiceError;
use crate::events::What;
use crate::launch::{Connected, MachineFiles, Planned, fix_formats};
use crate::ports::Ports;
use crate::vm::command::Command;
use crate::vm::volumes;

/// Orders that end a VM whose machine is coming up, with the word for it.
const fn overtakes(command: &Command) -> Option<&'static str> {
    match command {
        Command::Stop { .. } => Some("stopped"),
        Command::Delete { .. } => Some("deleted"),
        _ => None,
    }
}

impl Vm {
    /// Makes a new VM, and starts it if asked. What a failure leaves is for the caller to discard.
    pub(super) async fn create(&mut self, start: bool, planned: Planned) -> Result<(), ServiceError> {
        let ports = self.journal.shared.ports.clone();
        if start {
            volumes::take(&self.journal.shared, &self.journal.record).await?;
        }
        self.journal.hook(HookPoint::BeforeCreate).await?;
        // Hooks of a restore belong to VMs that a user made of a snapshot; forks and children of golden snapshots have none.
        let restored = matches!(self.journal.record.origin, Origin::Snapshot { .. });
        if restored {
            self.journal.hook(HookPoint::BeforeRestore).await?;
        }
        // The row is written while files are made and the machine boots. A crash before it is there leaves a directory
        // that no row knows, which the next server removes with all that runs in it; the row says `creating` until the
        // VM runs, so that a crash after it undoes the creation too.
        let (record, id) = (self.journal.record.clone(), self.journal.record.id.clone());
        let row = ports.store.insert_vm(&record);
        // Its directory is no leftover any more when the record is kept there. After the row is changed: a row that says
        // `creating` of a whole directory is then surely older than it (a copy of the database that was put back), and removes
        // nothing.
        let finish = async |journal: &Journal| match journal.has_kept {
            true => Ok(()),
            false => ports.vm_storage.finish_vm_files(&id).await,
        };
        if start {
            // Both to their end: a row that is half written, or a machine that nobody waits for, could not be undone.
            let (row, up) = futures::join!(row, self.make_files_and_bring_up(planned));
            row?;
            // Stored before the directory is marked: the next server adopts the machine from this moment on.
            self.running(up?).await?;
            // Before the hooks, one of which may be what fills the volumes.
            volumes::note_told(&self.journal.shared, &self.journal.record);
            finish(&self.journal).await?;
            // Hooks after the fact cannot refuse: the VM runs whatever they answer.
            let _ = self.journal.hook(HookPoint::AfterCreate).await;
            let _ = self.journal.hook(HookPoint::AfterStart).await;
            if restored {
                let _ = self.journal.hook(HookPoint::AfterRestore).await;
            }
        } else {
            let (row, files) = futures::join!(row, planned.make_files(&ports, &record));
            row?;
            files?;
            self.journal.request(LifecycleEvent::Created).await?;
            volumes::note_told(&self.journal.shared, &self.journal.record);
            finish(&self.journal).await?;
            let _ = self.journal.hook(HookPoint::AfterCreate).await;
        }
        Ok(())
    }

    async fn make_files_and_bring_up(&mut self, planned: Planned) -> Result<Connected, ServiceError> {
        let files = planned.make_files(&self.journal.shared.ports, &self.journal.record).await?;
        self.journal.hook(HookPoint::BeforeStart).await?;
        self.bring_up(async move |_, _| Ok((planned, files))).await
    }

    /// Starts a VM without a machine: where it hibernated, or by a boot, which `cold` asks for in any case.
    pub(super) async fn start(&mut self, cold: bool) -> Result<(), ServiceError> {
        volumes::take(&self.journal.shared, &self.journal.record).await?;
        let started = start_machine(self, cold).await;
        if started.is_err() {
            volumes::release_at_rest(&self.journal.shared, &self.journal.record);
        }
        started
    }

    /// Puts the VM back to a state of its own: what it did since is gone. It runs afterwards. `epoch`: that of the state.
    pub(super) async fn rollback(&mut self, source: BranchSource, epoch: u64) -> Result<(), ServiceError> {
        // Everything that can refuse comes before the machine is ended: a refused rollback changes nothing.
        self.journal.permits(Work::Rollback)?;
        memory::check_loadable(&self.journal.shared, &self.journal.record, &source).await?;
        if self.journal.phase().has_machine() {
            request_stop(&mut self.journal, StopReason::User).await?;
            let ended = self.end_machine(None).await;
            still_lives(&mut self.journal, ended).await?;
            self.journal.note(LifecycleEvent::Stopped, Told::stop(StopReason::User)).await;
        }
        volumes::take(&self.journal.shared, &self.journal.record).await?;
        let put_back = put_back(self, source, epoch).await;
        if put_back.is_err() {
            volumes::release_at_rest(&self.journal.shared, &self.journal.record);
        }
        put_back
    }

    /// Brings up a VM whose phase says that it starts: it runs afterwards, or has failed. `from`: a state, and the files that
    /// were put back on it.
    async fn bring_up_after_request(
        &mut self,
        from: Option<(BranchSource, VmFiles)>,
    ) -> Result<(), ServiceError> {
        let brought_up = self
            .bring_up(async move |ports: &Ports, record: &VmRecord| {
                let (source, files) = from.unzip();
                let planned = Planned::of(ports, record, source).await?;
                let files = planned.find_files(ports, record, files).await?;
                Ok((planned, files))
            })
            .await;
        match brought_up {
            Ok(up) => {
                // A machine that no record names would run on unseen after the next restart of the server.
                if let Err(error) = self.running(up).await {
                    self.end_machine_or_log().await;
                    let words = format!("it could not be recorded: {error}");
                    let told = Told::stop_with(reason_of(&error), words);
                    self.journal.note(LifecycleEvent::Lost, told).await;
                    return Err(error);
                }
                let _ = self.journal.hook(HookPoint::AfterStart).await;
                Ok(())
            }
            Err(error) => {
                // The dropped stages killed the machine; the sweep ends what a driver that failed half way left.
                sweep_or_log(&self.journal).await;
                match error {
                    ServiceError::Overtaken(_) => {
                        stopped_by_force(&mut self.journal, Told::stop(StopReason::User)).await
                    }
                    _ => {
                        let told = Told::stop_with(reason_of(&error), error.to_string());
                        self.journal.note(LifecycleEvent::Lost, told).await;
                        hooks::tell_failure(&self.journal);
                    }
                }
                Err(error)
            }
        }
    }

    /// Brings the machine up, unless a stop or a delete arrives meanwhile. `made`: what it is made of.
    pub(super) async fn bring_up(
        &mut self,
        made: impl AsyncFnOnce(&Ports, &VmRecord) -> Result<(Planned, MachineFiles), ServiceError>,
    ) -> Result<Connected, ServiceError> {
        // Owned, because the future below runs while the inbox of this VM is borrowed.
        let shared = Arc::clone(&self.journal.shared);
        // Before the first boot: afterwards the guest has written the bytes that a format would be read from.
        fix_formats(&shared.ports, &mut self.journal.record).await?;
        let record = self.journal.record.clone();
        let up = async {
            let (planned, files) = made(&shared.ports, &record).await?;
            let prepared = planned.prepare(&shared.ports, &record, files).await?;
            let launched = prepared.launch(shared.settings.kill_deadline).await?;
            launched.connect(&shared.ports, shared.settings.balloon_patience).await
        };
        // Dropping `up` at any stage kills the machine and closes the channel.
        match self.inbox.unless(&shared.ending, overtakes, up).await {
            Ok(outcome) => outcome,
            Err(Interrupted::Order(how)) => Err(ServiceError::Overtaken(how)),
            Err(Interrupted::Ending) => Err(ServiceError::ShuttingDown),
        }
    }

    /// Makes a machine that came up the VM's, and its guest.
    pub(super) fn install(&mut self, up: Connected) {
        let Self { journal, reach, .. } = self;
        journal.record.epoch = up.epoch;
        journal.record.image_digest.clone_from(&up.image_digest);
        if up.boot {
            // What a resize gave or took ended with the guest that had it.
            journal.record.memory_now_mib = journal.record.template.memory_at_boot_mib();
        }
        reach.learn(up.config.clone());
        journal.tell_what(What::Started { boot: up.boot, took: up.took });
        let (machine, guest) = up.keep();
        // A driver whose record cannot be told as JSON is found by its directory only.
        journal.record.machine = serde_json::to_value(machine.record()).ok();
        (journal.machine, journal.guest) = (Some(machine), Some(guest));
        reach.reached(journal);
    }

    /// Notes that the VM runs. If that cannot be stored it is for the caller to end it again: the next server would not know
    /// of it.
    async fn running(&mut self, up: Connected) -> Result<(), ServiceError> {
        let now = self.journal.now_ms();
        // A boot that took longer than the idle limit is not idleness.
        self.activity.touch(now);
        let slept = self.journal.record.life.asleep().cloned();
        self.journal.record.boot_ms = Some(u64::try_from(up.took.as_millis()).unwrap_or(u64::MAX));
        self.install(up);
        self.restarting.holds();
        let journal = &mut self.journal;
        let before = journal.record.started_ms.replace(now);
        if let Err(error) = journal.request(LifecycleEvent::Started).await {
            journal.record.started_ms = before;
            return Err(error);
        }
        // Only now: until the phase is stored, the next server would load this memory again.
        memory::end(&journal.shared, &journal.record, slept).await;
        Ok(())
    }
}

/// Reason to fail of a VM that did not start.
pub(super) fn reason_of(error: &ServiceError) -> StopReason {
    match error {
        ServiceError::ShuttingDown => StopReason::ServerShutdown,
        // Not of what a guest says: it is full, or pretends to be.
        ServiceError::Launch(_)
        | ServiceError::Storage(_)
        | ServiceError::State(_)
        | ServiceError::Branch(_)
            if error.kind() == ErrorKind::Exhausted =>
        {
            StopReason::HostOutOfSpace
        }
        _ => StopReason::StartFailed,
    }
}

/// Starts a VM without a machine, which has its volumes.
async fn start_machine(vm: &mut Vm, cold: bool) -> Result<(), ServiceError> {
    let journal = &mut vm.journal;
    journal.hook(HookPoint::BeforeStart).await?;
    // A VMM that outlived its VM still writes to the disk that the next machine would open.
    end_last_machine(journal).await?;
    let from = if cold { None } else { memory::of(&journal.shared, &journal.record).await? };
    if from.is_none() {
        // A boot is one on the user's own disk files.
        write_back(journal, LostDisks::Keep).await?;
    }
    // From here on a crash leaves `starting`, which the next server turns into `stopped`.
    journal.request(LifecycleEvent::Start).await?;
    vm.bring_up_after_request(from).await
}

/// Starts a VM without a machine from an earlier state of its own.
async fn put_back(vm: &mut Vm, source: BranchSource, epoch: u64) -> Result<(), ServiceError> {
    let journal = &mut vm.journal;
    end_last_machine(journal).await?;
    // The point of no return: what the VM did since the snapshot is gone afterwards.
    let files = journal.shared.ports.snapshots.reset_vm_files(&journal.record.id, &source).await?;
    // The saved guest knows its own epoch, which may be later than that of the record.
    journal.record.epoch = journal.record.epoch.max(epoch);
    // Whoever puts it back wants it to run.
    journal.record.planned_shutdown = None;
    let slept = journal.record.life.give_up_sleep();
    journal.request(LifecycleEvent::Start).await?;
    memory::end(&journal.shared, &journal.record, slept).await;
    vm.bring_up_after_request(Some((source, files))).await
}

#[cfg(test)]
mod tests {
    use microvm_ports::LaunchError;

    use super::*;

    #[test]
    fn a_host_without_room_is_told_apart_from_a_start_that_failed() {
        let full = ServiceError::Launch(LaunchError::NoMemory { needed_mib: 2, available_mib: 1 });
        assert_eq!(reason_of(&full), StopReason::HostOutOfSpace);
        let (kind, reason) = (ErrorKind::Exhausted, "its disk is full".to_owned());
        let guest = ServiceError::Boot { kind, reason, console: String::new() };
        assert_eq!(reason_of(&guest), StopReason::StartFailed, "a guest chose the word");
        assert_eq!(reason_of(&ServiceError::ShuttingDown), StopReason::ServerShutdown);
        assert_eq!(reason_of(&ServiceError::NoBranching), StopReason::StartFailed);
    }
}
