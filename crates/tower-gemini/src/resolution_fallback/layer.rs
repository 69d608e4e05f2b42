use std::sync::Arc;

use tower_gemini_core::catalog::Catalog;
use tower_layer::Layer;

use super::{Ladder, ResolutionFallback};
use crate::stage::CallService;

/// Makes [`ResolutionFallback`] services.
#[derive(Debug, Clone)]
pub struct ResolutionFallbackLayer {
    settings: Option<Arc<Settings>>,
}

#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) ladder: Ladder,
    catalog: Option<Arc<Catalog>>,
}

impl Settings {
    pub(super) fn catalog(&self) -> &Catalog {
        self.catalog.as_deref().unwrap_or_else(|| Catalog::builtin())
    }
}

impl ResolutionFallbackLayer {
    /// Steps down by [`Ladder::recommended`].
    #[must_use]
    pub fn new() -> Self {
        Self::by(Ladder::recommended())
    }

    /// Steps down by this ladder.
    #[must_use]
    pub fn by(ladder: Ladder) -> Self {
        Self { settings: Some(Arc::new(Settings { ladder, catalog: None })) }
    }

    /// Passes every call on as it is, at no cost.
    #[must_use]
    pub fn off() -> Self {
        Self { settings: None }
    }

    /// What is known of models. Default: [`Catalog::builtin`].
    #[must_use]
    pub fn catalog(mut self, catalog: Catalog) -> Self {
        if let Some(settings) = &mut self.settings {
            Arc::make_mut(settings).catalog = Some(Arc::new(catalog));
        }
        self
    }
}

impl Default for ResolutionFallbackLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: CallService> Layer<S> for ResolutionFallbackLayer {
    type Service = ResolutionFallback<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ResolutionFallback::new(inner, self.settings.clone())
    }
}
