//! Runs the commands of the guides as a reader would, and compares what they print with what the text says.

mod console;
mod left_out;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use console::Example;

use crate::packages::{Consent, Purpose};
use crate::steps::step;
use crate::{host, microvm, packages, quickstart, run};

/// Longest time for one command: under emulation an image is built in minutes.
const PATIENCE: Duration = Duration::from_secs(600);
/// Folder of the guides.
const GUIDES: &str = "docs/guides";
/// Folder of the examples; commands of all files find it in their working directory.
const EXAMPLES: &str = "examples";

/// Runs the files named, or the README, the examples and all guides; each from a root that has the default image and both kernels.
pub(crate) fn docs_test(files: &[&str], consent: Consent) -> Result<()> {
    step("installing packages", || packages::install(Purpose::Tests, consent))?;
    quickstart::prepare(consent)?;
    step("providing the built kernel", microvm::provide_built_kernel)?;
    let files = if files.is_empty() { all()? } else { files.iter().map(PathBuf::from).collect() };
    let mut wrong = Vec::new();
    let mut run = 0;
    for file in &files {
        let text = std::fs::read_to_string(host::repository().join(file))
            .with_context(|| format!("reading {}", file.display()))?;
        let examples = console::read(&text);
        wrong.extend(left_out::faults(&file.to_string_lossy(), &text, &left_out::LEFT_OUT));
        run += examples.len();
        wrong.extend(step(&file.display().to_string(), || run_file(file, &examples))?);
    }
    if run == 0 {
        bail!("no block ```console was found in {} files", files.len());
    }
    for (file, start, reason) in left_out::LEFT_OUT {
        if files.iter().any(|one| one == Path::new(file)) {
            println!("not run: {file}, `{start}…`: {reason}");
        }
    }
    println!("\n{run} commands of {} files run, {} not as the text says", files.len(), wrong.len());
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n\n")) }
}

fn all() -> Result<Vec<PathBuf>> {
    let mut files = vec![PathBuf::from("README.md"), Path::new(EXAMPLES).join("README.md")];
    let folder = host::repository().join(GUIDES);
    for entry in std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let name = entry?.file_name();
        if Path::new(&name).extension().is_some_and(|extension| extension == "md") {
            files.push(Path::new(GUIDES).join(name));
        }
    }
    files.sort();
    Ok(files)
}

/// Runs all commands of a file, also after one that failed; returns those that did not do what the text says.
fn run_file(file: &Path, examples: &[Example]) -> Result<Vec<String>> {
    if examples.is_empty() {
        return Ok(Vec::new());
    }
    let scene = Scene::new()?;
    let mut wrong = Vec::new();
    for example in examples {
        let output = scene.run(&example.command)?;
        let lines: Vec<&str> = output.text.lines().collect();
        if output.code != Some(0) || !console::matches(&example.output, &lines) {
            wrong.push(format!(
                "{}:{}: $ {}\nexit code {:?}, and printed:\n{}",
                file.display(),
                example.line,
                example.command,
                output.code,
                output.text.trim_end()
            ));
        }
    }
    Ok(wrong)
}

struct Printed {
    code: Option<i32>,
    text: String,
}

/// A root of its own, a working directory, and a folder with the program for `PATH`. Its server and VMs end with it.
struct Scene {
    folder: PathBuf,
}

impl Scene {
    fn new() -> Result<Self> {
        // As root, VMMs run as other users, who must be able to get there.
        let base = if host::is_root() { PathBuf::from("/var/lib") } else { host::target() };
        let folder = base.join(format!("microvm-docs-{}", std::process::id()));
        let scene = Self { folder };
        let root = scene.folder.join("root");
        for name in ["root", "work", "bin"] {
            std::fs::create_dir_all(scene.folder.join(name))?;
        }
        std::fs::set_permissions(&scene.folder, std::fs::Permissions::from_mode(0o711))?;
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o711))?;
        std::os::unix::fs::symlink(microvm::path(), scene.folder.join("bin/microvm"))?;
        std::os::unix::fs::symlink(
            host::repository().join(EXAMPLES),
            scene.folder.join("work").join(EXAMPLES),
        )?;
        let from = host::data_root()?;
        let mut copy = run::program("cp", PATIENCE);
        copy.args(["--archive", "--sparse=always", "--reflink=auto"]);
        run::run(copy.arg(from.join("images")).arg(from.join("kernels")).arg(&root))?;
        Ok(scene)
    }

    /// A command in a shell, its two outputs in one.
    fn run(&self, command: &str) -> Result<Printed> {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = run::program("bash", PATIENCE);
        // The file keeps the output of programs that stay in the background from holding a pipe open.
        let out = self.folder.join("output");
        let file = std::fs::File::create(&out)?;
        let status = shell
            .args(["-c", command])
            .current_dir(self.folder.join("work"))
            .env("PATH", format!("{}:{path}", self.folder.join("bin").display()))
            .env("MICROVM_ROOT", self.folder.join("root"))
            .env("COLUMNS", "100")
            .stdout(file.try_clone()?)
            .stderr(file)
            .status()
            .with_context(|| format!("running `{command}`"))?;
        Ok(Printed { code: status.code(), text: String::from_utf8_lossy(&std::fs::read(&out)?).into_owned() })
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let ended = self.run("microvm rm --all && microvm server stop");
        if let Ok(Printed { code: Some(0), .. }) = ended {
            let _ = std::fs::remove_dir_all(&self.folder);
        } else {
            eprintln!("  the VMs and the server of {} could not be ended", self.folder.display());
        }
    }
}
