//! Sends blanks until a response is there, for clients that time out on silence.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body as HttpBody, Frame};
use tokio::time::{Interval, interval, sleep};

use crate::responses::json_response;

/// A response that has not arrived.
type Pending = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// Shorter than every gap between bytes that a client was seen to accept (3 s was the shortest that
/// was tried, measured 2026-11).
const EVERY: Duration = Duration::from_secs(2);

/// Waits for a response. After `after` of silence it sends a head, and then blanks until the
/// response is there: JSON allows leading blanks, and every client that was measured skips them.
/// The price: the status is 200 by then, so an error shows in the body alone.
pub(crate) async fn with_heartbeat(
    response: impl Future<Output = Response<Body>> + Send + 'static,
    after: Duration,
) -> Response<Body> {
    let mut pending: Pending = Box::pin(response);
    tokio::select! {
        biased;
        response = &mut pending => response,
        () = sleep(after) => {
            let (beat, body) = (interval(after.min(EVERY)), Body::empty());
            let body = Body::new(Heartbeat { pending: Some(pending), beat, body });
            json_response(StatusCode::OK, body)
        }
    }
}

struct Heartbeat {
    pending: Option<Pending>,
    beat: Interval,
    /// The response's, once it has arrived.
    body: Body,
}

impl HttpBody for Heartbeat {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if let Some(pending) = &mut this.pending {
            let Poll::Ready(response) = pending.as_mut().poll(cx) else {
                ready!(this.beat.poll_tick(cx));
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b" ")))));
            };
            this.body = response.into_body();
            this.pending = None;
        }
        Pin::new(&mut this.body).poll_frame(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test(start_paused = true)]
    async fn blanks_break_the_silence_and_the_response_follows() {
        let answer = async {
            sleep(Duration::from_secs(20)).await;
            Response::new(Body::from("{\"a\":1}"))
        };
        let response = with_heartbeat(answer, Duration::from_secs(5)).await;
        assert_eq!(response.status(), 200);
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let blanks = text.iter().take_while(|&&byte| byte == b' ').count();
        assert!((7..=9).contains(&blanks), "{blanks} blanks in 15 s");
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&text).unwrap()["a"], 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_in_time_keeps_its_status() {
        let answer = async { Response::builder().status(429).body(Body::from("{}")).unwrap() };
        assert_eq!(with_heartbeat(answer, Duration::from_secs(5)).await.status(), 429);
    }
}
