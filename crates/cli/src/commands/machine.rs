//! Options that describe a new VM, for `run` and `create`.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};
use microvm_api::CreateVm;
use microvm_types::template::{HypervisorChoice, NetworkMode, Overrides};
use microvm_types::{ByteSize, Name, Share, VolumeMount};

use crate::pairs::pair;

/// Network mode of a VM.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Network {
    /// No network
    Isolated,
    /// Filtered outbound access (not available yet)
    Filtered,
    /// Unfiltered outbound access (not available yet)
    Open,
    /// Connection to a bridge of the host (not available yet)
    Bridge,
}

/// Options of a new VM; the rest comes from its template.
#[derive(Debug, Args)]
#[command(next_help_heading = "New VM")]
pub(crate) struct MachineOptions {
    /// Name of the VM [default: a generated one]
    #[arg(long)]
    pub(crate) name: Option<Name>,
    /// Template of the VM [default: the server's default template]
    #[arg(long)]
    template: Option<String>,
    /// Image, instead of the template's
    #[arg(long)]
    image: Option<String>,
    /// Kernel, instead of the template's
    #[arg(long)]
    kernel: Option<String>,
    /// Hypervisor that runs the VM, by the name that `doctor` shows, instead of the template's
    #[arg(long, value_name = "NAME", value_parser = hypervisor)]
    hypervisor: Option<HypervisorChoice>,
    /// Virtual processors
    #[arg(long, value_name = "COUNT")]
    cpus: Option<u32>,
    /// Most processor time of the VM in percent of one processor of the host, at least 10
    #[arg(long, value_name = "PERCENT")]
    cpu_limit: Option<u32>,
    /// Memory, for example 512MiB
    #[arg(short, long, value_name = "SIZE", value_parser = whole_mib)]
    memory: Option<u32>,
    /// Most memory that `resize` can give the VM later, at most 8 times --memory; all of it counts against limits
    #[arg(long, value_name = "SIZE", value_parser = whole_mib)]
    memory_max: Option<u32>,
    /// Size of the writable disk, for example 10GiB; the host's space is taken as it is used
    #[arg(long, value_name = "SIZE", value_parser = whole_mib)]
    disk: Option<u32>,
    /// Network mode
    #[arg(long, value_enum, value_name = "MODE")]
    network: Option<Network>,
    /// Share a folder of this host: HOST_DIR:GUEST_DIR[:ro|:rw], read-only by default. Programs that watch files need
    /// polling there: the guest gets no events (inotify) of changes made by the host
    #[arg(long = "share", value_name = "HOST_DIR:GUEST_DIR[:MODE]", value_parser = share)]
    shares: Vec<Share>,
    /// Share a folder of this host at /tools, read-only: no program in the VM can change it
    #[arg(long, value_name = "DIR", value_parser = tools)]
    tools: Option<Share>,
    /// Mount a volume, with `:ro` at the end read-only; it is created at its first use and stays when the VM goes. With a path of this
    /// host in place of the name the folder is shared, as by `--share`, but writable unless `:ro` is given
    #[arg(short = 'v', long = "volume", value_name = "NAME:GUEST_DIR[:MODE]", value_parser = volume)]
    volumes: Vec<Mounted>,
    /// Label of the VM
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Free text kept with the VM
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
}

impl MachineOptions {
    /// The image that was named.
    pub(crate) fn image(&self) -> Option<&str> {
        self.image.as_deref()
    }

    /// The request, with variables for every command.
    pub(crate) fn request(&self, environment: BTreeMap<String, String>) -> CreateVm {
        let network = self.network.map(|network| match network {
            Network::Isolated => NetworkMode::Isolated,
            Network::Filtered => NetworkMode::Filtered,
            Network::Open => NetworkMode::Open,
            Network::Bridge => NetworkMode::Bridge,
        });
        CreateVm {
            name: self.name.clone(),
            template: self.template.clone(),
            vcpus: self.cpus,
            memory_mib: self.memory,
            overrides: Overrides {
                image: self.image.clone(),
                kernel: self.kernel.clone(),
                hypervisor: self.hypervisor.clone(),
                cpu_percent: self.cpu_limit,
                memory_max_mib: self.memory_max,
                disk_mib: self.disk,
                network,
                environment,
                shares: self
                    .shares
                    .iter()
                    .chain(&self.tools)
                    .chain(self.volumes.iter().filter_map(Mounted::folder))
                    .cloned()
                    .collect(),
                volumes: self.volumes.iter().filter_map(Mounted::volume).cloned().collect(),
                ..Overrides::default()
            },
            labels: self.labels.iter().cloned().collect(),
            metadata: self.metadata.iter().cloned().collect(),
            ..CreateVm::default()
        }
    }
}

/// Source of a mount by `--volume`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mounted {
    /// A named volume.
    Volume(VolumeMount),
    /// A folder of this host.
    Folder(Share),
}

impl Mounted {
    const fn volume(&self) -> Option<&VolumeMount> {
        match self {
            Self::Volume(mount) => Some(mount),
            Self::Folder(_) => None,
        }
    }

    const fn folder(&self) -> Option<&Share> {
        match self {
            Self::Folder(share) => Some(share),
            Self::Volume(_) => None,
        }
    }
}

/// A name with a path in the guest; a path of this host in its place, which has a slash or begins with a dot, is a folder.
fn volume(text: &str) -> Result<Mounted, String> {
    let (paths, read_only) = match text.rsplit_once(':') {
        Some((paths, "ro")) => (paths, true),
        Some((paths, "rw")) => (paths, false),
        _ => (text, false),
    };
    let both =
        paths.rsplit_once(':').filter(|(source, target)| !source.is_empty() && target.starts_with('/'));
    let Some((source, target)) = both else {
        return Err(format!("`{text}` is not NAME:GUEST_DIR[:ro], for example data:/data"));
    };
    if source.contains('/') || source.starts_with('.') {
        // A share without a mode is read-only, and here it is writable: so the mode is always written.
        return share(&format!("{paths}:{}", if read_only { "ro" } else { "rw" })).map(Mounted::Folder);
    }
    let name = source.parse().map_err(|error: microvm_types::NameError| {
        format!("{error}; a folder of this host is written with a slash: ./{source}:{target}")
    })?;
    Ok(Mounted::Volume(VolumeMount { name, target: target.to_owned(), read_only }))
}

/// A size in whole MiB; a bare number means MiB here, because nobody means bytes of memory.
pub(crate) fn whole_mib(text: &str) -> Result<u32, String> {
    if let Ok(mib) = text.parse::<u32>() {
        return Ok(mib);
    }
    let size: ByteSize = text.parse().map_err(|error: microvm_types::SizeError| error.to_string())?;
    size.whole_mib().ok_or_else(|| format!("`{text}` is not a whole number of MiB"))
}

/// Directory of guests where tools of the host are.
const TOOLS: &str = "/tools";

/// A shared folder; a path of this host that is relative is so to the working directory.
fn share(text: &str) -> Result<Share, String> {
    let mut share: Share = text.parse().map_err(|error: microvm_types::ShareError| error.to_string())?;
    share.source = whole_path(&share.source)?;
    Ok(share)
}

/// The folder of tools.
fn tools(text: &str) -> Result<Share, String> {
    if text.is_empty() {
        return Err("it is empty, name a folder of this host".to_owned());
    }
    Ok(Share { source: whole_path(text)?, target: TOOLS.to_owned(), read_only: true })
}

/// A path of this host, made absolute by the working directory.
fn whole_path(path: &str) -> Result<String, String> {
    let absolute = std::path::absolute(path).map_err(|error| error.to_string())?;
    absolute.into_os_string().into_string().map_err(|path| {
        format!("`{}` is not UTF-8: share a folder whose path is text", path.to_string_lossy())
    })
}

/// `auto`, or the name of a driver.
fn hypervisor(text: &str) -> Result<HypervisorChoice, String> {
    HypervisorChoice::try_from(text.to_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_beside_us_gets_its_whole_path() {
        let here = std::env::current_dir().unwrap();
        let shared = share("data:/data:rw").unwrap();
        assert_eq!(shared.source, here.join("data").to_str().unwrap());
        assert!(!shared.read_only);
        assert_eq!(share("/a:/b").unwrap().source, "/a");
        assert!(share("data").unwrap_err().contains("HOST_DIR:GUEST_DIR"));
        // A colon is a character of a path here.
        let shared = tools("my:tools").unwrap();
        assert_eq!(shared.source, here.join("my:tools").to_str().unwrap());
        assert_eq!((shared.target.as_str(), shared.read_only), ("/tools", true));
        assert!(tools("").is_err());
    }

    #[test]
    fn a_name_is_a_volume_and_a_path_is_a_folder() {
        let Ok(Mounted::Volume(mount)) = volume("data:/data") else { panic!() };
        assert_eq!((mount.name.as_str(), mount.target.as_str(), mount.read_only), ("data", "/data", false));
        assert!(matches!(volume("data:/data:ro"), Ok(Mounted::Volume(mount)) if mount.read_only));
        let here = std::env::current_dir().unwrap();
        for (text, source, read_only) in
            [("./data:/data", "data", false), ("a/b:/data:ro", "a/b", true), ("/x:/data:rw", "/x", false)]
        {
            let Ok(Mounted::Folder(share)) = volume(text) else { panic!("{text}") };
            assert_eq!(
                (share.source, share.read_only),
                (here.join(source).to_str().unwrap().to_owned(), read_only)
            );
        }
        for wrong in ["data", "data:", ":/data", "data:data", "a b:/data", "data:/data:rx", "./x:/"] {
            assert!(volume(wrong).is_err(), "{wrong}");
        }
        assert!(volume("my.data:/x").unwrap_err().contains("./my.data:/x"));
    }

    #[test]
    fn sizes_are_whole_mib() {
        assert_eq!(whole_mib("512"), Ok(512));
        assert_eq!(whole_mib("2GiB"), Ok(2048));
        assert!(whole_mib("1KiB").is_err());
        assert!(whole_mib("-1").is_err());
    }
}
