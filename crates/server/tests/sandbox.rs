//! Verbs of several requests, against a whole server on fakes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use microvm_api::CreateVm;
use microvm_client::sandbox::{
    CLAIM_LABEL, ChildRun, Claim, CommandFailure, Creation, EndRequests, ForkAndRun, Never, Workspace,
    numbered,
};
use microvm_client::{Client, ExecEvent, VmQuery};
use microvm_types::exec::ExecRequest;
use microvm_types::files::FileOwner;
use microvm_types::{Phase, VmRef};
use tokio::sync::Notify;

/// Asks for the end with SIGTERM each time it is notified.
#[derive(Clone, Default)]
struct OnNotice(Arc<Notify>);

impl EndRequests for OnNotice {
    async fn next(&mut self) -> u8 {
        self.0.notified().await;
        15
    }
}

fn command(words: &str) -> ExecRequest {
    let command = words.split(' ').map(str::to_owned).collect();
    ExecRequest { command, ..ExecRequest::default() }
}

async fn parent(client: &Client) -> VmRef {
    let request = CreateVm { name: Some("dev".parse().unwrap()), ..CreateVm::default() };
    client.create_vm(&request).await.unwrap();
    "dev".parse().unwrap()
}

async fn names(client: &Client) -> Vec<String> {
    let all = client.list_vms(&VmQuery::default()).await.unwrap().vms;
    all.into_iter().map(|vm| vm.name.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claimed_creation_leaves_a_vm_only_if_it_succeeds() {
    let server = support::start().await;
    let client = &server.client;
    let request = |name: &str| CreateVm { name: Some(name.parse().unwrap()), ..CreateVm::default() };
    let claim = Claim::new().unwrap();
    let made = claim.create(client, request("web"), &mut Never).await;
    let Creation::Made(vm) = made else { panic!("{made:?}") };
    assert!(vm.labels.contains_key(CLAIM_LABEL));
    // The name is taken: the VM that has it is not the claim's, and stays.
    let failed = Claim::new().unwrap().create(client, request("web"), &mut Never).await;
    let Creation::Failed { error, leftovers } = failed else { panic!("{failed:?}") };
    assert_eq!(error.code(), "vm_name_taken");
    assert!(leftovers.is_empty(), "{leftovers:?}");
    // The end is asked for before the answer: whatever the server had begun is gone afterwards.
    let end = OnNotice::default();
    end.0.notify_one();
    let ended = Claim::new().unwrap().create(client, request("other"), &mut end.clone()).await;
    match ended {
        Creation::Ended { signal: 15, leftovers } => assert!(leftovers.is_empty(), "{leftovers:?}"),
        // The answer was there as soon as the request to end.
        Creation::Made(vm) => client.delete_vm(&VmRef::from(vm.id)).await.unwrap(),
        failed => panic!("{failed:?}"),
    }
    assert_eq!(names(client).await, ["web"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_child_runs_its_command_and_is_deleted() {
    let server = support::start().await;
    let client = &server.client;
    let dev = parent(client).await;
    let out = tempfile::tempdir().unwrap();
    let script = |text: &str| ExecRequest {
        command: ["sh", "-c", text].map(str::to_owned).to_vec(),
        ..ExecRequest::default()
    };
    let commands = [
        script("echo child {n} > /workspace/output/log; echo {n}"),
        command("no-such-program"),
        script("exit 7"),
    ];
    let work = ForkAndRun {
        commands: commands.iter().enumerate().map(|(index, one)| numbered(one, index + 1)).collect(),
        name: Some("try-{n}".to_owned()),
        labels: BTreeMap::from([("team".to_owned(), "red".to_owned())]),
        output: Some(out.path().to_owned()),
        at_once: NonZeroUsize::new(2),
        keep: false,
    };
    let children = work.fork(client, &dev).await.unwrap();
    assert_eq!(names(client).await, ["dev", "try-1", "try-2", "try-3"]);
    assert!(children.iter().all(|vm| vm.labels["team"] == "red" && vm.limits.ephemeral), "{children:?}");
    let done = work.run(client, children, &mut Never).await;
    assert!(done.ended_by.is_none() && done.leftovers.is_empty(), "{done:?}");
    let [first, second, third] = &done.children[..] else { panic!("{done:?}") };
    assert_eq!((first.number, first.ended.as_ref().unwrap().shell_code()), (1, 0));
    assert_eq!(first.output.clone().outputs("").stdout, "1\n");
    assert_eq!(std::fs::read_to_string(out.path().join("1/log")).unwrap(), "child 1\n");
    assert!(matches!(&second.ended, Err(CommandFailure::Start(error)) if error.code() == "guest_refused"));
    assert!(second.fetched.is_none(), "{second:?}");
    assert_eq!(third.ended.as_ref().unwrap().shell_code(), 7);
    assert!(matches!(&third.fetched, Some(Ok(_))), "{third:?}");
    assert_eq!(names(client).await, ["dev"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_to_end_reaches_the_commands_of_all_children() {
    let server = support::start().await;
    let client = &server.client;
    let dev = parent(client).await;
    for keep in [false, true] {
        let commands = vec![command("sleep 1000"), command("sleep 1000")];
        let work = ForkAndRun { commands, keep, ..ForkAndRun::default() };
        let children = work.fork(client, &dev).await.unwrap();
        let ids: Vec<VmRef> = children.iter().map(|vm| VmRef::from(vm.id.clone())).collect();
        let end = OnNotice::default();
        let mut asked = end.clone();
        let running = work.run(client, children, &mut asked);
        let ending = async {
            // Both commands are there before the end is asked for.
            for id in &ids {
                while client.processes(id).await.unwrap().processes.is_empty() {
                    tokio::task::yield_now().await;
                }
            }
            end.0.notify_one();
        };
        let (done, ()) = tokio::join!(running, ending);
        assert_eq!(done.ended_by, Some(15), "{done:?}");
        let signalled = |run: &ChildRun| matches!(&run.ended, Ok(status) if status.signal == Some(15));
        assert!(done.children.iter().all(signalled) && done.leftovers.is_empty(), "{done:?}");
        if !keep {
            assert_eq!(names(client).await, ["dev"]);
            continue;
        }
        for id in &ids {
            let left = client.processes(id).await.unwrap().processes;
            assert!(left.iter().all(|process| process.exit.is_some()), "{left:?}");
            assert_eq!(client.vm(id).await.unwrap().state, Phase::Running, "it is kept");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_goes_in_and_comes_out() {
    let server = support::start().await;
    let client = &server.client;
    let dev = parent(client).await;
    let (input, output) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(input.path().join("seed"), "7").unwrap();
    std::fs::write(input.path().join("big"), vec![b'x'; 9_000]).unwrap();
    let workspace = Workspace { owner: FileOwner::Default };
    workspace.prepare(client, &dev, Some(input.path())).await.unwrap();
    let text = "cat /workspace/input/seed > /workspace/output/results.json; cat /workspace/input/big > /workspace/output/big";
    let request =
        ExecRequest { command: ["sh", "-c", text].map(str::to_owned).to_vec(), ..ExecRequest::default() };
    let (status, all) = client.exec(&dev, &request).await.unwrap().collect().await.unwrap();
    assert_eq!(status.shell_code(), 0, "{all:?}");
    let vm = client.vm(&dev).await.unwrap();
    let gathered = Workspace::gather(client, &vm, output.path(), None).await;
    assert!(gathered.failure.is_none(), "{gathered:?}");
    assert_eq!(gathered.results, Some(serde_json::json!(7)));
    // More than is allowed is a failure beside what the command did.
    let gathered = Workspace::gather(client, &vm, output.path(), Some("1KiB".parse().unwrap())).await;
    assert_eq!(gathered.failure.as_ref().map(|failure| failure.code()), Some("transfer_too_large"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_request_ends_the_wait_for_a_command() {
    let server = support::start().await;
    let client = &server.client;
    let dev = parent(client).await;
    let mut session = client.exec(&dev, &command("sleep 1000")).await.unwrap();
    let end = OnNotice::default();
    let (mut asked, process) = (end.clone(), session.started.process.clone());
    let mut heard = None;
    let waiting =
        microvm_client::sandbox::pass_on(client, &dev, &process, &mut asked, |signal| heard = Some(signal));
    let ending = async {
        end.0.notify_one();
        // The signal has arrived.
        let status = session.events.status().await.unwrap();
        assert_eq!(status.signal, Some(15));
        end.0.notify_one();
    };
    let (last, ()) = tokio::time::timeout(Duration::from_secs(5), async { tokio::join!(waiting, ending) })
        .await
        .expect("the second request ends the wait before the ten seconds of grace");
    assert_eq!(last, 15);
    assert_eq!(heard, Some(15));
    assert!(!matches!(session.events.next().await, Ok(ExecEvent::Exited(_))));
}
