//! Size and operating system of the host beside what is recommended.

use camino::Utf8Path;
use microvm_api::system::{Check, CheckStatus, HostInfo};
use microvm_types::ByteSize;

/// A size of a host.
struct Size {
    processors: u32,
    memory: u64,
    disk: u64,
}

/// Below this a few VMs work, and are in each other's way: the old documents' minimum.
const LEAST: Size = Size { processors: 4, memory: 8_000_000_000, disk: 50_000_000_000 };
/// Enough for dozens of busy VMs: the old documents' recommendation.
const GOOD: Size = Size { processors: 8, memory: 32_000_000_000, disk: 200_000_000_000 };
/// Releases on which all or some machine tests run (`cargo xtask test`, `cargo xtask host debian13`).
const TESTED: [(&str, &str); 2] = [("debian", "12"), ("debian", "13")];

/// Checks of a host with these facts, whose description of its system is at `os_release` (os-release(5)).
pub(crate) fn checks(host: &HostInfo, os_release: &Utf8Path) -> Vec<Check> {
    // Without the file the system counts as unknown, which the check says.
    let text = std::fs::read_to_string(os_release).unwrap_or_default();
    vec![size(host), system(&text)]
}

/// Names of what is smaller than it should be.
fn small(host: &HostInfo, wanted: &Size) -> Vec<&'static str> {
    [
        (host.cpu_count < wanted.processors, "processors"),
        (host.memory.total < wanted.memory, "memory"),
        (host.disk.total < wanted.disk, "disk"),
    ]
    .into_iter()
    .filter_map(|(small, name)| small.then_some(name))
    .collect()
}

fn size(host: &HostInfo) -> Check {
    let has = format!(
        "{} processors, {} of memory, a disk of {}",
        host.cpu_count,
        ByteSize(host.memory.total),
        ByteSize(host.disk.total)
    );
    let least = small(host, &LEAST);
    let status = if least.is_empty() { CheckStatus::Ok } else { CheckStatus::Warning };
    let (detail, advice) = if !least.is_empty() {
        let advice = format!(
            "a few VMs at once work; for more: {} processors, {} GB of memory, {} GB of disk at least",
            LEAST.processors,
            LEAST.memory / 1_000_000_000,
            LEAST.disk / 1_000_000_000
        );
        (format!("{has}: little {}", least.join(", ")), Some(advice))
    } else if small(host, &GOOD).is_empty() {
        (has, None)
    } else {
        let good = format!(
            "{} processors, {} GB of memory and {} GB of disk are recommended",
            GOOD.processors,
            GOOD.memory / 1_000_000_000,
            GOOD.disk / 1_000_000_000
        );
        (format!("{has}; for dozens of busy VMs {good}"), None)
    };
    Check { name: "host size".to_owned(), status, detail, advice, remedies: Vec::new() }
}

fn system(os_release: &str) -> Check {
    let field = |name: &str| {
        let value = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().trim().trim_matches(['"', '\'']).to_owned()
    };
    let (id, version, name) = (field("ID"), field("VERSION_ID"), field("PRETTY_NAME"));
    let tested = TESTED.contains(&(id.as_str(), version.as_str()));
    let status = if tested { CheckStatus::Ok } else { CheckStatus::Warning };
    let detail = if name.is_empty() { "unknown: /etc/os-release does not say".to_owned() } else { name };
    let advice = (!tested).then(|| "not tested on this system; Debian 12 and 13 are".to_owned());
    Check { name: "operating system".to_owned(), status, detail, advice, remedies: Vec::new() }
}

#[cfg(test)]
mod tests {
    use microvm_api::system::Resource;

    use super::*;

    fn host(cpu_count: u32, memory_gb: u64, disk_gb: u64) -> HostInfo {
        let of = |gb: u64| Resource { total: gb * 1_000_000_000, available: 0, free: 0, percent: 0.0 };
        HostInfo {
            platform: String::new(),
            version: String::new(),
            server_pid: 1,
            uptime_seconds: 0,
            cpu_count,
            memory: of(memory_gb),
            disk: of(disk_gb),
            limits: None,
        }
    }

    #[test]
    fn what_is_little_is_named() {
        let little = size(&host(2, 7, 300));
        assert_eq!(little.status, CheckStatus::Warning);
        assert!(little.detail.ends_with(": little processors, memory"), "{}", little.detail);
        let enough = size(&host(4, 8, 50));
        assert!(
            enough.status == CheckStatus::Ok && enough.detail.contains("recommended"),
            "{}",
            enough.detail
        );
        assert!(!size(&host(8, 32, 200)).detail.contains("recommended"));
    }

    #[test]
    fn systems_that_are_not_tested_are_told() {
        let tested = system("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n");
        assert_eq!((tested.status, tested.advice), (CheckStatus::Ok, None));
        assert_eq!(tested.detail, "Debian GNU/Linux 12 (bookworm)");
        for text in [
            "ID=ubuntu\nVERSION_ID=\"24.04\"\nPRETTY_NAME='Ubuntu 24.04'\n",
            "",
            "ID=debian\nVERSION_ID=\"11\"",
        ] {
            assert!(system(text).advice.is_some(), "{text}");
        }
    }
}
