//! Growth of a fork with the memory of its source and with changes in it.

use microvm_types::VmRef;

use crate::bare::MEMORY_MIB;
use crate::error::BenchError;
use crate::fork::fork_and_answer;
use crate::pause::{forking, source};
use crate::report::{Promise, Row};
use crate::samples::Samples;
use crate::{Scene, dirt, tidy};

/// Sizes of memory in MiB.
const MEMORIES_MIB: [u32; 4] = [256, 512, 1_024, 2_048];
/// MiB that a program in the guest changes.
const CHANGES_MIB: [u64; 4] = [1, 16, 64, 256];

pub(crate) async fn measure(scene: &Scene) -> Result<Vec<Row>, BenchError> {
    let mut rows = Vec::new();
    for memory_mib in MEMORIES_MIB {
        rows.extend(one(scene, memory_mib, None).await?);
    }
    for changed in CHANGES_MIB {
        rows.extend(one(scene, MEMORY_MIB, Some(changed)).await?);
    }
    Ok(rows)
}

async fn one(scene: &Scene, memory_mib: u32, changed: Option<u64>) -> Result<[Row; 2], BenchError> {
    let title = changed.map_or_else(
        || format!("{memory_mib} MiB of memory"),
        |changed| format!("{memory_mib} MiB of memory, a program wrote {changed} MiB"),
    );
    scene.say(&format!("forking a VM with {title}"));
    let vm = source(scene, memory_mib).await?;
    let _dirt = match changed {
        None => None,
        Some(changed) => Some(dirt::make(scene, &vm, changed).await?),
    };
    let (mut answers, mut pauses) = (Vec::new(), Vec::new());
    for _ in 0..=scene.rounds.min(5) {
        let (_, took, children) = fork_and_answer(scene, &vm, 1).await?;
        answers.push(took);
        tidy::delete(scene, children).await?;
        let forked = scene.client.fork_vm(&vm, &forking(1)).await?;
        tidy::delete(scene, forked.vms.into_iter().map(|vm| VmRef::from(vm.id)).collect()).await?;
        pauses.push(std::time::Duration::from_secs_f64(forked.pause_ms.as_f64() / 1e3));
    }
    scene.client.delete_vm(&vm).await?;
    let row = |what: String, rounds| {
        let found = Samples::new(rounds).percentiles();
        Row { percentiles: Some(found), ..Row::single(what, "ms", None, found.p50, Promise::None) }
    };
    Ok([
        row(format!("fork to first command, {title}"), answers),
        row(format!("pause of the source, {title}"), pauses),
    ])
}
