//! What everything that works on one call shares: its deadline, what its caller allowed, and what
//! became of its attempts.
//!
//! This is the control plane of the stack and private to the crate. The [`Trail`] is its log:
//! layers write to it, and none decides by reading it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;
use tower_gemini_core::call::{Call, ModelId, ServiceTier};
use tower_gemini_core::cost::Cost;
use tower_gemini_core::scan::Usage;
use tower_gemini_core::target::{MustKeep, UpstreamId};
use tower_gemini_core::verdict::{Charge, QuotaCharge, Verdict};

use crate::call_memory::CallMemory;
use crate::error::{Error, TimeLimit};
use crate::jittered_retry::ComeBack;
use crate::sync::{Mutex, MutexGuard, PoisonError};
use crate::trail::{AttemptId, ResponseFacts, Step, Trail};

/// The state of one call. O(1) to clone; the clones share it.
#[derive(Clone)]
pub(crate) struct CallState(Arc<Inner>);

struct Inner {
    started: Instant,
    trail: Trail,
    must_keep: MustKeep,
    shared: Mutex<Shared>,
    memory: OnceLock<Arc<dyn CallMemory>>,
}

#[derive(Default)]
struct Shared {
    deadline: Option<Instant>,
    /// An attempt under way goes on when the deadline passes.
    finishes_attempts: bool,
    /// How many more times the call may be sent after an attempt that may have been charged;
    /// `None` where neither the caller nor a layer said so.
    allowance: Option<u32>,
    /// The caller says that sending it twice does no harm, and it is no call that is charged.
    may_repeat: bool,
    patience: Option<Duration>,
    /// How long the call waited because its caller let it.
    deferred: Duration,
    preferred: Option<ModelId>,
    visited: Vec<String>,
    /// The resend that the retry inside leaves to a fallback outside.
    come_back: Option<Box<ComeBack>>,
    /// The layers that the first attempt came through, and what is wrong with their order.
    passed: u8,
    misplaced: Option<&'static str>,
    gates: Vec<Arc<dyn SendGate>>,
    /// The usual call has one attempt, which needs no allocation beside the state's own.
    attempts: smallvec::SmallVec<[Slot; 1]>,
}

/// A layer whose place the types cannot tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    PeakHourRouter,
    ModelFallback,
    ResolutionFallback,
    Spending,
    QuotaGuard,
    AttemptTimeout,
}

impl Place {
    fn bit(self) -> u8 {
        1 << self as u8
    }

    /// The layers that must not stand above this one, and what is wrong with it.
    fn must_not_follow(self) -> (u8, &'static str) {
        let fallbacks = Self::ModelFallback.bit() | Self::ResolutionFallback.bit();
        match self {
            Self::PeakHourRouter => (
                fallbacks | self.bit(),
                "PeakHourRouter stands below a fallback, or twice: the model that it prefers would \
                 no longer be read; put it above ModelFallback and ResolutionFallback, once",
            ),
            Self::ModelFallback => (
                self.bit(),
                "ModelFallback stands in the stack twice: each of its targets would fall back \
                 again; put all targets in one chain",
            ),
            Self::ResolutionFallback => (
                self.bit(),
                "ResolutionFallback stands in the stack twice: each of its sizes would step down \
                 again; put all sizes in one ladder",
            ),
            Self::Spending => (
                Self::AttemptTimeout.bit(),
                "Spending stands below AttemptTimeout: an attempt would be cut off while it waits \
                 for money; put AttemptTimeout below Spending",
            ),
            Self::QuotaGuard => (
                Self::AttemptTimeout.bit(),
                "QuotaGuard stands below AttemptTimeout: an attempt would be cut off while it \
                 waits for its turn; put AttemptTimeout below QuotaGuard",
            ),
            Self::AttemptTimeout => (0, ""),
        }
    }
}

/// What is known of one attempt.
#[derive(Default)]
struct Slot {
    handover: Handover,
    /// Whether the client has asked for any of the body.
    is_read: bool,
    /// Its place in the trail, once it was sent.
    entry: Option<AttemptId>,
    end: Option<SentAttempt>,
    gates: Vec<Arc<dyn SendGate>>,
    /// The interaction that it started, once its id was read.
    interaction: Option<String>,
    /// Leave was given to send once more after it: nothing of it is still to come.
    is_followed: bool,
}

/// What an attempt that was sent has come to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SentAttempt {
    pub(crate) charge: Charge,
    pub(crate) quota: QuotaCharge,
    /// `None` while it runs.
    pub(crate) cost: Option<Cost>,
    pub(crate) took: Duration,
}

/// Whether the last byte of an attempt's request may leave. Decided once, under the lock: what was
/// called free because it was not handed over is not handed over later either, by a client that
/// goes on with a request that nobody waits for.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Handover {
    /// The client has not been given it, and the attempt goes on.
    #[default]
    Pending,
    /// The client has been given it: it may have been sent.
    Done,
    /// The attempt was abandoned before: the client is not given it any more.
    Refused,
}

/// The future of [`SendGate::pass`].
pub(crate) type Passing<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>>;

/// Passed before the first byte of an attempt, and settled after it: for what must be on record
/// before anything is sent.
pub(crate) trait SendGate: fmt::Debug + Send + Sync {
    /// Lets the attempt pass, or refuses it. Dropped before it is ready, the attempt was not sent.
    fn pass<'a>(&'a self, call: &'a Call) -> Passing<'a>;

    /// An attempt that passed has ended. Called once.
    fn settle(&self, end: &AttemptEnd<'_>);
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "for what attaches to the gates; a journal will read all of it")]
pub(crate) struct AttemptEnd<'a> {
    pub(crate) verdict: &'a Verdict,
    /// What the response says it used.
    pub(crate) usage: Option<&'a Usage>,
    /// How many images it held, drafts included, where it was read to its end.
    pub(crate) images: Option<u32>,
    /// What it says of itself.
    pub(crate) facts: Option<&'a ResponseFacts>,
    pub(crate) cost: Cost,
}

/// Leave to make one more attempt of a call.
///
/// There are two ways to one: an attempt that surely was not charged, and an attempt that may have
/// been, out of what the caller allowed. There is none after a charge.
#[derive(Debug)]
#[must_use = "a permit that is not used sends nothing"]
pub(crate) struct ResendPermit(());

impl ResendPermit {
    /// Uses the permit up.
    #[allow(clippy::unused_self, reason = "taking it by value is the point")]
    pub(crate) fn use_up(self) {}
}

impl CallState {
    /// The state of a call that starts now. Made by [`CallOptions`](crate::CallOptions).
    pub(crate) fn open(
        trail: Trail,
        must_keep: MustKeep,
        deadline: Option<Duration>,
        allowance: Option<u32>,
        patience: Option<Duration>,
        preferred: Option<ModelId>,
    ) -> Self {
        let started = Instant::now();
        let deadline = deadline.and_then(|within| started.checked_add(within));
        let shared = Shared { deadline, allowance, patience, preferred, ..Shared::default() };
        let (shared, memory) = (Mutex::new(shared), OnceLock::new());
        Self(Arc::new(Inner { started, trail, must_keep, shared, memory }))
    }

    /// Accounts for what is held of the response.
    pub(crate) fn with_memory(self, memory: Option<Arc<dyn CallMemory>>) -> Self {
        if let Some(memory) = memory {
            let _ = self.0.memory.set(memory);
        }
        self
    }

    /// What accounts for the bytes that are held of the response.
    pub(crate) fn memory(&self) -> Option<&Arc<dyn CallMemory>> {
        self.0.memory.get()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // A panic in another holder leaves a complete state: every write is one assignment.
        self.0.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the call began.
    pub(crate) fn started(&self) -> Instant {
        self.0.started
    }

    /// The moment at which the caller stops waiting for the whole call.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.shared().deadline
    }

    /// The error of a call whose deadline has passed.
    pub(crate) fn timed_out(&self, verdict: Verdict) -> Error {
        let limit = self.deadline().map_or(Duration::ZERO, |at| at - self.started());
        Error::timeout(TimeLimit::Deadline, limit, verdict).with_trail(self.trail().clone())
    }

    /// The moment at which an attempt under way ends, where the call's deadline ends it.
    pub(crate) fn attempt_deadline(&self) -> Option<Instant> {
        let shared = self.shared();
        shared.deadline.filter(|_| !shared.finishes_attempts)
    }

    /// Lets an attempt under way go on when the deadline passes: its response is for whoever asks
    /// again. Nothing is sent after it.
    #[cfg(feature = "keep-paid")]
    pub(crate) fn finish_attempts(&self) {
        self.shared().finishes_attempts = true;
    }

    /// Whether an attempt under way goes on when the deadline passes.
    pub(crate) fn finishes_attempts(&self) -> bool {
        self.shared().finishes_attempts
    }

    /// Whether an attempt was begun that has not ended.
    #[cfg(feature = "keep-paid")]
    pub(crate) fn is_sending(&self) -> bool {
        let shared = self.shared();
        shared.attempts.last().is_some_and(|slot| slot.entry.is_some() && slot.end.is_none())
    }

    /// Gives the call a deadline this long after its start, unless it has one: a call has one
    /// deadline, and no fallback or size gets a new one. A call that was deferred starts then.
    pub(crate) fn default_deadline(&self, within: Duration) {
        let mut shared = self.shared();
        if shared.deadline.is_none() {
            let start = self.0.started.checked_add(shared.deferred);
            shared.deadline = start.and_then(|start| start.checked_add(within));
        }
    }

    /// The call waited this long because its caller let it: the defaults of the layers were not
    /// meant for that.
    pub(crate) fn defer(&self, waited: Duration) {
        self.shared().deferred += waited;
    }

    /// What the caller insists on, whatever a fallback would give up.
    pub(crate) fn must_keep(&self) -> MustKeep {
        self.0.must_keep
    }

    /// Says that sending the request twice does no harm. Not for calls that can be charged.
    pub(crate) fn allow_repeats(&self) {
        self.shared().may_repeat = true;
    }

    /// The log of the call, to be handed to people.
    pub(crate) fn trail(&self) -> &Trail {
        &self.0.trail
    }

    /// Writes a decision into the log.
    pub(crate) fn record(&self, step: Step) {
        self.0.trail.push(step);
    }

    /// A layer is passed on the way down. Only the way of the first attempt is looked at: the
    /// others are the same.
    pub(crate) fn pass(&self, place: Place) {
        let mut shared = self.shared();
        let is_of_attempts =
            matches!(place, Place::Spending | Place::QuotaGuard | Place::AttemptTimeout);
        if shared.attempts.len() > usize::from(is_of_attempts) {
            return;
        }
        let (others, why) = place.must_not_follow();
        if shared.passed & others != 0 {
            shared.misplaced.get_or_insert(why);
        }
        shared.passed |= place.bit();
    }

    /// Whether the call has passed a chain of models, which has circuits of its own.
    pub(crate) fn has_model_fallback(&self) -> bool {
        self.shared().passed & Place::ModelFallback.bit() != 0
    }

    /// An error where the layers passed so far stand in an order that does not work.
    pub(crate) fn check_order(&self) -> Result<(), Error> {
        match self.shared().misplaced {
            Some(why) => Err(Error::misplaced(why).with_trail(self.trail().clone())),
            None => Ok(()),
        }
    }

    /// How long the caller lets the call wait for a better hour, where it does.
    pub(crate) fn patience(&self) -> Option<Duration> {
        self.shared().patience
    }

    /// The model that should be tried first.
    pub(crate) fn preferred(&self) -> Option<ModelId> {
        self.shared().preferred.clone()
    }

    /// Asks for a model to be tried first.
    pub(crate) fn prefer(&self, model: ModelId) {
        self.shared().preferred = Some(model);
    }

    /// Whether this was asked for before, in this call. Remembers that it was.
    pub(crate) fn visit(&self, target: &str) -> bool {
        let mut shared = self.shared();
        let before = shared.visited.iter().any(|visited| visited == target);
        if !before {
            shared.visited.push(target.to_owned());
        }
        before
    }

    /// Whether this was asked for before, in this call.
    pub(crate) fn has_visited(&self, target: &str) -> bool {
        self.shared().visited.iter().any(|visited| visited == target)
    }

    /// Leaves a resend to the fallback outside.
    pub(crate) fn come_back(&self, resend: ComeBack) {
        self.shared().come_back = Some(Box::new(resend));
    }

    /// The resend that the last target's retry left to a fallback.
    pub(crate) fn take_come_back(&self) -> Option<Box<ComeBack>> {
        self.shared().come_back.take()
    }

    /// Allows so many resends after attempts that may have been charged, unless the caller said
    /// how many. One allowance is shared by all layers that work on the call.
    pub(crate) fn default_allowance(&self, resends: u32) {
        self.shared().allowance.get_or_insert(resends);
    }

    /// How many resends after attempts that may have been charged are left.
    pub(crate) fn allowance_left(&self) -> u32 {
        let shared = self.shared();
        if shared.has_interaction() { 0 } else { shared.allowance.unwrap_or(0) }
    }

    /// Leave to send once more after what this verdict says: free where surely nothing was paid,
    /// one unit of the allowance where it may have been, and `None` where it was, or the allowance
    /// is spent. An interaction whose id is known is fetched: no allowance sends it again.
    pub(crate) fn permit_after(&self, verdict: &Verdict) -> Option<ResendPermit> {
        let mut shared = self.shared();
        match verdict.charge() {
            Charge::None | Charge::Waived => {}
            Charge::Maybe if shared.has_interaction() => return None,
            Charge::Maybe if shared.may_repeat => {}
            Charge::Maybe => shared.allowance = Some(shared.allowance?.checked_sub(1)?),
            Charge::Charged => return None,
        }
        if let Some(last) = shared.attempts.last_mut() {
            last.is_followed = true;
        }
        Some(ResendPermit(()))
    }

    /// Whether the call waits to be sent again: no attempt of it is under way.
    #[cfg(feature = "keep-paid")]
    pub(crate) fn is_between_attempts(&self) -> bool {
        self.shared().attempts.last().is_some_and(|slot| slot.is_followed)
    }

    /// Whether its last attempt started an interaction whose id is known: it is fetched, and never
    /// sent again.
    pub(crate) fn has_interaction(&self) -> bool {
        self.shared().has_interaction()
    }

    /// Lets every attempt of the call pass this gate.
    #[cfg(any(test, feature = "keep-paid"))]
    pub(crate) fn add_gate(&self, gate: Arc<dyn SendGate>) {
        self.shared().gates.push(gate);
    }

    /// A further attempt, numbered, that has not been sent yet.
    pub(crate) fn new_attempt(&self) -> Attempt {
        let mut shared = self.shared();
        let gates = shared.gates.clone();
        shared.attempts.push(Slot { gates, ..Slot::default() });
        Attempt { index: shared.attempts.len() - 1, state: self.clone() }
    }

    /// The most that any attempt was or may have been charged.
    pub(crate) fn worst_charge(&self) -> Charge {
        let shared = self.shared();
        let charges = shared.attempts.iter().map(Slot::charge);
        charges.max_by_key(|&charge| severity(charge)).unwrap_or(Charge::None)
    }

    /// What the attempts before the last were or may have been charged, and what the last.
    #[cfg(any(test, feature = "keep-paid"))]
    pub(crate) fn charges(&self) -> (Charge, Charge) {
        let shared = self.shared();
        let Some((last, before)) = shared.attempts.split_last() else {
            return (Charge::None, Charge::None);
        };
        let before = before.iter().map(Slot::charge).max_by_key(|&charge| severity(charge));
        (before.unwrap_or(Charge::None), last.charge())
    }

    /// What the attempts that have ended cost.
    #[cfg(feature = "keep-paid")]
    pub(crate) fn cost(&self) -> Cost {
        self.shared().attempts.iter().filter_map(|slot| slot.end.and_then(|end| end.cost)).sum()
    }

    /// What the attempts that were sent have come to so far.
    pub(crate) fn sent_attempts(&self) -> Vec<SentAttempt> {
        let running = SentAttempt {
            charge: Charge::Maybe,
            quota: QuotaCharge::Maybe,
            cost: None,
            took: Duration::ZERO,
        };
        let shared = self.shared();
        let sent = shared.attempts.iter().filter(|slot| slot.entry.is_some());
        sent.map(|slot| slot.end.unwrap_or(running)).collect()
    }

    /// Whether the last attempt was sent, or may have been: no layer below refused it.
    pub(crate) fn was_last_sent(&self) -> bool {
        self.shared().attempts.last().is_some_and(|slot| slot.entry.is_some())
    }

    /// The verdict of a call that is abandoned now, without a response: of its attempt under way,
    /// which stays here if it is not out yet. An attempt that has ended says nothing.
    pub(crate) fn cut_off(&self) -> Verdict {
        let last = self.shared().attempts.len().checked_sub(1);
        match last.map(|index| Attempt { state: self.clone(), index }) {
            Some(attempt) if !attempt.has_ended() => attempt.cut_off(),
            _ => Verdict::not_sent(),
        }
    }
}

impl Shared {
    /// Whether the last attempt started an interaction whose id is known.
    fn has_interaction(&self) -> bool {
        self.attempts.last().is_some_and(|slot| slot.interaction.is_some())
    }
}

/// How bad a charge is for who would send again.
pub(crate) fn severity(charge: Charge) -> u8 {
    match charge {
        Charge::None | Charge::Waived => 0,
        Charge::Maybe => 1,
        Charge::Charged => 2,
    }
}

impl Slot {
    fn charge(&self) -> Charge {
        match (self.end, self.handover) {
            (Some(end), _) => end.charge,
            (None, Handover::Done) => Charge::Maybe,
            (None, _) => Charge::None,
        }
    }
}

impl fmt::Debug for CallState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallState").field("trail", self.trail()).finish_non_exhaustive()
    }
}

/// One attempt of a call. O(1) to clone; the clones speak of the same attempt.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    state: CallState,
    index: usize,
}

impl Attempt {
    pub(crate) fn state(&self) -> &CallState {
        &self.state
    }

    /// Which attempt of the call it is, from 1 on.
    pub(crate) fn number(&self) -> usize {
        self.index + 1
    }

    fn with<T>(&self, f: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        self.state.shared().attempts.get_mut(self.index).map(f)
    }

    /// The gates that must be passed before the first byte. Usually none: asking allocates nothing
    /// then.
    pub(crate) fn gates(&self) -> Vec<Arc<dyn SendGate>> {
        self.with(|slot| slot.gates.clone()).unwrap_or_default()
    }

    /// Writes down that the request goes out. Until its end is written it counts as maybe charged.
    pub(crate) fn begin(&self, call: &Call, upstream: Option<Arc<UpstreamId>>) {
        let trail = self.state.trail();
        let entry = trail.begin_attempt_at(upstream, call.model.clone(), call.size);
        self.with(|slot| slot.entry = Some(entry));
    }

    /// Whether the request was sent, or may have been.
    pub(crate) fn was_sent(&self) -> bool {
        self.with(|slot| slot.entry.is_some()).unwrap_or(false)
    }

    fn has_ended(&self) -> bool {
        self.with(|slot| slot.end.is_some()).unwrap_or(false)
    }

    /// The last byte of the request is handed to the client, unless the attempt has been abandoned:
    /// then it must stay here.
    pub(crate) fn hand_over(&self) -> bool {
        self.with(|slot| match slot.handover {
            Handover::Refused => false,
            _ => {
                slot.handover = Handover::Done;
                true
            }
        })
        .unwrap_or(false)
    }

    /// The request counts as sent from now on, whatever becomes of its body.
    pub(crate) fn count_as_sent(&self) {
        self.hand_over();
    }

    /// The response named the interaction that it is of. A server that names it has the request,
    /// whatever the client has read of its body.
    pub(crate) fn name_interaction(&self, id: &str) {
        self.count_as_sent();
        self.with(|slot| slot.interaction = Some(id.to_owned()));
        self.state.record(Step::Interaction { id: id.to_owned() });
    }

    /// The client asks for some of the body. `false` if the attempt was abandoned before its
    /// request was handed over: then it gets none of it.
    pub(crate) fn read(&self) -> bool {
        self.with(|slot| {
            let goes_on = slot.handover != Handover::Refused;
            slot.is_read |= goes_on;
            goes_on
        })
        .unwrap_or(true)
    }

    /// Whether the client has asked for any of the body, or counts as having all of it.
    pub(crate) fn is_read(&self) -> bool {
        self.with(|slot| slot.is_read || slot.handover == Handover::Done).unwrap_or(false)
    }

    /// The verdict of this attempt, abandoned now, without a response: never sent whole, or
    /// interrupted and maybe charged. A request that is not out stays in: its body ends with an
    /// error if a client asks for the rest of it later.
    pub(crate) fn cut_off(&self) -> Verdict {
        let sent = self.was_sent();
        let out = self.with(|slot| {
            if slot.handover == Handover::Pending {
                slot.handover = Handover::Refused;
            }
            slot.handover == Handover::Done
        });
        match (out, sent) {
            (Some(true), _) => Verdict::interrupted(),
            (_, true) => Verdict::never_whole(),
            (_, false) => Verdict::not_sent(),
        }
    }

    /// Writes down which model and tier the response says it was served by, where they are not
    /// those that were asked for.
    pub(crate) fn served_by(&self, model: Option<ModelId>, tier: Option<ServiceTier>) {
        if (&model, tier) != (&None, None)
            && let Some(entry) = self.with(|slot| slot.entry.clone()).flatten()
        {
            entry.served_by(model, tier);
        }
    }

    /// Writes down how the attempt ended. May be called again when the body's end says more than
    /// its head did.
    pub(crate) fn end(
        &self,
        status: Option<StatusCode>,
        verdict: &Verdict,
        cost: Cost,
        took: Duration,
    ) {
        let entry = self.with(|slot| {
            let (charge, quota) = (verdict.charge(), verdict.quota());
            slot.end = Some(SentAttempt { charge, quota, cost: Some(cost), took });
            slot.entry.clone()
        });
        if let Some(entry) = entry.flatten() {
            entry.end(status.map(|status| status.as_u16()), verdict, cost, took);
        }
    }

    /// Nothing more will be known of the attempt: settles its gates and tells those who read along.
    pub(crate) fn close(&self, end: &AttemptEnd<'_>) {
        let taken = self.with(|slot| (std::mem::take(&mut slot.gates), slot.entry.clone()));
        let Some((gates, entry)) = taken else { return };
        for gate in gates {
            gate.settle(end);
        }
        if let Some(entry) = entry {
            if let Some(images) = end.images.filter(|&images| images > 0) {
                entry.count_images(images);
            }
            if let Some(facts) = end.facts {
                entry.describe(facts);
            }
            entry.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call_options::CallOptions;

    fn state() -> CallState {
        CallState::new(CallOptions::new())
    }

    fn with_allowance(resends: u32) -> CallState {
        CallState::new(CallOptions::new().maybe_charged_resends(resends))
    }

    #[test]
    fn only_certainly_free_verdicts_grant_a_permit_without_an_allowance() {
        for verdict in [
            Verdict::not_sent(),
            Verdict::never_whole(),
            Verdict::interrupted(),
            Verdict::delivering(),
            Verdict::interrupted_delivery(),
        ] {
            let granted = state().permit_after(&verdict).is_some();
            assert_eq!(granted, verdict.charge().is_surely_free(), "{verdict:?}");
        }
    }

    #[test]
    fn an_allowance_never_buys_what_was_charged() {
        let state = with_allowance(5);
        assert!(state.permit_after(&Verdict::delivering()).is_none());
        assert_eq!(state.allowance_left(), 5);
    }

    #[test]
    fn no_allowance_sends_an_interaction_again_whose_id_is_known() {
        let state = with_allowance(5);
        let attempt = state.new_attempt();
        attempt.name_interaction("v1_a");
        assert_eq!(attempt.cut_off(), Verdict::interrupted(), "the server has the request");
        assert!(state.permit_after(&Verdict::interrupted()).is_none());
        assert_eq!((state.allowance_left(), state.has_interaction()), (0, true));
        // It has ended, and cost nothing: the next attempt is another interaction.
        assert!(state.permit_after(&Verdict::not_sent()).is_some());
        state.new_attempt();
        assert!(state.permit_after(&Verdict::interrupted()).is_some());
        assert_eq!(state.allowance_left(), 4);
    }

    #[test]
    fn what_is_surely_free_costs_no_allowance() {
        let state = with_allowance(1);
        for _ in 0..3 {
            assert!(state.permit_after(&Verdict::not_sent()).is_some());
        }
        assert_eq!(state.allowance_left(), 1);
        assert!(state.permit_after(&Verdict::interrupted()).is_some());
        assert!(state.permit_after(&Verdict::interrupted()).is_none());
    }

    // Without sharing, each target of a fallback got an allowance of its own from the retry inside
    // it.
    #[test]
    fn clones_share_one_allowance_even_if_it_is_set_later() {
        let state = state();
        let clone = state.clone();
        state.default_allowance(1);
        clone.default_allowance(7);
        assert!(state.permit_after(&Verdict::interrupted()).is_some());
        assert_eq!(clone.allowance_left(), 0);
    }

    // A default deadline that a fallback or a ladder set was one for each target or size.
    #[tokio::test(start_paused = true)]
    async fn a_call_has_one_deadline_and_it_counts_from_its_start() {
        let state = state();
        let started = state.started();
        tokio::time::advance(Duration::from_secs(3)).await;
        state.default_deadline(Duration::from_secs(10));
        state.default_deadline(Duration::from_secs(60));
        assert_eq!(state.deadline(), Some(started + Duration::from_secs(10)));
    }

    #[test]
    fn an_attempt_is_free_until_its_request_is_handed_over() {
        let state = state();
        assert_eq!(state.cut_off().charge(), Charge::None);
        let attempt = state.new_attempt();
        attempt.begin(&Call::unrecognised(), None);
        assert_eq!(attempt.cut_off(), Verdict::never_whole());
        assert!(!attempt.hand_over(), "what was called free must not go out any more");
        assert_eq!(state.cut_off().charge(), Charge::None);
        attempt.end(None, &Verdict::not_sent(), Cost::ZERO, Duration::ZERO);

        let attempt = state.new_attempt();
        attempt.begin(&Call::unrecognised(), None);
        attempt.count_as_sent();
        assert_eq!(state.cut_off().charge(), Charge::Maybe);
        assert_eq!(state.worst_charge(), Charge::Maybe);
        attempt.end(None, &Verdict::interrupted(), Cost::UNKNOWN, Duration::ZERO);

        let next = state.new_attempt();
        next.begin(&Call::unrecognised(), None);
        assert_eq!(state.charges(), (Charge::Maybe, Charge::None));
        assert_eq!(state.cut_off().charge(), Charge::None, "the next request is another one");
    }

    // A deadline that passed in the wait after a free attempt was called "maybe charged".
    #[test]
    fn a_call_that_is_abandoned_between_two_attempts_was_not_sent() {
        let state = state();
        let attempt = state.new_attempt();
        attempt.begin(&Call::unrecognised(), None);
        attempt.count_as_sent();
        attempt.end(None, &Verdict::not_sent(), Cost::ZERO, Duration::ZERO);
        assert_eq!(state.cut_off(), Verdict::not_sent());
    }

    // One trail given to two calls at once: the second's beginning made the first's request look as
    // though it had not gone out.
    #[test]
    fn calls_that_share_a_trail_never_speak_for_each_other() {
        let trail = Trail::new();
        let call = || CallState::new(CallOptions::new().trail(trail.clone()));
        let (first, second) = (call(), call());
        let sent = first.new_attempt();
        sent.begin(&Call::unrecognised(), None);
        sent.count_as_sent();
        second.new_attempt().begin(&Call::unrecognised(), None);
        assert_eq!(first.cut_off().charge(), Charge::Maybe);
        assert_eq!(second.cut_off().charge(), Charge::None);
    }
}
