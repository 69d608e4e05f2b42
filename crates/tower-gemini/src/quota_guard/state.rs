//! What all clones of a layer share: the counts of every key.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::admission::{Admission, Moment, SLOT_MS};
use super::alerts::{Alerts, QuotaAlert};
use super::gate::Gate;
use super::hooks::KeyHooks;
use super::learn::Learned;
use super::lease::LeasePool;
use super::limits::QuotaKey;
use super::settings::{Settings, StoreFailure};
use super::usage::GuardCounts;
use crate::calendar::unix_ms;
use crate::clock::millis;

/// The counts of one key.
pub(crate) struct KeyState {
    pub(crate) key: QuotaKey,
    pub(crate) gate: Gate,
    /// Held by the exchange with the store that is under way.
    pub(crate) exchanging: Arc<Mutex<()>>,
}

impl KeyState {
    fn new(key: QuotaKey, settings: &Settings) -> Self {
        let limits = settings.rules.limits_for(&key);
        let open_on_last_lease = settings.store_failure == StoreFailure::OpenOnLastLease;
        let lease = |_: &_| LeasePool::new(settings.lease, open_on_last_lease);
        let hooks = KeyHooks {
            pool: settings.store.as_ref().map(lease),
            alerts: Alerts::new(settings.thresholds.clone()),
            learned: Learned::new(limits),
        };
        let gate = Gate::new(Admission::new(limits, millis(settings.margin)), hooks);
        Self { key, gate, exchanging: Arc::default() }
    }

    /// Whether it is unused, and a new one would give the same results.
    fn is_at_rest(self: &Arc<Self>, now: Moment) -> bool {
        // The lock on all keys is held, so no other handle can be made meanwhile.
        Arc::strong_count(self) == 1
            && self.gate.waiting() == 0
            && self.gate.look(|admission, hooks| {
                admission.is_at_rest(now)
                    && !hooks.pool.as_ref().is_some_and(LeasePool::wants_flush)
            })
    }

    /// The model's name for logs.
    pub(crate) fn model(&self) -> std::borrow::Cow<'_, str> {
        tower_gemini_core::redact::redact(self.key.model.as_str())
    }
}

/// The most keys kept: a gateway passes on whatever model and key a caller names. When there is no
/// room for another, those at rest are dropped; if none is, all that come share one more.
const KEYS_KEPT: usize = 4_096;
/// How often the keys at rest are looked for at most, in milliseconds.
const SWEEP_EVERY_MS: u64 = 60_000;

pub(crate) struct QuotaState {
    pub(crate) settings: Settings,
    epoch: Instant,
    /// The wall clock minus the steady one, and the slot in which it was read.
    wall_offset: AtomicI64,
    wall_slot: AtomicU64,
    keys: RwLock<HashMap<QuotaKey, Arc<KeyState>>>,
    /// When keys at rest were last looked for, in steady milliseconds.
    swept_ms: AtomicU64,
    pub(crate) alerts: watch::Sender<Option<QuotaAlert>>,
    counts: std::sync::Mutex<GuardCounts>,
}

/// The steady clock starts here, so that nothing is ever before its beginning.
const EPOCH_MS: u64 = 1_000_000;

impl QuotaState {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            epoch: Instant::now(),
            wall_offset: AtomicI64::new(0),
            wall_slot: AtomicU64::new(0),
            keys: RwLock::default(),
            swept_ms: AtomicU64::new(0),
            alerts: watch::Sender::new(None),
            counts: std::sync::Mutex::default(),
        }
    }

    /// This moment. The wall clock is read once a slot: a day ends at most that much late, and
    /// never early.
    pub(crate) fn now(&self) -> Moment {
        let steady_ms = self.steady_ms(Instant::now());
        let slot = steady_ms / SLOT_MS;
        let steady = i64::try_from(steady_ms).unwrap_or(i64::MAX);
        if self.wall_slot.load(Ordering::Acquire) != slot {
            let offset = unix_ms(self.settings.clock.now()).saturating_sub(steady);
            self.wall_offset.store(offset, Ordering::Release);
            self.wall_slot.store(slot, Ordering::Release);
        }
        let wall_ms = steady.saturating_add(self.wall_offset.load(Ordering::Acquire));
        Moment { steady_ms, wall_ms }
    }

    pub(crate) fn steady_ms(&self, at: Instant) -> u64 {
        EPOCH_MS.saturating_add(millis(at.saturating_duration_since(self.epoch)))
    }

    pub(crate) fn instant_at(&self, steady_ms: u64) -> Instant {
        // A wait of centuries is no instant; a year is as good.
        let a_year_on = self.steady_ms(Instant::now()).saturating_add(31_536_000_000);
        let ms = steady_ms.saturating_sub(EPOCH_MS).min(a_year_on);
        self.epoch + Duration::from_millis(ms)
    }

    pub(crate) fn count(&self, count: impl FnOnce(&mut GuardCounts)) {
        count(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn counts(&self) -> GuardCounts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counts of this key, or `None` where nothing limits it and its day was never closed.
    pub(crate) fn key_state(&self, key: &QuotaKey) -> Option<Arc<KeyState>> {
        let known = self.keys.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
        let is_limited = || !self.settings.rules.limits_for(key).is_unlimited();
        known.or_else(|| is_limited().then(|| self.add_key(key)))
    }

    /// The counts of this key, whether anything limits it or not.
    pub(crate) fn add_key(&self, key: &QuotaKey) -> Arc<KeyState> {
        let now = self.now();
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let is_full =
            |keys: &HashMap<QuotaKey, _>| keys.len() >= KEYS_KEPT && !keys.contains_key(key);
        let swept_ms = self.swept_ms.load(Ordering::Relaxed);
        if is_full(&keys) && now.steady_ms >= swept_ms.saturating_add(SWEEP_EVERY_MS) {
            self.swept_ms.store(now.steady_ms, Ordering::Relaxed);
            keys.retain(|_, known| !known.is_at_rest(now));
        }
        let key = if is_full(&keys) { QuotaKey::new("*", "*") } else { key.clone() };
        let new = || Arc::new(KeyState::new(key.clone(), &self.settings));
        keys.entry(key.clone()).or_insert_with(new).clone()
    }

    /// Every key that was asked for so far, in order.
    pub(crate) fn all_keys(&self) -> Vec<Arc<KeyState>> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = keys.values().cloned().collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all
    }
}

impl fmt::Debug for QuotaState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuotaState").field("rules", &self.settings.rules).finish_non_exhaustive()
    }
}
