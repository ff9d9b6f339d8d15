//! Settings from arguments and environment: the root directory, and the zone of timestamps.

use camino::{Utf8Path, Utf8PathBuf};
use microvm_api::time::{DEFAULT_ZONE, Zone};
use microvm_types::ErrorKind;

use crate::error::CliError;
use crate::variables;

/// Name of the variable that chooses the zone of all timestamps.
const ZONE_VARIABLE: &str = "MICROVM_TIME_ZONE";

/// Settings of the server.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Root directory: absolute.
    pub(crate) root: Utf8PathBuf,
    /// Zone of all timestamps.
    pub(crate) zone: Zone,
}

impl Settings {
    /// Settings for a root given on the command line or by `MICROVM_ROOT`, or the usual one.
    pub(crate) fn new(root: Option<Utf8PathBuf>) -> Result<Self, CliError> {
        let root = match root {
            Some(root) => absolute(&root)?,
            None => default_root()?,
        };
        let zone = variables::read(ZONE_VARIABLE)?.unwrap_or_else(|| DEFAULT_ZONE.to_owned());
        let zone = Zone::named(&zone)
            .map_err(|error| CliError::invalid("time_zone_unknown", format!("{ZONE_VARIABLE}: {error}")))?;
        Ok(Self { root, zone })
    }
}

fn default_root() -> Result<Utf8PathBuf, CliError> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/microvm".into());
    }
    let folder = |variable: &str| {
        let path = variables::read(variable)?.map(Utf8PathBuf::from);
        // The XDG specification has relative paths ignored.
        Ok::<_, CliError>(path.filter(|path| path.is_absolute()))
    };
    let data = match folder("XDG_DATA_HOME")? {
        None => folder("HOME")?.map(|home| home.join(".local/share")),
        data => data,
    };
    data.map(|data| data.join("microvm")).ok_or_else(|| {
        let detail =
            "neither XDG_DATA_HOME nor HOME is set, so there is no place for images and VMs: use --root DIR";
        CliError::new(ErrorKind::Invalid, "root_unknown", detail)
    })
}

/// A path made absolute by the current directory.
pub(crate) fn absolute(path: &Utf8Path) -> Result<Utf8PathBuf, CliError> {
    let full = std::path::absolute(path).map_err(|error| CliError::file("finding", path, &error))?;
    Utf8PathBuf::from_path_buf(full).map_err(|full| {
        CliError::invalid("path_invalid", format!("{full:?} is not UTF-8: run this from another directory"))
    })
}
