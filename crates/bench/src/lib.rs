//! Benchmarks of an installation: every promised number, beside the floor it is held against, measured in the same run.
//!
//! ```text
//!   Scene (client, bare QEMU, stores) ─▶ parts (boot, channel, footprint, fork, pool, density,
//!                                             reliability, load) ─▶ rows ─▶ Report
//! ```
//!
//! Absolute times mean little on a shared machine; the ratio to the floor is what counts. Rounds of floor and product take
//! turns, the first round is dropped, and the report names the host. What this crate does *not* do: parse arguments, print,
//! start a server.

mod bare;
mod bare_child;
mod bare_line;
mod bare_qmp;
mod boot;
mod channel;
mod density;
mod dirt;
mod error;
mod footprint;
mod fork;
mod growth;
mod host;
mod load;
mod marks;
mod pause;
mod pool;
mod reliability;
mod report;
mod samples;
mod saved;
mod tidy;

use camino::Utf8PathBuf;

pub use bare::BareHost;
pub use error::BenchError;
use error::failed;
pub use host::HostStamp;
pub use report::{Promise, Report, Row};
pub use samples::Percentiles;

/// A part of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Cold boots with each kernel, one and two at once.
    Boot,
    /// Ping, exec and file transfer.
    Channel,
    /// Memory and start times of server and command line.
    Footprint,
    /// Pause of a live branch, forks to their first answer, memory of children, snapshots.
    Fork,
    /// VMs handed out of a pool.
    Pool,
    /// As many living VMs as the host can hold.
    Density,
    /// How often boots, restores, pools and runs succeed. Only if it is asked for: it takes an hour on two cores.
    Reliability,
    /// Requests per second of the server, with many at once. Only if it is asked for: it is a load.
    Load,
}

/// Everything that the parts need.
pub struct Scene {
    /// The server that is measured.
    pub client: microvm_client::Client,
    /// Root directory of the server, for servers of its own that a part starts below it.
    pub root: Utf8PathBuf,
    /// Bare machines on this host.
    pub bare: BareHost,
    /// Boots and transfers measured of each kind, after one that is dropped.
    pub rounds: u32,
    /// VMs of the part `density`.
    pub count: u32,
    /// Tries of each kind in the part `reliability`.
    pub tries: u32,
    /// Requests under way at once in the part `load`.
    pub concurrency: u32,
    /// Seconds that each kind of request is sent for in the part `load`.
    pub seconds: u32,
    /// Also what takes long: growth of forks with their count, with memory and with changes.
    pub full: bool,
    /// Called with each step that begins.
    pub notice: Box<dyn Fn(&str) + Send + Sync>,
}

impl Scene {
    fn say(&self, text: &str) {
        (self.notice)(text);
    }

    /// Measures the parts; an empty list means all but `Reliability` and `Load`. VMs, pools and snapshots may be left behind, by an error or by
    /// cancelling: call [`Self::tidy`] in any case.
    ///
    /// # Errors
    /// [`BenchError`] if the server or the host fails.
    pub async fn measure(&self, parts: &[Part]) -> Result<Report, BenchError> {
        let wanted = |part| parts.is_empty() || parts.contains(&part);
        let mut rows = Vec::new();
        if wanted(Part::Boot) {
            rows.extend(boot::measure(self).await?);
        }
        if wanted(Part::Channel) {
            rows.extend(channel::measure(self).await?);
        }
        if wanted(Part::Footprint) {
            rows.extend(footprint::measure(self).await?);
        }
        if wanted(Part::Fork) {
            rows.extend(pause::measure(self).await?);
            rows.extend(fork::measure(self).await?);
            rows.push(saved::measure(self).await?);
            if self.full {
                rows.extend(growth::measure(self).await?);
            }
        }
        if wanted(Part::Pool) {
            rows.extend(pool::measure(self).await?);
        }
        if wanted(Part::Density) {
            rows.extend(density::measure(self).await?);
        }
        if parts.contains(&Part::Reliability) {
            rows.extend(reliability::measure(self).await?);
        }
        if parts.contains(&Part::Load) {
            rows.extend(load::measure(self).await?);
        }
        Ok(Report { host: host::stamp(self).await?, rounds: self.rounds, rows })
    }

    /// Deletes everything that [`Self::measure`] left on the server.
    ///
    /// # Errors
    /// The first failure; everything was tried.
    pub async fn tidy(&self) -> Result<(), BenchError> {
        tidy::all(self).await
    }
}
