//! Branching of machines, and the children that are launched from branches.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use microvm_ports::branch::{BranchError, BranchRequest, DiskChange, IncomingState, InputProbe, PauseSteps};
use microvm_ports::capabilities::SaveKind;
use microvm_ports::guest::{Guest, Identity, ProcessEvent, ProcessHandle, ProcessInput};
use microvm_ports::hypervisor::{
    Abilities, MachineError, MachineExit, MachineSpec, MachineStart, MachineState,
};
use microvm_ports::snapshot::{BranchFiles, BranchSource, SnapshotStore, StateDescription};
use microvm_ports::storage::StorageError;
use microvm_types::VmId;
use microvm_types::exec::{ExecRequest, OutputOffsets};

use super::{Launched, Scene, reach};
use crate::{Must, Suite};

/// Keeps a word in its memory until it is told another one, then says both.
const REMEMBERING: &str = "word=before; read line; echo $word-$line";

pub(super) async fn run(suite: &mut Suite, scene: &Scene<'_>) {
    if skipped(suite, scene).await {
        return;
    }
    if scene.abilities().await.save == SaveKind::Stops {
        suite
            .check("a machine that ends with its save goes on from it, and so do others", stops(scene))
            .await;
        return;
    }
    suite.check("a branched machine goes on running", goes_on(scene)).await;
    suite.check("a paused machine is branched and stays paused", stays_paused(scene)).await;
    suite.check("a child knows what its parent knew, and nothing later", child(scene)).await;
    suite.check("two children of one state are two", two_children(scene)).await;
    suite.check("a child is branched like any machine", grandchild(scene)).await;
    suite.check("a machine is branched by the next server", adopted(scene)).await;
    suite.check("a branch that cannot be leaves the machine as it was", refused(scene)).await;
}

/// Returns true, and says so, if this driver has no branches.
pub(super) async fn skipped(suite: &Suite, scene: &Scene<'_>) -> bool {
    let lacks = scene.abilities().await.save == SaveKind::None;
    if lacks {
        suite.skip("branches", "this hypervisor neither saves nor loads states");
    }
    lacks
}

impl Scene<'_> {
    /// Branches a machine and makes the state ready for children.
    pub(super) async fn branch(&self, parent: &Launched, guest: &Arc<dyn Guest>) -> BranchSource {
        self.branch_by(parent, self.save(parent, Some(guest), false)).await
    }

    /// Request to save a machine.
    fn save(&self, parent: &Launched, guest: Option<&Arc<dyn Guest>>, stay_paused: bool) -> BranchRequest {
        let steps = Steps {
            snapshots: self.harness.snapshots(),
            vm: parent.spec.id.clone(),
            guest: guest.cloned(),
            layers: None,
        };
        BranchRequest { steps: Arc::new(steps), directory: parent.spec.directory.clone(), stay_paused }
    }

    async fn branch_by(&self, parent: &Launched, request: BranchRequest) -> BranchSource {
        let Some(brancher) = parent.machine.brancher() else { panic!("the machine has no brancher") };
        let Abilities { save, load, .. } = self.abilities().await;
        assert_eq!(brancher.kind(), save, "a machine saves otherwise than its driver claims");
        let branch = brancher.branch(request).await.must("branching");
        assert_eq!(
            Some(branch.memory.shape()),
            save.memory(),
            "the memory has another form than was claimed"
        );
        assert_eq!(branch.ended, save == SaveKind::Stops, "the machine has ended, or has not");
        let description = StateDescription {
            memory_mib: parent.spec.memory_mib,
            disk_mib: self.harness.disk_mib(),
            memory: branch.memory.shape(),
            compatibility: brancher.compatibility().clone(),
            record: serde_json::Value::Null,
        };
        let files = BranchFiles { vm: parent.spec.id.clone(), branch, description };
        let Some(load) = load.memory() else { panic!("what is saved cannot be loaded") };
        self.harness.snapshots().fork_point(files, 2, load).await.must("making a fork point")
    }

    /// A machine like `parent` that is launched from `source`, with its files made.
    pub(super) async fn child_spec(&self, parent: &Launched, source: &BranchSource) -> MachineSpec {
        self.child_spec_of(self.id(), parent, source).await
    }

    /// The same for a VM with this id.
    pub(super) async fn child_spec_of(
        &self,
        id: VmId,
        parent: &Launched,
        source: &BranchSource,
    ) -> MachineSpec {
        let files =
            self.harness.snapshots().create_vm_files_from(&id, source).await.must("making a child's files");
        let mut spec = parent.spec.clone();
        (spec.name, spec.id) = ((&id).into(), id);
        spec.directory = files.directory;
        spec.replace_disk(&files.scratch);
        spec.start = MachineStart::Incoming(incoming(source));
        spec
    }

    /// Launches a child, lets it run and opens its first epoch.
    async fn child(&self, parent: &Launched, source: &BranchSource, who: u8) -> (Launched, Arc<dyn Guest>) {
        self.go_on(self.child_spec(parent, source).await, who).await
    }

    /// The same with everything ready for it.
    pub(super) async fn go_on(&self, spec: MachineSpec, who: u8) -> (Launched, Arc<dyn Guest>) {
        let machine = self.harness.hypervisor().launch(&spec).await.must("launching a child");
        assert_eq!(*machine.state().borrow(), MachineState::Paused, "a child runs before it is told to");
        machine.resume().await.must("resuming a child");
        let child = Launched { spec, machine };
        let (endpoint, limit) = (child.machine.endpoint(), self.harness.boot_limit());
        let connector = self.harness.connector();
        let guest = connector
            .connect(&endpoint, u64::from(who), &identity(who), limit)
            .await
            .must("connecting to a child");
        (child, guest)
    }
}

/// Identity of the child with this number.
pub(super) fn identity(who: u8) -> Identity {
    Identity {
        host_name: format!("child-{who}"),
        machine_id: format!("{who:032x}"),
        entropy: [who; 32],
        ..Identity::default()
    }
}

/// Output of a script in a shell.
pub(super) async fn say(guest: &dyn Guest, script: &str) -> String {
    let handle = guest.exec(&shell(script, false)).await.must("starting a shell");
    rest(handle).await
}

fn shell(script: &str, stdin: bool) -> ExecRequest {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    ExecRequest { command, stdin, ..ExecRequest::default() }
}

/// Everything that is still printed.
async fn rest(mut handle: ProcessHandle) -> String {
    let mut text = Vec::new();
    while let Some(event) = handle.events.next().await {
        match event {
            ProcessEvent::Stdout(data) | ProcessEvent::Stderr(data) => text.extend_from_slice(&data),
            ProcessEvent::Exited(_) | ProcessEvent::UpToDate => break,
            ProcessEvent::Lost(error) => panic!("the process was lost: {error}"),
        }
    }
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// Gives a process of [`REMEMBERING`] its line and returns what it says.
async fn told(handle: ProcessHandle, line: &str) -> String {
    let input = Bytes::from(format!("{line}\n"));
    handle.input.send(ProcessInput::Stdin(input)).await.must("sending a line");
    handle.input.send(ProcessInput::CloseStdin).await.must("ending the input");
    rest(handle).await
}

/// Steps of a save.
struct Steps {
    snapshots: Arc<dyn SnapshotStore>,
    vm: VmId,
    guest: Option<Arc<dyn Guest>>,
    /// Instead of what the store makes.
    layers: Option<Vec<DiskChange>>,
}

#[async_trait]
impl PauseSteps for Steps {
    async fn hold_input(&self) -> Option<InputProbe> {
        match &self.guest {
            Some(guest) => Some(guest.hold_input().await),
            None => None,
        }
    }

    async fn freeze_disks(&self) -> Result<Vec<DiskChange>, StorageError> {
        match &self.layers {
            Some(layers) => Ok(layers.clone()),
            None => self.snapshots.prepare_overlays(&self.vm, &[]).await,
        }
    }
}

async fn stops(scene: &Scene<'_>) {
    let (parent, guest) = scene.boot().await;
    say(&*guest, "echo before > /root/note").await;
    let process = guest.exec(&shell(REMEMBERING, true)).await.must("starting a process");
    let id = process.id.clone();
    let source = scene.branch(&parent, &guest).await;
    reach(&mut parent.machine.state(), MachineState::Exited(MachineExit::Killed)).await;
    assert_eq!(
        scene.harness.processes(&parent.spec).await,
        0,
        "a process is left of a machine that has ended"
    );
    let (child, child_guest) = scene.child(&parent, &source, 2).await;
    assert_eq!(say(&*child_guest, "cat /root/note; echo child > /root/note").await, "before");
    let copy = child_guest.attach(&id, OutputOffsets::default()).await.must("attaching to the copy");
    assert_eq!(told(copy, "child").await, "before-child");
    // The VM itself continues in its own directory, on the disk that it has now.
    let files = scene.harness.storage().vm_files(&parent.spec.id).await.must("finding its files");
    let mut spec = parent.spec.clone();
    assert!(spec.replace_disk(&files.scratch), "it has no scratch disk");
    spec.start = MachineStart::Incoming(incoming(&source));
    let (again, again_guest) = scene.go_on(spec, 3).await;
    assert_eq!(say(&*again_guest, "cat /root/note").await, "before", "it sees what its child wrote");
    let copy = again_guest.attach(&id, OutputOffsets::default()).await.must("attaching again");
    assert_eq!(told(copy, "again").await, "before-again");
    let source = scene.branch(&again, &again_guest).await;
    let (grandchild, guest) = scene.child(&again, &source, 4).await;
    assert_eq!(say(&*guest, "cat /root/note").await, "before");
    scene.end(&grandchild).await;
    scene.end(&child).await;
}

/// The state that a machine is launched from.
fn incoming(source: &BranchSource) -> IncomingState {
    IncomingState {
        parts: source.parts.clone(),
        memory: source.memory.clone(),
        compatibility: source.description.compatibility.clone(),
    }
}

async fn goes_on(scene: &Scene<'_>) {
    let (parent, guest) = scene.boot().await;
    let process = guest.exec(&shell(REMEMBERING, true)).await.must("starting a process");
    for _ in 0..2 {
        drop(scene.branch(&parent, &guest).await);
        assert_eq!(*parent.machine.state().borrow(), MachineState::Running, "it is paused");
        guest.ping().await.must("pinging over the channel of before");
    }
    assert_eq!(told(process, "parent").await, "before-parent");
    scene.end(&parent).await;
}

async fn stays_paused(scene: &Scene<'_>) {
    let (parent, guest) = scene.boot().await;
    guest.expect_heartbeats(false);
    parent.machine.pause().await.must("pausing");
    drop(scene.branch(&parent, &guest).await);
    assert_eq!(*parent.machine.state().borrow(), MachineState::Paused, "the branch let it run");
    parent.machine.resume().await.must("resuming");
    guest.ping().await.must("pinging after the resume");
    drop(scene.branch_by(&parent, scene.save(&parent, Some(&guest), true)).await);
    reach(&mut parent.machine.state(), MachineState::Paused).await;
    parent.machine.resume().await.must("resuming again");
    guest.ping().await.must("pinging after the second resume");
    scene.end(&parent).await;
}

async fn child(scene: &Scene<'_>) {
    let (parent, guest) = scene.boot().await;
    say(&*guest, "echo before > /root/note").await;
    let process = guest.exec(&shell(REMEMBERING, true)).await.must("starting a process");
    let id = process.id.clone();
    let source = scene.branch(&parent, &guest).await;
    say(&*guest, "echo later > /root/note; echo later > /root/new").await;
    let later = guest.exec(&shell(REMEMBERING, true)).await.must("starting a later process");

    let (child, child_guest) = scene.child(&parent, &source, 2).await;
    assert_eq!(say(&*child_guest, "cat /root/note").await, "before");
    child_guest.stat(b"/root/new").await.must_fail("looking at a file of later");
    let known = child_guest.processes().await.must("listing processes");
    assert!(known.iter().any(|one| one.id == id && one.exit.is_none()), "{known:?}");
    assert!(known.iter().all(|one| one.id != later.id), "a process of later is known");
    let copy = child_guest.attach(&id, OutputOffsets::default()).await.must("attaching to the copy");
    assert_eq!(told(copy, "child").await, "before-child");
    say(&*child_guest, "echo child > /root/note").await;

    assert_eq!(told(process, "parent").await, "before-parent");
    assert_eq!(told(later, "too").await, "before-too");
    assert_eq!(say(&*guest, "cat /root/note").await, "later");
    scene.end(&parent).await;
    assert_eq!(say(&*child_guest, "cat /root/note").await, "child", "it depends on its parent");
    scene.end(&child).await;
}

async fn two_children(scene: &Scene<'_>) {
    let (parent, guest) = scene.boot().await;
    let script = "hostname; cat /etc/machine-id /proc/sys/kernel/random/uuid";
    say(&*guest, script).await;
    let source = scene.branch(&parent, &guest).await;
    let mut said = vec![say(&*guest, script).await];
    let mut children = Vec::new();
    for who in [2, 3] {
        let (child, guest) = scene.child(&parent, &source, who).await;
        said.push(say(&*guest, script).await);
        children.push(child);
    }
    for (text, who) in said[1..].iter().zip([2, 3]) {
        let expected = identity(who);
        let beginning = format!("{}\n{}\n", expected.host_name, expected.machine_id);
        assert!(text.starts_with(&beginning), "child {who} says {text}");
    }
    // Names and ids are told from outside; a random number drawn inside shows that the generator is another one too.
    for at in 0..3 {
        let mut values: Vec<_> = said.iter().map(|text| text.lines().nth(at)).collect();
        values.sort_unstable();
        values.dedup();
        assert_eq!(values.len(), 3, "two are the same: {said:?}");
    }
    for machine in children.iter().chain([&parent]) {
        scene.end(machine).await;
    }
}

async fn grandchild(scene: &Scene<'_>) {
    let (mut parent, mut guest) = scene.boot().await;
    let process = guest.exec(&shell(REMEMBERING, true)).await.must("starting a process");
    let id = process.id.clone();
    drop(process);
    say(&*guest, "echo 1 > /root/note").await;
    for generation in 2..=4 {
        let source = scene.branch(&parent, &guest).await;
        let (child, child_guest) = scene.child(&parent, &source, generation).await;
        drop(source);
        scene.end(&parent).await;
        say(&*child_guest, &format!("echo {generation} >> /root/note")).await;
        (parent, guest) = (child, child_guest);
    }
    assert_eq!(say(&*guest, "cat /root/note").await, "1\n2\n3\n4");
    let copy = guest.attach(&id, OutputOffsets::default()).await.must("attaching to the copy");
    assert_eq!(told(copy, "4").await, "before-4");
    scene.end(&parent).await;
}

async fn adopted(scene: &Scene<'_>) {
    let (parent, guest) = scene.boot().await;
    say(&*guest, "echo before > /root/note").await;
    let Launched { spec, machine } = parent;
    let record = machine.record();
    guest.close();
    drop((guest, machine));
    let adopt = scene.harness.restarted();
    let machine = adopt.adopt(&spec.id, &spec.directory, &record).await.must("adopting");
    let parent = Launched { spec, machine };
    let connector = scene.harness.connector();
    let endpoint = parent.machine.endpoint();
    let limit = scene.harness.boot_limit();
    let guest = connector.connect(&endpoint, 2, &identity(2), limit).await.must("connecting again");
    for who in [3, 4] {
        let source = scene.branch(&parent, &guest).await;
        let (child, child_guest) = scene.child(&parent, &source, who).await;
        assert_eq!(say(&*child_guest, "cat /root/note").await, "before");
        scene.end(&child).await;
    }
    guest.ping().await.must("pinging the parent");
    scene.end(&parent).await;
}

async fn refused(scene: &Scene<'_>) {
    let (parent, guest) = scene.boot().await;
    let Some(brancher) = parent.machine.brancher() else { panic!("the machine has no brancher") };
    let request = |layers| BranchRequest {
        steps: Arc::new(Steps {
            snapshots: scene.harness.snapshots(),
            vm: parent.spec.id.clone(),
            guest: None,
            layers: Some(layers),
        }),
        ..scene.save(&parent, None, false)
    };
    let error = brancher.branch(request(Vec::new())).await.must_fail("branching without a new overlay");
    assert!(matches!(error, BranchError::Disk { .. }), "wrong error: {error}");
    let mut overlays =
        scene.harness.snapshots().prepare_overlays(&parent.spec.id, &[]).await.must("preparing new overlays");
    overlays[0].path = parent.spec.directory.join("nothing-here");
    let error =
        brancher.branch(request(overlays)).await.must_fail("branching to an overlay that is not there");
    assert!(matches!(error, BranchError::Disk { .. }), "wrong error: {error}");
    assert_eq!(*parent.machine.state().borrow(), MachineState::Running, "it is paused");
    guest.ping().await.must("pinging after refused branches");
    // The overlays of refused branches stay below those of the next one.
    let source = scene.branch(&parent, &guest).await;
    let (child, _guest) = scene.child(&parent, &source, 2).await;
    scene.end(&child).await;
    scene.end(&parent).await;
    let overlays =
        scene.harness.snapshots().prepare_overlays(&parent.spec.id, &[]).await.must("preparing new overlays");
    let error = brancher.branch(request(overlays)).await.must_fail("branching a dead machine");
    assert!(matches!(error, BranchError::Machine(MachineError::Exited(_))), "wrong error: {error}");
}
