//! Answers one request for several images with as many calls, and one response.
//!
//! Each call has an identity of its own, so that whatever was paid for is stored, replayed and
//! never paid for again, image by image.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use serde_json::Value;
use tower_gemini::headers;
use tower_gemini::keep_paid::ResponseFormat;
use tower_gemini::verdict::Verdict;
use tower_gemini_openai::{ResponseMerger, ResponseTranslator};

use crate::report::{self, Reported};
use crate::wire;

/// How many calls of one request run at once: all images of the usual request, and few enough that
/// one request does not use up a minute's quota at its start.
const AT_ONCE: usize = 4;

/// How many images are missing, and why.
const MISSING: HeaderName = HeaderName::from_static("x-gemini-missing");

/// Sends a request for each of `count` images with `send`, and answers with all that came: with the
/// first error where none did, one after which money is or may be gone before any other.
pub(crate) async fn answer<F>(
    parts: Parts,
    reply: &ResponseTranslator,
    count: usize,
    send: impl Fn(Parts) -> F,
) -> (Response<Body>, Vec<Reported>)
where
    F: Future<Output = Response<Body>> + Send,
{
    let calls = (0..count).map(|n| {
        let response = send(part(&parts, reply, n, count));
        async move { (n, response.await) }
    });
    let mut responses: Vec<_> =
        futures::stream::iter(calls).buffer_unordered(AT_ONCE).collect().await;
    responses.sort_unstable_by_key(|(n, _)| *n);
    let responses: Vec<_> = responses.into_iter().map(|(_, response)| response).collect();
    let reported = responses.iter().filter_map(|one| Reported::find(one.extensions())).collect();
    let (came, mut failed): (Vec<_>, Vec<_>) =
        responses.into_iter().partition(|response| response.status().is_success());
    let mut came = came.into_iter();
    let Some(first) = came.next() else {
        let told = failed.swap_remove(failed.iter().position(may_be_charged).unwrap_or(0));
        // Their clients know of them: whoever asks again asks for new ones.
        for response in failed {
            let _ = response.into_body().collect().await;
        }
        return (told, reported);
    };
    let (mut head, body) = first.into_parts();
    let mut bodies = vec![body];
    bodies.extend(came.map(Response::into_body));
    let missing = failed.len();
    let mut reasons = Vec::new();
    for response in failed {
        let status = response.status();
        let mut body = response.into_body();
        // Its first chunk, and not its end, before which it does not count as delivered.
        let chunk =
            body.frame().await.and_then(Result::ok).and_then(|frame| frame.into_data().ok());
        let said = chunk.as_deref().and_then(message).unwrap_or_else(|| status.to_string());
        if !reasons.contains(&said) {
            reasons.push(said);
        }
        bodies.push(body);
    }
    headers::for_changed_body(&mut head.headers, None);
    if missing > 0 {
        let why = reasons.join("; ");
        tracing::warn!(missing, asked = count, %why, "not every image was made");
        head.headers.insert(MISSING, report::header_value(&format!("{missing} of {count}: {why}")));
    }
    let merger = reply.merger();
    let body = MergedBody { merger: Some(merger), merged: count - missing, at: 0, bodies };
    (Response::from_parts(head, Body::new(body)), reported)
}

/// The request for one image: the first is identified as the only one would be, since it is worth
/// the same.
fn part(parts: &Parts, reply: &ResponseTranslator, n: usize, count: usize) -> Parts {
    let mut parts = parts.clone();
    if n > 0 {
        let format = format!("{reply} image={}", n + 1);
        parts.extensions.insert(ResponseFormat::new(&format));
    }
    derive_key(&mut parts.headers, n, count);
    parts
}

fn derive_key(headers: &mut HeaderMap, n: usize, count: usize) {
    let Some(key) = headers.get_mut(wire::IDEMPOTENCY_KEY) else { return };
    let derived = [key.as_bytes(), format!(" ({} of {count})", n + 1).as_bytes()].concat();
    if let Ok(derived) = HeaderValue::from_bytes(&derived) {
        *key = derived;
    }
}

fn may_be_charged(response: &Response<Body>) -> bool {
    let verdict = response.extensions().get::<Verdict>();
    verdict.is_some_and(|verdict| !verdict.charge().is_surely_free())
}

/// What an error of OpenAI's format says.
fn message(body: &[u8]) -> Option<String> {
    let error: Value = serde_json::from_slice(body).ok()?;
    Some(error.get("error")?.get("message")?.as_str()?.to_owned())
}

/// The bodies of several responses as one. Each is read when the client has taken those before it,
/// and to its very end when the client has taken all: what a client did not get as a whole, it did
/// not get.
struct MergedBody {
    /// `None` once all of it is out.
    merger: Option<ResponseMerger>,
    /// How many of the bodies are merged; the errors are behind them.
    merged: usize,
    at: usize,
    bodies: Vec<Body>,
}

impl HttpBody for MergedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        while let Some(merger) = &mut this.merger {
            if this.at == this.merged {
                let end = merger.finish();
                this.merger = None;
                return Poll::Ready(Some(Ok(Frame::data(end))));
            }
            let frame = ready!(Pin::new(&mut this.bodies[this.at]).poll_frame(cx));
            let chunk = match frame.transpose()?.map(Frame::into_data) {
                Some(Ok(chunk)) => merger.push(&chunk),
                Some(Err(_)) => continue,
                None => {
                    let message = "a response ended before it was complete";
                    return Poll::Ready(Some(Err(axum::Error::new(message))));
                }
            };
            if merger.is_between() {
                this.at += 1;
            }
            if !chunk.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
        }
        while let Some(body) = this.bodies.last_mut() {
            if ready!(Pin::new(body).poll_frame(cx)).is_none() {
                this.bodies.pop();
            }
        }
        Poll::Ready(None)
    }
}
