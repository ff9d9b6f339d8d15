//! An older copy of the database over newer directories: what the directories hold is newer, and is taken.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod support;

use microvm_core::{AcquireRequest, PoolRequest, Services, VmFilter};
use microvm_driver_fake::{Fault, MemoryStore, Operation};
use microvm_ports::{StateStore, VmStorage};
use microvm_types::template::Overrides;
use microvm_types::vm::VmRecord;
use microvm_types::{Phase, VmRef};
use support::{Host, named, say, until};

fn vm(name: &str) -> VmRef {
    name.parse().unwrap()
}

fn record(service: &Services, name: &str) -> VmRecord {
    service.vms.get(&vm(name)).unwrap().record
}

async fn phase(service: &Services, name: &str, wanted: Phase) {
    until(&format!("{name} is {wanted}"), || record(service, name).phase() == wanted).await;
}

fn waiting(service: &Services) -> Vec<VmRecord> {
    let all = service.vms.list(&VmFilter { waiting: true, ..VmFilter::default() }).unwrap();
    all.into_iter().map(|vm| vm.record).filter(|record| record.phase() == Phase::Pooled).collect()
}

/// Rows of all VMs, as a copy of the database has them.
async fn copy(host: &Host) -> Vec<VmRecord> {
    host.store.vms().await.unwrap().records
}

/// Puts an older copy of the rows in place of the newer ones.
async fn put_back(host: &Host, rows: &[VmRecord]) {
    for newer in copy(host).await {
        host.store.delete_vm(&newer.id).await.unwrap();
    }
    for row in rows {
        host.store.insert_vm(row).await.unwrap();
    }
}

#[test]
fn vms_are_taken_up_as_their_directories_know_them_not_as_an_older_database_does() {
    let host = Host::new();
    let first = host.serve();
    let (older, claimed, machines) = first.run(async {
        let service = &first.service;
        let pool = PoolRequest {
            name: "py".parse().unwrap(),
            template: None,
            overrides: Overrides::default(),
            min: 1,
            max: 3,
            max_age_seconds: None,
            labels: std::collections::BTreeMap::new(),
            metadata: std::collections::BTreeMap::new(),
        };
        service.pools.create(pool).await.unwrap();
        until("one waits", || waiting(service).len() == 1).await;
        let claimed = waiting(service)[0].id.clone();
        for name in ["stopped", "sleeps", "woken", "again"] {
            service.vms.create(named(name)).await.unwrap();
            say(service, name, &format!("echo {name} > /root/note")).await;
        }
        service.vms.stop(&vm("stopped"), true, None).await.unwrap();
        service.vms.hibernate(&vm("woken")).await.unwrap();
        let older = copy(&host).await;

        let request = AcquireRequest { name: Some("mine".parse().unwrap()), ..AcquireRequest::default() };
        assert_eq!(service.pools.acquire("py", request).await.unwrap().0.record.id, claimed);
        say(service, "mine", "echo mine > /root/note").await;
        service.vms.start(&vm("stopped")).await.unwrap();
        service.vms.hibernate(&vm("sleeps")).await.unwrap();
        assert_eq!(say(service, "woken", "echo later >> /root/note; cat /root/note").await, "woken\nlater");
        service.vms.stop(&vm("again"), true, None).await.unwrap();
        service.vms.start(&vm("again")).await.unwrap();
        service.vms.create(named("later")).await.unwrap();
        say(service, "later", "echo later > /root/note").await;
        (older, claimed, host.hypervisor.machines())
    });
    drop(first);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(put_back(&host, &older));

    let second = host.serve();
    second.run(async {
        let service = &second.service;
        for name in ["stopped", "woken", "again", "later", "mine"] {
            phase(service, name, Phase::Running).await;
        }
        phase(service, "sleeps", Phase::Hibernated).await;
        assert_eq!(record(service, "mine").id, claimed);
        assert!(waiting(service).iter().all(|waits| waits.id != claimed), "somebody's VM waits for the next");
        for (name, said) in [
            ("mine", "mine"),
            ("stopped", "stopped"),
            ("sleeps", "sleeps"),
            ("woken", "woken\nlater"),
            ("again", "again"),
            ("later", "later"),
        ] {
            assert_eq!(say(service, name, "cat /root/note").await, said, "{name}");
        }
        for (id, _) in machines {
            assert!(host.hypervisor.machines().contains_key(&id), "the machine of {id} was ended");
        }
        assert_eq!(service.host.strays().await.unwrap(), []);
    });
    drop(second);
    // It is stored now: the third finds nothing older.
    let third = host.serve();
    third.run(async { assert_eq!(say(&third.service, "later", "cat /root/note").await, "later") });
}

#[test]
fn a_lost_database_is_made_again_from_the_directories_of_vms() {
    let mut host = Host::new();
    let first = host.serve();
    first.run(async {
        first.service.vms.create(named("dev")).await.unwrap();
        say(&first.service, "dev", "echo kept > /root/note").await;
        first.service.vms.create(named("twice")).await.unwrap();
    });
    drop(first);
    host.store = MemoryStore::default();
    // Another VM has the name of one by now.
    let taken = host.serve();
    let other = taken.run(async {
        assert_eq!(say(&taken.service, "dev", "cat /root/note").await, "kept");
        let other = record(&taken.service, "dev");
        taken.service.vms.delete(&vm("twice"), false).await.unwrap();
        other
    });
    drop(taken);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let stranger = VmRecord { id: microvm_types::VmId::from_parts(1, 1), ..other.clone() };
        let stranger = VmRecord { machine: None, ..stranger };
        put_back(&host, &[stranger]).await;
    });
    let again = host.serve();
    again.run(async {
        let found = again.service.vms.get(&vm(other.id.as_str())).unwrap().record;
        assert!(found.name.as_str().starts_with("vm-"), "{}", found.name);
        assert_eq!(say(&again.service, found.name.as_str(), "cat /root/note").await, "kept");
    });
}

#[test]
fn a_newer_row_is_believed_and_its_directory_learns_of_it() {
    let host = Host::new();
    let first = host.serve();
    let id = first.run(async {
        let service = &first.service;
        let id = service.vms.create(named("dev")).await.unwrap().record.id;
        // As on a disk that was full, or of a server that died right then.
        host.storage.script().next(Operation::KeepRecord, Fault::Fail);
        service.vms.hibernate(&vm("dev")).await.unwrap();
        id
    });
    drop(first);
    let second = host.serve();
    second.run(async {
        phase(&second.service, "dev", Phase::Hibernated).await;
        let kept = host.storage.kept_record(&id).await.unwrap().unwrap();
        assert_eq!(kept.phase(), Phase::Hibernated);
        assert_eq!(kept.generation, record(&second.service, "dev").generation);
    });
}

#[test]
fn a_row_that_an_earlier_version_stored_later_is_no_older_one() {
    let host = Host::new();
    let first = host.serve();
    let row = first.run(async {
        first.service.vms.create(named("dev")).await.unwrap();
        host.clock.advance(5_000);
        first.service.vms.hibernate(&vm("dev")).await.unwrap();
        record(&first.service, "dev")
    });
    drop(first);
    let earlier = VmRecord { generation: 0, updated_ms: row.updated_ms + 1, ..row };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        // The directory knows it as it was before it fell asleep, and counts further than an earlier version.
        let awake =
            VmRecord { life: microvm_types::Life::stored(Phase::Running, None, false), ..earlier.clone() };
        host.storage
            .keep_record(&VmRecord { generation: 9, updated_ms: earlier.updated_ms - 1, ..awake })
            .await
            .unwrap();
        host.store.update_vm(&earlier).await.unwrap();
    });
    let second = host.serve();
    let counted = second.run(async {
        phase(&second.service, "dev", Phase::Hibernated).await;
        let (row, kept) =
            (record(&second.service, "dev"), host.storage.kept_record(&earlier.id).await.unwrap());
        assert_eq!(kept.map(|kept| (kept.generation, kept.phase())), Some((10, Phase::Hibernated)));
        assert_eq!(row.generation, 10);
        // The next change reaches the row only.
        host.storage.script().next(Operation::KeepRecord, Fault::Fail);
        second.service.vms.start(&vm("dev")).await.unwrap();
        record(&second.service, "dev").generation
    });
    drop(second);
    let third = host.serve();
    third.run(async {
        phase(&third.service, "dev", Phase::Running).await;
        assert_eq!(record(&third.service, "dev").generation, counted);
        assert_eq!(say(&third.service, "dev", "echo there").await, "there");
    });
}
