//! What the calls of one layer know together of a model that is overloaded: one of them probes, and
//! the others wait.

use std::collections::HashMap;
use std::time::Duration;

use http::{Response, StatusCode};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout_at};
use tower_gemini_core::call::{ImageSize, ModelId};
use tower_gemini_core::target::UpstreamId;
use tower_gemini_core::verdict::{Charge, Outcome, Verdict, WaitHint, WaitSource};

use crate::body::{JudgedBody, RequestTemplate};
use crate::refusal::{Refusal, retry_info, whole_seconds};
use crate::stage::UpstreamBody;
use crate::sync::{Mutex, MutexGuard, Notify, PoisonError};
use crate::trail::{Step, StopReason, WaitReason};

/// When a model counts as overloaded, and how often it is asked whether it still is.
///
/// After so many overloads in a row, of whichever calls, a model is in an outage at the size that
/// they asked for. Then one attempt is sent from time to time, and all others wait, each within its
/// deadline, until one is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutagePolicy {
    failures: u32,
    probe_every: Duration,
    most_waiting: usize,
}

impl OutagePolicy {
    /// The defaults listed in the [module](super).
    #[must_use]
    pub fn recommended() -> Self {
        Self { failures: 3, probe_every: Duration::from_secs(60), most_waiting: 1_000 }
    }

    /// How many overloads in a row are an outage.
    #[must_use]
    pub fn after_failures(mut self, failures: u32) -> Self {
        self.failures = failures.max(1);
        self
    }

    /// The time between two attempts in an outage, of all calls together.
    #[must_use]
    pub fn probe_every(mut self, time: Duration) -> Self {
        self.probe_every = time.min(LONGEST);
        self
    }

    /// How many calls may wait for the end of one outage. Further ones are refused: they would take
    /// the places of calls for other models.
    #[must_use]
    pub fn most_waiting(mut self, calls: usize) -> Self {
        self.most_waiting = calls;
        self
    }
}

impl Default for OutagePolicy {
    fn default() -> Self {
        Self::recommended()
    }
}

/// The longest time between two probes.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// Who has waited for the end of an outage is sent within so long after it, and not all at once.
pub(crate) const SPREAD: Duration = Duration::from_secs(3);

/// Overloads in a row, of one model at one size.
#[derive(Debug, Clone, Copy)]
struct Outage {
    failures: u32,
    /// When somebody may find out whether it is over.
    probe_at: Instant,
}

/// No catalogue has more models and sizes; callers may ask for anything.
const MAX_KNOWN: usize = 1024;

/// The outages, and who waits for their ends. Pure: the time is handed in.
#[derive(Debug, Default)]
struct Known {
    outages: HashMap<String, Outage>,
    /// How many calls wait for the end of each.
    waiting: HashMap<String, usize>,
}

/// Whether an attempt may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Admission {
    /// There is no outage.
    Free,
    /// It is the one that finds out.
    Probe,
    /// Not before then, or before another has found out.
    Wait(Instant),
}

impl Known {
    /// `not_before` is when this call would probe. A probe that takes longer than it is to the next
    /// keeps nobody from it: it may be drawing a large image, or hang.
    fn admit(
        &mut self,
        key: &str,
        (now, not_before): (Instant, Instant),
        policy: OutagePolicy,
    ) -> Admission {
        match self.outages.get_mut(key) {
            Some(outage) if outage.failures >= policy.failures => {
                let due = outage.probe_at.max(not_before);
                if due > now {
                    return Admission::Wait(due);
                }
                outage.probe_at = now + policy.probe_every;
                Admission::Probe
            }
            _ => Admission::Free,
        }
    }

    /// Returns whether the next probe is due at another time.
    fn fail(&mut self, key: String, was_probe: bool, now: Instant, policy: OutagePolicy) -> bool {
        if self.outages.len() >= MAX_KNOWN && !self.outages.contains_key(&key) {
            self.outages.clear();
        }
        let fresh = Outage { failures: 0, probe_at: now };
        let outage = self.outages.entry(key).or_insert(fresh);
        // What was sent before the outage was known says no more than what made it known.
        let is_news = was_probe || outage.failures < policy.failures;
        if is_news {
            outage.probe_at = now + policy.probe_every;
        }
        outage.failures = outage.failures.saturating_add(1);
        is_news
    }

    fn probe_at(&self, key: &str, now: Instant) -> Instant {
        self.outages.get(key).map_or(now, |outage| outage.probe_at)
    }

    /// A probe that has found nothing out: the next call may probe at once.
    fn release(&mut self, key: &str, now: Instant) {
        if let Some(outage) = self.outages.get_mut(key) {
            outage.probe_at = now;
        }
    }
}

/// Why an attempt is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The call has no time to wait; the next probe is due then.
    Late(Duration),
    /// Too many wait already.
    Full(Duration),
}

/// Shared by all services of one layer.
#[derive(Debug, Default)]
pub(super) struct Outages {
    known: Mutex<Known>,
    changed: Notify,
}

impl Outages {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Every change is complete before the lock is given back.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stands between one call and its attempts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gate<'a> {
    pub(super) outages: &'a Outages,
    pub(super) policy: OutagePolicy,
    pub(super) request: &'a RequestTemplate,
    /// Whether the call waits. One that has somewhere else to go only tells what it meets.
    pub(super) waits: bool,
}

impl<'a> Gate<'a> {
    /// Whether an attempt may be sent without a look.
    pub(super) fn is_open(self) -> bool {
        !self.waits || self.outages.known().outages.is_empty()
    }

    /// The leave of a gate that [is open](Self::is_open).
    pub(super) fn unchecked(self) -> Pass<'a> {
        Pass { gate: self, probed: None }
    }

    /// Waits until an attempt may be sent: at once, where nothing is known against it; as a probe,
    /// not before `not_before`; or when another's probe is answered, after a moment of up to
    /// [`SPREAD`] times `random`. `Err` where that is not before `latest`.
    ///
    /// Cancel safety: who is dropped waits no longer, and leaves its probe to the next.
    pub(super) async fn pass(
        self,
        not_before: Instant,
        latest: Instant,
        random: f64,
    ) -> Result<Pass<'a>, Refused> {
        let key = self.key();
        let mut place: Option<Place<'a>> = None;
        let mut is_its_turn = false;
        let passed = loop {
            // Made before the outages are looked at, it misses no change.
            let changed = self.outages.changed.notified();
            let now = Instant::now();
            match self.look(&key, (now, not_before), latest, &mut place) {
                Ok(Admission::Wait(due)) => {
                    is_its_turn = false;
                    let _ = timeout_at(latest.min(due), changed).await;
                }
                Ok(Admission::Probe) => break Ok(Pass { gate: self, probed: Some(key) }),
                // One answer may be an exception. Calls that it lets go look again when it is their
                // turn: otherwise a thousand are sent into an outage that goes on, and their own
                // exceptions let go the next thousand.
                Ok(Admission::Free) if place.is_some() && !is_its_turn => {
                    is_its_turn = true;
                    let left = latest.saturating_duration_since(now);
                    sleep(SPREAD.mul_f64(random).min(left)).await;
                }
                Ok(Admission::Free) => break Ok(self.unchecked()),
                Err(refused) => break Err(refused),
            }
        };
        if let Some(place) = &place {
            let (delay, why) = (place.since.elapsed(), WaitReason::Outage);
            self.request.state().record(Step::Waited { delay, why });
        }
        if let Err(refused) = &passed {
            let why = match refused {
                Refused::Late(_) => StopReason::DeadlineTooNear,
                Refused::Full(_) => StopReason::TooManyWait,
            };
            self.request.state().record(Step::Stopped { why });
        }
        passed
    }

    /// Looks whether an attempt may be sent, and takes a place among those who wait.
    fn look(
        self,
        key: &str,
        (now, not_before): (Instant, Instant),
        latest: Instant,
        place: &mut Option<Place<'a>>,
    ) -> Result<Admission, Refused> {
        let mut known = self.outages.known();
        let admission = known.admit(key, (now, not_before), self.policy);
        // Only who comes or gives up asks when the next probe is due: those who wait look often.
        if matches!(admission, Admission::Wait(_)) && (latest <= now || place.is_none()) {
            let next = known.probe_at(key, now).saturating_duration_since(now);
            if latest <= now {
                return Err(Refused::Late(next));
            }
            if place.is_none() {
                let waiting = known.waiting.entry(key.to_owned()).or_default();
                if *waiting >= self.policy.most_waiting {
                    return Err(Refused::Full(next));
                }
                *waiting += 1;
                *place = Some(Place { outages: self.outages, key: key.to_owned(), since: now });
            }
        }
        Ok(admission)
    }

    /// Calls in the flex tier are shed while others are served.
    fn key(&self) -> String {
        let call = self.request.call();
        let upstream = UpstreamId::from_request(&self.request.parts().uri, call);
        format!("{} {:?} on {upstream}", self.what(), call.tier)
    }

    fn what(&self) -> String {
        let call = self.request.call();
        let model = call.model.as_ref().map_or("the model", ModelId::as_str);
        format!("{model} at {}", call.size.unwrap_or(ImageSize::K1))
    }

    /// A 503 in Google's form for a call that is not sent, or not again, and the time until the next
    /// probe.
    pub(super) fn refuse<B: UpstreamBody>(
        self,
        refused: Refused,
        was_sent: bool,
    ) -> Response<JudgedBody<B>> {
        let (wait, why) = match refused {
            Refused::Late(wait) => (wait, "this call has no time to wait for its recovery"),
            Refused::Full(wait) => (wait, "too many calls wait for its recovery"),
        };
        let (wait, again) = (whole_seconds(wait.max(SECOND)), if was_sent { " again" } else { "" });
        let message = format!(
            "Not sent{again}: {} is overloaded, and {why}. Please retry in {}s.",
            self.what(),
            wait.as_secs()
        );
        let refusal = Refusal {
            status: StatusCode::SERVICE_UNAVAILABLE,
            word: "UNAVAILABLE",
            message,
            reason: "MODEL_IN_OUTAGE",
            metadata: json!({ "model": self.request.call().model.as_ref().map(ModelId::as_str) }),
            details: vec![retry_info(wait)],
        };
        let hint = WaitHint::new(wait, WaitSource::RetryAfter);
        let verdict = refusal.verdict(Outcome::Overloaded, Some(hint), true);
        refusal.into_response(verdict, self.request.call().clone(), self.request.state())
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// A call that waits.
struct Place<'a> {
    outages: &'a Outages,
    key: String,
    since: Instant,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut known = self.outages.known();
        if let Some(waiting) = known.waiting.get_mut(&self.key) {
            *waiting -= 1;
            if *waiting == 0 {
                known.waiting.remove(&self.key);
            }
        }
    }
}

/// The leave to send one attempt.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    gate: Gate<'a>,
    /// What it probes.
    probed: Option<String>,
}

impl Pass<'_> {
    /// Records what came of the attempt: an overload, or an answer. Anything else says nothing.
    /// Who waits is woken only where this changes something: in an outage that a thousand wait for,
    /// hundreds of overloads do not.
    pub(super) fn settle(mut self, verdict: &Verdict) {
        let outages = self.gate.outages;
        let mut known = outages.known();
        let has_changed = if verdict.outcome() == Outcome::Overloaded {
            let was_probe = self.probed.is_some();
            let key = self.probed.take().unwrap_or_else(|| self.gate.key());
            known.fail(key, was_probe, Instant::now(), self.gate.policy)
        } else if verdict.outcome().is_success() || verdict.charge() == Charge::Charged {
            if known.outages.is_empty() {
                return;
            }
            let key = self.probed.take().unwrap_or_else(|| self.gate.key());
            known.outages.remove(&key).is_some()
        } else {
            return;
        };
        drop(known);
        if has_changed {
            outages.changed.notify_waiters();
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.probed.take() {
            self.gate.outages.known().release(&key, Instant::now());
            self.gate.outages.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "m at 1K on u";

    fn second(n: u64) -> Instant {
        // Any time does.
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *START.get_or_init(Instant::now) + Duration::from_secs(n)
    }

    fn fail(known: &mut Known, was_probe: bool, at: u64) {
        known.fail(KEY.to_owned(), was_probe, second(at), OutagePolicy::recommended());
    }

    fn admit(known: &mut Known, at: u64, not_before: u64) -> Admission {
        known.admit(KEY, (second(at), second(not_before)), OutagePolicy::recommended())
    }

    #[test]
    fn three_overloads_in_a_row_are_an_outage_that_is_probed_once_a_minute() {
        let mut known = Known::default();
        for at in 0..3 {
            assert_eq!(admit(&mut known, at, 0), Admission::Free);
            fail(&mut known, false, at);
        }
        assert_eq!(admit(&mut known, 3, 0), Admission::Wait(second(62)));
        // What was under way says no more.
        fail(&mut known, false, 40);
        assert_eq!(admit(&mut known, 62, 90), Admission::Wait(second(90)), "not yet its turn");
        assert_eq!(admit(&mut known, 62, 0), Admission::Probe);
        assert_eq!(admit(&mut known, 63, 0), Admission::Wait(second(122)));
        fail(&mut known, true, 70);
        assert_eq!(admit(&mut known, 129, 0), Admission::Wait(second(130)));
        assert_eq!(admit(&mut known, 130, 0), Admission::Probe);
        known.release(KEY, second(131));
        assert_eq!(admit(&mut known, 131, 0), Admission::Probe);
    }

    #[test]
    fn no_more_models_are_known_than_there_is_room_for() {
        let mut known = Known::default();
        for n in 0..2 * MAX_KNOWN {
            known.fail(n.to_string(), false, second(0), OutagePolicy::recommended());
        }
        assert!(known.outages.len() <= MAX_KNOWN);
    }
}
