//! The interpreters themselves, with those of this host.

use microvm_api::context::{ExecuteCode, Language};
use microvm_ports::guest::ProcessInput;

use super::language;
use super::test_kernel::{Kernel, Ran};

/// Each language has a test of its own, so that one that is missing here is told of.
macro_rules! of_each_language {
    ($($name:ident: $work:ident;)*) => {$(
        mod $name {
            use microvm_api::context::Language;

            #[test]
            fn python() {
                super::$work(Language::Python);
            }

            #[test]
            fn javascript() {
                super::$work(Language::JavaScript);
            }

            #[test]
            fn bash() {
                super::$work(Language::Bash);
            }
        }
    )*};
}

of_each_language! {
    code_that_was_given_up_never_runs_and_cut_lines_are_skipped: given_up;
    an_interrupt_ends_code_and_children_of_it_and_keeps_state: interrupted;
    output_errors_and_environment_are_those_of_the_code: outputs;
    more_lines_are_asked_for: incomplete;
}

/// Code that sets, and that prints, a variable.
fn set(language: Language, value: u32) -> String {
    match language {
        Language::Python | Language::Bash => format!("x={value}"),
        Language::JavaScript => format!("const x = {value}; undefined"),
    }
}

fn print(language: Language) -> &'static str {
    match language {
        Language::Python => "print(x)",
        Language::JavaScript => "console.log(x)",
        Language::Bash => "echo $x",
    }
}

fn given_up(language: Language) {
    let Some(mut kernel) = Kernel::start(language) else { return };
    assert_eq!(kernel.does(1, &set(language, 1)), Ran::default());
    kernel.load(2, &set(language, 2));
    // A request that is cut off anywhere is no harm to the next.
    let whole = match language::load(language, 30, &ExecuteCode::new("x=$(\"a b\" 'c\\d' é \n`) (")).unwrap()
    {
        ProcessInput::Stdin(bytes) => bytes,
        _ => unreachable!(),
    };
    for cut in 0..whole.len() - 1 {
        kernel.send(&whole[..cut]);
        kernel.load(40 + cut as u64, "");
    }
    kernel.load(3, print(language));
    // What was given up does not run, whoever asks.
    kernel.begin(2, &ExecuteCode::new(""));
    assert_eq!(kernel.run(3), Ran { stdout: "1\n".to_owned(), ..Ran::default() });
    for bad in ["", "[1]", "5", "{}", "\u{1}", "{\"id\": 4, \"run\": true}", "[1]"] {
        kernel.send(format!("{bad}\n").as_bytes());
    }
    assert_eq!(kernel.does(5, print(language)).stdout, "1\n");
}

// Not of Node: it hears of a signal through its event loop, before or after a request that comes at the same time.
#[test]
fn an_interrupt_before_the_code_begins_is_not_lost_and_one_of_an_idle_context_is() {
    for language in [Language::Python, Language::Bash] {
        interrupted_early(language);
    }
}

fn interrupted_early(language: Language) {
    let Some(mut kernel) = Kernel::start(language) else { return };
    kernel.interrupt();
    assert_eq!(kernel.does(1, &set(language, 1)), Ran::default());
    kernel.load(2, &set(language, 2));
    kernel.interrupt();
    let ran = kernel.run(2);
    assert!(["KeyboardInterrupt", "Interrupted"].contains(&ran.error()), "{ran:?}");
    assert_eq!(kernel.does(3, print(language)).stdout, "1\n");
}

fn interrupted(language: Language) {
    let Some(mut kernel) = Kernel::start(language) else { return };
    kernel.does(1, &set(language, 1));
    // A shell that is between two of its forks when the signal comes starts the second all the same, and that one never
    // hears of it: nothing forks any more once `begun` is there.
    let busy = match language {
        Language::Python => {
            ["print('begun')\nwhile True: pass", "import os; os.system('echo begun; exec sleep 100')"]
        }
        // Node loses a signal that comes as code returns to its event loop: the second is in the loop when it says so.
        Language::JavaScript => [
            "console.log('begun'); while (true);",
            "await new Promise((done) => setTimeout(done, 1)); console.log('begun'); await new Promise(() => {})",
        ],
        Language::Bash => [
            "f() { while :; do :; done; }; echo begun; f; x=2",
            "sh -c 'echo begun; exec sleep 100' | cat; x=2",
        ],
    };
    // Often: the first one may come in the middle of the output that is waited for.
    for (id, code) in (2..).zip(busy.into_iter().cycle().take(12)) {
        let ran = kernel.does_until_begun(id, code);
        // The shell that Python's `os.system` starts takes the interrupt for itself.
        assert!(
            ["KeyboardInterrupt", "Interrupted"].contains(&ran.error()) || language == Language::Python,
            "{ran:?}"
        );
        assert_eq!(ran.stdout, "begun\n");
    }
    assert_eq!(kernel.does(90, print(language)).stdout, "1\n");
}

fn outputs(language: Language) {
    let Some(mut kernel) = Kernel::start(language) else { return };
    let (code, name) = match language {
        Language::Python => (
            "import os, sys\nprint('é€' + os.environ['A'])\nprint('of errors', file=sys.stderr)\nnothing",
            "NameError",
        ),
        Language::JavaScript => {
            ("console.log('é€' + process.env.A); console.error('of errors'); nothing", "ReferenceError")
        }
        Language::Bash => ("echo 'é€'$A; echo 'of errors' >&2; (exit 7)", "ExitStatus"),
    };
    let env =
        Some([("A".to_owned(), "a 'b'\n\\n".to_owned()), ("PATH_OF_NONE".to_owned(), String::new())].into());
    let request = ExecuteCode { env, ..ExecuteCode::new(code) };
    kernel.load_all(1, &request);
    let ran = kernel.run(1);
    // A shell splits what it puts in.
    let value = if language == Language::Bash { "a 'b' \\n" } else { "a 'b'\n\\n" };
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), (format!("é€{value}\n").as_str(), "of errors\n"));
    assert_eq!(ran.error(), name);
    // The variables were for that execution, standard input is empty, and the other ones are as they were.
    let code = match language {
        Language::Python => {
            "import sys\nprint(os.environ.get('A', 'none'), repr(sys.stdin.read()), 'HOME' in os.environ)"
        }
        Language::JavaScript => {
            "console.log(process.env.A ?? 'none', `'${require('fs').readFileSync(0)}'`, 'HOME' in process.env ? 'True' : '')"
        }
        Language::Bash => "echo ${A-none} \"'$(cat)'\" ${HOME:+True}",
    };
    assert_eq!(kernel.does(2, code).stdout, "none '' True\n");
    let long = match language {
        Language::Python => "print('é' * 300_000)",
        Language::JavaScript => "console.log('é'.repeat(300_000))",
        Language::Bash => "printf 'é%.0s' {1..300000}; echo",
    };
    assert_eq!(kernel.does(3, long).stdout.chars().filter(|&one| one == 'é').count(), 300_000);
}

fn incomplete(language: Language) {
    let Some(mut kernel) = Kernel::start(language) else { return };
    let (head, wrong) = match language {
        Language::Python => ("for n in range(2):\n", "1 +* 2"),
        Language::JavaScript => ("for (const n of [1]) {\n", "1 +* 2"),
        Language::Bash => ("for n in 1; do\n", "if then"),
    };
    for (id, code, is_incomplete) in [(1, head, true), (2, wrong, false)] {
        let request = ExecuteCode { interactive: true, ..ExecuteCode::new(code) };
        kernel.load_all(id, &request);
        kernel.begin(id, &request);
        let ran = kernel.follow(id, |_, _| {});
        assert_eq!((ran.incomplete, ran.error.is_some()), (is_incomplete, !is_incomplete), "{ran:?}");
    }
}

#[test]
fn javascript_shows_values_and_takes_declarations_again() {
    let Some(mut kernel) = Kernel::start(Language::JavaScript) else { return };
    for (id, (code, wanted)) in (1..).zip([
        ("const x = 1; x", "1"),
        ("const x = await Promise.resolve(2); x", "2"),
        ("class A { a = [5n, -0, 'é'] }; new A()", "A { a: [ 5n, -0, 'é' ] }"),
        ("globalThis.JSON = null; Object.prototype.odd = 1; process.stdout.write = null; _.a[0]", "5n"),
        ("({ get [Symbol.toStringTag]() { throw 5 } })", "a value that cannot be shown"),
        ("'\\ud800'", "'\\ud800'"),
    ]) {
        let ran = kernel.does(id, code);
        assert_eq!((ran.results.as_slice(), ran.error), ([wanted.to_owned()].as_slice(), None), "{code}");
    }
    let ran = kernel.does(20, "throw { a: 1 }");
    assert_eq!(ran.error, Some(("Error".to_owned(), "{ a: 1 }".to_owned())));
}

#[test]
fn bash_keeps_what_a_shell_keeps() {
    let Some(mut kernel) = Kernel::start(Language::Bash) else { return };
    let setup = "cd /; declare -A m=([k]=v); f() { echo \"f $1\"; }; alias hi='echo hello'; set -ux; IFS=:; PS1='prompt '";
    let ran = kernel.does(1, setup);
    assert_eq!((ran.stderr.as_str(), ran.error), ("++ IFS=:\n++ PS1='prompt '\n", None));
    let ran = kernel.does(2, "hi; f ${m[k]}; pwd");
    assert_eq!((ran.stdout.as_str(), &ran.error), ("hello\nf v\n/\n", &None));
    assert!(ran.stderr.starts_with("++ ") && !ran.stderr.contains("microvm"), "{}", ran.stderr);
    let ran = kernel.does(3, "set +x; echo $missing; echo never");
    assert_eq!((ran.stdout.as_str(), ran.error()), ("", "ExitStatus"));
    let readonly = Some([("UID".to_owned(), "0".to_owned())].into());
    kernel.load_all(4, &ExecuteCode { env: readonly, ..ExecuteCode::new("echo never") });
    let ran = kernel.run(4);
    assert_eq!((ran.stdout.as_str(), ran.error), ("", Some(("ReadOnly".to_owned(), "UID".to_owned()))));
    // Output may go elsewhere from now on; the end is told nevertheless.
    assert_eq!(kernel.does(5, "exec >/dev/null 2>&1; echo gone"), Ran::default());
    assert_eq!(kernel.does(6, "(exit 3)").error, Some(("ExitStatus".to_owned(), "3".to_owned())));
}

#[test]
fn a_fork_in_the_last_expression_leaves_one_interpreter() {
    let Some(mut kernel) = Kernel::start(Language::Python) else { return };
    let ran = kernel.does(1, "import os\nparent = os.getpid()\nos.fork()");
    assert_eq!(ran.results.len(), 1, "{ran:?}");
    assert_eq!(kernel.does(2, "os.waitpid(-1, 0)[1], os.getpid() == parent").results, ["(0, True)"]);
}

#[test]
fn forms_that_are_no_json_are_left_out_and_named() {
    let Some(mut kernel) = Kernel::start(Language::Python) else { return };
    let class = "class Odd:\n    def __init__(self, value): self.value = value\n    \
                 def _repr_json_(self): return self.value\n    def __repr__(self): return 'odd'\n";
    kernel.does(1, class);
    let deep = "import functools\nOdd(functools.reduce(lambda inner, _: [inner], range(300), 1))";
    let codes = ["Odd({'a': float('nan')})", "Odd([float('inf')])", "Odd(10 ** 1000)", deep];
    for (id, code) in (2..).zip(codes) {
        let result = kernel.value(id, code);
        assert_eq!((result.text.as_deref(), &result.json), (Some("odd"), &None), "{code}");
        let left_out = result.extra["left_out"][0].as_str().unwrap();
        assert!(left_out.starts_with("json ("), "{left_out}");
    }
    assert_eq!(kernel.value(9, "Odd([1, {'a': 2}])").json, Some(serde_json::json!([1, {"a": 2}])));
}

#[test]
fn javascript_bears_names_of_its_own_declared_again_and_promises_as_values() {
    let Some(mut kernel) = Kernel::start(Language::JavaScript) else { return };
    for (id, (code, wanted)) in (1..).zip([
        ("const process = 1, Number = 2, globalThis = 3, Symbol = 4; Number", "2"),
        ("new Promise(() => {})", "Promise { <pending> }"),
        ("var asked = 0; ({ then() { asked += 1 } })", "{ then: [Function: then] }"),
        ("asked", "0"),
    ]) {
        let ran = kernel.does(id, code);
        assert_eq!((ran.results.as_slice(), ran.error), ([wanted.to_owned()].as_slice(), None), "{code}");
    }
    assert_eq!(kernel.does(20, "throw null").error, Some(("Error".to_owned(), "null".to_owned())));
    let request =
        ExecuteCode { interactive: true, ..ExecuteCode::new("for (const u of [1]) {\n await u;\n") };
    kernel.load_all(21, &request);
    kernel.begin(21, &request);
    assert!(kernel.follow(21, |_, _| {}).incomplete);
}

#[test]
fn bash_bears_options_and_variables_that_code_may_set() {
    let Some(mut kernel) = Kernel::start(Language::Bash) else { return };
    assert_eq!(kernel.does(1, "readonly PS1=; IFS=01; set -eu").error, None);
    let env = Some([("NEW".to_owned(), "v".to_owned())].into());
    kernel.load_all(2, &ExecuteCode { env, ..ExecuteCode::new("echo $NEW") });
    let ran = kernel.run(2);
    assert_eq!((ran.stdout.as_str(), ran.error), ("v\n", None));
    for (id, code, is_incomplete) in
        [(3, "for n in 1; do\n", true), (4, "echo a\\\n", true), (5, "echo a\\\\\n", false)]
    {
        let request = ExecuteCode { interactive: true, ..ExecuteCode::new(code) };
        kernel.load_all(id, &request);
        kernel.begin(id, &request);
        let ran = kernel.follow(id, |_, _| {});
        assert_eq!((ran.incomplete, ran.error), (is_incomplete, None), "{code}");
    }
    assert_eq!(kernel.does(6, "set +e; (exit 130)").error, Some(("ExitStatus".to_owned(), "130".to_owned())));
}
