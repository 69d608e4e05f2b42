//! Lets a request in, or responds to it, and its response out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::header::{
    AUTHORIZATION, CONTENT_ENCODING, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as HttpBody;
use tokio::time::Instant;
use tower_gemini::call::Call;
use tower_gemini::keep_paid::CallerId;
use tower_gemini::verdict::{Charge, Verdict};

use super::allowance::{Allowance, Place, UsedUp};
pub(crate) use super::audit::Visit;
use super::owned::Created;
use super::paths::{Access, BadPath, DecodedPath, Kind};
use super::references::{self, Reference};
use super::tokens::Token;
use super::uploads::Here;
use super::{Connection, Door, heads, host};
use crate::auth::{Caller, UNAUTHENTICATED};
use crate::responses::{CHARGED, ErrorFormat, Rejection};
use crate::snapshot::Snapshot;
use crate::{limits, pages, wire};

/// A response that names what was created is far below this. Longer ones pass.
const MAX_READ_BYTES: u64 = 1024 * 1024;

/// In the extensions of a request that this process makes itself, for this token's owner; empty for
/// the operator. Nothing that came by a socket has it.
#[derive(Debug, Clone)]
pub(crate) struct Internal {
    pub(crate) owner: String,
}

/// In the extensions of a request for what this gateway serves itself: nothing of it is passed on, so
/// every token may ask for it, and it uses up no calls. Nothing that came by a socket has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServedHere;

fn owner_gone(owner: &str) -> Rejection {
    let message = format!("The token \"{owner}\" opens no more. Nothing was sent.");
    Rejection::new(StatusCode::UNAUTHORIZED, UNAUTHENTICATED, message)
}

/// A request that came in.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) caller: Caller,
    door: Arc<Door>,
    visit: Arc<Visit>,
    /// What it asks for, where callers have tokens.
    access: Option<Access>,
    place: Option<Place>,
    anonymous: Option<String>,
    here: Here,
}

/// Lets a request in, or responds to it: with a page of the gateway's own or a rejection.
pub(crate) async fn enter(
    gateway: &Snapshot,
    path: &str,
    started: Instant,
    request: Request<Body>,
) -> Result<(Request<Body>, Entry), Response<Body>> {
    let (mut parts, body) = request.into_parts();
    let door = gateway.door().clone();
    let connection = parts.extensions.get::<Connection>().copied();
    let peer = connection.map(|connection| connection.peer);
    let visit = Visit::new(door.clone(), &parts, path);
    let refuse = |rejection: Rejection| {
        visit.responded(rejection.status.as_u16());
        sealed(rejection.into_response(ErrorFormat::for_path(path)))
    };
    let server = &gateway.config().server;
    if let Some(rejection) = misdirected(gateway, path, &parts) {
        return Err(refuse(rejection));
    }
    let is_read = matches!(parts.method, Method::GET | Method::HEAD);
    if is_read && let Some(is_status) = pages::is_page(path) {
        let page = match is_status {
            true => may_see(gateway, path, &mut parts).await,
            false => Ok(()),
        };
        let page = page.and_then(|()| {
            pages::page(gateway, path, started).ok_or_else(|| Rejection::path(path))
        });
        return Err(match page {
            Ok(page) => {
                visit.responded(page.status().as_u16());
                sealed(page)
            }
            Err(rejection) => with_login(refuse(rejection)),
        });
    }
    if connection.is_some_and(|one| one.is_for_status) {
        return Err(refuse(Rejection::path(path)));
    }
    let decoded = decode(path).map_err(&refuse)?;
    if let Some(name) = heads::method_override(&parts) {
        let message = format!("{name} would make another request of this. Nothing was sent.");
        return Err(refuse(invalid(&message)));
    }
    if let Some(uri) = wire::with_path(&parts.uri, path, parts.uri.query()) {
        parts.uri = uri;
    }
    // The key leaves the URI before anything can print it.
    let owner = decoded.is_upload().then(|| door.uploads.owner(&parts.uri)).flatten();
    let here = Here::new(&parts.uri, &parts.headers, server.tls.is_some());
    let now = door.clock.now();
    let internal = parts.extensions.remove::<Internal>();
    let is_here = parts.extensions.remove::<ServedHere>().is_some();
    let admitted = match &internal {
        Some(Internal { owner }) if gateway.has_keys() => {
            gateway.auth().internal(owner, now).ok_or_else(|| owner_gone(owner))
        }
        _ => gateway.auth().admit(&mut parts, now).or_else(|rejection| {
            // Clients go on with an upload without a credential.
            let owner = owner.and_then(|name| gateway.auth().caller_named(&name, now));
            owner.ok_or(rejection)
        }),
    };
    let caller = match admitted {
        Ok(caller) => caller,
        Err(rejection) => {
            if rejection.status == StatusCode::UNAUTHORIZED {
                door.failures.count(peer).await;
            }
            return Err(refuse(rejection));
        }
    };
    visit.of(caller.token_name());
    let visit = Arc::new(visit);
    let refuse = |rejection: Rejection| {
        visit.responded(rejection.status.as_u16());
        sealed(rejection.into_response(ErrorFormat::for_path(path)))
    };
    let anonymous = caller.is_anonymous().then(|| {
        // Known again after a restart.
        if internal.is_some() {
            return "operator".to_owned();
        }
        let number = connection.map_or_else(
            || format!("r{}", door.next_anonymous.fetch_add(1, Ordering::Relaxed)),
            |connection| format!("c{}", connection.number),
        );
        format!("anonymous {:016x} {number}", door.process)
    });
    let (mut access, mut place) = (None, None);
    if let Some(token) = caller.token() {
        let project = gateway.route(true).and_then(|route| route.upstream.id().project.as_deref());
        let asked = match is_here {
            true => Access::Anybody,
            false => decoded.access(&parts.method, path, project),
        };
        check_access(&door, token, &parts, &decoded, &asked).await.map_err(&refuse)?;
        let allowance = door.allowances.of(token);
        let call = Call::parse(&parts.method, &parts.uri, &parts.headers, None);
        let is_charged = !is_here && call.can_be_charged() != Some(false);
        place = match allowance.enter(is_charged).await {
            Ok(place) => Some(place),
            Err(used_up) => return Err(used_up_response(used_up, refuse)),
        };
        heads::keep_allowed(&mut parts.headers);
        parts.extensions.insert::<Arc<Allowance>>(allowance);
        if asked == Access::Creates(Kind::Interaction) {
            door.watch_creation(&token.name, &visit);
        }
        access = Some(asked);
    }
    parts.extensions.insert(visit.clone());
    let entry = Entry { caller, door, visit, access, place, anonymous, here };
    Ok((Request::from_parts(parts, body), entry))
}

impl Entry {
    /// What tells this caller from others with the same credential, or without any.
    ///
    /// Behind a key of the gateway's own all callers have the same one: a response that is stored
    /// for one must not go to another. Callers without a credential are whoever is at the other end
    /// of the connection, and nobody after it.
    pub(crate) fn caller_id(&self) -> Option<CallerId> {
        let name = self.caller.token_name().or(self.anonymous.as_deref());
        name.map(CallerId::new)
    }

    /// Whether the body must be read before it is passed on. Not that of a file, nor where the list
    /// of tokens allows the path itself.
    pub(crate) fn reads_body(&self, method: &Method) -> bool {
        let is_checked = match &self.access {
            None | Some(Access::OptIn | Access::Creates(Kind::File)) => false,
            Some(_) => true,
        };
        is_checked && !method.is_safe() && *method != Method::DELETE
    }

    /// Refuses a body that refers to what was created through another token.
    pub(crate) async fn check_body(&self, body: &Bytes) -> Result<(), Rejection> {
        let Some(token) = self.caller.token().filter(|_| !body.is_empty()) else { return Ok(()) };
        let references = references::find(body).map_err(|error| {
            invalid(&format!("The body cannot be read as JSON: {error}. Nothing was sent."))
        })?;
        let mut kept = Vec::new();
        for reference in references {
            match reference {
                Reference::Kept(kind, id) => {
                    if !may(token, "GET", &["v1beta", kind.collection(), &id]) {
                        kept.push((kind, id));
                    }
                }
                Reference::Object(object) => {
                    let path: Vec<_> = std::iter::once("gs:").chain(object.split('/')).collect();
                    if !may(token, "GET", &path) {
                        return Err(not_yours(&format!("gs://{object}")));
                    }
                }
            }
        }
        match self.door.not_of(&token.name, kept).await {
            Some((kind, id)) => Err(not_yours(&format!("{}/{id}", kind.collection()))),
            None => Ok(()),
        }
    }

    /// Remembers what a response says was created, and passes the response on.
    pub(crate) async fn note(&self, mut response: Response<Body>) -> Response<Body> {
        if let Some(token) = self.caller.token_name() {
            self.door.uploads.lead_back(&mut response, token, &self.here);
        }
        let kind = match &self.access {
            Some(Access::Creates(kind) | Access::Owned(kind, _)) => *kind,
            _ => return response,
        };
        // An interaction is known by its trail.
        if kind == Kind::Interaction || !response.status().is_success() {
            return response;
        }
        let Some(token) = self.caller.token_name() else { return response };
        let (parts, body) = response.into_parts();
        let body = match read_short(body).await {
            Ok(Ok(body)) => body,
            Ok(Err(long)) => return Response::from_parts(parts, long),
            Err(error) => {
                tracing::debug!(%error, "a response that names what it created broke off");
                let rejection = Rejection::new(
                    StatusCode::BAD_GATEWAY,
                    "UNAVAILABLE",
                    "The upstream's response broke off.",
                );
                return rejection.into_response(ErrorFormat::Gemini);
            }
        };
        let of_another = |created: &Created| matches!(&self.access, Some(Access::Owned(_, id)) if created.kind == kind && created.id != *id);
        for created in Created::find(kind, &body).into_iter().filter(|one| !of_another(one)) {
            // Before the caller can ask for it, here or through another gateway.
            self.door.remember(token, created).wait().await;
        }
        Response::from_parts(parts, Body::from(body))
    }

    /// The response on its way out. `held` is held until its last byte.
    pub(crate) async fn leave(
        self,
        response: Response<Body>,
        held: impl Send + 'static,
    ) -> Response<Body> {
        let response = sealed(response);
        self.visit.responded(response.status().as_u16());
        if let Some(token) = self.caller.token_name() {
            for id in self.visit.interactions() {
                self.door.remember_interaction(token, &id).wait().await;
            }
        }
        limits::hold(response, (held, self.place, self.visit))
    }
}

/// Reads a short body to its end; a longer one is as it was. What is chunked states no length.
async fn read_short(body: Body) -> Result<Result<Bytes, Body>, axum::Error> {
    if body.size_hint().lower() > MAX_READ_BYTES {
        return Ok(Err(body));
    }
    let (mut rest, mut read, mut bytes) = (body.into_data_stream(), Vec::new(), 0);
    while let Some(chunk) = rest.try_next().await? {
        bytes += chunk.len() as u64;
        read.push(chunk);
        if bytes > MAX_READ_BYTES {
            let read = stream::iter(read.into_iter().map(Ok));
            return Ok(Err(Body::from_stream(read.chain(rest))));
        }
    }
    Ok(Ok(read.concat().into()))
}

/// Whether a token's own list allows something.
fn may(token: &Token, method: &str, path: &[impl AsRef<str>]) -> bool {
    token.grants.allow.iter().any(|pattern| pattern.allows(method, path))
}

/// Refuses what this token may not ask for.
async fn check_access(
    door: &Door,
    token: &Token,
    parts: &Parts,
    path: &DecodedPath,
    asked: &Access,
) -> Result<(), Rejection> {
    if let Some(name) = heads::billing_parameter(parts) {
        return Err(invalid(&format!("{name} would bill another project. Nothing was sent.")));
    }
    if parts.headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        let message = "Compressed bodies cannot be checked: send it as it is. Nothing was sent.";
        return Err(invalid(message));
    }
    let is_default = match asked {
        Access::Anybody | Access::Creates(_) => true,
        Access::Owned(kind, id) => {
            door.not_of(&token.name, vec![(*kind, id.clone())]).await.is_none()
        }
        Access::OptIn => false,
    };
    if is_default || may(token, parts.method.as_str(), path.segments()) {
        return Ok(());
    }
    Err(match asked {
        Access::Owned(kind, id) => not_yours(&format!("{}/{id}", kind.collection())),
        _ => Rejection::new(
            StatusCode::FORBIDDEN,
            "PERMISSION_DENIED",
            format!(
                "This token does not allow {} {}. Its owner can add it to `allow` in the list of \
                 tokens. Nothing was sent.",
                parts.method,
                tower_gemini::redact::redact(parts.uri.path())
            ),
        ),
    })
}

/// The same whether it exists or not.
fn not_yours(what: &str) -> Rejection {
    Rejection::new(
        StatusCode::FORBIDDEN,
        "PERMISSION_DENIED",
        format!(
            "{} was not created through this token, as far as this gateway remembers. Nothing was \
             sent.",
            tower_gemini::redact::redact(what)
        ),
    )
}

fn invalid(message: &str) -> Rejection {
    Rejection::new(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", message)
}

fn decode(path: &str) -> Result<DecodedPath, Rejection> {
    DecodedPath::parse(path).map_err(|bad| {
        invalid(match bad {
            BadPath::DotSegment => "The path has a segment of dots. Nothing was sent.",
            BadPath::Unreadable => "The path cannot be read as text. Nothing was sent.",
        })
    })
}

fn used_up_response(
    used_up: UsedUp,
    refuse: impl Fn(Rejection) -> Response<Body>,
) -> Response<Body> {
    let (message, wait) = match used_up {
        UsedUp::InFlight(most) => {
            let message = format!("This token has {most} requests in flight, which is all it may.");
            (message, Some(Duration::ZERO))
        }
        UsedUp::Calls { limit, per, wait } => {
            (format!("This token has made {limit} calls, which is all it may in a {per}."), wait)
        }
        UsedUp::NotGranted { wait } => {
            let message = "This token has made all the calls that it may, or the store that counts \
                           them does not answer.";
            (message.to_owned(), wait)
        }
    };
    let wait = wait.map(|wait| wait.as_secs().saturating_add(1));
    let message = format!("{message} Nothing was sent.");
    let rejection = Rejection::new(StatusCode::TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED", message);
    let mut response = refuse(rejection);
    if let Some(wait) = wait {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait));
    }
    response
}

/// Why a request on loopback is refused: a name of somebody else's leads here.
fn misdirected(gateway: &Snapshot, path: &str, parts: &Parts) -> Option<Rejection> {
    let connection = parts.extensions.get::<Connection>();
    let is_refused = connection.is_some_and(Connection::is_loopback)
        && pages::is_page(path) != Some(false)
        && !host::is_local(&parts.uri, &parts.headers, &gateway.config().server.hosts);
    is_refused.then(|| {
        Rejection::new(
            StatusCode::MISDIRECTED_REQUEST,
            "PERMISSION_DENIED",
            "This gateway listens on loopback and answers to localhost and its addresses only. \
             Add the name that you use to server.hosts. Nothing was sent.",
        )
    })
}

/// Lets a request for a page in that is served by the rule of the status pages, or responds to it.
/// The response goes out by [`leave_page`].
#[cfg(feature = "jobs")]
pub(crate) async fn enter_page(
    gateway: &Snapshot,
    path: &str,
    parts: &mut Parts,
) -> Result<Visit, Response<Body>> {
    let visit = Visit::new(gateway.door().clone(), parts, path);
    let refused = match misdirected(gateway, path, parts) {
        Some(rejection) => Err(rejection),
        None => may_see(gateway, path, parts).await,
    };
    match refused.and_then(|()| pages::check_open(gateway)) {
        Ok(()) => Ok(visit),
        Err(rejection) => {
            let response = rejection.into_response(ErrorFormat::for_path(path));
            Err(with_login(leave_page(&visit, response)))
        }
    }
}

/// Counts a signature that is wrong as a login that failed: it waits as they do.
#[cfg(feature = "jobs")]
pub(crate) async fn count_failure(gateway: &Snapshot, parts: &Parts) {
    let peer = parts.extensions.get::<Connection>().map(|connection| connection.peer);
    gateway.door().failures.count(peer).await;
}

/// The response of a page, or of what else needs no caller, on its way out.
#[cfg(feature = "jobs")]
pub(crate) fn leave_page(visit: &Visit, response: Response<Body>) -> Response<Body> {
    visit.responded(response.status().as_u16());
    sealed(response)
}

/// Whether the status pages are for this request: for everybody on loopback and on their own port,
/// elsewhere for tokens that allow them.
async fn may_see(gateway: &Snapshot, path: &str, parts: &mut Parts) -> Result<(), Rejection> {
    let not_here = |message: &str| Rejection::new(StatusCode::NOT_FOUND, "NOT_FOUND", message);
    let connection = parts.extensions.get::<Connection>().copied();
    let Some(connection) = connection else { return Ok(()) };
    let server = &gateway.config().server;
    if connection.is_for_status {
        return Ok(());
    }
    if server.status_listen.is_some() {
        return Err(not_here("The status pages have a port of their own: server.status_listen."));
    }
    if connection.is_loopback() || !server.status_page {
        return Ok(());
    }
    basic_to_bearer(parts);
    let door = gateway.door();
    let caller = match gateway.auth().admit(parts, door.clock.now()) {
        Ok(caller) => caller,
        Err(rejection) => {
            if rejection.status == StatusCode::UNAUTHORIZED {
                door.failures.count(Some(connection.peer)).await;
            }
            return Err(rejection);
        }
    };
    match caller.token() {
        Some(token) if may(token, "GET", &[path.trim_start_matches('/')]) => Ok(()),
        Some(_) => Err(Rejection::new(
            StatusCode::FORBIDDEN,
            "PERMISSION_DENIED",
            format!("This token does not allow GET {path}: its `allow` has no such entry."),
        )),
        None => Err(not_here(
            "The status pages are served on loopback, to tokens that allow them, and on \
             server.status_listen.",
        )),
    }
}

/// Browsers ask their users for a name and a password: the password is the token.
fn basic_to_bearer(parts: &mut Parts) {
    let value = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let basic = value.and_then(|value| value.strip_prefix("Basic "));
    let decoded = basic.and_then(|text| BASE64_STANDARD.decode(text.trim()).ok());
    let password = decoded.and_then(|pair| {
        let pair = String::from_utf8(pair).ok()?;
        Some(format!("Bearer {}", pair.split_once(':')?.1))
    });
    if let Some(mut bearer) = password.and_then(|text| HeaderValue::try_from(text).ok()) {
        bearer.set_sensitive(true);
        parts.headers.insert(AUTHORIZATION, bearer);
    }
}

fn with_login(mut response: Response<Body>) -> Response<Body> {
    if response.status() == StatusCode::UNAUTHORIZED {
        let ask = HeaderValue::from_static("Basic realm=\"gemini-gateway\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, ask);
    }
    response
}

/// What holds for every response: no browser guesses another type for it, and the protocol stays.
fn sealed(response: Response<Body>) -> Response<Body> {
    let mut response = match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => not_switched(&response),
        _ => response,
    };
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// After a 101 the connection speaks something else, which nobody here asked for.
fn not_switched(response: &Response<Body>) -> Response<Body> {
    let verdict = response.extensions().get::<Verdict>();
    let is_free = verdict.is_none_or(|verdict| verdict.charge() == Charge::None);
    // Clients resend a 502.
    let status = if is_free { StatusCode::BAD_GATEWAY } else { CHARGED };
    let message = "The upstream switched to another protocol (101), which was refused.";
    Rejection::new(status, "UNAVAILABLE", message).into_response(ErrorFormat::Gemini)
}
