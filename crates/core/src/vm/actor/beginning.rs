//! How a VM comes to run.

use std::sync::Arc;

use microvm_ports::snapshot::BranchSource;
use microvm_types::lifecycle::LifecycleEvent;
use microvm_types::template::HookPoint;

use super::VmActor;
use crate::error::ServiceError;
use crate::launch::{BroughtUp, bring_up, fix_formats};
use crate::vm::command::Command;
use crate::vm::hooks;

impl VmActor {
    pub(super) async fn create(
        &mut self,
        start: bool,
        source: Option<BranchSource>,
    ) -> Result<(), ServiceError> {
        let ports = self.shared.ports.clone();
        hooks::run(&ports, &self.record, HookPoint::BeforeCreate).await?;
        // The row is written while files are made and the machine boots. A crash before it is there leaves a directory
        // that no row knows, which the next server removes with all that runs in it; the row says `creating` until the
        // VM runs, so that a crash after it undoes the creation too.
        let record = self.record.clone();
        let row = ports.store.insert_vm(&record);
        if start {
            let (row, up) = futures::join!(row, self.create_files_and_bring_up(source));
            row?;
            self.running(up?).await?;
            ports.vm_storage.finish_vm_files(&self.record.id).await?;
            let _ = hooks::run(&ports, &self.record, HookPoint::AfterCreate).await;
            let _ = hooks::run(&ports, &self.record, HookPoint::AfterStart).await;
        } else {
            let (row, files) = futures::join!(row, self.create_files(source.as_ref()));
            row?;
            files?;
            self.request(LifecycleEvent::Created).await?;
            ports.vm_storage.finish_vm_files(&self.record.id).await?;
            let _ = hooks::run(&ports, &self.record, HookPoint::AfterCreate).await;
        }
        Ok(())
    }

    pub(super) async fn create_files(&self, source: Option<&BranchSource>) -> Result<(), ServiceError> {
        let (ports, id) = (&self.shared.ports, &self.record.id);
        match source {
            Some(source) => ports.snapshots.create_vm_files_from(id, source).await?,
            None => ports.vm_storage.create_vm_files(id, self.record.template.disk_mib).await?,
        };
        Ok(())
    }

    pub(super) async fn create_files_and_bring_up(
        &mut self,
        source: Option<BranchSource>,
    ) -> Result<BroughtUp, ServiceError> {
        self.create_files(source.as_ref()).await?;
        hooks::run(&self.shared.ports, &self.record, HookPoint::BeforeStart).await?;
        self.bring_up_or_overtaken(source).await
    }

    pub(super) async fn start(&mut self, cold: bool) -> Result<(), ServiceError> {
        hooks::run(&self.shared.ports, &self.record, HookPoint::BeforeStart).await?;
        let source = if cold { None } else { self.dream().await? };
        if source.is_none() {
            // A boot is one on the user's own disk files.
            self.write_back().await?;
        }
        self.request(LifecycleEvent::Start).await?;
        self.bring_up_after_request(source).await
    }

    /// The phase says that it starts: it runs afterwards, or has failed.
    pub(super) async fn bring_up_after_request(
        &mut self,
        source: Option<BranchSource>,
    ) -> Result<(), ServiceError> {
        let ports = self.shared.ports.clone();
        match self.bring_up_or_overtaken(source).await {
            Ok(up) => {
                if let Err(error) = self.running(up).await {
                    self.end_machine(None).await;
                    self.note(LifecycleEvent::Lost, Some(format!("it could not be recorded: {error}"))).await;
                    return Err(error);
                }
                let _ = hooks::run(&ports, &self.record, HookPoint::AfterStart).await;
                Ok(())
            }
            Err(error) => {
                self.sweep().await;
                match error {
                    ServiceError::Overtaken(_) => self.stopped_by_force().await,
                    _ => self.note(LifecycleEvent::Lost, Some(error.to_string())).await,
                }
                Err(error)
            }
        }
    }

    /// Brings the machine up, unless a stop or a delete arrives meanwhile.
    pub(super) async fn bring_up_or_overtaken(
        &mut self,
        source: Option<BranchSource>,
    ) -> Result<BroughtUp, ServiceError> {
        let shared = Arc::clone(&self.shared);
        fix_formats(&shared.ports, &mut self.record).await?;
        let record = self.record.clone();
        let up = bring_up(&shared.ports, &record, source, shared.settings.kill_deadline);
        tokio::pin!(up);
        loop {
            tokio::select! {
                outcome = &mut up => return outcome,
                () = shared.ending.cancelled() => return Err(ServiceError::ShuttingDown),
                Some(command) = self.commands.recv() => {
                    let overtaken = match &command {
                        Command::Stop { .. } => Some("stopped"),
                        Command::Delete(_) => Some("deleted"),
                        _ => None,
                    };
                    self.pending.push_back(command);
                    if let Some(how) = overtaken {
                        return Err(ServiceError::Overtaken(how));
                    }
                }
            }
        }
    }

    /// The VM runs. If that cannot be stored it is ended again: the next server would not know of it.
    pub(super) async fn running(&mut self, up: BroughtUp) -> Result<(), ServiceError> {
        let now = self.shared.ports.clock.now_ms();
        self.activity.touch(now);
        let slept = self.record.life.asleep().cloned();
        self.record.epoch = up.epoch;
        self.record.image_digest = up.image_digest;
        self.record.machine = serde_json::to_value(up.machine.record()).ok();
        self.machine = Some(up.machine);
        self.guest = Some(up.guest);
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
