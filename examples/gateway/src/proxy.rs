//! One request on its way through: from the caller's socket to the stack, and the answer back.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use axum::body::Body;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_gemini::answer_errors::retry_advice;
use tower_gemini::clock::{Clock, SystemClock};
use tower_gemini::core::call::{Call, Dialect, Framing, Verb};
use tower_gemini::core::context::CallOptions;
use tower_gemini::core::scan::StreamStripper;
use tower_gemini::core::trail::Trail;
use tower_gemini::core::verdict::Verdict;
use tower_gemini::keep_paid::CallerName;

use crate::gateway::Gateway;
use crate::hold::or_heartbeat;
use crate::openai::{self, Kind, Reply, StreamTranslator};
use crate::services::Answers;
use crate::{answers, report, wire};

/// Where money is or may be gone and nothing came of it: the status after which no measured client sends again.
const CHARGED: StatusCode = StatusCode::FAILED_DEPENDENCY;

/// Answers one request of a caller. Never fails: whatever happens is an answer in the form that the path's clients read.
pub(crate) async fn handle(gateway: Arc<Gateway>, request: Request<Body>) -> Response<Body> {
    let (mut parts, body) = request.into_parts();
    let path = wire::tidy_path(parts.uri.path()).into_owned();
    let form = answers::form_of(&path);
    if let Some(uri) = wire::with_path(&parts.uri, &path) {
        parts.uri = uri;
    }
    // The key leaves the URI before anything can print it.
    let caller = match gateway.auth().admit(&mut parts) {
        Ok(caller) => caller,
        Err(error) => return answers::refused(form, &error),
    };
    wire::clean_request(&mut parts.headers);
    // Behind a key of the gateway's own all callers have the same one: an answer that is kept for one must not go to another.
    parts.extensions.insert(CallerName::new(caller.name()));
    match openai::route(&path) {
        Some(Kind::Models) if parts.method == http::Method::GET && !caller.is_googles() => {
            answers::json_answer(StatusCode::OK, openai::models(now_unix()))
        }
        Some(kind) if kind != Kind::Models && parts.method == http::Method::POST => {
            let body = match collect(body).await {
                Ok(body) => body,
                Err(error) => return answers::refused(form, &error),
            };
            let translated = match openai::request(kind, &parts.headers, &body).await {
                Ok(translated) => translated,
                Err(error) => {
                    let (status, body) = error.into_parts();
                    return answers::json_answer(status, body);
                }
            };
            let headers = headers_for_gemini(&parts.headers);
            parts.headers = headers;
            caller.sign_openai(&mut parts.headers);
            let Some(uri) = wire::upstream_uri(gateway.upstream(), &translated.path_and_query) else {
                return answers::refused(form, &answers::Refused::path(&path));
            };
            parts.uri = uri;
            generate(gateway, parts, translated.body, Some(translated.reply)).await
        }
        _ => {
            caller.sign_for(&path, &mut parts.headers);
            let base = if wire::is_vertex(&path) { gateway.vertex() } else { gateway.upstream() };
            let path_and_query = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
            let Some(uri) = wire::upstream_uri(base, &path_and_query) else {
                return answers::refused(form, &answers::Refused::path(&path));
            };
            parts.uri = uri;
            let head = Call::parse(&parts.method, &parts.uri, &parts.headers, None);
            if head.dialect == Dialect::Unrecognised || !makes_something(&head) {
                // Files, lists, operations, counts: passed through as they are, and never held whole.
                let services = gateway.services();
                return ask(&gateway, services.plain.clone(), Request::from_parts(parts, body)).await;
            }
            match collect(body).await {
                Ok(body) => generate(gateway, parts, body, None).await,
                Err(error) => answers::refused(form, &error),
            }
        }
    }
}

fn makes_something(call: &Call) -> bool {
    matches!(call.verb, Verb::Generate | Verb::StreamGenerate | Verb::Predict)
}

/// A request that makes something, and may cost something.
async fn generate(gateway: Arc<Gateway>, mut parts: Parts, body: Bytes, reply: Option<Reply>) -> Response<Body> {
    wire::forget_length(&mut parts.headers);
    let call = Call::parse(&parts.method, &parts.uri, &parts.headers, Some(&body));
    let settings = gateway.answers();
    let stack = if call.is_continuation {
        gateway.services().plain.clone()
    } else if call.is_streaming() {
        gateway.services().stream.clone()
    } else {
        gateway.services().whole.clone()
    };
    let heartbeat = settings.heartbeat.filter(|_| !call.is_streaming() && !call.is_continuation);
    let strips = settings.strip_drafts && call.is_streaming() && call.wants_image && !call.is_continuation;
    let framing = call.framing;
    let request = Request::from_parts(parts, Body::from(body));
    let answer = async move {
        let answer = ask(&gateway, stack, request).await;
        match reply {
            None if strips && answer.status().is_success() => {
                map_body(answer, |body| Body::new(Passing::new(body, Stripping(StreamStripper::new(framing)))))
            }
            None => answer,
            Some(reply) => told_as_openai(answer, &reply, framing).await,
        }
    };
    match heartbeat {
        Some(after) => or_heartbeat(answer, after).await,
        None => answer.await,
    }
}

/// Sends a request through a stack. What is paid for and what is to be waited for stands in the answer's head.
async fn ask(gateway: &Gateway, stack: Answers, mut request: Request<Body>) -> Response<Body> {
    let trail = Trail::new();
    let mut options = CallOptions::new().trail(trail.clone()).must_keep(gateway.must_keep());
    if let Some(within) = shorter(wire::stated_deadline(request.headers()), gateway.answers().deadline) {
        options = options.deadline(within);
    }
    request.extensions_mut().insert(options);
    let now = SystemClock.now();
    let mut answer = match stack.oneshot(request).await {
        Ok(mut answer) => {
            wire::clean_answer(answer.headers_mut());
            let verdict = answer.extensions().get::<Verdict>().cloned();
            retry_advice(answer.status(), answer.headers_mut(), verdict.as_ref(), now);
            answer
        }
        Err(error) => answers::of_error(&error, CHARGED, now),
    };
    if gateway.answers().report_headers {
        report::add(answer.headers_mut(), &trail);
    }
    answer
}

fn shorter(a: Option<std::time::Duration>, b: Option<std::time::Duration>) -> Option<std::time::Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The body of a request, whole. Its bounds, in bytes and in time, are the server's.
async fn collect(body: Body) -> Result<Bytes, answers::Refused> {
    body.collect().await.map(http_body_util::Collected::to_bytes).map_err(|error| answers::Refused::body(&error))
}

/// What a translated request says in its head: nothing of OpenAI's own.
fn headers_for_gemini(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    // `x-sim-call` ties attempts together in a simulator's ledger, and means nothing to Google.
    let names = [
        USER_AGENT,
        wire::SERVER_TIMEOUT,
        wire::READ_TIMEOUT,
        wire::RETRY_COUNT,
        wire::IDEMPOTENCY_KEY,
        HeaderName::from_static("x-sim-call"),
    ];
    for name in names {
        if let Some(value) = headers.get(&name) {
            kept.insert(name, value.clone());
        }
    }
    kept.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    kept.insert(ACCEPT, HeaderValue::from_static("*/*"));
    kept
}

async fn told_as_openai(answer: Response<Body>, reply: &Reply, framing: Framing) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    wire::forget_length(&mut parts.headers);
    if parts.status.is_success() && framing == Framing::Sse {
        parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        let translating = Translating(reply.streaming(now_unix()));
        return Response::from_parts(parts, Body::new(Passing::new(body, translating)));
    }
    // A body that breaks now was longer than what is held: its head has not gone out, so this can still be said as an error.
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            let (status, body) = answers::openai_cut(&error, CHARGED);
            parts.status = status;
            parts.headers.insert("x-should-retry", HeaderValue::from_static("false"));
            parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            return Response::from_parts(parts, Body::from(body));
        }
    };
    let (status, body) = reply.whole(parts.status, &body, now_unix());
    parts.status = status;
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Response::from_parts(parts, Body::from(body))
}

fn map_body(answer: Response<Body>, with: impl FnOnce(Body) -> Body) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    wire::forget_length(&mut parts.headers);
    Response::from_parts(parts, with(body))
}

fn now_unix() -> u64 {
    SystemClock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What is done to a stream on its way.
trait Change: Send + Unpin + 'static {
    /// A chunk came from upstream.
    fn push(&mut self, chunk: Bytes) -> Vec<Bytes>;
    /// Upstream ended well.
    fn finish(&mut self) -> Vec<Bytes>;
    /// Upstream broke off. `Some` says it in the stream's own words; `None` cuts the connection.
    fn fail(&mut self, error: &axum::Error) -> Option<Vec<Bytes>>;
}

struct Stripping(StreamStripper);

impl Change for Stripping {
    fn push(&mut self, chunk: Bytes) -> Vec<Bytes> {
        self.0.push(chunk)
    }

    fn finish(&mut self) -> Vec<Bytes> {
        self.0.finish()
    }

    fn fail(&mut self, _: &axum::Error) -> Option<Vec<Bytes>> {
        None
    }
}

struct Translating(StreamTranslator);

impl Change for Translating {
    fn push(&mut self, chunk: Bytes) -> Vec<Bytes> {
        self.0.push(&chunk)
    }

    fn finish(&mut self) -> Vec<Bytes> {
        self.0.finish()
    }

    fn fail(&mut self, error: &axum::Error) -> Option<Vec<Bytes>> {
        // openai's clients raise what an event with an error says; a cut would be a connection error, after which they send again.
        Some(self.0.fail(CHARGED, &answers::sentence(error)))
    }
}

/// A stream that is changed on its way.
struct Passing<C> {
    body: Body,
    change: C,
    ready: VecDeque<Bytes>,
    ended: bool,
}

impl<C> Passing<C> {
    fn new(body: Body, change: C) -> Self {
        Self { body, change, ready: VecDeque::new(), ended: false }
    }
}

impl<C: Change> HttpBody for Passing<C> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        loop {
            while let Some(chunk) = this.ready.pop_front() {
                if !chunk.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(chunk))));
                }
            }
            if this.ended {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(chunk) = frame.into_data() {
                        this.ready.extend(this.change.push(chunk));
                    }
                }
                Some(Err(error)) => {
                    this.ended = true;
                    match this.change.fail(&error) {
                        Some(chunks) => this.ready.extend(chunks),
                        None => return Poll::Ready(Some(Err(error))),
                    }
                }
                None => {
                    this.ended = true;
                    this.ready.extend(this.change.finish());
                }
            }
        }
    }
}
