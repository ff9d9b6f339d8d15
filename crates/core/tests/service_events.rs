//! Events: who asked, in which request, and from which phase to which.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use std::sync::{Arc, Mutex};

use branches::{forks, vm};
use microvm_core::{AcquireRequest, Event, Observer, PoolRequest, Tier, What};
use microvm_ports::hypervisor::MachineExit;
use microvm_types::template::Overrides;
use microvm_types::{Caller, Phase};
use support::{Host, Server, named, until};

#[derive(Default)]
struct Heard(Mutex<Vec<Event>>);

impl Observer for Heard {
    fn note(&self, event: &Event) {
        self.0.lock().unwrap().push(event.clone());
    }
}

impl Heard {
    fn by(server: &Server) -> Arc<Self> {
        let heard = Arc::new(Self::default());
        server.engine.observe(Arc::clone(&heard) as _);
        heard
    }

    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn phases(events: &[Event]) -> Vec<(&str, Phase, Phase, &str, &str)> {
    fn phase(event: &Event) -> Option<(&str, Phase, Phase, &str, &str)> {
        let What::Phase { from, to, .. } = &event.what else { return None };
        Some((event.name.as_str(), *from, *to, &*event.cause.caller, &*event.cause.correlation))
    }
    events.iter().filter_map(phase).collect()
}

#[test]
fn whoever_asked_is_told_with_what_happened() {
    use Phase::{Creating, Deleted, Deleting, Paused, Running};
    let host = Host::new();
    let server = host.serve();
    let heard = Heard::by(&server);
    let ada = server.engine.as_caller(&Caller::local("ada"), "request-1");
    let bob = server.engine.as_caller(&Caller::local("bob"), "request-2");
    let made = server.run(ada.vms.create(named("web"))).unwrap();
    assert_eq!(made.record.created_by, "ada");
    let events = heard.take();
    assert!(events.iter().any(|event| matches!(event.what, What::Started { boot: true, .. })), "{events:?}");
    assert_eq!(phases(&events), [("web", Creating, Running, "ada", "request-1")]);

    server.run(bob.vms.pause(&vm("web"))).unwrap();
    assert_eq!(phases(&heard.take()), [("web", Running, Paused, "bob", "request-2")]);
    let forked = server.run(bob.branches.fork(&vm("web"), forks(1, "child"))).unwrap();
    assert_eq!(forked.vms[0].record.created_by, "bob");
    let events = heard.take();
    assert!(
        events
            .iter()
            .any(|event| matches!(event.what, What::Branched { .. }) && &*event.cause.caller == "bob")
    );
    assert!(events.iter().any(|event| matches!(event.what, What::Started { boot: false, .. })));
    assert_eq!(phases(&events), [("child", Creating, Running, "bob", "request-2")]);

    // What nobody asked for is the server's.
    assert!(host.hypervisor.end(&made.record.id, MachineExit::Vmm("it crashed".to_owned())));
    server.run(until("it is noticed", || !heard.0.lock().unwrap().is_empty()));
    let events = heard.take();
    let [(_, _, Phase::Failed, "server", "")] = phases(&events)[..] else { panic!("{events:?}") };
    server.run(ada.vms.delete(&events[0].vm.clone().into(), false)).unwrap();
    let name = events[0].name.as_str();
    let deleted =
        [(name, Phase::Failed, Deleting, "ada", "request-1"), (name, Deleting, Deleted, "ada", "request-1")];
    assert_eq!(phases(&heard.take()), deleted);
}

#[test]
fn a_vm_of_a_pool_is_its_new_owners() {
    let host = Host::new();
    let server = host.serve();
    let heard = Heard::by(&server);
    let ada = server.engine.as_caller(&Caller::local("ada"), "request-1");
    let (template, overrides, name) = (None, Overrides::default(), "warm".parse().unwrap());
    let pool = PoolRequest {
        name,
        template,
        overrides,
        min: 1,
        max: 1,
        max_age_seconds: None,
        labels: std::collections::BTreeMap::new(),
        metadata: std::collections::BTreeMap::new(),
    };
    server.run(async {
        ada.pools.create(pool).await.unwrap();
        until("it waits", || ada.pools.get("warm").unwrap().waiting == 1).await;
    });
    let made = heard.take();
    assert!(made.iter().all(|event| &*event.cause.caller == "server"), "{made:?}");
    let (view, _) = server.run(ada.pools.acquire("warm", AcquireRequest::default())).unwrap();
    assert_eq!(view.record.created_by, "ada");
    let events = heard.take();
    let of_ada: Vec<&What> =
        events.iter().filter(|event| &*event.cause.caller == "ada").map(|event| &event.what).collect();
    let [
        What::Phase { from: Phase::Pooled, to: Phase::Running, .. },
        What::Acquired { tier: Tier::Pool, .. },
    ] = of_ada[..]
    else {
        panic!("{events:?}")
    };
}

#[test]
fn watchers_hear_of_their_tenant_only() {
    let host = Host::new();
    let server = host.serve();
    let red = Caller { tenant: "red".to_owned(), ..Caller::local("ada") };
    let red = server.engine.as_caller(&red, "");
    let mut watched = red.vms.events().unwrap();
    server.run(async {
        server.service.vms.create(named("local")).await.unwrap();
        red.vms.create(named("web")).await.unwrap();
        assert_eq!(watched.next().await.unwrap().name.as_str(), "web");
    });
}

#[test]
fn watchers_are_told_changes_and_nothing_that_only_counts() {
    let host = Host::new();
    let server = host.serve();
    let heard = Heard::by(&server);
    let mut watched = server.service.vms.events().unwrap();
    server.run(async {
        server.service.vms.create(named("web")).await.unwrap();
        server.service.branches.fork(&vm("web"), forks(1, "child")).await.unwrap();
        server.service.vms.delete(&vm("web"), false).await.unwrap();
        let mut told = Vec::new();
        while told.last() != Some(&Phase::Deleted) {
            let event = watched.next().await.unwrap();
            let What::Phase { to, .. } = event.what else { panic!("{event:?}") };
            told.push(to);
        }
        assert_eq!(told, [Phase::Running, Phase::Running, Phase::Deleting, Phase::Deleted]);
    });
    let counted = |event: &&Event| !matches!(event.what, What::Phase { .. });
    assert_eq!(heard.take().iter().filter(counted).count(), 3, "two starts and a branch");
}
