//! The simulator as a tower service: one request in, one answer, silence or error out, and the
//! truth in the ledger.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body::Body;
use tokio::time::Instant;

use crate::answer::{ImageOptions, JSON, SSE, Studio};
use crate::body::{End, Journey, SimBody, SimError, SimErrorKind};
use crate::errors::{About, Failure, Refused};
use crate::fault::{Fault, Limit};
use crate::hash::{hash64, mix};
use crate::image::{Gallery, Picture};
use crate::json::obj;
use crate::ledger::{Bill, Ledger, LedgerSnapshot, Totals};
use crate::model::{Model, Price, known};
use crate::quota::{Limits, Quota, Weight};
use crate::request::{
    Api, Asked, Credentials, Framing, Route, Verb, check, json, model_in_body, server_timeout,
    streams_in_body,
};
use crate::weather::{Latency, Sky, Weather};

/// A simulated Gemini. Clones share everything: ledger, script, limits and clock.
///
/// See the [crate documentation](crate) for an example.
#[derive(Clone, Debug)]
pub struct Sim {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    settings: Builder,
    script: Mutex<VecDeque<Fault>>,
    scripts_by_call: Mutex<HashMap<String, VecDeque<Fault>>>,
    sky: Sky,
    limits: Limits,
    gallery: Gallery,
    pictures: Mutex<HashMap<usize, Arc<Picture>>>,
    pub(crate) ledger: Ledger,
    began: OnceLock<Instant>,
}

/// Settings of a [`Sim`]. [`Sim::builder`] begins with these:
///
/// | setting | default |
/// | --- | --- |
/// | seed | 0 |
/// | scripts, weather | nothing goes wrong |
/// | latency | tens of seconds, see [`Latency`] |
/// | quota | none |
/// | images | full size, see [`ImageOptions`] |
/// | chunks | 64 KiB, no delay, length not announced |
/// | server's own deadline | 600 s, the timeout of Google's published gRPC service config for `generateContent` |
/// | request bodies | up to 100 MB (blog.google, January 2026) |
/// | keys | every key is good, and its own project |
/// | aborted requests | are made and charged all the same |
/// | blocked prompts | cost their input |
/// | clock | starts at 20:00 UTC, noon Pacific in winter |
#[derive(Debug, Clone)]
pub struct Builder {
    seed: u64,
    script: Vec<Fault>,
    scripts_by_call: HashMap<String, Vec<Fault>>,
    weather: Weather,
    latency: Latency,
    quota: Quota,
    quota_by_model: Vec<(String, Quota)>,
    images: ImageOptions,
    chunk: usize,
    chunk_delay: Duration,
    announce_length: bool,
    server_deadline: Duration,
    max_request_bytes: usize,
    accepted_keys: Option<HashSet<String>>,
    rejected_keys: HashSet<String>,
    projects: HashMap<String, String>,
    retired: HashMap<String, String>,
    revived: HashSet<String>,
    prices: HashMap<String, Price>,
    abort_charges: bool,
    blocked_prompts_charge: bool,
    time_of_day: Duration,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            seed: 0,
            script: Vec::new(),
            scripts_by_call: HashMap::new(),
            weather: Weather::calm(),
            latency: Latency::default(),
            quota: Quota::UNLIMITED,
            quota_by_model: Vec::new(),
            images: ImageOptions::default(),
            chunk: 64 * 1024,
            chunk_delay: Duration::ZERO,
            announce_length: false,
            server_deadline: Duration::from_secs(600),
            max_request_bytes: 100_000_000,
            accepted_keys: None,
            rejected_keys: HashSet::new(),
            projects: HashMap::new(),
            retired: HashMap::new(),
            revived: HashSet::new(),
            prices: HashMap::new(),
            abort_charges: true,
            blocked_prompts_charge: true,
            time_of_day: Duration::from_secs(20 * 3600),
        }
    }
}

impl Builder {
    /// The seed of weather, latency and pictures. The same seed and the same requests in the same
    /// order give the same trace.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// What happens to the first requests, one fault each, in order of arrival. After that the
    /// weather decides.
    #[must_use]
    pub fn script(mut self, faults: impl IntoIterator<Item = Fault>) -> Self {
        self.script = faults.into_iter().collect();
        self
    }

    /// What happens to the first requests of the call with this `x-sim-call` tag, one fault each,
    /// in order of arrival: calls that run side by side keep their own stories. After that the
    /// common script decides, then the weather.
    ///
    /// ```
    /// use tower_gemini_sim::{Fault, Sim};
    /// let sim = Sim::builder().script_of("cat", [Fault::HighDemand]).script_of("dog", [Fault::NoImage]).build();
    /// # let _ = sim;
    /// ```
    #[must_use]
    pub fn script_of(
        mut self,
        call: impl Into<String>,
        faults: impl IntoIterator<Item = Fault>,
    ) -> Self {
        self.scripts_by_call.insert(call.into(), faults.into_iter().collect());
        self
    }

    /// What happens by chance.
    #[must_use]
    pub fn weather(mut self, weather: Weather) -> Self {
        self.weather = weather;
        self
    }

    /// Sets weather and limits of a storm for demonstrations, compressed in time so that 120 calls
    /// show all of it in one or two minutes. A client that waits for hints and moves to another
    /// model when one closes loses almost nothing in it; a client that resends blindly loses a
    /// third.
    ///
    /// | what happens | parameters | how long it lasts |
    /// | --- | --- | --- |
    /// | minute's limit, 429 with a true hint | 90 requests a minute for each model of a project | until the window of 60 s opens |
    /// | day's limit, 429 | 120 requests left today for `gemini-3-pro-image` | until midnight Pacific |
    /// | overload, 503 | each model on its own, up for 60 s on average; fails 5 % of requests at 1K, 30 % at 2K, 80 % at 4K | 30 s on average |
    /// | refused account, 403 | each project on its own, up for 2 hours on average | 10 minutes on average |
    /// | no capacity, 503 with a hint of 9 s | 3 % | one request |
    /// | 500 | 4 % | one request |
    /// | 502 of the front end | 2 % | one request |
    /// | refusal after generation, charged | 1 % | one request |
    /// | reset before, and after generation | 0.5 % each | one request |
    /// | drafts before the final image | 15 % | one request |
    ///
    /// Sources: that minute and day belong to a project and a model, and that failed requests count
    /// (ai.google.dev "Rate limits", 2026-09); the shares by size (APIYI, post-mortem of the outage
    /// of 2026-01-21: 1K ~95 %, 2K ~70 %, 4K below 20 % delivered); the length of outages is that
    /// of users' reports (see [`Outages`](crate::Outages)), a hundred times shorter; 429s are by far
    /// the most frequent failure, then 503 (operators' error guide for Nano Banana Pro, 2026-02).
    /// The other numbers are chosen for the demonstration.
    ///
    /// ```
    /// use tower_gemini_sim::Sim;
    /// let sim = Sim::builder().storm().seed(3).build();
    /// # let _ = sim;
    /// ```
    #[must_use]
    pub fn storm(self) -> Self {
        let minute = Quota { rpm: Some(90), ..Quota::UNLIMITED };
        self.weather(Weather::storm())
            .quota(minute)
            .quota_of("gemini-3-pro-image", Quota { rpd: Some(120), ..minute })
    }

    /// How long answers take.
    #[must_use]
    pub fn latency(mut self, latency: Latency) -> Self {
        self.latency = latency;
        self
    }

    /// The limits of every model, for each project.
    #[must_use]
    pub fn quota(mut self, quota: Quota) -> Self {
        self.quota = quota;
        self
    }

    /// The limits of one model, for each project.
    #[must_use]
    pub fn quota_of(mut self, model: impl Into<String>, quota: Quota) -> Self {
        self.quota_by_model.push((model.into(), quota));
        self
    }

    /// Which pictures are made.
    #[must_use]
    pub fn images(mut self, images: ImageOptions) -> Self {
        self.images = images;
        self
    }

    /// Small pictures and signatures: answers of a few kilobytes. Keeps the other image options.
    #[must_use]
    pub fn tiny_images(mut self, tiny: bool) -> Self {
        self.images.tiny = tiny;
        self.images.variants = if tiny { 64 } else { ImageOptions::default().variants };
        self
    }

    /// Bytes in a chunk of a body, and the pause before each.
    #[must_use]
    pub fn chunks(mut self, bytes: usize, delay: Duration) -> Self {
        self.chunk = bytes;
        self.chunk_delay = delay;
        self
    }

    /// Whether answers announce their length; over HTTP they are chunked otherwise, as Google's
    /// are.
    #[must_use]
    pub fn announce_length(mut self, announce: bool) -> Self {
        self.announce_length = announce;
        self
    }

    /// When the server itself gives up on a generation and answers 504.
    #[must_use]
    pub fn server_deadline(mut self, deadline: Duration) -> Self {
        self.server_deadline = deadline;
        self
    }

    /// Larger request bodies are answered 400.
    #[must_use]
    pub fn max_request_bytes(mut self, bytes: usize) -> Self {
        self.max_request_bytes = bytes;
        self
    }

    /// Only these keys are good.
    #[must_use]
    pub fn keys<K: Into<String>>(mut self, keys: impl IntoIterator<Item = K>) -> Self {
        self.accepted_keys = Some(keys.into_iter().map(Into::into).collect());
        self
    }

    /// This key is not good.
    #[must_use]
    pub fn reject_key(mut self, key: impl Into<String>) -> Self {
        self.rejected_keys.insert(key.into());
        self
    }

    /// The project that a key belongs to: keys of one project share its limits.
    #[must_use]
    pub fn project(mut self, key: impl Into<String>, project: impl Into<String>) -> Self {
        self.projects.insert(key.into(), project.into());
        self
    }

    /// Answers 404 for this model, naming a successor.
    #[must_use]
    pub fn retire(mut self, model: impl Into<String>, successor: impl Into<String>) -> Self {
        self.retired.insert(model.into(), successor.into());
        self
    }

    /// Lets a model live that was shut down, such as a preview id or Imagen.
    #[must_use]
    pub fn revive(mut self, model: impl Into<String>) -> Self {
        self.revived.insert(model.into());
        self
    }

    /// What a model charges.
    #[must_use]
    pub fn price(mut self, model: impl Into<String>, price: Price) -> Self {
        self.prices.insert(model.into(), price);
        self
    }

    /// Whether a request whose caller went away is made and charged. Nobody published it;
    /// js-genai's documentation says that usage may still be charged.
    #[must_use]
    pub fn abort_charges(mut self, charges: bool) -> Self {
        self.abort_charges = charges;
        self
    }

    /// Whether a blocked prompt costs its input tokens. Nobody published it for image models; its
    /// `usageMetadata` counts them.
    #[must_use]
    pub fn blocked_prompts_charge(mut self, charges: bool) -> Self {
        self.blocked_prompts_charge = charges;
        self
    }

    /// Where the simulator's UTC clock starts. Weather by the hour and the day's limits depend on
    /// it.
    #[must_use]
    pub fn starts_at_utc(mut self, time_of_day: Duration) -> Self {
        self.time_of_day = Duration::from_secs(time_of_day.as_secs() % 86_400);
        self
    }

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
            sky: Sky::new(self.seed, self.weather.clone()),
            limits: Limits::new(self.quota, self.quota_by_model.clone()),
            gallery: Gallery::default(),
            pictures: Mutex::default(),
            ledger: Ledger::default(),
            began: OnceLock::new(),
            settings: self,
        };
        if tokio::runtime::Handle::try_current().is_ok() {
            inner.now();
        }
        Sim { inner: Arc::new(inner) }
    }
}

impl Sim {
    /// A simulator to be set up.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Answers at once with small images and without faults, unless scripted: what most tests want.
    pub fn quick(script: impl IntoIterator<Item = Fault>) -> Self {
        Self::builder().latency(Latency::none()).tiny_images(true).script(script).build()
    }

    /// A client's view: a service that answers requests, in process.
    pub fn service(&self) -> SimService {
        SimService { inner: self.inner.clone() }
    }

    /// Appends to the script.
    pub fn push_script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.inner.script.lock().unwrap_or_else(PoisonError::into_inner).extend(faults);
    }

    /// What happened so far.
    pub fn ledger(&self) -> LedgerSnapshot {
        self.inner.ledger.snapshot()
    }

    /// Sums over what happened so far, without copying the records.
    pub fn totals(&self) -> Totals {
        self.inner.ledger.totals()
    }

    /// How many requests were sent so far.
    pub fn requests(&self) -> usize {
        self.inner.ledger.len()
    }

    /// Begins a new ledger, for long runs in one simulator. Call it when nothing is under way:
    /// numbers begin at 0 again.
    pub fn clear_ledger(&self) {
        self.inner.ledger.forget();
        self.inner.pictures.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The file of the final image in the answer to a request, whether or not it arrived.
    pub fn image_for(&self, number: usize) -> Option<Bytes> {
        let pictures = self.inner.pictures.lock().unwrap_or_else(PoisonError::into_inner);
        pictures.get(&number).map(|picture| picture.bytes.clone())
    }

    /// The project that a key belongs to, as the ledger names it.
    pub fn project_of(&self, key: &str) -> String {
        self.inner.project_of(key).to_string()
    }

    /// Time since the simulator's clock began.
    pub fn now(&self) -> Duration {
        self.inner.now()
    }
}

/// A client's view of a [`Sim`]: a tower service, always ready.
///
/// A request arrives when its future is first polled. Dropping the future before it is done aborts
/// the request: the ledger says so, and says whether the project pays all the same.
#[derive(Clone, Debug)]
pub struct SimService {
    inner: Arc<Inner>,
}

/// The answer to come.
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

/// A head whose connection may not survive it.
pub(crate) struct Handled {
    pub(crate) response: Response<SimBody>,
    pub(crate) cut_head: Option<usize>,
}

/// The number of the request, in the extensions of every response of a [`SimService`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestNumber(pub usize);

/// Tells the ledger when a caller goes away.
struct Watch {
    inner: Arc<Inner>,
    number: usize,
    /// What happens at the server when the caller is gone: the model runs to the end, or nothing.
    if_dropped: Option<Bill>,
    over: bool,
}

impl Watch {
    /// The request ended without an answer.
    fn end(&mut self) {
        self.over = true;
        let now = self.inner.now();
        self.inner.ledger.edit(self.number, |record| record.ended_at = Some(now));
    }

    /// The answer is in the hands of its body.
    fn hand_over(&mut self) {
        self.over = true;
    }
}

impl Drop for Watch {
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

/// Who is asking for what, before the body is looked at.
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
    Make { model: &'static Model, asked: Asked, fault: Fault },
}

impl Inner {
    /// Time since the clock began, which it does with the first question.
    pub(crate) fn now(&self) -> Duration {
        let now = Instant::now();
        now.saturating_duration_since(*self.began.get_or_init(|| now))
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
        scripted.unwrap_or_else(|| self.sky.fault(number, self.time_of_day()))
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
        let mut watch = Watch { inner: self.clone(), number, if_dropped: None, over: false };
        let caller =
            self.caller(&parts.uri, &parts.headers, Route::parse(&parts.method, &parts.uri));
        self.ledger.edit(number, |record| {
            record.call = tag;
            record.project = caller.project.clone();
            record.model = caller.model.clone();
        });
        if fault == Fault::ConnectionRefused {
            watch.end();
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
                    watch.end();
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
            None => rejected(Refused::payload_too_large(self.settings.max_request_bytes)),
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
                tokio::time::sleep(self.sky.latency(number, self.settings.latency.of_error()))
                    .await;
                if fault == Fault::ResetAfterReceipt {
                    watch.end();
                    return Err(SimError::new(SimErrorKind::ConnectionReset));
                }
                Ok(self.failed(watch, &caller.route, &failure))
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
                Ok(self.answered(watch, StatusCode::OK, JSON, body, self.journey(&Fault::None)))
            }
            Decision::Make { model, asked, fault } => {
                self.make(watch, &caller, model, &asked, &fault, timeout).await
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

    /// Takes a request through the front door, the limits, the fault that waits for it and the
    /// checks of its body, in this order.
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
                self.sky.outage(number, &caller.project, &caller.model, asked.size, self.now());
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
                self.time_of_day_at_start(),
                weight,
            );
            if let Err(over) = admitted {
                self.ledger.edit(number, |record| record.request_counted = over.counted);
                let daily = over
                    .violations
                    .iter()
                    .any(|violation| violation.limit == Limit::RequestsPerDay);
                let failure = Failure::Google(Refused::quota(
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
                failure: Failure::Google(Refused::unimplemented()),
                outcome: fault.name(),
            };
        }
        match checked {
            Err(refused) => rejected(refused),
            Ok((model, asked)) => match caller.route.verb {
                Verb::Other => rejected(Refused::unimplemented()),
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

    fn time_of_day_at_start(&self) -> Duration {
        self.settings.time_of_day
    }

    fn authenticate(&self, caller: &Caller, uri: &Uri, headers: &HeaderMap) -> Result<(), Refused> {
        let good = |secret: &str| {
            !self.settings.rejected_keys.contains(secret)
                && self.settings.accepted_keys.as_ref().is_none_or(|keys| keys.contains(secret))
        };
        let token_dialect = matches!(caller.route.api, Api::OpenAiChat | Api::OpenAiImages);
        match Credentials::of(uri, headers) {
            Credentials::Both => Err(Refused::two_credentials()),
            Credentials::Nobody if caller.route.api == Api::Vertex => {
                Err(Refused::unauthenticated())
            }
            Credentials::Nobody => Err(Refused::invalid_key("")),
            Credentials::Key(key) if !good(&key) => Err(Refused::invalid_key(&key)),
            Credentials::Bearer(key) if !good(&key) && token_dialect => {
                Err(Refused::invalid_key(&key))
            }
            Credentials::Bearer(token) if !good(&token) => Err(Refused::unauthenticated()),
            Credentials::Key(_) | Credentials::Bearer(_) => Ok(()),
        }
    }

    fn living_model(
        &self,
        caller: &Caller,
        model: Option<&'static Model>,
    ) -> Result<&'static Model, Refused> {
        let id = caller.route.model.as_str();
        if let Some(successor) = self.settings.retired.get(id) {
            return Err(Refused::retired_model(id, successor));
        }
        let unknown = || match caller.route.api {
            Api::Vertex => Refused::publisher_model(id),
            _ => Refused::unknown_model(id, &caller.route.version, &caller.route.method),
        };
        let model = model.ok_or_else(unknown)?;
        match model.retired {
            Some(retired) if !self.settings.revived.contains(id) => {
                Err(Refused::retired_model(id, retired.successor))
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
        mut watch: Watch,
        caller: &Caller,
        model: &'static Model,
        asked: &Asked,
        fault: &Fault,
        timeout: Duration,
    ) -> Result<Handled, SimError> {
        let number = watch.number;
        let studio = Studio {
            gallery: &self.gallery,
            options: &self.settings.images,
            seed: self.settings.seed,
            number,
            route: &caller.route,
            model,
            asked,
            blocked_prompts_charge: self.settings.blocked_prompts_charge,
        };
        let content = studio.content(fault);
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
            self.pictures.lock().unwrap_or_else(PoisonError::into_inner).insert(number, picture);
        }

        let latency = match fault {
            Fault::Late { latency } => *latency,
            _ if content.generated => {
                self.sky.latency(number, &self.settings.latency.of_image(model.id, asked.size))
            }
            _ => self.sky.latency(number, self.settings.latency.of_error()),
        };
        if latency > timeout {
            tokio::time::sleep(timeout).await;
            self.ledger.edit(number, |record| {
                record.outcome = "server_deadline";
                record.image_hash = None;
                record.image_len = None;
            });
            self.pictures.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
            if matches!(fault, Fault::NoAnswer { .. }) {
                std::future::pending::<()>().await;
            }
            return Ok(self.failed(
                watch,
                &caller.route,
                &Failure::Google(Refused::deadline_504()),
            ));
        }
        if charged {
            watch.if_dropped = Some(bill);
        }
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        watch.if_dropped = None;
        self.ledger.settle(number, generated, charged.then_some(bill));
        match fault {
            Fault::NoAnswer { .. } => std::future::pending().await,
            Fault::ResetAfterGeneration => {
                watch.end();
                return Err(SimError::new(SimErrorKind::ConnectionReset));
            }
            _ => {}
        }
        let (content_type, body) = studio.print(&content);
        let mut handled =
            self.answered(watch, StatusCode::OK, content_type, body, self.journey(fault));
        if let Fault::CutHead { at } = fault {
            handled.cut_head = Some(*at);
        }
        Ok(handled)
    }

    fn journey(&self, fault: &Fault) -> Journey {
        let mut journey = Journey {
            chunk: self.settings.chunk,
            every: self.settings.chunk_delay,
            cut: None,
            end: End::Clean,
            announced: self.settings.announce_length,
        };
        match fault {
            Fault::CutBody { at } => (journey.cut, journey.end) = (Some(*at), End::Broken),
            Fault::TruncatedBody { at } => journey.cut = Some(*at),
            Fault::StallBody { at } => (journey.cut, journey.end) = (Some(*at), End::Never),
            Fault::Trickle { chunk, every } => (journey.chunk, journey.every) = (*chunk, *every),
            _ => {}
        }
        journey
    }

    fn failed(self: &Arc<Self>, watch: Watch, route: &Route, failure: &Failure) -> Handled {
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
        self.answered(watch, status, content_type, body, self.journey(&Fault::None))
    }

    fn answered(
        self: &Arc<Self>,
        mut watch: Watch,
        status: StatusCode,
        content_type: &'static str,
        body: Vec<Bytes>,
        journey: Journey,
    ) -> Handled {
        let number = watch.number;
        watch.hand_over();
        self.ledger.edit(number, |record| record.status = Some(status.as_u16()));
        let mut response = Response::new(SimBody::new(body, journey, self.clone(), number));
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

fn rejected(refused: Refused) -> Decision {
    Decision::Fail { failure: Failure::Google(refused), outcome: "rejected" }
}

/// Reads a request's body; `None` when it is longer than `most`.
async fn collect<B>(body: B, most: usize) -> Result<Option<Bytes>, SimError>
where
    B: Body<Data = Bytes> + Send + 'static,
{
    let mut body = Box::pin(body);
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    let mut length = 0;
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|_| SimError::new(SimErrorKind::RequestBody))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length > most {
            return Ok(None);
        }
        match &mut rest {
            Some(rest) => rest.extend_from_slice(&data),
            None if first.is_empty() => first = data,
            None => {
                let mut joined = BytesMut::with_capacity(length);
                joined.extend_from_slice(&first);
                joined.extend_from_slice(&data);
                rest = Some(joined);
            }
        }
    }
    Ok(Some(rest.map_or(first, BytesMut::freeze)))
}
