//! The engine: what edges open, and what each caller gets of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use microvm_types::Caller;
use microvm_types::vm::LOCAL_TENANT;

use crate::branch::Branches;
use crate::catalog::{self, Catalog, Exports};
use crate::context::Context;
use crate::error::ServiceError;
use crate::events::Observer;
use crate::golden::{self, Goldens};
use crate::host::Host;
use crate::kept::{self, Snapshots};
use crate::pools::Pools;
use crate::ports::Ports;
use crate::settings::Settings;
use crate::vm::shared::Shared;
use crate::vms::{self, Vms};
use crate::volumes::{self, Volumes};

/// The engine. Use it as `Arc<Engine>`; all methods may be called at the same time.
pub struct Engine {
    shared: Arc<Shared>,
}

/// The services of the engine, as one caller sees them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Services {
    /// VMs and their life.
    pub vms: Vms,
    /// Forks, snapshots being taken, and what is made of them.
    pub branches: Branches,
    /// Snapshots that were taken.
    pub snapshots: Snapshots,
    /// Golden snapshots of templates.
    pub goldens: Goldens,
    /// Pools.
    pub pools: Pools,
    /// Images, kernels and templates.
    pub catalog: Catalog,
    /// Files of images for other programs.
    pub exports: Exports,
    /// Named volumes.
    pub volumes: Volumes,
    /// The host and the engine itself.
    pub host: Host,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Engine").field("ports", &self.shared.ports).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the engine: cleans up after a crash and takes up the VMs that are still there.
    ///
    /// # Errors
    /// If the store cannot be read, or leftovers cannot be removed.
    pub async fn open(ports: Ports, settings: Settings) -> Result<Arc<Self>, ServiceError> {
        let shared = Shared::new(ports, settings);
        let server = Services::of(&Context::server(&shared, LOCAL_TENANT));
        // Before the VMs are taken up: sleepers and children need to find what they build on.
        kept::load(&shared).await?;
        golden::load(&shared).await?;
        volumes::load(&shared).await?;
        vms::reconcile::reconcile(&shared).await?;
        kept::remove_stray_sleeps(&shared).await;
        golden::remove_stray_builders(&shared);
        // After the VMs: those that wait are put back into their pools.
        server.pools.load().await?;
        shared.actors.spawn(catalog::between::remove_cut_off(server.catalog.clone()));
        shared.actors.spawn(kept::keep_clean(Arc::clone(&shared)));
        let of_tenants = {
            let shared = Arc::clone(&shared);
            move || {
                let tenants: BTreeSet<String> =
                    shared.snapshots.all().into_iter().map(|one| one.record.tenant).collect();
                tenants.iter().map(|tenant| Snapshots::new(&Context::server(&shared, tenant))).collect()
            }
        };
        shared.actors.spawn(kept::keep_young(Arc::clone(&shared), of_tenants));
        shared.actors.spawn(golden::keep_young(server.goldens));
        shared.actors.spawn(vms::room::keep_room(Arc::clone(&shared)));
        // Leftovers of the last server are looked for once.
        shared.litter.notify_one();
        Ok(Arc::new(Self { shared }))
    }

    /// Ends the engine; machines go on running and are taken up by the next one.
    pub async fn close(&self) {
        // First, so that no actor begins anything new while the others are waited for.
        self.shared.ending.cancel();
        self.shared.actors.close();
        self.shared.actors.wait().await;
    }

    /// The services, for one caller: who sees the VMs, snapshots and pools of its tenant, and no others. `correlation`: what
    /// all events of this request are to have in common, such as its id.
    #[must_use]
    pub fn as_caller(&self, caller: &Caller, correlation: &str) -> Services {
        Services::of(&Context::new(&self.shared, caller.clone(), correlation))
    }

    /// Has an observer told of every event from now on.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.shared.events.observe(observer);
    }

    /// The wall clock, in milliseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        self.shared.ports.clock.now_ms()
    }
}

impl Services {
    fn of(context: &Context) -> Self {
        Self {
            vms: Vms::new(context),
            branches: Branches::new(context),
            snapshots: Snapshots::new(context),
            goldens: Goldens::new(context),
            pools: Pools::new(context),
            catalog: Catalog::new(context),
            exports: Exports::new(context),
            volumes: Volumes::new(context),
            host: Host::new(context),
        }
    }
}
