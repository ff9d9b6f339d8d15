//! What somebody wants kept is kept: named snapshots, and the memory of a hibernated VM.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod support;

use std::time::Duration;

use microvm_core::{Services, SnapshotFilter, SnapshotRequest, VmFilter};
use microvm_ports::{Progress, StateStore as _};
use microvm_types::vm::Rest;
use microvm_types::{Phase, VmRef};
use support::{Host, named, say};

fn dev() -> VmRef {
    "dev".parse().unwrap()
}

async fn snap(service: &Services, name: Option<&str>) {
    let name = name.map(|name| name.parse().unwrap());
    let request = SnapshotRequest { name, ..SnapshotRequest::default() };
    service.branches.snapshot(&dev(), request, Progress::ignored()).await.unwrap();
}

fn names(service: &Services) -> Vec<String> {
    let all = service.snapshots.list(&SnapshotFilter::default()).unwrap();
    all.into_iter().map(|one| one.record.name.to_string()).collect()
}

#[test]
fn limits_by_count_and_age_spare_what_somebody_named() {
    let host = Host { named_limit: None, ..Host::new() };
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        for number in 0..12 {
            snap(service, Some(&format!("s-{number}"))).await;
            snap(service, None).await;
        }
        let kept = names(service);
        assert_eq!(kept.iter().filter(|name| name.starts_with("s-")).count(), 12, "{kept:?}");
        assert_eq!(kept.iter().filter(|name| name.starts_with("dev-")).count(), 10, "{kept:?}");
        host.clock.advance(3_600_000);
        let removed = service.snapshots.prune(Some(3), None, false).await.unwrap();
        assert_eq!(removed.len(), 7);
        let removed = service.snapshots.prune(None, Some(Duration::from_secs(60)), false).await.unwrap();
        assert_eq!(removed.len(), 3);
        assert_eq!(names(service), (0..12).map(|number| format!("s-{number}")).collect::<Vec<_>>());
        assert_eq!(service.snapshots.prune(Some(1), None, true).await.unwrap().len(), 11);
    });
}

#[test]
fn a_hibernated_vm_says_so_also_one_that_an_older_version_called_stopped() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        say(service, "dev", "echo dream > /root/note").await;
        let view = service.vms.hibernate(&dev()).await.unwrap();
        assert_eq!(view.record.phase(), Phase::Hibernated);
        assert_eq!(
            service.vms.hibernate(&dev()).await.unwrap().record.phase(),
            Phase::Hibernated,
            "twice is fine"
        );
        assert_eq!(service.vms.stop(&dev(), false, None).await.unwrap().record.phase(), Phase::Hibernated);
        let stopped = VmFilter { phases: vec![Phase::Stopped], ..VmFilter::default() };
        assert!(
            service.vms.list(&stopped).unwrap().is_empty(),
            "whoever deletes what is stopped would delete it"
        );
        let mut record = service.vms.get(&dev()).unwrap().record;
        // As versions before the phase `hibernated` stored it.
        let mut life = serde_json::to_value(&record.life).unwrap();
        life["phase"] = "stopped".into();
        record.life = serde_json::from_value(life).unwrap();
        host.store.update_vm(&record).await.unwrap();
    });
    drop(server);
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let record = service.vms.get(&dev()).unwrap().record;
        assert_eq!(record.phase(), Phase::Hibernated);
        assert!(matches!(record.life.rest(), Some(Rest::Asleep { .. })));
        assert_eq!(say(service, "dev", "cat /root/note").await, "dream");
        assert_eq!(service.vms.get(&dev()).unwrap().record.phase(), Phase::Running);
        service.vms.hibernate(&dev()).await.unwrap();
        service.vms.delete(&dev()).await.unwrap();
    });
    drop(server);
    host.assert_empty("after a hibernated VM was deleted");
}
