//! Templates: named recipes for VMs, with per-request overrides.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::hook::{Hook, HookAction, HookFailure, HookPoint};
use crate::name::Name;
use crate::share::Share;
use crate::volume::VolumeMount;

/// How a VM is connected. Only `isolated` can be served until the network driver exists; the others are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum NetworkMode {
    /// No network at all.
    #[default]
    Isolated,
    /// Filtered access outwards.
    Filtered,
    /// Unfiltered access outwards.
    Open,
    /// On the host's bridge.
    Bridge,
}

/// Who is PID 1 in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum InitMode {
    /// Our agent: reaps, runs the start commands, serves the channel.
    #[default]
    Agent,
    /// The image's own init program (for example `/sbin/init`); the agent runs beside it.
    Image(String),
}

/// Format of a disk file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum DiskFormat {
    /// Bytes as they are.
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
}

/// A further disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExtraDisk {
    /// Name of the disk: its serial number in the guest (`/dev/disk/by-id` or `/sys/block/*/serial`), at most 20
    /// characters.
    pub name: Name,
    /// Path of a raw or qcow2 file on the host.
    pub path: String,
    /// Whether the guest may not write to it.
    #[serde(default)]
    pub read_only: bool,
    /// Format of the file. If it is not given, the file is examined once, when the VM is created; a guest that writes the
    /// header of another format to its disk changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
}

/// Choice of the hypervisor driver, as a text: `auto`, or the name of a driver.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HypervisorChoice {
    /// The server's first driver. A VM keeps the name of the one that it got; one without a name is of a server that knew
    /// QEMU only.
    #[default]
    Auto,
    /// The driver of this name.
    Named(Name),
}

impl HypervisorChoice {
    /// True where no driver is named.
    #[must_use]
    pub const fn is_auto(&self) -> bool {
        matches!(self, Self::Auto)
    }
}

impl TryFrom<String> for HypervisorChoice {
    type Error = crate::NameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Named) }
    }
}

impl From<HypervisorChoice> for String {
    fn from(choice: HypervisorChoice) -> Self {
        choice.to_string()
    }
}

impl std::fmt::Display for HypervisorChoice {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Named(name) => formatter.write_str(name.as_str()),
        }
    }
}

/// A named recipe. Files are YAML or JSON; every field but `image` has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Template {
    /// Name of the template; in a file the default is the file's name.
    pub name: Name,
    /// One line that tells what it is for.
    #[serde(default)]
    pub description: String,
    /// Name or digest of the image.
    pub image: String,
    /// Name of the kernel; `default` is the built kernel if there is one, else the distribution's.
    #[serde(default = "default_kernel")]
    pub kernel: String,
    /// Hypervisor driver that runs its VMs: `auto`, or a name such as `qemu`.
    #[serde(default, skip_serializing_if = "HypervisorChoice::is_auto")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub hypervisor: HypervisorChoice,
    /// Most processor time of a VM in percent of one processor of the host, 200 being two processors; absent: no limit. Needs
    /// the cpu controller of the host's control groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
    /// Arguments added to the kernel's command line.
    #[serde(default)]
    pub kernel_arguments: Vec<String>,
    /// Number of virtual processors.
    #[serde(default = "default_vcpus")]
    pub vcpus: u32,
    /// Memory; whole MiB.
    #[serde(default = "default_memory_mib")]
    pub memory_mib: u32,
    /// Most memory that a resize can give a VM, at most 8 times `memory_mib`; whole MiB. Absent: `memory_mib`. The machine is made
    /// with it, and it counts against limits; from a boot on the guest has `memory_mib` of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max_mib: Option<u32>,
    /// Size of the scratch disk, which holds all that the guest writes; whole MiB. Space is taken as it is used.
    #[serde(default = "default_disk_mib")]
    pub disk_mib: u32,
    /// How it is connected.
    #[serde(default)]
    pub network: NetworkMode,
    /// Variables of every command.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Commands run in the guest, in order, once it is up; each is given to `sh -c`.
    #[serde(default)]
    pub start_commands: Vec<String>,
    /// Commands run once, by `sh -c`, before the golden snapshot of the template is taken: what they read from the disk
    /// is in the memory of every VM from then on. One that fails, or takes longer than a minute, is noted in the
    /// server's log and changes nothing else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warm_up: Vec<String>,
    /// Who is PID 1.
    #[serde(default)]
    pub init: InitMode,
    /// Milliseconds within which the agent must answer after a cold boot.
    #[serde(default = "default_boot_timeout_ms")]
    pub boot_timeout_ms: u64,
    /// Labels every VM of this template gets.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Further disks.
    #[serde(default)]
    pub extra_disks: Vec<ExtraDisk>,
    /// Folders of the host that its VMs see.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
    /// Named volumes that its VMs have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeMount>,
    /// Hooks around lifecycle events.
    #[serde(default)]
    pub hooks: Vec<Hook>,
}

fn default_kernel() -> String {
    "default".to_owned()
}
const fn default_vcpus() -> u32 {
    1
}
const fn default_memory_mib() -> u32 {
    512
}
const fn default_disk_mib() -> u32 {
    10_240 // 10 GiB
}
const fn default_boot_timeout_ms() -> u64 {
    60_000
}

/// What a request may change of a template; absent fields keep the template's value. Maps are merged, lists replace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Overrides {
    /// See [`Template::image`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// See [`Template::kernel`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// See [`Template::kernel_arguments`]; added to the template's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_arguments: Vec<String>,
    /// See [`Template::vcpus`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// See [`Template::memory_mib`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// See [`Template::memory_max_mib`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max_mib: Option<u32>,
    /// See [`Template::disk_mib`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u32>,
    /// See [`Template::network`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    /// See [`Template::environment`]; merged over the template's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// See [`Template::start_commands`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_commands: Option<Vec<String>>,
    /// See [`Template::init`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<InitMode>,
    /// See [`Template::boot_timeout_ms`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_timeout_ms: Option<u64>,
    /// See [`Template::cpu_percent`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
    /// See [`Template::hypervisor`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub hypervisor: Option<HypervisorChoice>,
    /// See [`Template::extra_disks`]; added to the template's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_disks: Vec<ExtraDisk>,
    /// See [`Template::shares`]; added to the template's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
    /// See [`Template::volumes`]; added to the template's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeMount>,
    /// See [`Template::hooks`]; added to the template's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
}

impl Template {
    /// Most that the memory of a machine is of the memory that its guest has from a boot on, as a factor: the guest's kernel keeps notes
    /// of every page of the machine, a 64th of them all, and needs room for itself.
    pub const MEMORY_GROWTH_MOST: u32 = 8;

    /// Memory of the machine, in MiB: the most that its guest can have.
    #[must_use]
    pub fn machine_memory_mib(&self) -> u32 {
        self.memory_max_mib.map_or(self.memory_mib, |most| most.max(self.memory_mib))
    }

    /// Memory that a guest has from a boot on, in MiB; `None` where that is all of its machine's.
    #[must_use]
    pub fn memory_at_boot_mib(&self) -> Option<u32> {
        (self.memory_mib < self.machine_memory_mib()).then_some(self.memory_mib)
    }

    /// The template with a request's changes applied.
    #[must_use]
    pub fn with(mut self, overrides: Overrides) -> Self {
        fn set<T>(field: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *field = value;
            }
        }
        let Overrides {
            image,
            kernel,
            kernel_arguments,
            vcpus,
            memory_mib,
            memory_max_mib,
            disk_mib,
            network,
            environment,
            start_commands,
            init,
            boot_timeout_ms,
            cpu_percent,
            hypervisor,
            extra_disks,
            shares,
            volumes,
            hooks,
        } = overrides;
        set(&mut self.image, image);
        set(&mut self.kernel, kernel);
        set(&mut self.vcpus, vcpus);
        set(&mut self.memory_mib, memory_mib);
        set(&mut self.disk_mib, disk_mib);
        set(&mut self.network, network);
        set(&mut self.start_commands, start_commands);
        set(&mut self.init, init);
        set(&mut self.boot_timeout_ms, boot_timeout_ms);
        set(&mut self.hypervisor, hypervisor);
        self.memory_max_mib = match memory_max_mib {
            // The template's own is for the template's own size: it follows one that does not fit.
            None if memory_mib.is_some() => self.memory_max_mib.map(|most| {
                most.clamp(self.memory_mib, self.memory_mib.saturating_mul(Self::MEMORY_GROWTH_MOST))
            }),
            most => most.or(self.memory_max_mib),
        };
        self.cpu_percent = cpu_percent.or(self.cpu_percent);
        self.kernel_arguments.extend(kernel_arguments);
        self.environment.extend(environment);
        self.extra_disks.extend(extra_disks);
        self.shares.extend(shares);
        self.volumes.extend(volumes);
        self.hooks.extend(hooks);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> Template {
        serde_json::from_str(r#"{"name": "t", "image": "debian-python"}"#).unwrap()
    }

    #[test]
    fn defaults_are_filled_in_and_typing_errors_found() {
        let template = minimal();
        assert_eq!((template.vcpus, template.memory_mib, template.disk_mib), (1, 512, 10_240));
        assert_eq!(template.kernel, "default");
        assert_eq!(template.hypervisor, HypervisorChoice::Auto);
        let written = serde_json::to_string(&template).unwrap();
        assert!(
            !written.contains("hypervisor"),
            "a template of earlier versions is written as ever: {written}"
        );
        let named: Template =
            serde_json::from_str(r#"{"name":"t","image":"i","hypervisor":"qemu"}"#).unwrap();
        assert_eq!(named.hypervisor.to_string(), "qemu");
        assert_eq!(serde_json::from_str::<Template>(&serde_json::to_string(&named).unwrap()).unwrap(), named);
        assert!(serde_json::from_str::<Template>(r#"{"name":"t","image":"i","hypervisor":"a b"}"#).is_err());
        assert!(serde_json::from_str::<Template>(r#"{"name":"t","image":"i","vcpu":2}"#).is_err());
        assert!(serde_json::from_str::<Template>(r#"{"name":"t","image":"i","vcpus":-2}"#).is_err());
    }

    #[test]
    fn the_machine_has_the_most_and_the_guest_what_was_asked_for() {
        let template = minimal();
        assert_eq!((template.machine_memory_mib(), template.memory_at_boot_mib()), (512, None));
        assert!(!serde_json::to_string(&template).unwrap().contains("memory_max_mib"));
        let larger = template.clone().with(Overrides { memory_max_mib: Some(2_048), ..Overrides::default() });
        assert_eq!((larger.machine_memory_mib(), larger.memory_at_boot_mib()), (2_048, Some(512)));
        let kept = larger.with(Overrides { memory_mib: Some(2_048), ..Overrides::default() });
        assert_eq!((kept.machine_memory_mib(), kept.memory_at_boot_mib()), (2_048, None));
        // The template's own most follows a size that it does not fit, and one that is asked for does not.
        let grows = Template { memory_max_mib: Some(2_048), ..template.clone() };
        for (memory_mib, most) in [(128, 1_024), (256, 2_048), (2_048, 2_048), (4_096, 4_096)] {
            let asked = Overrides { memory_mib: Some(memory_mib), ..Overrides::default() };
            let made = grows.clone().with(asked.clone());
            assert_eq!((made.memory_mib, made.memory_max_mib), (memory_mib, Some(most)));
            let both = Overrides { memory_max_mib: Some(2_048), ..asked };
            assert_eq!(grows.clone().with(both).memory_max_mib, Some(2_048));
        }
        // As a file may say it; a server refuses it.
        let less = template.with(Overrides { memory_max_mib: Some(64), ..Overrides::default() });
        assert_eq!((less.machine_memory_mib(), less.memory_at_boot_mib()), (512, None));
    }

    #[test]
    fn overrides_merge_maps_and_replace_values() {
        let mut template = minimal();
        template.environment.insert("A".into(), "1".into());
        template.environment.insert("B".into(), "1".into());
        let merged = template.with(Overrides {
            vcpus: Some(4),
            environment: BTreeMap::from([("B".into(), "2".into())]),
            ..Overrides::default()
        });
        assert_eq!(merged.vcpus, 4);
        assert_eq!(merged.environment["A"], "1");
        assert_eq!(merged.environment["B"], "2");
    }
}
