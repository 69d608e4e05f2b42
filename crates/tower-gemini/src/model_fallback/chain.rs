//! Which targets there are, and in which order one call takes them: pure.

use std::collections::VecDeque;
use std::sync::Arc;

use tower_gemini_core::catalog::Catalog;
use tower_gemini_core::target::Target;

use crate::jittered_retry::RetryPolicy;

/// Targets in the order in which they are tried.
///
/// A call begins with the model that it asks for: at its place in the chain, or in front of it
/// where it has none.
///
/// ```
/// use tower_gemini::{call::ImageSize, target::Target};
/// use tower_gemini::model_fallback::Chain;
///
/// let chain = Chain::of(["gemini-3-pro-image", "gemini-3.1-flash-image"]);
/// let by_hand = Chain::new()
///     .then(Target::new("gemini-3-pro-image").attempts(2))
///     .then(Target::new("gemini-3.1-flash-image").size_cap(ImageSize::K2));
/// # let _ = (chain, by_hand);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Chain {
    links: Vec<Link>,
    wraps: bool,
}

/// A target and how it is retried.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) target: Target,
    pub(super) retry: Option<Arc<RetryPolicy>>,
}

impl Chain {
    /// No targets: calls go to the model they ask for.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// These models, where the caller sends its calls.
    #[must_use]
    pub fn of<'a>(models: impl IntoIterator<Item = &'a str>) -> Self {
        models.into_iter().fold(Self::new(), |chain, model| chain.then(Target::new(model)))
    }

    /// One more target.
    #[must_use]
    pub fn then(mut self, target: Target) -> Self {
        self.links.push(Link { target, retry: None });
        self
    }

    /// One more target, retried by a policy of its own (by the
    /// [`JitteredRetry`](crate::JitteredRetry) inside).
    #[must_use]
    pub fn then_retried(mut self, target: Target, retry: RetryPolicy) -> Self {
        self.links.push(Link { target, retry: Some(Arc::new(retry)) });
        self
    }

    /// A call that begins in the middle goes on from the end to the beginning. Without this,
    /// targets in front of the model asked for are not tried: they are the better and dearer ones,
    /// as a rule.
    #[must_use]
    pub fn wrapping(mut self) -> Self {
        self.wraps = true;
        self
    }

    /// Its targets, in order.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.links.iter().map(|link| &link.target)
    }

    /// The order for a call that asks for `model`, where another may lead
    /// ([`PreferModel`](tower_gemini_core::context::PreferModel)).
    pub(super) fn from(
        &self,
        model: &str,
        lead: Option<&str>,
        catalog: &Catalog,
    ) -> VecDeque<Link> {
        let id = |name: &str| {
            catalog.lookup(name).map_or_else(|| name.to_owned(), |model| model.id.clone())
        };
        let place = |name: &str| {
            self.links.iter().position(|link| id(link.target.model().as_str()) == id(name))
        };
        let own = |name: &str| Link { target: Target::new(name), retry: None };
        let mut order: VecDeque<Link> = match place(model) {
            Some(at) => {
                let (before, after) = self.links.split_at(at);
                let before = if self.wraps { before } else { &[] };
                after.iter().chain(before).cloned().collect()
            }
            None => std::iter::once(own(model)).chain(self.links.iter().cloned()).collect(),
        };
        if let Some(lead) = lead {
            // The chain's own link, with its cap and its retries, where it has one; wherever it
            // stands, a target in front of the model asked for too.
            let first =
                place(lead).and_then(|at| self.links.get(at)).cloned().unwrap_or_else(|| own(lead));
            order.retain(|link| id(link.target.model().as_str()) != id(lead));
            order.push_front(first);
        }
        order
    }
}

/// What makes two targets one: a call visits none twice.
pub(super) fn identity(target: &Target, catalog: &Catalog) -> String {
    let model =
        catalog.lookup(target.model().as_str()).map_or(target.model().as_str(), |model| &model.id);
    let host = target.upstream().map_or("", |upstream| upstream.host());
    let cap = target.max_size().map_or("", |size| size.as_str());
    format!("{model} {host} {} {cap}", target.account())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(chain: &Chain, model: &str) -> Vec<String> {
        led(chain, model, None)
    }

    fn led(chain: &Chain, model: &str, lead: Option<&str>) -> Vec<String> {
        chain
            .from(model, lead, Catalog::builtin())
            .iter()
            .map(|link| link.target.model().to_string())
            .collect()
    }

    #[test]
    fn a_call_begins_with_the_model_it_asks_for() {
        let chain = Chain::of(["a", "b", "c"]);
        assert_eq!(order(&chain, "a"), ["a", "b", "c"]);
        assert_eq!(order(&chain, "b"), ["b", "c"]);
        assert_eq!(order(&chain, "x"), ["x", "a", "b", "c"]);
        assert_eq!(order(&chain.wrapping(), "b"), ["b", "c", "a"]);
    }

    #[test]
    fn a_preferred_model_leads_and_the_model_asked_for_follows() {
        let chain = Chain::of(["a", "b", "c"]);
        assert_eq!(led(&chain, "b", Some("a")), ["a", "b", "c"]);
        assert_eq!(led(&chain, "a", Some("c")), ["c", "a", "b"]);
        assert_eq!(led(&chain, "a", Some("a")), ["a", "b", "c"]);
        assert_eq!(led(&chain, "a", Some("x")), ["x", "a", "b", "c"]);
    }

    #[test]
    fn aliases_find_their_place_in_the_chain() {
        let chain = Chain::of(["gemini-3-pro-image", "gemini-3.1-flash-image"]);
        assert_eq!(order(&chain, "nano-banana-2"), ["gemini-3.1-flash-image"]);
    }
}
