//! What all calls of a layer share: the counts, the last calls, and who looks at them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::trail::{Attempt, Step, Trail, TrailObserver};
use tokio::time::Instant;
use tower_gemini_core::catalog::Catalog;
use tower_gemini_core::cost::Cost;
use tower_gemini_core::verdict::Outcome;

use super::diagnosis::{Figures, HealthTargets, diagnose};
use super::events::{self, Around, CallEnd};
use super::names::ModelNames;
use super::outcome::{FailureKind, How, outcome_of};
use super::recent::{FinishedCall, Recent};
use super::report::{Hour, Report, Window};
use super::sentence::{Finished, charge_of, is_systemic, sentence};
use super::tally::{Counts, DAYS, Entry, FIVES, HOURS, Sent, Tally};
use super::{clip, measure};
use crate::calendar::PacificDay;
use crate::clock::{Clock, SystemClock};

/// What the calls of an [`ObserveLayer`](super::ObserveLayer) came to. O(1) to clone; clones share
/// it.
#[derive(Clone)]
pub struct Observatory(Arc<Shared>);

struct Shared {
    clock: Arc<dyn Clock>,
    names: ModelNames,
    targets: HealthTargets,
    since: SystemTime,
    /// Tells the processes apart whose logs are read together.
    prefix: u16,
    next: AtomicU64,
    in_flight: AtomicU64,
    seen: Mutex<Seen>,
}

struct Seen {
    tally: Tally,
    recent: Recent,
}

/// What a layer is told to look with.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) catalog: Arc<Catalog>,
    pub(super) targets: HealthTargets,
    pub(super) keep_calls: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            catalog: Arc::new(Catalog::builtin().clone()),
            targets: HealthTargets::recommended(),
            keep_calls: 50,
        }
    }
}

fn unix(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Observatory {
    pub(super) fn new(settings: &Settings) -> Self {
        Self(Arc::new(Shared {
            since: settings.clock.now(),
            clock: settings.clock.clone(),
            names: ModelNames::new(settings.catalog.clone()),
            targets: settings.targets.clone(),
            prefix: fastrand::u16(..),
            next: AtomicU64::new(1),
            in_flight: AtomicU64::new(0),
            seen: Mutex::new(Seen {
                tally: Tally::new(),
                recent: Recent::new(settings.keep_calls),
            }),
        }))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Every change is an addition that no panic leaves half-way.
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, entry: &Entry) {
        let now = unix(self.0.clock.now());
        self.seen().tally.add(now, entry);
    }

    /// Calls that have begun and not ended.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.0.in_flight.load(Ordering::Relaxed)
    }

    /// What has been seen until now, and what it means.
    #[must_use]
    pub fn report(&self) -> Report {
        let at = self.0.clock.now();
        let now = unix(at);
        let (names, targets) = (&self.0.names, &self.0.targets);
        let is_peak = |at: SystemTime| targets.peak_hours.as_ref().map(|hours| hours.is_peak(at));
        let seen = self.seen();
        let tally = &seen.tally;
        let window = |start: u64, counts: &Counts| Window::new(start, counts, names);
        let last_hour = window(now.saturating_sub(3600), &tally.fives.sum(now, FIVES));
        let latest = window(now.saturating_sub(900), &tally.fives.sum(now, 4));
        let last_day = window(
            tally.hours.start(tally.hours.number(now).saturating_sub(23)),
            &tally.hours.sum(now, 24),
        );
        let total = window(unix(self.0.since), &tally.total);
        let hours: Vec<_> = tally
            .hours
            .latest(now, HOURS)
            .filter_map(|(number, counts)| {
                let start = tally.hours.start(number);
                let is_peak = is_peak(UNIX_EPOCH + Duration::from_secs(start));
                Some(Hour { window: window(start, counts?), is_peak })
            })
            .collect();
        let days = tally
            .days
            .latest(now, DAYS)
            .filter_map(|(number, counts)| Some(window(tally.days.start(number), counts?)))
            .collect();
        let recent = seen.recent.newest_first();
        drop(seen);

        let wall_ms = i64::try_from(now.saturating_mul(1000)).unwrap_or(i64::MAX);
        let left_ms = PacificDay::holding(wall_ms).end_ms().saturating_sub(wall_ms);
        let until_midnight_pacific = Duration::from_millis(u64::try_from(left_ms).unwrap_or(0));
        let hour = diagnose(
            &Figures {
                when: "in the last hour",
                window: &last_hour,
                latest: Some(&latest),
                hours: &[],
                is_peak: is_peak(at),
                until_midnight_pacific,
            },
            targets,
        );
        let since = last_day.start_unix;
        let of_day = hours.partition_point(|hour| hour.window.start_unix < since);
        let day = diagnose(
            &Figures {
                when: "in the last 24 hours",
                window: &last_day,
                latest: None,
                hours: hours.get(of_day..).unwrap_or_default(),
                is_peak: None,
                until_midnight_pacific,
            },
            targets,
        );
        Report {
            at_unix: now,
            since_unix: unix(self.0.since),
            in_flight: self.in_flight(),
            hour,
            day,
            last_hour,
            last_day,
            total,
            hours,
            days,
            targets: targets.clone(),
            recent,
        }
    }

    /// A call begins: whoever is given the watch tells how it ends.
    pub(super) fn begin(&self, trail: Trail, is_generating: bool) -> CallWatch {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.0.in_flight.fetch_add(1, Ordering::Relaxed);
        measure::call_began();
        let observer = Arc::new(CallObserver {
            observatory: self.clone(),
            number,
            id: format!("{:04x}-{number:x}", self.0.prefix).into(),
            is_generating,
            so_far: Mutex::default(),
        });
        // A trail belongs to one call. One that a caller uses again holds the steps of the calls
        // before.
        let from = trail.steps().len();
        trail.observe(observer.clone());
        CallWatch {
            observer,
            trail,
            from,
            started: Instant::now(),
            status: None,
            when_dropped: How::Left,
            is_over: false,
        }
    }
}

impl fmt::Debug for Observatory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observatory").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

/// The short name of a call in log lines, in the response's extensions: `3fa1-2c`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CallId(pub(super) Arc<str>);

impl CallId {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads along with one call's trail: the one place where a decision becomes an event, a metric and
/// a count.
struct CallObserver {
    observatory: Observatory,
    number: u64,
    id: Arc<str>,
    is_generating: bool,
    so_far: Mutex<SoFar>,
}

#[derive(Default)]
struct SoFar {
    around: Around,
    /// A fallback has moved on, and the next send goes to another target.
    has_moved: bool,
    sent: Option<Sent>,
}

impl CallObserver {
    fn so_far(&self) -> MutexGuard<'_, SoFar> {
        self.so_far.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn around(&self) -> Around {
        self.so_far().around.clone()
    }

    fn attempt_ended(&self, attempt: &Attempt, sent: Sent) {
        let outcome = attempt.outcome.unwrap_or(Outcome::Interrupted);
        let names = &self.observatory.0.names;
        let model = names.place(attempt.model.as_ref());
        measure::attempt_ended(&names.name(model), outcome, attempt);
        let Attempt { quota, charge, cost, took, .. } = *attempt;
        self.observatory.count(&match self.is_generating {
            true => Entry::Attempt { model, outcome, quota, charge, cost, took, sent },
            false => Entry::OtherAttempt { quota, cost },
        });
    }
}

impl TrailObserver for CallObserver {
    fn on_send(&self, _: &Attempt) {
        let mut so_far = self.so_far();
        so_far.around.attempt += 1;
        let sent = match (so_far.around.attempt, std::mem::take(&mut so_far.has_moved)) {
            (1, _) => Sent::First,
            (_, true) => Sent::Elsewhere,
            (_, false) => Sent::Again,
        };
        so_far.sent = Some(sent);
        drop(so_far);
        measure::sent(sent);
    }

    fn on_step(&self, step: &Step) {
        let clean = clip::step(step);
        let (around, sent) = {
            let mut so_far = self.so_far();
            match &clean {
                Step::Attempt(attempt) => {
                    so_far.around.model.clone_from(&attempt.model);
                    so_far.around.size = attempt.size;
                    so_far.around.outcome = attempt.outcome;
                    so_far.around.charge = Some(attempt.charge);
                }
                Step::FellBack { .. } => so_far.has_moved = true,
                _ => {}
            }
            (so_far.around.clone(), so_far.sent.unwrap_or(Sent::First))
        };
        events::of_step(&self.id, &around, &clean);
        measure::step(&clean);
        match &clean {
            // By the model as it was named: what is clipped is in no catalogue anyway.
            Step::Attempt(attempt) => self.attempt_ended(attempt, sent),
            Step::Waited { delay, why } => {
                self.observatory.count(&Entry::Waited { why: *why, delay: *delay })
            }
            Step::Skipped { .. } => self.observatory.count(&Entry::Skipped),
            Step::CallerLeft => self.observatory.count(&Entry::CallerLeft),
            Step::Kept { .. } => self.observatory.count(&Entry::Kept),
            Step::NotKept { .. } => self.observatory.count(&Entry::NotKept),
            _ => {}
        }
        // What a call that goes on without its caller comes to. Of all others nothing is kept yet.
        let attempt = usize::try_from(around.attempt).unwrap_or(0);
        self.observatory.seen().recent.add(self.number, &clean, attempt);
    }
}

/// Watches one call to its end, and tells it once.
pub(super) struct CallWatch {
    observer: Arc<CallObserver>,
    trail: Trail,
    /// Steps that were in the trail before the call.
    from: usize,
    started: Instant,
    pub(super) status: Option<u16>,
    /// How the call has ended where nothing more is heard of it.
    pub(super) when_dropped: How,
    is_over: bool,
}

impl CallWatch {
    pub(super) fn id(&self) -> CallId {
        CallId(self.observer.id.clone())
    }

    pub(super) fn trail(&self) -> &Trail {
        &self.trail
    }

    /// The call has ended.
    pub(super) fn over(&mut self, how: How) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        let CallObserver { observatory, number, id, is_generating, .. } = &*self.observer;
        let around = self.observer.around();
        let took = self.started.elapsed();
        let ended = unix(observatory.0.clock.now());
        // Under the lock under which later steps are added: they find either nothing, or this.
        let mut seen = observatory.seen();
        let steps: Vec<_> = self.trail.steps().iter().skip(self.from).map(clip::step).collect();
        let outcome = outcome_of(&steps, how, self.status);
        let text = sentence(&Finished { steps: &steps, outcome, took });
        let (charge, is_systemic, images) =
            (charge_of(&steps), is_systemic(&steps), images_of(&steps));
        let finished =
            FinishedCall::new(id.to_string(), ended, outcome, text.clone(), took, steps.clone());
        let cost = finished.cost;
        seen.recent.push(*number, finished);
        seen.tally.add(
            ended,
            &match is_generating {
                true => Entry::Call {
                    outcome,
                    took,
                    images,
                    degraded: outcome.is_success() && is_degraded(&steps),
                    blamed: blamed(outcome.is_failure(), &steps),
                },
                false => Entry::OtherCall,
            },
        );
        drop(seen);
        observatory.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        // An image that is given again cost what it cost then, and the call that paid for it
        // delivered none.
        let paid_before: Cost = steps.iter().filter_map(paid_before).sum();
        measure::call_ended(*is_generating, outcome, took, images, cost + paid_before);
        events::of_call(&CallEnd {
            call: id,
            around: &around,
            outcome,
            charge,
            cost,
            took,
            is_systemic,
            sentence: &text,
        });
    }
}

impl Drop for CallWatch {
    fn drop(&mut self) {
        self.over(self.when_dropped);
    }
}

fn paid_before(step: &Step) -> Option<Cost> {
    match step {
        Step::Redeemed { cost, .. } => Some(*cost),
        _ => None,
    }
}

fn images_of(steps: &[Step]) -> u32 {
    let last = steps.iter().rev().find_map(|step| match step {
        Step::Attempt(attempt) => Some(attempt.images),
        _ => None,
    });
    last.flatten().unwrap_or(1)
}

fn is_degraded(steps: &[Step]) -> bool {
    // The last one holds: a chain may come back to what was asked for.
    let last = steps.iter().rev().find_map(|step| match step {
        Step::Degraded { given_up } => Some(given_up),
        _ => None,
    });
    last.is_some_and(|given_up| given_up.iter().any(|one| one.is_loss()))
}

fn blamed(is_failure: bool, steps: &[Step]) -> Vec<Outcome> {
    let failed = |step: &Step| match step {
        Step::Attempt(attempt) => {
            attempt.outcome.filter(|outcome| FailureKind::of(*outcome).is_some())
        }
        _ => None,
    };
    if is_failure { steps.iter().filter_map(failed).collect() } else { Vec::new() }
}
