//! What quota and spending share: each attempt reserves before it is sent, waits in a FIFO queue
//! where that helps, and its reservation ends once.
//!
//! A reservation ends with the attempt: settled by what the response's end says, given back where
//! nothing was sent, and settled as the worst case where an attempt is dropped after it may have
//! been sent. How far the request got is the attempt's own evidence, not a guess from polling: a
//! client may send as soon as it is called.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use pin_project::pin_project;
use tower_gemini_core::scan::Usage;
use tower_gemini_core::verdict::{Outcome, Verdict};

use crate::body::{AttemptBody, BodyEnd, BodyGuard, Ended, JudgedBody};
use crate::call_state::Attempt;
use crate::error::Error;
use crate::stage::{AttemptService, UpstreamBody};

pub(crate) mod queue;

/// How an attempt ended, as far as its reservation is concerned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttemptOutcome<'a> {
    /// Whether any of the request may have left: without that nothing was used.
    pub(crate) was_sent: bool,
    pub(crate) verdict: &'a Verdict,
    pub(crate) usage: Option<&'a Usage>,
    /// Whether an image was delivered in full.
    pub(crate) is_delivered: bool,
}

/// What one attempt has reserved.
pub(crate) trait Reservation: Send + Sync + 'static {
    /// Takes note of the verdict of a response's head, or of an error.
    fn responded(&mut self, _verdict: &Verdict, _status: Option<u16>) {}

    /// Settles it, or gives it back. Called once.
    fn end(self, outcome: &AttemptOutcome<'_>);
}

/// A call that asks for a reservation and was not given one at once.
pub(crate) trait Asker: Send + 'static {
    type Reservation: Reservation;
    type Denied: Send + 'static;

    /// Takes note of a reservation that came after a wait.
    fn served(&self, _reservation: &Self::Reservation, _request: &mut Request<AttemptBody>) {}

    /// The refusal, as a response of our own.
    fn refuse<B: UpstreamBody>(self, denied: Self::Denied) -> Response<JudgedBody<B>>;
}

type Waiting<A> = Pin<
    Box<
        dyn Future<Output = Result<<A as Asker>::Reservation, <A as Asker>::Denied>>
            + Send
            + 'static,
    >,
>;

/// Holds a reservation to the end of its attempt.
struct Held<R: Reservation> {
    /// `None` once it has ended.
    reservation: Option<R>,
    attempt: Attempt,
    /// The attempt was polled: whatever a client does only when it is polled may have begun.
    is_polled: bool,
}

impl<R: Reservation> Held<R> {
    fn end(&mut self, verdict: &Verdict, usage: Option<&Usage>, is_delivered: bool) {
        let Some(reservation) = self.reservation.take() else { return };
        let was_sent = self.attempt.was_sent();
        reservation.end(&AttemptOutcome { was_sent, verdict, usage, is_delivered });
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
        let (verdict, usage) = (&verdict, None);
        reservation.end(&AttemptOutcome { was_sent, verdict, usage, is_delivered: false });
    }
}

impl<R: Reservation> BodyGuard for Held<R> {
    fn on_end(&mut self, end: &BodyEnd<'_>) {
        let is_delivered = end.how == Ended::Complete && end.verdict.outcome() == Outcome::Image;
        self.end(end.verdict, end.usage, is_delivered);
    }
}

/// The future of a layer that reserves: waits, sends, and holds the reservation to the end of the
/// response's body.
#[pin_project]
pub(crate) struct ReservingFuture<S: AttemptService, A: Asker> {
    #[pin]
    step: Step<S, S::Future, A>,
}

#[pin_project(project = StepProjection)]
enum Step<S, F, A: Asker> {
    /// Boxed: the usual call does not wait.
    Waiting {
        waiting: Waiting<A>,
        then: Option<Box<(S, Request<AttemptBody>, A)>>,
    },
    Sent {
        #[pin]
        future: F,
        held: Option<Held<A::Reservation>>,
    },
    Refused(Option<Box<(A, A::Denied)>>),
}

impl<S: AttemptService, A: Asker> ReservingFuture<S, A> {
    /// Sends without a reservation: nothing limits the attempt.
    pub(crate) fn unreserved(inner: &mut S, request: Request<AttemptBody>) -> Self {
        Self { step: Step::Sent { future: inner.call(request), held: None } }
    }

    /// Sends an attempt that has its reservation.
    pub(crate) fn send(
        inner: &mut S,
        request: Request<AttemptBody>,
        reservation: A::Reservation,
    ) -> Self {
        Self { step: Step::send(inner, request, reservation) }
    }

    /// Waits for the reservation, then sends by `inner`, which must be the instance that was made
    /// ready.
    pub(crate) fn wait(
        inner: S,
        request: Request<AttemptBody>,
        asker: A,
        waiting: impl Future<Output = Result<A::Reservation, A::Denied>> + Send + 'static,
    ) -> Self {
        let then = Some(Box::new((inner, request, asker)));
        Self { step: Step::Waiting { waiting: Box::pin(waiting), then } }
    }

    /// Sends nothing.
    pub(crate) fn refuse(asker: A, denied: A::Denied) -> Self {
        Self { step: Step::Refused(Some(Box::new((asker, denied)))) }
    }

    pub(crate) fn step_name(&self) -> &'static str {
        match &self.step {
            Step::Waiting { .. } => "waiting",
            Step::Sent { .. } => "sent",
            Step::Refused(_) => "refused",
        }
    }
}

impl<S: AttemptService, A: Asker> Step<S, S::Future, A> {
    fn send(inner: &mut S, request: Request<AttemptBody>, reservation: A::Reservation) -> Self {
        let attempt = request.body().attempt().clone();
        // Held before the call: a client may send in it, and it may panic.
        let held = Held { reservation: Some(reservation), attempt, is_polled: false };
        Self::Sent { future: inner.call(request), held: Some(held) }
    }
}

impl<S: AttemptService, A: Asker> Future for ReservingFuture<S, A> {
    type Output = Result<Response<JudgedBody<S::Upstream>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.step.as_mut().project() {
                StepProjection::Waiting { waiting, then } => {
                    let waited = ready!(waiting.as_mut().poll(cx));
                    // Polled after it was ready: a fault of the caller that must not bring the
                    // process down.
                    let Some(then) = then.take() else { return Poll::Pending };
                    let (mut inner, mut request, asker) = *then;
                    let next = match waited {
                        Ok(reservation) => {
                            asker.served(&reservation, &mut request);
                            Step::send(&mut inner, request, reservation)
                        }
                        Err(denied) => Step::Refused(Some(Box::new((asker, denied)))),
                    };
                    this.step.set(next);
                }
                StepProjection::Sent { future, held } => {
                    if let Some(held) = held {
                        held.is_polled = true;
                    }
                    let result = ready!(future.poll(cx));
                    return Poll::Ready(match held.take() {
                        None => result,
                        Some(held) => hold(held, result),
                    });
                }
                StepProjection::Refused(refused) => match refused.take() {
                    Some(refused) => {
                        let (asker, denied) = *refused;
                        return Poll::Ready(Ok(asker.refuse(denied)));
                    }
                    // As above.
                    None => return Poll::Pending,
                },
            }
        }
    }
}

/// Names the future of a layer that reserves.
macro_rules! response_future {
    ($layer:literal, $asker:ty) => {
        #[doc = concat!("The future of [`", $layer, "`].")]
        #[pin_project::pin_project]
        pub struct ResponseFuture<S: AttemptService>(#[pin] ReservingFuture<S, $asker>);

        impl<S: AttemptService> std::fmt::Debug for ResponseFuture<S> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let step = self.0.step_name();
                f.debug_struct("ResponseFuture").field("step", &step).finish_non_exhaustive()
            }
        }

        impl<S: AttemptService> Future for ResponseFuture<S> {
            type Output = Result<Response<JudgedBody<S::Upstream>>, Error>;

            fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
                self.project().0.poll(cx)
            }
        }
    };
}
pub(crate) use response_future;

/// Ends the reservation of an error; that of a response lives to the end of its body.
fn hold<R: Reservation, B: UpstreamBody>(
    mut held: Held<R>,
    mut result: Result<Response<JudgedBody<B>>, Error>,
) -> Result<Response<JudgedBody<B>>, Error> {
    let (verdict, status) = match &result {
        Ok(response) => (response.body().verdict(), Some(response.status().as_u16())),
        Err(error) => (error.verdict(), None),
    };
    if let Some(reservation) = &mut held.reservation {
        reservation.responded(verdict, status);
    }
    match &mut result {
        Ok(response) => response.body_mut().guard(Box::new(held)),
        Err(error) => held.end(error.verdict(), None, false),
    }
    result
}
