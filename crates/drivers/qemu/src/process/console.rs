//! Names of the logs the supervisor keeps in a VM directory.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_confinement::LogPart;
use microvm_ports::hypervisor::ConsolePart;

/// The guest's console.
fn console_log(directory: &Utf8Path) -> Utf8PathBuf {
    directory.join("console.log")
}

/// At most `limit` bytes of the guest's console: the newest, or those from an offset on.
pub(crate) async fn read(directory: &Utf8Path, from: Option<u64>, limit: usize) -> io::Result<ConsolePart> {
    let path = console_log(directory);
    let read = tokio::task::spawn_blocking(move || microvm_confinement::read_log(&path, from, limit));
    let LogPart { offset, bytes, end } = read.await.map_err(io::Error::other)??;
    Ok(ConsolePart { offset, bytes, end })
}

/// The last messages of QEMU itself, for errors.
pub(crate) fn last_words(directory: &Utf8Path) -> String {
    let bytes = microvm_confinement::tail(&directory.join("vmm.log"), 2_000).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// True if the console shows that the guest's kernel panicked just before its end.
pub(crate) fn tells_of_a_panic(directory: &Utf8Path) -> bool {
    // "Kernel panic - not syncing" is what panic() prints first (kernel/panic.c); a trace of some KiB may follow.
    ends_with(directory, "Kernel panic - not syncing", 16 * 1024)
}

/// True if the agent announced a power-off last: without ACPI a guest can only reset itself.
pub(crate) fn tells_of_a_power_off(directory: &Utf8Path) -> bool {
    // After it comes only the kernel's own "reboot: Restarting system".
    ends_with(directory, "microvm-agent: powering off", 256)
}

/// True if the last `limit` bytes of the console hold `words`.
fn ends_with(directory: &Utf8Path, words: &str, limit: usize) -> bool {
    let bytes = microvm_confinement::tail(&console_log(directory), limit).unwrap_or_default();
    bytes.windows(words.len()).any(|window| window == words.as_bytes())
}
