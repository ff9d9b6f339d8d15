//! [`Programs`] on Linux.

use std::io;

use microvm_protocol::messages::{Exec, Exited};
use tokio::sync::oneshot;

use super::Linux;
use super::exec::{self, InputEnd, LinuxChild, OutputEnd, Tools};
use crate::core::failure::AgentResult;
use crate::core::platform::{Defaults, Programs, Started};

impl Linux {
    fn tools(&self) -> Tools<'_> {
        Tools { reaper: &self.reaper, groups: &self.control_groups, shielded: self.shielded }
    }
}

impl Programs for Linux {
    type Child = LinuxChild;
    type Input = InputEnd;
    type Output = OutputEnd;

    fn start(&self, request: &Exec, defaults: &Defaults) -> AgentResult<Started<Self>> {
        exec::start(&self.tools(), request, defaults)
    }

    fn start_bare(&self, request: &Exec, defaults: &Defaults) -> AgentResult<oneshot::Receiver<Exited>> {
        exec::start_bare(&self.tools(), request, defaults)
    }

    fn shell(&self, line: String) -> Vec<String> {
        vec!["/bin/sh".to_owned(), "-c".to_owned(), line]
    }

    fn idle_program(&self) -> &'static str {
        "/bin/true"
    }

    fn look_for_ends(&self) {
        self.reaper.collect();
    }

    async fn report_ends(&self) -> io::Result<()> {
        self.reaper.run().await
    }
}
