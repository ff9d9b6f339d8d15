//! Contexts: interpreters that stay in a guest.
//!
//! ```text
//!   a request ─▶ turn of (VM, context) ─▶ attach to its process ─▶ one line of JSON in ─▶ lines of JSON out ─▶ end_of_execution
//! ```
//!
//! A context is a process of the guest, and nothing else: its words say its id, language, directory and user. So the agent's list of
//! processes is the list of contexts; it is in the memory of the guest, and a fork, or a VM that was restored, has the same. What
//! comes from there is the guest's word: lines have a longest length, and each is read as one of a few shapes or left out.

mod execution;
mod frames;

use futures_util::StreamExt as _;
use microvm_api::context::{Context, ContextId, Language};
use microvm_ports::Guest;
use microvm_ports::guest::{GuestError, ProcessEvent, ProcessInput};
use microvm_types::exec::{ExecRequest, OutputOffsets, ProcessInfo};
use microvm_types::{ErrorKind, ProcessId};

pub(crate) use self::execution::Execution;
use self::frames::{Frame, Frames};
use crate::failure::Failure;

/// Word before those that say what context a process is.
const MARK: &str = "microvm-context";
/// Reads the program from the first line of standard input: the command stays short, and the guest gets no file.
const STUB: &str = "import json,os;requests=os.fdopen(os.dup(0),'rb');exec(compile(json.loads(requests.readline()),'<kernel>','exec'))";
const KERNEL: &str = include_str!("python_kernel.py");
/// Bytes of what an interpreter writes before it is ready that are shown if it ends.
const SHOWN: usize = 2_000;
/// Most bytes of a directory and of a user: the agent shortens long commands in its list.
const LONGEST_WORD: usize = 400;

/// Signal of an interrupt from a terminal.
const SIGINT: u8 = 2;
const SIGKILL: u8 = 9;

/// A context that runs.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) context: Context,
    user: String,
    pub(crate) process: ProcessId,
    /// Where its outputs are now.
    offsets: OutputOffsets,
}

impl Running {
    /// The context that a process is, if it is one.
    fn of(process: ProcessInfo) -> Option<Self> {
        let at = process.command.iter().position(|word| word == MARK)?;
        let [id, language, cwd, user] = process.command.get(at + 1..)? else { return None };
        let language = Language::ALL.into_iter().find(|one| one.as_str() == language)?;
        let context = Context { id: id.parse().ok()?, language, cwd: cwd.clone() };
        let offsets =
            OutputOffsets { stdout: Some(process.stdout_bytes), stderr: Some(process.stderr_bytes) };
        let ended = process.exit.is_some();
        (!ended).then(|| Self { context, user: user.clone(), process: process.id, offsets })
    }
}

/// All contexts of a guest, oldest first.
pub(crate) async fn list(guest: &dyn Guest) -> Result<Vec<Running>, Failure> {
    let mut processes = guest.processes().await?;
    processes.sort_by_key(|process| std::cmp::Reverse(process.age_ms));
    Ok(processes.into_iter().filter_map(Running::of).collect())
}

/// One context of a guest.
pub(crate) async fn find(guest: &dyn Guest, id: &ContextId) -> Result<Running, Failure> {
    let found = list(guest).await?.into_iter().find(|one| one.context.id == *id);
    found.ok_or_else(|| {
        let detail =
            format!("the VM has no context `{id}`: it was ended, or its VM was stopped since it was started");
        Failure::new(ErrorKind::NotFound, "context_not_found", detail)
    })
}

/// Starts a context and waits until it is ready.
pub(crate) async fn start(guest: &dyn Guest, context: Context, user: &str) -> Result<Running, Failure> {
    for (field, word) in [("cwd", context.cwd.as_str()), ("user", user)] {
        if word.len() > LONGEST_WORD || word.contains('\0') {
            let detail = format!("{field}: it is longer than {LONGEST_WORD} bytes, or has a NUL");
            return Err(Failure::invalid("invalid_field", detail));
        }
    }
    let Context { id, language, cwd } = &context;
    let program = match language {
        Language::Python => ["python3", "-u", "-c", STUB],
    };
    let words = [MARK, id.as_str(), language.as_str(), cwd.as_str(), user];
    let request = ExecRequest {
        command: program.into_iter().chain(words).map(str::to_owned).collect(),
        working_directory: Some(cwd.clone()),
        user: (!user.is_empty()).then(|| user.to_owned()),
        stdin: true,
        ..ExecRequest::default()
    };
    let not_started = |reason: String| {
        let detail = format!("the context cannot be started with {}: {reason}", program[0]);
        Failure::new(ErrorKind::Unsupported, "context_not_started", detail)
    };
    let mut process = guest.exec(&request).await.map_err(|error| match error {
        GuestError::Refused { .. } => not_started(error.to_string()),
        error => error.into(),
    })?;
    let mut kernel = serde_json::to_vec(KERNEL).map_err(|error| not_started(error.to_string()))?;
    kernel.push(b'\n');
    process.input.send(ProcessInput::Stdin(kernel.into())).await?;
    let (mut frames, mut told) = (Frames::default(), Vec::new());
    let (mut stdout, mut stderr) = (process.stdout_offset, process.stderr_offset);
    loop {
        match process.events.next().await {
            Some(ProcessEvent::Stdout(bytes)) => {
                stdout += bytes.len() as u64;
                if frames.take(&bytes)?.iter().any(|(_, frame)| matches!(frame, Frame::Ready)) {
                    break;
                }
            }
            Some(ProcessEvent::Stderr(bytes)) => {
                stderr += bytes.len() as u64;
                told.extend_from_slice(&bytes[..bytes.len().min(SHOWN.saturating_sub(told.len()))]);
            }
            Some(ProcessEvent::Lost(error)) => return Err(error.into()),
            Some(ProcessEvent::Exited(_) | ProcessEvent::UpToDate) | None => {
                return Err(not_started(format!("it ended: {}", String::from_utf8_lossy(&told).trim())));
            }
        }
    }
    let offsets = OutputOffsets { stdout: Some(stdout), stderr: Some(stderr) };
    Ok(Running { user: user.to_owned(), process: process.id, context, offsets })
}

/// Ends a context, and waits until it has ended.
pub(crate) async fn end(guest: &dyn Guest, running: &Running) -> Result<(), Failure> {
    let mut process = guest.attach(&running.process, running.offsets).await?;
    guest.signal(&running.process, SIGKILL).await?;
    loop {
        match process.events.next().await {
            Some(ProcessEvent::Stdout(_) | ProcessEvent::Stderr(_)) => {}
            Some(ProcessEvent::Lost(error)) => return Err(error.into()),
            Some(ProcessEvent::Exited(_) | ProcessEvent::UpToDate) | None => return Ok(()),
        }
    }
}

/// Interrupts what a context executes; one that executes nothing takes no notice.
pub(crate) async fn interrupt(guest: &dyn Guest, running: &Running) -> Result<(), Failure> {
    Ok(guest.signal(&running.process, SIGINT).await?)
}

/// Ends a context, and starts it again with the same words.
pub(crate) async fn restart(guest: &dyn Guest, running: &Running) -> Result<Running, Failure> {
    end(guest, running).await?;
    start(guest, running.context.clone(), &running.user).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_processes_with_all_words_are_contexts() {
        let process = |words: &[&str]| ProcessInfo {
            id: ProcessId::from_parts(1, 2),
            pid: 7,
            command: words.iter().map(|&word| word.to_owned()).collect(),
            command_omitted: 0,
            age_ms: 1,
            exit: None,
            stdout_bytes: 5,
            stderr_bytes: 0,
            detached: false,
            terminal: false,
            stdin: true,
        };
        let found =
            Running::of(process(&["python3", "-c", "x", MARK, "my-one", "python", ".", "me"])).unwrap();
        assert_eq!((found.context.id.as_str(), found.user.as_str()), ("my-one", "me"));
        assert_eq!(found.offsets.stdout, Some(5));
        for words in [
            &["python3"][..],
            &["python3", MARK],
            &["python3", MARK, "a", "python", "."],
            &["python3", MARK, "a", "python", ".", "me", "more"],
            &["python3", MARK, "A b", "python", ".", "me"],
            &["python3", MARK, "a", "cobol", ".", "me"],
        ] {
            assert!(Running::of(process(words)).is_none(), "{words:?}");
        }
    }
}
