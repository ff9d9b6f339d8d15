//! Requests to end early, and commands that are given time to follow them.

use std::convert::Infallible;
use std::time::Duration;

use microvm_types::{ProcessId, VmRef};

use crate::client::Client;

/// Number of the signal of Ctrl-C.
const SIGINT: u8 = 2;

/// Time that a command has to exit after a signal other than SIGINT: ten seconds, as `docker stop` gives.
pub const GRACE: Duration = Duration::from_secs(10);

/// Source of requests to end, for example the signals of this process.
pub trait EndRequests: Send {
    /// Waits for the next request and returns it as the number of a Linux signal (1 to 64). Safe to cancel: no request is
    /// lost if the future is dropped.
    fn next(&mut self) -> impl Future<Output = u8> + Send;
}

/// A caller that never asks for an early end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Never;

impl EndRequests for Never {
    async fn next(&mut self) -> u8 {
        let never: Infallible = std::future::pending().await;
        match never {}
    }
}

/// Waits for a request to end, sends it to a command as a signal and gives the command time to exit: without limit after
/// SIGINT, [`GRACE`] after any other. Returns the number of the request that ends the caller: the first one when that time
/// is over, or the second one as soon as it comes. `passed` is called with the first one before it is sent.
///
/// Drop the future when the command has ended.
pub async fn pass_on(
    client: &Client,
    vm: &VmRef,
    process: &ProcessId,
    requests: &mut impl EndRequests,
    passed: impl FnOnce(u8),
) -> u8 {
    let first = requests.next().await;
    passed(first);
    let patience = async {
        // A request of its own: on the session it would wait behind input that the command does not read. A failure shows
        // in the output of the command.
        let _ = client.signal(vm, process, first).await;
        if first == SIGINT {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        () = patience => first,
        second = requests.next() => second,
    }
}
