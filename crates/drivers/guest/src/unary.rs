//! Requests with one short answer.

use microvm_ports::GuestError;
use microvm_protocol::messages::{Operation, Reply};
use microvm_protocol::mux::{Incoming, StreamHandle};

use crate::channel::Channel;

impl Channel {
    /// Asks and takes the first message of the answer.
    pub(crate) async fn unary(&self, operation: Operation) -> Result<Reply, GuestError> {
        let stream = self.open(operation)?;
        stream.end();
        self.reply(&stream).await
    }

    /// Asks for something whose answer is no more than "done".
    pub(crate) async fn command(&self, operation: Operation) -> Result<(), GuestError> {
        match self.unary(operation).await? {
            Reply::Done(_) => Ok(()),
            _ => Err(self.broken("an answer of the guest is not what was asked for")),
        }
    }

    /// The next thing on a stream, which must be a message.
    pub(crate) async fn reply(&self, stream: &StreamHandle) -> Result<Reply, GuestError> {
        match stream.receive().await.map_err(|error| self.stream_failed(error))? {
            Some(Incoming::Message(Some(reply))) => Ok(reply),
            _ => Err(self.broken("the guest sends something else than an answer")),
        }
    }

    /// Asks for something that is answered in several messages; `None` at the end.
    pub(crate) async fn next_message(&self, stream: &StreamHandle) -> Result<Option<Reply>, GuestError> {
        match stream.receive().await.map_err(|error| self.stream_failed(error))? {
            None => Ok(None),
            Some(Incoming::Message(Some(reply))) => Ok(Some(reply)),
            Some(_) => Err(self.broken("the guest sends something else than a message")),
        }
    }
}
