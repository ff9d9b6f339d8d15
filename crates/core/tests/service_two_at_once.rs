//! Two of every verb at once, on a VM in every phase: each answer is one of those that are promised, one of the two has its way where
//! there can be only one, and nothing is left afterwards. (Machines of the fake have no balloon: a resize is tried on real ones.)
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use branches::{forks, restored, snap, vm};
use microvm_core::{CreateRequest, ServiceError, Services, VmChange, VmFilter};
use microvm_types::Phase;
use support::{Host, named};

/// Work of one caller; the two differ in `number`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Start,
    StartCold,
    Stop,
    StopByForce,
    ShutDown,
    PlanShutdown,
    Pause,
    Resume,
    Hibernate,
    Restart,
    Kill,
    Rename,
    Label,
    Fork,
    ForkOfOneName,
    Snapshot,
    SnapshotOfOneName,
    RollBack,
    Restore,
    RemoveSnapshot,
    Create,
    Delete,
}

impl Verb {
    const ALL: [Self; 22] = [
        Self::Start,
        Self::StartCold,
        Self::Stop,
        Self::StopByForce,
        Self::ShutDown,
        Self::PlanShutdown,
        Self::Pause,
        Self::Resume,
        Self::Hibernate,
        Self::Restart,
        Self::Kill,
        Self::Rename,
        Self::Label,
        Self::Fork,
        Self::ForkOfOneName,
        Self::Snapshot,
        Self::SnapshotOfOneName,
        Self::RollBack,
        Self::Restore,
        Self::RemoveSnapshot,
        Self::Create,
        Self::Delete,
    ];

    /// Codes of whoever comes second; empty: both have their way.
    const fn of_the_second(self) -> &'static [&'static str] {
        match self {
            Self::Kill => &["vm_not_running"],
            Self::ForkOfOneName | Self::Restore | Self::Create => &["vm_name_taken"],
            Self::SnapshotOfOneName => &["snapshot_name_taken"],
            Self::RemoveSnapshot => &["snapshot_not_found"],
            Self::Delete => &["vm_not_found"],
            _ => &[],
        }
    }

    /// True if never both have their way.
    const fn has_one_winner(self) -> bool {
        !self.of_the_second().is_empty() && !matches!(self, Self::Delete | Self::Kill | Self::RemoveSnapshot)
    }

    /// Phases in which nobody has it.
    const fn is_refused(self, phase: Phase) -> bool {
        let without_memory = matches!(phase, Phase::Stopped);
        match self {
            Self::Start | Self::StartCold => matches!(phase, Phase::Paused),
            Self::Pause | Self::Resume => matches!(phase, Phase::Stopped | Phase::Hibernated),
            Self::Kill => matches!(phase, Phase::Stopped | Phase::Hibernated),
            Self::Hibernate => without_memory,
            // What it hibernates on builds on that snapshot.
            Self::RemoveSnapshot => matches!(phase, Phase::Hibernated),
            Self::Fork | Self::ForkOfOneName | Self::Snapshot | Self::SnapshotOfOneName => without_memory,
            _ => false,
        }
    }

    async fn act(self, service: Services, number: usize) -> Result<(), ServiceError> {
        let Services { vms, branches, snapshots, .. } = &service;
        let (dev, minute) = (vm("dev"), Duration::from_secs(60));
        match self {
            Self::Start => vms.start(&dev).await.map(drop),
            Self::StartCold => vms.start_cold(&dev).await.map(drop),
            Self::Stop => vms.stop(&dev, false, None).await.map(drop),
            Self::StopByForce => vms.stop(&dev, true, None).await.map(drop),
            Self::ShutDown => vms.shutdown(&dev, Duration::ZERO, false).await.map(drop),
            Self::PlanShutdown => vms.shutdown(&dev, minute, false).await.map(drop),
            Self::Pause => vms.pause(&dev).await.map(drop),
            Self::Resume => vms.resume(&dev).await.map(drop),
            Self::Hibernate => vms.hibernate(&dev).await.map(drop),
            Self::Restart => vms.restart(&dev, false, None).await.map(drop),
            Self::Kill => vms.kill(&dev, 9).await.map(drop),
            Self::Rename => {
                // By its id: the second one finds it under another name.
                let id = vms.get(&vm("by-id"))?.record.metadata["dev"].parse().unwrap();
                vms.rename(&id, "other".parse().unwrap()).await.map(drop)
            }
            Self::Label => {
                let labels = BTreeMap::from([(format!("number-{number}"), Some("set".to_owned()))]);
                vms.change(&dev, VmChange { labels, ..VmChange::default() }).await.map(drop)
            }
            Self::Fork => branches.fork(&dev, forks(2, &format!("child-{number}-{{n}}"))).await.map(drop),
            Self::ForkOfOneName => branches.fork(&dev, forks(1, "child")).await.map(drop),
            Self::Snapshot => snap(&service, "dev", &format!("snapshot-{number}")).await.map(drop),
            Self::SnapshotOfOneName => snap(&service, "dev", "snapshot").await.map(drop),
            Self::RollBack => branches.rollback(&dev, "base").await.map(drop),
            Self::Restore => branches.restore("base", restored("copy")).await.map(drop),
            Self::RemoveSnapshot => snapshots.remove("base", false).await.map(drop),
            Self::Create => vms.create(named("new")).await.map(drop),
            Self::Delete => vms.delete(&dev, false).await,
        }
    }
}

/// The VM `dev` in this phase, with a snapshot `base` of it, and a stopped one that knows its id.
async fn prepare(service: &Services, phase: Phase) {
    let id = service.vms.create(named("dev")).await.unwrap().record.id;
    let mut request = CreateRequest { start: false, ..named("by-id") };
    request.vm.metadata.insert("dev".to_owned(), id.to_string());
    service.vms.create(request).await.unwrap();
    snap(service, "dev", "base").await.unwrap();
    match phase {
        Phase::Paused => service.vms.pause(&vm("dev")).await.map(drop).unwrap(),
        Phase::Stopped => service.vms.stop(&vm("dev"), false, None).await.map(drop).unwrap(),
        Phase::Hibernated => service.vms.hibernate(&vm("dev")).await.map(drop).unwrap(),
        _ => {}
    }
}

/// Every VM has settled, and exactly those that say so have a machine.
fn check(host: &Host, service: &Services, what: &str) {
    let all = service.vms.list(&VmFilter::default()).unwrap();
    let transient: Vec<_> = all.iter().filter(|vm| vm.record.phase().is_transient()).collect();
    assert!(transient.is_empty(), "{what}: {transient:?}");
    let failed: Vec<_> = all.iter().filter(|vm| vm.record.phase() == Phase::Failed).collect();
    assert!(failed.is_empty(), "{what}: {failed:?}");
    let with_machine = all.iter().filter(|vm| vm.record.phase().has_machine()).count();
    assert_eq!(host.hypervisor.machines().len(), with_machine, "{what}: machines and VMs");
}

async fn clear(service: &Services) {
    for vm in service.vms.list(&VmFilter::default()).unwrap() {
        service.vms.delete(&vm.record.id.into(), false).await.unwrap();
    }
}

fn codes(outcomes: &[Result<(), ServiceError>; 2]) -> Vec<&'static str> {
    outcomes.iter().filter_map(|outcome| outcome.as_ref().err().map(ServiceError::code)).collect()
}

fn judge(verb: Verb, phase: Phase, outcomes: &[Result<(), ServiceError>; 2], what: &str) {
    let codes = codes(outcomes);
    if verb.is_refused(phase) {
        assert_eq!(codes.len(), 2, "{what}: {codes:?}");
        assert!(
            codes.iter().all(|code| ["wrong_phase", "vm_not_running", "in_use"].contains(code)),
            "{what}: {codes:?}"
        );
        return;
    }
    match codes.as_slice() {
        [] => assert!(!verb.has_one_winner(), "{what}: both have their way"),
        // Whoever comes while the other one wakes it is told so.
        ["vm_not_running"] if phase == Phase::Hibernated && verb.is_refused(Phase::Stopped) => {}
        [code] => assert!(verb.of_the_second().contains(code), "{what}: {code}"),
        both => panic!("{what}: nobody has it: {both:?}"),
    }
}

#[test]
fn two_of_every_verb_at_once_do_what_is_promised_and_leave_nothing() {
    for verb in Verb::ALL {
        for phase in [Phase::Running, Phase::Paused, Phase::Stopped, Phase::Hibernated] {
            let what = format!("two of {verb:?} on a VM that is {phase}");
            let host = Host::new();
            let server = host.serve();
            let service = &server.service;
            server.run(async {
                prepare(service, phase).await;
                let one = tokio::spawn(verb.act(service.clone(), 1));
                let two = tokio::spawn(verb.act(service.clone(), 2));
                let outcomes = [one.await.unwrap(), two.await.unwrap()];
                judge(verb, phase, &outcomes, &what);
                check(&host, service, &what);
                if verb == Verb::Label {
                    let labels = service.vms.get(&vm("dev")).unwrap().record.labels;
                    assert_eq!(labels.len(), 2, "{what}: a change was lost: {labels:?}");
                }
                clear(service).await;
            });
            host.assert_empty(&what);
        }
    }
}
