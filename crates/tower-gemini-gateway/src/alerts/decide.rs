//! Decides which conditions are reported, and when again. Pure: time is handed in.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::config::AlertKind;

/// How urgent it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Severity {
    /// Paid work fails or is refused, or soon will be.
    Critical,
    /// There is time to act.
    Warning,
}

/// Something that a person should know while it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) kind: AlertKind,
    /// Of which model, quota, period …: what holds of two subjects is two conditions.
    pub(super) subject: String,
    pub(super) severity: Severity,
    pub(super) what: String,
    /// What to do, beside what is always to be done for its kind.
    pub(super) advice: String,
}

/// Whether a condition holds or has ended: the words of Prometheus' Alertmanager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum AlertState {
    Firing,
    Resolved,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) state: AlertState,
    pub(super) condition: Condition,
}

/// How many subjects of one kind are reported at once. Callers with keys of their own have a quota
/// each: thousands of them must not keep back that the store fails. What comes beyond is not
/// reported before others have ended.
const MAX_SUBJECTS: usize = 64;
/// As many notices as one look can lead to, and their ends.
pub(super) const MAX_NOTICES: usize = 2 * MAX_SUBJECTS * AlertKind::ALL.len();

/// What was reported.
#[derive(Debug, Default)]
pub(super) struct Ledger(HashMap<(AlertKind, String), Known>);

#[derive(Debug)]
struct Known {
    /// As it was last seen.
    condition: Condition,
    holds: bool,
    /// Whether it was reported since it last began to hold.
    is_open: bool,
    fired_at: Option<Instant>,
}

impl Ledger {
    /// Compares what holds now with what was reported.
    ///
    /// A condition fires when it begins to hold, and `repeat_every` after it last fired at the
    /// earliest: one that began again before that fires then, if it still holds. A kind with an end
    /// fires again while it lasts, and its end is reported where its beginning was.
    pub(super) fn step(
        &mut self,
        now: Instant,
        repeat_every: Duration,
        conditions: Vec<Condition>,
    ) -> Vec<Notice> {
        let mut notices = Vec::new();
        self.0.values_mut().for_each(|known| known.holds = false);
        let mut subjects: HashMap<AlertKind, usize> = HashMap::new();
        self.0.keys().for_each(|(kind, _)| *subjects.entry(*kind).or_default() += 1);
        for condition in conditions {
            let key = (condition.kind, condition.subject.clone());
            if !self.0.contains_key(&key) {
                let subjects = subjects.entry(condition.kind).or_default();
                if *subjects >= MAX_SUBJECTS {
                    continue;
                }
                *subjects += 1;
            }
            let known = self.0.entry(key).or_insert_with(|| Known {
                condition: condition.clone(),
                holds: true,
                is_open: false,
                fired_at: None,
            });
            (known.holds, known.condition) = (true, condition);
            let is_due = known.fired_at.is_none_or(|at| now.duration_since(at) >= repeat_every);
            if is_due && (!known.is_open || known.condition.kind.has_end()) {
                (known.is_open, known.fired_at) = (true, Some(now));
                notices.push(known.notice(AlertState::Firing));
            }
        }
        for known in self.0.values_mut().filter(|known| !known.holds && known.is_open) {
            known.is_open = false;
            if known.condition.kind.has_end() {
                notices.push(known.notice(AlertState::Resolved));
            }
        }
        let is_recent = |at: Instant| now.duration_since(at) < repeat_every;
        self.0.retain(|_, known| known.holds || known.fired_at.is_some_and(is_recent));
        notices
    }
}

impl Known {
    fn notice(&self, state: AlertState) -> Notice {
        Notice { state, condition: self.condition.clone() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn condition(kind: AlertKind, subject: &str) -> Condition {
        Condition {
            kind,
            subject: subject.to_owned(),
            severity: Severity::Warning,
            what: String::new(),
            advice: String::new(),
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    /// What is sent, by second, for a condition that holds in these seconds.
    fn sent(
        kind: AlertKind,
        holds: &[bool],
        each: u64,
        repeat: Duration,
    ) -> Vec<(u64, AlertState)> {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let mut sent = Vec::new();
        for (n, holds) in (0..).zip(holds) {
            let now = start + Duration::from_secs(n * each);
            let conditions = holds.then(|| condition(kind, "a")).into_iter().collect();
            let notices = ledger.step(now, repeat, conditions);
            sent.extend(notices.iter().map(|notice| (n * each, notice.state)));
        }
        sent
    }

    #[test]
    fn what_is_reported_and_when_again() {
        use AlertState::{Firing, Resolved};
        let (on, off) = (true, false);
        for (kind, holds, expected) in [
            // In steps of twenty minutes, with an hour between.
            (AlertKind::Quota, &[off, off][..], &[][..]),
            (AlertKind::Quota, &[on, on, on, on, on], &[(0, Firing)]),
            (AlertKind::Quota, &[on, off, on, off, off], &[(0, Firing)]),
            (AlertKind::Quota, &[on, off, off, on, on], &[(0, Firing), (3600, Firing)]),
            (AlertKind::Quota, &[on, off, on, on], &[(0, Firing), (3600, Firing)]),
            (AlertKind::Store, &[on, on, on, on, on], &[(0, Firing), (3600, Firing)]),
            (AlertKind::Store, &[on, off], &[(0, Firing), (1200, Resolved)]),
            // Its second beginning was not reported, so its end is not.
            (AlertKind::Store, &[on, off, on, off], &[(0, Firing), (1200, Resolved)]),
            (
                AlertKind::Store,
                &[on, off, on, on, off],
                &[(0, Firing), (1200, Resolved), (3600, Firing), (4800, Resolved)],
            ),
        ] {
            assert_eq!(sent(kind, holds, 1200, HOUR), expected, "{kind:?} {holds:?}");
        }
    }

    #[test]
    fn a_hundred_crossings_are_one_alert() {
        let crossings: Vec<_> = (0..200).map(|n| n % 2 == 0).collect();
        assert_eq!(sent(AlertKind::Quota, &crossings, 1, HOUR), [(0, AlertState::Firing)]);
    }

    #[test]
    fn subjects_are_apart_and_their_number_is_bounded() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let all = |from: usize| {
            let subjects = (from..from + 2 * MAX_SUBJECTS).map(|n| n.to_string());
            subjects.map(|subject| condition(AlertKind::Store, &subject)).collect::<Vec<_>>()
        };
        assert_eq!(ledger.step(now, HOUR, all(0)[..2].to_vec()).len(), 2);
        assert_eq!(ledger.step(now, HOUR, all(0)).len(), MAX_SUBJECTS - 2);
        let mut more = all(0);
        more.push(condition(AlertKind::NobodyAdmitted, ""));
        assert_eq!(ledger.step(now, HOUR, more).len(), 1, "another kind has room of its own");
        let ended = ledger.step(now + HOUR, HOUR, Vec::new());
        assert_eq!(ended.len(), MAX_SUBJECTS + 1, "all end");
        assert!(ledger.0.is_empty(), "nothing is remembered for longer than it is of use");
    }

    proptest! {
        #[test]
        fn beginnings_are_apart_ends_follow_them_and_nothing_that_lasts_is_kept_back(
            holds in prop::collection::vec(any::<bool>(), 0..200),
            each in 1_u64..600,
            repeat in 60_u64..7200,
            lasting in any::<bool>(),
        ) {
            let kind = if lasting { AlertKind::Outage } else { AlertKind::Quota };
            let sent = sent(kind, &holds, each, Duration::from_secs(repeat));
            let fired: Vec<_> =
                sent.iter().filter(|(_, state)| *state == AlertState::Firing).map(|(at, _)| *at).collect();
            for pair in fired.windows(2) {
                prop_assert!(pair[1] - pair[0] >= repeat, "{:?}", pair);
            }
            let mut is_open = false;
            for (_, state) in &sent {
                let is_end = *state == AlertState::Resolved;
                prop_assert!(!is_end || (is_open && lasting), "an end without a beginning");
                is_open = !is_end;
            }
            // Whatever has held for `repeat` was reported within that time or during it.
            let mut since = None;
            for (n, holds) in (0..).zip(&holds) {
                let now = n * each;
                since = holds.then(|| since.unwrap_or(now));
                if let Some(since) = since.filter(|since| now - since >= repeat) {
                    let reported = fired.iter().any(|at| *at + repeat > since && *at <= now);
                    prop_assert!(reported, "it has held since {since} and at {now} nobody knows");
                }
            }
            prop_assert!(sent.len() <= holds.len());
        }
    }
}
