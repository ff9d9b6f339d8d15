//! Tenants on one engine: each has names of its own and sees nothing of the others.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use branches::{forks, restored, snap, vm};
use microvm_core::{AcquireRequest, PoolRequest, Services, SnapshotFilter, VmFilter};
use microvm_ports::{DocumentKind, StateStore};
use microvm_types::template::Overrides;
use microvm_types::{Caller, OperationName, Phase, Unreadable};
use support::{Host, code, named, until};

fn tenant(name: &str) -> Caller {
    Caller { tenant: name.to_owned(), ..Caller::local(format!("user of {name}")) }
}

fn names(service: &Services) -> Vec<String> {
    service.vms.list(&VmFilter::default()).unwrap().into_iter().map(|vm| vm.record.name.to_string()).collect()
}

fn pool(name: &str) -> PoolRequest {
    let (template, overrides) = (None, Overrides::default());
    PoolRequest {
        name: name.parse().unwrap(),
        template,
        overrides,
        min: 1,
        max: 2,
        max_age_seconds: None,
        labels: std::collections::BTreeMap::new(),
        metadata: std::collections::BTreeMap::new(),
    }
}

#[test]
fn two_tenants_use_the_same_names_and_see_only_their_own() {
    let host = Host::with_golden();
    let server = host.serve();
    let (red, blue) =
        (server.engine.as_caller(&tenant("red"), "test"), server.engine.as_caller(&tenant("blue"), "test"));
    server.run(async {
        let of_red = red.vms.create(named("web")).await.unwrap().record;
        let of_blue = blue.vms.create(named("web")).await.unwrap().record;
        assert_eq!((of_red.tenant.as_str(), of_blue.tenant.as_str()), ("red", "blue"));
        assert_eq!(code(blue.vms.create(named("web")).await), "vm_name_taken");
        assert_eq!(red.vms.get(&vm("web")).unwrap().record.id, of_red.id);
        assert_eq!(blue.vms.get(&vm("web")).unwrap().record.id, of_blue.id);
        // An id is no way around.
        let stranger = of_red.id.clone().into();
        assert_eq!(code(blue.vms.get(&stranger)), "vm_not_found");
        assert_eq!(code(blue.vms.guest(&stranger, OperationName::GUEST_EXEC).await), "vm_not_found");
        assert_eq!(code(blue.vms.delete(&stranger, false).await), "vm_not_found");
        assert_eq!(code(blue.branches.fork(&stranger, forks(1, "stolen")).await), "vm_not_found");

        let kept = snap(&red, "web", "good").await.unwrap();
        snap(&blue, "web", "good").await.unwrap();
        assert_eq!(code(snap(&blue, "web", "good").await), "snapshot_name_taken");
        let of =
            |service: &Services| service.snapshots.list(&SnapshotFilter { vm: None, golden: true }).unwrap();
        assert_eq!((of(&red).len(), of(&blue).len()), (1, 1));
        let id = kept.record.id.as_str();
        assert_eq!(code(blue.snapshots.get(id)), "snapshot_not_found");
        assert_eq!(code(blue.snapshots.remove(id, true).await), "snapshot_not_found");
        assert_eq!(code(blue.branches.restore(id, restored("stolen")).await), "snapshot_not_found");
        let again = red.branches.restore("good", restored("again")).await.unwrap();
        assert_eq!(again[0].record.tenant, "red");
        blue.branches.fork(&vm("web"), forks(1, "again")).await.unwrap();

        red.pools.create(pool("warm")).await.unwrap();
        blue.pools.create(pool("warm")).await.unwrap();
        assert_eq!(code(blue.pools.create(pool("warm")).await), "pool_name_taken");
        for service in [&red, &blue] {
            until("it waits", || service.pools.get("warm").unwrap().waiting == 1).await;
        }
        let (view, _) = red.pools.acquire("warm", AcquireRequest::default()).await.unwrap();
        assert_eq!((view.record.tenant.as_str(), view.record.phase()), ("red", Phase::Running));
        assert_eq!(code(blue.vms.get(&view.record.id.into())), "vm_not_found");
        blue.pools.remove("warm").await.unwrap();
        assert_eq!(red.pools.list().unwrap().len(), 1);
        assert_eq!(blue.pools.list().unwrap().len(), 0);
        assert_eq!((names(&red).len(), names(&blue)), (3, vec!["web".to_owned(), "again".to_owned()]));
        assert_eq!(names(&server.service), Vec::<String>::new(), "the local user sees VMs of tenants");
    });
}

#[test]
fn the_next_server_knows_whose_is_what() {
    let host = Host::new();
    let server = host.serve();
    let red = server.engine.as_caller(&tenant("red"), "test");
    server.run(async {
        red.vms.create(named("web")).await.unwrap();
        server.service.vms.create(named("web")).await.unwrap();
        snap(&red, "web", "good").await.unwrap();
        red.pools.create(pool("warm")).await.unwrap();
        server.service.pools.create(pool("warm")).await.unwrap();
        until("it waits", || red.pools.get("warm").unwrap().waiting == 1).await;
        red.pools.remove("warm").await.unwrap();
        red.pools.create(pool("hot")).await.unwrap();
        server.engine.close().await;
    });
    drop(server);
    let server = host.serve();
    let red = server.engine.as_caller(&tenant("red"), "test");
    assert_eq!(names(&red), ["web"]);
    assert_eq!(names(&server.service), ["web"]);
    assert_eq!(red.snapshots.get("good").unwrap().record.tenant, "red");
    assert_eq!(code(server.service.snapshots.get("good")), "snapshot_not_found");
    let pools = |service: &Services| -> Vec<String> {
        service.pools.list().unwrap().into_iter().map(|pool| pool.record.name.to_string()).collect()
    };
    assert_eq!((pools(&red), pools(&server.service)), (vec!["hot".to_owned()], vec!["warm".to_owned()]));
}

#[test]
fn what_cannot_be_read_is_told_to_its_tenant_and_to_the_host() {
    let host = Host::new();
    let document = |tenant: &str| serde_json::json!({ "tenant": tenant, "name": 7 });
    let server = host.serve();
    server.run(async {
        host.store.put_document(DocumentKind::Pool, "red/warm", &document("red")).await.unwrap();
        host.store.put_document(DocumentKind::Pool, "cold", &document("local")).await.unwrap();
        server.engine.close().await;
    });
    drop(server);
    let server = host.serve();
    let (red, blue) =
        (server.engine.as_caller(&tenant("red"), "test"), server.engine.as_caller(&tenant("blue"), "test"));
    let names = |pools: Vec<Unreadable>| pools.into_iter().map(|pool| pool.name).collect::<Vec<_>>();
    assert_eq!(names(red.pools.unreadable().unwrap()), ["red/warm"]);
    assert_eq!(names(blue.pools.unreadable().unwrap()), Vec::<String>::new());
    assert_eq!(names(server.service.pools.unreadable().unwrap()), ["cold"]);
    assert_eq!(names(blue.host.unreadable().unwrap().pools), ["cold", "red/warm"]);
    assert_eq!(code(server.run(red.pools.create(pool("warm")))), "pool_unreadable");
}

#[test]
fn pools_of_all_tenants_are_the_hosts_question() {
    let host = Host::new();
    let server = host.serve();
    let (red, blue) =
        (server.engine.as_caller(&tenant("red"), "test"), server.engine.as_caller(&tenant("blue"), "test"));
    server.run(async {
        red.pools.create(pool("warm")).await.unwrap();
        blue.pools.create(pool("warm")).await.unwrap();
    });
    assert_eq!(red.pools.list().unwrap().len(), 1);
    let all = server.service.host.pools().unwrap();
    let all: Vec<&str> = all.iter().map(|pool| pool.record.tenant.as_str()).collect();
    assert_eq!(all, ["blue", "red"]);
}
