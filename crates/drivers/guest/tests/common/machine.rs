//! A real machine under QEMU with TCG.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command as StdCommand, Stdio};

use camino::Utf8PathBuf;
use microvm_ports::guest::GuestEndpoint;
use tokio::process::{Child, Command};

/// Files that a machine is made of, from the environment.
pub struct Parts {
    kernel: PathBuf,
    image: PathBuf,
    agent: PathBuf,
}

impl Parts {
    /// `None`, with the reason on standard error, where something is missing.
    pub fn find() -> Option<Self> {
        let variable = |name: &str| {
            let path = std::env::var_os(name).map(PathBuf::from).filter(|path| path.exists());
            if path.is_none() {
                eprintln!("SKIPPED: {name} does not name a file");
            }
            path
        };
        if StdCommand::new("qemu-system-x86_64").arg("--version").output().is_err() {
            eprintln!("SKIPPED: qemu-system-x86_64 is not installed");
            return None;
        }
        Some(Self {
            kernel: variable("MICROVM_TEST_KERNEL")?,
            image: variable("MICROVM_TEST_IMAGE")?,
            agent: variable("MICROVM_TEST_AGENT")?,
        })
    }
}

/// A running machine; killed when dropped.
pub struct TestMachine {
    pub endpoint: GuestEndpoint,
    pub directory: tempfile::TempDir,
    pub child: Child,
}

impl TestMachine {
    pub fn boot(parts: &Parts) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("initramfs"), initramfs(&parts.agent)).unwrap();
        let scratch = fs::File::create(path("scratch")).unwrap();
        scratch.set_len(2 << 30).unwrap();
        let made =
            StdCommand::new("mke2fs").args(["-q", "-t", "ext4"]).arg(path("scratch")).status().unwrap();
        assert!(made.success());
        let khz = host_tsc_khz();
        let socket = path("agent.sock");
        // The machine ends with the test, however that ends: `setpriv` becomes QEMU, so the child is QEMU itself.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-M", "microvm,accel=tcg,acpi=off,rtc=on,pit=on,pic=on"])
            .args(["-cpu", &std::env::var("MICROVM_TEST_CPU").unwrap_or_else(|_| "max".to_owned())])
            .args(["-m", "512", "-smp", "1", "-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
            .arg("-serial")
            .arg(format!("file:{}", path("console.log").display()))
            .arg("-kernel")
            .arg(&parts.kernel)
            .arg("-initrd")
            .arg(path("initramfs"))
            .arg("-append")
            .arg(format!("console=ttyS0 quiet reboot=t panic=-1 tsc=reliable tsc_early_khz={khz}"))
            .args(["-device", "virtio-serial-device,max_ports=2", "-chardev"])
            .arg(format!("socket,id=c,path={},server=on,wait=off", socket.display()))
            .args(["-device", "virtserialport,chardev=c,name=agent,nr=1", "-drive"])
            .arg(format!("if=none,id=image,format=raw,readonly=on,file={}", parts.image.display()))
            .args(["-device", "virtio-blk-device,drive=image,serial=image", "-drive"])
            .arg(format!("if=none,id=scratch,format=raw,cache=unsafe,file={}", path("scratch").display()))
            .args(["-device", "virtio-blk-device,drive=scratch,serial=scratch"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let endpoint = GuestEndpoint::UnixSocket(Utf8PathBuf::from_path_buf(socket).unwrap());
        Self { endpoint, directory, child }
    }

    pub fn console(&self) -> String {
        fs::read_to_string(self.directory.path().join("console.log")).unwrap_or_default()
    }
}

fn host_tsc_khz() -> u64 {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("cpu MHz")).unwrap();
    let mhz: f64 = line.split(':').nth(1).unwrap().trim().parse().unwrap();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few million")]
    let khz = (mhz * 1000.0) as u64;
    khz
}

/// An uncompressed `newc` archive that holds `/init` only.
fn initramfs(agent: &Path) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut entry = |name: &str, mode: u32, data: &[u8]| {
        let fields = [1, mode, 0, 0, 1, 0, u32::try_from(data.len()).unwrap(), 0, 0, 0, 0];
        archive.extend_from_slice(b"070701");
        for field in fields {
            archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        archive.extend_from_slice(format!("{:08x}{:08x}{name}\0", name.len() + 1, 0).as_bytes());
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    entry("init", 0o100_755, &fs::read(agent).unwrap());
    entry("TRAILER!!!", 0, &[]);
    archive
}
