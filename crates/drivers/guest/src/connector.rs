//! Opens channels.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use microvm_ports::guest::{Guest, GuestEndpoint, Identity};
use microvm_ports::waiting::within;
use microvm_ports::{GuestConnector, GuestError};

use crate::channel::Channel;
use crate::config::GuestConfig;
use crate::guest::SocketGuest;
use crate::lists::ListMemory;
use crate::owners::Owners;
use crate::{handshake, identity, socket};

/// Opens channels over unix sockets.
#[derive(Debug, Clone, Default)]
pub struct SocketGuestConnector {
    config: GuestConfig,
    lists: ListMemory,
}

impl SocketGuestConnector {
    /// A connector with these settings.
    #[must_use]
    pub fn new(config: GuestConfig) -> Self {
        Self { config, lists: ListMemory::default() }
    }
}

#[async_trait]
impl GuestConnector for SocketGuestConnector {
    async fn connect(
        &self,
        endpoint: &GuestEndpoint,
        epoch: u64,
        identity: &Identity,
        deadline: Duration,
    ) -> Result<Arc<dyn Guest>, GuestError> {
        let connect = async {
            let mut socket = socket::connect(endpoint).await?;
            let (agent, features, decoder) = handshake::greet(&mut socket, epoch).await?;
            let channel = Channel::start(socket, decoder, &self.config, self.lists.clone());
            identity::push(&channel, epoch, identity).await?;
            let owners = Owners::new(features, identity);
            Ok(Arc::new(SocketGuest::new(channel, agent, owners, self.config.clone())) as Arc<dyn Guest>)
        };
        within(deadline, connect)
            .await
            .unwrap_or(Err(GuestError::Timeout { action: "answer on its channel", after: deadline }))
    }
}
