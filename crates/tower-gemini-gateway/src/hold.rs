//! An answer is held whole before its head goes out, so that a cut upstream never reaches a client
//! that would send again; or, where a client gives up on silence, blanks go out until it is there.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap};
use http::{HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tower_gemini::Error;
use tower_gemini::body::HasVerdict;
use tower_gemini::verdict::Verdict;

/// A body that was read before its head goes out, whole or up to a bound.
pub(crate) struct HeldBody<B> {
    chunks: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    /// What is left of an answer longer than the bound; of others it is kept for its verdict, and
    /// ended.
    rest: B,
    ended: bool,
}

/// Reads an answer to its end, or until it is longer than `most`.
pub(crate) async fn hold<B>(
    response: Response<B>,
    most: usize,
) -> Result<Response<HeldBody<B>>, Error>
where
    B: Body<Data = Bytes, Error = Error> + Unpin,
{
    let (mut parts, mut rest) = response.into_parts();
    let (mut chunks, mut trailers, mut held, mut ended) = (VecDeque::new(), None, 0_usize, false);
    while held <= most {
        match rest.frame().await {
            Some(frame) => match frame?.into_data() {
                Ok(chunk) => {
                    held = held.saturating_add(chunk.len());
                    chunks.push_back(chunk);
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
            None => {
                ended = true;
                break;
            }
        }
    }
    if ended && trailers.is_none() {
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(held));
    }
    Ok(Response::from_parts(parts, HeldBody { chunks, trailers, rest, ended }))
}

impl<B: HasVerdict> HasVerdict for HeldBody<B> {
    fn verdict(&self) -> Option<&Verdict> {
        self.rest.verdict()
    }
}

impl<B> Body for HeldBody<B>
where
    B: Body<Data = Bytes, Error = Error> + Unpin,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(chunk) = self.chunks.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if self.ended {
            return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        Pin::new(&mut self.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_empty()
            && self.trailers.is_none()
            && (self.ended || self.rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        if !self.ended {
            return SizeHint::new();
        }
        SizeHint::with_exact(self.chunks.iter().map(|chunk| chunk.len() as u64).sum())
    }
}

impl<B> fmt::Debug for HeldBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldBody")
            .field("chunks", &self.chunks.len())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// An answer that is on its way.
type Coming = Pin<Box<dyn Future<Output = Response<axum::body::Body>> + Send>>;

/// Waits for an answer; after `after` of silence the head goes out, and a blank every so often
/// until the answer is there: leading blanks are allowed in JSON, and every client that was
/// measured reads past them. The price: the status is 200 by then, so an error is told in the body
/// alone.
pub(crate) async fn or_heartbeat(
    answer: impl Future<Output = Response<axum::body::Body>> + Send + 'static,
    after: Duration,
) -> Response<axum::body::Body> {
    let mut coming: Coming = Box::pin(answer);
    tokio::select! {
        biased;
        answer = &mut coming => answer,
        () = sleep(after) => {
            let every = after.min(EVERY);
            let body = Heartbeat { state: State::Waiting { coming, beat: Box::pin(sleep(Duration::ZERO)), every } };
            let mut response = Response::new(axum::body::Body::new(body));
            *response.status_mut() = StatusCode::OK;
            let headers = response.headers_mut();
            headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=UTF-8"));
            headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
    }
}

/// Below every gap between bytes that a client was seen to bear (3 s was the shortest that was
/// tried, measured 2026-11).
const EVERY: Duration = Duration::from_secs(2);

struct Heartbeat {
    state: State,
}

enum State {
    Waiting { coming: Coming, beat: Pin<Box<Sleep>>, every: Duration },
    Arrived(axum::body::Body),
}

impl Body for Heartbeat {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        loop {
            match &mut self.state {
                State::Waiting { coming, beat, every } => {
                    if let Poll::Ready(answer) = coming.as_mut().poll(cx) {
                        self.state = State::Arrived(answer.into_body());
                        continue;
                    }
                    ready!(beat.as_mut().poll(cx));
                    *beat = Box::pin(sleep_until(Instant::now() + *every));
                    return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b" ")))));
                }
                State::Arrived(body) => return Pin::new(body).poll_frame(cx),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{Full, StreamBody};
    use std::convert::Infallible;

    fn body(
        chunks: Vec<Result<&'static str, Error>>,
    ) -> impl Body<Data = Bytes, Error = Error> + Unpin {
        StreamBody::new(futures::stream::iter(
            chunks.into_iter().map(|chunk| chunk.map(|text| Frame::data(Bytes::from(text)))),
        ))
    }

    #[tokio::test]
    async fn a_cut_upstream_is_an_error_before_any_head_goes_out() {
        let cut = body(vec![Ok("{"), Err(Error::truncated(Verdict::interrupted()))]);
        assert!(hold(Response::new(cut), 100).await.unwrap_err().is_truncated());
    }

    #[tokio::test]
    async fn a_whole_answer_says_its_length_and_a_longer_one_passes_as_it_is() {
        let whole = hold(Response::new(body(vec![Ok("12345"), Ok("678")])), 8).await.unwrap();
        assert_eq!(whole.headers()[CONTENT_LENGTH], "8");
        assert_eq!(whole.into_body().collect().await.unwrap().to_bytes(), "12345678");
        let long =
            hold(Response::new(body(vec![Ok("12345"), Ok("678"), Ok("9")])), 7).await.unwrap();
        assert!(!long.headers().contains_key(CONTENT_LENGTH));
        assert_eq!(long.into_body().collect().await.unwrap().to_bytes(), "123456789");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_broken_by_blanks_and_the_answer_follows() {
        let answer = async {
            sleep(Duration::from_secs(20)).await;
            Response::new(axum::body::Body::from("{\"a\":1}"))
        };
        let response = or_heartbeat(answer, Duration::from_secs(5)).await;
        assert_eq!(response.status(), 200);
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let blanks = text.iter().take_while(|&&byte| byte == b' ').count();
        assert!((7..=9).contains(&blanks), "{blanks} blanks in 15 s");
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&text).unwrap()["a"], 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_time_keeps_its_status() {
        let answer = async {
            Response::builder()
                .status(429)
                .body(axum::body::Body::new(
                    Full::<Bytes>::from("{}").map_err(|e: Infallible| match e {}),
                ))
                .unwrap()
        };
        assert_eq!(or_heartbeat(answer, Duration::from_secs(5)).await.status(), 429);
    }
}
