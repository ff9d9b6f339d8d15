//! Views of a VM: for callers, and for the services.

use std::collections::BTreeMap;
use std::sync::Arc;

use microvm_ports::{Guest, Machine};
use microvm_types::guest::AgentInfo;
use microvm_types::vm::VmRecord;
use microvm_types::{Phase, VmId};

use crate::state::GOLDEN_LABEL;

/// A VM as it is at one moment.
#[derive(Debug, Clone)]
pub struct VmView {
    /// Its durable record.
    pub record: VmRecord,
    /// Answer of its agent to the handshake, while the channel is open.
    pub agent: Option<AgentInfo>,
    /// Set while its machine runs and its agent does not answer.
    pub unreachable: Option<Unreachable>,
}

/// A VM whose machine runs and whose agent does not answer. The machine is left alone, and the server tries to reach the
/// agent until it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreachable {
    /// Since when, in milliseconds since 1970-01-01T00:00:00Z.
    pub since_ms: i64,
    /// Observation that it was lost by.
    pub reason: String,
    /// True once its channel could not be opened again; until then requests wait for it.
    pub(crate) tried: bool,
}

impl VmView {
    /// Its id.
    #[must_use]
    pub const fn id(&self) -> &VmId {
        &self.record.id
    }
}

/// Filter of a list of VMs; every condition must hold.
#[derive(Debug, Clone, Default)]
pub struct VmFilter {
    /// Labels with exactly these values.
    pub labels: BTreeMap<String, String>,
    /// Metadata with exactly these values.
    pub metadata: BTreeMap<String, String>,
    /// One of these phases; empty: any.
    pub phases: Vec<Phase>,
    /// A part of the name.
    pub name_contains: Option<String>,
    /// Those that wait in a pool too.
    pub waiting: bool,
}

impl VmFilter {
    pub(crate) fn matches(&self, record: &VmRecord) -> bool {
        let has = |wanted: &BTreeMap<String, String>, there: &BTreeMap<String, String>| {
            wanted.iter().all(|(key, value)| there.get(key) == Some(value))
        };
        // What the server makes for itself is not shown.
        let own = record.labels.contains_key(GOLDEN_LABEL) || record.is_pools();
        (self.waiting || !own)
            && has(&self.labels, &record.labels)
            && has(&self.metadata, &record.metadata)
            && (self.phases.is_empty() || self.phases.contains(&record.phase()))
            && self.name_contains.as_ref().is_none_or(|part| record.name.as_str().contains(part.as_str()))
    }
}

/// State that an actor publishes after every change.
#[derive(Clone)]
pub(crate) struct Published {
    /// The record as stored or about to be.
    pub(crate) record: VmRecord,
    /// The machine, while there is one.
    pub(crate) machine: Option<Arc<dyn Machine>>,
    /// The guest, while its channel is open.
    pub(crate) guest: Option<Arc<dyn Guest>>,
    /// Set while the machine runs and the agent does not answer.
    pub(crate) unreachable: Option<Unreachable>,
    /// Set while its machine ends only to begin again: the VM goes back to a snapshot.
    pub(crate) comes_back: bool,
    /// Set while its memory is written to disk, until its phase says so.
    pub(crate) goes_to_disk: bool,
}

impl Published {
    /// True while the VM is under way to where it can be used, and nobody has to ask for that: it starts or wakes, goes back to a
    /// snapshot, or goes to disk, from where the next request wakes it.
    pub(crate) fn is_under_way(&self) -> bool {
        match self.record.phase() {
            Phase::Starting => true,
            Phase::Stopping => self.comes_back || self.record.life.asleep().is_some(),
            Phase::Stopped | Phase::Hibernated | Phase::Failed => self.comes_back,
            Phase::Running | Phase::Paused => self.goes_to_disk,
            Phase::Creating | Phase::Pooled | Phase::Deleting | Phase::Deleted => false,
        }
    }

    /// True if the VM is gone for good.
    pub(crate) fn gone(&self) -> bool {
        self.record.phase() == Phase::Deleted
    }

    pub(crate) fn view(&self) -> VmView {
        VmView {
            record: self.record.clone(),
            agent: self.guest.as_ref().map(|guest| guest.agent().clone()),
            unreachable: self.unreachable.clone(),
        }
    }
}
