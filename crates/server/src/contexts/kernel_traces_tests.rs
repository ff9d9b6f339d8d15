//! What code leaves behind in an interpreter: traces and traps, children that live on, and code that was interrupted and awaits.

use microvm_api::context::Language;

use super::test_kernel::Kernel;

#[test]
fn traces_and_traps_of_bash_are_for_the_code_alone_and_stay() {
    let Some(mut kernel) = Kernel::start(Language::Bash) else { return };
    // Code, and its outputs.
    let steps = [
        ("set -v; echo a", "a\n", ""),
        ("echo b\necho c", "b\nc\n", "echo b\necho c\n"),
        ("set -x; echo d", "d\n", "set -x; echo d\n++ echo d\n"),
        ("echo e", "e\n", "echo e\n++ echo e\n"),
        ("set +xv", "", "set +xv\n++ set +xv\n"),
        ("n=0; trap 'echo \"trap $((n += 1))\"' DEBUG; echo f", "trap 1\nf\n", ""),
        ("n=0; echo g; if", "", "bash: syntax error: unexpected end of file\n"),
        ("trap - DEBUG; echo $n", "", ""),
        ("echo h", "h\n", ""),
        ("trap 'echo interrupted' INT", "", ""),
        ("trap -p", "trap -- 'echo interrupted' SIGINT\n", ""),
    ];
    for (id, (code, stdout, stderr)) in (1..).zip(steps) {
        let ran = kernel.does(id, code);
        if code.starts_with("trap - DEBUG") {
            // Its own lines count, ours may.
            assert!(ran.stdout.starts_with("trap "), "{ran:?}");
            continue;
        }
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), (stdout, stderr), "{code}");
    }
    // The code hears of an interrupt, as it asked for.
    let ran = kernel.does_until_begun(
        20,
        "echo begun; until [ \"$heard\" ]; do heard=$(sleep 1; echo 1); done; echo end",
    );
    assert!(ran.stdout.contains("interrupted\n") && ran.stdout.ends_with("end\n"), "{ran:?}");
    assert_eq!(kernel.does(21, "trap - INT; trap -p; echo $-").stdout.trim_end(), "hiBs");
}

#[test]
fn javascript_that_was_interrupted_and_goes_on_is_not_heard() {
    let Some(mut kernel) = Kernel::start(Language::JavaScript) else { return };
    kernel.does(1, "let open; const gate = new Promise((done) => { open = done; }); var went_on = 0;");
    // It says so until the interrupt is there: Node may lose one.
    let busy = "setInterval(() => console.log('begun'), 20); await gate; console.log('of the first'); display(1); \
                process.stdout.write('also', () => { went_on = 1; }); console.error('also')";
    let ran = kernel.does_until_begun(2, busy);
    assert_eq!(ran.error(), "Interrupted", "{ran:?}");
    let next = "open(); while (!went_on) { await new Promise((done) => setTimeout(done, 5)); } console.log('mine'); display(2); went_on";
    let ran = kernel.does(3, next);
    // It cannot be ended: it goes on, and that is told once.
    assert_eq!((ran.stdout.as_str(), ran.results), ("mine\n", vec!["2".to_owned(), "1".to_owned()]));
    assert_eq!(ran.stderr, "[what code writes that was interrupted and goes on is left out]\n");
    assert_eq!(kernel.does(4, "console.log('fine')").stdout, "fine\n");
    // What was not interrupted may write later: it is heard with the code that runs then.
    kernel.does(5, "var later = 0; setTimeout(() => { console.log('later'); later = 1; }, 50); undefined");
    let ran =
        kernel.does(6, "while (!later) { await new Promise((done) => setTimeout(done, 5)); } undefined");
    assert_eq!(ran.stderr, "", "{ran:?}");
}

#[test]
fn python_that_was_interrupted_while_it_awaits_does_not_go_on() {
    let Some(mut kernel) = Kernel::start(Language::Python) else { return };
    let busy = "import asyncio\nwent_on = 0\nasync def work():\n    global went_on\n    print('begun')\n    \
                await asyncio.sleep(0.05)\n    await asyncio.sleep(100 if went_on else 0.2)\n    went_on = 1\nawait work()";
    let ran = kernel.does_until_begun(1, busy);
    assert_eq!((ran.stdout.as_str(), ran.error()), ("begun\n", "KeyboardInterrupt"), "{ran:?}");
    assert_eq!(kernel.does(2, "await asyncio.sleep(0.5)\nwent_on").results, ["0"]);
}

#[test]
fn a_child_that_lives_on_holds_up_no_code_and_writes_where_code_runs() {
    for language in Language::ALL {
        child(language);
    }
}

fn child(language: Language) {
    let Some(mut kernel) = Kernel::start(language) else { return };
    let folder = tempfile::tempdir().unwrap();
    let go = folder.path().join("go").to_str().unwrap().to_owned();
    let shell = format!("until [ -e {go} ]; do sleep 0.01; done; echo of the child; : > {go}.done");
    let (start, wait) = match language {
        Language::Python => (
            format!("import subprocess, time, os\nchild = subprocess.Popen(['sh', '-c', '{shell}'])"),
            format!(
                "open('{go}', 'w').close()\nwhile not os.path.exists('{go}.done'): time.sleep(0.01)\nprint('mine')"
            ),
        ),
        Language::JavaScript => (
            format!(
                "require('child_process').spawn('sh', ['-c', '{shell}'], {{ stdio: 'inherit' }}); undefined"
            ),
            format!(
                "const fs = require('fs'); fs.writeFileSync('{go}', ''); while (!fs.existsSync('{go}.done')); console.log('mine')"
            ),
        ),
        Language::Bash => (
            format!("sh -c '{shell}' & "),
            format!(": > {go}; until [ -e {go}.done ]; do sleep 0.01; done; echo mine"),
        ),
    };
    let ran = kernel.does(1, &start);
    assert_eq!((ran.stdout.as_str(), ran.error()), ("", ""), "{language}: {ran:?}");
    assert_eq!(kernel.does(2, &wait).stdout, "of the child\nmine\n", "{language}");
}
