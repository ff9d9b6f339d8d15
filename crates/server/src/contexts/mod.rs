//! Contexts: interpreters that stay in a guest.
//!
//! ```text
//!   a request ─▶ turn of (VM, context) ─▶ attach to its process ─▶ one line of JSON in ─▶ lines of JSON out ─▶ end_of_execution
//! ```
//!
//! A context is a process of the guest, and nothing else: its words say its id, language, directory and user. So the agent's list of
//! processes is the list of contexts; it is in the memory of the guest, and a fork, or a VM that was restored, has the same. What
//! comes from there is the guest's word: lines have a longest length, and each is read as one of a few shapes or left out.

mod answers;
mod execution;
mod frames;
#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
mod kernel_traces_tests;
mod language;
#[cfg(test)]
mod test_kernel;

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use microvm_api::context::{Context, ContextId, Language};
use microvm_ports::Guest;
use microvm_ports::guest::{GuestError, ProcessEvent, ProcessHandle, ProcessInput};
use microvm_types::exec::{ExecRequest, OutputOffsets, ProcessInfo};
use microvm_types::{ErrorKind, ProcessId};

use self::answers::{Answers, Output};
pub(crate) use self::execution::Execution;
use self::frames::Frame;
use crate::failure::Failure;

/// Word before those that say what context a process is, with the version of the requests that it takes.
const MARK: &str = "microvm-context-2";
/// The same, of one that was created with variables of the environment. They are in its process alone: lists of processes are no place
/// for secrets.
const MARK_WITH_ENVIRONMENT: &str = "microvm-context-2-env";
/// Most bytes of an environment that are read again.
const LONGEST_ENVIRONMENT: usize = 1 << 20;
/// Bytes of what an interpreter writes before it is ready that are shown if it ends.
const SHOWN: usize = 2_000;
/// Most bytes of a directory and of a user: the agent shortens long commands in its list.
const LONGEST_WORD: usize = 400;

/// Exit code of a shell that has not found a program.
const NO_PROGRAM: u32 = 127;

/// Longest time of a start, and of an end.
const LONGEST_START: Duration = Duration::from_secs(60);
const LONGEST_END: Duration = Duration::from_secs(30);

/// Signal of an interrupt from a terminal.
const SIGINT: u8 = 2;
const SIGKILL: u8 = 9;

/// What a context is started with.
#[derive(Debug, Clone)]
pub(crate) struct Beginning {
    pub(crate) context: Context,
    /// User name or number; empty: the one whom commands run as.
    pub(crate) user: String,
    /// Variables on top of those of commands.
    pub(crate) environment: BTreeMap<String, String>,
}

/// A context that runs.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) context: Context,
    user: String,
    has_environment: bool,
    pub(crate) process: ProcessId,
    /// Ends of its outputs, in bytes: what comes from now on begins there.
    offsets: OutputOffsets,
}

impl Running {
    /// True if it has said something: the first that an interpreter says is that it takes requests.
    pub(crate) fn is_ready(&self) -> bool {
        self.offsets.stdout.is_some_and(|bytes| bytes > 0)
    }

    /// The context that a process is, if it is one.
    fn of(process: ProcessInfo) -> Option<Self> {
        // By its mark and not by its place: how many words start an interpreter is a matter of its language.
        let marks = [MARK, MARK_WITH_ENVIRONMENT];
        let at = process.command.iter().position(|word| marks.contains(&word.as_str()))?;
        let has_environment = process.command[at] == MARK_WITH_ENVIRONMENT;
        // Exactly four: a command with the mark and other words is of another version, or a guest's own.
        let [id, language, cwd, user] = process.command.get(at + 1..)? else { return None };
        let language = Language::ALL.into_iter().find(|one| one.as_str() == language)?;
        let context = Context { id: id.parse().ok()?, language, cwd: cwd.clone() };
        let offsets =
            OutputOffsets { stdout: Some(process.stdout_bytes), stderr: Some(process.stderr_bytes) };
        let ended = process.exit.is_some();
        (!ended).then(|| Self { context, user: user.clone(), has_environment, process: process.id, offsets })
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

/// Starts a context and waits until it is ready. One that is not in time is killed.
pub(crate) async fn start(guest: &dyn Guest, beginning: Beginning) -> Result<Running, Failure> {
    let Beginning { context, user, environment } = beginning;
    let has_environment = !environment.is_empty();
    for (field, word) in [("cwd", context.cwd.as_str()), ("user", user.as_str())] {
        if word.len() > LONGEST_WORD || word.contains('\0') {
            let detail = format!("{field}: it is longer than {LONGEST_WORD} bytes, or has a NUL");
            return Err(Failure::invalid("invalid_field", detail));
        }
    }
    let Context { id, language: spoken, cwd } = &context;
    let mark = if has_environment { MARK_WITH_ENVIRONMENT } else { MARK };
    let words = [mark, id.as_str(), spoken.as_str(), cwd.as_str(), user.as_str()];
    let request = ExecRequest {
        command: language::command(*spoken).iter().copied().chain(words).map(str::to_owned).collect(),
        working_directory: Some(cwd.clone()),
        user: (!user.is_empty()).then(|| user.clone()),
        environment,
        stdin: true,
        ..ExecRequest::default()
    };
    let mut process = guest.exec(&request).await.map_err(|error| match error {
        // Its home and its user are there.
        GuestError::Refused { kind: ErrorKind::NotFound, .. } if cwd == "." && user.is_empty() => {
            missing(*spoken)
        }
        GuestError::Refused { .. } => not_started(*spoken, &error.to_string()),
        error => error.into(),
    })?;
    let id = process.id.clone();
    let ready = tokio::time::timeout(LONGEST_START, is_ready(&mut process, context.language)).await;
    let ready = ready.unwrap_or_else(|_| {
        let program = language::needed(context.language).0;
        let detail = format!("{program} was not ready in {} s", LONGEST_START.as_secs());
        Err(Failure::new(ErrorKind::Timeout, "context_not_started", detail))
    });
    match ready {
        Ok(offsets) => Ok(Running { user, has_environment, process: id, context, offsets }),
        Err(failure) => {
            if let Err(error) = guest.signal(&id, SIGKILL).await {
                tracing::debug!(%error, "an interpreter that did not start is not there to be killed");
            }
            Err(failure)
        }
    }
}

/// Gives a process the interpreter, and waits until that takes requests; says where the outputs are then.
async fn is_ready(process: &mut ProcessHandle, spoken: Language) -> Result<OutputOffsets, Failure> {
    let kernel = language::kernel(spoken).map_err(|error| not_started(spoken, &error.to_string()))?;
    process.input.send(ProcessInput::Stdin(kernel.into())).await?;
    let (mut answers, mut told) = (Answers::new(spoken, 0), Vec::new());
    let (mut stdout, mut stderr) = (process.stdout_offset, process.stderr_offset);
    loop {
        match process.events.next().await {
            Some(ProcessEvent::Stdout(bytes)) => {
                stdout += bytes.len() as u64;
                let found = answers.take(Output::Stdout, &bytes, |_| Ok(()))?;
                if found.iter().any(|(_, frame)| matches!(frame, Frame::Ready)) {
                    break;
                }
            }
            Some(ProcessEvent::Stderr(bytes)) => {
                stderr += bytes.len() as u64;
                // Only its first words, which say what is missing; a guest may write for ever.
                told.extend_from_slice(&bytes[..bytes.len().min(SHOWN.saturating_sub(told.len()))]);
            }
            Some(ProcessEvent::Lost(error)) => return Err(error.into()),
            Some(ProcessEvent::Exited(status)) if status.code == Some(NO_PROGRAM) => {
                return Err(missing(spoken));
            }
            Some(ProcessEvent::Exited(_) | ProcessEvent::UpToDate) | None => {
                let reason = format!("it ended: {}", String::from_utf8_lossy(&told).trim());
                return Err(not_started(spoken, &reason));
            }
        }
    }
    Ok(OutputOffsets { stdout: Some(stdout), stderr: Some(stderr) })
}

fn not_started(spoken: Language, reason: &str) -> Failure {
    let program = language::needed(spoken).0;
    let detail = format!("the context cannot be started with {program}: {reason}");
    Failure::new(ErrorKind::Unsupported, "context_not_started", detail)
}

/// The failure of a guest that has no interpreter of a language.
fn missing(spoken: Language) -> Failure {
    let (program, package) = language::needed(spoken);
    let detail = format!(
        "the image of the VM has no {program}, which runs {spoken}: take an image that has it (in a recipe `packages: [{package}]`)"
    );
    Failure::new(ErrorKind::Unsupported, "context_not_started", detail)
}

/// Ends a context, and waits until it has ended.
pub(crate) async fn end(guest: &dyn Guest, running: &Running) -> Result<(), Failure> {
    // Before the signal, to hear of the end; and only looked at, so that whoever executes code in it hears of it, too.
    let mut process = match guest.read_output(&running.process, running.offsets, true).await {
        // An older agent can only hand it over.
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            guest.attach(&running.process, running.offsets).await?
        }
        looked => looked?,
    };
    guest.signal(&running.process, SIGKILL).await?;
    let ended = async {
        loop {
            match process.events.next().await {
                Some(ProcessEvent::Stdout(_) | ProcessEvent::Stderr(_)) => {}
                // It wrote more than is kept before it ended.
                Some(ProcessEvent::Lost(_)) => {
                    let all = guest.processes().await?;
                    if all.iter().all(|one| one.id != running.process || one.exit.is_some()) {
                        return Ok(());
                    }
                    process = guest.read_output(&running.process, OutputOffsets::default(), true).await?;
                }
                Some(ProcessEvent::Exited(_) | ProcessEvent::UpToDate) | None => return Ok(()),
            }
        }
    };
    tokio::time::timeout(LONGEST_END, ended).await.unwrap_or_else(|_| {
        let detail =
            format!("the context was killed and has not ended in {} s: try again", LONGEST_END.as_secs());
        Err(Failure::new(ErrorKind::Timeout, "context_busy", detail))
    })
}

/// Interrupts what a context executes; one that executes nothing takes no notice.
pub(crate) async fn interrupt(guest: &dyn Guest, running: &Running) -> Result<(), Failure> {
    Ok(guest.signal(&running.process, SIGINT).await?)
}

/// Ends a context, and starts it again with what it was started with.
pub(crate) async fn restart(guest: &dyn Guest, running: &Running) -> Result<Running, Failure> {
    // First: one whose beginning cannot be told goes on.
    let beginning = beginning(guest, running).await?;
    end(guest, running).await?;
    start(guest, beginning).await
}

/// What a context was started with. Only its process has its variables: they are read there.
pub(crate) async fn beginning(guest: &dyn Guest, running: &Running) -> Result<Beginning, Failure> {
    let Running { context, user, has_environment, process, .. } = running;
    let mut environment = BTreeMap::new();
    if *has_environment {
        let read = tokio::time::timeout(LONGEST_START, environment_of(guest, process)).await;
        environment = read.unwrap_or_else(|_| Err("the guest does not answer".to_owned())).map_err(|reason| {
            let detail = format!("the variables that the context was created with cannot be read again: {reason}; end it and create another");
            Failure::new(ErrorKind::Unavailable, "context_not_started", detail)
        })?;
    }
    Ok(Beginning { context: context.clone(), user: user.clone(), environment })
}

/// Variables that a process was started with. Those that are no text are left out: they were no request's.
async fn environment_of(guest: &dyn Guest, process: &ProcessId) -> Result<BTreeMap<String, String>, String> {
    let all = guest.processes().await.map_err(|error| error.to_string())?;
    let pid = all.iter().find(|one| one.id == *process).ok_or("it has ended")?.pid;
    let request = ExecRequest {
        command: vec!["cat".to_owned(), format!("/proc/{pid}/environ")],
        // Of any user's process.
        user: Some("0".to_owned()),
        ..ExecRequest::default()
    };
    let mut reader = guest.exec(&request).await.map_err(|error| error.to_string())?;
    let mut text = Vec::new();
    loop {
        match reader.events.next().await {
            Some(ProcessEvent::Stdout(bytes)) if text.len() + bytes.len() <= LONGEST_ENVIRONMENT => {
                text.extend_from_slice(&bytes);
            }
            Some(ProcessEvent::Stdout(_)) => return Err("they are too long".to_owned()),
            Some(ProcessEvent::Stderr(_)) => {}
            Some(ProcessEvent::Exited(status)) if status.whole_code() == 0 => return Ok(variables(&text)),
            Some(ProcessEvent::Lost(error)) => return Err(error.to_string()),
            Some(ProcessEvent::Exited(_) | ProcessEvent::UpToDate) | None => {
                return Err("`cat` failed in the guest".to_owned());
            }
        }
    }
}

/// Variables in the form of the kernel: each ends with a NUL.
fn variables(text: &[u8]) -> BTreeMap<String, String> {
    let pairs = text.split(|&byte| byte == 0).filter_map(|pair| {
        let (name, value) = std::str::from_utf8(pair).ok()?.split_once('=')?;
        (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_a_process_are_those_that_are_text() {
        let found = variables(b"A=1\0B=a=b\n c\0=odd\0none\0C=\xff\0D=\0\0");
        let wanted = [("A", "1"), ("B", "a=b\n c"), ("D", "")];
        assert_eq!(found, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

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
        assert_eq!((found.offsets.stdout, found.has_environment), (Some(5), false));
        let with = ["node", MARK_WITH_ENVIRONMENT, "b", "javascript", "/", ""];
        assert!(Running::of(process(&with)).unwrap().has_environment);
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
