//! Limits what a caller may take: bytes and silence of a request's body, and requests in flight.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// Why reading a request's body stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyFault {
    /// Longer than this.
    TooLarge { limit: usize },
    /// No byte for this long.
    TooSlow { limit: Duration },
    /// Less than [`LEAST_RATE`] on average, or longer than [`LONGEST`] in all.
    Trickles,
}

/// Bytes a second that a body must arrive at on average, once the time that it may be silent for
/// has passed: a client that sends a byte now and then would hold a slot forever.
const LEAST_RATE: u64 = 1024;
/// As long as Google takes for a whole call at most (600 s).
const LONGEST: Duration = Duration::from_secs(600);

impl fmt::Display for BodyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { limit } => {
                write!(f, "The request's body is longer than the {limit} bytes of server.max_body.")
            }
            Self::TooSlow { limit } => write!(
                f,
                "No byte of the request's body arrived for {:.0} s (server.body_idle_timeout).",
                limit.as_secs_f64()
            ),
            Self::Trickles => write!(
                f,
                "The request's body arrived at less than {LEAST_RATE} bytes a second, or not whole \
                 within {} s.",
                LONGEST.as_secs()
            ),
        }
    }
}

impl std::error::Error for BodyFault {}

/// A request's body within its limits.
pub(crate) struct BoundedBody {
    body: Body,
    so_far: usize,
    max_bytes: usize,
    idle_timeout: Duration,
    /// How long it was waited for in all. While nobody polls it, the reader takes the time.
    waited: Duration,
    /// The start of the present wait.
    since: Option<Instant>,
    silence: Pin<Box<Sleep>>,
}

impl BoundedBody {
    pub(crate) fn new(body: Body, max_bytes: usize, idle_timeout: Duration) -> Self {
        let (silence, waited) = (Box::pin(sleep(idle_timeout)), Duration::ZERO);
        Self { body, so_far: 0, max_bytes, idle_timeout, waited, since: None, silence }
    }

    /// Checks a frame that has arrived.
    fn admit(&mut self, frame: &Frame<Bytes>) -> Result<(), BodyFault> {
        self.so_far = self.so_far.saturating_add(frame.data_ref().map_or(0, Bytes::len));
        if self.so_far > self.max_bytes {
            return Err(BodyFault::TooLarge { limit: self.max_bytes });
        }
        self.waited += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let expected = self.waited.as_secs().saturating_mul(LEAST_RATE);
        let trickles = self.waited > self.idle_timeout && (self.so_far as u64) < expected;
        if trickles || self.waited > LONGEST { Err(BodyFault::Trickles) } else { Ok(()) }
    }

    /// Waits for the next frame, which has not arrived.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<BodyFault> {
        if self.since.is_none() {
            let now = Instant::now();
            self.since = Some(now);
            self.silence.as_mut().reset(now + self.idle_timeout);
        }
        let limit = self.idle_timeout;
        self.silence.as_mut().poll(cx).map(|()| BodyFault::TooSlow { limit })
    }
}

impl HttpBody for BoundedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let fault = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => match self.admit(&frame) {
                Ok(()) => return Poll::Ready(Some(Ok(frame))),
                Err(fault) => fault,
            },
            Poll::Pending => ready!(self.poll_silence(cx)),
            ended => return ended,
        };
        Poll::Ready(Some(Err(axum::Error::new(fault))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Slots for requests in flight. Each is held until the last byte of its response, not only until
/// the head.
#[derive(Debug, Clone)]
pub(crate) struct RequestSlots {
    free: Arc<Semaphore>,
    all: usize,
}

impl RequestSlots {
    pub(crate) fn new(all: usize) -> Self {
        // More than tokio's own limit is no limit.
        let all = all.min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(all)), all }
    }

    /// A slot, where one is free.
    pub(crate) fn take(&self) -> Option<OwnedSemaphorePermit> {
        self.free.clone().try_acquire_owned().ok()
    }

    pub(crate) fn all(&self) -> usize {
        self.all
    }

    /// How many are taken.
    pub(crate) fn taken(&self) -> usize {
        self.all - self.free.available_permits()
    }
}

/// Holds something until the body of a response has been sent or is dropped.
pub(crate) fn hold(response: Response<Body>, held: impl Send + 'static) -> Response<Body> {
    // The closure owns it, and is dropped with the body.
    let keep = move |error| {
        let _ = &held;
        error
    };
    response.map(|body| Body::new(body.map_err(keep)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::StreamBody;

    #[tokio::test(start_paused = true)]
    async fn a_silent_body_is_abandoned_and_a_slow_one_is_not() {
        let chunks = |pause: u64| {
            Body::new(StreamBody::new(futures::stream::unfold(0, move |n| async move {
                tokio::time::sleep(Duration::from_secs(pause)).await;
                (n < 5)
                    .then(|| (Ok::<_, axum::Error>(Frame::data(Bytes::from_static(b"x"))), n + 1))
            })))
        };
        let slow = BoundedBody::new(chunks(2), 100, Duration::from_secs(10))
            .collect()
            .await
            .unwrap()
            .to_bytes();
        assert_eq!(slow, "xxxxx");
        let error =
            BoundedBody::new(chunks(9), 100, Duration::from_secs(10)).collect().await.unwrap_err();
        assert!(error.to_string().contains("less than 1024 bytes a second"), "{error}");
        let error =
            BoundedBody::new(chunks(11), 100, Duration::from_secs(10)).collect().await.unwrap_err();
        assert!(error.to_string().contains("arrived for 10 s"), "{error}");
        let error =
            BoundedBody::new(chunks(0), 4, Duration::from_secs(10)).collect().await.unwrap_err();
        assert!(error.to_string().contains("longer than the 4 bytes"), "{error}");
    }

    // An upstream that reads slowly once counted as the caller's silence.
    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_not_a_silent_caller() {
        let chunks = Body::new(StreamBody::new(futures::stream::unfold(0, move |n| async move {
            // As hyper does: asked on, it first has to read the socket.
            tokio::time::sleep(Duration::from_millis(1)).await;
            (n < 30).then(|| {
                (Ok::<_, axum::Error>(Frame::data(Bytes::from_static(b"0123456789"))), n + 1)
            })
        })));
        let mut body = BoundedBody::new(chunks, 1_000_000, Duration::from_secs(30));
        let mut came = 0;
        while let Some(frame) = body.frame().await {
            came += frame.unwrap().into_data().unwrap().len();
            tokio::time::sleep(Duration::from_secs(40)).await;
        }
        assert_eq!(came, 300);
    }

    #[tokio::test]
    async fn a_slot_is_held_to_the_last_byte_of_the_response() {
        let slots = RequestSlots::new(1);
        let answer = hold(Response::new(Body::from("answer")), slots.take().unwrap());
        assert!(slots.take().is_none());
        assert_eq!(slots.taken(), 1);
        let body = answer.into_body();
        assert!(slots.take().is_none(), "the head is out, the body is not");
        drop(body);
        assert!(slots.take().is_some());
    }
}
