//! What becomes of an item after a call: pure.

use std::time::Duration;

use tower_gemini::verdict::{Charge, Outcome, Verdict};

/// What a call for an item came to that brought no image.
#[derive(Debug, Clone)]
pub(crate) struct Ended<'a> {
    /// The most that was or may have been charged.
    pub(crate) charge: Charge,
    /// Whether anything was sent.
    pub(crate) sent: bool,
    /// What the last response or error means; `None` where nothing was ever learnt.
    pub(crate) verdict: Option<&'a Verdict>,
}

/// What the item and its job have left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left {
    /// Calls that failed for free before this one.
    pub(crate) failures: u32,
    /// The most of them, this one included.
    pub(crate) max_failures: u32,
    /// How often the item may still be resent although it may have been charged.
    pub(crate) unknown_resends: u32,
    /// The wait after the first failure.
    pub(crate) backoff: Duration,
    /// How long until its deadline.
    pub(crate) time: Option<Duration>,
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// It waits this long, and is then called again.
    Again { after: Duration, counts: bool },
    /// It may have been charged, and the job bought a resend with a new key.
    Resend,
    /// Nothing more is sent: it was charged, or cannot succeed, or has no time or tries left.
    Failed(&'static str),
    /// It may have been charged. Nothing more is sent.
    Unknown,
}

/// The longest wait between two calls: where a day is spent, the hint is longer. Ours: half the
/// longest outage of nine in ten (2 h, requirements of `day` in examples/weather).
const LONGEST_BACKOFF: Duration = Duration::from_secs(3600);

/// Decides. `random` is in 0..1, for jitter of at most a tenth.
pub(crate) fn next(ended: &Ended<'_>, left: &Left, random: f64) -> Next {
    match ended.charge {
        Charge::Charged => return Next::Failed("charged without an image"),
        Charge::Maybe if left.unknown_resends > 0 => return Next::Resend,
        Charge::Maybe => return Next::Unknown,
        Charge::None | Charge::Waived => {}
    }
    let Some(verdict) = ended.verdict else { return Next::Unknown };
    let hint = verdict.wait();
    // Refused by ourselves for quota, budget or a resting model: nothing was tried.
    let untried = !ended.sent && (hint.is_some() || verdict.outcome() == Outcome::NotSent);
    let waits = verdict.outcome().is_transient() || verdict.outcome() == Outcome::RateLimitedDay;
    if !waits && !untried {
        return Next::Failed("cannot succeed as it is");
    }
    if !untried && left.failures + 1 >= left.max_failures {
        return Next::Failed("failed as often as the job allows");
    }
    let backoff = left.backoff.saturating_mul(1 << left.failures.min(16)).min(LONGEST_BACKOFF);
    let wait = hint.map_or(backoff, |hint| hint.not_before()).max(SHORTEST);
    let after = wait + wait.mul_f64(0.1 * random.clamp(0.0, 1.0));
    match left.time {
        Some(time) if after >= time => Next::Failed("no time left before its deadline"),
        _ => Next::Again { after, counts: !untried },
    }
}

/// No item comes back sooner. Ours: a worker that is told "now" must not turn in a circle.
const SHORTEST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEFT: Left = Left {
        failures: 0,
        max_failures: 5,
        unknown_resends: 0,
        backoff: Duration::from_secs(60),
        time: None,
    };

    // Article 000's queue: 60, 120, 240 and 480 s, and the fifth failure is the last.
    #[test]
    fn failures_that_are_free_wait_twice_as_long_each_time_and_end() {
        let verdict = Verdict::not_sent();
        let overloaded = tower_gemini::classify::classify_without_status;
        let call = tower_gemini::call::Call::unrecognised();
        let body = br#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
        let overloaded = overloaded(&call, &http::HeaderMap::new(), body);
        let ended = |verdict, sent| Ended { charge: Charge::None, sent, verdict: Some(verdict) };
        let waits: Vec<_> = (0..5)
            .map(|failures| {
                match next(&ended(&overloaded, true), &Left { failures, ..LEFT }, 0.0) {
                    Next::Again { after, counts: true } => after.as_secs(),
                    Next::Failed(_) => 0,
                    other => panic!("{other:?}"),
                }
            })
            .collect();
        assert_eq!(waits, [60, 120, 240, 480, 0]);
        // What was never sent does not count.
        let late = Left { failures: 4, ..LEFT };
        assert!(matches!(
            next(&ended(&verdict, false), &late, 0.0),
            Next::Again { counts: false, .. }
        ));
    }

    fn verdicts() -> impl Strategy<Value = Option<Verdict>> {
        prop_oneof![
            Just(None),
            Just(Some(Verdict::not_sent())),
            Just(Some(Verdict::interrupted())),
            Just(Some(Verdict::delivering())),
            Just(Some(Verdict::never_whole())),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        // Invariant 1, over the life of an item.
        #[test]
        fn what_was_charged_is_never_sent_again_and_what_may_have_been_only_if_bought(
            verdict in verdicts(),
            charge in prop_oneof![
                Just(Charge::None), Just(Charge::Waived), Just(Charge::Maybe), Just(Charge::Charged)
            ],
            sent: bool,
            failures in 0_u32..9,
            unknown_resends in 0_u32..3,
            time in proptest::option::of(0_u64..100_000),
            backoff in 0_u64..120,
            random in 0.0_f64..1.0,
        ) {
            let time = time.map(Duration::from_secs);
            let backoff = Duration::from_secs(backoff);
            let left = Left { failures, unknown_resends, time, backoff, ..LEFT };
            let ended = Ended { charge, sent, verdict: verdict.as_ref() };
            let next = next(&ended, &left, random);
            match next {
                Next::Again { after, .. } => {
                    prop_assert!(charge.is_surely_free());
                    prop_assert!(after >= SHORTEST && time.is_none_or(|time| after < time));
                }
                Next::Resend => {
                    prop_assert!(charge == Charge::Maybe && unknown_resends > 0);
                }
                Next::Unknown => prop_assert!(charge != Charge::Charged),
                Next::Failed(_) => prop_assert!(charge != Charge::Maybe),
            }
        }
    }
}
