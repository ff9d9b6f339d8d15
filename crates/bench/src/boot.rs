//! Cold boots.

use std::time::{Duration, Instant};

use microvm_api::CreateVm;
use microvm_api::exec::{CommandLine, Execute};
use microvm_types::VmRef;
use microvm_types::template::Overrides;
use microvm_types::vm::Limits;

use crate::bare::{DISK_MIB, IMAGE, MEMORY_MIB};
use crate::error::BenchError;
use crate::report::{Promise, Row};
use crate::samples::{Percentiles, Samples};
use crate::{Scene, marks};

/// Seconds after which a VM of a bench that was killed removes itself.
const IDLE_NET: u64 = 300;

/// Request for a VM as all VMs of the bench are.
pub(crate) fn request(kernel: &str) -> CreateVm {
    CreateVm {
        vcpus: Some(1),
        memory_mib: Some(MEMORY_MIB),
        overrides: Overrides {
            image: Some(IMAGE.to_owned()),
            kernel: Some(kernel.to_owned()),
            disk_mib: Some(DISK_MIB),
            ..Overrides::default()
        },
        limits: Limits { ephemeral: true, idle_seconds: Some(IDLE_NET), ..Limits::default() },
        labels: marks::labels(),
        cold: true,
        ..CreateVm::default()
    }
}

pub(crate) fn execute(command: &str) -> Execute {
    Execute {
        command: CommandLine::Arguments(vec![command.to_owned()]),
        timeout: 30,
        working_dir: None,
        env: std::collections::BTreeMap::new(),
        user: None,
    }
}

/// Creates a VM over REST and runs its first command; how long both took.
pub(crate) async fn one(scene: &Scene, kernel: &str) -> Result<Duration, BenchError> {
    let started = Instant::now();
    let vm = VmRef::from(scene.client.create_vm(&request(kernel)).await?.id);
    scene.client.execute(&vm, &execute("true")).await?;
    let took = started.elapsed();
    scene.client.delete_vm(&vm).await?;
    Ok(took)
}

pub(crate) async fn measure(scene: &Scene) -> Result<Vec<Row>, BenchError> {
    let mut rows = Vec::new();
    let mut medians: Vec<(&str, Percentiles)> = Vec::new();
    for kernel in ["distribution", "built"] {
        if !scene.bare.has_kernel(kernel).await {
            scene.say(&format!("there is no kernel `{kernel}`, its boots are left out"));
            continue;
        }
        scene.say(&format!("booting with the kernel `{kernel}`"));
        let (mut floor, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..=scene.rounds {
            let bare = scene.bare.boot(kernel).await?;
            floor.push(bare.took);
            scene.bare.remove(bare).await?;
            ours.push(one(scene, kernel).await?);
        }
        let (floor, ours) = (Samples::new(floor).percentiles(), Samples::new(ours).percentiles());
        rows.push(Row::times(
            format!("cold boot to first command answered, kernel {kernel}"),
            "bare QEMU, same kernel and image, to the agent's hello",
            floor,
            ours,
            Promise::AtMost { times_floor: 1.15, plus: 0.0 },
        ));
        medians.push((kernel, ours));
    }
    if let [(_, distribution), (_, built)] = medians[..] {
        rows.push(Row::times(
            "cold boot with the built kernel",
            "cold boot with the distribution's kernel",
            distribution,
            built,
            Promise::AtMost { times_floor: 0.45, plus: 0.0 },
        ));
    }
    if let Some((kernel, _)) = medians.last() {
        scene.say("booting two at once");
        let (mut alone, mut both) = (Vec::new(), Vec::new());
        for _ in 0..=scene.rounds {
            alone.push(one(scene, kernel).await?);
            let (first, second) = tokio::join!(one(scene, kernel), one(scene, kernel));
            both.push(first?.max(second?));
        }
        rows.push(Row::times(
            format!("two VMs booting at once, kernel {kernel}"),
            "one VM alone",
            Samples::new(alone).percentiles(),
            Samples::new(both).percentiles(),
            Promise::AtMost { times_floor: 1.3, plus: 0.0 },
        ));
    }
    Ok(rows)
}
