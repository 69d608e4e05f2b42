//! Handles one request: from the caller's socket to a stack, and the response back.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use tokio::time::Instant;
use tower::ServiceExt;
use tower_gemini::CallOptions;
use tower_gemini::answer_errors::{RetryHeaders, set_retry_headers};
use tower_gemini::call::{Call, Dialect};
use tower_gemini::clock::{Clock, SystemClock};
use tower_gemini::headers;
use tower_gemini::keep_paid::{IdempotencyKeyRejected, ResponseFormat};
use tower_gemini::trail::Trail;
use tower_gemini::verdict::Verdict;
use tower_gemini_openai::{Endpoint, ResponseTranslator, list_models, to_gemini};

use crate::body_fault::BodyFault;
use crate::door::entry::{self, Entry, Visit};
use crate::heartbeat::with_heartbeat;
use crate::limits::BoundedBody;
use crate::memory::{Handling, RequestMemory};
use crate::queue::Place;
use crate::report;
use crate::responses::{ErrorFormat, Rejection, error_response, json_response};
use crate::snapshot::Snapshot;
use crate::stacks::{Stack, Stacks};
use crate::transform::Transform;
use crate::wire::now_unix;
use crate::{config, mask, memory, several, wire};

/// Answers one request: with a page of the gateway's own, a rejection, or the upstream's response.
pub(crate) async fn handle(
    gateway: Arc<Snapshot>,
    started: Instant,
    request: Request<Body>,
) -> Response<Body> {
    let path = wire::collapse_slashes(request.uri().path()).into_owned();
    let (request, entry) = match entry::enter(&gateway, &path, started, request).await {
        Ok(entered) => entered,
        Err(response) => return response,
    };
    let format = ErrorFormat::for_path(&path);
    let server = &gateway.config().server;
    let max_body = server.max_body.0;
    // What its `Content-Length` says.
    if request.body().size_hint().lower() > max_body as u64 {
        let rejection = Rejection::fault(BodyFault::TooLarge { limit: max_body });
        return entry.leave(rejection.into_response(format), ()).await;
    }
    match route(gateway, path, &entry, request).await {
        // Its place and memory are taken until the last byte is out.
        Ok((response, taken)) => entry.leave(response, taken).await,
        Err(rejection) => entry.leave(rejection.into_response(format), ()).await,
    }
}

/// Sends a request that came in to the upstream of its path.
async fn route(
    gateway: Arc<Snapshot>,
    path: String,
    entry: &Entry,
    request: Request<Body>,
) -> Result<(Response<Body>, (Place, Arc<RequestMemory>)), Rejection> {
    let (mut parts, body) = request.into_parts();
    // Vertex AI has an OpenAI-style API of its own, with another bill: its paths are not
    // translated.
    let endpoint = Endpoint::from_path(&path).filter(|_| !wire::is_vertex(&path));
    let handling = Handling::of(&parts, endpoint);
    let arrived = Instant::now();
    let size = (handling, body.size_hint());
    let sharer = entry.caller.sharer();
    let (place, memory) = memory::admit(gateway.queue(), sharer, &parts, size).await?;
    parts.extensions.insert(Arrived(arrived));
    parts.extensions.insert(memory.clone());
    let config::Server { max_body, body_idle_timeout, .. } = &gateway.config().server;
    let body = BoundedBody::new(body, max_body.0, body_idle_timeout.0, Some(memory.clone()));
    let request = (parts, Body::new(body));
    let response = forward(gateway, path, endpoint, entry, request).await?;
    Ok((response, (place, memory)))
}

/// Sends an admitted request to the upstream of its path.
async fn forward(
    gateway: Arc<Snapshot>,
    path: String,
    endpoint: Option<Endpoint>,
    entry: &Entry,
    (mut parts, body): (Parts, Body),
) -> Result<Response<Body>, Rejection> {
    let caller = &entry.caller;
    wire::clean_request(&mut parts.headers);
    if let Some(resends) = maybe_charged_resends(&mut parts.headers)? {
        parts.extensions.insert(resends);
    }
    if let Some(patience) = deferrable_for(&mut parts.headers)? {
        parts.extensions.insert(patience);
    }
    if let Some(id) = entry.caller_id() {
        parts.extensions.insert(id);
    }
    match endpoint {
        Some(Endpoint::Models) if parts.method == Method::GET && !caller.is_googles() => {
            Ok(json_response(StatusCode::OK, list_models(gateway.catalog(), now_unix())))
        }
        Some(endpoint) if endpoint != Endpoint::Models && parts.method == Method::POST => {
            let body = collect(body).await?;
            let translated = match to_gemini(endpoint, &parts.headers, &body) {
                Ok(translated) => translated,
                Err(error) => {
                    let (status, body) = error.into_parts();
                    return Ok(json_response(status, body));
                }
            };
            entry.check_body(&translated.body).await?;
            let route = gateway.route(false).ok_or_else(|| Rejection::path(&path))?;
            parts.headers = headers_for_gemini(&parts.headers);
            caller.sign_openai(&route.upstream, &mut parts.headers);
            parts.uri = wire::upstream_uri(route.upstream.base(), &translated.path_and_query)
                .ok_or_else(|| Rejection::path(&path))?;
            // What is stored for this request must not go to one with the same bytes on Google's
            // path.
            parts.extensions.insert(ResponseFormat::new(&translated.translator.to_string()));
            let stacks = route.stacks.clone();
            let reply = Some((translated.translator, translated.count));
            Ok(generate(gateway, stacks, parts, translated.body, reply).await)
        }
        _ => {
            let route = gateway.route(wire::is_vertex(&path));
            let route = route.ok_or_else(|| Rejection::path(&path))?;
            caller.sign(&route.upstream, &path, &mut parts.headers);
            let path_and_query = parts.uri.path_and_query().map_or("/", |path| path.as_str());
            parts.uri = wire::upstream_uri(route.upstream.base(), path_and_query)
                .ok_or_else(|| Rejection::path(&path))?;
            let call = Call::parse(&parts.method, &parts.uri, &parts.headers, None);
            if call.dialect == Dialect::Unrecognised || !call.generates() {
                // Files, lists, operations, counts: passed through unchanged and unbuffered.
                let body = match entry.reads_body(&parts.method) {
                    true => {
                        let body = collect(body).await?;
                        entry.check_body(&body).await?;
                        Body::from(body)
                    }
                    false => body,
                };
                let call = (route.stacks.plain.clone(), Request::from_parts(parts, body));
                let response = send(&gateway, call, None, false).await;
                return Ok(entry.note(reported(&gateway, response)).await);
            }
            let body = collect(body).await?;
            entry.check_body(&body).await?;
            let stacks = route.stacks.clone();
            Ok(generate(gateway, stacks, parts, body, None).await)
        }
    }
}

/// What [`wire::MAYBE_CHARGED_RESENDS`] says, in the extensions of a request.
#[derive(Debug, Clone, Copy)]
struct MaybeChargedResends(u32);

/// Takes the header out: it is not for the upstream.
fn maybe_charged_resends(
    headers: &mut HeaderMap,
) -> Result<Option<MaybeChargedResends>, Rejection> {
    let Some(value) = headers.remove(wire::MAYBE_CHARGED_RESENDS) else { return Ok(None) };
    let resends = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    match resends.filter(|resends| *resends <= MOST_MAYBE_CHARGED_RESENDS) {
        Some(resends) => Ok(Some(MaybeChargedResends(resends))),
        None => {
            let message = format!(
                "{} is the number of resends that may be charged again: write 0 to \
                 {MOST_MAYBE_CHARGED_RESENDS}. Nothing was sent.",
                wire::MAYBE_CHARGED_RESENDS
            );
            Err(Rejection::new(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", message))
        }
    }
}

/// What [`wire::DEFERRABLE_FOR`] says, in the extensions of a request.
#[derive(Debug, Clone, Copy)]
struct DeferrableFor(Duration);

/// What a call that waited for quiet hours has left to be made in: all targets of a chain, as
/// `FallbackPolicy::recommended` gives them.
const AFTER_WAITING: Duration = Duration::from_secs(30 * 60);

/// No call waits longer: every peak of a day is over within one. Ours.
const LONGEST_DEFERRAL: Duration = Duration::from_secs(24 * 3600);

/// Takes the header out: it is not for the upstream.
fn deferrable_for(headers: &mut HeaderMap) -> Result<Option<DeferrableFor>, Rejection> {
    let Some(value) = headers.remove(wire::DEFERRABLE_FOR) else { return Ok(None) };
    match value.to_str().ok().and_then(|text| config::Span::parse(text.trim())) {
        Some(patience) => Ok(Some(DeferrableFor(patience.0.min(LONGEST_DEFERRAL)))),
        None => {
            let message = format!(
                "{} is a duration such as \"30m\" or \"2h\". Nothing was sent.",
                wire::DEFERRABLE_FOR
            );
            Err(Rejection::new(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", message))
        }
    }
}

/// Ours: as many as any client that was measured resends by itself.
const MOST_MAYBE_CHARGED_RESENDS: u32 = 10;

/// Sends a request that generates something, and may cost something: as often as `reply` says.
async fn generate(
    gateway: Arc<Snapshot>,
    stacks: Arc<Stacks>,
    mut parts: Parts,
    body: Bytes,
    reply: Option<(ResponseTranslator, usize)>,
) -> Response<Body> {
    headers::for_rebuilt_body(&mut parts.headers, None);
    let call = Call::parse(&parts.method, &parts.uri, &parts.headers, Some(&body));
    let streams = call.is_streaming();
    if let Some(memory) = parts.extensions.get::<Arc<RequestMemory>>() {
        // What it was translated from is gone.
        let weight = match &reply {
            None => memory::RESPONSE_PASSED,
            Some(_) if streams => memory::RESPONSE_STREAMED,
            Some(_) => memory::RESPONSE_TRANSLATED,
        };
        memory.settle(body.len(), weight);
    }
    let stack = match call.is_continuation {
        true => stacks.plain.clone(),
        false if streams => stacks.stream.clone(),
        false => stacks.whole.clone(),
    };
    gateway.trace(&call, &mut parts.extensions);
    let settings = &gateway.config().responses;
    let heartbeat = settings.heartbeat.filter(|_| !streams && !call.is_continuation);
    let strips = settings.strip_drafts && streams && call.wants_image && !call.is_continuation;
    match &reply {
        Some((reply, 1)) => drop(parts.extensions.insert(Transform::OpenAi(reply.clone()))),
        Some((reply, _)) => drop(parts.extensions.insert(Transform::OpenAiPart(reply.clone()))),
        None if strips => drop(parts.extensions.insert(Transform::StripDrafts)),
        None => {}
    }
    // A caller's timeout between two bytes is one for the whole call where nothing is sent before
    // the end.
    let silent = !streams && heartbeat.is_none();
    let (reply, count) = reply.map_or((None, 1), |(reply, count)| (Some(reply), count));
    let response = async move {
        let Some(reply) = reply.as_ref().filter(|_| count > 1) else {
            let call = (stack, Request::from_parts(parts, Body::from(body)));
            let response = send(&gateway, call, reply.as_ref(), silent).await;
            return reported(&gateway, response);
        };
        let each = |parts| {
            let (gateway, stack, reply) = (gateway.clone(), stack.clone(), reply.clone());
            let call = (stack, Request::from_parts(parts, Body::from(body.clone())));
            async move { send(&gateway, call, Some(&reply), silent).await }
        };
        let (response, calls) = match streams {
            true => several::stream(parts, reply, count, each).await,
            false => several::answer(parts, reply, count, each).await,
        };
        with_report(&gateway, response, &calls)
    };
    match heartbeat {
        Some(after) => with_heartbeat(response, after.0).await,
        None => response.await,
    }
}

/// When a request came, in its extensions: the caller's time runs since then.
#[derive(Debug, Clone, Copy)]
struct Arrived(Instant);

/// Sends a request through a stack and finishes the response's head, but for what is reported.
async fn send(
    gateway: &Snapshot,
    (stack, mut request): (Stack, Request<Body>),
    reply: Option<&ResponseTranslator>,
    silent: bool,
) -> Response<Body> {
    // Those of a request that this process makes itself; no socket sets any.
    let mut options = request.extensions_mut().remove::<CallOptions>().unwrap_or_default();
    let trail = options.trail_mut().clone();
    let asked = options.deadline_within();
    if let Some(visit) = request.extensions().get::<Arc<Visit>>() {
        visit.follow(&trail);
    }
    options = options.must_keep(gateway.must_keep());
    let retry = &gateway.config().retry;
    let memory = request.extensions_mut().remove::<Arc<RequestMemory>>();
    // Held until the response begins. Where there is no room to wait, the call is sent at once.
    let deferred = request.extensions().get().and_then(|&DeferrableFor(patience)| {
        let delay = gateway.layers().peak.delay(patience)?;
        Some((patience, delay, memory.as_ref()?.defer()?))
    });
    let usual = retry.deadline.map(|deadline| deadline.0);
    let own = match &deferred {
        // The usual time begins when the wait is over.
        Some((patience, delay, _)) => {
            options = options.deferrable_for(*patience);
            Some(*delay + usual.unwrap_or(AFTER_WAITING).max(AFTER_WAITING))
        }
        None => usual,
    };
    let own = shorter(asked, own);
    if let Some(within) = shorter(wire::stated_deadline(request.headers(), silent), own) {
        let waited =
            request.extensions().get().map_or(Duration::ZERO, |at: &Arrived| at.0.elapsed());
        options = options.deadline(within.saturating_sub(waited));
    }
    if let Some(memory) = memory {
        let response = memory.response();
        request.extensions_mut().insert(response.clone());
        options = options.memory(response);
    }
    // For every call, also for one whose earlier send, by a client that disconnected, may have been
    // paid for and is lost.
    let stated = request.extensions().get().map(|&MaybeChargedResends(resends)| resends);
    let resends = stated.unwrap_or(retry.maybe_charged_resends);
    if resends > 0 {
        options = options.maybe_charged_resends(resends);
    }
    let options = gateway.otel().begin(&mut request, options);
    request.extensions_mut().insert(options);
    let now = SystemClock.now();
    let mut told = RetryHeaders::default();
    told.longest_retry_after = gateway.config().responses.longest_retry_after.0;
    let response = stack.oneshot(request).await;
    drop(deferred);
    let response = match response {
        Ok(response) => {
            let (mut parts, body) = response.into_parts();
            wire::clean_response(&mut parts.headers);
            let verdict = parts.extensions.get::<Verdict>().cloned();
            set_retry_headers(&mut parts.status, &mut parts.headers, verdict.as_ref(), &told, now);
            match reply {
                // Answered above the layer that translates.
                Some(reply) if parts.extensions.get::<IdempotencyKeyRejected>().is_some() => {
                    let body = collect(body).await.unwrap_or_default();
                    to_openai(Response::from_parts(parts, body), reply)
                }
                _ => Response::from_parts(parts, body),
            }
        }
        Err(error) => {
            let mut response = error_response(&error, &told, now);
            response.extensions_mut().insert(error.verdict().clone());
            match reply {
                None => response.map(Body::from),
                Some(reply) => to_openai(response, reply),
            }
        }
    };
    // Whose project the gateway's own key belongs to concerns no caller.
    let mut response = match gateway.has_keys() {
        true => mask::redacted(response).await,
        false => response,
    };
    report::add_interaction(response.headers_mut(), &trail);
    response.extensions_mut().insert(trail);
    response
}

/// Adds the headers that report what happened to a call, where they are asked for. In what its
/// response differs from what was asked for is there already, also of a stored one.
fn reported(gateway: &Snapshot, response: Response<Body>) -> Response<Body> {
    let calls = Vec::from_iter(response.extensions().get::<Trail>().cloned());
    with_report(gateway, response, &calls)
}

fn with_report(
    gateway: &Snapshot,
    mut response: Response<Body>,
    calls: &[Trail],
) -> Response<Body> {
    if gateway.config().responses.report_headers {
        report::add(response.headers_mut(), calls);
    }
    response
}

/// Translates a response in Google's format that no layer has translated.
fn to_openai(response: Response<Bytes>, reply: &ResponseTranslator) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let (status, body) = reply.response(parts.status, &body, now_unix());
    parts.status = status;
    headers::for_changed_body(&mut parts.headers, Some(body.len() as u64));
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Response::from_parts(parts, Body::from(body))
}

fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    a.into_iter().chain(b).min()
}

/// Reads the whole body of a request. Its limits, in bytes and in time, are the server's.
pub(crate) async fn collect(mut body: Body) -> Result<Bytes, Rejection> {
    // In one piece from the start: joined at the end, it would be there twice.
    let length = body.size_hint().exact().and_then(|length| usize::try_from(length).ok());
    let mut whole = Vec::with_capacity(length.unwrap_or(0));
    while let Some(frame) = body.frame().await {
        if let Ok(chunk) = frame.map_err(|error| Rejection::body(&error))?.into_data() {
            whole.extend_from_slice(&chunk);
        }
    }
    Ok(whole.into())
}

/// The head of a translated request: nothing of OpenAI's own.
fn headers_for_gemini(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    // `x-sim-call` ties attempts together in a simulator's ledger, and means nothing to Google. The
    // trace belongs to the caller.
    let names = [
        USER_AGENT,
        wire::SERVER_TIMEOUT,
        wire::READ_TIMEOUT,
        wire::RETRY_COUNT,
        wire::IDEMPOTENCY_KEY,
        HeaderName::from_static("traceparent"),
        HeaderName::from_static("tracestate"),
        HeaderName::from_static("x-sim-call"),
    ];
    for name in names {
        for value in headers.get_all(&name) {
            kept.append(&name, value.clone());
        }
    }
    kept.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    kept.insert(ACCEPT, HeaderValue::from_static("*/*"));
    kept
}
