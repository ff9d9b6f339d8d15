//! The guest agent of microvm-sandbox: `/init` of the initial file system, PID 1 of every guest.
//!
//! ```text
//!   platform (boot, port, programs, files, system) ◀── core (link ─▶ operations ─▶ exec · identity · …)
//! ```
//!
//! `core` is the same on every operating system, `platform` has one module for each. One thread runs everything that
//! waits; work on files and starts of programs go to helper threads. What the agent does *not* do: trust a path or an
//! archive, keep state across boots, speak anything but `microvm-protocol`.

mod core;
mod platform;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::core::agent::Agent;
use crate::core::console::{self, say};
use crate::core::link::Link;
use crate::core::platform::Programs as _;
use crate::core::port::Boundaries;
use crate::platform::linux::port::DevicePort;
use crate::platform::linux::system::shutdown::end_machine;
use crate::platform::linux::{Linux, Place, boot, find};

fn main() -> std::process::ExitCode {
    console::announce_panics();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [flag, path] if flag == "--serve-socket" => serve_socket(path),
        _ if rustix::process::getpid().is_init() => serve_guest(),
        _ => Err("this is the guest agent: it runs as PID 1 of a microVM".into()),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("failed: {error}"));
            std::process::ExitCode::FAILURE
        }
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(64)
        // A new helper thread costs a child that has translated nothing yet some 10 ms; one that waits costs nothing.
        .thread_keep_alive(Duration::from_secs(3600))
        .build()
}

/// PID 1 of a guest. Returns only with the end of the machine.
fn serve_guest() -> Result<(), AnyError> {
    let parameters = boot::prepare().unwrap_or_else(|error| {
        say(&format!("boot failed: {error}"));
        end_machine(false)
    });
    if let Some(init) = parameters.init {
        become_init_beside(&init)?;
    }
    let port = find::open_port().unwrap_or_else(|error| {
        say(&format!("boot failed: {error}"));
        end_machine(false)
    });
    runtime()?.block_on(async {
        let agent = Arc::new(Agent::new(Linux::new(Place::Guest)));
        let link = Link::new(Arc::clone(&agent), DevicePort::new(port, Boundaries::Kept)?);
        tokio::select! {
            result = agent.platform.report_ends() => result,
            result = link.serve(false) => result,
        }
    })?;
    Err("the channel ended".into())
}

/// The image's own init becomes PID 1; the agent goes on as its child and collects orphans of its own commands.
#[allow(unsafe_code)]
fn become_init_beside(init: &str) -> Result<(), AnyError> {
    // SAFETY: no other thread exists yet, so the child's copy of this process is whole.
    // Needed: neither the standard library nor `rustix` forks, and an init that is started by an agent would not be PID 1.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    if child == 0 {
        rustix::process::setsid()?;
        // Orphans of commands come to the agent, which waits for them; the init knows nothing of them.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        // Whoever runs out of memory, it is not the agent.
        let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
        return Ok(());
    }
    let error = std::os::unix::process::CommandExt::exec(&mut std::process::Command::new(init));
    say(&format!("boot failed: run the image's init {init}: {error}"));
    end_machine(false)
}

/// An ordinary process on a host that serves a unix socket, one connection after the other: for tests.
fn serve_socket(path: &str) -> Result<(), AnyError> {
    runtime()?.block_on(async {
        let agent = Arc::new(Agent::new(Linux::new(Place::Host)));
        let listener = tokio::net::UnixListener::bind(path)?;
        let serve = async {
            loop {
                let (connection, _) = listener.accept().await?;
                let device = OwnedFd::from(connection.into_std()?);
                Link::new(Arc::clone(&agent), DevicePort::new(device, Boundaries::Lost)?).serve(true).await?;
            }
        };
        tokio::select! {
            result = agent.platform.report_ends() => result,
            result = serve => result,
        }
    })?;
    Ok(())
}
