//! What quota and spending share: each attempt reserves before it is sent, waits in a FIFO queue
//! where that helps, and its reservation ends once.
//!
//! A reservation ends with the attempt: settled by what the response's end says, given back where
//! nothing was sent, and settled as the worst case where an attempt is dropped after it may have
//! been sent. How far the request got is the attempt's own evidence, not a guess from polling: a
//! client may send as soon as it is called.

use std::future::Future;

use http::{Request, Response};
use tower_gemini_core::cost::ServedBy;
use tower_gemini_core::scan::Usage;
use tower_gemini_core::verdict::{Outcome, Verdict};

use crate::body::{AttemptBody, BodyEnd, BodyGuard, Ended, JudgedBody};
use crate::call_state::Attempt;
use crate::error::Error;
use crate::stage::AttemptService;

pub(crate) mod queue;
pub(crate) mod turn;

/// How an attempt ended, as far as its reservation is concerned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttemptOutcome<'a> {
    /// Whether any of the request may have left: without that nothing was used.
    pub(crate) was_sent: bool,
    pub(crate) verdict: &'a Verdict,
    pub(crate) usage: Option<&'a Usage>,
    /// Which model and tier the response says it was served by.
    pub(crate) served: &'a ServedBy,
    /// Whether an image was delivered in full.
    pub(crate) is_delivered: bool,
}

impl<'a> AttemptOutcome<'a> {
    /// Of an attempt without a response's body.
    fn without_body(verdict: &'a Verdict) -> Self {
        static UNSAID: ServedBy = ServedBy::new();
        Self { was_sent: true, verdict, usage: None, served: &UNSAID, is_delivered: false }
    }
}

/// What one attempt has reserved.
pub(crate) trait Reservation: Send + Sync + 'static {
    /// Takes note of the verdict of a response's head, or of an error.
    fn responded(&mut self, _verdict: &Verdict, _status: Option<u16>) {}

    /// Settles it, or gives it back. Called once.
    fn end(self, outcome: &AttemptOutcome<'_>);
}

/// Holds a reservation to the end of its attempt.
struct Held<R: Reservation> {
    /// `None` once it has ended.
    reservation: Option<R>,
    attempt: Attempt,
    /// The attempt was polled: whatever a client does only when it is polled may have begun.
    is_polled: bool,
}

impl<R: Reservation> Held<R> {
    fn end(&mut self, end: AttemptOutcome<'_>) {
        let Some(reservation) = self.reservation.take() else { return };
        reservation.end(&AttemptOutcome { was_sent: self.attempt.was_sent(), ..end });
    }
}

impl<R: Reservation> Drop for Held<R> {
    fn drop(&mut self) {
        let Some(reservation) = self.reservation.take() else { return };
        // From here on a request that is not out stays in, so that what is given back is not used.
        let mut verdict = self.attempt.cut_off();
        let mut was_sent = self.attempt.was_sent();
        if !self.is_polled && !self.attempt.is_read() {
            (verdict, was_sent) = (Verdict::not_sent(), false);
        }
        reservation.end(&AttemptOutcome { was_sent, ..AttemptOutcome::without_body(&verdict) });
    }
}

impl<R: Reservation> BodyGuard for Held<R> {
    fn on_end(&mut self, end: &BodyEnd<'_>) {
        let BodyEnd { how, verdict, usage, served, .. } = *end;
        let is_delivered = how == Ended::Complete && verdict.outcome() == Outcome::Image;
        self.end(AttemptOutcome { was_sent: true, verdict, usage, served, is_delivered });
    }
}

type Answer<S> = Result<Response<JudgedBody<<S as AttemptService>::Upstream>>, Error>;

/// Sends an attempt that has its reservation, and holds that to the end of the response's body.
pub(crate) fn send<S: AttemptService, R: Reservation>(
    inner: &mut S,
    request: Request<AttemptBody>,
    reservation: R,
) -> impl Future<Output = Answer<S>> + Send + use<S, R> {
    let attempt = request.body().attempt().clone();
    // Held before the call: a client may send in it, and it may panic.
    let mut held = Held { reservation: Some(reservation), attempt, is_polled: false };
    let attempt = inner.call(request);
    async move {
        held.is_polled = true;
        let mut answer = attempt.await;
        let (verdict, status) = match &answer {
            Ok(response) => (response.body().verdict(), Some(response.status().as_u16())),
            Err(error) => (error.verdict(), None),
        };
        if let Some(reservation) = &mut held.reservation {
            reservation.responded(verdict, status);
        }
        match &mut answer {
            // It lives to the end of the body.
            Ok(response) => response.body_mut().guard(Box::new(held)),
            Err(error) => held.end(AttemptOutcome::without_body(error.verdict())),
        }
        answer
    }
}
