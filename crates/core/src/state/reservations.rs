//! Reservations: the one place where the limits of the host are counted. What is reserved is given back when
//! the reservation is dropped, so no way out of a request can forget it, and no two requests can have the last place.

use std::sync::{Arc, Mutex, PoisonError};

use microvm_types::template::Template;

use crate::error::ServiceError;
use crate::settings::HostLimits;
use crate::undo::{self, Undo};

/// Largest demand of one VM, for as long as it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Demand {
    memory_mib: u64,
    disk_mib: u64,
}

impl Demand {
    pub(crate) fn of(template: &Template) -> Self {
        // All that a resize can give it: that is promised.
        Self { memory_mib: template.machine_memory_mib().into(), disk_mib: template.disk_mib.into() }
    }
}

/// Sum of all reservations.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Taken {
    vms: usize,
    memory_mib: u64,
    disk_mib: u64,
}

/// A place for one VM, and what it takes.
pub(crate) type Reservation = Undo<(Arc<Mutex<Taken>>, Demand)>;

/// All reservations.
#[derive(Debug)]
pub(crate) struct Reservations {
    limits: HostLimits,
    taken: Arc<Mutex<Taken>>,
}

impl Reservations {
    pub(crate) fn within(limits: HostLimits) -> Self {
        Self { limits, taken: Arc::default() }
    }

    /// Places for `count` VMs that take `demand` each: all of them, or none.
    pub(crate) fn reserve(&self, count: usize, demand: Demand) -> Result<Vec<Reservation>, ServiceError> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let now = *taken;
        let HostLimits { max_vms, total_memory_mib, total_disk_mib, .. } = self.limits;
        if now.vms.saturating_add(count) > max_vms {
            return Err(ServiceError::TooManyVms { limit: max_vms });
        }
        let wanted = |one: u64| one.saturating_mul(count as u64);
        check("memory_mib", now.memory_mib, wanted(demand.memory_mib), total_memory_mib)?;
        check("disk_mib", now.disk_mib, wanted(demand.disk_mib), total_disk_mib)?;
        Ok((0..count).map(|_| self.take(&mut taken, demand)).collect())
    }

    /// A place for one VM.
    pub(crate) fn one(&self, demand: Demand) -> Result<Reservation, ServiceError> {
        self.reserve(1, demand)?.pop().ok_or(ServiceError::TooManyVms { limit: self.limits.max_vms })
    }

    /// A place for a VM that exists already, also beyond limits: what exists is served even if they were lowered meanwhile.
    pub(crate) fn existing(&self, demand: Demand) -> Reservation {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        self.take(&mut taken, demand)
    }

    fn take(&self, taken: &mut Taken, demand: Demand) -> Reservation {
        taken.vms += 1;
        taken.memory_mib += demand.memory_mib;
        taken.disk_mib += demand.disk_mib;
        undo::unless_kept((Arc::clone(&self.taken), demand), |(taken, demand)| {
            let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
            let Demand { memory_mib, disk_mib } = demand;
            taken.vms -= 1;
            taken.memory_mib -= memory_mib;
            taken.disk_mib -= disk_mib;
        })
    }
}

fn check(what: &'static str, taken: u64, wanted: u64, limit: Option<u64>) -> Result<(), ServiceError> {
    let Some(limit) = limit else { return Ok(()) };
    let free = limit.saturating_sub(taken);
    if wanted > free {
        return Err(ServiceError::NoneLeft { what, asked: wanted, free, limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_a_vm_can_grow_to_counts() {
        let template: Template = serde_json::from_str(
            r#"{"name":"t","image":"i","memory_mib":512,"memory_max_mib":2048,"disk_mib":1}"#,
        )
        .unwrap();
        assert_eq!(Demand::of(&template), Demand { memory_mib: 2_048, disk_mib: 1 });
    }

    #[test]
    fn all_or_none_is_reserved_and_given_back() {
        let limits = HostLimits { max_vms: 4, total_memory_mib: Some(1_000), ..HostLimits::default() };
        let all = Reservations::within(limits);
        let small = Demand { memory_mib: 300, disk_mib: 1 };
        let code = |outcome: Result<Vec<Reservation>, ServiceError>| outcome.err().map(|error| error.code());
        let two = all.reserve(2, small).unwrap();
        assert_eq!(code(all.reserve(2, small)), Some("limit_reached"), "1,200 of 1,000 MiB");
        let third = all.reserve(1, small).unwrap();
        assert_eq!(code(all.reserve(1, small)), Some("limit_reached"));
        assert_eq!(code(all.reserve(2, Demand { memory_mib: 1, disk_mib: 1 })), Some("too_many_vms"));
        drop(third);
        drop(two);
        assert_eq!(all.taken.lock().unwrap().memory_mib, 0);
        let beyond: Vec<Reservation> = (0..5).map(|_| all.existing(small)).collect();
        assert_eq!(code(all.reserve(1, Demand { memory_mib: 0, disk_mib: 0 })), Some("too_many_vms"));
        drop(beyond);
        assert_eq!(all.taken.lock().unwrap().vms, 0);
    }
}
