//! A wanted amount of changed memory in a guest.

use microvm_client::{ExecEvent, ExecSession};
use microvm_types::VmRef;
use microvm_types::exec::ExecRequest;

use crate::error::BenchError;
use crate::{Scene, failed};

/// A program in the guest that holds memory it has written; it ends when this is dropped.
pub(crate) struct Dirt {
    _session: ExecSession,
}

/// Writes `mib` MiB of random pages in the guest and keeps the program alive that did. Its own start changes some more.
pub(crate) async fn make(scene: &Scene, vm: &VmRef, mib: u64) -> Result<Dirt, BenchError> {
    // One random page again and again: every page of the guest is written, and the emulator has less to do.
    let program = format!(
        "import mmap, os, sys\npage = os.urandom(4096)\nmemory = mmap.mmap(-1, max(1, {mib} << 20))\n\
         for at in range(0, {mib} << 20, 4096): memory[at:at + 4096] = page\n\
         print('ready', flush=True)\nsys.stdin.read()"
    );
    let request = ExecRequest {
        command: vec!["python3".to_owned(), "-S".to_owned(), "-c".to_owned(), program],
        stdin: true,
        ..ExecRequest::default()
    };
    let mut session = scene.client.exec(vm, &request).await?;
    match session.events.next().await? {
        ExecEvent::Stdout(_) => Ok(Dirt { _session: session }),
        ExecEvent::Stderr(text) => Err(failed("changing memory", &String::from_utf8_lossy(&text))),
        ExecEvent::UpToDate => Err(failed("changing memory", &"its output ended before its process")),
        ExecEvent::Exited(status) => Err(failed("changing memory", &format!("python3 ended: {status:?}"))),
    }
}
