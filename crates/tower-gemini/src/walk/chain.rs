//! Which targets there are, and in which order one call visits them. Pure.

use std::sync::Arc;

use tower_gemini_core::catalog::Catalog;
use tower_gemini_core::target::Target;

use super::pool::Pool;
use crate::jittered_retry::RetryPolicy;

/// Targets in the order in which they are tried.
///
/// A call begins with the model that it asks for: at its place in the chain, or before the chain
/// where it has none.
///
/// ```
/// use tower_gemini::{call::ImageSize, target::Target};
/// use tower_gemini::model_fallback::Chain;
///
/// let chain = Chain::new(["gemini-3-pro-image", "gemini-3.1-flash-image"]);
/// let by_hand = Chain::default()
///     .then(Target::new("gemini-3-pro-image").attempts(2))
///     .then(Target::new("gemini-3.1-flash-image").size_cap(ImageSize::K2));
/// # let _ = (chain, by_hand);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Chain {
    links: Vec<(Target, Option<Arc<RetryPolicy>>)>,
    wraps: bool,
    pool: Option<Pool>,
}

/// A target on one call's way.
#[derive(Debug, Clone)]
pub(super) struct Leg {
    pub(super) target: Target,
    pub(super) retry: Option<Arc<RetryPolicy>>,
    /// Whether it is the model that the call names: only the API's own response retires it.
    pub(super) is_named: bool,
    /// Whether it is one of several equal upstreams.
    pub(super) is_pooled: bool,
}

impl Leg {
    /// The model that the call names, and nothing else about it.
    pub(super) fn named(target: Target) -> Self {
        Self { target, retry: None, is_named: true, is_pooled: false }
    }
}

impl Chain {
    /// These models, at the upstream that the caller sends its calls to. Without any, calls go to
    /// the model they ask for and its successors.
    #[must_use]
    pub fn new<'a>(models: impl IntoIterator<Item = &'a str>) -> Self {
        models.into_iter().fold(Self::default(), |chain, model| chain.then(Target::new(model)))
    }

    /// Adds a target.
    #[must_use]
    pub fn then(mut self, target: Target) -> Self {
        self.links.push((target, None));
        self
    }

    /// Adds a target that is retried by a policy of its own (by the
    /// [`JitteredRetry`](crate::JitteredRetry) inside).
    #[must_use]
    pub fn then_retried(mut self, target: Target, retry: RetryPolicy) -> Self {
        self.links.push((target, Some(Arc::new(retry))));
        self
    }

    /// Goes on from the end to the beginning for a call that begins in the middle. Without this,
    /// targets before the model asked for are not tried: usually they are better and cost more.
    #[must_use]
    pub fn wrapping(mut self) -> Self {
        self.wraps = true;
        self
    }

    /// Sends what goes to the upstream that calls are addressed to to one of these.
    pub(crate) fn pool(mut self, pool: Pool) -> Self {
        self.pool = Some(pool);
        self
    }

    /// Its targets, in order.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.links.iter().map(|(target, _)| target)
    }

    /// The order for a call that asks for `model`, where another may be
    /// [preferred](crate::CallOptions::prefer_model).
    pub(super) fn order(&self, model: &str, lead: Option<&str>, catalog: &Catalog) -> Vec<Leg> {
        let same = |a: &Target, b: &str| id_of(a.model().as_str(), catalog) == id_of(b, catalog);
        let place = |name: &str| self.links.iter().position(|(target, _)| same(target, name));
        let leg = |target: &Target, retry: &Option<Arc<RetryPolicy>>| Leg {
            target: target.clone(),
            retry: retry.clone(),
            is_named: same(target, model),
            is_pooled: false,
        };
        let legs = |links: &[(Target, Option<Arc<RetryPolicy>>)]| -> Vec<Leg> {
            links.iter().map(|(target, retry)| leg(target, retry)).collect()
        };
        let own = |name: &str| leg(&Target::new(name), &None);
        let mut order = match place(model) {
            Some(at) => {
                let (before, after) = self.links.split_at(at);
                [legs(after), legs(if self.wraps { before } else { &[] })].concat()
            }
            None => [vec![own(model)], legs(&self.links)].concat(),
        };
        if let Some(lead) = lead {
            // The chain's own link, with its cap and its retries, where it has one; wherever it
            // stands, even before the model asked for.
            let linked = place(lead).and_then(|at| self.links.get(at));
            let first = linked.map_or_else(|| own(lead), |(target, retry)| leg(target, retry));
            order.retain(|leg| !same(&leg.target, lead));
            order.insert(0, first);
        }
        order
    }

    /// These legs at every member of the pool, where there is one, unless they name an upstream.
    pub(super) fn at_pool(&self, legs: Vec<Leg>) -> Vec<Leg> {
        let Some(pool) = &self.pool else { return legs };
        let mut leader = None;
        let mut pooled = Vec::new();
        for leg in legs {
            if leg.target.upstream().is_some() {
                pooled.push(leg);
                continue;
            }
            let members = pool.ranked(leg.target.model());
            leader = leader.or(members.first().copied());
            pooled.extend(members.into_iter().map(|member| Leg {
                target: member.at(&leg.target),
                is_pooled: true,
                ..leg.clone()
            }));
        }
        // A call is one turn, however many models its chain has.
        leader.inspect(|leader| leader.lead());
        pooled
    }
}

/// The one name that the catalogue gives a model; its own where the catalogue does not know it.
pub(super) fn id_of<'a>(model: &'a str, catalog: &'a Catalog) -> &'a str {
    catalog.lookup(model).map_or(model, |model| model.id.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(chain: &Chain, model: &str) -> Vec<String> {
        led(chain, model, None)
    }

    fn led(chain: &Chain, model: &str, lead: Option<&str>) -> Vec<String> {
        chain
            .order(model, lead, Catalog::builtin())
            .iter()
            .map(|leg| leg.target.model().to_string())
            .collect()
    }

    #[test]
    fn a_call_begins_with_the_model_it_asks_for() {
        let chain = Chain::new(["a", "b", "c"]);
        assert_eq!(order(&chain, "a"), ["a", "b", "c"]);
        assert_eq!(order(&chain, "b"), ["b", "c"]);
        assert_eq!(order(&chain, "x"), ["x", "a", "b", "c"]);
        assert_eq!(order(&chain.wrapping(), "b"), ["b", "c", "a"]);
    }

    #[test]
    fn a_preferred_model_leads_and_the_model_asked_for_follows() {
        let chain = Chain::new(["a", "b", "c"]);
        assert_eq!(led(&chain, "b", Some("a")), ["a", "b", "c"]);
        assert_eq!(led(&chain, "a", Some("c")), ["c", "a", "b"]);
        assert_eq!(led(&chain, "a", Some("a")), ["a", "b", "c"]);
        assert_eq!(led(&chain, "a", Some("x")), ["x", "a", "b", "c"]);
    }

    #[test]
    fn aliases_find_their_place_in_the_chain() {
        let chain = Chain::new(["gemini-3-pro-image", "gemini-3.1-flash-image"]);
        assert_eq!(order(&chain, "nano-banana-2"), ["gemini-3.1-flash-image"]);
    }

    #[test]
    fn only_the_model_that_the_call_names_is_named() {
        let chain = Chain::new(["a", "b", "c"]);
        let named = |lead| -> Vec<bool> {
            let order = chain.order("b", lead, Catalog::builtin());
            order.iter().map(|leg| leg.is_named).collect()
        };
        assert_eq!(named(None), [true, false]);
        assert_eq!(named(Some("a")), [false, true, false]);
    }
}
