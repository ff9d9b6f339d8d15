//! States that must not be loaded, and guests that must not be talked to.

use bytes::Bytes;
use microvm_ports::StateParts;
use microvm_ports::branch::IncomingState;
use microvm_ports::guest::GuestError;
use microvm_ports::hypervisor::{LaunchError, MachineSpec, MachineStart};
use microvm_types::ErrorKind;

use super::branches::{identity, skipped};
use super::{Launched, Scene};
use crate::{Must, Suite};

pub(super) async fn run(suite: &mut Suite, scene: &Scene<'_>) {
    if skipped(suite, scene).await {
        return;
    }
    suite.check("a state of another VMM is refused and leaves nothing", incompatible(scene)).await;
    suite.check("garbage for a state is refused and leaves nothing", garbage(scene)).await;
    suite.check("a child's guest refuses an epoch that is not newer", old_epoch(scene)).await;
}

/// The state that a machine is going to be launched from.
fn state(spec: &mut MachineSpec) -> &mut IncomingState {
    match &mut spec.start {
        MachineStart::Incoming(state) => state,
        MachineStart::Boot(_) => panic!("it boots"),
    }
}

async fn expect_refused(scene: &Scene<'_>, spec: &MachineSpec, what: &str) -> LaunchError {
    let outcome = scene.harness.hypervisor().launch(spec).await;
    let error = outcome.map(drop).must_fail(what);
    let left = scene.harness.processes(spec).await;
    assert_eq!(left, 0, "{what}: {left} processes are left");
    error
}

async fn incompatible(scene: &Scene<'_>) {
    let (parent, guest) = scene.boot().await;
    let source = scene.branch(&parent, &guest).await;
    let good = scene.child_spec(&parent, &source).await;
    let needs = &source.description.compatibility;
    assert!(!needs.is_empty(), "its states need nothing");
    let hypervisor = scene.harness.hypervisor();
    let Some(loader) = hypervisor.loader() else { panic!("it saves states and loads none") };
    loader.check(needs).await.must("checking a state of this host");
    for what in source.description.compatibility.keys() {
        let mut bad = good.clone();
        state(&mut bad).compatibility.insert(what.clone(), "something else".to_owned());
        // The check before anything is given up for a state says what the launch would.
        match loader.check(&state(&mut bad).compatibility).await {
            Err(LaunchError::Incompatible { what: told, .. }) => assert_eq!(&told, what),
            other => panic!("{what}: checked as {other:?}"),
        }
        match expect_refused(scene, &bad, what).await {
            LaunchError::Incompatible { what: told, needed, here } => {
                assert_eq!((&told, needed.as_str()), (what, "something else"));
                assert_ne!(here, needed);
            }
            error => panic!("{what}: wrong error: {error}"),
        }
    }
    let mut bad = good.clone();
    state(&mut bad).compatibility.insert("a thing of the future".to_owned(), "1".to_owned());
    let error = expect_refused(scene, &bad, "a need that nobody knows").await;
    assert!(matches!(error, LaunchError::Incompatible { .. }), "wrong error: {error}");
    let machine = scene.harness.hypervisor().launch(&good).await.must("launching where others were refused");
    scene.end(&Launched { spec: good, machine }).await;
    scene.end(&parent).await;
}

/// The parts with another content for one of them.
fn with(parts: &StateParts, name: &str, content: Bytes) -> StateParts {
    let all = parts.iter().map(|(name, content)| (name.clone(), content.clone()));
    all.chain([(name.parse().must("naming a part"), content)]).collect()
}

async fn garbage(scene: &Scene<'_>) {
    let (parent, guest) = scene.boot().await;
    let source = scene.branch(&parent, &guest).await;
    let good = scene.child_spec(&parent, &source).await;
    let sound = &source.parts;
    assert!(sound.is_possible(), "a store cannot keep its parts: {sound:?}");
    let mut cases = vec![
        ("no part at all".to_owned(), StateParts::default()),
        ("a part of the future".to_owned(), with(sound, "of-the-future", Bytes::from_static(b"1"))),
    ];
    for (name, content) in sound.iter() {
        let sevens: Bytes = vec![7; 4096].into();
        for (what, content) in [
            ("nothing", content.slice(..0)),
            ("sevens", sevens),
            ("half of it", content.slice(..content.len() / 2)),
        ] {
            cases.push((format!("{what} for {name}"), with(sound, name.as_str(), content)));
        }
    }
    for (what, parts) in cases {
        let mut bad = good.clone();
        state(&mut bad).parts = parts;
        let error = expect_refused(scene, &bad, &what).await;
        assert!(matches!(error, LaunchError::BadState(_)), "{what}: wrong error: {error}");
    }
    let machine = scene.harness.hypervisor().launch(&good).await.must("launching where others were refused");
    scene.end(&Launched { spec: good, machine }).await;
    scene.end(&parent).await;
}

async fn old_epoch(scene: &Scene<'_>) {
    let (parent, guest) = scene.boot().await;
    let source = scene.branch(&parent, &guest).await;
    let spec = scene.child_spec(&parent, &source).await;
    let machine = scene.harness.hypervisor().launch(&spec).await.must("launching a child");
    machine.resume().await.must("resuming a child");
    let (connector, endpoint) = (scene.harness.connector(), machine.endpoint());
    let connect =
        async |epoch| connector.connect(&endpoint, epoch, &identity(2), scene.harness.boot_limit()).await;
    let expect_conflict = |outcome: Result<(), GuestError>, what: &str| {
        let error = outcome.must_fail(what);
        assert!(
            matches!(error, GuestError::Refused { kind: ErrorKind::Conflict, .. }),
            "{what}: wrong error: {error}"
        );
    };
    // The parent's epoch, which is in the child's memory, and one before it.
    expect_conflict(connect(1).await.map(drop), "opening the epoch of the parent again");
    expect_conflict(connect(0).await.map(drop), "opening an epoch before it");
    let guest = connect(2).await.must("opening a new epoch");
    guest.ping().await.must("pinging the child");
    for old in [1, 2] {
        expect_conflict(guest.identify(old, &identity(3)).await, "an identity of an epoch that is not newer");
    }
    guest.identify(5, &identity(3)).await.must("taking an identity of a newer epoch over");
    guest.ping().await.must("pinging the child after that");
    drop(guest);
    // What was skipped is over as well.
    expect_conflict(connect(4).await.map(drop), "opening an epoch that was skipped");
    let guest = connect(6).await.must("coming back");
    guest.ping().await.must("pinging it again");
    let child = Launched { spec, machine };
    scene.end(&child).await;
    scene.end(&parent).await;
}
