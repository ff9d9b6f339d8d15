//! Output of a command: collected, or copied to two writers.

use microvm_api::output::{Collected, Outputs};
use microvm_types::exec::ExitStatus;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::error::ClientError;
use crate::exec::{ExecEvent, ExecSession, ExecStream, Started};

/// Both outputs of a command, each up to [`microvm_api::output::COLLECTED_MAX`] bytes; what is beyond is counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CollectedOutput {
    stdout: Collected,
    stderr: Collected,
}

impl CollectedOutput {
    /// An empty collection that counts the bytes which the server did not keep before the session began.
    #[must_use]
    pub fn of(started: &Started) -> Self {
        let mut all = Self::default();
        all.stdout.miss(started.stdout_offset);
        all.stderr.miss(started.stderr_offset);
        all
    }

    /// Both as JSON carries them; `rest` says in words where bytes that are left out can be had.
    #[must_use]
    pub fn outputs(self, rest: &str) -> Outputs {
        Outputs::new(self.stdout, self.stderr, rest)
    }
}

impl ExecSession {
    /// Collects the output of a command until it ends. The command gets no input.
    ///
    /// # Errors
    /// [`ClientError::Lost`] if the connection breaks, [`ClientError::Problem`] if the guest was lost.
    pub async fn collect(self) -> Result<(ExitStatus, CollectedOutput), ClientError> {
        // The writer stays: dropping it would close the connection.
        let Self { started, mut events, writer: _open } = self;
        let mut all = CollectedOutput::of(&started);
        let status = events.collect(&mut all).await?;
        Ok((status.ok_or_else(ClientError::no_status)?, all))
    }
}

impl ExecStream {
    /// Collects output until the process has ended, or until all that [`crate::Client::read_output`] was asked for has come;
    /// the status is `None` then.
    ///
    /// # Errors
    /// [`ClientError::Lost`] if the connection breaks, [`ClientError::Problem`] if the guest was lost.
    pub async fn collect(&mut self, into: &mut CollectedOutput) -> Result<Option<ExitStatus>, ClientError> {
        loop {
            match self.next().await? {
                ExecEvent::Exited(status) => return Ok(Some(status)),
                ExecEvent::UpToDate => return Ok(None),
                ExecEvent::Stdout(bytes) => into.stdout.add(&bytes),
                ExecEvent::Stderr(bytes) => into.stderr.add(&bytes),
            }
        }
    }

    /// Writes output as it comes, each part flushed, until the process has ended, or until all that
    /// [`crate::Client::read_output`] was asked for has come; the status is `None` then.
    ///
    /// # Errors
    /// [`ClientError::Output`] if a writer fails; otherwise as [`Self::collect`].
    pub async fn copy_to(
        &mut self,
        stdout: &mut (impl AsyncWrite + Unpin),
        stderr: &mut (impl AsyncWrite + Unpin),
    ) -> Result<Option<ExitStatus>, ClientError> {
        loop {
            match self.next().await? {
                ExecEvent::Exited(status) => return Ok(Some(status)),
                ExecEvent::UpToDate => return Ok(None),
                ExecEvent::Stdout(bytes) => write(stdout, &bytes).await?,
                ExecEvent::Stderr(bytes) => write(stderr, &bytes).await?,
            }
        }
    }

    /// Waits for the end of the process; its output is dropped.
    ///
    /// # Errors
    /// As [`Self::collect`]; `process_lost` if the server ended the output without the status.
    pub async fn status(&mut self) -> Result<ExitStatus, ClientError> {
        let (mut stdout, mut stderr) = (tokio::io::sink(), tokio::io::sink());
        self.copy_to(&mut stdout, &mut stderr).await?.ok_or_else(ClientError::no_status)
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), ClientError> {
    to.write_all(bytes).await.map_err(ClientError::Output)?;
    to.flush().await.map_err(ClientError::Output)
}
