//! Requests for forks, snapshots and restores, as the tests of both make them.

use microvm_core::{
    ForkRequest, RestoreRequest, ServiceError, Services, Snapshot, SnapshotFilter, SnapshotRequest, VmFilter,
};
use microvm_ports::Progress;
use microvm_types::VmRef;

pub(crate) fn vm(name: &str) -> VmRef {
    name.parse().unwrap()
}

#[allow(dead_code, reason = "not every test file forks")]
pub(crate) fn forks(count: usize, name: &str) -> ForkRequest {
    ForkRequest { count, name: Some(name.to_owned()), ..ForkRequest::default() }
}

#[allow(dead_code, reason = "not every test file restores")]
pub(crate) fn restored(name: &str) -> RestoreRequest {
    RestoreRequest { count: 1, name: Some(name.to_owned()), ..RestoreRequest::default() }
}

#[allow(dead_code, reason = "not every test file makes snapshots")]
pub(crate) async fn snap(service: &Services, of: &str, name: &str) -> Result<Snapshot, ServiceError> {
    let request = SnapshotRequest { name: Some(name.parse().unwrap()), ..SnapshotRequest::default() };
    service.branches.snapshot(&vm(of), request, Progress::ignored()).await
}

/// Names of all snapshots.
#[allow(dead_code, reason = "not every test file lists snapshots")]
pub(crate) fn names(service: &Services) -> Vec<String> {
    let all = service.snapshots.list(&SnapshotFilter::default()).unwrap();
    all.into_iter().map(|snapshot| snapshot.record.name.to_string()).collect()
}

/// Names of all VMs, also of those that wait in pools.
#[allow(dead_code, reason = "not every test file lists VMs")]
pub(crate) fn vms(service: &Services) -> Vec<String> {
    let everything = VmFilter { waiting: true, ..VmFilter::default() };
    service.vms.list(&everything).unwrap().into_iter().map(|vm| vm.record.name.to_string()).collect()
}
