//! Dockerfiles as people write them, built and run.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use support::Home;

/// A folder with a Dockerfile beside this file.
fn example(name: &str) -> String {
    format!("{}/tests/dockerfiles/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn dockerfiles_of_three_kinds_are_built_and_run() {
    let Some(home) = Home::open() else { return };
    let (python, tool, service) = (example("python"), example("tool"), example("service"));

    home.must(&["image", "build", "-t", "greeter", &python]);
    let printed = home.must(&["run", "--image", "greeter"]);
    assert_eq!(printed.trim(), "hello world /app /opt/venv/bin");
    let look = "id -un; ls -A /app; ls /app/greeter/__pycache__ | wc -l; stat -c %U /app/greeter /app";
    let found = home.must(&["run", "--image", "greeter", "--", "sh", "-c", look]);
    assert_eq!(found, "user\n.dockerignore\nDockerfile\ngreeter\nrequirements.txt\n2\nroot\nroot\n");

    home.must(&["image", "build", &format!("{tool}/Dockerfile"), "-t", "tool"]);
    assert_eq!(home.must(&["run", "--image", "tool"]).trim(), "usage: tool WORD...");
    assert_eq!(home.must(&["run", "--image", "tool", "--", "a", "b"]).trim(), "user: a b");

    let file = format!("{service}/service.Dockerfile");
    let build = ["image", "build", "-f", &file, "-t", "service", "--build-arg", "VERSION=1.2", &service];
    home.must(&build);
    let printed = home.must(&["run", "--image", "service"]);
    assert_eq!(printed, "1.2\nservice\n/var/lib/service\nport=1\nport=2\nkept\n");
    let look = "stat -c '%u:%g %a %n' /var/lib/service /var/lib/service/*; ls /var/lib/service /etc/service";
    let found = home.must(&["run", "--image", "service", "--entrypoint", "", "--", "sh", "-c", look]);
    for line in ["4242:4242 755 /var/lib/service", "4242:4242 644 /var/lib/service/with space.txt"] {
        assert!(found.lines().any(|one| one == line), "{line}: {found}");
    }
    // An equal build is not done again.
    let digest = home.must(&["image", "inspect", "service"]);
    home.must(&build);
    assert_eq!(home.must(&["image", "inspect", "service"]), digest);
}

#[test]
fn a_command_that_fails_is_named_by_its_line_and_leaves_no_image() {
    let Some(home) = Home::open() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("Dockerfile");
    std::fs::write(&file, "FROM debian-python\nRUN true\n\nRUN echo why >&2; exit 7\n").unwrap();
    let output = home.command(&["image", "build", "-t", "failing", file.to_str().unwrap()]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && told.contains("line 4: RUN echo why") && told.contains("exit code 7"),
        "{told}"
    );
    let listed = home.must(&["image", "ls"]);
    assert!(!listed.contains("failing") && !listed.contains("build-"), "{listed}");
}
