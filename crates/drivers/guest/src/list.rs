//! Answers of many messages: lists.

use microvm_ports::GuestError;
use microvm_protocol::messages::{Operation, Reply};
use microvm_types::ErrorKind;

use crate::channel::Channel;

/// Most memory a list of a guest may take here: 100,000 files with 200 bytes of path each fit.
const MOST_BYTES: usize = 32 << 20;

/// Conversion and limits of a list.
pub(crate) struct Reading<Sent, Kept> {
    /// Most entries a guest that keeps to the rules sends.
    pub(crate) most: usize,
    /// The entries of one message; `None` if it is of another kind.
    pub(crate) open: fn(Reply) -> Option<Vec<Sent>>,
    /// Turns an entry into its kept form; `None` for one that cannot be used.
    pub(crate) keep: fn(Sent) -> Option<Kept>,
    /// Bytes behind the pointers of what is kept. Counted after the conversion, which can make texts larger.
    pub(crate) behind: fn(&Kept) -> usize,
}

impl Channel {
    /// Asks for a list and takes all of it, within limits of number and of memory.
    ///
    /// Too many entries, and messages without any, are what no honest guest sends: they end the channel. Too many bytes
    /// may be an honest answer about an odd guest, so they only fail this request.
    pub(crate) async fn list<Sent, Kept>(
        &self,
        operation: Operation,
        reading: Reading<Sent, Kept>,
    ) -> Result<Vec<Kept>, GuestError> {
        self.list_seeing(operation, reading, |_| ()).await
    }

    /// Like [`Self::list`]; `see` is called with every message.
    pub(crate) async fn list_seeing<Sent, Kept>(
        &self,
        operation: Operation,
        reading: Reading<Sent, Kept>,
        mut see: impl FnMut(&Reply) + Send,
    ) -> Result<Vec<Kept>, GuestError> {
        let stream = self.open(operation)?;
        stream.end();
        let (mut all, mut seen, mut bytes) = (Vec::new(), 0usize, 0usize);
        let mut held = self.lists.begin();
        while let Some(reply) = self.next_message(&stream).await? {
            see(&reply);
            let Some(some) = (reading.open)(reply) else {
                return Err(self.broken("an answer of the guest is not the list that was asked for"));
            };
            seen += some.len();
            if some.is_empty() || seen > reading.most {
                return Err(self.broken("the guest sends a list without end"));
            }
            for entry in some.into_iter().filter_map(reading.keep) {
                bytes = bytes.saturating_add(size_of::<Kept>()).saturating_add((reading.behind)(&entry));
                if bytes > MOST_BYTES {
                    return Err(GuestError::Refused {
                        kind: ErrorKind::Exhausted,
                        message: format!(
                            "the list takes more than {} MiB: ask for a part of it",
                            MOST_BYTES >> 20
                        ),
                    });
                }
                held.reach(bytes)?;
                all.push(entry);
            }
        }
        Ok(all)
    }
}
