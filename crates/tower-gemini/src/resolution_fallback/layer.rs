use std::sync::Arc;

use tower_gemini_core::catalog::Catalog;
use tower_layer::Layer;

use super::{Ladder, ResolutionFallback};
use crate::stage::CallService;
use crate::walk::{Circuits, Fallback, Settings};

/// Makes [`ResolutionFallback`] services.
#[derive(Debug, Clone)]
pub struct ResolutionFallbackLayer {
    settings: Option<Arc<Settings>>,
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
        Self { settings: Some(Arc::new(Settings::new(None, Some(ladder)))) }
    }

    /// Passes every call on unchanged, at no cost.
    #[must_use]
    pub fn off() -> Self {
        Self { settings: None }
    }

    /// What is known of models. Default: [`Catalog::builtin`].
    #[must_use]
    pub fn catalog(mut self, catalog: impl Into<Arc<Catalog>>) -> Self {
        if let Some(settings) = &mut self.settings {
            Arc::make_mut(settings).catalog = Some(catalog.into());
        }
        self
    }

    /// Its ladder, where it is on.
    pub(crate) fn ladder(&self) -> Option<&Ladder> {
        self.settings.as_ref()?.ladder.as_ref()
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
        ResolutionFallback(Fallback::new(inner, self.settings.clone(), Circuits::default()))
    }
}
