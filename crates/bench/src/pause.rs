//! Pause of the source of a live branch.

use std::time::{Duration, Instant};

use microvm_api::snapshot::ForkVm;
use microvm_types::VmRef;
use microvm_types::vm::Limits;

use crate::bare::BareMachine;
use crate::boot::request;
use crate::dirt;
use crate::error::BenchError;
use crate::report::{Promise, Row};
use crate::samples::Samples;
use crate::{Scene, failed, tidy};

/// Seconds after which a child of a bench that was killed removes itself.
const IDLE_NET: u64 = 300;

/// A fork of `count` children that remove themselves if nobody does.
pub(crate) fn forking(count: usize) -> ForkVm {
    ForkVm {
        count,
        limits: Limits { ephemeral: true, idle_seconds: Some(IDLE_NET), ..Limits::default() },
        ..ForkVm::default()
    }
}

/// A VM forked from the golden snapshot of its template.
pub(crate) async fn source(scene: &Scene, memory_mib: u32) -> Result<VmRef, BenchError> {
    let wanted = microvm_api::CreateVm { cold: false, memory_mib: Some(memory_mib), ..request("default") };
    Ok(VmRef::from(scene.client.create_vm(&wanted).await?.id))
}

/// Pauses of one VM with some of its memory changed.
pub(crate) struct Pauses {
    /// Pauses that the server reports.
    pub(crate) ours: Vec<Duration>,
    /// The same steps on a bare machine, and a copy of as many bytes where that is asked for.
    pub(crate) floor: Vec<Duration>,
    /// MiB changed, in the last round.
    pub(crate) changed_mib: f64,
}

/// Forks `vm` again and again, taking turns with the bare machine.
pub(crate) async fn pauses(
    scene: &Scene,
    vm: &VmRef,
    bare: &BareMachine,
    with_copy: bool,
) -> Result<Pauses, BenchError> {
    let mut found = Pauses { ours: Vec::new(), floor: Vec::new(), changed_mib: 0.0 };
    for _ in 0..=scene.rounds {
        let forked = scene.client.fork_vm(vm, &forking(1)).await?;
        tidy::delete(scene, forked.vms.into_iter().map(|vm| VmRef::from(vm.id)).collect()).await?;
        found.ours.push(Duration::from_secs_f64(forked.pause_ms.as_f64() / 1e3));
        let mut floor = scene.bare.pause(bare).await?;
        if with_copy {
            floor += copy(forked.changed_bytes).await?;
        }
        found.floor.push(floor);
        #[expect(clippy::cast_precision_loss, reason = "shown to two decimals only")]
        let changed_mib = forked.changed_bytes as f64 / f64::from(1 << 20);
        found.changed_mib = changed_mib;
    }
    Ok(found)
}

/// Time of copying `bytes` between two buffers that were touched before.
async fn copy(bytes: u64) -> Result<Duration, BenchError> {
    let length = usize::try_from(bytes).map_err(|error| failed("copying memory", &error))?;
    let copied = tokio::task::spawn_blocking(move || {
        let (from, mut to) = (vec![1u8; length], vec![2u8; length]);
        let began = Instant::now();
        std::hint::black_box(&mut to).copy_from_slice(std::hint::black_box(&from));
        began.elapsed()
    });
    copied.await.map_err(|error| failed("copying memory", &error))
}

pub(crate) async fn measure(scene: &Scene) -> Result<Vec<Row>, BenchError> {
    let mut rows = Vec::new();
    // `None`: what a VM has changed that was only told who it is.
    for (mib, promise) in [
        (None, Promise::AtMost { times_floor: 1.3, plus: 1.0 }),
        (Some(60), Promise::AtMost { times_floor: 1.5, plus: 0.0 }),
    ] {
        scene.say("branching a running VM");
        let vm = source(scene, crate::bare::MEMORY_MIB).await?;
        let _dirt = match mib {
            None => None,
            Some(mib) => Some(dirt::make(scene, &vm, mib).await?),
        };
        let state = scene.bare.golden(scene, &vm).await?;
        let bare = scene.bare.child(&state).await?;
        let found = pauses(scene, &vm, &bare, mib.is_some()).await;
        scene.bare.remove(bare).await?;
        let found = found?;
        let floor = if mib.is_none() {
            "stop, device state, disk switch and cont on a bare QEMU"
        } else {
            "the same and a copy of as many bytes"
        };
        rows.push(Row::times(
            format!("pause of the source of a branch, {:.1} MiB changed", found.changed_mib),
            floor,
            Samples::new(found.floor).percentiles(),
            Samples::new(found.ours).percentiles(),
            promise,
        ));
        scene.client.delete_vm(&vm).await?;
    }
    Ok(rows)
}
