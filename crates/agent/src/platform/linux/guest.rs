//! [`System`] on Linux.

use std::future::Future;

use microvm_protocol::messages::{GuestProcess, Share, Shutdown, System as SystemInfo, Volume};

use super::system::{clock, health, info, names, processes, shares, shutdown, volumes};
use super::{Linux, Place};
use crate::core::failure::{AgentError, AgentResult};
use crate::core::platform::{Facts, System, Usage};

impl System for Linux {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn owns_machine(&self) -> bool {
        self.place == Place::Guest
    }

    fn information(&self) -> SystemInfo {
        info::system_info()
    }

    fn usage(&self) -> Usage {
        health::usage(&self.sampler)
    }

    fn processes(&self) -> AgentResult<Vec<GuestProcess>> {
        let all = processes::all().map_err(|error| AgentError::system("list /proc", error))?;
        Ok(all.into_iter().map(|listed| listed.message).collect())
    }

    fn shut_down(&self, request: Shutdown) -> impl Future<Output = ()> + Send + 'static {
        shutdown::shut_down(request)
    }

    fn add_entropy(&self, entropy: &[u8]) -> Result<(), String> {
        self.entropy.add(entropy)
    }

    fn set_clock(&self, nanoseconds: i64) -> Result<(), String> {
        clock::set(nanoseconds)
    }

    fn set_host_name(&self, name: &str) -> Result<(), String> {
        names::set_host_name(name)
    }

    fn set_machine_id(&self, id: &str) -> Result<(), String> {
        names::set_machine_id(id)
    }

    fn make_working_directory(&self, directory: &str) {
        names::make_working_directory(directory);
    }

    async fn mount_shares(&self, shares: Vec<Share>) -> Result<(), String> {
        shares::mount_all(shares).await
    }

    async fn mount_volumes(&self, volumes: Vec<Volume>) -> Result<(), String> {
        volumes::mount_all(volumes).await
    }
}
