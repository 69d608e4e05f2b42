//! Whether to send again, and after how long: pure.

use std::time::{Duration, Instant};

use crate::trail::{StopReason, WaitReason};
use tower_gemini_core::call::{Call, ImageSize};
use tower_gemini_core::verdict::{Charge, Outcome, Verdict};

use super::{Backoff, OutagePolicy, RetryBudget};

/// How one outcome is retried.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutcomePolicy {
    attempts: u32,
    backoff: Backoff,
}

impl OutcomePolicy {
    /// Up to `attempts` sends in all while this is the outcome (1 never retries it), waiting by
    /// `backoff` between them.
    #[must_use]
    pub fn new(attempts: u32, backoff: Backoff) -> Self {
        Self { attempts, backoff }
    }

    /// Never retries.
    #[must_use]
    pub fn never() -> Self {
        Self::new(1, Backoff::constant(Duration::ZERO))
    }
}

/// What is retried, how often, and for how long.
///
/// A policy is advice on top of what may be sent at all: without a permit to resend none of it
/// applies.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// By outcome, in the order of [`Outcome::ALL`]; `None` takes `usual`.
    outcomes: Vec<(Outcome, OutcomePolicy)>,
    usual: OutcomePolicy,
    attempts: u32,
    deadline: Option<Duration>,
    elapsed: Option<Duration>,
    longest_wait: Duration,
    hint_spread: f64,
    least_hint_spread: Duration,
    ignore_hints: bool,
    empty_answers: u32,
    maybe_charged: u32,
    shortest_attempt: [(ImageSize, Duration); 4],
    budget: Option<RetryBudget>,
    outages: Option<OutagePolicy>,
}

/// The deadline of [`RetryPolicy::recommended`]. A call without one waits no longer for the end of an
/// outage.
const USUAL_DEADLINE: Duration = Duration::from_secs(15 * 60);

/// Where a call stands when its last attempt has been judged.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// What is asked for.
    pub call: &'a Call,
    /// What the last attempt ended in.
    pub verdict: &'a Verdict,
    /// How many resends the caller still allows after attempts that may have been charged.
    pub allowance: u32,
    /// The runtime's time.
    pub now: Instant,
    /// When the first attempt started.
    pub started: Instant,
    /// The call's deadline.
    pub deadline: Option<Instant>,
    /// Whether the request's body was kept, so that it can be sent again.
    pub replayable: bool,
    /// A random number in `0.0..1.0`.
    pub random: f64,
}

/// What to do.
#[derive(Debug)]
#[must_use]
pub enum Decision {
    /// Give back what the last attempt gave. `None` where it was a success, of which there is
    /// nothing to say.
    Stop(Option<StopReason>),
    /// Wait, then send again.
    Resend {
        /// How long.
        wait: Duration,
        /// Why that long.
        why: WaitReason,
    },
}

/// What a policy remembers of one call.
#[derive(Debug, Clone, Default)]
pub struct RetryState {
    attempts: u32,
    by_outcome: Vec<(Outcome, u32)>,
    empty_answers: u32,
    last_wait: Option<Duration>,
}

impl RetryPolicy {
    /// The defaults listed in the [module](super).
    #[must_use]
    pub fn recommended() -> Self {
        let s = Duration::from_secs;
        let quick = OutcomePolicy::new(5, Backoff::exponential(s(1), 2.0, s(32)));
        let slow = OutcomePolicy::new(5, Backoff::exponential(s(10), 2.0, s(120)));
        let quota = OutcomePolicy::new(5, Backoff::exponential(s(5), 2.0, s(60)));
        Self::uniform(5, Backoff::exponential(s(1), 2.0, s(32)))
            .on(Outcome::RateLimitedMinute, quota)
            .on(Outcome::RateLimited, quota)
            .on(Outcome::SpendRateLimited, quota)
            .on(Outcome::Overloaded, slow)
            .on(Outcome::Deadline, slow)
            .on(Outcome::Internal, quick)
            .on(Outcome::Cancelled, quick)
            .longest_wait(s(120))
            .deadline(USUAL_DEADLINE)
            .outages(Some(OutagePolicy::recommended()))
    }

    /// One schedule for every outcome that may be retried at all.
    #[must_use]
    pub fn uniform(attempts: u32, backoff: Backoff) -> Self {
        Self {
            outcomes: Vec::new(),
            usual: OutcomePolicy::new(attempts, backoff),
            attempts,
            deadline: None,
            elapsed: None,
            longest_wait: backoff.cap(),
            hint_spread: 0.2,
            least_hint_spread: Duration::from_millis(250),
            ignore_hints: false,
            empty_answers: 1,
            maybe_charged: 0,
            // The shortest usual generation by size (operators' error guide for Nano Banana Pro,
            // 2026-02: 1K from 30 s, 2K from 50 s, 4K from 100 s) would refuse attempts that often
            // succeed; a tenth of it only refuses the hopeless.
            shortest_attempt: [
                (ImageSize::Px512, Duration::from_secs(3)),
                (ImageSize::K1, Duration::from_secs(3)),
                (ImageSize::K2, Duration::from_secs(5)),
                (ImageSize::K4, Duration::from_secs(10)),
            ],
            budget: None,
            outages: None,
        }
    }

    #[cfg(test)]
    pub(crate) fn max_attempts(&self) -> u32 {
        self.attempts
    }

    /// Never retries.
    #[must_use]
    pub fn never() -> Self {
        Self::uniform(1, Backoff::constant(Duration::ZERO))
    }

    /// How this outcome is retried.
    #[must_use]
    pub fn on(mut self, outcome: Outcome, policy: OutcomePolicy) -> Self {
        self.outcomes.retain(|(known, _)| *known != outcome);
        self.outcomes.push((outcome, policy));
        self
    }

    /// Retries only these outcomes, all by the usual schedule.
    #[must_use]
    pub fn only(mut self, outcomes: &[Outcome]) -> Self {
        for &outcome in Outcome::ALL {
            if !outcomes.contains(&outcome) {
                self = self.on(outcome, OutcomePolicy::never());
            }
        }
        self
    }

    /// Sends in all, whatever the outcomes.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// The time a call may take, all attempts and waits included, where the caller does not set
    /// one.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// The time after the first attempt's start in which a resend may start.
    #[must_use]
    pub fn elapsed(mut self, elapsed: Duration) -> Self {
        self.elapsed = Some(elapsed);
        self
    }

    /// The longest wait. A longer hint ends the call with the server's answer.
    #[must_use]
    pub fn longest_wait(mut self, wait: Duration) -> Self {
        self.longest_wait = wait;
        self
    }

    /// Takes no notice of the server's hints, as most clients do. For comparison.
    #[must_use]
    pub fn ignore_hints(mut self) -> Self {
        self.ignore_hints = true;
        self
    }

    /// Resends after empty answers that the API waives.
    #[must_use]
    pub fn empty_answers(mut self, resends: u32) -> Self {
        self.empty_answers = resends;
        self
    }

    /// The allowance of calls that bring none: resends after attempts that may have been charged.
    /// Default 0.
    #[must_use]
    pub fn maybe_charged_resends(mut self, resends: u32) -> Self {
        self.maybe_charged = resends;
        self
    }

    /// The time left below which an attempt of this size is not started.
    #[must_use]
    pub fn shortest_attempt(mut self, size: ImageSize, time: Duration) -> Self {
        for (known, shortest) in &mut self.shortest_attempt {
            if *known == size {
                *shortest = time;
            }
        }
        self
    }

    /// A budget that all calls share. Default: none, each call stands alone. In the simulated days
    /// of the example `weather` every budget costs images, and most of them in a batch: it is empty
    /// after the first failures of an outage, and every later call fails at once.
    #[must_use]
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// When calls wait for the end of a model's outage together: one of them is sent from time to
    /// time, and the others wait within their deadline. `None`: each call finds out by itself.
    /// Default: `None`, and [`OutagePolicy::recommended`] of [`recommended`](Self::recommended).
    #[must_use]
    pub fn outages(mut self, policy: Option<OutagePolicy>) -> Self {
        self.outages = policy;
        self
    }

    /// Returns what was set by [`outages`](Self::outages).
    #[must_use]
    pub fn outage_policy(&self) -> Option<OutagePolicy> {
        self.outages
    }

    /// How many more sends a call may make to an overloaded model.
    pub(super) fn attempts_left(&self, state: &RetryState) -> u32 {
        let overloads = state.by_outcome.iter().find(|(known, _)| *known == Outcome::Overloaded);
        let overloads = overloads.map_or(0, |(_, count)| *count);
        let of_outcome = self.for_outcome(Outcome::Overloaded).attempts.saturating_sub(overloads);
        self.attempts.saturating_sub(state.attempts).min(of_outcome)
    }

    /// When the last attempt may be sent: within the deadline, and within what the policy gives to
    /// retries.
    pub(super) fn latest_send(
        &self,
        call: &Call,
        deadline: Option<tokio::time::Instant>,
        started: tokio::time::Instant,
    ) -> tokio::time::Instant {
        let usual = started + USUAL_DEADLINE;
        let latest =
            deadline.unwrap_or(usual).checked_sub(self.least_time(call)).unwrap_or(started);
        match self.elapsed.and_then(|elapsed| started.checked_add(elapsed)) {
            Some(elapsed) => latest.min(elapsed),
            None => latest,
        }
    }

    pub(super) fn call_deadline(&self) -> Option<Duration> {
        self.deadline
    }

    pub(super) fn default_allowance(&self) -> u32 {
        self.maybe_charged
    }

    /// The longest wait this policy can give.
    #[must_use]
    pub fn cap(&self) -> Duration {
        self.longest_wait
    }

    /// The waits between sends while this is the outcome, without jitter and hints. Empty where it
    /// is not retried.
    #[must_use]
    pub fn schedule_of(&self, outcome: Outcome) -> Vec<Duration> {
        let policy = self.for_outcome(outcome);
        let resends = self.attempts.min(policy.attempts).saturating_sub(1);
        (0..resends).map(|n| policy.backoff.schedule(n).min(self.longest_wait)).collect()
    }

    fn for_outcome(&self, outcome: Outcome) -> &OutcomePolicy {
        let own = self.outcomes.iter().find(|(known, _)| *known == outcome);
        own.map_or(&self.usual, |(_, policy)| policy)
    }

    pub(super) fn least_time(&self, call: &Call) -> Duration {
        let size = call.size.or(call.wants_image.then_some(ImageSize::K1));
        let shortest = self.shortest_attempt.iter().find(|(known, _)| Some(*known) == size);
        shortest.map_or(Duration::ZERO, |(_, time)| *time)
    }

    /// With the budget that another policy has, where this one has none.
    pub(super) fn budget_of(mut self, other: &Self) -> Self {
        self.budget = self.budget.or_else(|| other.budget.clone());
        self
    }

    /// Decides what follows on an attempt.
    ///
    /// Tokens of the budget are taken only when everything else allows a resend, and only for a
    /// wait that the service did not name: the budget protects it from blind retries.
    pub fn next(&self, state: &mut RetryState, now: &Situation<'_>) -> Decision {
        let verdict = now.verdict;
        let outcome = verdict.outcome();
        state.attempts = state.attempts.saturating_add(1);
        let same = state.count(outcome);
        if outcome.is_success() {
            self.succeeded();
            return Decision::Stop(None);
        }
        let (charge, policy) = (verdict.charge(), self.for_outcome(outcome));
        let is_empty = charge == Charge::Waived;
        let reasons = [
            (charge == Charge::Charged, StopReason::Charged),
            (!verdict.is_retryable() || policy.attempts <= 1, StopReason::NotRetryable),
            (!now.replayable, StopReason::NotReplayable),
            (charge == Charge::Maybe && now.allowance == 0, StopReason::MaybeCharged),
            (state.attempts >= self.attempts, StopReason::AttemptsUsedUp),
            (same >= policy.attempts, StopReason::AttemptsUsedUp),
            (is_empty && state.empty_answers >= self.empty_answers, StopReason::AttemptsUsedUp),
        ];
        if let Some((_, why)) = reasons.into_iter().find(|(applies, _)| *applies) {
            return Decision::Stop(Some(why));
        }
        let Some((wait, why)) =
            self.wait(state, policy, same.saturating_sub(1), verdict, now.random)
        else {
            return Decision::Stop(Some(StopReason::WaitTooLong));
        };
        let resend_at = now.now.checked_add(wait);
        if let Some(elapsed) = self.elapsed {
            if resend_at.is_none_or(|at| at.saturating_duration_since(now.started) > elapsed) {
                return Decision::Stop(Some(StopReason::ElapsedUsedUp));
            }
        }
        if let Some(deadline) = now.deadline {
            let ends = resend_at.and_then(|at| at.checked_add(self.least_time(now.call)));
            if ends.is_none_or(|ends| ends >= deadline) {
                return Decision::Stop(Some(StopReason::DeadlineTooNear));
            }
        }
        if self.pays_for(verdict).is_some_and(|budget| !budget.withdraw()) {
            return Decision::Stop(Some(StopReason::BudgetSpent));
        }
        if is_empty {
            state.empty_answers = state.empty_answers.saturating_add(1);
        }
        state.last_wait = Some(wait);
        Decision::Resend { wait, why }
    }

    /// What a resend after this takes tokens of: none for a wait that the service named.
    pub(super) fn pays_for(&self, verdict: &Verdict) -> Option<&RetryBudget> {
        let is_blind = self.ignore_hints || verdict.wait().is_none();
        self.budget.as_ref().filter(|_| is_blind)
    }

    /// Puts back into the budget what a success earns.
    pub(super) fn succeeded(&self) {
        if let Some(budget) = &self.budget {
            budget.deposit();
        }
    }

    /// What is remembered of a call that failed, for its client's own resend: it is allowed one
    /// attempt at least.
    pub(super) fn continued(&self, mut state: RetryState) -> RetryState {
        state.attempts = state.attempts.min(self.attempts.saturating_sub(1));
        for (outcome, count) in &mut state.by_outcome {
            *count = (*count).min(self.for_outcome(*outcome).attempts.saturating_sub(1));
        }
        state
    }

    /// How long a resend would wait after the last attempt, however long that is.
    pub(super) fn wait_after(
        &self,
        state: &RetryState,
        verdict: &Verdict,
        random: f64,
    ) -> (Duration, WaitReason) {
        let outcome = verdict.outcome();
        let same = state.by_outcome.iter().find(|(known, _)| *known == outcome);
        let n = same.map_or(0, |(_, count)| count.saturating_sub(1));
        let wait = self.wait(state, self.for_outcome(outcome), n, verdict, random);
        let hint = verdict.wait().map(|hint| hint.not_before()).unwrap_or_default();
        wait.unwrap_or((hint, WaitReason::ServerHint))
    }

    /// How long the resend of a failed call waits of what is `left` of its wait; `None` where it
    /// must not be sent. Only a wait that the server named is worth a refusal.
    pub(super) fn wait_for_resend(
        &self,
        (left, why): (Duration, WaitReason),
        call: &Call,
        time: Option<Duration>,
    ) -> Option<Duration> {
        let most = time.map_or(Duration::MAX, |time| time.saturating_sub(self.least_time(call)));
        let most = most.min(self.longest_wait);
        (left <= most || why != WaitReason::ServerHint).then_some(left.min(most))
    }

    /// The wait, or `None` where the server asks for a longer one than the policy waits.
    fn wait(
        &self,
        state: &RetryState,
        policy: &OutcomePolicy,
        n: u32,
        verdict: &Verdict,
        random: f64,
    ) -> Option<(Duration, WaitReason)> {
        let own = |n| policy.backoff.wait(n, state.last_wait, random).min(self.longest_wait);
        let Some(hint) = verdict.wait().filter(|_| !self.ignore_hints) else {
            return Some((own(n), WaitReason::Backoff));
        };
        let floor = hint.not_before();
        if floor > self.longest_wait {
            return None;
        }
        // Upward only: below the hint nobody is let in. Near the longest wait there is less room
        // for it.
        let room = self.longest_wait.saturating_sub(floor);
        let spread = floor.mul_f64(self.hint_spread).max(self.least_hint_spread).min(room);
        let hinted = floor + spread.mul_f64(random.clamp(0.0, 1.0));
        // What RetryInfo's own definition asks of clients: the hint the first time, and a growing
        // backoff when it was not enough.
        match n.checked_sub(1).map(own).filter(|&own| own > hinted) {
            Some(own) => Some((own, WaitReason::Backoff)),
            None => Some((round_up(hinted).min(self.longest_wait), WaitReason::ServerHint)),
        }
    }
}

impl RetryState {
    /// Nothing sent yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Attempts judged so far.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    fn count(&mut self, outcome: Outcome) -> u32 {
        if let Some((_, count)) = self.by_outcome.iter_mut().find(|(known, _)| *known == outcome) {
            *count = count.saturating_add(1);
            return *count;
        }
        // A success is counted without being written down: the usual call allocates nothing here.
        if !outcome.is_success() {
            self.by_outcome.push((outcome, 1));
        }
        1
    }
}

/// Timers have a resolution of a millisecond and round up; a trail says what was waited.
fn round_up(wait: Duration) -> Duration {
    let part = wait.subsec_nanos() % 1_000_000;
    if part == 0 {
        wait
    } else {
        wait.saturating_add(Duration::from_nanos(u64::from(1_000_000 - part)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Jitter, presets};
    use super::*;
    use http::{HeaderMap, StatusCode};
    use proptest::prelude::*;
    use tower_gemini_core::classify::classify;

    fn call() -> Call {
        let mut call = Call::unrecognised();
        call.wants_image = true;
        call.model = Some(tower_gemini_core::call::ModelId::new("gemini-3.1-flash-image"));
        call.dialect = tower_gemini_core::call::Dialect::GeminiApi;
        call
    }

    fn judged(status: u16, body: &str) -> Verdict {
        classify(&call(), StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body.as_bytes())
    }

    fn hinted(seconds: f64) -> Verdict {
        judged(
            429,
            &format!(
                r#"{{"error":{{"code":429,"status":"RESOURCE_EXHAUSTED","message":"Quota exceeded.","details":[
                {{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{{"quotaId":"GenerateRequestsPerMinutePerProjectPerModel","quotaValue":"10"}}]}},
                {{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"{seconds}s"}}]}}}}"#
            ),
        )
    }

    fn verdicts() -> impl Strategy<Value = Verdict> {
        prop_oneof![
            Just(Verdict::not_sent()),
            Just(Verdict::interrupted()),
            Just(Verdict::interrupted_delivery()),
            Just(Verdict::delivering()),
            (0.1f64..400.0).prop_map(hinted),
            prop::sample::select(vec![
                (503, r#"{"error":{"code":503,"message":"The model is overloaded. Please try again later.","status":"UNAVAILABLE"}}"#),
                (500, r#"{"error":{"code":500,"message":"Internal error","status":"INTERNAL"}}"#),
                (504, r#"{"error":{"code":504,"message":"Deadline expired before operation could complete.","status":"DEADLINE_EXCEEDED"}}"#),
                (400, r#"{"error":{"code":400,"message":"API key not valid.","status":"INVALID_ARGUMENT"}}"#),
                (429, r#"{"error":{"code":429,"message":"Quota exceeded, limit: 0","status":"RESOURCE_EXHAUSTED"}}"#),
                (200, r#"{"candidates":[{"finishReason":"IMAGE_SAFETY"}],"usageMetadata":{"promptTokenCount":9,"totalTokenCount":9}}"#),
                (200, r#"{"candidates":[{"finishReason":"IMAGE_OTHER","finishMessage":"You will not be charged for this request."}]}"#),
                (200, r#"{"promptFeedback":{"blockReason":"SAFETY"}}"#),
            ])
            .prop_map(|(status, body)| judged(status, body)),
        ]
    }

    fn policies() -> impl Strategy<Value = RetryPolicy> {
        prop_oneof![
            // Made anew for each case: clones share one retry budget.
            Just(()).prop_map(|()| RetryPolicy::recommended()),
            prop::sample::select(presets::all()).prop_map(|(_, policy)| policy),
            (1u32..8, 1u64..20_000, 1.0f64..4.0, 1u64..300_000, 0u32..3).prop_map(
                |(attempts, initial, factor, cap, empty)| {
                    let ms = Duration::from_millis;
                    RetryPolicy::uniform(
                        attempts,
                        Backoff::exponential(ms(initial), factor, ms(cap)).jitter(Jitter::Full),
                    )
                    .empty_answers(empty)
                }
            ),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        #[allow(clippy::disallowed_methods, reason = "any instant will do: only differences are looked at")]
        fn no_policy_breaks_the_rules(
            policy in policies(),
            schedule in proptest::collection::vec((verdicts(), 0u64..200_000, 0.0f64..1.0), 1..20),
            allowed in 0u32..3,
            deadline in proptest::option::of(1u64..2_000_000),
            replayable in proptest::bool::weighted(0.9),
        ) {
            let call = call();
            let started = Instant::now();
            let deadline = deadline.map(|ms| started + Duration::from_millis(ms));
            let mut now = started;
            let mut state = RetryState::new();
            let mut bought = 0u32;
            for (verdict, took, random) in schedule {
                now += Duration::from_millis(took);
                let tokens = policy.budget.as_ref().map(RetryBudget::tokens);
                let situation = Situation { call: &call, verdict: &verdict, allowance: allowed - bought, now, started, deadline, replayable, random };
                match policy.next(&mut state, &situation) {
                    Decision::Stop(why) => {
                        prop_assert_eq!(why.is_none(), verdict.outcome().is_success());
                        if why.is_some() {
                            prop_assert_eq!(policy.budget.as_ref().map(RetryBudget::tokens), tokens, "a stop costs no tokens");
                        }
                        break;
                    }
                    Decision::Resend { wait, .. } => {
                        prop_assert!(replayable);
                        prop_assert!(verdict.charge() != Charge::Charged);
                        prop_assert!(verdict.is_retryable());
                        bought += u32::from(verdict.charge() == Charge::Maybe);
                        prop_assert!(bought <= allowed);
                        prop_assert!(wait <= policy.cap(), "{:?} > {:?}", wait, policy.cap());
                        if let (Some(hint), false) = (verdict.wait(), policy.ignore_hints) {
                            prop_assert!(wait >= hint.not_before());
                        }
                        if let Some(deadline) = deadline {
                            prop_assert!(now + wait < deadline);
                        }
                        now += wait;
                        prop_assert!(state.attempts() < policy.attempts);
                    }
                }
            }
        }

        #[test]
        #[allow(clippy::disallowed_methods, reason = "any instant will do: only differences are looked at")]
        fn jitter_on_a_hint_goes_upward_and_is_alive(seconds in 0.1f64..100.0, low in 0.0f64..0.5, high in 0.5f64..1.0) {
            let (call, verdict) = (call(), hinted(seconds));
            let now = Instant::now();
            let wait = |random| {
                let situation = Situation { call: &call, verdict: &verdict, allowance: 0, now, started: now, deadline: None, replayable: true, random };
                match RetryPolicy::recommended().next(&mut RetryState::new(), &situation) {
                    Decision::Resend { wait, .. } => wait,
                    Decision::Stop(why) => panic!("{why:?}"),
                }
            };
            let floor = verdict.wait().unwrap().not_before();
            prop_assert!(wait(low) >= floor);
            prop_assert!(wait(high) >= wait(low));
            prop_assert!(wait(0.999) > wait(0.0));
        }
    }

    #[test]
    fn a_hint_longer_than_the_policy_waits_stops_the_call() {
        let (call, verdict) = (call(), hinted(130.0));
        #[allow(clippy::disallowed_methods, reason = "any instant will do")]
        let now = Instant::now();
        let situation = Situation {
            call: &call,
            verdict: &verdict,
            allowance: 0,
            now,
            started: now,
            deadline: None,
            replayable: true,
            random: 0.5,
        };
        let decision = RetryPolicy::recommended().next(&mut RetryState::new(), &situation);
        assert!(matches!(decision, Decision::Stop(Some(StopReason::WaitTooLong))), "{decision:?}");
    }

    #[test]
    fn a_policy_gives_a_call_what_it_was_given() {
        let (policy, second) = (RetryPolicy::recommended(), Duration::from_secs(1));
        assert_eq!(policy.call_deadline(), Some(900 * second));
        assert_eq!(policy.outage_policy(), Some(OutagePolicy::recommended()));
        assert_eq!(policy.default_allowance(), 0);
        let policy = RetryPolicy::never();
        assert_eq!((policy.call_deadline(), policy.outage_policy()), (None, None));
        let policy = policy.deadline(second).maybe_charged_resends(3);
        assert_eq!((policy.call_deadline(), policy.default_allowance()), (Some(second), 3));
    }

    #[test]
    fn the_last_attempt_leaves_the_time_that_its_size_takes() {
        let second = Duration::from_secs(1);
        let started = tokio::time::Instant::now();
        let after = |policy: &RetryPolicy, call: &Call, deadline: Option<u32>| {
            policy.latest_send(call, deadline.map(|s| started + s * second), started) - started
        };
        let policy = RetryPolicy::recommended().shortest_attempt(ImageSize::K2, 7 * second);
        let (mut image, mut text) = (call(), call());
        text.wants_image = false;
        assert_eq!(after(&policy, &text, Some(60)), 60 * second);
        assert_eq!(after(&policy, &image, Some(60)), 57 * second, "1K where no size is named");
        assert_eq!(after(&policy, &image, None), 897 * second, "the usual deadline");
        for (size, shortest) in [(ImageSize::K1, 3), (ImageSize::K2, 7), (ImageSize::K4, 10)] {
            image.size = Some(size);
            assert_eq!(after(&policy, &image, Some(60)), (60 - shortest) * second, "{size:?}");
        }
        let policy = policy.elapsed(20 * second);
        assert_eq!(after(&policy, &image, Some(60)), 20 * second);
        assert_eq!(after(&policy, &image, Some(15)), 5 * second);
    }

    #[test]
    fn an_overloaded_model_gets_no_more_attempts_than_the_policy_has_in_all_or_for_it() {
        let overload = OutcomePolicy::new(3, Backoff::constant(Duration::ZERO));
        let policy = RetryPolicy::uniform(5, Backoff::constant(Duration::ZERO))
            .on(Outcome::Overloaded, overload);
        let after = |overloads: u32, others: u32| {
            policy.attempts_left(&RetryState {
                attempts: overloads + others,
                by_outcome: vec![(Outcome::Internal, others), (Outcome::Overloaded, overloads)],
                ..RetryState::new()
            })
        };
        assert_eq!(
            [after(0, 0), after(1, 0), after(2, 2), after(0, 4), after(4, 0)],
            [3, 2, 1, 1, 0]
        );
    }

    #[test]
    fn what_follows_depends_on_the_charge_before_anything_else() {
        let waived = r#"{"candidates":[{"finishReason":"IMAGE_OTHER","finishMessage":"You will not be charged for this request."}]}"#;
        let refused = r#"{"candidates":[{"finishReason":"IMAGE_SAFETY"}],"usageMetadata":{"promptTokenCount":9,"candidatesTokenCount":1120,"totalTokenCount":1129}}"#;
        for (verdict, allowance, expected) in [
            (Verdict::not_sent(), 0, None),
            (Verdict::interrupted(), 0, Some(StopReason::MaybeCharged)),
            (Verdict::interrupted(), 1, None),
            (judged(200, refused), 9, Some(StopReason::Charged)),
            (judged(200, waived), 0, None),
            (judged(400, "{}"), 9, Some(StopReason::NotRetryable)),
        ] {
            #[allow(clippy::disallowed_methods, reason = "any instant will do")]
            let now = Instant::now();
            let situation = Situation {
                call: &call(),
                verdict: &verdict,
                allowance,
                now,
                started: now,
                deadline: None,
                replayable: true,
                random: 0.5,
            };
            let got = match RetryPolicy::recommended().next(&mut RetryState::new(), &situation) {
                Decision::Resend { .. } => None,
                Decision::Stop(why) => why,
            };
            assert_eq!(got, expected, "{verdict:?}, allowed {allowance}");
        }
    }
}
