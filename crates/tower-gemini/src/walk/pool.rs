//! Equal upstreams (several keys, projects or addresses of one service), and which of them leads.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tower_gemini_core::call::ModelId;
use tower_gemini_core::target::{Target, Upstream};

/// What is left of a member's quota for a model, from 0 (nothing) to 1 (all, or no limit).
type Headroom = dyn Fn(usize, &ModelId) -> f64 + Send + Sync;

/// Upstreams that stand for the one that calls are addressed to, each with an account of its own.
///
/// A call goes to the member with most quota left; of equals, to the one that had least calls for
/// its weight. It goes on to the next where a quota is used up, an account is refused or an address
/// cannot be reached: after an overload only to another address, since one service has one capacity
/// for all of its accounts. Clones share what they count.
///
/// ```
/// use http::Uri;
/// use tower_gemini::ModelFallbackLayer;
/// use tower_gemini::model_fallback::{Chain, Pool};
/// use tower_gemini::target::Upstream;
///
/// let base = Uri::from_static("https://generativelanguage.googleapis.com");
/// let second = Upstream::gemini_api(base).api_key("key-of-another-project")?.account("second");
/// // Calls are addressed to the first, with its key. Nothing is known of quotas here.
/// let pool = Pool::new(2).member(second, 1).headroom(|_member, _model| 1.0);
/// let layer = ModelFallbackLayer::new(Chain::new(["gemini-3-pro-image"])).pool(pool);
/// # let _ = layer;
/// # Ok::<(), http::header::InvalidHeaderValue>(())
/// ```
#[derive(Clone)]
pub struct Pool {
    /// The first is the one that calls are addressed to.
    members: Vec<Member>,
    headroom: Option<Arc<Headroom>>,
}

/// One of the upstreams.
#[derive(Clone)]
pub(super) struct Member {
    upstream: Option<Upstream>,
    weight: u32,
    led: Arc<AtomicU64>,
}

impl Pool {
    /// Only the upstream that calls are addressed to, which gets this share beside the others'
    /// (at least 1).
    #[must_use]
    pub fn new(weight: u32) -> Self {
        Self { members: vec![Member::new(None, weight)], headroom: None }
    }

    /// Adds an upstream, which gets this share of the calls (at least 1).
    #[must_use]
    pub fn member(mut self, upstream: Upstream, weight: u32) -> Self {
        self.members.push(Member::new(Some(upstream), weight));
        self
    }

    /// Tells what is left of a member's quota for a model: from 0 to 1, by the member's place; the
    /// upstream that calls are addressed to has place 0. Called once a member and call.
    #[must_use]
    pub fn headroom(
        mut self,
        headroom: impl Fn(usize, &ModelId) -> f64 + Send + Sync + 'static,
    ) -> Self {
        self.headroom = Some(Arc::new(headroom));
        self
    }

    /// Its members for a model, the best first.
    pub(super) fn ranked<'a>(&'a self, model: &ModelId) -> Vec<&'a Member> {
        let left = |at| self.headroom.as_ref().map_or(1.0, |of| of(at, model));
        // Read once: other calls take turns while these are compared.
        let rank = |(at, member): (usize, &'a Member)| (left(at), member.turn(), member);
        let mut members: Vec<_> = self.members.iter().enumerate().map(rank).collect();
        members.sort_by(|(a, one, _), (b, other, _)| b.total_cmp(a).then_with(|| one.cmp(other)));
        members.into_iter().map(|(.., member)| member).collect()
    }
}

impl Member {
    fn new(upstream: Option<Upstream>, weight: u32) -> Self {
        Self { upstream, weight: weight.max(1), led: Arc::default() }
    }

    /// The target at this upstream.
    pub(super) fn at(&self, target: &Target) -> Target {
        match &self.upstream {
            Some(upstream) => target.clone().on(upstream.clone()),
            None => target.clone(),
        }
    }

    /// Counts a call that it leads.
    pub(super) fn lead(&self) {
        self.led.fetch_add(1, Relaxed);
    }

    /// When its turn is.
    fn turn(&self) -> Turn {
        Turn { next: self.led.load(Relaxed).saturating_add(1), weight: self.weight }
    }
}

/// The next call that a member leads, for its weight: whoever led least comes first.
#[derive(Debug, Clone, Copy)]
struct Turn {
    next: u64,
    weight: u32,
}

impl Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        let share = |one: &Self, of: &Self| u128::from(one.next) * u128::from(of.weight);
        share(self, other).cmp(&share(other, self))
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = self.members.iter().map(|member| (&member.upstream, member.weight));
        f.debug_list().entries(members).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Chain;
    use super::*;
    use http::Uri;
    use proptest::prelude::*;
    use tower_gemini_core::catalog::Catalog;

    fn pool(weights: [u32; 3]) -> Pool {
        let at = |name: &'static str| {
            Upstream::gemini_api(Uri::from_static("https://g")).name(name).account(name)
        };
        Pool::new(weights[0]).member(at("b"), weights[1]).member(at("c"), weights[2])
    }

    fn order(pool: &Pool) -> Vec<String> {
        let target = Target::new("m");
        let members = pool.ranked(target.model());
        members[0].lead();
        members.iter().map(|member| member.at(&target).account().to_owned()).collect()
    }

    proptest! {
        #[test]
        fn members_with_the_same_quota_lead_by_their_weights(
            weights in prop::array::uniform3(1u32..6),
        ) {
            let pool = pool(weights);
            let calls = weights.iter().sum::<u32>() * 4;
            let mut led = [0u32; 3];
            for _ in 0..calls {
                let first = order(&pool).remove(0);
                led[["", "b", "c"].iter().position(|name| *name == first).unwrap()] += 1;
            }
            prop_assert_eq!(led, weights.map(|weight| weight * 4));
        }
    }

    #[test]
    fn the_member_with_most_quota_left_leads_and_one_without_any_comes_last() {
        let left = |at: usize, _: &ModelId| [0.2, 0.0, 0.9][at];
        assert_eq!(order(&pool([1, 9, 1]).headroom(left)), ["c", "", "b"]);
    }

    // Turns that others took while members were sorted made an order that is none: sorting panicked.
    #[test]
    fn calls_side_by_side_rank_the_members_of_a_large_pool() {
        let base = Uri::from_static("https://g");
        let pool = (1..64).fold(Pool::new(1), |pool, weight| {
            pool.member(Upstream::gemini_api(base.clone()), weight)
        });
        let model = ModelId::new("m");
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    for _ in 0..20_000 {
                        pool.ranked(&model)[0].lead();
                    }
                });
            }
        });
        let led: u64 = pool.members.iter().map(|member| member.led.load(Relaxed)).sum();
        assert_eq!(led, 80_000);
    }

    // Each of a chain's models counted as a turn: with two models one of two members led every
    // call.
    #[test]
    fn a_call_is_one_turn_however_many_models_its_chain_has() {
        let chain = Chain::new(["x", "y"]).pool(pool([1, 1, 1]));
        let mut first = Vec::new();
        for _ in 0..6 {
            let legs = chain.at_pool(chain.order("x", None, Catalog::builtin()));
            first.push(legs[0].target.account().to_owned());
        }
        assert_eq!(first, ["", "b", "c", "", "b", "c"]);
    }
}
