//! Probe of this host: program, version, accelerator, layers of confinement.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_confinement::Layer;
use microvm_ports::LaunchError;
use microvm_ports::capabilities::{
    Abilities, BootKinds, Capabilities, ChannelKind, DiskFormats, Feature, ForkKinds, Hotplug, LoadKind,
    MemoryShape, SaveKind, Sharing,
};

use super::accelerator::{self, Accelerator};
use super::hardware::{self, FIRMWARE};
use super::timestamp_counter;
use crate::config::QemuConfig;
use crate::memory;

/// Oldest version this driver was tried with (major, minor): the one of Debian 12.
const OLDEST: (u32, u32) = (7, 2);

/// Folders in which QEMU's packages put firmware; the cage shows them.
const FIRMWARE_FOLDERS: [&str; 2] = ["/usr/share/qemu", "/usr/share/seabios"];

/// Result of the probe.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) program: Utf8PathBuf,
    pub(crate) version: String,
    pub(crate) accelerator: Accelerator,
    pub(crate) tsc_khz: u64,
    /// True if VMMs are started so that writes to their guest's memory can be noted.
    pub(crate) write_tracking: bool,
    /// True if cgroup limits can be set.
    pub(crate) limits: bool,
    pub(crate) capabilities: Capabilities,
}

pub(crate) async fn probe(config: &QemuConfig) -> Result<Host, LaunchError> {
    let program = find(&config.program).ok_or_else(|| LaunchError::ProgramMissing {
        program: config.program.to_string(),
        advice: "install the package qemu-system-x86".to_owned(),
    })?;
    if !FIRMWARE_FOLDERS.iter().any(|folder| Utf8Path::new(folder).join(FIRMWARE).is_file()) {
        return Err(LaunchError::ProgramMissing {
            program: format!("{FIRMWARE} (QEMU's firmware for small machines)"),
            advice: "install the package qemu-system-data".to_owned(),
        });
    }
    let choice = config.accelerator;
    let measured = tokio::task::spawn_blocking(move || {
        (accelerator::choose(choice), timestamp_counter::measure_khz(), microvm_confinement::layers())
    });
    let (version, measured) = tokio::join!(version(&program), measured);
    let (accelerator, tsc_khz, layers) = measured
        .map_err(|error| LaunchError::Process { step: "probing the host", detail: error.to_string() })?;
    let version = version?;
    let cpu_limit = matches!(layers.get(microvm_confinement::CPU_LIMIT), Some(Layer::On(_)));
    let limits = matches!(layers.get(microvm_confinement::CGROUP_LIMITS), Some(Layer::On(_)));
    let mut confinement: BTreeMap<String, Feature> =
        layers.into_iter().map(|(name, layer)| (name, feature(layer))).collect();
    confinement.insert("system call filter (QEMU -sandbox)".to_owned(), Feature::On(None));
    let copying_ahead = if config.write_tracking {
        memory::copies_ahead().map_or_else(Feature::Off, |()| Feature::On(None))
    } else {
        Feature::Off("by configuration".to_owned())
    };
    let write_tracking = copying_ahead.is_on();
    let capabilities = Capabilities {
        driver: NAME,
        version: version.clone(),
        program: Some(program.clone()),
        accelerator: (&accelerator).into(),
        confinement,
        copying_ahead,
        abilities: Abilities { standby: standby_is_safe(), cpu_limit, ..ABILITIES },
    };
    Ok(Host { program, version, accelerator, tsc_khz, write_tracking, limits, capabilities })
}

fn feature(layer: Layer) -> Feature {
    match layer {
        Layer::On(detail) => Feature::On(detail),
        Layer::Off(reason) => Feature::Off(reason),
    }
}

/// Name of this driver in records and templates.
pub const NAME: &str = "qemu";

/// Abilities on a host that lacks nothing.
pub(crate) const ABILITIES: Abilities = Abilities {
    boot: BootKinds { kernel: true, firmware: false },
    disks: DiskFormats { raw: true, qcow2: true },
    most_devices: hardware::MOST_DEVICES,
    nics: 0,
    display: None,
    channel: ChannelKind::VirtioSerial,
    save: SaveKind::Live { memory: MemoryShape::PagesOverBase },
    load: LoadKind::Memory(MemoryShape::PagesOverBase),
    fork: ForkKinds { state: true },
    sharing: Some(Sharing::Plan9),
    standby: true,
    balloon: true,
    hotplug: Hotplug { disks: false, nics: false },
    // More need an I/O memory management unit, which this machine has not (hw/i386/x86.c: x2APIC ids above 254).
    vcpu_most: 255,
    cpu_limit: true,
};

/// True if a VMM may be given descriptors of layers. A server that is not root runs VMMs as its own user, which owns the
/// layers: with a descriptor of one, instead of a read-only mount, they could change its mode.
pub(crate) fn standby_is_safe() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The real path of the program: what `PATH` finds may be a link, and the cage shows the file itself.
fn find(program: &Utf8PathBuf) -> Option<Utf8PathBuf> {
    let real = |path: Utf8PathBuf| path.canonicalize_utf8().ok().filter(|path| path.is_file());
    if program.as_str().contains('/') {
        return real(program.clone());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A directory that is not UTF-8 is left out, the others are not.
    let mut directories =
        std::env::split_paths(&path).filter_map(|path| Utf8PathBuf::from_path_buf(path).ok());
    directories.find_map(|directory| real(directory.join(program)))
}

async fn version(program: &Utf8PathBuf) -> Result<String, LaunchError> {
    let failed = |detail: String| LaunchError::Process { step: "asking QEMU for its version", detail };
    let output = tokio::process::Command::new(program)
        .arg("--version")
        .output()
        .await
        .map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let first = text.lines().next().unwrap_or_default();
    let version = first.strip_prefix("QEMU emulator version ").unwrap_or(first).to_owned();
    match number(&version) {
        None => Err(failed(format!("it printed `{first}`"))),
        Some(found) if found < OLDEST => Err(LaunchError::ProgramTooOld {
            program: program.to_string(),
            found: version,
            needed: format!("{}.{}", OLDEST.0, OLDEST.1),
        }),
        Some(_) => Ok(version),
    }
}

fn number(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared_as_numbers() {
        assert_eq!(number("7.2.22 (Debian 1:7.2+dfsg)"), Some((7, 2)));
        assert!(number("10.0.2").unwrap() > OLDEST);
        assert!(number("6.9").unwrap() < OLDEST);
        assert_eq!(number("QEMU"), None);
    }

    #[tokio::test]
    async fn a_missing_program_says_what_to_install() {
        let mut config = QemuConfig::new("/proc/self/exe".into());
        config.program = "/nonexistent/qemu".into();
        let error = probe(&config).await.unwrap_err();
        assert!(error.to_string().contains("qemu-system-x86"), "{error}");
    }

    #[tokio::test]
    async fn an_old_program_is_refused() {
        let directory = std::env::temp_dir().join(format!("old-qemu-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let program = Utf8PathBuf::from_path_buf(directory.join("qemu")).unwrap();
        std::fs::write(&program, "#!/bin/sh\necho QEMU emulator version 5.1.0\n").unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut config = QemuConfig::new("/proc/self/exe".into());
        config.program = program;
        let error = probe(&config).await.unwrap_err();
        assert!(matches!(error, LaunchError::ProgramTooOld { .. }), "{error}");
        std::fs::remove_dir_all(directory).unwrap();
    }
}
