//! Size of a snapshot on disk.

use microvm_api::snapshot::CreateSnapshot;
use microvm_types::VmRef;

use crate::bare::MEMORY_MIB;
use crate::error::BenchError;
use crate::pause::source;
use crate::report::{Promise, Row};
use crate::{Scene, dirt, failed, marks};

pub(crate) async fn measure(scene: &Scene) -> Result<Row, BenchError> {
    scene.say("taking snapshots");
    let vm = source(scene, MEMORY_MIB).await?;
    // What starts python3 for the first time is in the parent.
    drop(dirt::make(scene, &vm, 0).await?);
    take(scene, &vm, 1).await?;
    let _dirt = dirt::make(scene, &vm, 1).await?;
    let second = take(scene, &vm, 2).await?;
    if !second.incremental {
        return Err(failed("taking snapshots", &"the second one does not build on the first"));
    }
    scene.client.delete_vm(&vm).await?;
    #[expect(clippy::cast_precision_loss, reason = "shown to two decimals only")]
    let kib = |bytes: u64| bytes as f64 / 1_024.0;
    Ok(Row::single(
        "snapshot on disk, some MiB changed since its parent",
        "KiB",
        Some((kib(second.memory_bytes), "bytes of memory that changed")),
        kib(second.size_bytes),
        Promise::AtMost { times_floor: 2.0, plus: 128.0 },
    ))
}

async fn take(scene: &Scene, vm: &VmRef, number: u32) -> Result<microvm_api::snapshot::Snapshot, BenchError> {
    let name = format!("{}{number}", marks::snapshots()).parse();
    let name = name.map_err(|error: microvm_types::NameError| failed("naming a snapshot", &error))?;
    let request = CreateSnapshot { name: Some(name), ..CreateSnapshot::default() };
    Ok(scene.client.create_snapshot(vm, &request).await?)
}
