use std::sync::Arc;

use crate::body::PeekLimits;
use http::Uri;
use tower_gemini_core::catalog::Catalog;
use tower_gemini_core::charge_rules::ChargeRules;
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
    rules: Vec<(String, ChargeRules)>,
}

impl ClassifyGeminiErrorLayer {
    /// The defaults of the [module](super).
    #[must_use]
    pub fn new() -> Self {
        Self {
            limits: PeekLimits::default(),
            evidence: was_not_sent,
            catalog: None,
            rules: Vec::new(),
        }
    }

    /// How much of a response is read before its head is released.
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
    pub fn catalog(mut self, catalog: impl Into<Arc<Catalog>>) -> Self {
        self.catalog = Some(catalog.into());
        self
    }

    /// What the upstream at `host` charges for where its response does not say. Default: the
    /// builtin rules of that host, and [`ChargeRules::unknown`] where it has none: a failure that
    /// Google did not report itself may have been charged.
    ///
    /// ```
    /// use tower_gemini::ClassifyGeminiErrorLayer;
    /// use tower_gemini::charge_rules::ChargeRules;
    ///
    /// // A mirror of Google's API, run by people who know that it charges as Google does.
    /// let layer = ClassifyGeminiErrorLayer::new()
    ///     .charge_rules("mirror.example", ChargeRules::for_host("generativelanguage.googleapis.com"));
    /// ```
    #[must_use]
    pub fn charge_rules(mut self, host: impl Into<String>, rules: ChargeRules) -> Self {
        self.rules.push((host.into(), rules));
        self
    }

    /// The rules of the upstream that a request goes to.
    pub(super) fn rules_for(&self, uri: &Uri) -> ChargeRules {
        let host = uri.host().unwrap_or_default();
        let set = self.rules.iter().rev().find(|(of, _)| of.eq_ignore_ascii_case(host));
        set.map_or_else(|| ChargeRules::for_host(host), |&(_, rules)| rules)
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
