//! Pools: VMs of one template, made ahead, probed, paused, and handed out in a blink.
//!
//! ```text
//!             fill (several at once: fork or boot, one command, pause)
//!  PoolRecord ────────────────────────────▶ waiting ──acquire──▶ somebody's own
//!             ◀── too old, dead: removed ──┘   │ empty
//!                                              └────▶ fork ▶ boot, in the same call
//! ```
//!
//! A VM that was handed out is never handed to anyone else; it is deleted like any other.

mod acquire;
mod fill;
mod manage;

pub use acquire::AcquireRequest;
pub(crate) use manage::view;
pub use manage::{PoolChange, PoolRequest, PoolView};

use crate::context::Context;

/// Pools.
#[derive(Debug, Clone)]
pub struct Pools {
    context: Context,
}

impl Pools {
    pub(crate) fn new(context: &Context) -> Self {
        Self { context: context.clone() }
    }
}
