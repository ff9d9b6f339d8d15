//! A VM that is known to be ours, whether its creation answers or not.
//!
//! A name proves nothing: a VM of that name may have been there before, and the server looks at much else before it
//! looks at names. So the request carries a random label, and only a VM that carries it is ever deleted.

use std::pin::{Pin, pin};
use std::time::Duration;

use microvm_api::{CreateVm, Vm};
use microvm_client::{Client, ClientError, VmQuery};
use microvm_types::{ErrorKind, VmId, VmRef};

use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::notice::say;

/// Key of the label.
const LABEL: &str = "microvm.run";

/// Longest time that is spent on finding out what became of a creation that nobody wants any more.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often the list is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What one creation is known by.
#[derive(Debug)]
pub(crate) struct Claim(String);

impl Claim {
    pub(crate) fn new() -> Result<Self, CliError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| {
            let detail = format!("the host gives no random numbers: {error}");
            CliError::new(ErrorKind::Internal, "random_failed", detail)
        })?;
        Ok(Self(format!("{:032x}", u128::from_be_bytes(bytes))))
    }

    /// Creates a VM. Unless it succeeds nothing is left of it, also when a signal comes or the connection breaks before
    /// the answer.
    pub(crate) async fn create(
        &self,
        client: &Client,
        mut request: CreateVm,
        interrupts: &mut Interrupts,
    ) -> Result<Vm, CliError> {
        request.labels.insert(LABEL.to_owned(), self.0.clone());
        let mut creation = pin!(client.create_vm(&request));
        tokio::select! {
            answer = &mut creation => {
                if let Err(error) = &answer && !matches!(error, ClientError::Problem(_)) {
                    // The server did not say what became of it.
                    if let Err(error) = self.delete_marked(client).await {
                        self.tell(&error.to_string());
                    }
                }
                Ok(answer?)
            }
            signal = interrupts.next() => {
                self.abandon(client, creation).await;
                Err(CliError::Interrupted(signal))
            }
        }
    }

    /// Deletes what a creation under way has made or is about to make. The request is kept open meanwhile: the server may
    /// not have looked at it yet.
    async fn abandon(
        &self,
        client: &Client,
        creation: Pin<&mut impl Future<Output = Result<Vm, ClientError>>>,
    ) {
        let answered = async {
            if let Ok(vm) = creation.await {
                delete(client, &vm.id).await;
            }
        };
        let found = async {
            if let Err(error) = self.delete_when_seen(client).await {
                tracing::debug!(%error, "the VM is not looked for any more");
                std::future::pending::<()>().await;
            }
        };
        let either = async {
            tokio::select! {
                () = answered => {}
                () = found => {}
            }
        };
        if tokio::time::timeout(PATIENCE, either).await.is_err() {
            self.tell("the server does not answer");
        }
    }

    async fn delete_when_seen(&self, client: &Client) -> Result<(), ClientError> {
        // That a VM was entered in the list is no event; the first event may be the end of a long boot.
        let mut interval = tokio::time::interval(LOOK_EVERY);
        while !self.delete_marked(client).await? {
            interval.tick().await;
        }
        Ok(())
    }

    /// Whether there was one.
    async fn delete_marked(&self, client: &Client) -> Result<bool, ClientError> {
        let query = VmQuery { labels: vec![(LABEL.to_owned(), self.0.clone())], ..VmQuery::default() };
        let marked = client.list_vms(&query).await?.vms;
        for vm in &marked {
            delete(client, &vm.id).await;
        }
        Ok(!marked.is_empty())
    }

    fn tell(&self, why: &str) {
        let mark = &self.0;
        say(&format!(
            "whether a VM was made is not known ({why}): `microvm ls --label {LABEL}={mark}` shows it if so"
        ));
    }
}

/// Deletes a VM and tells if that failed.
pub(crate) async fn delete(client: &Client, id: &VmId) {
    match client.delete_vm(&VmRef::from(id.clone())).await {
        Ok(()) => {}
        // It deleted itself.
        Err(ClientError::Problem(problem)) if problem.kind == ErrorKind::NotFound => {}
        Err(error) => {
            say(&format!("the VM {id} could not be deleted ({error}): `microvm rm {id}` deletes it"))
        }
    }
}
