//! What was decided on the way, in order, and why.
//!
//! A [`Trail`] is shared by every layer that works on a call. The caller may hold a clone of it
//! (see [`CallOptions::trail`](crate::CallOptions::trail)) and read it even when the call
//! failed or was dropped: an attempt that was cut off stays in it as *maybe charged*.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Serialize, Serializer};

use tower_gemini_core::call::{ImageSize, ModelId};
use tower_gemini_core::cost::Cost;
use tower_gemini_core::target::{Degradation, Unfit, UpstreamId};
use tower_gemini_core::verdict::{Charge, Outcome, QuotaCharge, Verdict};

/// What was decided for one call, in order, by all layers. O(1) to clone; clones share it.
#[derive(Clone, Default)]
pub struct Trail(Arc<Shared>);

#[derive(Default)]
struct Shared {
    steps: Mutex<Steps>,
}

/// Steps in order. The usual call has one, its only attempt, which needs no allocation beside the
/// trail's own.
#[derive(Default)]
struct Steps {
    first: Option<Step>,
    more: Vec<Step>,
    observers: Vec<Arc<dyn TrailObserver>>,
}

/// Reads along as a trail grows: for logs and metrics, in one place for all layers.
///
/// Called by whichever task takes the step, outside the trail's lock. It must not block.
pub trait TrailObserver: Send + Sync {
    /// A request goes out. What it ends in comes with [`on_step`](Self::on_step).
    fn on_send(&self, _attempt: &Attempt) {}

    /// A step is known in full: a decision when it is taken, an attempt once, when it has ended
    /// (its body too).
    fn on_step(&self, step: &Step);
}

impl Steps {
    /// Gives the step's place.
    fn push(&mut self, step: Step) -> usize {
        if self.first.is_none() {
            self.first = Some(step);
            return 0;
        }
        self.more.push(step);
        self.more.len()
    }

    fn get_mut(&mut self, at: usize) -> Option<&mut Step> {
        match at.checked_sub(1) {
            None => self.first.as_mut(),
            Some(at) => self.more.get_mut(at),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Step> {
        self.first.iter().chain(&self.more)
    }
}

/// One entry of a [`Trail`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Step {
    /// A request went out.
    Attempt(Attempt),
    /// A layer asked for another model to lead than the one the call names.
    Preferred {
        /// The model that the call names.
        #[serde(serialize_with = "in_words")]
        asked: ModelId,
        /// The model that should be tried first.
        #[serde(serialize_with = "in_words")]
        model: ModelId,
        /// Why.
        why: PreferReason,
    },
    /// Thought signatures that the request lacked were written into it.
    Signed {
        /// Such as had been seen.
        restored: u32,
        /// Documented placeholders, where none had.
        placeholders: u32,
    },
    /// A layer waited before the next attempt.
    Waited {
        /// How long, in the runtime's time.
        #[serde(rename = "delay_ms", serialize_with = "as_millis")]
        delay: Duration,
        /// Why that long.
        why: WaitReason,
    },
    /// A fallback left a target for the next one.
    FellBack {
        /// Where the last attempt went.
        from: String,
        /// Where the next one goes.
        to: String,
        /// What the last attempt ended in.
        #[serde(serialize_with = "as_display")]
        why: Outcome,
    },
    /// A fallback passed a target over.
    Skipped {
        /// Which.
        target: String,
        /// Why.
        why: SkipReason,
    },
    /// The next attempt asks for less, or for something else, than the caller did; or again for
    /// what the caller did. The last of these steps holds.
    Degraded {
        /// Everything in which it differs from the caller's request; empty where it does not.
        given_up: Vec<Degradation>,
    },
    /// A model no longer answers, and its successor takes its place.
    Succeeded {
        /// The model asked for.
        model: String,
        /// The one that takes its place.
        successor: String,
    },
    /// A layer decided that nothing more is sent, and the last answer stands.
    Stopped {
        /// Why.
        why: StopReason,
    },
    /// The caller went away after a request was sent: what may have been paid for is finished
    /// without it.
    CallerLeft,
    /// An answer whose caller went away is kept for that caller's next identical request.
    Kept {
        /// Its size.
        bytes: u64,
    },
    /// An answer whose caller went away was not kept.
    NotKept {
        /// Why.
        why: NotKeptReason,
    },
    /// Nothing was sent: this is the answer to the same caller's earlier, identical request.
    Redeemed {
        /// How long ago it was complete; zero where it was waited for.
        #[serde(rename = "age_ms", serialize_with = "as_millis")]
        age: Duration,
        /// What it cost then. This call costs nothing.
        cost: Cost,
        /// What it means: a refusal is given again like an image.
        #[serde(serialize_with = "in_words")]
        outcome: Outcome,
    },
}

/// Why an answer whose caller went away was not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NotKeptReason {
    /// Nothing was paid for it: asking again costs nothing.
    Free,
    /// It did not come whole.
    Broken,
    /// It is larger than all that may be kept.
    TooLarge,
    /// As many attempts as allowed are being finished without their callers already.
    TooMany,
    /// It took longer than an attempt without a caller may take.
    TooLate,
}

impl NotKeptReason {
    /// One phrase for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Free => "nothing was paid for it",
            Self::Broken => "it did not come whole",
            Self::TooLarge => "it is too large to keep",
            Self::TooMany => "too many calls are being finished without their callers",
            Self::TooLate => "it took too long",
        }
    }
}

/// Why another model was asked to lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PreferReason {
    /// The schedule has a peak at this hour.
    PeakHours,
    /// By what was learned of this hour, the other model fails less.
    LearnedHours,
    /// To learn how the other model does at this hour.
    Exploring,
}

impl PreferReason {
    /// One phrase for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PeakHours => "peak hours",
            Self::LearnedHours => "learned hours",
            Self::Exploring => "to learn this hour",
        }
    }
}

/// Why a wait was as long as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WaitReason {
    /// The call was deferred to a quiet hour.
    QuietHours,
    /// The layer's own backoff.
    Backoff,
    /// The server asked for it.
    ServerHint,
    /// The circuits of all targets were open: until one of them closed, or could be probed.
    Cooldown,
    /// Our own admission keeps within a quota; the delay is what was expected when the wait began.
    OwnQuota,
    /// Running attempts had reserved what is left below a spending cap; the delay is what the wait
    /// took.
    SpendingCap,
}

/// Why nothing more was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopReason {
    /// It might have passed a cap of our own on what is spent: nothing was sent.
    SpendingCap,
    /// Another attempt would not do better.
    NotRetryable,
    /// It was paid for, or is on its way.
    Charged,
    /// It may have been paid for, and the caller's allowance is spent (or was never given).
    MaybeCharged,
    /// The policy's attempts are used up.
    AttemptsUsedUp,
    /// The time the policy allows is used up.
    ElapsedUsedUp,
    /// The wait, or the attempt after it, would not end before the deadline.
    DeadlineTooNear,
    /// The hinted wait is longer than the policy waits.
    WaitTooLong,
    /// The retry budget that all calls share is empty.
    BudgetSpent,
    /// The request's body was too large to keep for a second send.
    NotReplayable,
    /// Our own admission found the quota used up: nothing was sent.
    QuotaUsedUp,
    /// The request lacks a thought signature that the API checks: nothing was sent.
    MissingSignature,
    /// No target is left to fall back to.
    NoTargetLeft,
    /// An earlier, identical request was or may have been paid for after its caller had gone, and
    /// its answer was lost: nothing was sent.
    LostBefore,
}

impl StopReason {
    /// One sentence for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SpendingCap => "it might have passed a spending cap",
            Self::NotRetryable => "another attempt would end the same",
            Self::Charged => "it was paid for",
            Self::MaybeCharged => "it may have been paid for",
            Self::AttemptsUsedUp => "attempts used up",
            Self::ElapsedUsedUp => "retry time used up",
            Self::DeadlineTooNear => "deadline too near",
            Self::WaitTooLong => "the wait asked for is too long",
            Self::BudgetSpent => "retry budget empty",
            Self::NotReplayable => "body too large to replay",
            Self::QuotaUsedUp => "our own count says the quota is used up",
            Self::MissingSignature => "a thought signature is missing",
            Self::NoTargetLeft => "no target is left",
            Self::LostBefore => {
                "an earlier, identical request may have been paid for, and its answer was lost"
            }
        }
    }
}

/// Why a target was passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SkipReason {
    /// Its circuit is open after failures.
    CircuitOpen {
        /// For how much longer.
        #[serde(rename = "left_ms", serialize_with = "as_millis")]
        left: Duration,
    },
    /// Another call is trying whether it is back.
    Probed,
    /// Its account was refused.
    Account,
    /// The call cannot be rewritten for it.
    Unfit(Unfit),
    /// No such model, and no successor is known.
    Gone,
    /// The same was asked of it before, for this call.
    AlreadyTried,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CircuitOpen { left } => {
                write!(f, "its circuit is open for {:.0} s more", left.as_secs_f64().ceil())
            }
            Self::Probed => f.write_str("another call is trying it"),
            Self::Account => f.write_str("its account was refused"),
            Self::Unfit(unfit) => write!(f, "{unfit}"),
            Self::AlreadyTried => f.write_str("it was asked for the same before"),
            Self::Gone => f.write_str("there is no such model any more"),
        }
    }
}

/// One send and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Attempt {
    /// The model it went to, where the request names one.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelId>,
    /// The size asked for, where the request names one.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub size: Option<ImageSize>,
    /// The upstream it went to: the target's, or what the request's URI says, where it names a host.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Arc<UpstreamId>>,
    /// The status that came back, where one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What it ended in; `None` while it runs.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// The most telling machine word (finish reason, quota id …).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is known of the money. An attempt that was dropped while it ran counts as `maybe`.
    #[serde(serialize_with = "as_display")]
    pub charge: Charge,
    /// What is known of the request quota.
    #[serde(serialize_with = "quota_word")]
    pub quota: QuotaCharge,
    /// Money, in micro-dollars, from at least to at most.
    pub cost: Cost,
    /// How many images its answer held, drafts included: all but the last are drafts. `None` where
    /// its end was not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<u32>,
    /// From send to the end of the answer, in the runtime's time.
    #[serde(rename = "took_ms", serialize_with = "as_millis")]
    pub took: Duration,
}

/// A place in a trail, to write an attempt's end to.
#[derive(Debug, Clone)]
pub struct AttemptId {
    trail: Trail,
    at: usize,
}

impl Trail {
    /// An empty trail.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn steps_mut(&self) -> MutexGuard<'_, Steps> {
        // A panic in another holder leaves a complete list: every write is one push or one
        // assignment.
        self.0.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `observer` read along from here on.
    pub fn observe(&self, observer: Arc<dyn TrailObserver>) {
        self.steps_mut().observers.push(observer);
    }

    /// Whoever asks to read along, asked outside the lock: an observer may read the trail.
    fn observers(&self) -> Vec<Arc<dyn TrailObserver>> {
        // Cloning an empty list allocates nothing.
        self.steps_mut().observers.clone()
    }

    /// Writes down that a request goes out. Until its end is written it counts as maybe charged.
    pub fn begin_attempt(&self, model: Option<ModelId>, size: Option<ImageSize>) -> AttemptId {
        self.begin_attempt_at(None, model, size)
    }

    pub(crate) fn begin_attempt_at(
        &self,
        upstream: Option<Arc<UpstreamId>>,
        model: Option<ModelId>,
        size: Option<ImageSize>,
    ) -> AttemptId {
        let attempt = Attempt {
            model,
            size,
            upstream,
            status: None,
            outcome: None,
            reason: None,
            charge: Charge::Maybe,
            quota: QuotaCharge::Maybe,
            cost: Cost::UNKNOWN,
            images: None,
            took: Duration::ZERO,
        };
        for observer in self.observers() {
            observer.on_send(&attempt);
        }
        let at = self.steps_mut().push(Step::Attempt(attempt));
        AttemptId { trail: self.clone(), at }
    }

    /// Writes down a decision.
    pub fn push(&self, step: Step) {
        for observer in self.observers() {
            observer.on_step(&step);
        }
        self.steps_mut().push(step);
    }

    /// All steps so far, in order.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        self.steps_mut().iter().cloned().collect()
    }

    /// The attempts so far, in order.
    #[must_use]
    pub fn attempts(&self) -> Vec<Attempt> {
        self.steps_mut()
            .iter()
            .filter_map(|step| match step {
                Step::Attempt(attempt) => Some(attempt.clone()),
                _ => None,
            })
            .collect()
    }

    /// How many attempts there were so far, without copying them.
    #[must_use]
    pub fn attempt_count(&self) -> usize {
        self.steps_mut().iter().filter(|step| matches!(step, Step::Attempt(_))).count()
    }

    /// How long the layers waited, all in all.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.steps_mut()
            .iter()
            .map(|step| match step {
                Step::Waited { delay, .. } => *delay,
                _ => Duration::ZERO,
            })
            .sum()
    }

    /// How many attempts delivered an image, or are delivering one.
    #[must_use]
    pub fn images_delivered(&self) -> u64 {
        let delivered = |step: &&Step| matches!(step, Step::Attempt(attempt) if attempt.outcome == Some(Outcome::Image));
        self.steps_mut().iter().filter(delivered).count() as u64
    }

    /// What each delivered image cost, from at least to at most: all attempts of the call, failed
    /// ones too, over the images they delivered. `None` where there is none.
    ///
    /// ```
    /// use tower_gemini::{Trail, cost::Cost, verdict::Verdict};
    ///
    /// let trail = Trail::new();
    /// assert_eq!(trail.cost_per_image(), None);
    /// trail.begin_attempt(None, None).end(None, &Verdict::interrupted(), Cost::up_to(134_000), Default::default());
    /// trail.begin_attempt(None, None).end(Some(200), &Verdict::delivering(), Cost::exactly(134_000), Default::default());
    /// assert_eq!(trail.cost_per_image().unwrap().to_string(), "$0.1340 to $0.2680");
    /// ```
    #[must_use]
    pub fn cost_per_image(&self) -> Option<Cost> {
        self.cost().per_image(self.images_delivered())
    }

    /// What the call cost so far, from at least to at most, all attempts together.
    #[must_use]
    pub fn cost(&self) -> Cost {
        self.steps_mut()
            .iter()
            .map(|step| match step {
                Step::Attempt(attempt) => attempt.cost,
                _ => Cost::ZERO,
            })
            .sum()
    }
}

impl AttemptId {
    /// Writes down how the attempt ended. May be called again when the body's end says more than
    /// its head did.
    pub fn end(&self, status: Option<u16>, verdict: &Verdict, cost: Cost, took: Duration) {
        if let Some(Step::Attempt(attempt)) = self.trail.steps_mut().get_mut(self.at) {
            attempt.status = status.or(attempt.status);
            attempt.outcome = Some(verdict.outcome());
            attempt.reason = verdict.reason().map(str::to_owned);
            attempt.charge = verdict.charge();
            attempt.quota = verdict.quota();
            attempt.cost = cost;
            attempt.took = took;
        }
    }

    /// Writes down how many images the answer held, drafts included.
    pub fn count_images(&self, images: u32) {
        if let Some(Step::Attempt(attempt)) = self.trail.steps_mut().get_mut(self.at) {
            attempt.images = Some(images);
        }
    }

    /// Nothing more will be known of the attempt: tells those who read along what has been written
    /// down of it.
    pub fn close(&self) {
        let observers = self.trail.observers();
        if observers.is_empty() {
            return;
        }
        let step = self.trail.steps_mut().get_mut(self.at).map(|step| step.clone());
        if let Some(step) = step {
            for observer in observers {
                observer.on_step(&step);
            }
        }
    }
}

impl fmt::Debug for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.steps_mut().iter()).finish()
    }
}

impl fmt::Display for Trail {
    /// One line a step.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut number = 0;
        for (i, step) in self.steps_mut().iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            match step {
                Step::Attempt(a) => {
                    number += 1;
                    write!(f, "attempt {number}")?;
                    if let Some(model) = &a.model {
                        write!(f, " {model}")?;
                    }
                    if let Some(size) = a.size {
                        write!(f, " {size}")?;
                    }
                    match a.outcome {
                        Some(outcome) => write!(f, ": {outcome}")?,
                        None => f.write_str(": under way")?,
                    }
                    if let Some(status) = a.status {
                        write!(f, " ({status}")?;
                        if let Some(reason) = &a.reason {
                            write!(f, ", {reason}")?;
                        }
                        f.write_str(")")?;
                    }
                    write!(
                        f,
                        ", charge {}, {} after {:.1} s",
                        a.charge,
                        a.cost,
                        a.took.as_secs_f64()
                    )?;
                }
                Step::Preferred { asked, model, why } => {
                    write!(f, "prefers {model} to {asked} ({})", why.as_str())?
                }
                Step::Signed { restored, placeholders } => {
                    write!(f, "signatures restored: {restored}, placeholders: {placeholders}")?;
                }
                Step::Waited { delay, why } => {
                    let why = match why {
                        WaitReason::QuietHours => "for a quiet hour",
                        WaitReason::Backoff => "backoff",
                        WaitReason::ServerHint => "the server asked for it",
                        WaitReason::Cooldown => "until a target could be tried again",
                        WaitReason::OwnQuota => "to stay within the quota",
                        WaitReason::SpendingCap => "for what running attempts have reserved",
                    };
                    write!(f, "waited {:.1} s ({why})", delay.as_secs_f64())?;
                }
                Step::FellBack { from, to, why } => {
                    write!(f, "fell back from {from} to {to} ({why})")?
                }
                Step::Skipped { target, why } => write!(f, "skipped {target}: {why}")?,
                Step::Degraded { given_up } if given_up.is_empty() => {
                    f.write_str("back to what was asked for")?;
                }
                Step::Degraded { given_up } => {
                    f.write_str("gave up ")?;
                    for (i, given_up) in given_up.iter().enumerate() {
                        write!(f, "{}{given_up}", if i > 0 { ", " } else { "" })?;
                    }
                }
                Step::Succeeded { model, successor } => {
                    write!(f, "{model} is retired: {successor} takes its place")?
                }
                Step::Stopped { why } => write!(f, "stopped: {}", why.as_str())?,
                Step::CallerLeft => f.write_str("the caller went away: finished without it")?,
                Step::Kept { bytes } => write!(
                    f,
                    "the answer is kept for the caller's next identical request ({bytes} bytes)"
                )?,
                Step::NotKept { why } => write!(f, "the answer was not kept: {}", why.as_str())?,
                Step::Redeemed { age, cost, .. } => {
                    write!(
                        f,
                        "given the answer of an earlier, identical request, {:.1} s old, paid for then ({cost})",
                        age.as_secs_f64()
                    )?;
                }
            }
        }
        Ok(())
    }
}

impl Serialize for Trail {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.steps_mut().iter())
    }
}

fn as_millis<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
}

fn as_text<S: Serializer, T: fmt::Display>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

fn in_words<S: Serializer, T: fmt::Display>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn as_display<S: Serializer, T: fmt::Display>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn quota_word<S: Serializer>(value: &QuotaCharge, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_under_way_counts_as_maybe_charged() {
        let trail = Trail::new();
        let _ = trail.begin_attempt(Some(ModelId::new("gemini-3.1-flash-image")), None);
        let attempts = trail.attempts();
        assert_eq!(attempts[0].charge, Charge::Maybe);
        assert_eq!(attempts[0].outcome, None);
        assert!(trail.to_string().contains("under way"));
    }

    #[test]
    fn observers_hear_of_each_decision_and_of_each_attempt_once_it_is_over() {
        #[derive(Default)]
        struct Heard(Mutex<Vec<String>>);
        impl TrailObserver for Heard {
            fn on_send(&self, attempt: &Attempt) {
                self.0.lock().unwrap().push(format!("sent {:?}", attempt.outcome));
            }
            fn on_step(&self, step: &Step) {
                self.0.lock().unwrap().push(match step {
                    Step::Attempt(attempt) => format!("ended {:?}", attempt.outcome),
                    step => format!("{step:?}"),
                });
            }
        }
        let (trail, heard) = (Trail::new(), Arc::new(Heard::default()));
        trail.observe(heard.clone());
        let attempt = trail.begin_attempt(None, None);
        attempt.end(None, &Verdict::delivering(), Cost::ZERO, Duration::ZERO);
        attempt.end(None, &Verdict::interrupted_delivery(), Cost::ZERO, Duration::ZERO);
        attempt.close();
        trail.push(Step::CallerLeft);
        assert_eq!(
            *heard.0.lock().unwrap(),
            ["sent None", "ended Some(Interrupted)", "CallerLeft"]
        );
    }

    #[test]
    fn clones_share_one_trail() {
        let trail = Trail::new();
        trail.clone().push(Step::Stopped { why: StopReason::Charged });
        assert_eq!(trail.steps().len(), 1);
    }
}
