//! Languages of contexts: how the interpreter of each is started, and how it is asked.

use std::borrow::Cow;
use std::fmt::Write as _;

use microvm_api::context::{ExecuteCode, Language};
use microvm_ports::guest::ProcessInput;
use serde::Serialize;

use crate::failure::Failure;

/// Reads the program from the first line of standard input: the command stays short, and the guest gets no file.
const PYTHON_STUB: &str = "import json,os;requests=os.fdopen(os.dup(0),'rb');exec(compile(json.loads(requests.readline()),'<kernel>','exec'))";
/// The same; byte by byte, so that nothing is read that belongs to requests.
const NODE_STUB: &str = "const{readSync}=require('fs');let t='';for(const b=Buffer.alloc(1);readSync(3,b)&&b[0]!==10;)t+=b;(0,eval)(JSON.parse(t))";
/// Moves requests to descriptor 3. Status 127 tells of a guest without the program.
const NODE_STARTER: &str = "exec node -e \"$0\" \"$@\" 3<&0 </dev/null";

const PYTHON_KERNEL: &str = include_str!("python_kernel.py");
const NODE_KERNEL: &str = include_str!("node_kernel.js");
const BASH_KERNEL: &str = include_str!("bash_kernel.sh");

/// Beginning of a command that starts the interpreter of a language; the words that say what context it is follow.
pub(super) const fn command(language: Language) -> &'static [&'static str] {
    match language {
        Language::Python => &["python3", "-u", "-c", PYTHON_STUB],
        Language::JavaScript => &["sh", "-c", NODE_STARTER, NODE_STUB],
        Language::Bash => &["bash", "--noediting", "--norc", "--noprofile", "+m", "-i", "-s"],
    }
}

/// Program of the guest that a language needs, and the Debian package that has it.
pub(super) const fn needed(language: Language) -> (&'static str, &'static str) {
    match language {
        Language::Python => ("python3", "python3"),
        Language::JavaScript => ("node", "nodejs"),
        Language::Bash => ("bash", "bash"),
    }
}

/// First input of an interpreter: our part of it.
pub(super) fn kernel(language: Language) -> serde_json::Result<Vec<u8>> {
    let mut text = match language {
        Language::Python => serde_json::to_vec(PYTHON_KERNEL)?,
        Language::JavaScript => serde_json::to_vec(NODE_KERNEL)?,
        Language::Bash => BASH_KERNEL.as_bytes().to_vec(),
    };
    text.push(b'\n');
    Ok(text)
}

/// Code for the interpreter. It runs when [`Run`] follows and not before, so what is given up in a queue never does.
#[derive(Serialize)]
struct Load<'a> {
    id: u64,
    code: &'a str,
    env: Option<&'a std::collections::BTreeMap<String, String>>,
    interactive: bool,
}

/// Runs the code with this id, if it was loaded last.
#[derive(Serialize)]
struct Run {
    id: u64,
    run: bool,
}

/// Refuses a request that a language cannot carry.
pub(super) fn check(language: Language, request: &ExecuteCode) -> Result<(), Failure> {
    if language != Language::Bash {
        return Ok(());
    }
    if request.code.contains('\0') {
        return Err(Failure::invalid("invalid_field", "code: bash takes no NUL"));
    }
    let is_name = |name: &str| {
        let mut bytes = name.bytes();
        bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    match request.env.iter().flatten().map(|(name, _)| name).find(|name| !is_name(name)) {
        None => Ok(()),
        Some(name) => {
            let detail = format!("env: `{}` is no name of a variable in bash", name.escape_debug());
            Err(Failure::invalid("invalid_field", detail))
        }
    }
}

/// Has the interpreter take code, without running it.
pub(super) fn load(language: Language, id: u64, request: &ExecuteCode) -> Result<ProcessInput, Failure> {
    let ExecuteCode { code, env, interactive, .. } = request;
    if language != Language::Bash {
        return line_of(&Load { id, code, env: env.as_ref(), interactive: *interactive });
    }
    // The line before may have been cut off behind a backslash, which takes the first end of line with it.
    let mut lines = format!("\n\n__microvm_load {id} {}\n", word(code));
    for (name, value) in env.iter().flatten() {
        let _ = writeln!(lines, "__microvm_set {id} {name} {}", word(value));
    }
    Ok(ProcessInput::Stdin(lines.into_bytes().into()))
}

/// Runs code that was loaded.
pub(super) fn run(language: Language, id: u64, request: &ExecuteCode) -> Result<ProcessInput, Failure> {
    if language != Language::Bash {
        return line_of(&Run { id, run: true });
    }
    // What the shell traces of our own lines, and what traps of the code print there, is nobody's output. Traps are read and put away at
    // the top: functions have none of them.
    let interactive = u8::from(request.interactive);
    let lines = format!(
        "\n\n{{ __microvm_begin {id} {interactive}; }} >/dev/null 2>&1\n\
         trap - INT; __microvm_status=; [ \"$__microvm_ready$__microvm_late\" != 10 ] || eval \"$__microvm_code\" </dev/null 198>&- 199>&-; \
         {{ __microvm_status=$?; __microvm_quiet; }} >/dev/null 2>&1\n\
         {{ __microvm_last=$?; __microvm_traps=$(trap -p INT DEBUG); trap - DEBUG; trap '__microvm_late=1' INT; \
         __microvm_end {id} \"$__microvm_last\" \"$__microvm_status\"; }} >/dev/null 2>&1\n"
    );
    Ok(ProcessInput::Stdin(lines.into_bytes().into()))
}

/// A line of JSON. The line before it may have been cut off: an empty one ends it.
fn line_of(request: &impl Serialize) -> Result<ProcessInput, Failure> {
    let mut line = vec![b'\n'];
    serde_json::to_writer(&mut line, request)
        .map_err(|error| Failure::invalid("code_invalid", error.to_string()))?;
    line.push(b'\n');
    Ok(ProcessInput::Stdin(line.into()))
}

/// Text as one word of a shell, for `printf %b`. It has no quotes, so that a line that is cut off leaves none open.
fn word(text: &str) -> String {
    let mut word = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        let piece: Cow<'_, str> = match byte {
            b'\n' => r"\\n".into(),
            b'\t' => r"\\t".into(),
            b'\\' => r"\\\\".into(),
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                word.push(char::from(byte));
                continue;
            }
            b' '..=b'~' => format!(r"\{}", char::from(byte)).into(),
            _ => format!(r"\\0{byte:03o}").into(),
        };
        word.push_str(&piece);
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_shell_are_what_they_were() {
        let text: String = (1..=0x2ff).filter_map(char::from_u32).chain(r"\\n \n $(x) `y`".chars()).collect();
        let script = format!("printf %b {}", word(&text));
        let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
    }

    #[test]
    fn what_bash_cannot_take_is_refused_by_name() {
        let code = ExecuteCode::new("echo a\0b");
        assert!(check(Language::Python, &code).is_ok());
        assert!(check(Language::Bash, &code).unwrap_err().0.detail.contains("NUL"));
        for name in ["A-B", "1A", "A B", "A;reboot", "é", "A[1]"] {
            let env = Some([(name.to_owned(), String::new())].into());
            let refused = check(Language::Bash, &ExecuteCode { env, ..ExecuteCode::new("") }).unwrap_err();
            assert!(refused.0.detail.contains(name), "{}", refused.0.detail);
        }
        let env = Some([("_A1".to_owned(), "any $(x)".to_owned())].into());
        assert!(check(Language::Bash, &ExecuteCode { env, ..ExecuteCode::new("") }).is_ok());
    }
}
