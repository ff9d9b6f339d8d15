//! Which host programs are there, for `microvm doctor`.

use camino::Utf8PathBuf;

use crate::base::tool;

/// A host program the store may need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolStatus {
    /// Name of the program.
    pub program: &'static str,
    /// Debian package that has it.
    pub package: &'static str,
    /// What it is needed for.
    pub purpose: &'static str,
    /// Where it was found, if it was.
    pub path: Option<Utf8PathBuf>,
}

/// Looks for every program the store may need.
#[must_use]
pub fn host_tools() -> Vec<ToolStatus> {
    [
        tool::MKE2FS,
        tool::MMDEBSTRAP,
        tool::SETPRIV,
        tool::UNSHARE,
        tool::APT_GET,
        tool::APT_CACHE,
        tool::DPKG_DEB,
        tool::TAR,
        tool::MAKE,
        tool::GCC,
        tool::LD,
        tool::STRIP,
        tool::FLEX,
        tool::BISON,
        tool::BC,
        tool::PERL,
    ]
    .into_iter()
    .map(|tool| ToolStatus {
        program: tool.program,
        package: tool.package,
        purpose: tool.purpose,
        path: tool.find(),
    })
    .collect()
}
