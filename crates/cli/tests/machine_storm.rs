//! A storm: clients live through the real program while a killer ends server, VMMs, supervisors, agents and guest kernels
//! at random moments. After each round no VM that was reported running may be lost, and at the end nothing may be left.
//!
//! `MICROVM_STORM_ROUNDS` is the number of rounds, one to two kills each; `MICROVM_STORM_SEED` repeats a choice (not the
//! moments at which the host runs things).
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking, and say what they did and why they skip"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use support::dice::{Dice, number};
use support::{Home, agent_killer, signal, text};

/// Clients at once.
const CLIENTS: u64 = 3;
/// Work of each client in a round.
const STEPS: u64 = 2;
/// VMs of one client.
const MOST_VMS: usize = 2;

/// State of a VM as its client knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Running,
    Stopped,
    /// The answer never came.
    Uncertain,
}

#[derive(Debug, Clone)]
struct Vm {
    id: Option<String>,
    /// Its kernel obeys the magic keys.
    can_panic: bool,
    known: Known,
}

/// A command that did not succeed.
struct Refusal {
    name: String,
    /// Of the VM at that time: it may have been removed since. None if its creation failed.
    id: Option<String>,
    command: String,
    said: String,
}

/// One client with its VMs; it lives through all rounds.
struct Client {
    number: u64,
    made: u64,
    dice: Dice,
    vms: BTreeMap<String, Vm>,
    /// Faults found in this round.
    failures: Vec<Refusal>,
}

impl Client {
    fn live(&mut self, home: &Home) {
        for _ in 0..STEPS {
            let names: Vec<String> = self.vms.keys().cloned().collect();
            let choice = self.dice.roll(10);
            if names.is_empty() || (names.len() < MOST_VMS && choice < 4) {
                self.create(home);
                continue;
            }
            let name = names[usize::try_from(self.dice.roll(names.len() as u64)).unwrap()].clone();
            match (self.vms[&name].known, choice) {
                (Known::Running, 0..=5) => self.exec(home, &name),
                (Known::Running, 6..=7) => self.change(home, &["stop", &name], &name, Known::Stopped),
                (Known::Stopped, 0..=7) => self.change(home, &["start", &name], &name, Known::Running),
                _ => self.remove(home, &name),
            }
        }
    }

    fn fail(&mut self, name: &str, command: &str, said: &[u8]) {
        let id = self.vms.get(name).and_then(|vm| vm.id.clone());
        let (name, command) = (name.to_owned(), command.to_owned());
        self.failures.push(Refusal { name, id, command, said: text(said) });
    }

    fn create(&mut self, home: &Home) {
        self.made += 1;
        let name = format!("storm-{}-{}", self.number, self.made);
        let can_panic = self.dice.roll(4) == 0;
        let kernel = if can_panic { "distribution" } else { "default" };
        let arguments =
            ["--output", "json", "create", "--name", &name, "--kernel", kernel, "--memory", "256MiB"];
        let output = home.run(&arguments);
        let mut vm = Vm { id: None, can_panic, known: Known::Uncertain };
        if output.status.success() {
            let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            vm.id = made["id"].as_str().map(str::to_owned);
            vm.known = Known::Running;
        } else {
            self.fail(&name, "create", &output.stderr);
        }
        self.vms.insert(name, vm);
    }

    fn exec(&mut self, home: &Home, name: &str) {
        let token = format!("token-{}", self.dice.roll(1 << 30));
        let output = home.run(&["exec", name, "--", "echo", &token]);
        if !output.status.success() {
            self.fail(name, "exec", &output.stderr);
        } else {
            assert_eq!(text(&output.stdout), format!("{token}\n"), "an answer was mixed up");
        }
    }

    fn change(&mut self, home: &Home, arguments: &[&str], name: &str, then: Known) {
        let output = home.run(arguments);
        let vm = self.vms.get_mut(name).unwrap();
        vm.known = if output.status.success() { then } else { Known::Uncertain };
        if !output.status.success() {
            self.fail(name, arguments[0], &output.stderr);
        }
    }

    fn remove(&mut self, home: &Home, name: &str) {
        let output = home.run(&["rm", name]);
        if output.status.success() {
            self.vms.remove(name);
        } else {
            self.vms.get_mut(name).unwrap().known = Known::Uncertain;
            self.fail(name, "rm", &output.stderr);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Server,
    Vmm,
    Supervisor,
    Agent,
    Kernel,
}

/// Kills of one round.
#[derive(Default)]
struct Blow {
    server: bool,
    /// Ids of VMs it struck.
    struck: BTreeSet<String>,
}

struct Killer {
    dice: Dice,
    done: BTreeMap<Victim, u32>,
    /// Every id that was ever seen.
    seen: BTreeSet<String>,
}

impl Killer {
    /// Lets some time pass, looking which VMs there are.
    fn wait(&mut self, home: &Home, most_ms: u64) {
        // Not for an event: a random moment is what is wanted.
        let end = Instant::now() + Duration::from_millis(self.dice.roll(most_ms));
        while Instant::now() < end {
            self.seen.extend(home.ids());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs a command in one of the VMs; gives its id. The VM may be stopped or gone by now.
    fn in_guest(&mut self, home: &Home, vms: &[Vm], command: &[&str]) -> String {
        let id = self.dice.pick(vms).and_then(|vm| vm.id).unwrap();
        home.run(&[&["exec", "-d", &id, "--"], command].concat());
        id
    }

    /// `running`: VMs that run when the round begins.
    fn strike(&mut self, home: &Home, running: &[Vm], round: u64) -> Blow {
        let mut blow = Blow::default();
        self.wait(home, 2_500);
        let ids: Vec<String> = home.ids().into_iter().collect();
        let target = ids.get(usize::try_from(self.dice.roll(ids.len().max(1) as u64)).unwrap()).cloned();
        let processes = target.as_ref().and_then(|id| home.processes_of(id));
        let panicking: Vec<Vm> = running.iter().filter(|vm| vm.can_panic).cloned().collect();
        let victim = match (self.dice.roll(24), target, processes) {
            (0..=3, Some(id), Some((vmm, _))) => {
                blow.struck.insert(id);
                signal("KILL", vmm);
                Victim::Vmm
            }
            (4..=6, Some(id), Some((_, supervisor))) => {
                blow.struck.insert(id);
                signal("KILL", supervisor);
                Victim::Supervisor
            }
            (7..=10, ..) if !panicking.is_empty() => {
                blow.struck.insert(self.in_guest(
                    home,
                    &panicking,
                    &["sh", "-c", "echo c > /proc/sysrq-trigger"],
                ));
                Victim::Kernel
            }
            (11..=14, ..) if !running.is_empty() => {
                blow.struck.insert(self.in_guest(home, running, &["python3", "-c", agent_killer::CRASH]));
                Victim::Agent
            }
            _ => {
                blow.server = true;
                for _ in 0..=round % 2 {
                    home.kill_server();
                    // The second time it dies while it takes up the VMs.
                    self.wait(home, 600);
                }
                Victim::Server
            }
        };
        *self.done.entry(victim).or_default() += 1;
        self.seen.extend(home.ids());
        blow
    }
}

/// Holds what the clients know against what there is, and forgets what was struck.
fn check(home: &Home, clients: &mut [Client], blow: &Blow) {
    let states: BTreeMap<String, String> = home.states().into_iter().collect();
    let mut expected = BTreeSet::new();
    for client in clients {
        for Refusal { name, id, command, said } in std::mem::take(&mut client.failures) {
            let struck = id.map_or(!blow.struck.is_empty(), |id| blow.struck.contains(&id));
            assert!(blow.server || struck, "{command} of {name} failed, and nobody killed anything: {said}");
        }
        for (name, mut vm) in std::mem::take(&mut client.vms) {
            let struck = match &vm.id {
                Some(id) => blow.struck.contains(id),
                None => !blow.struck.is_empty() && !blow.server,
            };
            let state = states.get(&name).map(String::as_str);
            if struck || (vm.known == Known::Uncertain && !matches!(state, Some("running" | "stopped"))) {
                // It may be anything, but it can be removed.
                let output = home.run(&["rm", &name]);
                let gone = output.status.success() || output.status.code() == Some(102);
                assert!(gone, "{name} ({state:?}) cannot be removed: {}", text(&output.stderr));
                continue;
            }
            match (vm.known, state) {
                (Known::Running | Known::Uncertain, Some("running")) => {
                    let answer = home.must(&["exec", &name, "--", "echo", "alive"]);
                    assert_eq!(answer, "alive\n");
                    vm.known = Known::Running;
                }
                (Known::Stopped | Known::Uncertain, Some("stopped")) => vm.known = Known::Stopped,
                (known, state) => panic!("{name} was reported {known:?}, and is {state:?}"),
            }
            if vm.id.is_none() {
                vm.id = home.json(&["inspect", &name])["id"].as_str().map(str::to_owned);
            }
            expected.insert(name.clone());
            client.vms.insert(name, vm);
        }
    }
    let there: BTreeSet<String> = home.states().into_iter().map(|(name, _)| name).collect();
    assert_eq!(there, expected, "VMs nobody knows, or VMs lost");
}

#[test]
fn nothing_is_lost_and_nothing_is_left_in_a_storm() {
    let Some(home) = Home::open() else { return };
    let rounds = number("MICROVM_STORM_ROUNDS").unwrap_or(12);
    let seed = number("MICROVM_STORM_SEED").unwrap_or(u64::from(std::process::id()) * 7919 + 1);
    eprintln!("{rounds} rounds, seed {seed}");
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|number| Client {
            number,
            made: 0,
            dice: Dice(seed + 1 + number),
            vms: BTreeMap::new(),
            failures: Vec::new(),
        })
        .collect();
    let killer = Mutex::new(Killer { dice: Dice(seed), done: BTreeMap::new(), seen: BTreeSet::new() });
    for round in 1..=rounds {
        let begun = Instant::now();
        let running: Vec<Vm> = clients
            .iter()
            .flat_map(|client| client.vms.values())
            .filter(|vm| vm.known == Known::Running && vm.id.is_some())
            .cloned()
            .collect();
        let blow = std::thread::scope(|scope| {
            for client in &mut clients {
                scope.spawn(|| client.live(&home));
            }
            killer.lock().unwrap().strike(&home, &running, round)
        });
        check(&home, &mut clients, &blow);
        let vms: usize = clients.iter().map(|client| client.vms.len()).sum();
        let done = &killer.lock().unwrap().done;
        eprintln!(
            "round {round}: {vms} VMs, {:.1} s, killed so far: {done:?}",
            begun.elapsed().as_secs_f64()
        );
    }
    for (name, _) in home.states() {
        home.must(&["rm", &name]);
    }
    assert!(home.states().is_empty());
    home.end_server();
    home.expect_nothing_left(&killer.into_inner().unwrap().seen);
    let sockets = support::names(&home.root().join("run"));
    assert!(!sockets.contains("api.sock"), "a server that ended by itself leaves no socket: {sockets:?}");
}
