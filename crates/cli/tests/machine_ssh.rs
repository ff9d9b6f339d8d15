//! OpenSSH's own client, rsync and sftp over the channel of a VM, with the sshd of an image.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::process::{Command, Output};

use support::{Home, text};

/// Runs a program of this host with a limit on its time.
fn run(home: &Home, words: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.arg("120").args(words).current_dir(home.root());
    command.output().unwrap()
}

fn must(home: &Home, words: &[&str]) -> String {
    let output = run(home, words);
    assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn ssh_rsync_and_sftp_work_over_the_channel() {
    let Some(home) = Home::open() else { return };
    for program in ["ssh", "sftp", "rsync"] {
        if Command::new(program).arg("-V").output().is_err() {
            eprintln!("SKIPPED: no {program} on this host");
            return;
        }
    }
    let recipe = home.root().join("ssh.yaml");
    std::fs::write(&recipe, "name: with-ssh\nfrom: debian-python\npackages: [openssh-server, rsync]\n")
        .unwrap();
    home.must(&["image", "build", recipe.to_str().unwrap()]);
    home.must(&["create", "--name", "box", "--image", "with-ssh"]);
    std::fs::write(home.root().join("box.conf"), home.must(&["ssh-config", "box"])).unwrap();
    let ssh = ["ssh", "-F", "box.conf", "box"];
    let output = run(&home, &[&ssh[..], &["echo of $(id -un); echo told >&2; exit 3"]].concat());
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("of root\n", "told\n"));

    let content: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[(n % 3) as usize]).collect();
    std::fs::create_dir(home.root().join("there")).unwrap();
    std::fs::write(home.root().join("there/file"), &content).unwrap();
    must(&home, &["rsync", "-e", "ssh -F box.conf", "-a", "there", "box:/root/"]);
    must(&home, &["rsync", "-e", "ssh -F box.conf", "-a", "box:/root/there/", "back"]);
    assert!(std::fs::read(home.root().join("back/file")).unwrap() == content, "rsync changed a file");
    std::fs::write(home.root().join("batch"), "get /root/there/file got\nput batch /root/put\n").unwrap();
    must(&home, &["sftp", "-b", "batch", "-F", "box.conf", "box"]);
    assert!(std::fs::read(home.root().join("got")).unwrap() == content, "sftp changed a file");
    assert_eq!(home.must(&["exec", "box", "cat", "/root/put"]).lines().count(), 2);

    // A fork has a host key of its own, which the configuration of its source does not trust.
    home.must(&["fork", "box", "--name", "child"]);
    std::fs::write(home.root().join("child.conf"), home.must(&["ssh-config", "child"])).unwrap();
    assert_eq!(must(&home, &["ssh", "-F", "child.conf", "child", "cat /root/put"]).lines().count(), 2);
    // Keys of other people do not open it.
    let config = std::fs::read_to_string(home.root().join("box.conf")).unwrap();
    must(&home, &["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "strange"]);
    let strange: Vec<String> = config
        .lines()
        .map(|line| {
            if line.contains("IdentityFile") { "  IdentityFile strange".to_owned() } else { line.to_owned() }
        })
        .collect();
    std::fs::write(home.root().join("strange.conf"), strange.join("\n")).unwrap();
    let refused = run(&home, &["ssh", "-F", "strange.conf", "-o", "BatchMode=yes", "box", "true"]);
    assert_eq!(refused.status.code(), Some(255), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("Permission denied"), "{}", text(&refused.stderr));
    home.must(&["rm", "--all"]);
}
