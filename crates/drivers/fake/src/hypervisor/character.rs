//! Characters of fake hypervisors: each saves and loads machines as another family of VMMs does.

use microvm_ports::capabilities::{
    Abilities, BootKinds, ChannelKind, DiskFormats, ForkKinds, Hotplug, LoadKind, MemoryShape, SaveKind,
    Sharing,
};

/// Manner of saving and loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Character {
    /// Live, as pages over a base file; VMMs wait for states. (QEMU of this program.)
    #[default]
    LivePages,
    /// Paused, as one whole file. (Cloud Hypervisor.)
    PausedFile,
    /// Paused, as one sparse file over the save before. (Firecracker.)
    PausedSparse,
    /// The machine ends with the save, its memory is inside the state. (libvirt's managed save.)
    Stops,
}

impl Character {
    /// Every character.
    pub const ALL: [Self; 4] = [Self::LivePages, Self::PausedFile, Self::PausedSparse, Self::Stops];

    /// Name of the driver.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LivePages => "fake",
            Self::PausedFile => "fake-paused",
            Self::PausedSparse => "fake-sparse",
            Self::Stops => "fake-stops",
        }
    }

    /// Abilities while nothing was forbidden.
    #[must_use]
    pub const fn abilities(self) -> Abilities {
        let (save, memory) = match self {
            Self::LivePages => {
                (SaveKind::Live { memory: MemoryShape::PagesOverBase }, MemoryShape::PagesOverBase)
            }
            Self::PausedFile => (SaveKind::Paused { memory: MemoryShape::WholeFile }, MemoryShape::WholeFile),
            Self::PausedSparse => {
                (SaveKind::Paused { memory: MemoryShape::SparseFileOverPrevious }, MemoryShape::WholeFile)
            }
            Self::Stops => (SaveKind::Stops, MemoryShape::InsideState),
        };
        Abilities {
            boot: BootKinds { kernel: true, firmware: false },
            disks: DiskFormats { raw: true, qcow2: true },
            most_devices: 20,
            nics: 0,
            display: None,
            channel: ChannelKind::InMemory,
            save,
            load: LoadKind::Memory(memory),
            fork: ForkKinds { state: true },
            sharing: Some(Sharing::Plan9),
            standby: matches!(self, Self::LivePages),
            balloon: false,
            hotplug: Hotplug { disks: false, nics: false },
            vcpu_most: 64,
            cpu_limit: false,
        }
    }
}
