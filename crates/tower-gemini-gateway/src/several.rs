//! Answers one request for several images with as many calls, and one response.
//!
//! Each call has an identity of its own, so that whatever was paid for is stored, replayed and
//! never paid for again, image by image.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, response};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use serde_json::Value;
use tower_gemini::headers;
use tower_gemini::keep_paid::ResponseFormat;
use tower_gemini::trail::Trail;
use tower_gemini::verdict::Verdict;
use tower_gemini_openai::{ChoiceStream, ResponseMerger, ResponseTranslator};

use crate::report;
use crate::wire;

/// How many calls of one request run at once: all images of the usual request, and few enough that
/// one request does not use up a minute's quota at its start.
const AT_ONCE: usize = 4;

/// How many images are missing, and why.
const MISSING: HeaderName = HeaderName::from_static("x-gemini-missing");

/// The error of a choice that is missing and does not say why.
const UNSAID: &[u8] = br#"{"error":{"message":"not every image was made","type":"server_error","param":null,"code":null}}"#;

/// Sends a request for each of `count` images with `send`, and answers with all that came: with the
/// first error where none did, one after which money is or may be gone before any other.
pub(crate) async fn answer<F>(
    parts: Parts,
    reply: &ResponseTranslator,
    count: usize,
    send: impl Fn(Parts) -> F,
) -> (Response<Body>, Vec<Trail>)
where
    F: Future<Output = Response<Body>> + Send,
{
    let calls = (0..count).map(|n| {
        let response = send(part(&parts, reply, n, count));
        async move { (n, response.await) }
    });
    let mut responses: Vec<_> = stream::iter(calls).buffer_unordered(AT_ONCE).collect().await;
    responses.sort_unstable_by_key(|(n, _)| *n);
    let responses: Vec<_> = responses.into_iter().map(|(_, response)| response).collect();
    let reported = responses.iter().filter_map(|one| one.extensions().get().cloned()).collect();
    let (came, failed): (Vec<_>, Vec<_>) =
        responses.into_iter().partition(|response| response.status().is_success());
    let mut came = came.into_iter();
    let Some(first) = came.next() else { return (told_of(failed).await, reported) };
    let (mut head, body) = first.into_parts();
    let mut bodies = vec![body];
    for other in came {
        report::join_differences(&mut head.headers, other.headers());
        bodies.push(other.into_body());
    }
    let missing = failed.len();
    let mut reasons = Vec::new();
    for response in failed {
        let status = response.status();
        let (error, body) = opened(response).await;
        let said = error.as_deref().and_then(message).unwrap_or_else(|| status.to_string());
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

/// The one error of several that the client is told.
async fn told_of(mut failed: Vec<Response<Body>>) -> Response<Body> {
    let told = failed.swap_remove(failed.iter().position(may_be_charged).unwrap_or(0));
    // Their clients know of them: whoever asks again asks for new ones.
    for response in failed {
        let _ = response.into_body().collect().await;
    }
    told
}

/// What an error says: its first chunk, and not its end, before which it does not count as
/// delivered.
async fn opened(response: Response<Body>) -> (Option<Bytes>, Body) {
    let mut body = response.into_body();
    let frame = body.frame().await.and_then(Result::ok);
    (frame.and_then(|frame| frame.into_data().ok()), body)
}

/// As [`answer`], with one stream, in which each call is a choice. It begins when the first of them
/// does. Where one fails after that, its error ends the stream when all others have ended.
pub(crate) async fn stream<F>(
    parts: Parts,
    reply: &ResponseTranslator,
    count: usize,
    send: impl Fn(Parts) -> F,
) -> (Response<Body>, Vec<Trail>)
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let calls: Vec<_> =
        (0..count).map(|n| steps(n, send(part(&parts, reply, n, count))).boxed()).collect();
    let mut steps = stream::iter(calls).flatten_unordered(AT_ONCE);
    let (mut reported, mut failed) = (Vec::new(), Vec::new());
    loop {
        match steps.next().await {
            Some(Step::Failed(response)) => {
                reported.extend(response.extensions().get().cloned());
                failed.push(response);
            }
            Some(Step::Began(mut head)) => {
                reported.extend(head.extensions.get().cloned());
                headers::for_changed_body(&mut head.headers, None);
                let (ended, rests, is_over) = (Vec::new(), Vec::new(), false);
                let choices = Choices { steps, count, failed, ended, rests, is_over };
                let body = choices.into_body();
                return (Response::from_parts(head, body), reported);
            }
            // Nothing else comes before a call has begun.
            Some(Step::Events(_) | Step::Ended(..)) => {}
            None => return (told_of(failed).await, reported),
        }
    }
}

/// What happens in a call, in order: it begins, goes on and ends, or it fails.
enum Step {
    Began(response::Parts),
    Events(Vec<Bytes>),
    /// The last events, what there is to say at the end, and the rest of the body, which is read
    /// when the client has taken all.
    Ended(Vec<Bytes>, ChoiceStream, Body),
    Failed(Response<Body>),
}

fn steps(
    n: usize,
    response: impl Future<Output = Response<Body>> + Send + 'static,
) -> impl Stream<Item = Step> + Send {
    let head = async move {
        let response = response.await;
        if !response.status().is_success() {
            return stream::iter([Step::Failed(response)]).left_stream();
        }
        let (head, body) = response.into_parts();
        let began = stream::iter([Step::Began(head)]);
        began.chain(events(ChoiceStream::new(n), body)).right_stream()
    };
    stream::once(head).flatten()
}

fn events(choice: ChoiceStream, body: Body) -> impl Stream<Item = Step> + Send {
    stream::unfold(Some((choice, body)), |state| async {
        let (mut choice, mut body) = state?;
        let events = match body.frame().await {
            Some(Ok(frame)) => {
                frame.into_data().map_or_else(|_| Vec::new(), |chunk| choice.push(&chunk))
            }
            Some(Err(_)) | None => {
                choice.end();
                Vec::new()
            }
        };
        Some(match choice.has_ended() {
            true => (Step::Ended(events, choice, body), None),
            false => (Step::Events(events), Some((choice, body))),
        })
    })
}

/// One stream of several calls on its way to the client.
struct Choices<S> {
    steps: S,
    count: usize,
    failed: Vec<Response<Body>>,
    ended: Vec<ChoiceStream>,
    /// What is left of their bodies.
    rests: Vec<Body>,
    is_over: bool,
}

impl<S: Stream<Item = Step> + Send + Unpin + 'static> Choices<S> {
    fn into_body(self) -> Body {
        let events = stream::unfold(self, |mut this| async {
            let events = this.next().await?;
            Some((stream::iter(events), this))
        });
        Body::from_stream(events.flatten().map(Ok::<_, axum::Error>))
    }

    /// The next events. `None` when the client has taken all of them.
    async fn next(&mut self) -> Option<Vec<Bytes>> {
        match self.steps.next().await {
            Some(Step::Began(_)) => return Some(Vec::new()),
            Some(Step::Events(events)) => return Some(events),
            Some(Step::Ended(events, choice, rest)) => {
                self.ended.push(choice);
                self.rests.push(rest);
                return Some(events);
            }
            Some(Step::Failed(response)) => {
                self.failed.push(response);
                return Some(Vec::new());
            }
            None if !std::mem::replace(&mut self.is_over, true) => {}
            None => {
                for rest in self.rests.drain(..) {
                    let _ = rest.collect().await;
                }
                return None;
            }
        }
        // Money is or may be gone behind a call that had begun.
        let mut error = self.ended.iter().find_map(|choice| choice.error().cloned());
        self.failed.sort_by_key(|response| !may_be_charged(response));
        let missing = self.count - self.ended.iter().filter(|it| it.error().is_none()).count();
        for response in self.failed.drain(..) {
            let (said, rest) = opened(response).await;
            error = error.or(said);
            self.rests.push(rest);
        }
        if missing > 0 && error.is_none() {
            error = Some(Bytes::from_static(UNSAID));
        }
        if missing > 0 {
            let why = error.as_deref().and_then(message);
            tracing::warn!(missing, asked = self.count, why, "not every image was made");
        }
        Some(ChoiceStream::finish(&self.ended, error.as_deref()))
    }
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
