//! Ports of this host that lead into a VM: what an option names, and what is carried while a command runs.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::select_all;
use microvm_api::queries::WaitForVm;
use microvm_client::{Client, ClientError, Forward};
use microvm_types::{ErrorKind, VmRef};
use serde_json::{Value, json};

use crate::error::CliError;
use crate::notice::say;

/// Longest wait of one request for the end of a VM, in seconds.
const ONE_REQUEST: u64 = 3_000;
/// Time after which the same failure of a port is told again.
const TOLD_AGAIN: Duration = Duration::from_secs(60);
/// Time between two attempts to reach a server that is away.
const AGAIN: Duration = Duration::from_secs(1);

/// A port of this host's loopback and the guest's port that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortPair {
    host: u16,
    guest: u16,
}

impl FromStr for PortPair {
    type Err = String;

    /// `HOST:GUEST`, or one number for both. HOST 0 takes a free port. As in docker an address of the loopback may stand before.
    fn from_str(text: &str) -> Result<Self, String> {
        // From the right: an address of IPv6 has colons of its own, and is to be named in the error.
        let ports = match text.rsplitn(3, ':').collect::<Vec<_>>()[..] {
            [guest, host, address] if ["127.0.0.1", "localhost"].contains(&address) => (host, guest),
            [_, _, address] => {
                return Err(format!(
                    "ports are forwarded from 127.0.0.1 only, not from {address}: leave the address out"
                ));
            }
            [guest, host] => (host, guest),
            _ => (text, text),
        };
        let port = |text: &str| {
            text.parse::<u16>()
                .map_err(|_| format!("`{text}` is no port: write [HOST:]GUEST, for example 8080:80"))
        };
        let (host, guest) = (port(ports.0)?, port(ports.1)?);
        if guest == 0 {
            return Err("0 is no port of a guest".to_owned());
        }
        Ok(Self { host, guest })
    }
}

/// Ports that are listened on; nobody is connected before [`Forwarding::serve`].
#[derive(Debug)]
pub(crate) struct Forwarding(Vec<Forward>);

impl Forwarding {
    /// Listens on all ports.
    ///
    /// # Errors
    /// If a port is in use, or this user may not listen on it.
    pub(crate) async fn listen(pairs: &[PortPair]) -> Result<Self, CliError> {
        let mut all = Vec::new();
        for pair in pairs {
            let forward =
                Forward::listen(pair.host, pair.guest).await.map_err(|error| refused(*pair, &error))?;
            all.push(forward);
        }
        Ok(Self(all))
    }

    /// True if no port is forwarded.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Address here and port there of each, for programs.
    pub(crate) fn json(&self) -> Value {
        let one =
            |forward: &Forward| json!({ "host": forward.local().to_string(), "guest": forward.guest() });
        self.0.iter().map(one).collect()
    }

    /// The same for people, one a line.
    pub(crate) fn lines(&self, vm: &str) -> Vec<String> {
        let one = |forward: &Forward| format!("{} -> {vm}:{}", forward.local(), forward.guest());
        self.0.iter().map(one).collect()
    }

    /// Accepts connections and connects them to the guest, until the future is dropped.
    ///
    /// # Errors
    /// If no connections are accepted any more.
    pub(crate) async fn serve(&self, client: &Client, vm: &VmRef) -> Result<Infallible, CliError> {
        if self.is_empty() {
            return std::future::pending().await;
        }
        let told = Mutex::new(Told::default());
        let failed = |port: u16, error: &ClientError| {
            let text = format!("port {port} of the VM: {error}");
            if told.lock().unwrap_or_else(PoisonError::into_inner).is_news(port, &text, Instant::now()) {
                say(&text);
            }
        };
        let serving = self.0.iter().map(|forward| Box::pin(forward.serve(client, vm, failed)));
        // Each serves for ever, so the first one that ends has failed.
        let (ended, _, _) = select_all(serving).await;
        ended.map_err(|error| {
            let detail = format!("no connections are accepted any more: {error}");
            CliError::new(ErrorKind::Unavailable, "forward_failed", detail)
        })
    }

    /// Accepts connections and connects them to the guest, until the VM is deleted.
    ///
    /// # Errors
    /// That the VM was deleted, or what [`Self::serve`] fails with.
    pub(crate) async fn serve_until_gone(&self, client: &Client, vm: &VmRef) -> Result<Infallible, CliError> {
        tokio::select! {
            ended = self.serve(client, vm) => ended,
            error = gone(client, vm) => Err(error),
        }
    }
}

/// What was told of each port: a client that tries until a program listens fails dozens of times, with one reason.
#[derive(Debug, Default)]
struct Told(BTreeMap<u16, (String, Instant)>);

impl Told {
    /// True if this is to be told: another reason than the last one, or the same after [`TOLD_AGAIN`].
    fn is_news(&mut self, port: u16, text: &str, now: Instant) -> bool {
        if let Some((last, at)) = self.0.get(&port)
            && last == text
            && now.duration_since(*at) < TOLD_AGAIN
        {
            return false;
        }
        self.0.insert(port, (text.to_owned(), now));
        true
    }
}

/// Waits until a VM is deleted.
async fn gone(client: &Client, vm: &VmRef) -> CliError {
    let query = WaitForVm { state: Vec::new(), gone: true, timeout_seconds: ONE_REQUEST };
    loop {
        match client.wait_for_vm(vm, &query).await {
            Ok(_) => {
                return CliError::new(ErrorKind::NotFound, "vm_not_found", "the VM was deleted");
            }
            Err(ClientError::Problem(problem)) if problem.code == "wait_timeout" => {}
            // Ports are forwarded again as soon as a server is there.
            Err(error) if error.kind() == ErrorKind::Unavailable => tokio::time::sleep(AGAIN).await,
            Err(error) => return error.into(),
        }
    }
}

fn refused(pair: PortPair, error: &std::io::Error) -> CliError {
    use std::io::ErrorKind as E;
    let (host, guest) = (pair.host, pair.guest);
    let (kind, reason) = match error.kind() {
        E::AddrInUse => (
            ErrorKind::Conflict,
            format!("it is in use: choose another one, or `0:{guest}` for any that is free"),
        ),
        E::PermissionDenied => (
            ErrorKind::Forbidden,
            format!(
                "{error}: ports below 1024 are for root, choose another one (0:{guest} takes any that is free)"
            ),
        ),
        _ => (ErrorKind::Unavailable, error.to_string()),
    };
    CliError::new(
        kind,
        "port_unavailable",
        format!("port {host} of this host cannot be listened on: {reason}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reason_is_told_once_in_a_while() {
        let (mut told, begun) = (Told::default(), Instant::now());
        assert!(told.is_news(80, "refused", begun));
        assert!(!told.is_news(80, "refused", begun + TOLD_AGAIN / 2));
        assert!(told.is_news(81, "refused", begun) && told.is_news(80, "the VM is paused", begun));
        assert!(told.is_news(80, "refused", begun), "another reason came between");
        assert!(told.is_news(80, "refused", begun + TOLD_AGAIN));
    }

    #[test]
    fn pairs_of_ports() {
        let pair = |host, guest| Ok(PortPair { host, guest });
        assert_eq!("8080:80".parse(), pair(8080, 80));
        assert_eq!("80".parse(), pair(80, 80));
        assert_eq!("0:80".parse(), pair(0, 80));
        assert_eq!("127.0.0.1:1:2".parse(), pair(1, 2));
        for (text, word) in [
            ("0.0.0.0:1:2", "127.0.0.1 only"),
            ("::1:1:2", "127.0.0.1 only"),
            ("a:1", "no port"),
            ("1:", "no port"),
            ("1:0", "no port of a guest"),
            ("65536", "no port"),
            ("", "no port"),
        ] {
            let error = text.parse::<PortPair>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
