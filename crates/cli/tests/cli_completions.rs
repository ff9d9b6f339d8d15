//! Completions in real shells, with the names of a server on fakes. Needs no hypervisor.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails, and says why it skips"
)]

#[path = "support/program.rs"]
mod program;

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use program::{Server, must, service, text};

/// Presses Tab at the end of a line in a shell; gives what it would offer.
async fn offered(server: &Server, shell: &str, line: &str) -> Option<Vec<String>> {
    if Command::new(shell).arg("--version").output().is_err() {
        eprintln!("skipped: no {shell} on this host");
        return None;
    }
    let folder = server.root.join("completions");
    std::fs::create_dir_all(&folder).unwrap();
    let (empty, bin) = (folder.join("empty"), folder.join("microvm"));
    std::fs::create_dir_all(&empty).unwrap();
    if !bin.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_microvm"), &bin).unwrap();
    }
    let script = folder.join(format!("{shell}.script"));
    std::fs::write(&script, must(server, &["completions", shell]).await).unwrap();
    let ask = match shell {
        "bash" => format!(
            "source {script}; read -ra COMP_WORDS <<< '{line}'; case '{line}' in *' ') COMP_WORDS+=(''); esac\n\
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=(); compopt() {{ :; }}\n\
             _microvm_with_names microvm \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\""
        ),
        "zsh" => format!(
            "autoload -U compinit; compinit -u -d {folder}/dump; source {script}\n\
             compadd() {{ [[ $argv[1] == -Q ]] && print -l -- \"${{(@)argv[$argv[(i)--]+1,-1]}}\" }}\n\
             words=(${{(z)LINE}}); [[ $LINE == *' ' ]] && words+=(''); CURRENT=${{#words}}\n\
             _microvm_line=(\"${{(@)words}}\"); _microvm_current=$CURRENT; _default() {{ : }}; _microvm_names"
        ),
        _ => format!("source {script}; complete -C '{line}' | string split -f1 \\t"),
    };
    let mut command = Command::new(shell);
    command.args(["-c", &ask]).env("MICROVM_ROOT", &server.root).env("HOME", &folder).env("LINE", line);
    let path = format!("{folder}:{}", std::env::var("PATH").unwrap());
    command.env("PATH", path).current_dir(&empty).stdin(Stdio::null());
    let output = run(command).await;
    assert_eq!(text(&output.stderr), "", "{shell}: {line}");
    let found = text(&output.stdout);
    Some(found.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn names_are_offered(shell: &str) {
    let server = service::start().await;
    for name in ["dev-one", "dev-two", "other"] {
        must(&server, &["create", "--name", name]).await;
    }
    must(&server, &["snapshot", "create", "other", "--name", "ready"]).await;
    must(&server, &["volume", "create", "data"]).await;
    for (line, wanted) in [
        ("microvm exec dev-", &["dev-one", "dev-two"][..]),
        ("microvm rm other dev-t", &["dev-two"]),
        ("microvm vm delete ot", &["other"]),
        ("microvm rollback other rea", &["ready"]),
        ("microvm volume rm ", &["data"]),
        ("microvm run -v da", &["data:"]),
        ("microvm cp ot", &["other:"]),
        ("microvm exec nobody", &[]),
    ] {
        let Some(found) = offered(&server, shell, line).await else { return };
        assert_eq!(found, wanted, "{shell}: {line}");
    }
    // What a line would do when it is run, it does not do when it is completed.
    let touched = server.root.join("completions/empty/touched");
    for line in ["microvm exec $(touch touched) dev-", "microvm exec `touch touched`", "microvm rm ;touch"] {
        offered(&server, shell, line).await;
        assert!(!touched.exists(), "{shell}: {line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bash_offers_names() {
    names_are_offered("bash").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zsh_offers_names() {
    names_are_offered("zsh").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fish_offers_names() {
    names_are_offered("fish").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_and_verbs_are_offered_as_ever() {
    let server = service::start().await;
    let Some(found) = offered(&server, "bash", "microvm ren").await else { return };
    assert_eq!(found, ["rename"]);
    let found = offered(&server, "bash", "microvm rename --ro").await.unwrap();
    assert_eq!(found, ["--root"]);
}

#[tokio::test]
async fn without_a_server_nothing_is_offered_started_or_said() {
    let home = tempfile::tempdir().unwrap();
    for host in ["", "ssh://nobody.invalid", "unix:///no/such/socket", "nonsense"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        command.args(["complete", "1", "--", "exec", ""]).env_clear().env("HOME", home.path());
        command.env("MICROVM_ROOT", home.path().join("none")).env("MICROVM_HOST", host).stdin(Stdio::null());
        let begun = Instant::now();
        let output = command.output().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(
            (output.status.code(), text(&output.stdout) + &text(&output.stderr)),
            (Some(0), String::new()),
            "{host}"
        );
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "a root was made");
    }
}
