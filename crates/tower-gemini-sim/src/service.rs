//! The simulator as a tower service: takes a request, answers, fails or stays silent, and records
//! the truth in the ledger.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body::Body;

use crate::answer::{Generator, JSON, SSE};
use crate::api_error::{About, ApiError, Failure};
use crate::body::{Delivery, End, SimBody};
use crate::builder::Builder;
use crate::dialect::{Api, Framing, Verb};
use crate::error::{SimError, SimErrorKind};
use crate::fault::{Fault, Limit};
use crate::hash::{hash64, mix};
use crate::image::{Picture, PictureCache};
use crate::json::obj;
use crate::ledger::{Bill, Ledger, LedgerSnapshot, Totals};
use crate::model::{Model, known};
use crate::quota::{Limits, Weight};
use crate::request::{
    Credentials, ImageRequest, Route, check, json, model_in_body, server_timeout, streams_in_body,
};
use crate::weather::{Latency, WeatherState};

/// A simulated Gemini. Clones share everything: ledger, script, limits and clock.
///
/// See the [crate documentation](crate) for an example.
#[derive(Clone, Debug)]
pub struct Sim {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Builder,
    script: Mutex<VecDeque<Fault>>,
    scripts_by_call: Mutex<HashMap<String, VecDeque<Fault>>>,
    weather: WeatherState,
    limits: Limits,
    pictures: PictureCache,
    final_images: Mutex<HashMap<usize, Arc<Picture>>>,
    ledger: Arc<Ledger>,
}

impl Builder {
    /// Builds the simulator. Its clock begins now, or with its first request when this is called
    /// outside a tokio runtime.
    pub fn build(self) -> Sim {
        let inner = Inner {
            script: Mutex::new(self.script.iter().cloned().collect()),
            scripts_by_call: Mutex::new(
                self.scripts_by_call
                    .iter()
                    .map(|(call, faults)| (call.clone(), faults.iter().cloned().collect()))
                    .collect(),
            ),
            weather: WeatherState::new(self.seed, self.weather.clone()),
            limits: Limits::new(self.quota, self.quota_by_model.clone()),
            pictures: PictureCache::default(),
            final_images: Mutex::default(),
            ledger: Arc::default(),
            settings: self,
        };
        if tokio::runtime::Handle::try_current().is_ok() {
            inner.now();
        }
        Sim { inner: Arc::new(inner) }
    }
}

impl Sim {
    /// Returns the settings of a simulator, to be changed.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Builds a simulator that answers at once with small images and without faults other than
    /// these: what most tests want.
    pub fn quick(script: impl IntoIterator<Item = Fault>) -> Self {
        Self::builder().latency(Latency::none()).tiny_images(true).script(script).build()
    }

    /// Returns a service that answers requests in process: what a client sees.
    pub fn service(&self) -> SimService {
        SimService { inner: self.inner.clone() }
    }

    /// Appends to the script.
    pub fn push_script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.inner.script.lock().unwrap_or_else(PoisonError::into_inner).extend(faults);
    }

    /// Returns what happened so far.
    pub fn ledger(&self) -> LedgerSnapshot {
        self.inner.ledger.snapshot()
    }

    /// Returns sums over what happened so far, without copying the records.
    pub fn totals(&self) -> Totals {
        self.inner.ledger.totals()
    }

    /// Returns how many requests were sent so far.
    pub fn requests(&self) -> usize {
        self.inner.ledger.len()
    }

    /// Empties the ledger, for long runs in one simulator. Call it between requests: numbers begin
    /// at 0 again.
    pub fn clear_ledger(&self) {
        self.inner.ledger.forget();
        self.inner.final_images.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Returns the file of the final image in the answer to a request, whether or not it arrived.
    pub fn image_for(&self, number: usize) -> Option<Bytes> {
        let images = self.inner.final_images.lock().unwrap_or_else(PoisonError::into_inner);
        images.get(&number).map(|picture| picture.bytes.clone())
    }

    /// Returns the project that a key belongs to, as the ledger names it.
    pub fn project_of(&self, key: &str) -> String {
        self.inner.project_of(key).to_string()
    }

    /// Returns the time since the simulator's clock began.
    pub fn now(&self) -> Duration {
        self.inner.now()
    }
}

/// The simulator as a tower service, always ready.
///
/// A request arrives when its future is first polled. Dropping the future before it is done aborts
/// the request: the ledger records that, and whether the project is charged nevertheless.
#[derive(Clone, Debug)]
pub struct SimService {
    inner: Arc<Inner>,
}

/// The future of a [`SimService`].
pub type SimFuture = Pin<Box<dyn Future<Output = Result<Response<SimBody>, SimError>> + Send>>;

impl<B> tower_service::Service<Request<B>> for SimService
where
    B: Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<SimBody>;
    type Error = SimError;
    type Future = SimFuture;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), SimError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> SimFuture {
        let inner = self.inner.clone();
        Box::pin(async move {
            match inner.handle(request).await? {
                Handled { cut_head: Some(_), .. } => Err(SimError::new(SimErrorKind::HeadCut)),
                handled => Ok(handled.response),
            }
        })
    }
}

impl SimService {
    #[cfg(feature = "serve")]
    pub(crate) async fn handle<B>(&self, request: Request<B>) -> Result<Handled, SimError>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        self.inner.clone().handle(request).await
    }
}

/// A response, and where its head is to be cut.
pub(crate) struct Handled {
    pub(crate) response: Response<SimBody>,
    pub(crate) cut_head: Option<usize>,
}

/// The number of the request, in the extensions of every response of a [`SimService`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestNumber(pub usize);

/// Records in the ledger when a caller disconnects.
struct AbortGuard {
    inner: Arc<Inner>,
    number: usize,
    /// What is charged when the caller disconnects now: the model finishes, or never began.
    if_dropped: Option<Bill>,
    over: bool,
}

impl AbortGuard {
    /// The request ended without an answer.
    fn end(&mut self) {
        self.over = true;
        let now = self.inner.now();
        self.inner.ledger.edit(self.number, |record| record.ended_at = Some(now));
    }

    /// From here on the body records the end.
    fn hand_over(&mut self) {
        self.over = true;
    }
}

impl Drop for AbortGuard {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let now = self.inner.now();
        self.inner.ledger.edit(self.number, |record| {
            record.aborted = true;
            record.ended_at = Some(now);
        });
        if let Some(bill) = self.if_dropped.filter(|_| self.inner.settings.abort_charges) {
            self.inner.ledger.settle(self.number, true, Some(bill));
        }
    }
}

/// What is known of a request before its body is read.
struct Caller {
    route: Route,
    secret: String,
    project: Arc<str>,
    model: Arc<str>,
}

/// What the server decided.
enum Decision {
    Fail { failure: Failure, outcome: &'static str },
    Count { tokens: u64 },
    Make { model: &'static Model, asked: ImageRequest, fault: Fault },
}

impl Inner {
    fn now(&self) -> Duration {
        self.ledger.now()
    }

    fn time_of_day(&self) -> Duration {
        self.settings.time_of_day + self.now()
    }

    fn project_of(&self, key: &str) -> Arc<str> {
        match self.settings.projects.get(key) {
            Some(project) => project.as_str().into(),
            // A name of its own for every key, which does not give the key away.
            None => format!("project-{:016x}", hash64(key.as_bytes())).into(),
        }
    }

    fn next_fault(&self, number: usize, call: Option<&str>) -> Fault {
        let own = call.and_then(|call| {
            let mut scripts = self.scripts_by_call.lock().unwrap_or_else(PoisonError::into_inner);
            scripts.get_mut(call).and_then(VecDeque::pop_front)
        });
        if let Some(fault) = own {
            return fault;
        }
        let scripted = self.script.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        scripted.unwrap_or_else(|| self.weather.fault(number, self.time_of_day()))
    }

    pub(crate) async fn handle<B>(self: Arc<Self>, request: Request<B>) -> Result<Handled, SimError>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let (parts, body) = request.into_parts();
        let tag: Option<Arc<str>> =
            parts.headers.get("x-sim-call").and_then(|tag| tag.to_str().ok()).map(Arc::from);
        let (number, fault) =
            self.ledger.open(self.now(), |number| self.next_fault(number, tag.as_deref()));
        let mut guard = AbortGuard { inner: self.clone(), number, if_dropped: None, over: false };
        let caller =
            self.caller(&parts.uri, &parts.headers, Route::parse(&parts.method, &parts.uri));
        self.ledger.edit(number, |record| {
            record.call = tag;
            record.project = caller.project.clone();
            record.model = caller.model.clone();
        });
        if fault == Fault::ConnectionRefused {
            guard.end();
            return Err(SimError::new(SimErrorKind::ConnectionRefused));
        }
        // A proxy that dislikes the length does not read on.
        let bytes = if fault == Fault::PayloadTooLargeHtml {
            Some(Bytes::new())
        } else {
            match collect(body, self.settings.max_request_bytes).await {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.ledger.edit(number, |record| record.outcome = "request_body_broken");
                    guard.end();
                    return Err(error);
                }
            }
        };
        self.ledger.edit(number, |record| {
            record.received = true;
            // Of a body that was not read there is no hash.
            record.body_hash = bytes
                .as_ref()
                .filter(|_| fault != Fault::PayloadTooLargeHtml)
                .map(|bytes| hash64(bytes));
        });

        let mut caller = caller;
        let decision = match &bytes {
            Some(bytes) => {
                self.decide(number, &mut caller, &parts.headers, &parts.uri, bytes, fault.clone())
            }
            None => rejected(ApiError::payload_too_large(self.settings.max_request_bytes)),
        };
        let timeout = server_timeout(&parts.headers)
            .unwrap_or(Duration::MAX)
            .min(self.settings.server_deadline);
        match decision {
            Decision::Fail { failure, outcome } => {
                self.ledger.edit(number, |record| {
                    record.outcome = outcome;
                    record.model = caller.model.clone();
                    // 4xx and 5xx count (ai.google.dev "Billing", 2026-09); whether a 429 does is a
                    // setting, which `decide` looked at.
                    record.request_counted |= failure.http() != 429;
                });
                tokio::time::sleep(self.weather.latency(number, self.settings.latency.of_error()))
                    .await;
                if fault == Fault::ResetAfterReceipt {
                    guard.end();
                    return Err(SimError::new(SimErrorKind::ConnectionReset));
                }
                Ok(self.failed(guard, &caller.route, &failure))
            }
            Decision::Count { tokens } => {
                self.ledger.edit(number, |record| {
                    record.outcome = "count";
                    record.model = caller.model.clone();
                    record.request_counted = true;
                });
                let details = obj! { "modality": "TEXT", "tokenCount": tokens };
                let body =
                    obj! { "totalTokens": tokens, "promptTokensDetails": vec![details] }.pretty();
                Ok(self.answered(guard, StatusCode::OK, JSON, body, self.delivery(&Fault::None)))
            }
            Decision::Make { model, asked, fault } => {
                self.make(guard, &caller, model, &asked, &fault, timeout).await
            }
        }
    }

    fn caller(&self, uri: &Uri, headers: &HeaderMap, route: Option<Route>) -> Caller {
        let credentials = Credentials::of(uri, headers);
        let route = route.unwrap_or_else(|| Route {
            api: Api::Developer,
            verb: Verb::Other,
            framing: Framing::Whole,
            model: String::new(),
            version: String::new(),
            method: String::new(),
        });
        let secret = credentials.secret().to_owned();
        Caller {
            project: self.project_of(&secret),
            model: route.model.as_str().into(),
            route,
            secret,
        }
    }

    /// Decides what becomes of a request: front end, credentials, limits, the fault that it meets
    /// and the checks of its body, in this order.
    fn decide(
        &self,
        number: usize,
        caller: &mut Caller,
        headers: &HeaderMap,
        uri: &Uri,
        bytes: &Bytes,
        mut fault: Fault,
    ) -> Decision {
        if caller.route.method.is_empty() {
            return Decision::Fail {
                failure: Failure::html_404(uri.path()),
                outcome: "no_such_path",
            };
        }
        let parsed = json(bytes);
        if let Ok(body) = &parsed {
            if caller.route.model.is_empty() {
                caller.route.model = model_in_body(body).unwrap_or_default();
                caller.model = caller.route.model.as_str().into();
            }
            if matches!(caller.route.api, Api::OpenAiChat | Api::Interactions)
                && streams_in_body(body)
            {
                caller.route.framing = Framing::Sse;
            }
        }
        let model = known(&caller.route.model);
        let checked = parsed.and_then(|body| {
            let model = self.living_model(caller, model)?;
            check(caller.route.api, caller.route.verb, model, &body).map(|asked| (model, asked))
        });
        if let (Fault::None, Ok((_, asked)), Verb::Generate | Verb::Predict) =
            (&fault, &checked, caller.route.verb)
        {
            let outage =
                self.weather.outage(number, &caller.project, &caller.model, asked.size, self.now());
            if let Some(outage) = outage {
                self.ledger.edit(number, |record| {
                    record.fault = outage.clone();
                    record.outcome = outage.name();
                });
                fault = outage;
            }
        }

        let overridden = {
            let about = About {
                model: &caller.route.model,
                successor: model
                    .and_then(|model| model.retired)
                    .map_or("gemini-3.1-flash-image", |retired| retired.successor),
                version: &caller.route.version,
                method: &caller.route.method,
                secret: &caller.secret,
            };
            Failure::of(&fault, about)
        };
        // A proxy or front end in the way answers before anybody asks for a key.
        if let Some(failure @ Failure::Raw { .. }) = overridden {
            return Decision::Fail { failure, outcome: fault.name() };
        }
        if let Err(refused) = self.authenticate(caller, uri, headers) {
            return Decision::Fail { failure: Failure::Google(refused), outcome: "credentials" };
        }

        let weight = match &checked {
            Ok((model, asked)) if caller.route.verb != Verb::Count => Weight {
                images: if model.makes_images() { asked.count } else { 0 },
                tokens: asked.prompt_text_tokens()
                    + asked.input_images * model.input_image_tokens(),
            },
            _ => Weight { images: 0, tokens: 0 },
        };
        // Scripted 429s are somebody else's limit: they take no place in ours.
        let scripted_429 = overridden.as_ref().is_some_and(|failure| failure.http() == 429);
        if caller.route.verb != Verb::Count && !scripted_429 {
            let admitted = self.limits.admit(
                &caller.project,
                &caller.model,
                self.now(),
                self.settings.time_of_day,
                weight,
            );
            if let Err(over) = admitted {
                self.ledger.edit(number, |record| record.request_counted = over.counted);
                let daily = over
                    .violations
                    .iter()
                    .any(|violation| violation.limit == Limit::RequestsPerDay);
                let failure = Failure::Google(ApiError::quota(
                    &caller.route.model,
                    &over.violations,
                    over.retry_after,
                ));
                return Decision::Fail {
                    failure,
                    outcome: if daily { "quota_day" } else { "quota_minute" },
                };
            }
        }
        if let Some(failure) = overridden {
            return Decision::Fail { failure, outcome: fault.name() };
        }
        if fault == Fault::ResetAfterReceipt {
            return Decision::Fail {
                failure: Failure::Google(ApiError::unimplemented()),
                outcome: fault.name(),
            };
        }
        match checked {
            Err(refused) => rejected(refused),
            Ok((model, asked)) => match caller.route.verb {
                Verb::Other => rejected(ApiError::unimplemented()),
                Verb::Count => Decision::Count {
                    tokens: asked.prompt_text_tokens()
                        + asked.input_images * model.input_image_tokens(),
                },
                Verb::Generate | Verb::Predict => {
                    self.ledger.edit(number, |record| record.size = Some(asked.size));
                    Decision::Make { model, asked, fault }
                }
            },
        }
    }

    fn authenticate(
        &self,
        caller: &Caller,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), ApiError> {
        let good = |secret: &str| {
            !self.settings.rejected_keys.contains(secret)
                && self.settings.accepted_keys.as_ref().is_none_or(|keys| keys.contains(secret))
        };
        let token_dialect = matches!(caller.route.api, Api::OpenAiChat | Api::OpenAiImages);
        match Credentials::of(uri, headers) {
            Credentials::Both => Err(ApiError::two_credentials()),
            Credentials::Nobody if caller.route.api == Api::Vertex => {
                Err(ApiError::unauthenticated())
            }
            Credentials::Nobody => Err(ApiError::invalid_key("")),
            Credentials::Key(key) if !good(&key) => Err(ApiError::invalid_key(&key)),
            Credentials::Bearer(key) if !good(&key) && token_dialect => {
                Err(ApiError::invalid_key(&key))
            }
            Credentials::Bearer(token) if !good(&token) => Err(ApiError::unauthenticated()),
            Credentials::Key(_) | Credentials::Bearer(_) => Ok(()),
        }
    }

    fn living_model(
        &self,
        caller: &Caller,
        model: Option<&'static Model>,
    ) -> Result<&'static Model, ApiError> {
        let id = caller.route.model.as_str();
        if let Some(successor) = self.settings.retired.get(id) {
            return Err(ApiError::retired_model(id, successor));
        }
        let unknown = || match caller.route.api {
            Api::Vertex => ApiError::publisher_model(id),
            _ => ApiError::unknown_model(id, &caller.route.version, &caller.route.method),
        };
        let model = model.ok_or_else(unknown)?;
        match model.retired {
            Some(retired) if !self.settings.revived.contains(id) => {
                Err(ApiError::retired_model(id, retired.successor))
            }
            // Imagen only predicts, and nothing else does.
            _ if (caller.route.verb == Verb::Predict)
                != (model.family == crate::model::Family::Imagen)
                && matches!(caller.route.api, Api::Developer | Api::Vertex)
                && matches!(caller.route.verb, Verb::Predict | Verb::Generate) =>
            {
                Err(unknown())
            }
            _ => Ok(model),
        }
    }

    /// The model runs.
    async fn make(
        self: Arc<Self>,
        mut guard: AbortGuard,
        caller: &Caller,
        model: &'static Model,
        asked: &ImageRequest,
        fault: &Fault,
        timeout: Duration,
    ) -> Result<Handled, SimError> {
        let number = guard.number;
        let generator = Generator {
            pictures: &self.pictures,
            options: &self.settings.images,
            seed: self.settings.seed,
            number,
            route: &caller.route,
            model,
            asked,
            blocked_prompts_charge: self.settings.blocked_prompts_charge,
        };
        let content = generator.content(fault);
        let price = self.settings.prices.get(model.id).copied().unwrap_or(model.price);
        let bill = content.usage.bill(price);
        let never_made = matches!(fault, Fault::NoAnswer { charged: false });
        let charged = content.charged && !never_made;
        let generated = content.generated && !never_made;
        let picture = content.final_picture().filter(|_| generated).cloned();
        self.ledger.edit(number, |record| {
            record.request_counted = true;
            if let Some(picture) = &picture {
                record.outcome = if *fault == Fault::None { "image" } else { fault.name() };
                record.image_hash = Some(picture.hash);
                record.image_len = Some(picture.bytes.len());
            } else if *fault == Fault::None {
                record.outcome = "text";
            }
            record.input_tokens = bill.input_tokens;
        });
        if let Some(picture) = picture {
            self.final_images
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(number, picture);
        }

        let latency = match fault {
            Fault::Late { latency } => *latency,
            _ if content.generated => {
                self.weather.latency(number, &self.settings.latency.of_image(model.id, asked.size))
            }
            _ => self.weather.latency(number, self.settings.latency.of_error()),
        };
        if latency > timeout {
            tokio::time::sleep(timeout).await;
            self.ledger.edit(number, |record| {
                record.outcome = "server_deadline";
                record.image_hash = None;
                record.image_len = None;
            });
            self.final_images.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
            if matches!(fault, Fault::NoAnswer { .. }) {
                std::future::pending::<()>().await;
            }
            return Ok(self.failed(
                guard,
                &caller.route,
                &Failure::Google(ApiError::deadline_504()),
            ));
        }
        if charged {
            guard.if_dropped = Some(bill);
        }
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        guard.if_dropped = None;
        self.ledger.settle(number, generated, charged.then_some(bill));
        match fault {
            Fault::NoAnswer { .. } => std::future::pending().await,
            Fault::ResetAfterGeneration => {
                guard.end();
                return Err(SimError::new(SimErrorKind::ConnectionReset));
            }
            _ => {}
        }
        let (content_type, body) = generator.print(&content);
        let mut handled =
            self.answered(guard, StatusCode::OK, content_type, body, self.delivery(fault));
        if let Fault::CutHead { at } = fault {
            handled.cut_head = Some(*at);
        }
        Ok(handled)
    }

    fn delivery(&self, fault: &Fault) -> Delivery {
        let mut delivery = Delivery {
            chunk: self.settings.chunk,
            every: self.settings.chunk_delay,
            cut: None,
            end: End::Clean,
            announced: self.settings.announce_length,
        };
        match fault {
            Fault::CutBody { at } => (delivery.cut, delivery.end) = (Some(*at), End::Broken),
            Fault::TruncatedBody { at } => delivery.cut = Some(*at),
            Fault::StallBody { at } => (delivery.cut, delivery.end) = (Some(*at), End::Never),
            Fault::Trickle { chunk, every } => (delivery.chunk, delivery.every) = (*chunk, *every),
            _ => {}
        }
        delivery
    }

    fn failed(self: &Arc<Self>, guard: AbortGuard, route: &Route, failure: &Failure) -> Handled {
        let status =
            StatusCode::from_u16(failure.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let (content_type, body) = match failure {
            Failure::Google(refused) => {
                let content_type = if route.framing == Framing::Sse { SSE } else { JSON };
                (content_type, refused.body(route.api, route.framing))
            }
            Failure::Raw { content_type, body, .. } => {
                (*content_type, vec![Bytes::from(body.clone())])
            }
        };
        self.answered(guard, status, content_type, body, self.delivery(&Fault::None))
    }

    fn answered(
        self: &Arc<Self>,
        mut guard: AbortGuard,
        status: StatusCode,
        content_type: &'static str,
        body: Vec<Bytes>,
        delivery: Delivery,
    ) -> Handled {
        let number = guard.number;
        guard.hand_over();
        self.ledger.edit(number, |record| record.status = Some(status.as_u16()));
        let mut response = Response::new(SimBody::new(body, delivery, self.ledger.clone(), number));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        // As in recorded answers; no rate-limit headers and no Retry-After, ever.
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::VARY, HeaderValue::from_static("Origin, X-Origin, Referer"));
        headers.insert(header::SERVER, HeaderValue::from_static("scaffolding on HTTPServer2"));
        headers.insert("x-xss-protection", HeaderValue::from_static("0"));
        headers.insert("x-frame-options", HeaderValue::from_static("SAMEORIGIN"));
        headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
        let milliseconds = 40 + mix(number as u64) % 100;
        if let Ok(timing) = HeaderValue::from_str(&format!("gfet4t7; dur={milliseconds}")) {
            headers.insert("server-timing", timing);
        }
        headers.insert(
            "alt-svc",
            HeaderValue::from_static("h3=\":443\"; ma=2592000,h3-29=\":443\"; ma=2592000"),
        );
        response.extensions_mut().insert(RequestNumber(number));
        Handled { response, cut_head: None }
    }
}

fn rejected(refused: ApiError) -> Decision {
    Decision::Fail { failure: Failure::Google(refused), outcome: "rejected" }
}

/// Reads a request's body; `None` when it is longer than `most`.
async fn collect<B>(body: B, most: usize) -> Result<Option<Bytes>, SimError>
where
    B: Body<Data = Bytes> + Send + 'static,
{
    let mut body = Box::pin(body);
    let mut whole = BytesMut::new();
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|_| SimError::new(SimErrorKind::RequestBody))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > most {
            return Ok(None);
        }
        whole.extend_from_slice(&data);
    }
    Ok(Some(whole.freeze()))
}
