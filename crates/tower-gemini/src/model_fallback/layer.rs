use std::sync::Arc;

use tower_gemini_core::catalog::Catalog;
use tower_layer::Layer;

use super::{Chain, Circuits, Cooldowns, FallbackOrder, FallbackPolicy, ModelFallback, Pool};
use crate::clock::Clock;
use crate::stage::CallService;
use crate::walk::{Fallback, Ladder, Settings};

/// Makes [`ModelFallback`] services that share their circuit breakers.
#[derive(Debug, Clone)]
pub struct ModelFallbackLayer {
    settings: Option<Arc<Settings>>,
    circuits: Circuits,
}

impl ModelFallbackLayer {
    /// Falls back along `chain`, by [`FallbackPolicy::recommended`].
    #[must_use]
    pub fn new(chain: Chain) -> Self {
        let settings = Settings::new(Some(chain), None);
        Self { settings: Some(Arc::new(settings)), circuits: Circuits::default() }
    }

    /// Passes every call on unchanged, at no cost.
    #[must_use]
    pub fn off() -> Self {
        Self { settings: None, circuits: Circuits::default() }
    }

    /// Asks no other model but the successor of one that the API says is gone. No target is left
    /// alone, and no call waits for one.
    #[must_use]
    pub fn successors() -> Self {
        let policy = FallbackPolicy::recommended().refuse_when_all_open();
        Self::new(Chain::default()).policy(policy).with(|settings| settings.successors_only = true)
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        if let Some(settings) = &mut self.settings {
            change(Arc::make_mut(settings));
        }
        self
    }

    /// Which verdicts make a call fall back.
    #[must_use]
    pub fn policy(self, policy: FallbackPolicy) -> Self {
        self.with(|settings| settings.policy = policy)
    }

    /// After which failures, and for how long, targets are left alone.
    #[must_use]
    pub fn cooldowns(self, cooldowns: Cooldowns) -> Self {
        self.with(|settings| settings.cooldowns = cooldowns)
    }

    /// Asks for smaller sizes too, in one walk with the models.
    #[must_use]
    pub fn ladder(self, ladder: Ladder) -> Self {
        self.with(|settings| settings.ladder = Some(ladder))
    }

    /// What gives way first where there is a [`ladder`](Self::ladder).
    #[must_use]
    pub fn order(self, order: FallbackOrder) -> Self {
        self.with(|settings| settings.order = order)
    }

    /// What is known of models. Default: [`Catalog::builtin`].
    #[must_use]
    pub fn catalog(self, catalog: impl Into<Arc<Catalog>>) -> Self {
        self.with(|settings| settings.catalog = Some(catalog.into()))
    }

    /// Tells the day, by which fallback targets are retired, and the time until midnight Pacific.
    /// Default: the machine's clock.
    #[must_use]
    pub fn clock(self, clock: impl Clock + 'static) -> Self {
        self.with(|settings| settings.clock = Arc::new(clock))
    }

    /// Shares the circuit breakers of another layer.
    #[must_use]
    pub fn circuits_of(mut self, other: &Self) -> Self {
        self.circuits = other.circuits.clone();
        self
    }

    /// Sends what goes to the upstream that calls are addressed to to one of these. A layer that is
    /// off is on with it, without another model.
    #[must_use]
    pub fn pool(mut self, pool: Pool) -> Self {
        let alone = || Arc::new(Settings::new(Some(Chain::default()), None));
        let settings = Arc::make_mut(self.settings.get_or_insert_with(alone));
        settings.chain = settings.chain.take().map(|chain| chain.pool(pool));
        self
    }

    /// The circuit breakers, shared by every service made from this layer and by all their clones.
    #[must_use]
    pub fn circuits(&self) -> &Circuits {
        &self.circuits
    }

    /// Whether it is on.
    pub(crate) fn is_on(&self) -> bool {
        self.settings.is_some()
    }
}

impl<S: CallService> Layer<S> for ModelFallbackLayer {
    type Service = ModelFallback<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ModelFallback(Fallback::new(inner, self.settings.clone(), self.circuits.clone()))
    }
}
