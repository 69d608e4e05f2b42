//! The circuit breakers that all clones of a layer's services share, around the states of
//! `circuit_states`.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::futures::Notified;
use tokio::time::Instant;
use tower_gemini_core::verdict::Verdict;

use super::circuit_states::{
    CircuitState, Cooldowns, Keys, Known, MAX_CIRCUITS, MAX_MODELS, States, is_shared,
};
use super::shared_circuits::Publisher;
use crate::clock::Clock;
use crate::store::{RecordStore, StoreError};
use crate::sync::{AtomicU32, AtomicUsize, Mutex, MutexGuard, Notify, Ordering, PoisonError};
use crate::trail::SkipReason;

/// The circuit breakers of all targets, shared by all clones of a layer's services and readable by
/// you.
///
/// ```
/// use tower_gemini::ModelFallbackLayer;
/// use tower_gemini::model_fallback::Chain;
///
/// let layer = ModelFallbackLayer::new(Chain::new(["gemini-3-pro-image", "gemini-3.1-flash-image"]));
/// let circuits = layer.circuits().clone();
/// assert!(circuits.snapshot().is_empty(), "everything is well");
/// ```
#[derive(Debug, Clone, Default)]
pub struct Circuits(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    known: Mutex<Learned>,
    changed: Notify,
    publisher: OnceLock<Publisher>,
    /// How many calls wait for a target.
    waiting: AtomicUsize,
    /// How many a recovery has woken.
    woken: AtomicU32,
}

#[derive(Debug, Default)]
struct Learned {
    states: States,
    /// What 404s taught: a model at an upstream, and the one that takes its place.
    successors: HashMap<String, String>,
    announced: Vec<String>,
}

/// One thing that is not well.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Circuit {
    /// A model, perhaps at a size; a model's quota; or an account; and the upstream. It contains no
    /// secret.
    pub name: String,
    /// How it is.
    pub state: CircuitState,
}

impl Circuits {
    /// Shares circuits that only time or people close through this store: a restart, or another
    /// process, does not try what was refused anew. Call it once, and then
    /// [`refresh`](Self::refresh) now and then. A second store is ignored.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use tower_gemini::ModelFallbackLayer;
    /// use tower_gemini::clock::SystemClock;
    /// use tower_gemini::model_fallback::Chain;
    /// use tower_gemini::store::MemoryStore;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_gemini::store::StoreError> {
    /// let layer = ModelFallbackLayer::new(Chain::new(["gemini-3-pro-image", "gemini-3.1-flash-image"]));
    /// layer.circuits().share(Arc::new(MemoryStore::new()), SystemClock);
    /// assert_eq!(layer.circuits().refresh().await?, 0, "nothing is closed");
    /// # Ok(()) }
    /// ```
    pub fn share(&self, store: Arc<dyn RecordStore>, clock: impl Clock + 'static) {
        let _ = self.publisher().set(Publisher::new(store, Arc::new(clock)));
    }

    /// Takes over what others closed since. Returns how many circuits opened. Without a store there
    /// is nothing to take over.
    ///
    /// # Errors
    ///
    /// Where the store fails.
    pub async fn refresh(&self) -> Result<usize, StoreError> {
        let Some(publisher) = self.publisher().get() else { return Ok(0) };
        let adopted = publisher.closed().await?;
        let adopted = adopted.into_iter();
        Ok(self.adopt(adopted))
    }

    fn known(&self) -> MutexGuard<'_, Learned> {
        // A panic in another holder leaves a complete map: every write is one insertion or removal.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every circuit that is open, being probed or counting failures, by name.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Circuit> {
        let circuit =
            |(name, known): (&String, &Known)| Circuit { name: name.clone(), state: known.state };
        let mut all: Vec<_> = self.known().states.0.iter().map(circuit).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Closes every circuit. For an operator who knows better. Returns how many were open.
    pub fn reset(&self) -> usize {
        let states = std::mem::take(&mut self.known().states.0);
        if let Some(publisher) = self.publisher().get() {
            let shared = states.iter().filter(|(_, known)| is_shared(&known.state));
            publisher.reopen(shared.map(|(name, _)| name.clone()).collect());
        }
        self.0.changed.notify_waiters();
        let is_open = |known: &&Known| !matches!(known.state, CircuitState::Failing { .. });
        states.values().filter(is_open).count()
    }

    fn publisher(&self) -> &OnceLock<Publisher> {
        &self.0.publisher
    }

    /// Takes over open circuits of others, where this process knows nothing of them.
    fn adopt(&self, others: impl Iterator<Item = (String, CircuitState)>) -> usize {
        let mut known = self.known();
        let mut adopted = 0;
        for (name, state) in others {
            let is_new = !known.states.get(&name).is_some_and(|state| is_shared(&state));
            if is_new && known.states.0.len() < MAX_CIRCUITS {
                known.states.0.insert(name, Known { state, early_at: None });
                adopted += 1;
            }
        }
        adopted
    }

    /// Completes when a circuit closes or may be probed again: for those who wait. Made before the
    /// circuits are checked, it misses no change.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.0.changed.notified()
    }

    /// Admits a call to a target. The guard holds its probes until the call ends.
    pub(super) fn admit(&self, keys: Keys, now: Instant, early: bool) -> Result<Guard, SkipReason> {
        let probed = self.known().states.admit(&keys, now, early)?;
        Ok(Guard { circuits: self.clone(), keys, probed })
    }

    pub(super) fn check(&self, keys: &Keys, now: Instant, early: bool) -> Result<(), SkipReason> {
        self.known().states.check(keys, now, early)
    }

    pub(super) fn is_open(&self, keys: &Keys) -> bool {
        self.known().states.is_open(keys)
    }

    /// A place among those who wait for a target, of so many at most.
    pub(super) fn wait(&self, most: usize) -> Option<Waiting<'_>> {
        let waiting = &self.0.waiting;
        let more = |now: usize| (now < most).then_some(now + 1);
        waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Waiting(waiting))
    }

    /// What part of its longest delay a call waits that a recovery has woken. Multiples of the
    /// golden ratio are far apart, however many there are, and the same in every run of a
    /// simulation.
    pub(super) fn next_share(&self) -> f64 {
        const GOLDEN: u32 = 0x9E37_79B9;
        let woken = self.0.woken.fetch_add(1, Ordering::Relaxed);
        f64::from(woken.wrapping_mul(GOLDEN)) / (f64::from(u32::MAX) + 1.0)
    }

    /// The model that an upstream's 404 named as another's successor.
    pub(super) fn successor(&self, model: &str, upstream: &str) -> Option<String> {
        self.known().successors.get(&format!("{model} on {upstream}")).cloned()
    }

    /// Remembers the successor that a 404 taught.
    pub(super) fn learn_successor(&self, model: &str, upstream: &str, successor: &str) {
        let mut known = self.known();
        if known.successors.len() < MAX_MODELS {
            known.successors.insert(format!("{model} on {upstream}"), successor.to_owned());
        }
    }

    /// `true` the first time that this model's successor is announced.
    pub(super) fn announce(&self, model: &str) -> bool {
        let mut known = self.known();
        let is_new = known.announced.len() < MAX_MODELS
            && !known.announced.iter().any(|announced| announced == model);
        if is_new {
            known.announced.push(model.to_owned());
        }
        is_new
    }
}

/// A call that waits for a target.
pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A call's admission to a target. Dropped before [`settle`](Self::settle), its probes are free for
/// the next call.
#[derive(Debug)]
pub(super) struct Guard {
    circuits: Circuits,
    keys: Keys,
    probed: Vec<String>,
}

impl Guard {
    /// Whether the call probes an open circuit.
    pub(super) fn is_probe(&self) -> bool {
        !self.probed.is_empty()
    }

    /// Records what a response says about the target. `midnight` is the time until the quotas of
    /// the day begin anew.
    pub(super) fn settle(
        self,
        now: Instant,
        verdict: &Verdict,
        midnight: Duration,
        cooldowns: &Cooldowns,
    ) {
        let mut known = self.circuits.known();
        let publisher = self.circuits.publisher().get();
        if verdict.outcome().is_success() {
            let is_known =
                |known: &Learned, key: &str| known.states.get(key).is_some_and(|at| is_shared(&at));
            let of_call =
                self.keys.0.iter().filter(|key| publisher.is_some() && is_known(&known, key));
            let mut closed: Vec<String> = of_call.cloned().collect();
            known.states.succeed(&self.keys, &self.probed, now);
            closed.retain(|key| !known.states.0.contains_key(key));
            if let Some(publisher) = publisher {
                publisher.reopen(closed);
            }
        } else if let Some(failure) = cooldowns.failure(verdict, midnight) {
            let key = self.keys.part(failure.part);
            let probed = self.probed.iter().any(|probed| probed == key);
            let before = known.states.get(key);
            known.states.fail(key, probed, now, &failure);
            let opened = known.states.get(key).filter(|state| Some(*state) != before);
            if let (Some(publisher), Some(state)) = (publisher, opened.filter(is_shared)) {
                publisher.close(key, state, now);
            }
        }
        // Dropped now: what it probed, and the response says nothing about, is released.
    }
}

#[cfg(test)]
impl Guard {
    pub(super) fn probed(&self) -> &[String] {
        &self.probed
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.probed.is_empty() {
            self.circuits.known().states.release(&self.probed);
            self.circuits.0.changed.notify_waiters();
        }
    }
}
