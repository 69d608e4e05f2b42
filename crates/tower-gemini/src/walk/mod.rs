//! Walks a call along targets (upstream, model, size) until one of them delivers: what
//! [`ModelFallback`](crate::ModelFallback) and [`ResolutionFallback`](crate::ResolutionFallback)
//! share.
//!
//! [`Chain`] and [`Ladder`] are the data, [`FallbackOrder`] says which of the two gives way first.
//! `plan.rs` gives the next target, `policy.rs` decides whether there may be one, `circuits.rs`
//! knows by the states of `circuit_states.rs` which targets are left alone, `shared_circuits.rs`
//! shares that, and `service.rs` is the loop.

mod chain;
mod circuit_states;
#[cfg(test)]
mod circuit_tests;
mod circuits;
mod ladder;
mod plan;
mod policy;
mod pool;
mod refusal;
mod service;
#[cfg(test)]
mod shared_circuit_tests;
mod shared_circuits;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tower_gemini_core::catalog::{Catalog, Date};

pub use self::chain::Chain;
pub use self::circuit_states::{CircuitState, Cooldowns};
pub use self::circuits::{Circuit, Circuits};
pub use self::ladder::Ladder;
pub use self::policy::{FallbackPolicy, Reaction};
pub use self::pool::Pool;
pub(crate) use self::service::Fallback;
use crate::calendar::{PacificDay, unix_ms};
use crate::clock::{Clock, SystemClock};

/// What gives way first where both other models and smaller sizes may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FallbackOrder {
    /// The size: a model is tried at smaller sizes before another model is ("keep the model").
    #[default]
    SizeFirst,
    /// The model: every model is tried at a size before a smaller size is ("keep the size").
    ModelFirst,
}

/// What a walk goes by.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// `None` asks no other model, and keeps no circuits.
    pub(crate) chain: Option<Chain>,
    /// `None` asks for no smaller size.
    pub(crate) ladder: Option<Ladder>,
    pub(crate) order: FallbackOrder,
    pub(crate) policy: FallbackPolicy,
    /// Only the successor of a model that is gone is asked.
    pub(crate) successors_only: bool,
    pub(crate) cooldowns: Cooldowns,
    pub(crate) catalog: Option<Arc<Catalog>>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Settings {
    pub(crate) fn new(chain: Option<Chain>, ladder: Option<Ladder>) -> Self {
        Self {
            chain,
            ladder,
            order: FallbackOrder::default(),
            policy: FallbackPolicy::recommended(),
            successors_only: false,
            cooldowns: Cooldowns::recommended(),
            catalog: None,
            clock: Arc::new(SystemClock),
        }
    }

    fn catalog(&self) -> &Catalog {
        self.catalog.as_deref().unwrap_or_else(|| Catalog::builtin())
    }

    /// How long until the quotas of the day begin anew, at midnight Pacific.
    fn until_midnight(&self) -> Duration {
        let now = self.clock.now();
        PacificDay::at(now).time_left(unix_ms(now))
    }

    fn today(&self) -> Option<Date> {
        PacificDay::at(self.clock.now()).to_string().parse().ok()
    }
}
