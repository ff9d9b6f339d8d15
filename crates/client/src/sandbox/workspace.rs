//! The workspace of a command in a guest: `/workspace/input`, `/workspace/output` and `/workspace/work`.

use std::path::Path;

use microvm_api::Vm;
use microvm_types::files::FileOwner;
use microvm_types::{ByteSize, VmRef};

use crate::client::Client;
use crate::copy::{self, Budget, Moved, OutsideLinks, Rules};
use crate::error::ClientError;

/// Directory that is filled before the command.
const INPUT: &[u8] = b"/workspace/input";
/// Directory that is fetched after the command.
const OUTPUT: &[u8] = b"/workspace/output";
/// Directory for anything else.
const WORK: &[u8] = b"/workspace/work";

/// The directories of one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    /// Owner of all that is made: the user whom the command runs as.
    pub owner: FileOwner,
}

/// Outcome of a fetched output directory. The command has ended by then, so a failure stands beside its exit code.
#[derive(Debug, Default)]
pub struct Gathered {
    /// `results.json` of the directory, parsed; `None` if there is none.
    pub results: Option<serde_json::Value>,
    /// Size of the copy, and what it left out.
    pub moved: Moved,
    /// Reason why nothing, or not all, was fetched.
    pub failure: Option<ClientError>,
}

impl Workspace {
    /// Makes the three directories, and copies the content of a directory of this host to the input.
    ///
    /// # Errors
    /// If a directory cannot be made or a file cannot be read, sent or written.
    pub async fn prepare(
        &self,
        client: &Client,
        vm: &VmRef,
        input: Option<&Path>,
    ) -> Result<Moved, ClientError> {
        // All three, also without input: a command may rely on each of them.
        for folder in [INPUT, OUTPUT, WORK] {
            client.make_directory(vm, folder, Some(&self.owner)).await?;
        }
        match input {
            Some(input) => copy::push_directory(client, vm, input, INPUT, &self.owner).await,
            None => Ok(Moved::default()),
        }
    }

    /// Makes the output directory alone.
    ///
    /// # Errors
    /// If it cannot be made.
    pub async fn prepare_output(&self, client: &Client, vm: &VmRef) -> Result<(), ClientError> {
        client.make_directory(vm, OUTPUT, Some(&self.owner)).await
    }

    /// Copies the output directory to a directory of this host: at most `most` bytes, twice the disk of the VM if `None`.
    /// Links that lead out of it stay links.
    ///
    /// # Errors
    /// If it cannot be read, or holds more bytes than that (`transfer_too_large`).
    pub async fn fetch(
        client: &Client,
        vm: &Vm,
        to: &Path,
        most: Option<ByteSize>,
    ) -> Result<Moved, ClientError> {
        let rules = Rules { budget: Budget::chosen(most, vm.disk_mib), links: OutsideLinks::Keep };
        copy::pull_directory(client, &VmRef::from(vm.id.clone()), OUTPUT, vm.path_style, to, rules).await
    }

    /// As [`Self::fetch`], and reads `results.json`. Never fails: a failure is part of the outcome.
    pub async fn gather(client: &Client, vm: &Vm, to: &Path, most: Option<ByteSize>) -> Gathered {
        let mut gathered = Gathered::default();
        match Self::fetch(client, vm, to, most).await {
            Ok(moved) => gathered.moved = moved,
            Err(failure) => return Gathered { failure: Some(failure), ..gathered },
        }
        match copy::results(to) {
            Ok(results) => gathered.results = results,
            Err(failure) => gathered.failure = Some(failure),
        }
        gathered
    }
}
