use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use tower_gemini_core::catalog::Catalog;
use tower_layer::Layer;

use super::observer::CallObserver;
use super::service::{AtBodyEnd, AtHead, Observe, ObserveWhole};
use super::watch::Shared;
use crate::stage::CallerService;

/// Makes [`Observe`] services.
pub struct ObserveLayer<M = AtBodyEnd> {
    shared: Arc<Shared>,
    mode: PhantomData<fn() -> M>,
}

/// Makes [`ObserveWhole`](super::ObserveWhole) services. See [`ObserveLayer::whole_responses`].
pub type ObserveWholeLayer = ObserveLayer<AtHead>;

impl ObserveLayer {
    /// Creates a layer with the defaults of the [module](super).
    #[must_use]
    pub fn new() -> Self {
        #[cfg(feature = "metrics")]
        super::metrics::describe_metrics();
        Self { shared: Arc::new(Shared::new()), mode: PhantomData }
    }

    /// Sets the models that metrics and observers count by name. Default: the built-in catalogue.
    #[must_use]
    pub fn catalog(mut self, catalog: impl Into<Arc<Catalog>>) -> Self {
        Arc::make_mut(&mut self.shared).catalog = catalog.into();
        self
    }

    /// Adds an observer, which is called for every call of the services made from here on.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn CallObserver>) -> Self {
        Arc::make_mut(&mut self.shared).observers.push(observer);
        self
    }

    /// Returns the same layer for a stack whose responses are complete with their heads, such as
    /// one that ends in [`FinalImageExtract`](crate::FinalImageExtract).
    #[must_use]
    pub fn whole_responses(&self) -> ObserveWholeLayer {
        ObserveLayer { shared: self.shared.clone(), mode: PhantomData }
    }
}

impl Default for ObserveLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<M> Clone for ObserveLayer<M> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), mode: PhantomData }
    }
}

impl<M> fmt::Debug for ObserveLayer<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let observers = self.shared.observers.len();
        f.debug_struct("ObserveLayer").field("observers", &observers).finish_non_exhaustive()
    }
}

impl<S: CallerService> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Observe::new(inner, self.shared.clone())
    }
}

impl<S> Layer<S> for ObserveWholeLayer {
    type Service = ObserveWhole<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Observe::new(inner, self.shared.clone())
    }
}
