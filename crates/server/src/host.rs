//! Facts about the host, and checks that it can run VMs.

use std::time::Duration;

use camino::Utf8Path;
use microvm_api::system::{Check, CheckStatus, Doctor, HostInfo, Resource};
use microvm_core::ServiceError;
use microvm_ports::hypervisor::{Capabilities, Feature};
use microvm_types::{Action, ByteSize, ErrorKind, Listed, Unreadable};

use crate::convert;
use crate::failure::Failure;
use crate::requirements;
use crate::session::Session;

/// Free space below which `doctor` warns: an image and a busy scratch disk.
const SPACE_WANTED: u64 = 2 << 30;

pub(crate) fn info(root: &Utf8Path, uptime: Duration) -> Result<HostInfo, Failure> {
    let names = rustix::system::uname();
    let failed = |error: std::io::Error| {
        Failure::new(ErrorKind::Internal, "host_unreadable", format!("the host cannot be examined: {error}"))
    };
    Ok(HostInfo {
        platform: format!("{} {}", names.sysname().to_string_lossy(), names.release().to_string_lossy()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        server_pid: std::process::id(),
        uptime_seconds: uptime.as_secs(),
        cpu_count: std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)),
        memory: memory().map_err(failed)?,
        disk: disk(root).map_err(failed)?,
        limits: None,
    })
}

fn resource(total: u64, available: u64) -> Resource {
    #[expect(clippy::cast_precision_loss, reason = "a percentage needs few digits")]
    let percent = if total == 0 { 0.0 } else { 100.0 * (1.0 - available as f64 / total as f64) };
    Resource { total, available, free: available, percent: (percent * 10.0).round() / 10.0 }
}

fn memory() -> std::io::Result<Resource> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        let missing = || std::io::Error::other(format!("/proc/meminfo has no number behind `{name}`"));
        Ok::<_, std::io::Error>(kib.ok_or_else(missing)? * 1024)
    };
    // Not `MemFree`: the page cache is memory that programs may have.
    Ok(resource(field("MemTotal:")?, field("MemAvailable:")?))
}

fn disk(path: &Utf8Path) -> std::io::Result<Resource> {
    let state = rustix::fs::statvfs(path.as_std_path())?;
    // Not `f_bfree`, which counts blocks that are kept for root.
    Ok(resource(state.f_blocks * state.f_frsize, state.f_bavail * state.f_frsize))
}

fn check(name: &str, status: CheckStatus, detail: impl Into<String>, advice: Option<&str>) -> Check {
    let advice = advice.map(str::to_owned);
    Check { name: name.to_owned(), status, detail: detail.into(), advice, remedies: Vec::new() }
}

fn with(mut check: Check, remedies: &[Action]) -> Check {
    check.remedies = remedies.iter().map(|action| action.any().into()).collect();
    check
}

fn broken(name: &str, error: &ServiceError) -> Check {
    let mut check = check(name, CheckStatus::Failed, error.to_string(), None);
    check.remedies = error.remedies().into_iter().map(Into::into).collect();
    check
}

/// Examines everything a VM needs on this host.
pub(crate) async fn doctor(app: &Session) -> Doctor {
    let mut checks = Vec::new();
    let mut hypervisor = None;
    match app.services.host.hypervisors().await {
        Err(error) => checks.push(broken("hypervisor", &error)),
        Ok(all) => all.into_iter().for_each(|report| match report {
            Ok(report) => {
                hypervisor_checks(&mut checks, &report);
                // The first driver is the one that VMs get if they name none.
                hypervisor.get_or_insert_with(|| convert::hypervisor(report));
            }
            Err(error) => checks.push(broken("hypervisor", &error)),
        }),
    }
    checks.extend(requirements(&app.settings.root));
    checks.push(kernels(app).await);
    checks.push(images(app).await);
    checks.push(snapshots(app));
    checks.push(space(&app.settings.root));
    checks.push(strays(app).await);
    Doctor { checks, hypervisor }
}

/// The host beside what is recommended.
fn requirements(root: &Utf8Path) -> Vec<Check> {
    match info(root, Duration::ZERO) {
        Ok(host) => requirements::checks(&host, Utf8Path::new("/etc/os-release")),
        Err(failure) => vec![check("host size", CheckStatus::Failed, failure.0.detail, None)],
    }
}

/// Stored records and files that cannot be read.
fn cannot_be_read(name: &str, unreadable: &[Unreadable]) -> Check {
    let all: Vec<String> = unreadable.iter().map(|one| format!("{}: {}", one.name, one.reason)).collect();
    let advice = "what cannot be read is not used: remove it and make it again, or put back a copy of it";
    check(name, CheckStatus::Failed, all.join("; "), Some(advice))
}

fn snapshots(app: &Session) -> Check {
    let unreadable = match app.services.host.unreadable() {
        Err(error) => return broken("snapshots", &error),
        Ok(unreadable) => unreadable.snapshots,
    };
    if unreadable.is_empty() {
        return check("snapshots", CheckStatus::Ok, "the description of every snapshot can be read", None);
    }
    let found = cannot_be_read("snapshots", &unreadable);
    let remove = unreadable.iter().map(|one| Action::RemoveSnapshot.of(&one.name).into());
    Check { remedies: remove.collect(), ..found }
}

/// Program, accelerator and confinement of one driver.
fn hypervisor_checks(checks: &mut Vec<Check>, report: &Capabilities) {
    let at = report.program.as_ref().map(|program| format!(" at {program}")).unwrap_or_default();
    let detail = format!("{} {}{at}", report.driver, report.version);
    checks.push(check("hypervisor", CheckStatus::Ok, detail, None));
    let slow = report.accelerator.kind.is_emulation();
    let status = if slow { CheckStatus::Warning } else { CheckStatus::Ok };
    let detail = format!("{}: {}", report.accelerator.kind, report.accelerator.reason);
    let advice = slow.then_some(
        "emulation is slower and is not a hardware boundary; use a host with KVM for hostile code",
    );
    checks.push(check("accelerator", status, detail, advice));
    for (layer, state) in &report.confinement {
        let status = if state.is_on() { CheckStatus::Ok } else { CheckStatus::Warning };
        let advice = (!state.is_on()).then_some("VMs run without this layer");
        checks.push(check(&format!("confinement: {layer}"), status, state.to_string(), advice));
    }
    checks.push(live_branches(&report.copying_ahead));
}

fn live_branches(copying_ahead: &Feature) -> Check {
    if copying_ahead.is_on() {
        let detail = "memory is copied before the pause, and in it only what is written meanwhile";
        return check("live branches", CheckStatus::Ok, detail, None);
    }
    let detail = format!("all changed memory is copied in the pause: {copying_ahead}");
    let advice = "the pause of a fork grows with what its VM has changed, some 20 ms for each 100 MiB; a host with \
                  Linux 6.9 or newer that allows userfaultfd copies before it";
    check("live branches", CheckStatus::Warning, detail, Some(advice))
}

async fn kernels(app: &Session) -> Check {
    match app.services.host.kernels().await {
        Err(error) => broken("kernels", &error),
        Ok(Listed { unreadable, .. }) if !unreadable.is_empty() => cannot_be_read("kernels", &unreadable),
        Ok(Listed { found: kernels, .. }) => match kernels.iter().find(|kernel| kernel.is_default) {
            None => with(
                check("kernels", CheckStatus::Failed, "there is no kernel", None),
                &[Action::TakeDistributionKernel, Action::BuildKernel],
            ),
            Some(kernel) if kernel.outdated => {
                let detail = format!(
                    "{} ({}), built by an older version of this program: devices and options of today's are missing in guests",
                    kernel.name, kernel.release
                );
                with(check("kernels", CheckStatus::Warning, detail, None), &[Action::BuildKernel])
            }
            Some(kernel) if kernel.name == "built" => {
                check("kernels", CheckStatus::Ok, format!("{} ({})", kernel.name, kernel.release), None)
            }
            Some(kernel) => with(
                check("kernels", CheckStatus::Ok, format!("{} ({})", kernel.name, kernel.release), None),
                &[Action::BuildKernel],
            ),
        },
    }
}

async fn images(app: &Session) -> Check {
    match app.services.host.images().await {
        Err(error) => broken("images", &error),
        Ok(Listed { unreadable, .. }) if !unreadable.is_empty() => cannot_be_read("images", &unreadable),
        Ok(Listed { found: images, .. }) if images.is_empty() => with(
            check("images", CheckStatus::Failed, "there is no image", None),
            &[Action::BuildImage, Action::PullImage],
        ),
        Ok(Listed { found: images, .. }) => {
            let names: Vec<&str> = images.iter().flat_map(|image| &image.names).map(String::as_str).collect();
            check("images", CheckStatus::Ok, names.join(", "), None)
        }
    }
}

/// VMs without a record, and records that cannot be read, for `doctor` and `verify`.
pub(crate) async fn stray_findings(app: &Session) -> Result<Vec<String>, ServiceError> {
    let tell = |stray: microvm_core::StrayVm| {
        format!("no record knows the VM {}, whose disk is in {}", stray.id, stray.directory)
    };
    let mut findings: Vec<String> = app.services.host.strays().await?.into_iter().map(tell).collect();
    let unreadable = app.services.host.unreadable()?;
    findings.extend(
        unreadable
            .vms
            .into_iter()
            .map(|vm| format!("the record of the VM {} cannot be read: {}", vm.name, vm.reason)),
    );
    findings.extend(
        unreadable
            .pools
            .into_iter()
            .map(|pool| format!("the record of the pool {} cannot be read: {}", pool.name, pool.reason)),
    );
    Ok(findings)
}

async fn strays(app: &Session) -> Check {
    match stray_findings(app).await {
        Err(error) => broken("vm records", &error),
        Ok(findings) if findings.is_empty() => check(
            "vm records",
            CheckStatus::Ok,
            "every VM that has a disk has a record that can be read",
            None,
        ),
        Ok(findings) => check(
            "vm records",
            CheckStatus::Failed,
            findings.join("; "),
            Some(
                "end the server and put back a copy of state.sqlite that knows them, or remove their directories if nobody needs \
                 them",
            ),
        ),
    }
}

fn space(root: &Utf8Path) -> Check {
    match disk(root) {
        Err(error) => check("space", CheckStatus::Failed, format!("{root}: {error}"), None),
        Ok(space) => {
            let little = space.available < SPACE_WANTED;
            let status = if little { CheckStatus::Warning } else { CheckStatus::Ok };
            let detail = format!("{} free below {root}", ByteSize(space.available));
            check(
                "space",
                status,
                detail,
                little.then_some("free some space, or choose another root with --root"),
            )
        }
    }
}
