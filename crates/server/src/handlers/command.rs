//! Commands before they are sent to a guest: what cannot be is refused by name, and what is too long for the arguments of a
//! program goes in as standard input.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use microvm_api::exec::CommandLine;
use microvm_types::exec::ExecRequest;
use microvm_types::{Action, ErrorKind};

use crate::bounds::{ARGUMENT_MAX, Bounds, MESSAGE_MAX, PROGRAM_MAX};
use crate::failure::Failure;

/// Longest name of a user, with its group. (FEATURES row A43.)
const USER_MAX: usize = 256;

/// Reads a script from standard input and runs it as `sh -c` would, with nothing on standard input. The words of a command are
/// expanded before its redirections are made (POSIX, XCU 2.9.1), so `eval` finds nothing more to read. Half a script, of a
/// server that was lost while it sent one, is not run: it may mean something else.
const FROM_INPUT: &str = r#"_microvm_script=$(cat)
case $_microvm_script in
*microvm-end-of-script) eval "unset _microvm_script
${_microvm_script%microvm-end-of-script}" </dev/null ;;
*) echo 'the script did not arrive whole and was not run' >&2; exit 125 ;;
esac"#;

/// Stands behind a script on standard input.
const END: &str = "microvm-end-of-script";

/// A command as a guest is asked for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Prepared {
    /// Program and arguments.
    pub(super) command: Vec<String>,
    /// What its standard input gets, and then the end.
    pub(super) input: Option<Bytes>,
}

/// A one-shot command, whose standard input is free to carry what is too long for arguments, or for one message together with the
/// `rest` of the request.
pub(super) fn prepared(line: CommandLine, rest: &ExecRequest, bounds: &Bounds) -> Result<Prepared, Failure> {
    let fits = |command: &[String]| encoded(command, rest) <= MESSAGE_MAX;
    let shell = |script: String| ["sh".to_owned(), "-c".to_owned(), script].to_vec();
    let by_input = |script: String| Prepared {
        command: shell(FROM_INPUT.to_owned()),
        input: Some((script + END).into()),
    };
    match line {
        CommandLine::Shell(text) => {
            length(text.len(), bounds)?;
            characters(&text)?;
            if text.len() > ARGUMENT_MAX {
                return Ok(by_input(text));
            }
            let command = shell(text);
            if fits(&command) {
                return Ok(Prepared { command, input: None });
            }
            Ok(by_input(command.into_iter().next_back().unwrap_or_default()))
        }
        CommandLine::Arguments(command) => {
            length(size(&command), bounds)?;
            arguments(&command)?;
            if fits(&command) {
                return Ok(Prepared { command, input: None });
            }
            // What `exec` below would be refused by the guest's system, after the whole of it was sent.
            program(&command, rest)?;
            // The shell makes way for the program: no process stands between.
            let mut script = "exec".to_owned();
            for word in &command {
                // Writing to a string cannot fail.
                let _ = write!(script, " '{}'", word.replace('\'', r"'\''"));
            }
            Ok(by_input(script))
        }
    }
}

/// Faults of a request that a caller wrote as it is, its length among them.
pub(super) fn check_written(request: &ExecRequest, bounds: &Bounds) -> Result<(), Failure> {
    length(size(&request.command), bounds)?;
    check(request, bounds)
}

/// Faults of a request that can be found before the guest is asked. The operator's limit of commands is for what callers write, see
/// [`check_written`] and [`prepared`]: words that the server adds are not theirs.
pub(super) fn check(request: &ExecRequest, bounds: &Bounds) -> Result<(), Failure> {
    arguments(&request.command)?;
    let bad = |(key, value): (&String, &String)| {
        key.is_empty() || key.contains(['=', '\0']) || value.contains('\0')
    };
    if let Some((key, _)) = request.environment.iter().find(|pair| bad(*pair)) {
        return refuse(format!(
            "environment: `{}` cannot be set, names hold no `=` and no NUL",
            key.escape_default()
        ));
    }
    let long = |(key, value): &(&String, &String)| key.len() + 1 + value.len() > ARGUMENT_MAX;
    if let Some((key, value)) = request.environment.iter().find(long) {
        return refuse(format!(
            "environment: the value of `{}` has {} bytes, and Linux gives a program at most {ARGUMENT_MAX} in one variable: put it \
             into a file",
            key.chars().take(40).collect::<String>().escape_default(),
            value.len()
        ));
    }
    let all = encoded(&request.command, request);
    if all > MESSAGE_MAX {
        return refuse(format!(
            "command: program, arguments, environment and working directory take {all} bytes together, four more for a word and twelve \
             for a variable, and a request carries at most {MESSAGE_MAX}: send the text on standard input, or copy a file into the VM \
             and name that"
        ));
    }
    program(&request.command, request)?;
    if request.user.as_ref().is_some_and(|user| user.len() > USER_MAX) {
        return refuse(format!("user: at most {USER_MAX} bytes are possible"));
    }
    match request.timeout_ms {
        Some(0) => refuse("timeout: zero is not possible, leave it out for none".to_owned()),
        Some(time) => duration("timeout_ms", Duration::from_millis(time), bounds),
        None => Ok(()),
    }
}

/// Refuses a time limit above the operator's.
pub(super) fn duration(field: &str, asked: Duration, bounds: &Bounds) -> Result<(), Failure> {
    if asked <= bounds.command_time {
        return Ok(());
    }
    let (asked, most) = (asked.as_secs_f64(), bounds.command_time.as_secs());
    let detail = format!("{field}: {asked} s is more than the limit of {most} s for a command: ask for less");
    Err(over_limit(field, detail))
}

fn arguments(command: &[String]) -> Result<(), Failure> {
    if command.first().is_none_or(String::is_empty) {
        return refuse("command: it is empty, name a program".to_owned());
    }
    for (index, word) in command.iter().enumerate() {
        characters(word)?;
        if word.len() > ARGUMENT_MAX {
            return refuse(format!(
                "command: word {} has {} bytes, and Linux gives a program at most {ARGUMENT_MAX} in one argument: send the text on \
                 standard input, or copy a file into the VM and name that",
                index + 1,
                word.len()
            ));
        }
    }
    Ok(())
}

fn characters(word: &str) -> Result<(), Failure> {
    if word.contains('\0') {
        return refuse("command: no argument may hold a NUL character".to_owned());
    }
    Ok(())
}

/// Refuses what is longer than the operator allows.
fn length(bytes: usize, bounds: &Bounds) -> Result<(), Failure> {
    let most = bounds.command_bytes;
    if bytes <= most {
        return Ok(());
    }
    let detail = format!(
        "command: it has {bytes} bytes, more than the limit of {most}: copy a file into the VM and run that"
    );
    Err(over_limit("command", detail))
}

/// Bytes of program and arguments, as they lie in a process.
fn size(command: &[String]) -> usize {
    command.iter().map(|word| word.len() + 1).sum()
}

/// At most so many bytes a request takes in its message: protobuf puts a tag of one byte and a length of up to three before each text, and
/// the same before each variable and before its name and its value.
fn encoded(command: &[String], rest: &ExecRequest) -> usize {
    let words: usize = command.iter().map(|word| word.len() + 4).sum();
    let variables: usize = rest.environment.iter().map(|(key, value)| key.len() + value.len() + 12).sum();
    let texts = [&rest.working_directory, &rest.user];
    words + variables + texts.into_iter().flatten().map(|text| text.len() + 4).sum::<usize>()
}

/// Refuses what Linux gives no program: arguments and variables, each with a NUL and a pointer.
fn program(command: &[String], rest: &ExecRequest) -> Result<(), Failure> {
    let words: usize = command.iter().map(|word| word.len() + 1 + 8).sum();
    let variables: usize = rest.environment.iter().map(|(key, value)| key.len() + value.len() + 2 + 8).sum();
    let all = words + variables;
    if all > PROGRAM_MAX {
        return refuse(format!(
            "command: {} words and {} variables take {all} bytes with the pointers to them, and Linux gives a program at most {PROGRAM_MAX}: \
             write them into a file in the VM, and have the program read that",
            command.len(),
            rest.environment.len()
        ));
    }
    Ok(())
}

fn over_limit(field: &str, detail: String) -> Failure {
    let mut failure = Failure::new(ErrorKind::Invalid, "over_limit", detail);
    failure.0.field = Some(field.to_owned());
    Failure(Box::new(failure.0.with_remedies(vec![Action::RaiseLimit.of(field)])))
}

fn refuse<T>(detail: String) -> Result<T, Failure> {
    Err(Failure::invalid("command_invalid", detail))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    fn request(command: &[&str]) -> ExecRequest {
        let command = command.iter().map(|&part| part.to_owned()).collect();
        ExecRequest { command, ..ExecRequest::default() }
    }

    fn refused(request: &ExecRequest) -> String {
        check(request, &Bounds::default()).unwrap_err().0.detail
    }

    #[test]
    fn impossible_commands_are_refused() {
        assert!(check(&request(&["true"]), &Bounds::default()).is_ok());
        for command in [&[][..], &[""], &["a\0b"]] {
            assert!(check(&request(command), &Bounds::default()).is_err(), "{command:?}");
        }
        let long = "x".repeat(ARGUMENT_MAX);
        assert!(check(&request(&["true", &long]), &Bounds::default()).is_ok());
        let told = refused(&request(&["true", &format!("{long}x")]));
        assert!(
            told.starts_with("command: word 2 has 131072 bytes") && told.contains("standard input"),
            "{told}"
        );
        let told = refused(&request(&["true", &long, &long]));
        assert!(told.contains("262158 bytes together"), "{told}");
        let deep = ExecRequest { working_directory: Some("/x".repeat(131_072)), ..request(&["true"]) };
        assert!(refused(&deep).contains("working directory take 262156 bytes"), "{}", refused(&deep));
        let variable = |value: String| {
            let environment = [("BIG".to_owned(), value)].into();
            ExecRequest { environment, ..request(&["true"]) }
        };
        assert!(refused(&variable(long)).starts_with("environment: the value of `BIG`"));
        assert!(refused(&variable("a\0".to_owned())).starts_with("environment: `BIG`"));
        let user = ExecRequest { user: Some("u".repeat(257)), ..request(&["true"]) };
        assert!(refused(&user).starts_with("user: at most 256"));
    }

    #[test]
    fn limits_of_the_operator_are_named_and_hold_for_every_form() {
        let bounds =
            Bounds { command_time: Duration::from_secs(60), command_bytes: 1024, ..Bounds::default() };
        let words = |length: usize| CommandLine::Arguments(vec!["echo".to_owned(), "x".repeat(length)]);
        let none = ExecRequest::default();
        for line in [CommandLine::Shell("x".repeat(1024)), words(1018)] {
            // What is as long as it may be passes both looks, also with the words that the server adds.
            let Prepared { command, .. } = prepared(line, &none, &bounds).unwrap();
            check(&ExecRequest { command, ..ExecRequest::default() }, &bounds).unwrap();
        }
        for line in [CommandLine::Shell("x".repeat(1025)), words(1019)] {
            let problem = prepared(line, &none, &bounds).unwrap_err().0;
            assert_eq!((problem.code.as_str(), problem.field.as_deref()), ("over_limit", Some("command")));
            assert!(problem.detail.contains("limit of 1024"), "{}", problem.detail);
        }
        assert!(check_written(&request(&["echo", &"x".repeat(1018)]), &bounds).is_ok());
        assert!(check_written(&request(&["echo", &"x".repeat(1019)]), &bounds).is_err());
        let timed = |timeout_ms| ExecRequest { timeout_ms, ..request(&["true"]) };
        assert!(check(&timed(Some(60_000)), &bounds).is_ok() && check(&timed(None), &bounds).is_ok());
        let problem = check(&timed(Some(60_001)), &bounds).unwrap_err().0;
        assert_eq!((problem.code.as_str(), problem.field.as_deref()), ("over_limit", Some("timeout_ms")));
        assert!(problem.detail.contains("60.001 s is more than the limit of 60 s"), "{}", problem.detail);
        assert!(check(&timed(Some(0)), &bounds).is_err());
    }

    /// Runs it by a shell of this host, as a guest would.
    fn run(Prepared { command, input }: Prepared) -> (Option<i32>, String) {
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        if let (Some(bytes), Some(mut pipe)) = (input, child.stdin.take()) {
            pipe.write_all(&bytes).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    #[test]
    fn a_script_of_a_mebibyte_runs_like_a_short_one() {
        let tail = "\necho \"$0 $# ${#filler}\"; cat; cat <<'end'\na 'b' \"c\" \\ $d\nend\nset -e; false; echo not here\n";
        let script = |length: usize| {
            let filler = length - tail.len() - "filler=''".len();
            CommandLine::Shell(format!("filler='{}'{tail}", "x".repeat(filler)))
        };
        let told = |filler: usize| format!("sh 0 {filler}\na 'b' \"c\" \\ $d\n");
        for (length, by_input) in
            [(1000, false), (ARGUMENT_MAX, false), (ARGUMENT_MAX + 1, true), (1 << 20, true)]
        {
            let prepared = prepared(script(length), &ExecRequest::default(), &Bounds::default()).unwrap();
            assert_eq!(prepared.input.is_some(), by_input, "{length}");
            assert_eq!(run(prepared), (Some(1), told(length - tail.len() - 9)), "{length}");
        }
        assert!(prepared(script((1 << 20) + 1), &ExecRequest::default(), &Bounds::default()).is_err());
    }

    #[test]
    fn half_a_script_is_not_run() {
        let script = format!("echo one\n{}", "#\n".repeat(ARGUMENT_MAX));
        let line = CommandLine::Shell(script);
        let Prepared { command, input } =
            prepared(line, &ExecRequest::default(), &Bounds::default()).unwrap();
        let whole = input.unwrap();
        for length in [0, 9, 200_000, whole.len() - 1] {
            let half = Prepared { command: command.clone(), input: Some(whole.slice(..length)) };
            assert_eq!(run(half), (Some(125), String::new()), "{length}");
        }
        assert_eq!(run(Prepared { command, input: Some(whole) }), (Some(0), "one\n".to_owned()));
    }

    #[test]
    fn arguments_beyond_one_message_reach_the_program_as_they_are() {
        let odd = "a'b \"$c\" `d` \\ \n*";
        let words = |count: usize| {
            let filler = std::iter::repeat_n("y".repeat(1000), count);
            let script = r#"echo "$#"; printf %s "$1"; cat; exit 7"#;
            let fixed = ["sh", "-c", script, "zero", odd].map(str::to_owned);
            CommandLine::Arguments(fixed.into_iter().chain(filler).collect())
        };
        for (count, by_input) in [(2, false), (1000, true)] {
            let prepared = prepared(words(count), &ExecRequest::default(), &Bounds::default()).unwrap();
            assert_eq!(prepared.input.is_some(), by_input);
            assert_eq!(run(prepared), (Some(7), format!("{}\n{odd}", count + 1)));
        }
    }

    #[test]
    fn the_way_in_is_chosen_by_the_whole_request_as_it_is_sent() {
        let way = |line: CommandLine, rest: &ExecRequest| {
            let prepared = prepared(line, rest, &Bounds::default()).unwrap();
            let by_input = prepared.input.is_some();
            let sent = ExecRequest {
                command: prepared.command,
                environment: rest.environment.clone(),
                ..ExecRequest::default()
            };
            check(&sent, &Bounds::default()).unwrap();
            by_input
        };
        let none = ExecRequest::default();
        let variable = |bytes: usize| ExecRequest {
            environment: [("BIG".to_owned(), "v".repeat(bytes))].into(),
            ..ExecRequest::default()
        };
        let words = |count: usize| CommandLine::Arguments(vec!["x".to_owned(); count]);
        // Five bytes each in a message, though two in a process.
        assert!(!way(words(52_000), &none) && way(words(53_000), &none));
        // Either would go by itself.
        assert!(!way(words(30_000), &none) && way(words(30_000), &variable(120_000)));
        let text = || CommandLine::Shell(format!("true {}", "x".repeat(ARGUMENT_MAX - 5)));
        assert!(!way(text(), &variable(120_000)));
        let three = ExecRequest {
            environment: ["A", "B"].map(|name| (name.to_owned(), "v".repeat(100_000))).into(),
            ..ExecRequest::default()
        };
        assert!(way(text(), &three));
        let many = prepared(words(250_000), &none, &Bounds::default()).unwrap_err().0.detail;
        assert!(many.contains("250000 words") && many.contains("Linux gives a program"), "{many}");
        assert!(way(words(190_000), &none));
    }
}
