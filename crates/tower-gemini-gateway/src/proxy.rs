//! One request on its way through: from the caller's socket to the stack, and the answer back.

use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Body;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_gemini::CallOptions;
use tower_gemini::Trail;
use tower_gemini::answer_errors::set_retry_headers;
use tower_gemini::call::{Call, Dialect, Verb};
use tower_gemini::clock::{Clock, SystemClock};
use tower_gemini::keep_paid::{CallerId, IdempotencyKeyRejected, ResponseFormat};
use tower_gemini::verdict::Verdict;

use crate::answers::CHARGED;
use crate::gateway::Gateway;
use crate::hold::or_heartbeat;
use crate::openai::{self, Kind, Reply};
use crate::services::Answers;
use crate::tell::Manner;
use crate::{answers, report, wire};

/// Answers one request of a caller. Never fails: whatever happens is an answer in the form that the
/// path's clients read.
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
    // Behind a key of the gateway's own all callers have the same one: an answer that is kept for
    // one must not go to another.
    if let Some(name) = caller.token_name() {
        parts.extensions.insert(CallerId::new(name));
    }
    // Vertex has an OpenAI-style door of its own, and another bill: what knocks there goes there.
    let kind = openai::route(&path).filter(|_| !wire::is_vertex(&path));
    match kind {
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
            let Some(uri) = wire::upstream_uri(gateway.upstream(), &translated.path_and_query)
            else {
                return answers::refused(form, &answers::Refused::path(&path));
            };
            parts.uri = uri;
            // What is kept for this request must not go to one of the same bytes in Google's words.
            parts.extensions.insert(ResponseFormat::new(&translated.reply.format_name()));
            generate(gateway, parts, translated.body, Some(translated.reply)).await
        }
        _ => {
            caller.sign_for(&path, &mut parts.headers);
            let base = if wire::is_vertex(&path) { gateway.vertex() } else { gateway.upstream() };
            let path_and_query =
                parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
            let Some(uri) = wire::upstream_uri(base, &path_and_query) else {
                return answers::refused(form, &answers::Refused::path(&path));
            };
            parts.uri = uri;
            let head = Call::parse(&parts.method, &parts.uri, &parts.headers, None);
            if head.dialect == Dialect::Unrecognised || !makes_something(&head) {
                // Files, lists, operations, counts: passed through as they are, and never held
                // whole.
                let services = gateway.services();
                return ask(
                    &gateway,
                    services.plain.clone(),
                    Request::from_parts(parts, body),
                    None,
                    false,
                )
                .await;
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
async fn generate(
    gateway: Arc<Gateway>,
    mut parts: Parts,
    body: Bytes,
    reply: Option<Reply>,
) -> Response<Body> {
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
    let strips =
        settings.strip_drafts && call.is_streaming() && call.wants_image && !call.is_continuation;
    match &reply {
        Some(reply) => drop(parts.extensions.insert(Manner::OpenAi(reply.clone()))),
        None if strips => drop(parts.extensions.insert(Manner::WithoutDrafts)),
        None => {}
    }
    // A caller's timeout between two bytes is one of the whole call where nothing comes before its
    // end.
    let silent = !call.is_streaming() && heartbeat.is_none();
    let request = Request::from_parts(parts, Body::from(body));
    let answer = async move { ask(&gateway, stack, request, reply.as_ref(), silent).await };
    match heartbeat {
        Some(after) => or_heartbeat(answer, after).await,
        None => answer.await,
    }
}

/// Sends a request through a stack. What is paid for and what is to be waited for stands in the
/// answer's head.
async fn ask(
    gateway: &Gateway,
    stack: Answers,
    mut request: Request<Body>,
    reply: Option<&Reply>,
    silent: bool,
) -> Response<Body> {
    let trail = Trail::new();
    let mut options = CallOptions::new().trail(trail.clone()).must_keep(gateway.must_keep());
    if let Some(within) =
        shorter(wire::stated_deadline(request.headers(), silent), gateway.answers().deadline)
    {
        options = options.deadline(within);
    }
    // Bought for every call: also for one whose earlier send, by a caller that went away, may have
    // been paid for and is lost.
    if gateway.maybe_charged_resends() > 0 {
        options = options.maybe_charged_resends(gateway.maybe_charged_resends());
    }
    request.extensions_mut().insert(options);
    let now = SystemClock.now();
    let mut answer = match stack.oneshot(request).await {
        Ok(answer) => {
            let (mut parts, body) = answer.into_parts();
            wire::clean_answer(&mut parts.headers);
            let verdict = parts.extensions.get::<Verdict>().cloned();
            set_retry_headers(
                &mut parts.status,
                &mut parts.headers,
                verdict.as_ref(),
                CHARGED,
                now,
            );
            match reply {
                // Answered above what translates.
                Some(reply) if parts.extensions.get::<IdempotencyKeyRejected>().is_some() => {
                    let body = collect(body).await.unwrap_or_default();
                    in_openais_words(Response::from_parts(parts, body), reply)
                }
                _ => Response::from_parts(parts, body),
            }
        }
        Err(error) => {
            let answer = answers::of_error(&error, now);
            match reply {
                None => answer.map(Body::from),
                Some(reply) => in_openais_words(answer, reply),
            }
        }
    };
    answer = gateway.auth().hide_key(answer).await;
    if gateway.answers().report_headers {
        report::add(answer.headers_mut(), &trail);
    }
    answer
}

/// An answer in Google's words that nothing below has translated.
fn in_openais_words(answer: Response<Bytes>, reply: &Reply) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    let (status, body) = reply.whole(parts.status, &body, now_unix());
    parts.status = status;
    wire::forget_length(&mut parts.headers);
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Response::from_parts(parts, Body::from(body))
}

fn shorter(
    a: Option<std::time::Duration>,
    b: Option<std::time::Duration>,
) -> Option<std::time::Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The body of a request, whole. Its bounds, in bytes and in time, are the server's.
async fn collect(body: Body) -> Result<Bytes, answers::Refused> {
    body.collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| answers::Refused::body(&error))
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

/// Seconds since 1970.
pub(crate) fn now_unix() -> u64 {
    SystemClock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
