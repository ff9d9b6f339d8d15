//! Bare machines that begin with a saved state, and what a branch of one costs at least.

use std::time::Duration;

use microvm_ports::StorageError;
use microvm_ports::branch::{IncomingState, MemoryPages, StateMemory};
use microvm_ports::capabilities::MemoryShape;
use microvm_ports::hypervisor::MachineStart;
use microvm_ports::snapshot::BranchSource;
use microvm_types::VmRef;
use microvm_types::vm::Origin;

use crate::bare::{BareHost, BareMachine, IMAGE, bare_spec};
use crate::bare_qmp;
use crate::error::BenchError;
use crate::{Scene, failed};

/// Place of the scratch disk among the disks, after the image.
const SCRATCH: usize = 1;
/// So many children that the memory is in a file of its own, as for the golden machines that are measured.
const CHILDREN: usize = 1_000;

impl BareHost {
    /// The golden state that a VM was forked from.
    pub(crate) async fn golden(&self, scene: &Scene, vm: &VmRef) -> Result<BranchSource, BenchError> {
        let origin = scene.client.vm(vm).await?.origin;
        let Origin::Golden { snapshot } = origin else {
            return Err(failed("finding the golden snapshot", &"the VM was not forked from one"));
        };
        let source = self.snapshots.snapshot_source(&snapshot, CHILDREN, MemoryShape::PagesOverBase).await;
        source.map_err(|error| failed("reading the golden snapshot", &error))
    }

    /// Starts a bare machine from a state. Its files are made before the clock starts.
    pub(crate) async fn child(&self, source: &BranchSource) -> Result<BareMachine, BenchError> {
        let step = |what: &'static str| move |error: StorageError| failed(what, &error);
        let base = source.memory.file().filter(|_| source.memory.page_bytes() == 0);
        let Some(base) = base else {
            return Err(failed("starting a bare child", &"its memory is not in one file"));
        };
        let image = self.images.image(IMAGE).await.map_err(step("finding the image"))?;
        let id = self.fresh_id();
        let files =
            self.snapshots.create_vm_files_from(&id, source).await.map_err(step("making a child's disk"))?;
        // QEMU on its own opens the base for writing, though it writes nothing to it, which only root may do here.
        let memory_base = if rustix::process::geteuid().is_root() {
            base.to_owned()
        } else {
            let copy = files.directory.join("memory.bare");
            std::fs::copy(base, &copy)
                .and_then(|_| std::fs::OpenOptions::new().read(true).open(&copy))
                .and_then(|file| file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)))
                .map_err(|error| failed("copying the memory of a bare child", &error))?;
            copy
        };
        let description = &source.description;
        let start = MachineStart::Incoming(IncomingState {
            parts: source.parts.clone(),
            memory: StateMemory::Pages { base: memory_base, pages: MemoryPages::default() },
            compatibility: description.compatibility.clone(),
        });
        let spec = bare_spec(id, description.memory_mib, start, image.path, files);
        self.start(&spec).await
    }

    /// Shortest pause of a bare machine for a branch in which no memory is copied.
    pub(crate) async fn pause(&self, machine: &BareMachine) -> Result<Duration, BenchError> {
        let overlays = self.snapshots.prepare_overlays(&machine.id, &[]).await;
        let overlays = overlays.map_err(|error| failed("making a new overlay", &error))?;
        let [overlay] = overlays.as_slice() else {
            return Err(failed("making a new overlay", &"there is not exactly one disk"));
        };
        let directory = self.disks.vm_directory(&machine.id);
        let overlay = overlay.clone();
        let paused =
            tokio::task::spawn_blocking(move || bare_qmp::pause(&directory, SCRATCH, &overlay)).await;
        paused.map_err(|error| failed("pausing a bare machine", &error))?
    }
}
