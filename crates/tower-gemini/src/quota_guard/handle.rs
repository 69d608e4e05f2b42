//! One key's count with everything a call does with it: take, wait, settle, give back, learn.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;
use tower_gemini_core::verdict::Verdict;

use super::admission::{Admission, Denied, Moment, RestReason, Totals};
use super::gate::{Ask, Taken, Try, Turn};
use super::hooks::KeyHooks;
use super::learn::{Learned, Lesson, lessons};
use super::limits::{QuotaAmounts, QuotaDimension};
use super::state::{KeyState, QuotaState};
use super::usage::{QuotaUsage, QuotaWait};
use crate::reservation::turn::wait_for_turn;

/// Reserves from one (upstream, project, model) of a layer's count, for callers that do not send
/// through its services.
///
/// ```
/// use tower_gemini::quota_guard::{Limits, QuotaGuardLayer, QuotaKey};
///
/// let layer = QuotaGuardLayer::new(Limits::unlimited().rpm(1));
/// let handle = layer.handle(&QuotaKey::new("default", "gemini-3-pro-image")).unwrap();
/// let reservation = handle.try_reserve(120, 1).unwrap();
/// assert!(handle.try_reserve(120, 1).is_err());
/// // It was not sent after all.
/// reservation.give_back();
/// assert!(handle.try_reserve(120, 1).is_ok());
/// ```
#[derive(Clone)]
pub struct QuotaHandle {
    pub(crate) state: Arc<QuotaState>,
    pub(crate) key: Arc<KeyState>,
}

impl QuotaHandle {
    /// Reserves one request with so many tokens and images, or says why not. With a shared store
    /// this works only while a lease lasts; [`reserve`](Self::reserve) asks for the next.
    ///
    /// # Errors
    ///
    /// [`Denied`], with when it would fit.
    pub fn try_reserve(&self, tokens: u64, images: u64) -> Result<QuotaReservation, Denied> {
        let ask = self.ask(tokens, images, false);
        self.try_take(ask).map_err(|denied| {
            denied.unwrap_or_else(|| self.key.gate.refusal(self.state.now(), ask))
        })
    }

    /// Reserves one request after waiting in the FIFO queue, at the latest at `deadline`.
    ///
    /// # Errors
    ///
    /// [`Denied`] at once where its turn would come too late, or at the deadline.
    pub async fn reserve(
        &self,
        tokens: u64,
        images: u64,
        deadline: Option<Instant>,
    ) -> Result<QuotaReservation, Denied> {
        let ask = self.ask(tokens, images, false);
        if let Ok(reservation) = self.try_take(ask) {
            return Ok(reservation);
        }
        let (queued, _) = self.join(ask, deadline)?;
        queued.served().await
    }

    /// Returns how much is used.
    #[must_use]
    pub fn usage(&self) -> QuotaUsage {
        let now = self.state.now();
        let (entries, day_closed) =
            self.key.gate.look(|admission, _| (admission.usage(now), admission.is_day_closed(now)));
        let waiting = self.key.gate.waiting();
        QuotaUsage { key: self.key.key.clone(), entries, waiting, day_closed }
    }

    /// Returns how long from now until what was denied would fit; `None` if never.
    #[must_use]
    pub fn wait(&self, denied: &Denied) -> Option<Duration> {
        let now = self.state.now().steady_ms;
        denied.at_ms.map(|at| Duration::from_millis(at.saturating_sub(now).max(1)))
    }

    /// Returns everything that ever happened.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.key.gate.look(|admission, _| admission.totals())
    }

    /// What a call asks for. A retry leaves a share of the day to first attempts.
    pub(crate) fn ask(&self, tokens: u64, images: u64, is_retry: bool) -> Ask {
        let percent = u128::from(self.state.settings.first_attempt_percent);
        let share = |limit| u64::try_from(u128::from(limit) * percent / 100).unwrap_or(limit);
        let limits = is_retry.then(|| self.key.gate.look(|admission, _| *admission.limits()));
        let per_day = limits.and_then(|limits| limits.get(QuotaDimension::RequestsPerDay));
        let day_reserve = per_day.map_or(0, share);
        Ask { amounts: QuotaAmounts::for_call(tokens, images), day_reserve }
    }

    /// Takes at once. `Err(None)` where it must join the queue.
    pub(crate) fn try_take(&self, ask: Ask) -> Result<QuotaReservation, Option<Denied>> {
        match self.key.gate.try_take(self.state.now(), ask) {
            Try::Taken(taken) => Ok(self.reservation(taken)),
            Try::Denied(denied) => Err(Some(denied)),
            Try::Queue => Err(None),
        }
    }

    /// Takes whatever the counts say.
    pub(crate) fn force(&self, ask: Ask) -> QuotaReservation {
        self.try_take(ask).unwrap_or_else(|denied| {
            if denied.is_some() {
                self.state.count(|counts| counts.shadow_refused += 1);
                tracing::info!(model = %self.key.model(), "shadow mode: this call would have been refused");
            }
            self.reservation(self.key.gate.force(self.state.now(), ask))
        })
    }

    fn reservation(&self, taken: Taken) -> QuotaReservation {
        if taken.alert {
            self.send_alerts();
        }
        QuotaReservation { handle: self.clone(), taken, sent: false, is_over: false }
    }

    /// Joins the queue. Returns the entry, to be awaited, and the expected wait.
    pub(crate) fn join(
        &self,
        ask: Ask,
        latest: Option<Instant>,
    ) -> Result<(QueuedCall, Duration), Denied> {
        let now = self.state.now();
        let latest_ms = latest.map(|at| self.state.steady_ms(at));
        let ahead = self.key.gate.waiting();
        let (ticket, at_ms) = self.key.gate.join(now, ask, latest_ms)?;
        let queued = QueuedCall { handle: self.clone(), ticket, ask, latest_ms };
        let expected = Duration::from_millis(at_ms.saturating_sub(now.steady_ms));
        if !expected.is_zero() || ahead > 0 {
            self.state.count(|counts| counts.waited += 1);
            if let Some(on_wait) = &self.state.settings.on_wait {
                on_wait(&QuotaWait { key: self.key.key.clone(), expected, ahead });
            }
        }
        Ok((queued, expected))
    }

    fn send_alerts(&self) {
        for alert in self.key.gate.look(|_, hooks| hooks.alerts.drain(&self.key.key)) {
            tracing::warn!(
                model = %self.key.model(),
                dimension = alert.dimension.as_str(),
                threshold_percent = alert.threshold_percent,
                taken = alert.taken,
                limit = alert.limit,
                "quota runs low"
            );
            if let Some(on_alert) = &self.state.settings.on_alert {
                on_alert(&alert);
            }
            self.state.alerts.send_replace(Some(alert));
        }
    }

    /// Forgets what refusals taught about this key. `true` if it was closed or rested.
    pub(crate) fn reopen(&self) -> bool {
        self.key.gate.change(|admission, hooks| {
            hooks.learned = Learned::new(self.state.settings.rules.limits_for(&self.key.key));
            let was_closed = admission.reopen(self.state.now());
            admission.set_limits(hooks.learned.current());
            if let Some(pool) = &mut hooks.pool {
                pool.reopen();
            }
            was_closed
        })
    }

    /// Corrects limits and rests by what a verdict says.
    pub(crate) fn learn(&self, verdict: &Verdict, status: Option<u16>) {
        if !self.state.settings.learns {
            return;
        }
        let now = self.state.now();
        let lessons = self.key.gate.look(|admission, _| {
            lessons(verdict, status, admission.taken(now), admission.limits())
        });
        // Where nothing is limited, only what the service closed is remembered.
        let is_limited = !self.state.settings.rules.limits_for(&self.key.key).is_unlimited();
        for lesson in lessons {
            if !is_limited && lesson != Lesson::CloseDay {
                continue;
            }
            tracing::info!(model = %self.key.model(), outcome = verdict.outcome().as_str(), ?lesson, "learned from a refusal");
            if let Lesson::Rest { whole_project: true, .. } = lesson {
                let account = |key: &Arc<KeyState>| {
                    let (other, own) = (&key.key, &self.key.key);
                    other.upstream == own.upstream && other.project == own.project
                };
                for key in self.state.all_keys().into_iter().filter(account) {
                    key.gate.change(|admission, hooks| apply(lesson, now, admission, hooks));
                }
            } else {
                self.key.gate.change(|admission, hooks| apply(lesson, now, admission, hooks));
            }
        }
    }
}

fn apply(lesson: Lesson, now: Moment, admission: &mut Admission, hooks: &mut KeyHooks) {
    match lesson {
        Lesson::Rest { ms, reason, .. } => {
            admission.rest_until(now.steady_ms.saturating_add(ms), reason);
        }
        Lesson::CloseDay => {
            admission.close_this_day(now);
            if let Some(pool) = &mut hooks.pool {
                pool.close_day();
            }
        }
        Lesson::Stated { dimension, limit } => {
            hooks.learned.stated(now, dimension, limit);
            admission.set_limits(hooks.learned.current());
        }
        Lesson::Lower { dimension } => {
            hooks.learned.lower(now, dimension);
            admission.set_limits(hooks.learned.current());
        }
    }
}

impl fmt::Debug for QuotaHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuotaHandle").field("key", &self.key.key).finish_non_exhaustive()
    }
}

/// A call in the FIFO wait queue. Dropped, it leaves the queue.
pub(crate) struct QueuedCall {
    handle: QuotaHandle,
    ticket: u64,
    ask: Ask,
    latest_ms: Option<u64>,
}

impl QueuedCall {
    /// Waits for its turn.
    pub(crate) async fn served(self) -> Result<QuotaReservation, Denied> {
        wait_for_turn(|waker| self.turn(waker)).await
    }

    /// Whether its turn has come or cannot come in time; else when to look again at the latest.
    fn turn(&self, waker: &Waker) -> ControlFlow<Result<QuotaReservation, Denied>, Instant> {
        let QuotaHandle { state, key } = &self.handle;
        let now = state.now();
        let latest = self.latest_ms.unwrap_or(u64::MAX);
        let is_late = now.steady_ms >= latest;
        let until = match key.gate.turn(now, self.ticket, waker) {
            Turn::Taken(taken) => return ControlFlow::Break(Ok(self.handle.reservation(taken))),
            Turn::Later(denied) => match denied.at_ms.filter(|&at| !is_late && at <= latest) {
                Some(at) => at,
                None => return ControlFlow::Break(Err(denied)),
            },
            turn if is_late => {
                let mut denied = key.gate.refusal(now, self.ask);
                if matches!(turn, Turn::Fetch) {
                    denied.rest = Some(RestReason::Store);
                }
                return ControlFlow::Break(Err(denied));
            }
            Turn::Fetch => {
                self.handle.fetch(self.ask);
                latest
            }
            Turn::Queued => latest,
        };
        ControlFlow::Continue(state.instant_at(until))
    }
}

impl Drop for QueuedCall {
    fn drop(&mut self) {
        // After its turn it is no longer in the queue.
        self.handle.key.gate.leave(self.ticket);
    }
}

/// Quota that was reserved for one call.
///
/// Dropped before [`sent`](Self::sent) it is given back; dropped after, it counts as used: the
/// server may have counted it.
#[must_use = "dropping a reservation gives it back"]
pub struct QuotaReservation {
    handle: QuotaHandle,
    taken: Taken,
    sent: bool,
    is_over: bool,
}

impl QuotaReservation {
    /// Records that the request goes out now.
    pub fn sent(&mut self) {
        self.sent = true;
    }

    /// Records that it was counted, with as many input tokens as the response reports, where it
    /// does.
    pub fn settle(mut self, tokens: Option<u64>) {
        self.close(true, tokens);
    }

    /// Records that it was surely not counted.
    pub fn give_back(mut self) {
        self.close(false, None);
    }

    pub(crate) fn handle(&self) -> &QuotaHandle {
        &self.handle
    }

    /// Settles or gives back, once.
    pub(crate) fn close(&mut self, was_counted: bool, tokens: Option<u64>) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        let QuotaHandle { state, key } = &self.handle;
        if was_counted {
            return key.gate.settle(&self.taken, tokens);
        }
        // Only a lease needs the time, and reading two clocks costs as much as giving back.
        let now = match state.settings.store {
            Some(_) => state.now(),
            None => Moment { steady_ms: 0, wall_ms: 0 },
        };
        key.gate.give_back(now, &self.taken);
    }
}

impl Drop for QuotaReservation {
    fn drop(&mut self) {
        self.close(self.sent, None);
    }
}

impl fmt::Debug for QuotaReservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuotaReservation")
            .field("key", &self.handle.key.key)
            .field("amounts", &self.taken.receipt.amounts())
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}
