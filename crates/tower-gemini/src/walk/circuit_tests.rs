//! Circuits for every schedule, and the rules that open them.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use proptest::prelude::*;
use tokio::time::Instant;
use tower_gemini_core::call::{Call, ImageSize};
use tower_gemini_core::classify::classify;
use tower_gemini_core::verdict::Verdict;

use super::circuit_states::{CircuitState, Cooldowns, Keys};
use super::circuits::{Circuits, Guard};
use crate::trail::SkipReason;

const MINUTE: Duration = Duration::from_secs(60);

fn judged(status: u16, body: &str) -> Verdict {
    let status = StatusCode::from_u16(status).unwrap();
    let uri = http::Uri::from_static("/v1beta/models/gemini-3-pro-image:generateContent");
    let call = Call::parse(&http::Method::POST, &uri, &HeaderMap::new(), None);
    classify(&call, status, &HeaderMap::new(), body.as_bytes())
}

pub(super) fn overloaded() -> Verdict {
    judged(
        503,
        r#"{"error":{"code":503,"message":"The model is overloaded. Please try again later.","status":"UNAVAILABLE"}}"#,
    )
}

pub(super) fn bad_key() -> Verdict {
    judged(
        401,
        r#"{"error":{"code":401,"message":"Request had invalid authentication credentials.","status":"UNAUTHENTICATED"}}"#,
    )
}

pub(super) fn spent_day() -> Verdict {
    judged(
        429,
        r#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"Quota exceeded.","details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaId":"GenerateRequestsPerDayPerProjectPerModel","quotaValue":"100"}]},{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"2s"}]}}"#,
    )
}

fn minute_spent() -> Verdict {
    judged(
        429,
        r#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"Quota exceeded.","details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaId":"GenerateRequestsPerMinutePerProjectPerModel","quotaValue":"10"}]},{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"34s"}]}}"#,
    )
}

fn verdict(kind: u8) -> Verdict {
    match kind {
        0 => Verdict::delivering(),
        1 => overloaded(),
        2 => {
            judged(500, r#"{"error":{"code":500,"message":"Internal error","status":"INTERNAL"}}"#)
        }
        3 => judged(
            400,
            r#"{"error":{"code":400,"message":"Request contains an invalid argument.","status":"INVALID_ARGUMENT"}}"#,
        ),
        4 => Verdict::not_sent(),
        _ => Verdict::interrupted(),
    }
}

pub(super) fn at(size: ImageSize, payer: &str) -> Keys {
    Keys::new("gemini-3-pro-image", Some(size), "", payer)
}

fn keys() -> Keys {
    at(ImageSize::K4, "caller")
}

/// One call ends in this.
fn call(circuits: &Circuits, now: Instant, verdict: &Verdict, cooldowns: &Cooldowns) {
    let guard = circuits.admit(keys(), now, false).unwrap();
    guard.settle(now, verdict, 5 * 60 * MINUTE, cooldowns);
}

fn left(circuits: &Circuits, keys: &Keys, now: Instant) -> Option<Duration> {
    match circuits.check(keys, now, false) {
        Err(SkipReason::CircuitOpen { left }) => Some(left),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Each step: wait a while, then let a call in, perhaps early, or end one that is in, or drop it.
    #[test]
    fn open_half_open_and_closed_hold_for_every_schedule(
        steps in prop::collection::vec((0u64..4000, 0u8..4, 0u8..6, any::<prop::sample::Index>()), 1..80), after in 1u32..4,
    ) {
        let circuits = Circuits::default();
        let cooldowns = Cooldowns::recommended().after_failures(after);
        let mut now = Instant::now();
        let mut guards: Vec<Guard> = Vec::new();
        for (wait, what, kind, which) in steps {
            now += Duration::from_secs(wait);
            match what {
                0 => {
                    let is_open = circuits.snapshot().iter().any(|circuit| {
                        matches!(circuit.state, CircuitState::Open { until, .. } if until > now)
                    });
                    match circuits.admit(keys(), now, false) {
                        Ok(guard) => {
                            prop_assert!(!is_open, "an open circuit let a call in");
                            guards.push(guard);
                        }
                        Err(SkipReason::CircuitOpen { left }) => prop_assert!(is_open && left <= 24 * 60 * MINUTE),
                        Err(_) => prop_assert!(guards.iter().any(|guard| !guard.probed().is_empty())),
                    }
                }
                1 => guards.extend(circuits.admit(keys(), now, true)),
                _ if guards.is_empty() => {}
                2 => {
                    let guard = guards.swap_remove(which.index(guards.len()));
                    let probed = guard.probed().to_vec();
                    guard.settle(now, &verdict(kind), Duration::ZERO, &cooldowns);
                    if kind == 0 {
                        let is_closed = circuits.snapshot().iter().all(|circuit| !probed.contains(&circuit.name));
                        prop_assert!(is_closed, "a successful probe closes the circuit");
                    }
                }
                _ => drop(guards.swap_remove(which.index(guards.len()))),
            }
            let probing = guards.iter().flat_map(|guard| guard.probed()).collect::<Vec<_>>();
            let mut once = probing.clone();
            once.sort();
            once.dedup();
            prop_assert_eq!(once.len(), probing.len(), "one probe at a time");
        }
        guards.clear();
        let stuck = circuits.snapshot().iter().any(|circuit| matches!(circuit.state, CircuitState::HalfOpen { .. }));
        prop_assert!(!stuck, "a probe outlived its call");
    }
}

#[test]
fn an_overloaded_model_cools_down_for_minutes_and_longer_each_time() {
    let circuits = Circuits::default();
    let cooldowns = Cooldowns::recommended().after_failures(1);
    let mut now = Instant::now();
    for expected in [1, 2, 4, 5, 5] {
        call(&circuits, now, &overloaded(), &cooldowns);
        assert_eq!(left(&circuits, &keys(), now), Some(MINUTE * expected));
        now += MINUTE * expected;
    }
}

// A single free failure that came at once closed a target for minutes, and two of them a whole
// chain, although trying it costs nothing.
#[test]
fn one_free_failure_opens_no_circuit_and_a_row_of_them_does() {
    let cooldowns = Cooldowns::recommended();
    let not_found = judged(
        404,
        r#"{"error":{"code":404,"message":"models/m is not found for API version v1beta, or is not supported for generateContent.","status":"NOT_FOUND"}}"#,
    );
    for (verdict, row, opens_for) in [
        (overloaded(), 3, MINUTE),
        (verdict(2), 3, MINUTE),
        // The hint of 34 s, and a second that hints are rounded up by.
        (minute_spent(), 3, Duration::from_secs(35)),
        (not_found, 3, 60 * MINUTE),
        (bad_key(), 2, 5 * MINUTE),
        (spent_day(), 1, 5 * 60 * MINUTE),
    ] {
        let (now, circuits) = (Instant::now(), Circuits::default());
        for failures in 1..row {
            call(&circuits, now, &verdict, &cooldowns);
            let states: Vec<_> = circuits.snapshot().iter().map(|one| one.state).collect();
            assert_eq!(states, [CircuitState::Failing { failures }], "{verdict:?}");
        }
        call(&circuits, now, &verdict, &cooldowns);
        assert_eq!(left(&circuits, &keys(), now), Some(opens_for), "{verdict:?}");
    }
}

#[test]
fn a_success_between_two_failures_breaks_the_row() {
    let (now, circuits) = (Instant::now(), Circuits::default());
    for verdict in [bad_key(), Verdict::delivering(), bad_key()] {
        call(&circuits, now, &verdict, &Cooldowns::recommended());
    }
    assert_eq!(left(&circuits, &keys(), now), None);
}

// Those who wait for a circuit would wait for ever if every early probe moved its end.
#[test]
fn an_early_probe_that_fails_leaves_the_cooldown_as_it_was_and_a_success_ends_it() {
    let cooldowns = Cooldowns::recommended().after_failures(1).overload(30 * MINUTE, 120 * MINUTE);
    let (now, circuits) = (Instant::now(), Circuits::default());
    call(&circuits, now, &overloaded(), &cooldowns);
    let later = now + 10 * MINUTE;
    let guard = circuits.admit(keys(), later, true).unwrap();
    assert_eq!(circuits.check(&keys(), later, true), Err(SkipReason::Probed));
    drop(guard);
    assert_eq!(left(&circuits, &keys(), later), Some(20 * MINUTE), "a dropped one too");
    let guard = circuits.admit(keys(), later, true).unwrap();
    guard.settle(later, &Verdict::delivering(), Duration::ZERO, &cooldowns);
    assert!(circuits.snapshot().is_empty());
    call(&circuits, now, &overloaded(), &cooldowns);
    let guard = circuits.admit(keys(), later, true).unwrap();
    guard.settle(later, &overloaded(), Duration::ZERO, &cooldowns);
    assert_eq!(left(&circuits, &keys(), later), Some(20 * MINUTE));
}

// Every call that came probed anew: at a thousand calls a minute, a thousand requests of quota.
#[test]
fn early_probes_are_a_first_cooldown_apart() {
    let cooldowns = Cooldowns::recommended().after_failures(1);
    let (mut now, circuits) = (Instant::now(), Circuits::default());
    // The circuit is open for 1, 2 and 4 minutes.
    for _ in 0..3 {
        now += 4 * MINUTE;
        call(&circuits, now, &overloaded(), &cooldowns);
    }
    let left = MINUTE;
    for _ in 0..3 {
        assert_eq!(circuits.check(&keys(), now, true), Err(SkipReason::CircuitOpen { left }));
        now += left;
        let guard = circuits.admit(keys(), now, true).unwrap();
        guard.settle(now, &overloaded(), Duration::ZERO, &cooldowns);
    }
}

#[test]
fn one_size_is_left_alone_and_the_others_are_not() {
    let (now, circuits) = (Instant::now(), Circuits::default());
    call(&circuits, now, &overloaded(), &Cooldowns::recommended().after_failures(1));
    assert!(circuits.admit(keys(), now, false).is_err());
    assert!(circuits.admit(at(ImageSize::K1, "caller"), now, false).is_ok());
}

#[test]
fn a_spent_day_is_left_alone_until_midnight_for_that_payer_only() {
    let (now, circuits) = (Instant::now(), Circuits::default());
    call(&circuits, now, &spent_day(), &Cooldowns::recommended());
    let left = Duration::from_secs(5 * 3600);
    assert_eq!(circuits.check(&keys(), now, true), Err(SkipReason::CircuitOpen { left }));
    assert!(circuits.check(&at(ImageSize::K4, "another"), now, false).is_ok());
}

#[test]
fn circuits_are_named_by_what_they_protect() {
    let now = Instant::now();
    let keys = Keys::new("m", None, "gemini.example", "caller 1a2b");
    let name = |verdict: Verdict| {
        let circuits = Circuits::default();
        let guard = circuits.admit(keys.clone(), now, false).unwrap();
        guard.settle(now, &verdict, MINUTE, &Cooldowns::recommended());
        circuits.snapshot().remove(0).name
    };
    assert_eq!(name(overloaded()), "m at 1K on gemini.example");
    assert_eq!(name(verdict(2)), "m on gemini.example");
    assert_eq!(name(spent_day()), "quota of m of caller 1a2b on gemini.example");
    assert_eq!(name(bad_key()), "account of caller 1a2b on gemini.example");
}
