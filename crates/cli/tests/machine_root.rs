//! The guest's root is what programs expect of an ordinary machine.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use support::Home;

/// Directories of the image can be renamed, names resolve, limits are those of an ordinary machine; a fork has its own
/// name; and what a user writes to `/etc/hosts` is kept.
#[test]
fn programs_find_an_ordinary_machine() {
    let Some(home) = Home::open() else { return };
    for kernel in ["distribution", "built"] {
        let says = |vm: &str, script: &str| home.must(&["exec", vm, "--", "bash", "-c", script]);
        home.must(&["create", "--name", "dev", "--kernel", kernel]);
        assert_eq!(
            says(
                "dev",
                "mv /usr/share/doc /usr/share/doc.old && ls -d /usr/share/doc{,.old} 2>/dev/null; true"
            ),
            "/usr/share/doc.old\n"
        );
        let resolve = "python3 -c 'import socket; print(socket.gethostbyname(\"localhost\"))'; getent hosts $(hostname); getent hosts localhost";
        let names = says("dev", resolve);
        let of_name = |name: &str| format!("127.0.1.1       {name}\n");
        assert!(
            names.contains("127.0.0.1") && names.contains(&of_name("dev")) && names.contains("::1"),
            "{names}"
        );
        says("dev", "echo 10.9.8.7 db >> /etc/hosts");
        let limits = says("dev", "ulimit -Sn; ulimit -Hn; cat /proc/sys/fs/inotify/max_user_watches");
        assert_eq!(limits, "65536\n1048576\n524288\n");
        assert_eq!(home.must(&["exec", "-u", "nobody", "dev", "--", "id", "-un"]), "nobody\n");
        home.must(&["fork", "dev", "--name", "child"]);
        let child = says(
            "child",
            &format!("{resolve}; getent hosts db; grep -c dev /etc/hosts; ls /usr/share/doc.old | head -1"),
        );
        assert!(child.contains(&of_name("child")) && child.contains("10.9.8.7"), "{child}");
        assert!(child.contains("\n0\n") && child.ends_with("adduser\n"), "{child}");
        home.must(&["stop", "dev"]);
        home.must(&["start", "dev"]);
        assert_eq!(
            says("dev", "getent hosts db | tr -s ' '; ls -d /usr/share/doc{,.old} 2>/dev/null; true"),
            "10.9.8.7 db\n/usr/share/doc.old\n"
        );
        home.must(&["rm", "-f", "dev", "child"]);
    }
}
