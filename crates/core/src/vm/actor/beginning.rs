//! How a VM comes to run.

use std::sync::Arc;

use microvm_ports::snapshot::BranchSource;
use microvm_ports::storage::VmFiles;
use microvm_types::lifecycle::LifecycleEvent;
use microvm_types::template::HookPoint;
use microvm_types::vm::VmRecord;

use super::VmActor;
use crate::error::ServiceError;
use crate::events::What;
use crate::launch::{Connected, MachineFiles, Planned, fix_formats};
use crate::ports::Ports;
use crate::vm::command::Command;
use crate::vm::hooks;

impl VmActor {
    pub(super) async fn create(&mut self, start: bool, planned: Planned) -> Result<(), ServiceError> {
        let ports = self.shared.ports.clone();
        hooks::run(&ports, &self.record, HookPoint::BeforeCreate).await?;
        // The row is written while files are made and the machine boots. A crash before it is there leaves a directory
        // that no row knows, which the next server removes with all that runs in it; the row says `creating` until the
        // VM runs, so that a crash after it undoes the creation too.
        let (record, id) = (self.record.clone(), self.record.id.clone());
        let row = ports.store.insert_vm(&record);
        // Its directory is no leftover any more. Done while the row is changed: where only one of both was done before a
        // crash the row still says `creating`, or knows the directory.
        let finish = ports.vm_storage.finish_vm_files(&id);
        if start {
            let (row, up) = futures::join!(row, self.make_files_and_bring_up(planned));
            row?;
            let (ran, finished) = futures::join!(self.running(up?), finish);
            ran?;
            finished?;
            let _ = hooks::run(&ports, &self.record, HookPoint::AfterCreate).await;
            let _ = hooks::run(&ports, &self.record, HookPoint::AfterStart).await;
        } else {
            let (row, files) = futures::join!(row, planned.make_files(&ports, &record));
            row?;
            files?;
            let (created, finished) = futures::join!(self.request(LifecycleEvent::Created), finish);
            created?;
            finished?;
            let _ = hooks::run(&ports, &self.record, HookPoint::AfterCreate).await;
        }
        Ok(())
    }

    async fn make_files_and_bring_up(&mut self, planned: Planned) -> Result<Connected, ServiceError> {
        let files = planned.make_files(&self.shared.ports, &self.record).await?;
        hooks::run(&self.shared.ports, &self.record, HookPoint::BeforeStart).await?;
        self.bring_up_or_overtaken(async move |_, _| Ok((planned, files))).await
    }

    pub(super) async fn start(&mut self, cold: bool) -> Result<(), ServiceError> {
        hooks::run(&self.shared.ports, &self.record, HookPoint::BeforeStart).await?;
        self.end_last_machine().await?;
        let from = if cold { None } else { self.dream().await? };
        if from.is_none() {
            // A boot is one on the user's own disk files.
            self.write_back().await?;
        }
        self.request(LifecycleEvent::Start).await?;
        self.bring_up_after_request(from).await
    }

    /// The phase says that it starts: it runs afterwards, or has failed. `from`: a state, and the files that were put back
    /// on it.
    pub(super) async fn bring_up_after_request(
        &mut self,
        from: Option<(BranchSource, VmFiles)>,
    ) -> Result<(), ServiceError> {
        let ports = self.shared.ports.clone();
        let brought_up = self
            .bring_up_or_overtaken(async move |ports: &Ports, record: &VmRecord| {
                let (source, files) = from.unzip();
                let planned = Planned::of(ports, record, source).await?;
                let files = planned.find_files(ports, record, files).await?;
                Ok((planned, files))
            })
            .await;
        match brought_up {
            Ok(up) => {
                if let Err(error) = self.running(up).await {
                    self.end_machine_or_log().await;
                    self.note(LifecycleEvent::Lost, Some(format!("it could not be recorded: {error}"))).await;
                    return Err(error);
                }
                let _ = hooks::run(&ports, &self.record, HookPoint::AfterStart).await;
                Ok(())
            }
            Err(error) => {
                self.sweep_or_log().await;
                match error {
                    ServiceError::Overtaken(_) => self.stopped_by_force().await,
                    _ => self.note(LifecycleEvent::Lost, Some(error.to_string())).await,
                }
                Err(error)
            }
        }
    }

    /// Brings the machine up, unless a stop or a delete arrives meanwhile. `made`: what it is made of.
    async fn bring_up_or_overtaken(
        &mut self,
        made: impl AsyncFnOnce(&Ports, &VmRecord) -> Result<(Planned, MachineFiles), ServiceError>,
    ) -> Result<Connected, ServiceError> {
        let shared = Arc::clone(&self.shared);
        fix_formats(&shared.ports, &mut self.record).await?;
        let record = self.record.clone();
        let up = async {
            let (planned, files) = made(&shared.ports, &record).await?;
            let prepared = planned.prepare(&shared.ports, &record, files).await?;
            prepared.launch(&shared.ports, shared.settings.kill_deadline).await?.connect(&shared.ports).await
        };
        tokio::pin!(up);
        loop {
            tokio::select! {
                outcome = &mut up => return outcome,
                () = shared.ending.cancelled() => return Err(ServiceError::ShuttingDown),
                Some(order) = self.commands.recv() => {
                    let overtaken = match &order.command {
                        Command::Stop { .. } => Some("stopped"),
                        Command::Delete(_) => Some("deleted"),
                        _ => None,
                    };
                    self.pending.push_back(order);
                    if let Some(how) = overtaken {
                        return Err(ServiceError::Overtaken(how));
                    }
                }
            }
        }
    }

    /// The VM runs. If that cannot be stored it is ended again: the next server would not know of it.
    pub(super) async fn running(&mut self, up: Connected) -> Result<(), ServiceError> {
        let now = self.shared.ports.clock.now_ms();
        self.activity.touch(now);
        let slept = self.record.life.asleep().cloned();
        self.record.epoch = up.epoch;
        self.record.image_digest.clone_from(&up.image_digest);
        self.config = Some(up.config.clone());
        self.tell_what(What::Started { boot: up.boot, took: up.took });
        let (machine, guest) = up.keep();
        self.record.machine = serde_json::to_value(machine.record()).ok();
        (self.machine, self.guest) = (Some(machine), Some(guest));
        self.reached();
        self.restarting.holds();
        let before = self.record.started_ms.replace(now);
        if let Err(error) = self.request(LifecycleEvent::Started).await {
            self.record.started_ms = before;
            return Err(error);
        }
        self.end_sleep(slept).await;
        Ok(())
    }
}
