//! Interpreters that stay: their variables live through pauses, forks, snapshots and servers.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::process::Stdio;

use support::{Home, text};

/// Exit code, standard output and standard error of code.
fn code(home: &Home, vm: &str, arguments: &[&str]) -> (i32, String, String) {
    let output = home.run(&[&["code", vm], arguments].concat());
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// What code prints, which has to end well.
fn says(home: &Home, vm: &str, source: &str) -> String {
    let (exit, out, error) = code(home, vm, &["-c", source]);
    assert_eq!(exit, 0, "{source}: {out}{error}");
    out.trim_end().to_owned()
}

#[test]
fn a_shell_stays_and_children_have_it_and_a_language_without_interpreter_is_named() {
    let Some(home) = Home::open() else { return };
    let bash = |vm: &str, source: &str| code(&home, vm, &["--language", "bash", "-c", source]);
    let says = |vm: &str, source: &str| {
        let (exit, out, error) = bash(vm, source);
        assert_eq!(exit, 0, "{source}: {out}{error}");
        out
    };
    home.must(&["create", "--name", "dev"]);
    assert_eq!(says("dev", "cd /srv; word=first; f() { echo \"$word $PWD\"; }; f"), "first /srv\n");
    let (exit, out, error) = bash("dev", "f; echo of errors >&2; (exit 7)");
    assert_eq!((exit, out.as_str(), error.as_str()), (1, "first /srv\n", "of errors\nexit status 7\n"));
    let (exit, _, error) = code(
        &home,
        "dev",
        &["-l", "bash", "--timeout", "1s", "-c", "word=second; while :; do :; done; word=no"],
    );
    assert!(exit == 1 && error.contains("longer than 1 s"), "{error}");

    home.must(&["fork", "dev", "--name", "child"]);
    home.must(&["snapshot", "create", "dev", "--name", "state"]);
    assert_eq!(says("child", "word=child; f"), "child /srv\n");
    home.kill_server();
    assert_eq!(says("dev", "f"), "second /srv\n");
    home.must(&["restore", "state", "--name", "again"]);
    assert_eq!(says("again", "f"), "second /srv\n");

    // A file's ending names the language, and each language has its own context.
    let file = home.root().join("two.sh");
    std::fs::write(&file, "f").unwrap();
    assert_eq!(code(&home, "dev", &[file.to_str().unwrap()]).1, "second /srv\n");
    assert_eq!(self::says(&home, "dev", "1 + 1"), "2");
    let list = home.must(&["code", "dev", "--list"]);
    assert!(list.contains("bash") && list.contains("python"), "{list}");
    // A shell that the code ends is begun anew, without its variables.
    let (exit, _, error) = bash("dev", "exit 3");
    assert!(exit == 106 && error.contains("interpreter"), "{exit} {error}");
    assert_eq!(says("dev", "echo ${word-none}"), "none\n");

    let (exit, _, error) = code(&home, "dev", &["-l", "javascript", "-c", "1"]);
    assert!(
        exit == 104 && error.contains("has no node") && error.contains("packages: [nodejs]"),
        "{exit} {error}"
    );
    home.must(&["rm", "--all"]);
}

#[test]
fn variables_stay_and_children_have_them() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    assert_eq!(says(&home, "dev", "import math\ndata = [1, 2]\nprint('ready')\nlen(data)"), "ready\n2");
    assert_eq!(says(&home, "dev", "def double(): return [2 * n for n in data]"), "");
    assert_eq!(says(&home, "dev", "double(), math.factorial(5)"), "([2, 4], 120)");

    let (exit, out, error) = code(&home, "dev", &["-c", "print('before')\ndata.missing()"]);
    assert_eq!((exit, out.as_str()), (1, "before\n"));
    assert!(error.contains("AttributeError") && error.contains("data.missing()"), "{error}");
    assert!(!error.contains("<kernel>"), "{error}");
    let lines = home.json(&["code", "dev", "-c", "import os; os.system('echo of a child'); {'a': 1}"]);
    let kinds: Vec<&str> =
        lines.as_array().unwrap().iter().map(|line| line["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["number_of_executions", "stdout", "result"], "{lines}");
    assert_eq!(lines[1]["text"], "of a child\n");
    assert_eq!((&lines[2]["text"], &lines[2]["is_main_result"]), (&"{'a': 1}".into(), &true.into()));
    let long = code(&home, "dev", &["-c", "print('é' * 1_000_000)"]);
    assert_eq!((long.0, long.1.chars().count()), (0, 1_000_001), "{}", long.2);

    let (exit, _, error) = code(&home, "dev", &["--timeout", "1s", "-c", "while True: pass"]);
    assert!(exit == 1 && error.contains("TimeoutError") && error.contains("longer than 1 s"), "{error}");

    // The child and the restored VM begin with what the parent had at that moment, each for itself.
    home.must(&["pause", "dev"]);
    home.must(&["resume", "dev"]);
    home.must(&["fork", "dev", "--name", "child"]);
    home.must(&["snapshot", "create", "dev", "--name", "at-two"]);
    assert_eq!(says(&home, "child", "data.append(3); double()"), "[2, 4, 6]");
    assert_eq!(says(&home, "dev", "data.append(9); double()"), "[2, 4, 18]");
    home.must(&["restore", "at-two", "--name", "again"]);
    assert_eq!(says(&home, "again", "double()"), "[2, 4]");
    home.kill_server();
    assert_eq!(says(&home, "dev", "data"), "[1, 2, 9]");

    // One more context has variables of its own.
    let other = home.must(&["code", "dev", "--new"]).trim().to_owned();
    let (exit, _, error) = code(&home, "dev", &["--context", &other, "-c", "data"]);
    assert!(exit == 1 && error.contains("NameError"), "{error}");
    let list = home.must(&["code", "dev", "--list"]);
    assert!(list.contains("python") && list.contains(&other), "{list}");
    home.must(&["code", "dev", "--end", "--context", &other]);
    assert_eq!(code(&home, "dev", &["--context", &other, "-c", "1"]).0, 102);
    home.must(&["code", "dev", "--restart"]);
    assert_eq!(code(&home, "dev", &["-c", "data"]).0, 1);
    let (exit, _, error) = code(&home, "dev", &["-c", "import os; os._exit(3)"]);
    assert!(exit == 106 && error.contains("interpreter"), "{exit} {error}");
    assert_eq!(says(&home, "dev", "'new'"), "'new'");

    let ids = home.ids();
    home.must(&["rm", "--all"]);
    home.expect_nothing_left(&ids);
}

#[test]
fn what_is_busy_says_so_and_ends_nevertheless() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    let made = home.must(&["code", "dev", "--new", "-e", "WORD=a \"b\" é"]).trim().to_owned();
    let in_made = |arguments: &[&str]| code(&home, "dev", &[&["--context", &made], arguments].concat());
    let word = &["-c", "import os; os.environ['WORD']"];
    assert_eq!(in_made(word).1, "'a \"b\" é'\n");
    assert!(!home.must(&["code", "dev", "--list"]).contains("WORD"));
    home.must(&["code", "dev", "--restart", "--context", &made]);
    assert_eq!(in_made(word).1, "'a \"b\" é'\n", "its variables are those of its creation");

    // Code that takes no notice of an interrupt: it is given up, and the next is told what is going on.
    let deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass";
    let (exit, _, error) = in_made(&["--timeout", "1s", "-c", deaf]);
    assert!(exit == 107 && error.contains("goes on although it was interrupted"), "{exit} {error}");
    let (exit, _, error) = in_made(&["-c", "1"]);
    assert!(exit == 107 && error.contains("busy with code that was given up"), "{exit} {error}");
    home.must(&["code", "dev", "--restart", "--context", &made]);
    assert_eq!(in_made(word).1, "'a \"b\" é'\n");

    // One whose turn does not come in its time, and an end while code runs.
    let begun = "open('/tmp/begun', 'w').close()\nimport time; time.sleep(300)";
    let mut runs = home.command(&["code", "dev", "--context", &made, "-c", begun]);
    let runs = runs.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    home.must(&["exec", "dev", "--", "sh", "-c", "until [ -e /tmp/begun ]; do sleep 0.1; done"]);
    let (exit, _, error) = in_made(&["--timeout", "1s", "-c", "1"]);
    assert!(exit == 107 && error.contains("busy with other code since 1 s"), "{exit} {error}");
    home.must(&["code", "dev", "--end", "--context", &made]);
    let ended = runs.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(106), "{}", text(&ended.stderr));
    assert_eq!(in_made(&["-c", "1"]).0, 102);
    home.must(&["rm", "--all"]);
}
