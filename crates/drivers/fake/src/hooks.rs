//! Hooks that are noted, not run.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use microvm_ports::{HookError, HookRunner};
use microvm_types::template::HookAction;
use tokio::sync::Semaphore;

/// Notes every hook; a program called `/bin/false` fails, and one called `/bin/hold` waits until it is released.
#[derive(Debug, Clone)]
pub struct FakeHooks {
    ran: Arc<Mutex<Vec<String>>>,
    /// A permit for each that may end.
    gate: Arc<Semaphore>,
}

impl Default for FakeHooks {
    fn default() -> Self {
        Self { ran: Arc::default(), gate: Arc::new(Semaphore::new(0)) }
    }
}

impl FakeHooks {
    /// The events of all hooks that ran, in order.
    #[must_use]
    pub fn events(&self) -> Vec<String> {
        self.ran.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets one hook end that waits, or the next one that is to.
    pub fn release(&self) {
        self.gate.add_permits(1);
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
        let HookAction::Program(command) = action else { return Ok(()) };
        match command.first().map(String::as_str) {
            Some("/bin/hold") => {
                // Nothing closes the gate.
                if let Ok(permit) = self.gate.acquire().await {
                    permit.forget();
                }
                Ok(())
            }
            Some("/bin/false") => Err(HookError::Failed {
                program: "/bin/false".to_owned(),
                status: "exit status: 1".to_owned(),
                detail: String::new(),
            }),
            _ => Ok(()),
        }
    }
}
