//! A client that retries as somebody else's does: no rule about charges, straight to the simulator.
//!
//! [`Spec`] is what differs from one to the next: a table of what follows on which failure, the
//! waits, and the few mechanisms that some of them have.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep, timeout};

use crate::client::{Ask, Client, FLASH, Failure, PRO, Reply};

/// What follows on a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Wait, and send the same again.
    Retry,
    /// Go on with the next target.
    Next,
    /// Report it.
    Stop,
}

/// One stop on the way.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The model that was asked for, or the other one: Pro for Nano Banana 2, and the reverse.
    pub other_model: bool,
    /// The size, where it is not the one asked for; skipped where it is larger.
    pub size: Option<&'static str>,
    /// Attempts in all.
    pub attempts: u32,
}

impl Target {
    /// What was asked for.
    pub fn asked(attempts: u32) -> Self {
        Self { other_model: false, size: None, attempts }
    }

    /// The other model.
    pub fn other(attempts: u32) -> Self {
        Self { other_model: true, ..Self::asked(attempts) }
    }

    /// A smaller size.
    pub fn size(size: &'static str, attempts: u32) -> Self {
        Self { size: Some(size), ..Self::asked(attempts) }
    }
}

/// The model that stands in for another.
pub fn other(model: &str) -> &'static str {
    if model == PRO { FLASH } else { PRO }
}

/// A token bucket over all calls, as the SDKs of AWS have.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    /// Tokens at first.
    pub capacity: u32,
    /// Tokens of a resend.
    pub retry: u32,
    /// Tokens that a success puts back.
    pub refund: u32,
}

/// A circuit breaker of each model.
#[derive(Debug, Clone, Copy)]
pub struct Breaker {
    /// Failures in a row that open it.
    pub failures: u32,
    /// How long it stays open.
    pub open: Duration,
}

/// How somebody's client behaves.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Where it sends, in order.
    pub targets: Vec<Target>,
    /// What it does after a failure.
    pub then: fn(Failure) -> Then,
    /// The wait after this failure, the n-th of the target counted from 0, for a random number in
    /// `0.0..1.0`.
    pub wait: fn(Failure, u32, f64) -> Duration,
    /// The longest wait of a server's `RetryInfo` that it honours; zero ignores it.
    pub hint_up_to: Duration,
    /// Its timeout of one attempt.
    pub timeout: Option<Duration>,
    /// What a timeout multiplies the next one by.
    pub timeout_growth: f64,
    /// Its circuit breaker.
    pub breaker: Option<Breaker>,
    /// Its retry quota.
    pub bucket: Option<Bucket>,
}

impl Spec {
    /// Asks for what was asked for, up to `attempts` times.
    pub fn new(
        attempts: u32,
        then: fn(Failure) -> Then,
        wait: fn(Failure, u32, f64) -> Duration,
    ) -> Self {
        Self {
            targets: vec![Target::asked(attempts)],
            then,
            wait,
            hint_up_to: Duration::ZERO,
            timeout: None,
            timeout_growth: 1.0,
            breaker: None,
            bucket: None,
        }
    }

    /// The waits after failures in a row of one kind, for one random number.
    pub fn waits(&self, failure: Failure, random: f64) -> Vec<Duration> {
        let attempts = self.targets.first().map_or(1, |target| target.attempts);
        let resends = if (self.then)(failure) == Then::Retry { attempts - 1 } else { 0 };
        (0..resends).map(|n| (self.wait)(failure, n, random)).collect()
    }
}

/// A client by a [`Spec`], over the wire or over another client.
#[derive(Clone)]
pub struct Foreign {
    spec: Arc<Spec>,
    inner: Arc<dyn Client>,
    shared: Arc<Mutex<Shared>>,
}

/// What all calls of a client share.
struct Shared {
    rng: Rng,
    tokens: u32,
    breakers: HashMap<&'static str, (u32, Option<Instant>)>,
}

impl Foreign {
    /// A client that behaves as `spec` says, over `inner`.
    pub fn new(spec: Spec, inner: Arc<dyn Client>, seed: u64) -> Self {
        let tokens = spec.bucket.map_or(0, |bucket| bucket.capacity);
        let shared = Shared { rng: Rng::with_seed(seed), tokens, breakers: HashMap::new() };
        Self { spec: Arc::new(spec), inner, shared: Arc::new(Mutex::new(shared)) }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Shared, &Spec) -> T) -> T {
        change(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner), &self.spec)
    }

    fn is_open(&self, model: &'static str) -> bool {
        self.with(|shared, _| {
            let until = shared.breakers.get(model).and_then(|(_, until)| *until);
            until.is_some_and(|until| Instant::now() < until)
        })
    }

    /// Counts an answer for the breaker and the bucket.
    fn note(&self, model: &'static str, good: bool) {
        self.with(|shared, spec| {
            if let (true, Some(bucket)) = (good, spec.bucket) {
                shared.tokens = (shared.tokens + bucket.refund).min(bucket.capacity);
            }
            let Some(breaker) = spec.breaker else { return };
            let (failures, until) = shared.breakers.entry(model).or_default();
            *failures = if good { 0 } else { *failures + 1 };
            if *failures >= breaker.failures {
                (*failures, *until) = (0, Some(Instant::now() + breaker.open));
            }
        });
    }

    /// Whether the retry quota allows a resend, which it then pays for.
    fn may_resend(&self) -> bool {
        self.with(|shared, spec| {
            let Some(bucket) = spec.bucket else { return true };
            let left = shared.tokens.checked_sub(bucket.retry);
            shared.tokens = left.unwrap_or(shared.tokens);
            left.is_some()
        })
    }

    async fn run(self, ask: Ask) -> Reply {
        let spec = self.spec.clone();
        let mut last = Reply::failed(Failure::Overloaded);
        let mut limit = spec.timeout;
        for target in &spec.targets {
            let model = if target.other_model { other(ask.model) } else { ask.model };
            let asked = Ask { model, size: target.size.unwrap_or(ask.size), ..ask.clone() };
            if asked.size > ask.size {
                continue;
            }
            for n in 0..target.attempts {
                if self.is_open(model) {
                    break;
                }
                let attempt = self.inner.call(asked.clone());
                last = match limit {
                    None => attempt.await,
                    Some(limit) => {
                        let late = |_| Reply::failed(Failure::Timeout);
                        timeout(limit, attempt).await.unwrap_or_else(late)
                    }
                };
                self.note(model, last.result.is_ok());
                let Err(failure) = last.result else { return last };
                if failure == Failure::Timeout {
                    limit = limit.map(|limit| limit.mul_f64(spec.timeout_growth));
                }
                match (spec.then)(failure) {
                    Then::Stop => return last,
                    Then::Next => break,
                    Then::Retry if n + 1 == target.attempts => break,
                    Then::Retry if !self.may_resend() => return last,
                    Then::Retry => {}
                }
                let random = self.with(|shared, _| shared.rng.f64());
                let own = (spec.wait)(failure, n, random);
                sleep(match last.hint.filter(|_| !spec.hint_up_to.is_zero()) {
                    None => own,
                    Some(hint) if hint > spec.hint_up_to => return last,
                    Some(hint) => hint.mul_f64(1.0 + 0.2 * random),
                })
                .await;
            }
        }
        last
    }
}

impl fmt::Debug for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Foreign").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl Client for Foreign {
    fn call(&self, ask: Ask) -> BoxFuture<'static, Reply> {
        Box::pin(self.clone().run(ask))
    }
}
