use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::body::CallBody;
use crate::call_memory::CallMemory;
use crate::call_state::CallState;
use crate::error::{Error, TimeLimit};
use crate::trail::{Step, StopReason};
use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tower_gemini_core::verdict::Verdict;
use tower_service::Service;

use super::body::{ForegroundCall, ResponseBody};
use super::calls::{Ask, Client, Found, Keyed, after};
use super::fingerprint::Fingerprint;
use super::in_flight::{CompletableBody, InFlight, read_response};
use super::journal::{JournalGate, LOOK_AGAIN};
use super::registry::Registry;
use super::room::Room;
use super::shares::Caller;
use super::stored::{CallId, StoredResponse};
use crate::ready::{take_ready, until_ready};
use crate::refusal::Refusal;
use crate::store::{JournalChange, StoreError};

/// Says that two requests are one (the IETF's draft of the HTTP `Idempotency-Key` header).
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Numbers the sends of openai's clients; 0 is the first.
const RETRY_COUNT: HeaderName = HeaderName::from_static("x-stainless-retry-count");

const LOST: &str = "not sent: an earlier identical request was or may have been charged, and its response was lost; identical requests within \
                    a minute of each other get this error, unless they allow a resend that may be charged again";
const LOST_KEYED: &str = "not sent: an earlier request with this Idempotency-Key was or may have been charged, and its response was lost; use \
                          another key to send it again";
const KEY_REUSED: (&str, &str) = (
    "IDEMPOTENCY_KEY_REUSED",
    "Not sent: this Idempotency-Key was used for another request. A new request needs a new key.",
);
const TOO_MANY: (&str, &str) = (
    "TOO_MANY_WAIT_FOR_ONE_CALL",
    "Not sent: enough requests wait for the response of this same call, or are given it. Send it again when one of them has ended.",
);
const TOO_LARGE_FOR_A_KEY: (&str, &str) = (
    "IDEMPOTENCY_KEY_NOT_HONOURED",
    "Not sent: a request of this size is not held in memory, so its Idempotency-Key cannot prevent a second charge. Send it without the key, \
     or send a smaller request.",
);

/// Marks a response to a request that was not sent because of its `Idempotency-Key`.
///
/// The key was used for another request (status 422), the request is too large to be held in memory
/// and compared (413), or enough requests wait for the same call (429). The body is an error in Google's form. In the response's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct IdempotencyKeyRejected;

/// Completes and stores the responses of calls whose clients disconnected. See the
/// [module](super).
#[derive(Debug, Clone)]
pub struct KeepPaid<S> {
    inner: S,
    /// `None` where the layer is off.
    registry: Option<Arc<Registry>>,
}

crate::access::inner_access!(KeepPaid);

impl<S> KeepPaid<S> {
    pub(super) fn new(inner: S, registry: Option<Arc<Registry>>) -> Self {
        Self { inner, registry }
    }
}

/// A service that takes calls and returns responses that can be stored: what [`KeepPaid`] stands
/// on.
///
/// Implemented for every such service; there is nothing to implement by hand.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot stand below KeepPaid",
    label = "KeepPaid stores response bodies: it stands below CollectRequest and over FinalImageJson or the layers of the call stage; FinalImageExtract returns decoded images",
    note = "use `GeminiStack::json` instead of `images`, and read the image with `FinalImage::from_json`"
)]
pub trait StorableService:
    Service<
        Request<CallBody>,
        Response = Response<<Self as StorableService>::ResponseBody>,
        Error = Error,
        Future: Send,
    > + Clone
    + Send
    + 'static
{
    /// The body of its responses.
    type ResponseBody: CompletableBody;
}

#[diagnostic::do_not_recommend]
impl<S, B> StorableService for S
where
    S: Service<Request<CallBody>, Response = Response<B>, Error = Error, Future: Send>
        + Clone
        + Send
        + 'static,
    B: CompletableBody,
{
    type ResponseBody = B;
}

type Stored<S> = Response<ResponseBody<<S as StorableService>::ResponseBody>>;

impl<S: StorableService> Service<Request<CallBody>> for KeepPaid<S> {
    type Response = Stored<S>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<CallBody>) -> Self::Future {
        let mut inner = take_ready(&mut self.inner);
        let passing = |response: S::Future| -> Self::Future {
            Box::pin(async move { Ok(response.await?.map(ResponseBody::passing)) })
        };
        let Some(registry) = self.registry.clone() else { return passing(inner.call(request)) };
        // The upstream does not know the header.
        let key = request.headers_mut().remove(IDEMPOTENCY_KEY);
        let call = request.body().call();
        let generates = call.generates() && !call.is_continuation;
        let fingerprint = generates.then(|| Fingerprint::of_request(&request)).flatten();
        let Some(fingerprint) = fingerprint else {
            if generates && key.is_some() {
                let state = request.body().state();
                let refused = rejected(state, StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE_FOR_A_KEY);
                return Box::pin(async move { Ok(refused) });
            }
            return passing(inner.call(request));
        };
        let retries = request
            .headers()
            .get(RETRY_COUNT)
            .and_then(|count| count.to_str().ok()?.trim().parse::<u32>().ok());
        // The client's time bounds how long it waits, and not what was paid for.
        request.body().state().finish_attempts();
        let asked = Asked {
            registry,
            fingerprint,
            caller: Fingerprint::of_caller(&request).short(),
            state: request.body().state().clone(),
            marks_resends: retries.is_some(),
            is_resend: retries.is_some_and(|retries| retries > 0),
        };
        match key.filter(|_| Handle::try_current().is_ok()) {
            Some(key) => {
                let key = Fingerprint::of_key(&request, key.as_bytes());
                Box::pin(asked.respond_keyed(key, Below::new(inner), request))
            }
            None => Box::pin(asked.respond(Below::new(inner), request)),
        }
    }
}

/// The service below: ready, until its place is given to others.
struct Below<S> {
    inner: S,
    is_ready: bool,
}

impl<S: StorableService> Below<S> {
    fn new(inner: S) -> Self {
        Self { inner, is_ready: true }
    }

    /// Whoever waits for the response of another call sends nothing meanwhile, and perhaps never: a
    /// place in the service below is not held while others could use it.
    fn give_place(&mut self) {
        if std::mem::take(&mut self.is_ready) {
            self.inner = self.inner.clone();
        }
    }

    async fn call(
        mut self,
        request: Request<CallBody>,
    ) -> Result<Response<S::ResponseBody>, Error> {
        if !self.is_ready {
            let state = request.body().state().clone();
            until_ready(&mut self.inner, &state).await?;
        }
        self.inner.call(request).await
    }
}

/// A request, and who it is from.
struct Asked {
    registry: Arc<Registry>,
    fingerprint: Fingerprint,
    caller: Caller,
    state: CallState,
    marks_resends: bool,
    is_resend: bool,
}

impl Asked {
    /// Replays what is stored for this request, or sends it.
    async fn respond<S: StorableService>(
        self,
        mut below: Below<S>,
        request: Request<CallBody>,
    ) -> Result<Stored<S>, Error> {
        let settings = &self.registry.settings;
        let grace = if self.is_resend { settings.resend_grace } else { settings.grace };
        let asked = Instant::now();
        let grace = after(asked, grace);
        loop {
            let elsewhere = self.claim(self.fingerprint, self.is_resend).await?;
            match self.find(Instant::now() < grace) {
                Found::Response(id, response) => {
                    let replay = self.replay(id, response);
                    if self.takes(id).await {
                        return Ok(replay);
                    }
                }
                Found::Detached(changed) => {
                    below.give_place();
                    self.wait(changed, None).await?;
                }
                Found::Foreground(changed) => {
                    below.give_place();
                    self.wait(changed, Some(grace)).await?;
                }
                Found::TooMany => return Ok(too_many(&self.state)),
                // A client that disconnects meanwhile leaves it in its file.
                Found::Elsewhere(id, copy) => {
                    let read = self.registry.read(copy).await;
                    let taken = self
                        .registry
                        .with(|calls, now| calls.take_read(id, read.as_ref().ok(), now));
                    match read {
                        _ if !taken => {}
                        Ok(response) => {
                            let replay = self.replay(id, response);
                            if self.takes(id).await {
                                return Ok(replay);
                            }
                        }
                        Err(error) => {
                            tracing::warn!(%error, "a stored response cannot be read");
                            self.buy_or_fail()?;
                            break;
                        }
                    }
                }
                Found::Lost => {
                    self.buy_or_fail()?;
                    break;
                }
                // Or a request beside another, and not after it.
                Found::Nothing => match elsewhere {
                    // Its process may be gone: that shows when it is not heard of again.
                    Some((detached, heard))
                        if detached || Instant::now() < grace || heard > asked.elapsed() =>
                    {
                        below.give_place();
                        self.wait_elsewhere().await?;
                    }
                    _ => break,
                },
            }
        }
        let state = self.state.clone();
        let id = self
            .registry
            .with(|calls, _| calls.begin(self.fingerprint, self.caller, state.clone()));
        self.gate(id, None, &request);
        let tier = request.body().call().tier;
        let call = InFlight::new(self.registry.clone(), id, state, tier, self.marks_resends, None);
        ForegroundCall::new(below.call(request), call).await
    }

    /// Lets each attempt of the call be recorded before it is sent, where there is a journal.
    fn gate(
        &self,
        id: CallId,
        keyed: Option<Fingerprint>,
        request: &Request<CallBody>,
    ) -> Option<Arc<JournalGate>> {
        let gate = Arc::new(JournalGate::new(&self.registry, id, keyed, request)?);
        self.state.add_gate(gate.clone());
        Some(gate)
    }

    async fn claim(
        &self,
        fingerprint: Fingerprint,
        is_resend: bool,
    ) -> Result<Option<(bool, Duration)>, Error> {
        let claimed = self.registry.claim(fingerprint, is_resend).await;
        claimed.map_err(|error| self.unknown(error))
    }

    /// What was sent before cannot be known: nothing is sent.
    fn unknown(&self, error: StoreError) -> Error {
        Error::not_recorded(error).with_trail(self.state.trail().clone())
    }

    /// Whether this process may give a stored response away: not where another one does.
    async fn takes(&self, id: CallId) -> bool {
        let Some(journal) = &self.registry.settings.journal else { return true };
        if !self.registry.with(|calls, _| calls.is_shared(id)) {
            return true;
        }
        let retention = self.registry.settings.retention;
        match journal.write(id.number, JournalChange::Taken(true, retention)).await {
            Ok(false) => {
                self.registry.with(|calls, now| calls.taken_elsewhere(id, now));
                false
            }
            Ok(true) => true,
            Err(error) => {
                tracing::warn!(%error, "the journal does not know that a stored response is given away");
                true
            }
        }
    }

    /// Waits before the next look at what another process does.
    async fn wait_elsewhere(&self) -> Result<(), Error> {
        tokio::select! {
            biased;
            error = self.deadline() => Err(error),
            () = tokio::time::sleep(LOOK_AGAIN) => Ok(()),
        }
    }

    fn find(&self, waits: bool) -> Found {
        let ask =
            Ask { waits, is_resend: self.is_resend, can_read_files: Handle::try_current().is_ok() };
        self.registry.with(|calls, now| calls.find(self.fingerprint, ask, now))
    }

    /// Lets the request be sent after a loss where the caller allows a send after one that may have
    /// been charged, and pays with this one for it.
    fn buy_or_fail(&self) -> Result<(), Error> {
        if self.state.permit_after(&Verdict::interrupted()).is_some() {
            self.registry.with(|calls, now| calls.forget_reported(self.fingerprint, now));
            return Ok(());
        }
        Err(self.lost(LOST))
    }

    /// Nothing was sent for this request; what was sent before it may have been charged.
    fn lost(&self, why: &'static str) -> Error {
        self.state.record(Step::Stopped { why: StopReason::EarlierResponseLost });
        Error::resend_refused(why).with_trail(self.state.trail().clone())
    }

    /// Waits for a change of identical calls, until the grace or the call's deadline is over.
    async fn wait(
        &self,
        mut changed: watch::Receiver<()>,
        grace: Option<Instant>,
    ) -> Result<(), Error> {
        tokio::select! {
            biased;
            // Closed where none is left: a change too.
            _ = changed.changed() => Ok(()),
            error = self.deadline() => Err(error),
            () = wait_until(grace) => Ok(()),
        }
    }

    /// Ends at the call's deadline. This call sent nothing; what it waited for goes on.
    async fn deadline(&self) -> Error {
        wait_until(self.state.deadline()).await;
        Error::timeout(TimeLimit::Deadline, Duration::ZERO, Verdict::not_sent())
            .with_trail(self.state.trail().clone())
    }

    /// Ends at the call's deadline while its attempt is under way, which goes on.
    async fn client_deadline(&self) -> Error {
        let deadline = self.state.deadline();
        wait_until(deadline).await;
        let limit = deadline.map_or(Duration::ZERO, |at| at - self.state.started());
        let verdict = match self.state.may_be_charged() {
            true => Verdict::interrupted(),
            false => Verdict::not_sent(),
        };
        Error::timeout(TimeLimit::Deadline, limit, verdict).with_trail(self.state.trail().clone())
    }

    fn record_replay(&self, response: &StoredResponse) {
        self.state.record(Step::Replayed {
            age: response.completed_at.elapsed(),
            cost: response.cost,
            outcome: response.outcome,
        });
    }

    fn replay<B: CompletableBody>(
        &self,
        id: CallId,
        response: Arc<StoredResponse>,
    ) -> Response<ResponseBody<B>> {
        self.record_replay(&response);
        let (registry, marks_resends) = (self.registry.clone(), self.marks_resends);
        let body = ResponseBody::replay(registry, id, response.clone(), marks_resends);
        self.with_head(&response, body)
    }

    fn with_head<B: CompletableBody>(
        &self,
        stored: &StoredResponse,
        body: ResponseBody<B>,
    ) -> Response<ResponseBody<B>> {
        let mut response = Response::new(body);
        *response.status_mut() = stored.status;
        *response.headers_mut() = stored.headers.clone();
        response.extensions_mut().insert(self.state.trail().clone());
        response
    }

    /// Responds with the result of this key's call, or sends it: then all requests with the key get
    /// its response.
    async fn respond_keyed<S: StorableService>(
        self,
        key: Fingerprint,
        mut below: Below<S>,
        request: Request<CallBody>,
    ) -> Result<Stored<S>, Error> {
        let response = loop {
            if self.claim(key, false).await?.is_some() {
                below.give_place();
                self.wait_elsewhere().await?;
                continue;
            }
            let state = self.state.clone();
            let from = (self.caller, state.clone());
            let found =
                self.registry.with(|calls, now| calls.find_keyed(key, self.fingerprint, from, now));
            break match found {
                Keyed::New(id, clients, client) => {
                    let (reply, result) = oneshot::channel();
                    let registry = self.registry.clone();
                    let tier = request.body().call().tier;
                    let gate = self.gate(id, Some(self.fingerprint), &request);
                    let call = InFlight::new(registry, id, state, tier, false, Some(clients));
                    if let Some(gate) = gate {
                        if !gate.take_key().await.map_err(|error| self.unknown(error))? {
                            call.end_free();
                            continue;
                        }
                    }
                    let room = Room::of(&self.state, None);
                    call.complete_keyed(read_response(below.call(request), room), reply);
                    // The task ends without a result where its runtime does.
                    let lost = |_| Err(Error::truncated(Verdict::interrupted()));
                    let response = tokio::select! {
                        biased;
                        result = result => result.unwrap_or_else(lost)?,
                        error = self.client_deadline() => return Err(error),
                    };
                    drop(client);
                    return Ok(self.with_head(&response, ResponseBody::whole(&response)));
                }
                Keyed::InFlight(client) => {
                    below.give_place();
                    match self.join(client).await? {
                        Some(response) => response,
                        None => continue,
                    }
                }
                Keyed::Response(response) => response,
                Keyed::Elsewhere(copy) => match self.registry.read(copy).await {
                    Ok(response) => response,
                    Err(_) => return Err(self.lost(LOST_KEYED)),
                },
                Keyed::TooMany => return Ok(too_many(&self.state)),
                Keyed::Lost => return Err(self.lost(LOST_KEYED)),
                // The status is that of the IETF's draft.
                Keyed::OtherRequest => {
                    let status = StatusCode::UNPROCESSABLE_ENTITY;
                    return Ok(rejected(&self.state, status, KEY_REUSED));
                }
            };
        };
        // It stays where it is, for when others of its clients have read theirs.
        let has_room = |memory: &Arc<dyn CallMemory>| memory.try_hold(response.bytes);
        if !self.state.memory().is_none_or(has_room) {
            return Ok(too_many(&self.state));
        }
        self.record_replay(&response);
        Ok(self.with_head(&response, ResponseBody::whole(&response)))
    }

    /// Waits for the response of a call with a key. `None`: there is none, and why is to be looked
    /// up.
    async fn join(&self, mut client: Client) -> Result<Option<Arc<StoredResponse>>, Error> {
        tokio::select! {
            biased;
            response = client.wait_for(Option::is_some) => {
                Ok(response.ok().and_then(|response| response.clone()))
            }
            error = self.deadline() => Err(error),
        }
    }
}

async fn wait_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Enough requests wait for the call that this one would wait for.
fn too_many<B: CompletableBody>(state: &CallState) -> Response<ResponseBody<B>> {
    let mut response = rejected(state, StatusCode::TOO_MANY_REQUESTS, TOO_MANY);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("2"));
    response
}

fn rejected<B: CompletableBody>(
    state: &CallState,
    status: StatusCode,
    (reason, message): (&str, &str),
) -> Response<ResponseBody<B>> {
    let refusal = Refusal {
        status,
        word: match status {
            StatusCode::TOO_MANY_REQUESTS => "RESOURCE_EXHAUSTED",
            _ => "INVALID_ARGUMENT",
        },
        message: message.to_owned(),
        reason,
        metadata: Value::Null,
        details: Vec::new(),
    };
    let mut response = refusal.into_bytes_response().map(ResponseBody::local);
    response.extensions_mut().insert(IdempotencyKeyRejected);
    response.extensions_mut().insert(state.trail().clone());
    response
}
