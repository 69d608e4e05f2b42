//! What each caller holds of something bounded, and who gives up some of it first: pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Tells the callers of stored responses apart: a digest of what identifies one, or 0 where an
/// earlier process knew.
pub(super) type Caller = u64;

/// Things with a weight, in order, by who holds them. The caller that holds most gives up its first
/// thing first, so that nobody pushes out what a smaller holder has. Each operation takes time
/// logarithmic in the number of things.
#[derive(Debug)]
pub(super) struct Shares<K> {
    by_caller: HashMap<Caller, Share<K>>,
    by_weight: BTreeSet<(usize, Caller)>,
}

#[derive(Debug)]
struct Share<K> {
    weight: usize,
    things: BTreeMap<K, usize>,
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self { by_caller: HashMap::new(), by_weight: BTreeSet::new() }
    }
}

impl<K: Ord + Copy> Shares<K> {
    pub(super) fn insert(&mut self, caller: Caller, thing: K, weight: usize) {
        let share = self
            .by_caller
            .entry(caller)
            .or_insert_with(|| Share { weight: 0, things: BTreeMap::new() });
        self.by_weight.remove(&(share.weight, caller));
        share.weight = share.weight - share.things.insert(thing, weight).unwrap_or(0) + weight;
        self.by_weight.insert((share.weight, caller));
    }

    pub(super) fn remove(&mut self, caller: Caller, thing: &K) {
        let Some(share) = self.by_caller.get_mut(&caller) else { return };
        let Some(weight) = share.things.remove(thing) else { return };
        self.by_weight.remove(&(share.weight, caller));
        share.weight -= weight;
        if share.things.is_empty() {
            self.by_caller.remove(&caller);
        } else {
            self.by_weight.insert((share.weight, caller));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_caller.is_empty()
    }

    /// What makes room for a thing of this caller: the first thing of whoever would then hold most.
    /// `None` where that is the new thing itself.
    pub(super) fn first_to_go(&self, newcomer: Caller, weight: usize) -> Option<K> {
        let &(largest, holder) = self.by_weight.last()?;
        let own = self.by_caller.get(&newcomer).map_or(0, |share| share.weight);
        let holder = if own.saturating_add(weight) > largest { newcomer } else { holder };
        self.by_caller.get(&holder)?.things.first_key_value().map(|(&thing, _)| thing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUND: usize = 100;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        // Seventy hang-ups of one caller pushed out another's only image.
        #[test]
        fn nobody_pushes_out_what_a_smaller_holder_has(arrivals in proptest::collection::vec((0..4u64, 1..40usize), 0..80)) {
            let (mut shares, mut held) = (Shares::default(), BTreeMap::new());
            for (n, (caller, weight)) in arrivals.into_iter().enumerate() {
                let of = |held: &BTreeMap<usize, (Caller, usize)>, who| {
                    held.values().filter(|(by, _)| *by == who).map(|(_, weight)| weight).sum::<usize>()
                };
                let mut fits = true;
                while held.values().map(|(_, weight)| weight).sum::<usize>() + weight > BOUND {
                    let Some(gone) = shares.first_to_go(caller, weight) else {
                        fits = false;
                        break;
                    };
                    let (victim, _) = held[&gone];
                    let most = (0..4).map(|who| of(&held, who) + usize::from(who == caller) * weight).max();
                    prop_assert_eq!(Some(of(&held, victim) + usize::from(victim == caller) * weight), most);
                    held.remove(&gone);
                    shares.remove(victim, &gone);
                }
                if fits {
                    held.insert(n, (caller, weight));
                    shares.insert(caller, n, weight);
                }
            }
            for (n, (caller, _)) in held {
                shares.remove(caller, &n);
            }
            prop_assert!(shares.is_empty() && shares.by_weight.is_empty());
        }
    }
}
