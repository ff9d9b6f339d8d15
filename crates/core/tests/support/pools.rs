//! Pools and what is in them, as the tests of both ask for them.

use super::support::until;
use microvm_core::{AcquireRequest, PoolRequest, PoolView, ServiceError, Services, Tier, VmFilter, VmView};
use microvm_types::template::Overrides;

#[allow(dead_code, reason = "not every test file needs it")]
pub(crate) fn pool(name: &str, min: usize, max: usize) -> PoolRequest {
    PoolRequest {
        name: name.parse().unwrap(),
        template: None,
        overrides: Overrides::default(),
        min,
        max,
        max_age_seconds: None,
        labels: std::collections::BTreeMap::new(),
        metadata: std::collections::BTreeMap::new(),
    }
}

#[allow(dead_code, reason = "not every test file needs it")]
pub(crate) fn everything(service: &Services) -> Vec<VmView> {
    service.vms.list(&VmFilter { waiting: true, ..VmFilter::default() }).unwrap()
}

#[allow(dead_code, reason = "not every test file needs it")]
pub(crate) async fn filled(service: &Services, name: &str, waiting: usize) -> PoolView {
    until(&format!("{waiting} wait in {name}"), || {
        let view = service.pools.get(name).unwrap();
        view.waiting == waiting && view.filling == 0
    })
    .await;
    service.pools.get(name).unwrap()
}

#[allow(dead_code, reason = "not every test file needs it")]
pub(crate) async fn take(service: &Services, name: &str) -> Result<(VmView, Tier), ServiceError> {
    let request = AcquireRequest { name: Some(name.parse().unwrap()), ..AcquireRequest::default() };
    service.pools.acquire("py", request).await
}
