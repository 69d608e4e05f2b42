use std::sync::Arc;

use crate::body::PeekLimits;
use tower_gemini_core::catalog::Catalog;
use tower_layer::Layer;

use super::ClassifyGeminiError;
use super::evidence::{Evidence, was_not_sent};
use crate::stage::WireClient;

/// Makes [`ClassifyGeminiError`] services.
#[derive(Debug, Clone)]
pub struct ClassifyGeminiErrorLayer {
    pub(super) limits: PeekLimits,
    pub(super) evidence: Evidence,
    pub(super) catalog: Option<Arc<Catalog>>,
}

impl ClassifyGeminiErrorLayer {
    /// The defaults of the [module](super).
    #[must_use]
    pub fn new() -> Self {
        Self { limits: PeekLimits::default(), evidence: was_not_sent, catalog: None }
    }

    /// How much of an answer is read before its head is released.
    #[must_use]
    pub fn limits(mut self, limits: PeekLimits) -> Self {
        self.limits = limits;
        self
    }

    /// What proves that a request was not sent, for clients whose errors the default does not know.
    #[must_use]
    pub fn evidence(mut self, evidence: Evidence) -> Self {
        self.evidence = evidence;
        self
    }

    /// The models and prices that attempts are costed by, in place of the built-in list.
    #[must_use]
    pub fn catalog(mut self, catalog: Arc<Catalog>) -> Self {
        self.catalog = Some(catalog);
        self
    }
}

impl Default for ClassifyGeminiErrorLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: WireClient> Layer<S> for ClassifyGeminiErrorLayer {
    type Service = ClassifyGeminiError<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ClassifyGeminiError::new(inner, self.clone())
    }
}
