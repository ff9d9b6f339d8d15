//! Interpreters that stay: their variables live through pauses, forks, snapshots and servers.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

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
