//! Bounds on what a caller may take: bytes and silence of a body, and places in flight.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// Why a request's body was not read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyFault {
    /// Longer than this.
    TooLarge { most: usize },
    /// No byte for this long.
    TooSlow { limit: Duration },
    /// Less than [`LEAST_RATE`] on average, or longer than [`LONGEST`] in all.
    Trickles,
}

/// Bytes a second that a body must come at on average, once the time that it may be silent for has
/// passed: whoever sends a byte now and then would hold a place in flight for ever.
const LEAST_RATE: u64 = 1024;
/// As long as Google takes for a whole call at most (600 s).
const LONGEST: Duration = Duration::from_secs(600);

impl fmt::Display for BodyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { most } => {
                write!(
                    f,
                    "the request's body is longer than the {most} bytes that this gateway takes (server.max_body)"
                )
            }
            Self::TooSlow { limit } => {
                write!(
                    f,
                    "nothing of the request's body came for {:.0} s (server.body_idle_timeout)",
                    limit.as_secs_f64()
                )
            }
            Self::Trickles => write!(
                f,
                "the request's body came at less than {LEAST_RATE} bytes a second, or was not whole after {} s",
                LONGEST.as_secs()
            ),
        }
    }
}

impl std::error::Error for BodyFault {}

/// A request's body within its bounds.
pub(crate) struct Bounded {
    body: Body,
    left: usize,
    most: usize,
    limit: Duration,
    /// How long it was waited for in all. While nobody asks for more of it, it is the reader who
    /// takes the time.
    waited: Duration,
    /// Since when it is waited for.
    since: Option<Instant>,
    silence: Pin<Box<Sleep>>,
}

impl Bounded {
    pub(crate) fn new(body: Body, most: usize, limit: Duration) -> Self {
        let silence = Box::pin(sleep(limit));
        Self { body, left: most, most, limit, waited: Duration::ZERO, since: None, silence }
    }
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    match this.left.checked_sub(data.len()) {
                        Some(left) => this.left = left,
                        None => {
                            return Poll::Ready(Some(Err(axum::Error::new(BodyFault::TooLarge {
                                most: this.most,
                            }))));
                        }
                    }
                }
                this.waited += this.since.take().map_or(Duration::ZERO, |since| since.elapsed());
                let (so_far, waited) = ((this.most - this.left) as u64, this.waited);
                if waited > LONGEST
                    || (waited > this.limit && so_far < waited.as_secs().saturating_mul(LEAST_RATE))
                {
                    return Poll::Ready(Some(Err(axum::Error::new(BodyFault::Trickles))));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Pending => {
                if this.since.is_none() {
                    let now = Instant::now();
                    this.since = Some(now);
                    this.silence.as_mut().reset(now + this.limit);
                }
                match this.silence.as_mut().poll(cx) {
                    Poll::Ready(()) => {
                        Poll::Ready(Some(Err(axum::Error::new(BodyFault::TooSlow {
                            limit: this.limit,
                        }))))
                    }
                    Poll::Pending => Poll::Pending,
                }
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Places for requests in flight. Each is held until the last byte of its answer, and not only
/// until its head.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    free: Arc<Semaphore>,
    all: usize,
}

impl Places {
    pub(crate) fn new(all: usize) -> Self {
        // More than tokio's own bound is no bound.
        let all = all.min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(all)), all }
    }

    /// A place, where one is free.
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

/// An answer that holds its request's place.
pub(crate) fn holding(answer: Response<Body>, place: OwnedSemaphorePermit) -> Response<Body> {
    answer.map(|body| Body::new(Holding { body, _place: place }))
}

struct Holding {
    body: Body,
    _place: OwnedSemaphorePermit,
}

impl HttpBody for Holding {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, StreamBody};

    #[tokio::test(start_paused = true)]
    async fn a_body_that_falls_silent_is_given_up_and_a_slow_one_is_not() {
        let chunks = |pause: u64| {
            Body::new(StreamBody::new(futures::stream::unfold(0, move |n| async move {
                tokio::time::sleep(Duration::from_secs(pause)).await;
                (n < 5)
                    .then(|| (Ok::<_, axum::Error>(Frame::data(Bytes::from_static(b"x"))), n + 1))
            })))
        };
        let slow = Bounded::new(chunks(2), 100, Duration::from_secs(10))
            .collect()
            .await
            .unwrap()
            .to_bytes();
        assert_eq!(slow, "xxxxx");
        let error =
            Bounded::new(chunks(9), 100, Duration::from_secs(10)).collect().await.unwrap_err();
        assert!(error.to_string().contains("less than 1024 bytes a second"), "{error}");
        let error =
            Bounded::new(chunks(11), 100, Duration::from_secs(10)).collect().await.unwrap_err();
        assert!(error.to_string().contains("came for 10 s"), "{error}");
        let error =
            Bounded::new(chunks(0), 4, Duration::from_secs(10)).collect().await.unwrap_err();
        assert!(error.to_string().contains("longer than the 4 bytes"), "{error}");
    }

    // What an upstream does not take in time is not the caller's silence, nor its trickle.
    #[tokio::test(start_paused = true)]
    async fn who_reads_slowly_waits_for_nobody() {
        let chunks = Body::new(StreamBody::new(futures::stream::unfold(0, move |n| async move {
            // As hyper does: asked on, it first has to read the socket.
            tokio::time::sleep(Duration::from_millis(1)).await;
            (n < 30).then(|| {
                (Ok::<_, axum::Error>(Frame::data(Bytes::from_static(b"0123456789"))), n + 1)
            })
        })));
        let mut body = Bounded::new(chunks, 1_000_000, Duration::from_secs(30));
        let mut came = 0;
        while let Some(frame) = body.frame().await {
            came += frame.unwrap().into_data().unwrap().len();
            tokio::time::sleep(Duration::from_secs(40)).await;
        }
        assert_eq!(came, 300);
    }

    #[tokio::test]
    async fn a_place_is_held_to_the_last_byte_of_the_answer() {
        let places = Places::new(1);
        let answer = holding(Response::new(Body::from("answer")), places.take().unwrap());
        assert!(places.take().is_none());
        assert_eq!(places.taken(), 1);
        let body = answer.into_body();
        assert!(places.take().is_none(), "its head is out, its body is not");
        drop(body);
        assert!(places.take().is_some());
    }
}
