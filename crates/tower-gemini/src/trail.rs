//! What was decided on the way, in order, and why.
//!
//! A [`Trail`] is shared by every layer that works on a call. The caller may hold a clone of it
//! (see [`CallOptions::trail`](crate::CallOptions::trail)) and read it even when the call
//! failed or was dropped: an attempt that was cut off stays in it as *maybe charged*.

use std::fmt;
use std::iter::Sum;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use smallvec::SmallVec;

use tower_gemini_core::call::{ImageSize, ModelId, ServiceTier};
use tower_gemini_core::cost::Cost;
use tower_gemini_core::scan::Answer;
use tower_gemini_core::target::{Degradation, GivenUp, Unfit, UpstreamId};
use tower_gemini_core::verdict::{Charge, Outcome, QuotaCharge, Verdict};

/// What was decided for one call, in order, by all layers. O(1) to clone; clones share it.
#[derive(Clone, Default)]
pub struct Trail(Arc<Mutex<Shared>>);

#[derive(Default)]
struct Shared {
    /// The usual call has one step, its only attempt, which needs no allocation beside the trail's
    /// own.
    steps: SmallVec<[Step; 1]>,
    observers: Vec<Arc<dyn TrailObserver>>,
}

/// Receives the steps of a trail as they are recorded: for logs and metrics, in one place for all
/// layers.
///
/// Called in whichever task records the step, outside the trail's lock. It must not block.
pub trait TrailObserver: Send + Sync {
    /// A request is sent. Its outcome comes with [`on_step`](Self::on_step).
    fn on_send(&self, _attempt: &Attempt) {}

    /// A step is known in full: a decision when it is taken, an attempt once, when it has ended
    /// (its body too).
    fn on_step(&self, step: &Step);
}

/// One entry of a [`Trail`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Step {
    /// A request went out.
    Attempt(Attempt),
    /// A layer asked for another model to be tried first than the one that the call names.
    Preferred {
        /// The model that the call names.
        #[serde(serialize_with = "as_display")]
        asked: ModelId,
        /// The model that should be tried first.
        #[serde(serialize_with = "as_display")]
        model: ModelId,
        /// Why.
        why: PreferReason,
    },
    /// Missing thought signatures were added to the request.
    Signed {
        /// Signatures that were seen in earlier responses.
        restored: u32,
        /// Documented placeholders, where none was seen.
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
    /// The request is its client's own resend of a call that has just failed, and goes on with it.
    Continued {
        /// How many attempts that call made.
        attempts: u32,
    },
    /// A fallback left a target for the next one.
    FellBack {
        /// The target of the last attempt.
        from: String,
        /// The target of the next one.
        to: String,
        /// The outcome of the last attempt.
        #[serde(serialize_with = "as_display")]
        why: Outcome,
    },
    /// A fallback skipped a target.
    Skipped {
        /// The target.
        target: String,
        /// Why.
        why: SkipReason,
    },
    /// The next attempt requests less, or something else, than the caller did; or again what the
    /// caller did. The last of these steps holds.
    Degraded {
        /// Everything in which it differs from the caller's request; empty where it does not.
        given_up: Vec<Degradation>,
    },
    /// A model is retired and replaced by its successor.
    Replaced {
        /// The requested model.
        model: String,
        /// Its successor.
        successor: String,
    },
    /// A layer decided that nothing more is sent, and the last response stands.
    Stopped {
        /// Why.
        why: StopReason,
    },
    /// The response named the interaction that it is of, by which it can be fetched: it is never sent
    /// again.
    Interaction {
        /// Its id.
        id: String,
    },
    /// An interaction whose response broke off was fetched by its id, which costs nothing.
    Fetched {
        /// How.
        how: FetchKind,
        /// The status that came back; `None` where no response did.
        #[serde(skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
        /// The status of the interaction (`completed`, `in_progress` …), where it was read.
        #[serde(skip_serializing_if = "Option::is_none")]
        said: Option<String>,
    },
    /// The client disconnected after dispatch: what may be charged is completed without it.
    ClientDisconnected,
    /// The response of a detached call is stored for the same client's next identical request.
    Stored {
        /// Its size.
        bytes: u64,
    },
    /// The response of a detached call was not stored.
    NotStored {
        /// Why.
        why: NotStoredReason,
    },
    /// Nothing was sent: the response to the same client's earlier, identical request is replayed.
    Replayed {
        /// How long ago it was complete; zero if the call waited for it.
        #[serde(rename = "age_ms", serialize_with = "as_millis")]
        age: Duration,
        /// What it cost then. This call costs nothing.
        cost: Cost,
        /// Its outcome: a refusal is replayed like an image.
        #[serde(serialize_with = "as_display")]
        outcome: Outcome,
    },
}

impl Step {
    /// The attempt, where the step is one.
    #[must_use]
    pub fn as_attempt(&self) -> Option<&Attempt> {
        match self {
            Self::Attempt(attempt) => Some(attempt),
            _ => None,
        }
    }
}

/// Declares reasons, each with one phrase for people.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $phrase:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$of])* $variant,)*
        }

        impl $name {
            /// One phrase for people.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $phrase,)*
                }
            }
        }
    )*};
}

reasons! {
    /// How an interaction was fetched.
    FetchKind {
        /// The interaction as it is now.
        Poll = "polled",
        /// What follows the last event of its stream.
        Stream = "resumed its stream",
    }
    /// Why the response of a detached call was not stored.
    NotStoredReason {
        /// Nothing was charged for it: a resend costs nothing.
        Free = "nothing was charged for it",
        /// It is incomplete.
        Broken = "it is incomplete",
        /// It is larger than all that may be stored.
        TooLarge = "it is too large to store",
        /// As many calls as allowed are being completed without their clients already.
        TooMany = "too many calls are being completed without their clients",
        /// It took longer than a call without a client may take.
        TooLate = "it took too long",
    }
    /// Why another model is tried first.
    PreferReason {
        /// The schedule has a peak at this hour.
        PeakHours = "peak hours",
    }
    /// Why a wait was as long as it was.
    WaitReason {
        /// The call was deferred to a quiet hour.
        QuietHours = "for a quiet hour",
        /// The layer's own backoff.
        Backoff = "backoff",
        /// The server asked for it.
        ServerHint = "the server asked for it",
        /// The circuits of all targets were open: until one of them closed, or could be probed.
        Cooldown = "until a target could be tried again",
        /// The model was in an outage: until an attempt was answered, or it was this call's turn to
        /// find out.
        Outage = "for the end of the model's outage",
        /// Our own admission keeps within a quota; the delay is what was expected when the wait
        /// began.
        OwnQuota = "to stay within the quota",
        /// The distance that [`Pacing`](crate::Pacing) keeps.
        Pacing = "to keep a distance",
        /// Running attempts had reserved what is left below a spending cap; the delay is what the
        /// wait took.
        SpendingCap = "for what running attempts have reserved",
    }
    /// Why nothing more was sent.
    StopReason {
        /// It might have exceeded a spending cap: nothing was sent.
        SpendingCap = "it might have exceeded a spending cap",
        /// Another attempt would not do better.
        NotRetryable = "another attempt would end the same",
        /// It was charged, or is being delivered.
        Charged = "it was charged",
        /// It may have been charged, and the caller's allowance is spent (or was never given).
        MaybeCharged = "it may have been charged",
        /// The policy's attempts are used up.
        AttemptsUsedUp = "attempts used up",
        /// The time the policy allows is used up.
        ElapsedUsedUp = "retry time used up",
        /// The wait, or the attempt after it, would not end before the deadline.
        DeadlineTooNear = "deadline too near",
        /// The model is in an outage, and as many calls wait for its end as may.
        TooManyWait = "too many calls wait for the end of the model's outage",
        /// The hinted wait is longer than the policy waits.
        WaitTooLong = "the hinted wait is too long",
        /// The retry budget that all calls share is empty.
        BudgetSpent = "retry budget empty",
        /// The request's body was too large to hold for a second send.
        NotReplayable = "body too large to replay",
        /// Our own admission found the quota used up: nothing was sent.
        QuotaUsedUp = "our own count says the quota is used up",
        /// The request lacks a thought signature that the API checks: nothing was sent.
        MissingSignature = "a thought signature is missing",
        /// No target is left to fall back to.
        NoTargetLeft = "no target is left",
        /// An earlier, identical request was or may have been charged after its client
        /// disconnected, and its response was lost: nothing was sent.
        EarlierResponseLost = "an earlier, identical request may have been charged and its response was lost",
    }
}

/// Why a target was skipped.
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
    /// The same was requested of it before, for this call.
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

/// One attempt and its outcome.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Attempt {
    /// The model it went to, where the request names one.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelId>,
    /// The model that the response names, where it is not the one that it went to.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub served_by: Option<ModelId>,
    /// The service tier that the response names, where it is not the one asked for.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub served_tier: Option<ServiceTier>,
    /// The size asked for, where the request names one.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub size: Option<ImageSize>,
    /// The upstream it went to: the target's, or what the request's URI says, where it names a host.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Arc<UpstreamId>>,
    /// The status that came back, where one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Its outcome; `None` while it runs.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// The most specific code in the response (finish reason, quota id …).
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
    /// How many images its response held, drafts included: all but the last are drafts. `None` if
    /// its end was not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<u32>,
    /// What its response says of itself. `None` if its end was not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<Box<ResponseFacts>>,
    /// From dispatch to the end of the response, in the runtime's time.
    #[serde(rename = "took_ms", serialize_with = "as_millis")]
    pub took: Duration,
}

/// What a response says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ResponseFacts {
    /// The model that responded: `modelVersion` (or `model`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// `responseId` (or `id`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The finish reason of its first candidate, as spelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// The tokens of the request, where it counts any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<u64>,
    /// The billable tokens of the response, thoughts included, where it counts any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u64>,
}

impl ResponseFacts {
    pub(crate) fn from_answer(answer: &Answer) -> Self {
        let usage = answer.usage.as_ref();
        Self {
            model: answer.model_version.clone(),
            id: answer.response_id.clone(),
            finish_reason: answer.finish_reason.clone(),
            input_tokens: usage.map(|usage| usage.prompt),
            output_tokens: usage.map(|usage| usage.candidates.saturating_add(usage.thoughts)),
        }
    }
}

impl Attempt {
    /// The model that responded: the one that the response names, else the one that it went to.
    #[must_use]
    pub fn responder(&self) -> Option<&ModelId> {
        self.served_by.as_ref().or(self.model.as_ref())
    }

    /// What the response says it gave up: it was served by another model than the one that it went
    /// to.
    #[must_use]
    pub fn rerouting(&self) -> Option<Degradation> {
        let (from, to) = (self.model.as_ref()?, self.served_by.as_ref()?);
        let name = |model: &ModelId| model.as_str().to_owned().into();
        Some(Degradation { what: GivenUp::Model, from: name(from), to: Some(name(to)) })
    }
}

/// The entry of an attempt in a trail, to record its end in.
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

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // A panic in another holder leaves a complete list: every write is one push or one
        // assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the attempts so far add up to.
    fn sum<T: Sum<T>>(&self, of: impl Fn(&Attempt) -> T) -> T {
        self.shared().steps.iter().filter_map(Step::as_attempt).map(of).sum()
    }

    /// Reports every further step to `observer`.
    pub fn observe(&self, observer: Arc<dyn TrailObserver>) {
        self.shared().observers.push(observer);
    }

    /// The observers, which are called outside the lock: an observer may read the trail.
    fn observers(&self) -> Vec<Arc<dyn TrailObserver>> {
        // Cloning an empty list allocates nothing.
        self.shared().observers.clone()
    }

    /// Records that a request is sent. Until its end is recorded it counts as maybe charged.
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
            served_by: None,
            served_tier: None,
            size,
            upstream,
            status: None,
            outcome: None,
            reason: None,
            charge: Charge::Maybe,
            quota: QuotaCharge::Maybe,
            cost: Cost::UNKNOWN,
            images: None,
            response: None,
            took: Duration::ZERO,
        };
        for observer in self.observers() {
            observer.on_send(&attempt);
        }
        let steps = &mut self.shared().steps;
        steps.push(Step::Attempt(attempt));
        AttemptId { trail: self.clone(), at: steps.len() - 1 }
    }

    /// Records a decision.
    pub fn push(&self, step: Step) {
        for observer in self.observers() {
            observer.on_step(&step);
        }
        self.shared().steps.push(step);
    }

    /// All steps so far, in order.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        self.shared().steps.to_vec()
    }

    /// The attempts so far, in order.
    #[must_use]
    pub fn attempts(&self) -> Vec<Attempt> {
        self.shared().steps.iter().filter_map(Step::as_attempt).cloned().collect()
    }

    /// The id of the last interaction that a response named.
    #[must_use]
    pub fn interaction_id(&self) -> Option<String> {
        self.shared().steps.iter().rev().find_map(|step| match step {
            Step::Interaction { id } => Some(id.clone()),
            _ => None,
        })
    }

    /// How long the layers waited, all in all.
    #[must_use]
    pub fn waited(&self) -> Duration {
        let waited = |step: &Step| match step {
            Step::Waited { delay, .. } => Some(*delay),
            _ => None,
        };
        self.shared().steps.iter().filter_map(waited).sum()
    }

    /// How many attempts delivered an image, or are delivering one.
    #[must_use]
    pub fn images_delivered(&self) -> u64 {
        self.sum(|attempt| u64::from(attempt.outcome == Some(Outcome::Image)))
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
        self.sum(|attempt| attempt.cost)
    }
}

impl AttemptId {
    fn update(&self, change: impl FnOnce(&mut Attempt)) {
        if let Some(Step::Attempt(attempt)) = self.trail.shared().steps.get_mut(self.at) {
            change(attempt);
        }
    }

    /// Records how the attempt ended. May be called again when the body's end says more than its
    /// head did.
    pub fn end(&self, status: Option<u16>, verdict: &Verdict, cost: Cost, took: Duration) {
        self.update(|attempt| {
            attempt.status = status.or(attempt.status);
            attempt.outcome = Some(verdict.outcome());
            attempt.reason = verdict.reason().map(str::to_owned);
            attempt.charge = verdict.charge();
            attempt.quota = verdict.quota();
            attempt.cost = cost;
            attempt.took = took;
        });
    }

    /// Records which model and which tier the response says it was served by, where they are not
    /// those that were asked for.
    pub fn served_by(&self, model: Option<ModelId>, tier: Option<ServiceTier>) {
        self.update(|attempt| (attempt.served_by, attempt.served_tier) = (model, tier));
    }

    /// Records how many images the response held, drafts included.
    pub fn count_images(&self, images: u32) {
        self.update(|attempt| attempt.images = Some(images));
    }

    /// Records what the response said of itself.
    pub(crate) fn describe(&self, response: &ResponseFacts) {
        self.update(|attempt| attempt.response = Some(Box::new(response.clone())));
    }

    /// Nothing more will be known of the attempt: reports it to the trail's observers.
    pub fn close(&self) {
        let observers = self.trail.observers();
        if observers.is_empty() {
            return;
        }
        let step = self.trail.shared().steps.get(self.at).cloned();
        step.iter().for_each(|step| observers.iter().for_each(|one| one.on_step(step)));
    }
}

impl fmt::Debug for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.shared().steps).finish()
    }
}

impl fmt::Display for Trail {
    /// One line a step.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut number = 0;
        for (i, step) in self.shared().steps.iter().enumerate() {
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
                    if let Some(model) = &a.served_by {
                        write!(f, ", served by {model}")?;
                    }
                    if let Some(tier) = a.served_tier {
                        write!(f, ", in the {tier} tier")?;
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
                    write!(f, "waited {:.1} s ({})", delay.as_secs_f64(), why.as_str())?;
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
                Step::Replaced { model, successor } => {
                    write!(f, "{model} is retired: {successor} takes its place")?
                }
                Step::Stopped { why } => write!(f, "stopped: {}", why.as_str())?,
                Step::Interaction { id } => write!(f, "interaction {id}")?,
                Step::Fetched { how, status, said } => {
                    write!(f, "{} the interaction", how.as_str())?;
                    match (status, said) {
                        (Some(status), Some(said)) => write!(f, ": {status}, {said}")?,
                        (Some(status), None) => write!(f, ": {status}")?,
                        (None, _) => f.write_str(": no response")?,
                    }
                }
                Step::ClientDisconnected => {
                    f.write_str("the client disconnected; the attempt is completed without it")?
                }
                Step::Stored { bytes } => write!(
                    f,
                    "the response is stored for the next identical request ({bytes} bytes)"
                )?,
                Step::NotStored { why } => {
                    write!(f, "the response is not stored: {}", why.as_str())?
                }
                Step::Continued { attempts } => write!(
                    f,
                    "resend of a call that has just failed after {attempts} attempts: goes on with it"
                )?,
                Step::Replayed { age, cost, .. } => write!(
                    f,
                    "replayed the response to an earlier, identical request, {:.1} s old, charged \
                     then ({cost})",
                    age.as_secs_f64()
                )?,
            }
        }
        Ok(())
    }
}

impl Serialize for Trail {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.shared().steps)
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
        trail.push(Step::ClientDisconnected);
        assert_eq!(
            *heard.0.lock().unwrap(),
            ["sent None", "ended Some(Interrupted)", "ClientDisconnected"]
        );
    }

    #[test]
    fn clones_share_one_trail() {
        let trail = Trail::new();
        trail.clone().push(Step::Stopped { why: StopReason::Charged });
        assert_eq!(trail.steps().len(), 1);
    }
}
