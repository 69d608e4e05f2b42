use std::sync::Arc;

use tower_gemini_core::catalog::Catalog;
use tower_layer::Layer;

use super::diagnosis::HealthTargets;
use super::measure::describe_metrics;
use super::observatory::{Observatory, Settings};
use super::{Observe, ObserveWhole};
use crate::clock::Clock;

/// Makes [`Observe`] services that share one [`Observatory`].
#[derive(Debug, Clone)]
pub struct ObserveLayer {
    settings: Settings,
    /// Made anew with every change of the layer; shared by every service made of it.
    observatory: Observatory,
}

impl ObserveLayer {
    /// The defaults of the [module](super).
    #[must_use]
    pub fn new() -> Self {
        describe_metrics();
        let settings = Settings::default();
        Self { observatory: Observatory::new(&settings), settings }
    }

    fn anew(mut self) -> Self {
        self.observatory = Observatory::new(&self.settings);
        self
    }

    /// The failure rates that are aimed for, and which hours are peak.
    #[must_use]
    pub fn targets(mut self, targets: HealthTargets) -> Self {
        self.settings.targets = targets;
        self.anew()
    }

    /// The models that are counted by name.
    #[must_use]
    pub fn catalog(mut self, catalog: Arc<Catalog>) -> Self {
        self.settings.catalog = catalog;
        self.anew()
    }

    /// Where the hour and the day are read.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.settings.clock = Arc::new(clock);
        self.anew()
    }

    /// How many of the last calls are kept with their trails.
    #[must_use]
    pub fn keep_calls(mut self, calls: usize) -> Self {
        self.settings.keep_calls = calls;
        self.anew()
    }

    /// What is seen. To be asked for when the layer is set: a change of the layer starts anew.
    #[must_use]
    pub fn observatory(&self) -> Observatory {
        self.observatory.clone()
    }

    /// The same for a stack whose answers are whole when they come, such as one that ends in
    /// [`FinalImageExtract`](crate::FinalImageExtract). The two may share one observatory.
    #[must_use]
    pub fn whole_answers(&self) -> ObserveWholeLayer {
        ObserveWholeLayer { observatory: self.observatory.clone() }
    }
}

impl Default for ObserveLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Observe::new(inner, self.observatory.clone())
    }
}

/// Makes [`ObserveWhole`] services. See [`ObserveLayer::whole_answers`].
#[derive(Debug, Clone)]
pub struct ObserveWholeLayer {
    observatory: Observatory,
}

impl<S> Layer<S> for ObserveWholeLayer {
    type Service = ObserveWhole<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ObserveWhole::new(inner, self.observatory.clone())
    }
}
