use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tower_gemini_core::catalog::{Catalog, Date};
use tower_layer::Layer;

use super::{Chain, CoolDowns, FallbackPolicy, Health, ModelFallback};
use crate::stage::CallService;

/// Makes [`ModelFallback`] services that share the health of their targets.
#[derive(Debug, Clone)]
pub struct ModelFallbackLayer {
    settings: Option<Arc<Settings>>,
    health: Health,
}

type Today = Arc<dyn Fn() -> Date + Send + Sync>;
type UntilMidnight = Arc<dyn Fn() -> Duration + Send + Sync>;

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) chain: Chain,
    pub(super) policy: FallbackPolicy,
    pub(super) cool_downs: CoolDowns,
    catalog: Option<Arc<Catalog>>,
    today: Option<Today>,
    until_midnight: Option<UntilMidnight>,
}

impl Settings {
    pub(super) fn catalog(&self) -> &Catalog {
        self.catalog.as_deref().unwrap_or_else(|| Catalog::builtin())
    }

    pub(super) fn today(&self) -> Option<Date> {
        self.today.as_ref().map(|today| today())
    }

    pub(super) fn midnight(&self) -> Option<Duration> {
        self.until_midnight.as_ref().map(|until| until())
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("chain", &self.chain)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl ModelFallbackLayer {
    /// Falls back along `chain`, by [`FallbackPolicy::recommended`].
    #[must_use]
    pub fn new(chain: Chain) -> Self {
        let settings = Settings {
            chain,
            policy: FallbackPolicy::recommended(),
            cool_downs: CoolDowns::recommended(),
            catalog: None,
            today: None,
            until_midnight: None,
        };
        Self { settings: Some(Arc::new(settings)), health: Health::default() }
    }

    /// Passes every call on as it is, at no cost.
    #[must_use]
    pub fn off() -> Self {
        Self { settings: None, health: Health::default() }
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        if let Some(settings) = &mut self.settings {
            change(Arc::make_mut(settings));
        }
        self
    }

    /// Which verdicts move a call on.
    #[must_use]
    pub fn policy(self, policy: FallbackPolicy) -> Self {
        self.with(|settings| settings.policy = policy)
    }

    /// How long targets rest.
    #[must_use]
    pub fn cool_downs(self, cool_downs: CoolDowns) -> Self {
        self.with(|settings| settings.cool_downs = cool_downs)
    }

    /// What is known of models. Default: [`Catalog::builtin`].
    #[must_use]
    pub fn catalog(self, catalog: Catalog) -> Self {
        self.with(|settings| settings.catalog = Some(Arc::new(catalog)))
    }

    /// Tells the day, so that a model whose date has passed is not asked at all. Without it only a
    /// 404 says so.
    #[must_use]
    pub fn today(self, today: impl Fn() -> Date + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.today = Some(Arc::new(today)))
    }

    /// Tells the time until midnight Pacific, when the quotas of the day begin anew. Without it a
    /// spent day rests for a fixed time.
    #[must_use]
    pub fn until_midnight_pacific(
        self,
        until: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.until_midnight = Some(Arc::new(until)))
    }

    /// The health of the targets, shared by every service made from this layer and by all their
    /// clones.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }
}

impl<S: CallService> Layer<S> for ModelFallbackLayer {
    type Service = ModelFallback<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ModelFallback::new(inner, self.settings.clone(), self.health.clone())
    }
}
