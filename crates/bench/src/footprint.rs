//! Memory of an idle VM and of the server; start times of server and command line.

use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use microvm_types::VmRef;
use rustix::net::sockopt::socket_peercred;

use crate::boot::request;
use crate::error::BenchError;
use crate::report::{Promise, Row};
use crate::samples::Samples;
use crate::{Scene, failed};

/// Time that guests are left alone before their memory is read.
pub(crate) const SETTLE: Duration = Duration::from_secs(5);
/// Rounds of starting a program.
const START_ROUNDS: u32 = 20;

pub(crate) async fn measure(scene: &Scene) -> Result<Vec<Row>, BenchError> {
    let mut rows = vec![idle_vm(scene).await?];
    let pid = server_pid(&scene.client).await?;
    let rss = status_mib(pid, "VmRSS:")?;
    rows.push(Row::single(
        "server, resident memory",
        "MiB",
        None,
        rss,
        Promise::AtMost { times_floor: 0.0, plus: 40.0 },
    ));
    rows.push(server_start(scene).await?);
    rows.push(help().await?);
    Ok(rows)
}

async fn idle_vm(scene: &Scene) -> Result<Row, BenchError> {
    scene.say("leaving a VM and a bare machine idle");
    // One after the other: both map the same kernel, and each would be charged half of it.
    let bare = scene.bare.boot("default").await?;
    tokio::time::sleep(SETTLE).await;
    let floor = pss_mib(bare.pid());
    scene.bare.remove(bare).await?;
    let vm = VmRef::from(scene.client.create_vm(&request("default")).await?.id);
    tokio::time::sleep(SETTLE).await;
    let ours = scene.client.counters(&vm).await;
    scene.client.delete_vm(&vm).await?;
    #[expect(clippy::cast_precision_loss, reason = "shown to two decimals only")]
    let ours = ours?.memory_pss as f64 / f64::from(1 << 20);
    Ok(Row::single(
        "idle VM of 512 MiB that booted, memory on the host (PSS)",
        "MiB",
        Some((floor?, "a bare QEMU")),
        ours,
        Promise::None,
    ))
}

/// Process number of the server, from the kernel's word about the other end of its socket.
async fn server_pid(client: &microvm_client::Client) -> Result<i32, BenchError> {
    let address =
        microvm_client::bind_path(client.socket()).map_err(|error| failed("finding the server", &error))?;
    let stream = tokio::net::UnixStream::connect(address.path())
        .await
        .map_err(|error| failed("finding the server", &error))?;
    let peer = socket_peercred(stream.as_fd()).map_err(|error| failed("finding the server", &error))?;
    Ok(peer.pid.as_raw_nonzero().get())
}

/// From nothing to the first answer of a server on an empty root: `microvm ls` there, and the server it starts.
async fn server_start(scene: &Scene) -> Result<Row, BenchError> {
    scene.say("starting servers");
    let mut rounds = Vec::new();
    for number in 0..=5 {
        let root = scene.root.join(format!("tmp/bench-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&root).map_err(|error| failed("making a root", &error))?;
        let started = Instant::now();
        let mut listing = own_program(&["--root", root.as_str(), "ls"])?;
        listing.wait().await.map_err(|error| failed("starting a server", &error))?;
        rounds.push(started.elapsed());
        let pid = server_pid(&microvm_client::Client::new(root.join("run/api.sock"))).await?;
        let process = rustix::process::Pid::from_raw(pid)
            .ok_or_else(|| failed("ending a server", &"it has no number"))?;
        let ended = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty());
        rustix::process::kill_process(process, rustix::process::Signal::TERM)
            .map_err(|error| failed("ending a server", &error))?;
        if let Ok(ended) = ended {
            wait_for_end(ended).await?;
        }
        std::fs::remove_dir_all(&root).map_err(|error| failed("removing a root", &error))?;
    }
    let found = Samples::new(rounds).percentiles();
    Ok(Row {
        percentiles: Some(found),
        ..Row::single(
            "first `ls` on an empty root, server start included",
            "ms",
            None,
            found.p50,
            Promise::None,
        )
    })
}

async fn wait_for_end(process: std::os::fd::OwnedFd) -> Result<(), BenchError> {
    let waited = tokio::task::spawn_blocking(move || {
        let mut polled = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut polled, None)
    });
    waited
        .await
        .map_err(|error| failed("waiting for a server", &error))?
        .map_err(|error| failed("waiting for a server", &error))?;
    Ok(())
}

async fn help() -> Result<Row, BenchError> {
    let mut rounds = Vec::new();
    for _ in 0..=START_ROUNDS {
        let started = Instant::now();
        let mut child = own_program(&["--help"])?;
        child.wait().await.map_err(|error| failed("starting this program", &error))?;
        rounds.push(started.elapsed());
    }
    let found = Samples::new(rounds).percentiles();
    let promise = Promise::AtMost { times_floor: 0.0, plus: 20.0 };
    let program = std::env::current_exe().map_err(|error| failed("finding this program", &error))?;
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let what = format!("`{name} --help`");
    Ok(Row { percentiles: Some(found), ..Row::single(what, "ms", None, found.p50, promise) })
}

fn own_program(arguments: &[&str]) -> Result<tokio::process::Child, BenchError> {
    let program = std::env::current_exe().map_err(|error| failed("finding this program", &error))?;
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(|error| failed("starting this program", &error))
}

fn status_mib(pid: i32, name: &str) -> Result<f64, BenchError> {
    mib_of(&format!("/proc/{pid}/status"), name)
}

pub(crate) fn pss_mib(pid: u32) -> Result<f64, BenchError> {
    mib_of(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

pub(crate) fn mib_of(path: &str, name: &str) -> Result<f64, BenchError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| failed("reading the memory of a process", &error))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib: Option<f64> = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok());
    kib.map(|kib| kib / 1_024.0)
        .ok_or_else(|| failed("reading the memory of a process", &format!("{path} has no {name}")))
}
