//! Creations that leave nothing behind unless they succeed.
//!
//! A name proves nothing: a VM of that name may have been there before, and the server checks much else before it checks
//! names. So the request carries a random label, and only a VM with this label is ever deleted.

use std::pin::{Pin, pin};
use std::time::Duration;

use microvm_api::{CreateVm, Vm};
use microvm_types::{ErrorKind, Name, NameError};

use crate::client::Client;
use crate::error::ClientError;
use crate::sandbox::end_requests::EndRequests;
use crate::sandbox::leftover::{CLAIM_LABEL, Leftover, delete};
use crate::vms::VmQuery;

/// Longest time that is spent on the outcome of an abandoned creation.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time after a broken connection in which the server may still enter the VM that it was asked for.
const ENTERING: Duration = Duration::from_secs(1);

/// Interval at which the list of VMs is read meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Random mark of one creation.
#[derive(Debug)]
pub struct Claim(String);

/// Outcome of a claimed creation.
#[derive(Debug)]
pub enum Creation {
    /// The VM was created.
    Made(Box<Vm>),
    /// The creation failed.
    Failed {
        /// Reason of the failure.
        error: ClientError,
        /// Leftovers on the server; usually empty.
        leftovers: Vec<Leftover>,
    },
    /// The caller asked for the end before the answer came.
    Ended {
        /// Number of the request, as [`EndRequests::next`] returned it.
        signal: u8,
        /// Leftovers on the server; usually empty.
        leftovers: Vec<Leftover>,
    },
}

impl Claim {
    /// A new claim of 128 random bits.
    ///
    /// # Errors
    /// [`ClientError::Local`] (`random_failed`) if the host gives no random numbers.
    pub fn new() -> Result<Self, ClientError> {
        Ok(Self(format!("{:032x}", u128::from_be_bytes(random()?))))
    }

    /// Creates a VM. Unless it succeeds no VM stays, also if a request to end comes or the connection breaks before the answer;
    /// what could not be found out within ten seconds, or until a further request to end, is reported as a [`Leftover`].
    ///
    /// A dropped future ends the request, and nothing is looked for.
    pub async fn create(
        &self,
        client: &Client,
        mut request: CreateVm,
        requests: &mut impl EndRequests,
    ) -> Creation {
        // Also over one that the caller gave: a label that others know proves nothing.
        request.labels.insert(CLAIM_LABEL.to_owned(), self.0.clone());
        let mut creation = pin!(client.create_vm(&request));
        tokio::select! {
            answer = &mut creation => match answer {
                Ok(vm) => Creation::Made(Box::new(vm)),
                // The server refused, and undid what it had begun.
                Err(error @ ClientError::Problem(_)) => Creation::Failed { error, leftovers: Vec::new() },
                Err(error) => {
                    // The connection broke: the server may have gone on.
                    let leftovers = tokio::select! {
                        leftovers = self.settle(client) => leftovers,
                        _ = requests.next() => vec![self.unknown("it was not waited for".to_owned())],
                    };
                    Creation::Failed { error, leftovers }
                }
            },
            signal = requests.next() => {
                Creation::Ended { signal, leftovers: self.abandon(client, creation).await }
            }
        }
    }

    /// Deletes what a creation may have made whose connection broke.
    async fn settle(&self, client: &Client) -> Vec<Leftover> {
        let looked = async {
            let until = tokio::time::Instant::now() + ENTERING;
            loop {
                let (found, leftovers) = self.delete_marked(client).await?;
                if found || tokio::time::Instant::now() >= until {
                    return Ok::<_, ClientError>(leftovers);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        match tokio::time::timeout(PATIENCE, looked).await {
            Ok(Ok(leftovers)) => leftovers,
            Ok(Err(error)) => vec![self.unknown(error.to_string())],
            Err(_) => vec![self.unknown("the server does not answer".to_owned())],
        }
    }

    /// Deletes what a creation under way has made or is about to make. The request is kept open meanwhile: the server may
    /// not have read it yet.
    async fn abandon(
        &self,
        client: &Client,
        creation: Pin<&mut impl Future<Output = Result<Vm, ClientError>>>,
    ) -> Vec<Leftover> {
        let answered = async {
            match creation.await {
                // It was made before the end was asked for, and nobody has it.
                Ok(vm) => delete(client, &vm.id).await.into_iter().collect(),
                Err(ClientError::Problem(_)) => Vec::new(),
                // The connection broke: the server may go on, so the list of VMs decides.
                Err(_) => std::future::pending().await,
            }
        };
        let found = async {
            match self.delete_when_seen(client).await {
                Ok(leftovers) => leftovers,
                Err(error) => {
                    tracing::debug!(%error, "the VM is not looked for any more");
                    std::future::pending().await
                }
            }
        };
        let either = async {
            tokio::select! {
                leftovers = answered => leftovers,
                leftovers = found => leftovers,
            }
        };
        let unknown = |_| vec![self.unknown("the server does not answer".to_owned())];
        tokio::time::timeout(PATIENCE, either).await.unwrap_or_else(unknown)
    }

    async fn delete_when_seen(&self, client: &Client) -> Result<Vec<Leftover>, ClientError> {
        // No event tells that a VM was entered in the list; the first event may be the end of a long boot.
        let mut interval = tokio::time::interval(LOOK_EVERY);
        loop {
            let (found, leftovers) = self.delete_marked(client).await?;
            if found {
                return Ok(leftovers);
            }
            interval.tick().await;
        }
    }

    /// Deletes the VM with the label; true if there was one.
    async fn delete_marked(&self, client: &Client) -> Result<(bool, Vec<Leftover>), ClientError> {
        let query = VmQuery { labels: vec![(CLAIM_LABEL.to_owned(), self.0.clone())], ..VmQuery::default() };
        let marked = client.list_vms(&query).await?.vms;
        let mut leftovers = Vec::new();
        for vm in &marked {
            leftovers.extend(delete(client, &vm.id).await);
        }
        Ok((!marked.is_empty(), leftovers))
    }

    fn unknown(&self, reason: String) -> Leftover {
        Leftover::Unknown { mark: self.0.clone(), reason }
    }
}

/// A name that is probably free: the prefix, a dash and eight random hexadecimal digits.
///
/// # Errors
/// [`ClientError::Local`]: `random_failed` if the host gives no random numbers, `name_invalid` if the prefix is not the
/// beginning of a name.
pub fn random_name(prefix: &str) -> Result<Name, ClientError> {
    let name = format!("{prefix}-{:08x}", u32::from_be_bytes(random()?));
    name.parse().map_err(|error: NameError| ClientError::invalid("name_invalid", error.to_string()))
}

fn random<const COUNT: usize>() -> Result<[u8; COUNT], ClientError> {
    let mut bytes = [0; COUNT];
    getrandom::fill(&mut bytes).map_err(|error| {
        let detail = format!("the host gives no random numbers: {error}");
        ClientError::refused(ErrorKind::Internal, "random_failed", detail)
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_claims_differ_each_time() {
        let (one, two) = (random_name("run").unwrap(), random_name("run").unwrap());
        assert!(one.as_str().starts_with("run-") && one.as_str().len() == 12, "{one}");
        assert_ne!(one, two);
        assert_eq!(random_name("no name").unwrap_err().code(), "name_invalid");
        let (one, two) = (Claim::new().unwrap(), Claim::new().unwrap());
        assert_eq!(one.0.len(), 32);
        assert_ne!(one.0, two.0);
    }
}
