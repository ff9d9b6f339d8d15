//! Abilities of a hypervisor driver: one typed value, from which `doctor`, admission checks, the conformance suite and the
//! table in `docs/drivers.md` are made. Texts in it are for people; nothing compares them.

use std::collections::BTreeMap;
use std::fmt;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

/// Probe result of one driver on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Name of the driver, for example `qemu`.
    pub driver: &'static str,
    /// Version of the VMM program.
    pub version: String,
    /// Path of the VMM program; `None` if the driver runs none.
    pub program: Option<Utf8PathBuf>,
    /// Execution of guest instructions.
    pub accelerator: Accelerator,
    /// Confinement layers by name.
    pub confinement: BTreeMap<String, Feature>,
    /// Copying of memory before the pause of a live save, so that only later writes are copied in it.
    pub copying_ahead: Feature,
    /// Abilities on this host.
    pub abilities: Abilities,
}

/// A feature that a host may lack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Feature {
    /// In use; with a detail for people if there is one.
    On(Option<String>),
    /// Not in use, and the reason.
    Off(String),
}

impl Feature {
    /// True if it is in use.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        matches!(self, Self::On(_))
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On(None) => formatter.write_str("on"),
            Self::On(Some(detail)) => write!(formatter, "on: {detail}"),
            Self::Off(reason) => write!(formatter, "off: {reason}"),
        }
    }
}

/// Execution of guest instructions, and the reason for the choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accelerator {
    /// Kind in use.
    pub kind: AcceleratorKind,
    /// Reason and cost, in a sentence.
    pub reason: String,
}

/// Kinds of execution of guest instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceleratorKind {
    /// The processor itself, by KVM.
    Kvm,
    /// Emulation by QEMU's translator.
    Tcg,
    /// Nothing is executed: the in-memory fake.
    None,
}

impl AcceleratorKind {
    /// True if instructions are emulated: slow, and no hardware boundary.
    #[must_use]
    pub const fn is_emulation(self) -> bool {
        matches!(self, Self::Tcg)
    }
}

impl fmt::Display for AcceleratorKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::None => "none",
        })
    }
}

/// Abilities of a driver, independent of one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// Ways to boot.
    pub boot: BootKinds,
    /// Formats of writable disks; read-only images are raw with every driver.
    pub disks: DiskFormats,
    /// Devices of one machine beyond its channel, image and scratch disk: further disks, shares, NICs and displays together.
    pub most_devices: usize,
    /// Network interfaces of one machine.
    pub nics: u32,
    /// Display of a machine; `None`: it has none.
    pub display: Option<DisplayKind>,
    /// Transport of the guest channel.
    pub channel: ChannelKind,
    /// Saving of running machines.
    pub save: SaveKind,
    /// Loading of saved states.
    pub load: LoadKind,
    /// Making of new machines from a running one.
    pub fork: ForkKinds,
    /// Sharing of host folders; `None`: a machine with shares is refused.
    pub sharing: Option<Sharing>,
    /// VMM processes started ahead of the state that they load.
    pub standby: bool,
    /// Memory given back and taken again while the machine runs.
    pub balloon: bool,
    /// Devices added while the machine runs.
    pub hotplug: Hotplug,
    /// Virtual processors of one machine.
    pub vcpu_most: u32,
    /// Limit of the processor time of a VMM.
    pub cpu_limit: bool,
}

/// Ways to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootKinds {
    /// A kernel with its initial file system, loaded by the VMM.
    pub kernel: bool,
    /// Firmware that looks for a boot loader on a disk.
    pub firmware: bool,
}

/// Formats of writable disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskFormats {
    /// Bytes as they are.
    pub raw: bool,
    /// Copy-on-write layers.
    pub qcow2: bool,
}

/// Protocol of a display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DisplayKind {
    /// VNC on a unix socket.
    Vnc,
}

/// Transport of the guest channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelKind {
    /// A named port of a virtio-serial device.
    VirtioSerial,
    /// Function calls: the in-memory fake.
    InMemory,
}

/// Behaviour of a machine while its state is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveKind {
    /// Machines cannot be saved.
    None,
    /// The machine ends with the save, and can be launched again from the saved state.
    Stops,
    /// The machine is paused until all of its memory is written.
    Paused {
        /// Form of the saved memory.
        memory: MemoryShape,
    },
    /// The machine is paused for milliseconds.
    Live {
        /// Form of the saved memory.
        memory: MemoryShape,
    },
}

/// Form in which a launch takes the memory of a saved state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadKind {
    /// Saved states cannot be loaded.
    None,
    /// Memory in this form.
    Memory(MemoryShape),
}

/// Form of the memory in a saved state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryShape {
    /// Pages that differ from an immutable base file, which the machine maps privately.
    #[default]
    PagesOverBase,
    /// One file of the size of the memory.
    WholeFile,
    /// One sparse file of the size of the memory, with the pages that were written since the machine's save before. A form of
    /// saves only: a launch takes a whole file.
    SparseFileOverPrevious,
    /// Part of the VMM's own state, which nobody else can read.
    InsideState,
}

/// Ways to make new machines from a running one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForkKinds {
    /// By launching them from a saved state.
    pub state: bool,
}

/// Way of sharing host folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// 9P over virtio: the guest's kernel needs that file system. Such a machine cannot be saved.
    Plan9,
}

/// Devices that can be added while a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hotplug {
    /// Disks.
    pub disks: bool,
    /// Network interfaces.
    pub nics: bool,
}

impl SaveKind {
    /// Form of the saved memory; `None` if machines cannot be saved.
    #[must_use]
    pub const fn memory(self) -> Option<MemoryShape> {
        match self {
            Self::None => None,
            Self::Stops => Some(MemoryShape::InsideState),
            Self::Paused { memory } | Self::Live { memory } => Some(memory),
        }
    }
}

/// Words of a list of alternatives that are there.
fn listed(words: &[(bool, &str)]) -> String {
    let there: Vec<&str> = words.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
    if there.is_empty() { "no".to_owned() } else { there.join(", ") }
}

const fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

impl LoadKind {
    /// Form of the memory that a launch takes; `None` if saved states cannot be loaded.
    #[must_use]
    pub const fn memory(self) -> Option<MemoryShape> {
        match self {
            Self::None => None,
            Self::Memory(memory) => Some(memory),
        }
    }
}

impl MemoryShape {
    /// True for the form that every store of this program has written since its first version.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        *self == Self::PagesOverBase
    }

    const fn words(self) -> &'static str {
        match self {
            Self::PagesOverBase => "pages over a base file",
            Self::WholeFile => "one whole file",
            Self::SparseFileOverPrevious => "one sparse file over the save before",
            Self::InsideState => "inside the VMM's state",
        }
    }
}

impl Abilities {
    /// Abilities of a VMM that can nothing but boot a kernel on one processor.
    pub const NONE: Self = Self {
        boot: BootKinds { kernel: true, firmware: false },
        disks: DiskFormats { raw: true, qcow2: false },
        most_devices: 0,
        nics: 0,
        display: None,
        channel: ChannelKind::InMemory,
        save: SaveKind::None,
        load: LoadKind::None,
        fork: ForkKinds { state: false },
        sharing: None,
        standby: false,
        balloon: false,
        hotplug: Hotplug { disks: false, nics: false },
        vcpu_most: 1,
        cpu_limit: false,
    };

    /// Every ability as a row for people: its name and its value. All fields are named, so that a new one is a new row.
    #[must_use]
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let Self {
            boot: BootKinds { kernel, firmware },
            disks: DiskFormats { raw, qcow2 },
            most_devices,
            nics,
            display,
            channel,
            save,
            load,
            fork: ForkKinds { state },
            sharing,
            standby,
            balloon,
            hotplug: Hotplug { disks, nics: hot_nics },
            vcpu_most,
            cpu_limit,
        } = self;
        let save = match save {
            SaveKind::None => "no".to_owned(),
            SaveKind::Stops => "the machine ends with it".to_owned(),
            SaveKind::Paused { memory } => format!("paused, {}", memory.words()),
            SaveKind::Live { memory } => format!("live, {}", memory.words()),
        };
        let load = match load {
            LoadKind::None => "no",
            LoadKind::Memory(memory) => memory.words(),
        };
        let channel = match channel {
            ChannelKind::VirtioSerial => "virtio-serial",
            ChannelKind::InMemory => "in memory",
        };
        let sharing = sharing.map_or("no", |Sharing::Plan9| "9P over virtio");
        let display = display.map_or("no", |DisplayKind::Vnc| "VNC");
        vec![
            ("boot", listed(&[(*kernel, "kernel"), (*firmware, "firmware")])),
            ("formats of writable disks", listed(&[(*raw, "raw"), (*qcow2, "qcow2")])),
            ("further devices of a machine, at most", most_devices.to_string()),
            ("network interfaces, at most", nics.to_string()),
            ("display", display.to_owned()),
            ("guest channel", channel.to_owned()),
            ("save", save),
            ("load", load.to_owned()),
            ("fork", listed(&[(*state, "from a saved state")])),
            ("shared folders", sharing.to_owned()),
            ("standby VMMs", yes(*standby).to_owned()),
            ("balloon", yes(*balloon).to_owned()),
            ("hotplug", listed(&[(*disks, "disks"), (*hot_nics, "network interfaces")])),
            ("virtual processors, at most", vcpu_most.to_string()),
            ("limit of processor time", yes(*cpu_limit).to_owned()),
        ]
    }
}

/// Markdown table of several drivers, one column each.
#[must_use]
pub fn table(drivers: &[(&str, Abilities)]) -> String {
    use fmt::Write as _;
    let mut text = String::from("| |");
    for (name, _) in drivers {
        let _ = write!(text, " `{name}` |");
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(drivers.len()));
    let columns: Vec<_> = drivers.iter().map(|(_, abilities)| abilities.rows()).collect();
    let first = columns.first().into_iter().flatten();
    for (index, (name, _)) in first.enumerate() {
        let _ = write!(text, "\n| {name} |");
        for column in &columns {
            let _ = write!(text, " {} |", column[index].1);
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_typed_and_read_well() {
        assert_eq!(Feature::On(None).to_string(), "on");
        assert_eq!(Feature::On(Some("ABI 7".to_owned())).to_string(), "on: ABI 7");
        let off = Feature::Off("no root".to_owned());
        assert_eq!((off.is_on(), off.to_string().as_str()), (false, "off: no root"));
    }

    #[test]
    fn memory_of_a_save_follows_from_its_kind() {
        assert_eq!(SaveKind::None.memory(), None);
        assert_eq!(SaveKind::Stops.memory(), Some(MemoryShape::InsideState));
        let whole = SaveKind::Paused { memory: MemoryShape::WholeFile };
        assert_eq!(whole.memory(), Some(MemoryShape::WholeFile));
    }
}
