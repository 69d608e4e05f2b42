use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const NOON: i64 = 1_773_000_000_000;

fn at(steady_ms: u64) -> Moment {
    Moment { steady_ms, wall_ms: NOON + i64::try_from(steady_ms).unwrap() }
}

#[derive(Debug, Clone)]
enum Do {
    Take {
        tokens: u64,
        images: u64,
        reserve: u64,
    },
    Settle {
        which: usize,
        tokens: Option<u64>,
    },
    GiveBack {
        which: usize,
    },
    Later {
        ms: u64,
    },
    /// Sets the wall clock, and lets the steady one try to go back too.
    SetWall {
        by_ms: i64,
        back_ms: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Do>> {
    let one = prop_oneof![
        6 => (0u64..400, 0u64..4, 0u64..5).prop_map(|(tokens, images, reserve)| Do::Take { tokens, images, reserve }),
        2 => (any::<usize>(), proptest::option::of(0u64..300)).prop_map(|(which, tokens)| Do::Settle { which, tokens }),
        1 => any::<usize>().prop_map(|which| Do::GiveBack { which }),
        4 => prop_oneof![0u64..400, 0u64..30_000, 50_000u64..70_000].prop_map(|ms| Do::Later { ms }),
        1 => (-200_000_000i64..200_000_000, 0u64..90_000).prop_map(|(by_ms, back_ms)| Do::SetWall { by_ms, back_ms }),
    ];
    proptest::collection::vec(one, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Against a list of every entry that still counts: any 60 seconds, any day, any weight, any
    /// clock, any refund.
    #[test]
    fn no_window_and_no_day_ever_exceeds_its_limit(
        steps in steps(), rpm in 0u64..12, tpm in 0u64..1500, ipm in 0u64..12, rpd in 0u64..40, which in 0u8..16, margin in 0u64..1500,
    ) {
        let mut limits = Limits::unlimited();
        for (d, limit) in [rpm, tpm, ipm, rpd].into_iter().enumerate() {
            if which & (1 << d) != 0 {
                limits = limits.with(QuotaDimension::ALL[d], Some(limit));
            }
        }
        let mut admission = Admission::new(limits, margin);
        let (mut steady, mut wall, mut excess) = (0u64, NOON, 0u64);
        // (when, amounts as they count now, label of the day, receipt while open)
        let mut log: Vec<(u64, [u64; 4], i32, Option<Receipt>)> = Vec::new();
        for step in steps {
            match step {
                Do::Later { ms } => {
                    steady += ms;
                    wall += i64::try_from(ms).unwrap();
                }
                Do::SetWall { by_ms, back_ms } => {
                    wall = (wall + by_ms).max(0);
                    // A steady clock that went back must grant nothing either.
                    let _ = admission.usage(Moment { steady_ms: steady.saturating_sub(back_ms), wall_ms: wall });
                }
                Do::Take { tokens, images, reserve } => {
                    let now = Moment { steady_ms: steady, wall_ms: wall };
                    let amounts = QuotaAmounts::for_call(tokens, images);
                    match admission.take(now, amounts, reserve) {
                        Ok(receipt) => log.push((steady, amounts.0, PacificDay::holding(wall).number(), Some(receipt))),
                        Err(denied) => prop_assert!(!denied.violations.is_empty()),
                    }
                    // What an answer used beyond its estimate may pass the limit, as Google lets
                    // it; reservations may not.
                    for d in 0..3 {
                        if let Some(limit) = limits.0[d] {
                            let window: u64 = log.iter().filter(|(t, ..)| t + WINDOW_MS > steady).map(|(_, a, ..)| a[d]).sum();
                            prop_assert!(window <= limit + if d == 1 { excess } else { 0 }, "dimension {} holds {} of {}", d, window, limit);
                        }
                    }
                    if let Some(limit) = rpd_of(&limits) {
                        let day = PacificDay::holding(wall).number();
                        let taken: u64 = log.iter().filter(|(_, _, label, _)| *label == day).map(|(_, a, ..)| a[3]).sum();
                        prop_assert!(taken <= limit, "day holds {} of {}", taken, limit);
                    }
                }
                Do::Settle { which, tokens } => {
                    if let Some(entry) = pick(&mut log, which) {
                        if let Some(receipt) = entry.3.take() {
                            admission.settle(receipt, tokens);
                            excess += tokens.unwrap_or(0).saturating_sub(entry.1[1]);
                            entry.1[1] = tokens.unwrap_or(entry.1[1]);
                        }
                    }
                }
                Do::GiveBack { which } => {
                    if let Some(entry) = pick(&mut log, which) {
                        if let Some(receipt) = entry.3.take() {
                            admission.give_back(receipt);
                            entry.1 = [0; 4];
                        }
                    }
                }
            }
            let totals = admission.totals();
            for d in 0..4 {
                prop_assert_eq!(totals.taken.0[d], totals.settled.0[d] + totals.given_back.0[d] + totals.outstanding.0[d]);
            }
            let open: u64 = log.iter().filter(|entry| entry.3.is_some()).map(|(_, a, ..)| a[0]).sum();
            prop_assert_eq!(totals.outstanding.0[0], open);
        }
    }

    /// The hint is true: one millisecond before it the call is refused, at it the call is let
    /// through.
    #[test]
    fn a_denied_call_fits_at_the_time_given_and_not_before(
        takes in proptest::collection::vec((0u64..5_000, 0u64..50, 0u64..3), 1..60), rpm in 1u64..10, tpm in 50u64..300, ipm in 3u64..10,
    ) {
        let mut admission = Admission::new(Limits::unlimited().rpm(rpm).tpm(tpm).ipm(ipm), 500);
        let mut steady = 0;
        for (ms, tokens, images) in takes {
            steady += ms;
            let amounts = QuotaAmounts::for_call(tokens, images);
            if let Err(denied) = admission.take(at(steady), amounts, 0) {
                let told = denied.at_ms.unwrap();
                prop_assert!(told > steady);
                prop_assert!(admission.clone().take(at(told - 1), amounts, 0).is_err());
                prop_assert!(admission.clone().take(at(told), amounts, 0).is_ok());
            }
        }
    }

    /// At full demand at least 95 % of every minute's allowance is used.
    #[test]
    fn full_demand_uses_the_allowance(rpm in 1u64..500, minutes in 10u64..30) {
        let mut admission = Admission::new(Limits::unlimited().rpm(rpm), 500);
        let (mut steady, mut sent) = (0, 0);
        while steady < minutes * WINDOW_MS {
            match admission.take(at(steady), QuotaAmounts::for_call(1, 1), 0) {
                Ok(receipt) => {
                    admission.settle(receipt, None);
                    sent += 1;
                }
                Err(denied) => steady = denied.at_ms.unwrap(),
            }
        }
        prop_assert!(sent * 100 >= rpm * minutes * 95, "{} of {}", sent, rpm * minutes);
    }

    /// What a file keeps is what was counted.
    #[test]
    fn a_restored_count_is_the_count(takes in proptest::collection::vec((0u64..9_000, 0u64..50), 0..60)) {
        let limits = Limits::unlimited().rpm(1_000).tpm(100_000).rpd(1_000);
        let mut admission = Admission::new(limits, 500);
        let mut steady = 0;
        for (ms, tokens) in takes {
            steady += ms;
            let _ = admission.take(at(steady), QuotaAmounts::for_call(tokens, 1), 0);
        }
        let mut restored = Admission::new(limits, 500);
        restored.begin_at(at(steady));
        restored.restore(&admission.snapshot());
        prop_assert_eq!(restored.taken(at(steady)), admission.taken(at(steady)));
        let later = at(steady + 30_000);
        prop_assert_eq!(restored.taken(later), admission.taken(later));
    }
}

fn rpd_of(limits: &Limits) -> Option<u64> {
    limits.get(QuotaDimension::RequestsPerDay)
}

#[allow(clippy::type_complexity, reason = "the log's own entry")]
fn pick(
    log: &mut [(u64, [u64; 4], i32, Option<Receipt>)],
    which: usize,
) -> Option<&mut (u64, [u64; 4], i32, Option<Receipt>)> {
    let open: VecDeque<usize> =
        log.iter().enumerate().filter(|(_, e)| e.3.is_some()).map(|(i, _)| i).collect();
    let index = *open.get(which.checked_rem(open.len())?)?;
    log.get_mut(index)
}

#[test]
fn a_clock_set_back_over_midnight_grants_the_day_once() {
    let limits = Limits::unlimited().rpd(3);
    let mut admission = Admission::new(limits, 0);
    let midnight = PacificDay::holding(NOON).end_ms();
    let one = QuotaAmounts::for_call(1, 1);
    let (before, after) = (midnight - 10_000, midnight + 10_000);
    for _ in 0..3 {
        admission.take(Moment { steady_ms: 0, wall_ms: before }, one, 0).unwrap();
    }
    assert!(admission.take(Moment { steady_ms: 0, wall_ms: before }, one, 0).is_err());
    admission.take(Moment { steady_ms: 1, wall_ms: after }, one, 0).unwrap();
    // Back before midnight: yesterday is as full as it was, and what was taken meanwhile counts
    // too.
    assert!(admission.take(Moment { steady_ms: 2, wall_ms: before }, one, 0).is_err());
    // Midnight once more: only what was left of the new day.
    for _ in 0..2 {
        admission.take(Moment { steady_ms: 3, wall_ms: after }, one, 0).unwrap();
    }
    assert!(admission.take(Moment { steady_ms: 4, wall_ms: after }, one, 0).is_err());
}

// What was taken while a clock was a year ahead counted on each day of that year.
#[test]
fn a_clock_that_jumps_ahead_and_back_does_not_lock_the_days_to_come() {
    let mut admission = Admission::new(Limits::unlimited().rpd(3), 0);
    let one = QuotaAmounts::for_call(1, 1);
    let day = 86_400_000;
    let at = |steady_ms, wall_ms| Moment { steady_ms, wall_ms };
    admission.take(at(0, NOON), one, 0).unwrap();
    for _ in 0..3 {
        admission.take(at(1, NOON + 365 * day), one, 0).unwrap();
    }
    assert!(admission.take(at(2, NOON), one, 0).is_err(), "they were taken today");
    for _ in 0..3 {
        admission.take(at(3, NOON + day), one, 0).unwrap();
    }
    assert!(admission.take(at(4, NOON + day), one, 0).is_err());
}

#[test]
fn a_call_sent_at_midnight_counts_in_both_days() {
    let mut admission = Admission::new(Limits::unlimited().rpd(2), 500);
    let midnight = PacificDay::holding(NOON).end_ms();
    let one = QuotaAmounts::for_call(1, 1);
    admission.take(Moment { steady_ms: 0, wall_ms: midnight - 100 }, one, 0).unwrap();
    // It may arrive after midnight, so the new day has one less to give.
    admission.take(Moment { steady_ms: 200, wall_ms: midnight + 100 }, one, 0).unwrap();
    assert!(admission.take(Moment { steady_ms: 201, wall_ms: midnight + 101 }, one, 0).is_err());
}

#[test]
fn a_closed_day_opens_at_midnight_pacific() {
    let mut admission = Admission::new(Limits::unlimited(), 0);
    admission.close_this_day(at(0));
    let denied = admission.take(at(5), QuotaAmounts::for_call(1, 1), 0).unwrap_err();
    let midnight = u64::try_from(PacificDay::holding(NOON).end_ms() - NOON).unwrap();
    assert_eq!((denied.at_ms, denied.rest), (Some(midnight), Some(RestReason::DayExhausted)));
    assert!(admission.is_day_closed(at(5)) && !admission.is_day_closed(at(midnight)));
    assert!(admission.take(at(midnight), QuotaAmounts::for_call(1, 1), 0).is_ok());
}

#[test]
fn retries_leave_the_last_of_the_day_to_first_attempts() {
    let mut admission = Admission::new(Limits::unlimited().rpd(10), 0);
    let one = QuotaAmounts::for_call(1, 1);
    for _ in 0..8 {
        admission.take(at(0), one, 2).unwrap();
    }
    let denied = admission.take(at(0), one, 2).unwrap_err();
    assert_eq!(denied.rest, Some(RestReason::KeptForFirstAttempts));
    assert!(admission.take(at(0), one, 0).is_ok());
}

#[test]
fn a_call_larger_than_its_limit_never_fits() {
    let mut admission = Admission::new(Limits::unlimited().tpm(100).rpm(5), 0);
    let denied = admission.take(at(0), QuotaAmounts::for_call(101, 1), 0).unwrap_err();
    assert_eq!(denied.at_ms, None);
}

#[test]
fn an_answer_that_used_less_than_estimated_gives_the_rest_back() {
    let mut admission = Admission::new(Limits::unlimited().tpm(1_000), 0);
    let receipt = admission.take(at(0), QuotaAmounts::for_call(900, 1), 0).unwrap();
    admission.settle(receipt, Some(300));
    assert_eq!(admission.taken(at(0)).get(QuotaDimension::TokensPerMinute), 300);
    assert!(admission.take(at(0), QuotaAmounts::for_call(700, 1), 0).is_ok());
}

#[test]
fn an_answer_changes_what_was_taken_for_it_and_nothing_else_however_late_it_is() {
    let tokens = QuotaAmounts::for_call;
    let slots = (SLOT_MS..4 * WINDOW_MS).step_by(usize::try_from(SLOT_MS).unwrap());
    for later in slots.map(at) {
        let mut admission = Admission::new(Limits::unlimited(), 0);
        let receipt = admission.take(at(0), tokens(900, 1), 0).unwrap();
        assert_eq!(receipt.amounts(), tokens(900, 1));
        admission.take(later, tokens(100, 1), 0).unwrap();
        let others = admission.taken(later).get(QuotaDimension::TokensPerMinute) % 900;
        admission.settle(receipt, Some(300));
        let is_in_window = later.steady_ms <= WINDOW_MS;
        let expected = others + if is_in_window { 300 } else { 0 };
        let taken = admission.taken(later).get(QuotaDimension::TokensPerMinute);
        assert_eq!(taken, expected, "after {} ms", later.steady_ms);
    }
}

#[test]
fn every_reason_to_rest_has_a_name_of_its_own() {
    use RestReason::*;
    let all = [DayExhausted, MinuteExhausted, Capacity, Account, KeptForFirstAttempts, Store];
    let names: std::collections::HashSet<&str> = all.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(names.len(), all.len());
}
