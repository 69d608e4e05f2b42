//! Buffers a whole response before its head goes out, so that a cut upstream never reaches a client
//! that would retry; or sends blanks until it is there, for clients that time out on silence.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap};
use http::{HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tower_gemini::Error;
use tower_gemini::body::HasVerdict;
use tower_gemini::verdict::Verdict;

use crate::responses::json_headers;
use crate::wire;

/// A body that was read before its head goes out, whole or up to a limit.
pub(crate) struct BufferedBody<B> {
    chunks: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    /// What is left of a response longer than the limit. Of others it has ended, and is kept for
    /// its verdict.
    rest: B,
    ended: bool,
}

/// Reads a response to its end, or until it is longer than `limit`. Without one, reads nothing.
pub(crate) async fn buffer<B>(
    response: Response<B>,
    limit: Option<usize>,
) -> Result<Response<BufferedBody<B>>, Error>
where
    B: Body<Data = Bytes, Error = Error> + Unpin,
{
    let (mut parts, mut rest) = response.into_parts();
    let (mut chunks, mut trailers, mut held, mut ended) = (VecDeque::new(), None, 0_usize, false);
    while limit.is_some_and(|limit| held <= limit) {
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
    if ended {
        // The body is exact now: hyper sends it empty while `Transfer-Encoding` stays.
        wire::remove_length(&mut parts.headers);
        if trailers.is_none() {
            parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(held));
        }
    }
    Ok(Response::from_parts(parts, BufferedBody { chunks, trailers, rest, ended }))
}

impl<B: HasVerdict> HasVerdict for BufferedBody<B> {
    fn verdict(&self) -> Option<&Verdict> {
        self.rest.verdict()
    }
}

impl<B> Body for BufferedBody<B>
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
            let nothing_read = self.chunks.is_empty();
            return if nothing_read { self.rest.size_hint() } else { SizeHint::new() };
        }
        SizeHint::with_exact(self.chunks.iter().map(|chunk| chunk.len() as u64).sum())
    }
}

impl<B> fmt::Debug for BufferedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferedBody")
            .field("chunks", &self.chunks.len())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// A response that has not arrived.
type Pending = Pin<Box<dyn Future<Output = Response<axum::body::Body>> + Send>>;

/// Waits for a response. After `after` of silence it sends a head, and then blanks until the
/// response is there: JSON allows leading blanks, and every client that was measured skips them.
/// The price: the status is 200 by then, so an error shows in the body alone.
pub(crate) async fn with_heartbeat(
    response: impl Future<Output = Response<axum::body::Body>> + Send + 'static,
    after: Duration,
) -> Response<axum::body::Body> {
    let mut pending: Pending = Box::pin(response);
    tokio::select! {
        biased;
        response = &mut pending => response,
        () = sleep(after) => {
            let every = after.min(EVERY);
            let beat = Box::pin(sleep(Duration::ZERO));
            let body = Heartbeat { state: State::Waiting { pending, beat, every } };
            let mut response = Response::new(axum::body::Body::new(body));
            json_headers(response.headers_mut());
            response
        }
    }
}

/// Shorter than every gap between bytes that a client was seen to accept (3 s was the shortest that
/// was tried, measured 2026-11).
const EVERY: Duration = Duration::from_secs(2);

struct Heartbeat {
    state: State,
}

enum State {
    Waiting { pending: Pending, beat: Pin<Box<Sleep>>, every: Duration },
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
                State::Waiting { pending, beat, every } => {
                    if let Poll::Ready(response) = pending.as_mut().poll(cx) {
                        self.state = State::Arrived(response.into_body());
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
        assert!(buffer(Response::new(cut), Some(100)).await.unwrap_err().is_truncated());
    }

    #[tokio::test]
    async fn a_whole_response_has_its_length_and_a_longer_one_passes_unchanged() {
        let whole =
            buffer(Response::new(body(vec![Ok("12345"), Ok("678")])), Some(8)).await.unwrap();
        assert_eq!(whole.headers()[CONTENT_LENGTH], "8");
        assert_eq!(whole.into_body().collect().await.unwrap().to_bytes(), "12345678");
        let long = buffer(Response::new(body(vec![Ok("12345"), Ok("678"), Ok("9")])), Some(7))
            .await
            .unwrap();
        assert!(!long.headers().contains_key(CONTENT_LENGTH));
        assert_eq!(long.into_body().collect().await.unwrap().to_bytes(), "123456789");
    }

    // axum answered with an empty body wherever the upstream used chunked encoding: the body had
    // become exact while `Transfer-Encoding` stayed.
    #[tokio::test]
    async fn a_buffered_body_goes_out_with_headers_that_fit_it() {
        let chunked = Response::builder()
            .header("transfer-encoding", "chunked")
            .header("trailer", "x-checksum")
            .body(body(vec![Ok("12345")]))
            .unwrap();
        let whole = buffer(chunked, Some(8)).await.unwrap();
        let names: Vec<_> = whole.headers().keys().map(|name| name.as_str()).collect();
        assert_eq!(
            (names, &whole.headers()[CONTENT_LENGTH]),
            (vec!["content-length"], &"5".parse().unwrap())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn blanks_break_the_silence_and_the_response_follows() {
        let answer = async {
            sleep(Duration::from_secs(20)).await;
            Response::new(axum::body::Body::from("{\"a\":1}"))
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
        let answer = async {
            Response::builder()
                .status(429)
                .body(axum::body::Body::new(
                    Full::<Bytes>::from("{}").map_err(|e: Infallible| match e {}),
                ))
                .unwrap()
        };
        assert_eq!(with_heartbeat(answer, Duration::from_secs(5)).await.status(), 429);
    }
}
