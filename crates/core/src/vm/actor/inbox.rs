//! Orders on their way to one VM's actor.

use std::collections::VecDeque;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::vm::command::{Command, Order};

/// Orders that came, in order: those that had to wait for earlier work, then those that nobody has looked at yet.
pub(super) struct Inbox {
    orders: mpsc::Receiver<Order>,
    /// Orders that came while something was under way.
    pending: VecDeque<Order>,
}

/// Reason to give up work before its end.
pub(super) enum Interrupted<T> {
    /// An order came that goes before it.
    Order(T),
    /// The server ends.
    Ending,
}

impl Inbox {
    pub(super) const fn new(orders: mpsc::Receiver<Order>) -> Self {
        Self { orders, pending: VecDeque::new() }
    }

    /// The oldest order that had to wait.
    pub(super) fn pending(&mut self) -> Option<Order> {
        self.pending.pop_front()
    }

    /// The next order that comes; `None` when nobody is left to send one.
    pub(super) async fn next(&mut self) -> Option<Order> {
        self.orders.recv().await
    }

    /// No order waits.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.orders.is_empty()
    }

    /// Does `work` to its end, unless an order comes that `overtakes` it or the server ends. All orders that come meanwhile
    /// wait, the overtaking one among them.
    pub(super) async fn unless<T, By>(
        &mut self,
        ending: &CancellationToken,
        overtakes: impl Fn(&Command) -> Option<By>,
        work: impl Future<Output = T>,
    ) -> Result<T, Interrupted<By>> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                // First in the order: a server that ends gives up work, also if orders keep coming.
                () = ending.cancelled() => return Err(Interrupted::Ending),
                Some(order) = self.orders.recv() => {
                    // Kept in any case: the order that overtakes is carried out after the work has been undone.
                    let by = overtakes(&order.command);
                    self.pending.push_back(order);
                    if let Some(by) = by {
                        return Err(Interrupted::Order(by));
                    }
                }
                done = &mut work => return Ok(done),
            }
        }
    }

    /// Takes no more orders: the VM is gone. Whoever waits for a delete has it; whoever waits for anything else is told that
    /// the VM is gone when the reply is dropped.
    pub(super) fn close(&mut self) {
        // First: an order that is sent after the drain would wait for ever.
        self.orders.close();
        while let Some(order) = self.pending.pop_front().or_else(|| self.orders.try_recv().ok()) {
            if let Command::Delete { reply, .. } = order.command {
                let _ = reply.send(Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use microvm_ports::storage::LostDisks;

    use super::*;
    use crate::events::Cause;
    use crate::vm::command::Reply;

    fn order(command: Command) -> Order {
        Order { command, cause: Cause::server() }
    }

    fn delete(reply: Reply) -> Command {
        Command::Delete { lost: LostDisks::GiveUpRemoved, reply }
    }

    fn is_delete(command: &Command) -> Option<&'static str> {
        matches!(command, Command::Delete { .. }).then_some("deleted")
    }

    #[tokio::test]
    async fn only_orders_that_overtake_interrupt_and_all_of_them_wait() {
        let (sender, orders) = mpsc::channel(4);
        let mut inbox = Inbox::new(orders);
        let ending = CancellationToken::new();
        sender.send(order(Command::Pause(oneshot::channel().0))).await.unwrap();
        assert!(matches!(inbox.unless(&ending, is_delete, async { 7 }).await, Ok(7)));
        sender.send(order(delete(oneshot::channel().0))).await.unwrap();
        let never = std::future::pending::<()>();
        let interrupted = inbox.unless(&ending, is_delete, never).await;
        assert!(matches!(interrupted, Err(Interrupted::Order("deleted"))));
        assert!(matches!(inbox.pending(), Some(Order { command: Command::Pause(_), .. })));
        assert!(matches!(inbox.pending(), Some(Order { command: Command::Delete { .. }, .. })));
        assert!(inbox.pending().is_none() && inbox.is_empty());
        ending.cancel();
        let late = tokio::time::sleep(Duration::from_secs(3_600));
        assert!(matches!(inbox.unless(&ending, is_delete, late).await, Err(Interrupted::Ending)));
    }

    #[tokio::test]
    async fn whoever_waits_for_a_delete_has_it_when_the_vm_is_gone() {
        let (sender, orders) = mpsc::channel(4);
        let mut inbox = Inbox::new(orders);
        let (deleted, first) = oneshot::channel();
        let (paused, second) = oneshot::channel();
        sender.send(order(delete(deleted))).await.unwrap();
        sender.send(order(Command::Pause(paused))).await.unwrap();
        inbox.close();
        assert!(first.await.unwrap().is_ok());
        assert!(second.await.is_err(), "its reply is dropped");
        assert!(sender.send(order(Command::MakeRoom)).await.is_err());
    }
}
