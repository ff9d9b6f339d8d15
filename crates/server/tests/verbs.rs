//! Verbs of issue 10 through the client: each on a VM in every state, and two of each at once.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use microvm_api::CreateVm;
use microvm_api::guest::ShutdownGuest;
use microvm_api::queries::{FollowEvents, WaitForVm};
use microvm_api::query::{FilterState, RawBytes};
use microvm_api::vm::{EventMessage, RestartVm, StopVm, UpdateLimits, UpdateVm};
use microvm_client::{Client, ClientError, ExecEvent, VmQuery};
use microvm_types::exec::{ExecRequest, OutputOffsets};
use microvm_types::vm::Limits;
use microvm_types::{ErrorKind, Phase, StopReason, VmRef};

async fn made(client: &Client, name: &str) -> VmRef {
    let request = CreateVm { name: Some(name.parse().unwrap()), ..CreateVm::default() };
    client.create_vm(&request).await.unwrap();
    name.parse().unwrap()
}

fn code<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> String {
    outcome.unwrap_err().code().to_owned()
}

fn until(states: &[Phase], seconds: u64) -> WaitForVm {
    let state = states.iter().copied().map(FilterState::from).collect();
    WaitForVm { state, gone: false, timeout_seconds: seconds }
}

/// Starts a command that goes on until a signal ends it.
async fn sleeper(client: &Client, vm: &VmRef) -> microvm_client::ExecSession {
    let command = vec!["sleep".into(), "1000".into()];
    client.exec(vm, &ExecRequest { command, detach: true, ..ExecRequest::default() }).await.unwrap()
}

/// One VM in each state that a user can bring about.
async fn in_every_state(client: &Client) -> Vec<(Phase, VmRef)> {
    let mut all = Vec::new();
    for phase in [Phase::Running, Phase::Paused, Phase::Stopped, Phase::Hibernated] {
        let vm = made(client, &format!("vm-{phase}")).await;
        match phase {
            Phase::Paused => client.pause_vm(&vm).await.map(drop).unwrap(),
            Phase::Stopped => client.stop_vm(&vm, &StopVm::default()).await.map(drop).unwrap(),
            Phase::Hibernated => client.hibernate_vm(&vm).await.map(drop).unwrap(),
            _ => {}
        }
        assert_eq!(client.vm(&vm).await.unwrap().state, phase);
        all.push((phase, vm));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_ends_running_from_every_state() {
    let server = support::start().await;
    let client = &server.client;
    for (phase, vm) in in_every_state(client).await {
        let how = RestartVm { grace_seconds: 1, ..RestartVm::default() };
        assert_eq!(client.restart_vm(&vm, &how).await.unwrap().state, Phase::Running, "{phase}");
    }
    // What ran before is gone, and two at once are fine.
    let vm: VmRef = "vm-running".parse().unwrap();
    drop(sleeper(client, &vm).await);
    let how = RestartVm { force: true, ..RestartVm::default() };
    let (one, two) = tokio::join!(client.restart_vm(&vm, &how), client.restart_vm(&vm, &how));
    assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
    assert_eq!(client.processes(&vm).await.unwrap().processes, []);
    let nobody: VmRef = "nobody".parse().unwrap();
    assert_eq!(code(client.restart_vm(&nobody, &how).await), "vm_not_found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_reach_commands_and_sigkill_the_machine() {
    let server = support::start().await;
    let client = &server.client;
    let vm = made(client, "dev").await;
    assert_eq!(code(client.kill_vm(&vm, 15).await), "no_command");
    let (mut first, second) = (sleeper(client, &vm).await, sleeper(client, &vm).await);
    let (one, two) = tokio::join!(client.kill_vm(&vm, 15), client.kill_vm(&vm, 1));
    let ids: Vec<_> = [one, two].into_iter().flatten().flat_map(|killed| killed.processes).collect();
    assert!(ids.contains(&first.started.process) && ids.contains(&second.started.process), "{ids:?}");
    let ended = first.events.next().await.unwrap();
    assert!(matches!(ended, ExecEvent::Exited(status) if status.signal.is_some()), "{ended:?}");
    assert_eq!(client.vm(&vm).await.unwrap().state, Phase::Running);
    assert_eq!(code(client.kill_vm(&vm, 0).await), "signal_invalid");
    client.delete_vm(&vm).await.unwrap();
    for (phase, vm) in in_every_state(client).await {
        let killed = client.kill_vm(&vm, 9).await;
        if phase.has_machine() {
            assert_eq!(killed.unwrap().vm.state, Phase::Stopped);
        } else {
            assert_eq!(code(killed), "vm_not_running", "{phase}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_shut_down_later_or_now_from_every_state() {
    let server = support::start().await;
    let client = &server.client;
    let later = ShutdownGuest { force: false, delay_seconds: 3600 };
    for (phase, vm) in in_every_state(client).await {
        let planned = client.shut_down_guest(&vm, &later).await.unwrap();
        let up = matches!(phase, Phase::Running | Phase::Paused);
        assert_eq!((planned.state, planned.shutdown_at.is_some()), (phase, up));
        let now = client.shut_down_guest(&vm, &ShutdownGuest::default()).await.unwrap();
        assert!(matches!(now.state, Phase::Stopped | Phase::Hibernated), "{phase}: {}", now.state);
        assert_eq!(now.shutdown_at, None);
        let stop = now.last_stop.map(|stop| stop.reason);
        assert_eq!(stop, Some(StopReason::User), "{phase}");
        let forever = ShutdownGuest { delay_seconds: u64::MAX, ..later };
        assert_eq!(code(client.shut_down_guest(&vm, &forever).await), "invalid_field");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_is_renamed_in_every_state_once() {
    let server = support::start().await;
    let client = &server.client;
    for (phase, vm) in in_every_state(client).await {
        let new = format!("new-{phase}");
        assert_eq!(client.rename_vm(&vm, new.parse().unwrap()).await.unwrap().name.as_str(), new);
        assert_eq!(code(client.vm(&vm).await), "vm_not_found");
        assert_eq!(client.vm(&new.parse().unwrap()).await.unwrap().state, phase);
        // The old name is free.
        made(client, vm.as_str()).await;
    }
    let (a, b): (VmRef, VmRef) = ("new-running".parse().unwrap(), "new-paused".parse().unwrap());
    assert_eq!(code(client.rename_vm(&a, b.as_str().parse().unwrap()).await), "vm_name_taken");
    let name: microvm_types::Name = "wanted".parse().unwrap();
    let (one, two) = tokio::join!(client.rename_vm(&a, name.clone()), client.rename_vm(&b, name));
    assert_eq!([one.is_ok(), two.is_ok()].iter().filter(|won| **won).count(), 1, "{one:?} {two:?}");
    // Renaming to itself changes nothing.
    let itself = client.rename_vm(&"wanted".parse().unwrap(), "wanted".parse().unwrap()).await;
    assert_eq!(itself.unwrap().name.as_str(), "wanted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_labels_and_metadata_change_in_every_state() {
    let server = support::start().await;
    let client = &server.client;
    let some = |pairs: &[(&str, Option<&str>)]| -> BTreeMap<String, Option<String>> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect()
    };
    for (phase, vm) in in_every_state(client).await {
        let change = UpdateVm {
            labels: some(&[("team", Some("red")), ("old", Some("1"))]),
            metadata: some(&[("note", Some("text"))]),
            limits: UpdateLimits {
                idle_seconds: Some(3600),
                lifetime_left_seconds: Some(7200),
                ..UpdateLimits::default()
            },
        };
        let vm_now = client.update_vm(&vm, &change).await.unwrap();
        assert_eq!((vm_now.state, vm_now.labels["team"].as_str()), (phase, "red"));
        assert_eq!(vm_now.metadata["note"], "text");
        assert_eq!((vm_now.limits.idle_seconds, vm_now.limits.lifetime_seconds), (Some(3600), Some(7200)));
        let less = UpdateVm {
            labels: some(&[("old", None), ("never", None)]),
            limits: UpdateLimits { idle_seconds: Some(0), ..UpdateLimits::default() },
            ..UpdateVm::default()
        };
        let vm_now = client.update_vm(&vm, &less).await.unwrap();
        assert_eq!(vm_now.labels.keys().collect::<Vec<_>>(), ["team"]);
        assert_eq!(vm_now.limits, Limits { lifetime_seconds: Some(7200), ..Limits::default() });
    }
    let vm: VmRef = "vm-running".parse().unwrap();
    let (a, b) = (some(&[("a", Some("1"))]), some(&[("b", Some("2"))]));
    let [a, b] = [a, b].map(|labels| UpdateVm { labels, ..UpdateVm::default() });
    let (one, two) = tokio::join!(client.update_vm(&vm, &a), client.update_vm(&vm, &b));
    assert!(one.is_ok() && two.is_ok());
    let labels = client.vm(&vm).await.unwrap().labels;
    assert!(labels.contains_key("a") && labels.contains_key("b"), "one change was lost: {labels:?}");
    let reserved = UpdateVm { labels: some(&[("microvm.golden", Some("x"))]), ..UpdateVm::default() };
    assert_eq!(code(client.update_vm(&vm, &reserved).await), "invalid_field");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_is_waited_for() {
    let server = support::start().await;
    let client = &server.client;
    for (phase, vm) in in_every_state(client).await {
        assert_eq!(client.wait_for_vm(&vm, &until(&[phase], 1)).await.unwrap().state, phase);
    }
    let vm: VmRef = "vm-running".parse().unwrap();
    let late = client.wait_for_vm(&vm, &until(&[Phase::Stopped], 1)).await.unwrap_err();
    assert_eq!((late.code(), late.kind()), ("wait_timeout", ErrorKind::Timeout));
    assert_eq!(code(client.wait_for_vm(&vm, &until(&[], 0)).await), "invalid_field");
    // Two wait for the same; a state that lasts for a moment only is seen.
    let (paused, end) = (until(&[Phase::Paused], 30), until(&[], 30));
    let (one, two, ()) =
        tokio::join!(client.wait_for_vm(&vm, &paused), client.wait_for_vm(&vm, &end), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            client.pause_vm(&vm).await.unwrap();
            client.resume_vm(&vm).await.unwrap();
            client.stop_vm(&vm, &StopVm { force: true, grace_seconds: 0 }).await.unwrap();
        });
    assert_eq!((one.unwrap().state, two.unwrap().state), (Phase::Paused, Phase::Stopped));
    // Deleted meanwhile: the end of a wait for it, and an error for any other.
    let gone = WaitForVm { gone: true, ..until(&[], 30) };
    let running = until(&[Phase::Running], 30);
    let (one, two, ()) =
        tokio::join!(client.wait_for_vm(&vm, &gone), client.wait_for_vm(&vm, &running), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            client.delete_vm(&vm).await.unwrap();
        });
    assert!(one.unwrap().gone);
    assert_eq!(code(two), "vm_not_found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_of_every_vm_are_read_without_waking_it() {
    let server = support::start().await;
    let client = &server.client;
    for (phase, vm) in in_every_state(client).await {
        let stats = client.stats(&vm).await.unwrap();
        assert_eq!((stats.state, stats.name.as_str(), stats.vcpus), (phase, vm.as_str(), 1));
        assert_eq!(stats.guest.is_some(), phase == Phase::Running, "{phase}");
        assert_eq!(stats.uptime_ms.is_some(), phase.has_machine(), "{phase}");
        assert_eq!(client.vm(&vm).await.unwrap().state, phase, "it was woken");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_filtered() {
    let server = support::start().await;
    let client = &server.client;
    let vm = made(client, "dev").await;
    let of_dev = FollowEvents { vm: vec![RawBytes(b"dev".to_vec())], ..FollowEvents::default() };
    let paused = FollowEvents { state: vec![Phase::Paused.into()], ..FollowEvents::default() };
    let (mut of_dev, mut paused) =
        (client.follow(&of_dev).await.unwrap(), client.follow(&paused).await.unwrap());
    let other = made(client, "other").await;
    client.pause_vm(&other).await.unwrap();
    // It is followed under its new name too.
    client.rename_vm(&vm, "new".parse().unwrap()).await.unwrap();
    client.delete_vm(&"new".parse().unwrap()).await.unwrap();
    let mut seen = Vec::new();
    loop {
        let Some(EventMessage::Event(event)) = of_dev.next().await.unwrap() else { panic!("missed") };
        seen.push(event.name.to_string());
        if event.gone {
            break;
        }
    }
    assert!(seen.iter().all(|name| name == "new"), "{seen:?}");
    let Some(EventMessage::Event(event)) = paused.next().await.unwrap() else { panic!("missed") };
    assert_eq!((event.name.as_str(), event.state), ("other", Phase::Paused));
    let wrong = FollowEvents { state: vec![], vm: vec![RawBytes(b"\xff".to_vec())] };
    client.follow(&wrong).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_characters_of_an_id_are_enough_unless_a_name_has_them() {
    let server = support::start().await;
    let client = &server.client;
    let (a, b) = (made(client, "a").await, made(client, "b").await);
    let (a, b) = (client.vm(&a).await.unwrap().id, client.vm(&b).await.unwrap().id);
    let pairs = a.as_str().bytes().zip(b.as_str().bytes());
    let shared = pairs.take_while(|(one, other)| one == other).count();
    assert!(shared >= 4, "ids sort by time: {a} {b}");
    let prefix = |length: usize| -> VmRef { a.as_str()[..length].parse().unwrap() };
    let error = client.vm(&prefix(shared)).await.unwrap_err();
    assert_eq!((error.code(), error.kind()), ("vm_ambiguous", ErrorKind::Invalid));
    let text = error.to_string();
    assert!(text.contains(&format!("{a} (a)")) && text.contains(&format!("{b} (b)")), "{text}");
    assert_eq!(code(client.vm(&prefix(3)).await), "vm_not_found");
    // A name that is also the beginning of ids means the VM of that name.
    let named = made(client, prefix(shared).as_str()).await;
    assert_eq!(client.vm(&named).await.unwrap().name.as_str(), named.as_str());
    client.delete_vm(&named).await.unwrap();
    client.delete_vm(&b.into()).await.unwrap();
    assert_eq!(client.vm(&prefix(4)).await.unwrap().id, a);
    // The other verbs read it in this way too.
    let output = sleeper(client, &prefix(shared)).await;
    let (dev, process): (VmRef, _) = ("a".parse().unwrap(), &output.started.process);
    client.read_output(&dev, process, OutputOffsets::default(), false).await.unwrap();
    client.delete_vm(&prefix(4)).await.unwrap();
    assert_eq!(client.list_vms(&VmQuery::default()).await.unwrap().vms, []);
}

/// What a connection to the fake guest's port 7 answers to `sent` and the end of it.
async fn echoed(client: &Client, vm: &VmRef, sent: &[u8]) -> Result<Vec<u8>, ClientError> {
    let mut answer = Vec::new();
    client.connect_port(vm, 7).await?.join(sent, &mut answer).await.map(|()| answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_end_each_direction_by_itself() {
    let server = support::start().await;
    let client = &server.client;
    let vm = made(client, "dev").await;
    // The guest answers after the end of what it is sent.
    assert_eq!(echoed(client, &vm, b"hello ").await.unwrap(), b"hello 6 bytes\n");
    let large: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
    let many = (0..20).map(|_| echoed(client, &vm, &large));
    for answer in futures_util::future::join_all(many).await {
        let answer = answer.unwrap();
        assert!(answer.starts_with(&large) && answer.ends_with(b"3000000 bytes\n"));
    }
    let refused = client.connect_port(&vm, 8).await.unwrap_err();
    assert!(refused.to_string().contains("nothing listens on port 8"), "{refused}");
    for (phase, vm) in in_every_state(client).await {
        // Waits while the VM is paused.
        let outcome = tokio::time::timeout(Duration::from_millis(500), echoed(client, &vm, b"")).await;
        match phase {
            Phase::Stopped => assert_eq!(code(outcome.unwrap()), "vm_not_running"),
            Phase::Paused => assert!(outcome.is_err() || outcome.unwrap().is_err()),
            _ => assert_eq!(outcome.unwrap().unwrap(), b"0 bytes\n", "{phase}"),
        }
    }
    // A connection whose guest is lost is told so: it has not ended as it should.
    for lose in [true, false] {
        let vm = made(client, &format!("lost-{lose}")).await;
        let stream = client.connect_port(&vm, 7).await.unwrap();
        let (mut ours, theirs) = tokio::io::duplex(100);
        let (reader, writer) = tokio::io::split(theirs);
        let joined = tokio::spawn(stream.join(reader, writer));
        tokio::io::AsyncWriteExt::write_all(&mut ours, b"x").await.unwrap();
        tokio::io::AsyncReadExt::read_u8(&mut ours).await.unwrap();
        if lose {
            client.delete_vm(&vm).await.unwrap();
        } else {
            server.ending.cancel();
        }
        let outcome = joined.await.unwrap();
        assert!(matches!(outcome, Err(ClientError::Lost { .. })), "{outcome:?}");
    }
}
