//! Hooks that are noted, not run.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use microvm_ports::{HookError, HookRunner};
use microvm_types::template::HookAction;

/// Notes every hook; a program called `/bin/false` fails.
#[derive(Debug, Clone, Default)]
pub struct FakeHooks {
    ran: Arc<Mutex<Vec<String>>>,
}

impl FakeHooks {
    /// The events of all hooks that ran, in order.
    #[must_use]
    pub fn events(&self) -> Vec<String> {
        self.ran.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl HookRunner for FakeHooks {
    async fn run(
        &self,
        action: &HookAction,
        event: &serde_json::Value,
        _timeout: Duration,
    ) -> Result<(), HookError> {
        let name = event["event"].as_str().unwrap_or_default().to_owned();
        self.ran.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        match action {
            HookAction::Program(command) if command.first().is_some_and(|name| name == "/bin/false") => {
                Err(HookError::Failed {
                    program: "/bin/false".to_owned(),
                    status: "exit status: 1".to_owned(),
                    detail: String::new(),
                })
            }
            HookAction::Program(_) | HookAction::Webhook(_) => Ok(()),
        }
    }
}
