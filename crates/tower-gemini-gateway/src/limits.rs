//! Limits what the body of a request may take: bytes, memory, silence, and the time of others.

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
use tokio::time::{Instant, Sleep, sleep};

use crate::body_fault::{BodyFault, LEAST_RATE, LONGEST};
use crate::memory::{Pressure, RequestMemory};

/// How long a body may take while others wait, before it is looked at how fast it is.
const UNHURRIED: Duration = Duration::from_secs(5);
/// Bytes a second that it must arrive at then, if its caller has no more than its share: a picture
/// of 2 MB in half a minute. Of a caller that has more, a body that is not there yet gives way.
const LEAST_RATE_UNDER_PRESSURE: u64 = 64 * 1024;
/// How often it is looked at whether others wait.
const LOOKS_EVERY: Duration = Duration::from_secs(1);

/// A request's body within its limits.
pub(crate) struct BoundedBody {
    body: Body,
    so_far: usize,
    max_bytes: usize,
    idle_timeout: Duration,
    /// What it takes, where that is accounted for.
    memory: Option<Arc<RequestMemory>>,
    /// How long it was waited for in all. While nobody polls it, the reader takes the time.
    waited: Duration,
    /// The start of the present wait.
    since: Option<Instant>,
    /// When it is looked at next.
    look: Pin<Box<Sleep>>,
}

impl BoundedBody {
    pub(crate) fn new(
        body: Body,
        max_bytes: usize,
        idle_timeout: Duration,
        memory: Option<Arc<RequestMemory>>,
    ) -> Self {
        let (look, waited) = (Box::pin(sleep(idle_timeout)), Duration::ZERO);
        Self { body, so_far: 0, max_bytes, idle_timeout, memory, waited, since: None, look }
    }

    /// Checks a frame that has arrived.
    fn admit(&mut self, frame: &Frame<Bytes>) -> Result<(), BodyFault> {
        self.so_far = self.so_far.saturating_add(frame.data_ref().map_or(0, Bytes::len));
        if self.so_far > self.max_bytes {
            return Err(BodyFault::TooLarge { limit: self.max_bytes });
        }
        if self.memory.as_ref().is_some_and(|memory| !memory.receive(self.so_far)) {
            return Err(BodyFault::NoMemory);
        }
        self.waited += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.check_rate(self.waited)
    }

    /// Checks how much has come in this time.
    fn check_rate(&self, waited: Duration) -> Result<(), BodyFault> {
        let is_below = |rate: u64| (self.so_far as u64) < waited.as_secs().saturating_mul(rate);
        if waited > LONGEST || (waited > self.idle_timeout && is_below(LEAST_RATE)) {
            return Err(BodyFault::Trickles);
        }
        let pressure = match &self.memory {
            Some(memory) if waited > UNHURRIED => memory.pressure(),
            _ => Pressure::None,
        };
        let gives_way = match pressure {
            Pressure::None => false,
            Pressure::OthersWait => is_below(LEAST_RATE_UNDER_PRESSURE),
            Pressure::OverShare => true,
        };
        if gives_way { Err(BodyFault::OthersWait) } else { Ok(()) }
    }

    /// Waits for the next frame, which has not arrived.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<BodyFault> {
        let looks_every = self.idle_timeout.min(LOOKS_EVERY);
        let since = *self.since.get_or_insert_with(|| {
            let now = Instant::now();
            self.look.as_mut().reset(now + looks_every);
            now
        });
        while self.look.as_mut().poll(cx).is_ready() {
            let silent = since.elapsed();
            if silent >= self.idle_timeout {
                return Poll::Ready(BodyFault::TooSlow { limit: self.idle_timeout });
            }
            // Another fault is the next frame's.
            if let Err(fault @ BodyFault::OthersWait) = self.check_rate(self.waited + silent) {
                return Poll::Ready(fault);
            }
            let next = looks_every.min(self.idle_timeout - silent);
            self.look.as_mut().reset(Instant::now() + next);
        }
        Poll::Pending
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
        let slow = BoundedBody::new(chunks(2), 100, Duration::from_secs(10), None)
            .collect()
            .await
            .unwrap()
            .to_bytes();
        assert_eq!(slow, "xxxxx");
        let error = BoundedBody::new(chunks(9), 100, Duration::from_secs(10), None)
            .collect()
            .await
            .unwrap_err();
        assert!(error.to_string().contains("less than 1024 bytes a second"), "{error}");
        let error = BoundedBody::new(chunks(11), 100, Duration::from_secs(10), None)
            .collect()
            .await
            .unwrap_err();
        assert!(error.to_string().contains("arrived for 10 s"), "{error}");
        let error = BoundedBody::new(chunks(0), 4, Duration::from_secs(10), None)
            .collect()
            .await
            .unwrap_err();
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
        let mut body = BoundedBody::new(chunks, 1_000_000, Duration::from_secs(30), None);
        let mut came = 0;
        while let Some(frame) = body.frame().await {
            came += frame.unwrap().into_data().unwrap().len();
            tokio::time::sleep(Duration::from_secs(40)).await;
        }
        assert_eq!(came, 300);
    }

    #[tokio::test]
    async fn what_is_held_with_a_response_is_held_to_its_last_byte() {
        let held = Arc::new(());
        let response = hold(Response::new(Body::from("answer")), held.clone());
        let body = response.into_body();
        assert_eq!(Arc::strong_count(&held), 2, "the head is out, the body is not");
        drop(body);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
