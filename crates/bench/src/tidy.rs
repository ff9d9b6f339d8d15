//! Removes what a bench made, however it ended.

use futures_util::StreamExt as _;
use microvm_client::VmQuery;
use microvm_types::{ErrorKind, VmRef};

use crate::error::BenchError;
use crate::{Scene, marks};

/// VMs deleted at once.
const AT_ONCE: usize = 8;

/// Deletes some VMs, several at once. All are tried; the first failure is returned. One that is gone is fine: the
/// server finishes deletions that an interrupted bench had begun.
pub(crate) async fn delete(scene: &Scene, vms: Vec<VmRef>) -> Result<(), BenchError> {
    let deleted = futures_util::stream::iter(vms)
        .map(|vm| async move {
            match scene.client.delete_vm(&vm).await {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                other => other,
            }
        })
        .buffer_unordered(AT_ONCE);
    let outcomes: Vec<_> = deleted.collect().await;
    outcomes.into_iter().collect::<Result<Vec<()>, _>>()?;
    Ok(())
}

/// Deletes everything that carries the label of this run, its pool and its snapshots.
pub(crate) async fn all(scene: &Scene) -> Result<(), BenchError> {
    let own_pool = marks::pool()?;
    if scene.client.list_pools().await?.pools.iter().any(|pool| pool.name == own_pool) {
        scene.client.remove_pool(&own_pool).await?;
    }
    let query = VmQuery { labels: marks::labels().into_iter().collect(), ..VmQuery::default() };
    let vms = scene.client.list_vms(&query).await?.vms;
    delete(scene, vms.into_iter().map(|vm| VmRef::from(vm.id)).collect()).await?;
    // One by one: those that build on it go with a snapshot.
    let own = marks::snapshots();
    while let Some(snapshot) = scene
        .client
        .list_snapshots(None, false)
        .await?
        .snapshots
        .into_iter()
        .find(|snapshot| snapshot.name.as_str().starts_with(&own))
    {
        scene.client.remove_snapshot(snapshot.id.as_str(), true).await?;
    }
    Ok(())
}
