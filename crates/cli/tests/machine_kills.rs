//! Transfers whose client or server is killed half-way: nothing half-written has a final name, and the next one works.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking and say why they skip")]

mod support;

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use support::{Home, names, signal, until};

/// Long enough to be met half-way.
const LENGTH: u64 = 200 << 20;

fn noise(path: &Path, hole: u64) {
    let mut file = File::create(path).unwrap();
    file.seek(SeekFrom::Start(hole)).unwrap();
    std::io::copy(&mut File::open("/dev/urandom").unwrap().take(LENGTH), &mut file).unwrap();
}

fn sum_here(path: &Path) -> String {
    let summed = std::process::Command::new("sha256sum").stdin(File::open(path).unwrap()).output().unwrap();
    support::text(&summed.stdout)
}

/// One way of copying.
struct Copy {
    what: &'static str,
    arguments: [String; 3],
    /// Standard input.
    input: Option<PathBuf>,
    /// Standard output, which gets the file as a tar stream.
    output: Option<PathBuf>,
    /// The file that is there in the end; in the guest, or here.
    result: Place,
    sum: String,
}

enum Place {
    Guest(&'static str),
    Here(PathBuf),
}

impl Copy {
    fn start(&self, home: &Home) -> Child {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let mut command = home.command(&arguments);
        if let Some(input) = &self.input {
            command.stdin(File::open(input).unwrap());
        }
        match &self.output {
            Some(output) => command.stdout(File::create(output).unwrap()),
            None => command.stdout(Stdio::null()),
        };
        command.stderr(Stdio::null()).spawn().unwrap()
    }

    /// True once content has begun to arrive, under a temporary name or in its directory.
    fn is_under_way(&self, home: &Home, out: &Path) -> bool {
        match &self.result {
            Place::Here(_) => match &self.output {
                Some(output) => output.metadata().is_ok_and(|found| found.len() > 1 << 20),
                None => !names(out).is_empty(),
            },
            Place::Guest(_) => {
                let find = "find /root/in -type f -size +1000k | grep -q .";
                home.run(&["exec", "dev", "--", "sh", "-c", find]).status.success()
            }
        }
    }

    fn sum_of_result(&self, home: &Home) -> Option<String> {
        match &self.result {
            Place::Here(path) => {
                if let Some(output) = &self.output {
                    // A stream that was cut is no archive.
                    let mut tar = std::process::Command::new("tar");
                    tar.arg("-xf").arg(output).arg("-C").arg(output.parent().unwrap());
                    if !tar.stderr(Stdio::null()).status().unwrap().success() {
                        return None;
                    }
                }
                path.exists().then(|| sum_here(path))
            }
            Place::Guest(path) => {
                let script = format!("[ ! -e {path} ] || sha256sum < {path}");
                Some(home.must(&["exec", "dev", "--", "sh", "-c", &script])).filter(|sum| !sum.is_empty())
            }
        }
    }
}

#[test]
fn killed_transfers_leave_nothing_half() {
    let Some(home) = Home::open() else { return };
    home.must(&["create", "--name", "dev"]);
    let (tree, out) = (home.root().join("tree"), home.root().join("out"));
    fs::create_dir(&tree).unwrap();
    noise(&tree.join("big"), 0);
    let sparse = home.root().join("sparse");
    noise(&sparse, 1 << 30);
    let archive = home.root().join("archive");
    let mut tar = std::process::Command::new("tar");
    tar.arg("-C").arg(&tree).arg("-cf").arg(&archive).arg("big");
    assert!(tar.status().unwrap().success());
    home.must(&["cp", tree.to_str().unwrap(), "dev:/root/source"]);
    home.must(&["cp", sparse.to_str().unwrap(), "dev:/root/thin"]);
    let (big, thin) = (sum_here(&tree.join("big")), sum_here(&sparse));
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let copy = |what, from: String, to: String, result, sum: &str| {
        let input = (from == "-").then(|| archive.clone());
        let output = (to == "-").then(|| out.join("stream.tar"));
        Copy { what, arguments: ["cp".to_owned(), from, to], input, output, result, sum: sum.to_owned() }
    };
    let there = |path: &str| format!("dev:/root/{path}");
    let copies = [
        copy("a file in", path(&tree.join("big")), there("in/file"), Place::Guest("/root/in/file"), &big),
        copy("extents in", path(&sparse), there("in/thin"), Place::Guest("/root/in/thin"), &thin),
        // Into a directory that is there: what is left of the first try is filled up by the next.
        copy("a tree in", path(&tree), there("in"), Place::Guest("/root/in/tree/big"), &big),
        copy("a stream in", "-".to_owned(), there("in/tar"), Place::Guest("/root/in/tar/big"), &big),
        copy("a file out", there("source/big"), path(&out.join("big")), Place::Here(out.join("big")), &big),
        copy("a tree out", there("source"), path(&out.join("t")), Place::Here(out.join("t/big")), &big),
        copy("a stream out", there("source"), "-".to_owned(), Place::Here(out.join("source/big")), &big),
        copy("extents out", there("thin"), path(&out.join("thin")), Place::Here(out.join("thin")), &thin),
    ];
    for copy in &copies {
        for victim in ["client", "server"] {
            let what = format!("{}, {victim} killed", copy.what);
            home.must(&["exec", "dev", "--", "sh", "-c", "rm -rf /root/in; mkdir /root/in"]);
            let _ = fs::remove_dir_all(&out);
            fs::create_dir(&out).unwrap();
            let mut child = copy.start(&home);
            until(&format!("{what}: it is under way"), 20, || copy.is_under_way(&home, &out));
            if victim == "client" {
                signal("KILL", i32::try_from(child.id()).unwrap());
            } else {
                home.kill_server();
            }
            assert!(!child.wait().unwrap().success(), "{what}: it was too quick for this test");
            // An entry of a stream is unpacked under its name, and the end of the stream is what makes it whole.
            let is_unpacked_there = copy.input.is_some() || copy.what == "a tree in";
            if !is_unpacked_there {
                assert_eq!(copy.sum_of_result(&home), None, "{what}");
            }
            until(&format!("{what}: the guest has no temporary file"), 20, || {
                let find = "find /root/in -name '.microvm*' | grep -q .";
                !home.run(&["exec", "dev", "--", "sh", "-c", find]).status.success()
            });
            if victim == "server" && copy.output.is_none() {
                assert!(names(&out).is_empty(), "{what}: {:?}", names(&out));
            }
            let mut again = copy.start(&home);
            assert!(again.wait().unwrap().success(), "{what}: the next one failed");
            assert_eq!(copy.sum_of_result(&home).as_deref(), Some(copy.sum.as_str()), "{what}");
            let left: Vec<_> = names(&out).into_iter().filter(|name| name.starts_with(".microvm")).collect();
            assert!(left.is_empty(), "{what}: the next copy left {left:?}");
        }
    }
    assert_eq!(home.must(&["exec", "dev", "--", "echo", "alive"]), "alive\n");
    home.must(&["rm", "dev"]);
}
