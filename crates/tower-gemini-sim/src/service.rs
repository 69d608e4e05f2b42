//! The simulator as a tower service: takes a request, answers, fails or stays silent, and records
//! the truth in the ledger.

use std::collections::HashMap;
use std::future::Future;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use crate::answer::{Generator, Usage};
use crate::api_error::{ApiError, Violation};
use crate::batch::BatchRecord;
use crate::body::{Delivery, End, SimBody};
use crate::builder::{Builder, Scripts};
use crate::dialect::{Api, Framing, JSON, Resource, SSE, Verb};
use crate::error::{SimError, SimErrorKind};
use crate::fault::{BatchFault, Fault, Limit};
use crate::hash::{hash64, mix};
use crate::image::{Picture, PictureCache};
use crate::interactions::Interactions;
use crate::json::obj;
use crate::ledger::{Bill, Ledger, LedgerSnapshot, Record, Totals};
use crate::lock;
use crate::model::{MODELS, Model, Size, Tier, known};
use crate::outage;
use crate::quota::{Limits, Weight};
use crate::reply::Reply;
use crate::request::{Credentials, ImageRequest, Route, check, json, server_timeout};
use crate::stored::{Asked, Stored};
use crate::weather::{Latency, WeatherState};
#[cfg(feature = "serve")]
use crate::webhook::WebhookEvent;

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
    scripts: Mutex<Scripts>,
    weather: WeatherState,
    limits: Limits,
    pictures: PictureCache,
    final_images: Mutex<HashMap<usize, Arc<Picture>>>,
    interactions: Interactions,
    stored: Stored,
    ledger: Arc<Ledger>,
}

impl Builder {
    /// Builds the simulator. Its clock begins now, or with its first request when this is called
    /// outside a tokio runtime.
    pub fn build(self) -> Sim {
        let inner = Inner {
            scripts: Mutex::new(self.scripts.clone()),
            weather: WeatherState::new(self.seed, self.weather.clone()),
            limits: Limits::new(self.quota, self.quota_by_model.clone())
                .of_projects(self.quota_by_project.clone()),
            pictures: PictureCache::default(),
            final_images: Mutex::default(),
            interactions: Interactions::default(),
            stored: Stored::new(self.batch_script.clone()),
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
        lock(&self.inner.scripts).common.extend(faults);
    }

    /// Appends to the script of batches.
    pub fn push_batch_script(&self, faults: impl IntoIterator<Item = BatchFault>) {
        self.inner.stored.push_script(faults);
    }

    /// Returns every batch that was created, in order, whether or not its client knows of it.
    pub fn batches(&self) -> Vec<BatchRecord> {
        self.inner.stored.records(self.inner.now())
    }

    /// Removes the webhooks that are due by now, and returns them as the requests that listeners
    /// are sent. A simulator that is served sends them by itself.
    pub fn take_webhooks(&self) -> Vec<Request<Bytes>> {
        let inner = &self.inner;
        let due = inner.stored.deliveries(&inner.settings, inner.now());
        due.iter().filter_map(|due| due.request(&inner.settings, inner.now())).collect()
    }

    /// Waits until webhooks are due, and takes them.
    #[cfg(feature = "serve")]
    pub(crate) async fn next_webhooks(&self) -> Vec<WebhookEvent> {
        self.inner.stored.ended(&self.inner.ledger).await;
        self.inner.stored.deliveries(&self.inner.settings, self.inner.now())
    }

    #[cfg(feature = "serve")]
    pub(crate) fn sign(&self, webhook: &WebhookEvent) -> Option<Request<Bytes>> {
        webhook.request(&self.inner.settings, self.inner.now())
    }

    /// Returns what happened so far.
    pub fn ledger(&self) -> LedgerSnapshot {
        self.inner.settle();
        self.inner.ledger.snapshot()
    }

    /// Returns sums over what happened so far, without copying the records.
    pub fn totals(&self) -> Totals {
        self.inner.settle();
        self.inner.ledger.totals()
    }

    /// Returns the share of such requests that fail now because of an outage, of the one that hits
    /// most of them: what only an oracle knows.
    pub fn share_failing(&self, key: &str, model: &str, size: Size) -> f64 {
        let inner = &self.inner;
        let project = inner.project_of(key);
        inner.weather.share_failing(&inner.asked(&project, &model.into(), size))
    }

    /// Returns how many requests were sent so far.
    pub fn requests(&self) -> usize {
        self.inner.ledger.sent()
    }

    /// Removes the requests that have ended from the ledger, and returns them in order of arrival.
    /// A long run that calls it now and then needs no more memory than a short one. Later snapshots
    /// and totals are without them; numbers go on.
    ///
    /// The bill of a batch is in the record of the request that created it, so long as that was not
    /// taken before the batch had ended; [`batches`](Self::batches) has it in any case.
    pub fn take_ended(&self) -> Vec<Record> {
        self.inner.settle();
        let ended = self.inner.ledger.take_ended();
        let mut images = lock(&self.inner.final_images);
        for record in &ended {
            images.remove(&record.number);
        }
        ended
    }

    /// Empties the ledger, and forgets batches and files, for long runs in one simulator. Call it between requests: numbers begin
    /// at 0 again.
    pub fn clear_ledger(&self) {
        self.inner.ledger.forget();
        self.inner.stored.clear();
        lock(&self.inner.final_images).clear();
    }

    /// Returns the file of the final image in the response to a request, whether or not it arrived.
    pub fn image_for(&self, number: usize) -> Option<Bytes> {
        lock(&self.inner.final_images).get(&number).map(|picture| picture.bytes.clone())
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
    /// The request ends without a response.
    fn fail(mut self, kind: SimErrorKind) -> SimError {
        self.over = true;
        let now = self.inner.now();
        self.inner.ledger.edit(self.number, |record| record.ended_at = Some(now));
        SimError::new(kind)
    }
}

impl Drop for AbortGuard {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        if let Some(bill) = self.if_dropped.filter(|_| self.inner.settings.abort_charges) {
            self.inner.ledger.settle(self.number, true, Some(bill));
        }
        let now = self.inner.now();
        self.inner.ledger.edit(self.number, |record| {
            record.aborted = true;
            record.ended_at = Some(now);
        });
    }
}

/// Who asks for what.
#[derive(Clone)]
struct Caller {
    route: Route,
    path: String,
    credentials: Credentials,
    project: Arc<str>,
    model: Arc<str>,
}

impl Caller {
    /// The words that an error about this request may need.
    fn words<'a>(&'a self, successor: &'a str) -> [(&'static str, &'a str); 6] {
        [
            ("{model}", &self.route.model),
            ("{successor}", successor),
            ("{version}", &self.route.version),
            ("{method}", &self.route.method),
            ("{secret}", self.credentials.secret()),
            ("{path}", &self.path),
        ]
    }

    /// Returns the error of this name in `responses.toml`.
    fn error(&self, key: &str) -> ApiError {
        ApiError::named(key, &self.words(""))
    }
}

/// What the server does for a request that it accepts.
enum Task {
    Count {
        tokens: u64,
    },
    /// Fetch or cancel an interaction.
    Stored,
    /// Something about a batch, a file or a webhook.
    Resource,
    /// List the models.
    Listed,
    Make {
        model: &'static Model,
        asked: ImageRequest,
    },
}

/// An error, and what the ledger calls it.
struct Refused {
    error: ApiError,
    outcome: &'static str,
}

impl Refused {
    /// By the checks of the request.
    fn rejected(error: ApiError) -> Self {
        Self { error, outcome: "rejected" }
    }
}

impl Inner {
    fn now(&self) -> Duration {
        self.ledger.now()
    }

    fn settle(&self) {
        self.stored.settle(&self.ledger, self.now());
    }

    fn time_of_day(&self) -> Duration {
        self.settings.time_of_day + self.now()
    }

    fn asked<'a>(
        &self,
        project: &'a Arc<str>,
        model: &'a Arc<str>,
        size: Size,
    ) -> outage::Asked<'a> {
        outage::Asked {
            project,
            model,
            size,
            now: self.now(),
            starts_at: self.settings.time_of_day,
        }
    }

    fn latency(&self, number: usize, range: &RangeInclusive<Duration>) -> Duration {
        let load = self.settings.latency.load(self.time_of_day());
        self.weather.latency(number, range).mul_f64(load)
    }

    fn server_deadline(&self) -> Duration {
        let later = self.settings.later_deadlines.iter().rev().find(|(at, _)| *at <= self.now());
        later.map_or(self.settings.server_deadline, |(_, deadline)| *deadline)
    }

    fn project_of(&self, key: &str) -> Arc<str> {
        match self.settings.projects.get(key) {
            Some(project) => project.as_str().into(),
            // A name of its own for every key, which does not give the key away.
            None => format!("project-{:016x}", hash64(key.as_bytes())).into(),
        }
    }

    fn next_fault(&self, number: usize, call: Option<&str>) -> Fault {
        let mut scripts = lock(&self.scripts);
        let own = call.and_then(|call| scripts.by_call.get_mut(call)?.pop_front());
        own.or_else(|| scripts.common.pop_front())
            .unwrap_or_else(|| self.weather.fault(number, self.time_of_day()))
    }

    async fn handle<B>(self: Arc<Self>, request: Request<B>) -> Result<Handled, SimError>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        // Charges of the past come before this request in the ledger's order.
        self.settle();
        let (parts, body) = request.into_parts();
        let tag: Option<Arc<str>> =
            parts.headers.get("x-sim-call").and_then(|tag| tag.to_str().ok()).map(Arc::from);
        let (number, mut fault) =
            self.ledger.open(self.now(), |number| self.next_fault(number, tag.as_deref()));
        let guard = AbortGuard { inner: self.clone(), number, if_dropped: None, over: false };
        let mut caller = self.caller(&parts);
        self.ledger.edit(number, |record| {
            record.call = tag;
            record.project = caller.project.clone();
            record.model = caller.model.clone();
            record.is_fetch = caller.route.is_fetch();
        });
        if fault == Fault::ConnectionRefused {
            return Err(guard.fail(SimErrorKind::ConnectionRefused));
        }
        // A proxy that dislikes the length does not read on.
        let is_read = fault != Fault::PayloadTooLargeHtml;
        let most = self.settings.max_request_bytes;
        let read = if is_read { collect(body, most).await } else { Ok(Some(Bytes::new())) };
        let Ok(bytes) = read else {
            self.ledger.edit(number, |record| record.outcome = "request_body_broken");
            return Err(guard.fail(SimErrorKind::RequestBody));
        };
        self.ledger.edit(number, |record| {
            record.received = true;
            // A body that was not read has no hash.
            record.body_hash = bytes.as_ref().filter(|_| is_read).map(|bytes| hash64(bytes));
        });

        let task = match &bytes {
            Some(bytes) => self.decide(number, &mut caller, bytes, &mut fault),
            None => Err(Refused::rejected(ApiError::invalid(format!(
                "Request payload size exceeds the limit: {most} bytes."
            )))),
        };
        self.ledger.edit(number, |record| record.model = caller.model.clone());
        match task {
            Err(Refused { error, outcome }) => {
                self.ledger.edit(number, |record| {
                    record.outcome = outcome;
                    // 4xx and 5xx count (ai.google.dev "Billing", 2026-09); whether a 429 does is a
                    // setting, which `admit` looked at.
                    record.request_counted |= error.http != 429;
                });
                tokio::time::sleep(self.latency(number, self.settings.latency.of_error())).await;
                if fault == Fault::ResetAfterReceipt {
                    return Err(guard.fail(SimErrorKind::ConnectionReset));
                }
                Ok(self.failed(guard, &caller.route, &error))
            }
            Ok(Task::Count { tokens }) => {
                self.ledger.edit(number, |record| {
                    record.outcome = "count";
                    record.request_counted = true;
                });
                let details = obj! { "modality": "TEXT", "tokenCount": tokens };
                let body =
                    obj! { "totalTokens": tokens, "promptTokensDetails": vec![details] }.pretty();
                Ok(self.answered(guard, 200, (JSON, body), &Fault::None))
            }
            Ok(Task::Listed) => {
                self.ledger.edit(number, |record| record.outcome = "listed");
                Ok(self.answered(guard, 200, (JSON, self.models()), &Fault::None))
            }
            Ok(Task::Stored) => self.stored(guard, &caller, &fault).await,
            Ok(Task::Resource) => {
                let body = bytes.unwrap_or_default();
                self.resource(guard, &caller, &parts, &body, &fault).await
            }
            Ok(Task::Make { model, asked }) => {
                let timeout = server_timeout(&parts.headers).unwrap_or(Duration::MAX);
                self.make(guard, &caller, model, &asked, &fault, timeout).await
            }
        }
    }

    fn caller(&self, parts: &Parts) -> Caller {
        let credentials = Credentials::of(&parts.uri, &parts.headers);
        let route = Route::parse(&parts.method, &parts.uri).unwrap_or_default();
        Caller {
            path: parts.uri.path().to_owned(),
            project: self.project_of(credentials.secret()),
            model: route.model.as_str().into(),
            credentials,
            route,
        }
    }

    /// Decides what becomes of a request: front end, credentials, limits, the fault that it meets
    /// (or an outage) and the checks of its body, in this order.
    fn decide(
        &self,
        number: usize,
        caller: &mut Caller,
        bytes: &Bytes,
        fault: &mut Fault,
    ) -> Result<Task, Refused> {
        if caller.route.method.is_empty() {
            return Err(Refused { error: caller.error("not_found_html"), outcome: "no_such_path" });
        }
        if caller.route.resource.is_some() {
            return self.decide_resource(caller, fault);
        }
        let parsed = json(bytes);
        if let Ok(body) = &parsed {
            caller.route.read_body(body);
            caller.model = caller.route.model.as_str().into();
        }
        let verb = caller.route.verb;
        let makes = matches!(verb, Verb::Generate | Verb::Predict);
        let checked = parsed.and_then(|body| {
            let model = match (&*fault, known(&caller.route.model)) {
                // Imagen's form has no successor.
                (Fault::Rerouted { .. }, Some(asked)) if !asked.predicts => asked.rerouted(),
                _ => self.living_model(caller)?,
            };
            check(caller.route.api, verb, model, &body).map(|asked| (model, asked))
        });
        if let (Fault::None, Ok((_, asked)), true) = (&*fault, &checked, makes) {
            let streams = caller.route.framing != Framing::Whole;
            let flex = asked.tier == Tier::Flex;
            let asked = self.asked(&caller.project, &caller.model, asked.size);
            let shed = || self.weather.shed(number, self.time_of_day(), streams);
            let outage = self.weather.outage(number, &asked);
            if let Some(outage) = outage.or_else(|| if flex { shed() } else { None }) {
                self.ledger.edit(number, |record| {
                    record.fault = outage.clone();
                    record.outcome = outage.name();
                });
                *fault = outage;
            }
        }

        let successor = known(&caller.model).and_then(|model| model.retired.as_deref());
        let words = caller.words(successor.unwrap_or("gemini-3.1-flash-image"));
        let scripted = ApiError::of(fault, &caller.model, &words);
        // A proxy or front end in the way answers before anybody asks for a key.
        if !scripted.as_ref().is_some_and(ApiError::is_page) {
            self.authenticate(caller).map_err(|error| Refused { error, outcome: "credentials" })?;
            // Scripted 429s are somebody else's limit: they take no place in ours.
            let is_429 = scripted.as_ref().is_some_and(|error| error.http == 429);
            if !matches!(verb, Verb::Count | Verb::Fetch | Verb::Cancel | Verb::List) && !is_429 {
                let weight = checked.as_ref().map_or(Weight::default(), |(model, asked)| Weight {
                    images: if model.makes_images() { asked.count } else { 0 },
                    tokens: Usage::of_input(asked, model).input(),
                });
                self.admit(number, caller, weight)?;
            }
        }
        if let Some(error) = scripted {
            return Err(Refused { error, outcome: fault.name() });
        }
        if *fault == Fault::ResetAfterReceipt {
            return Err(Refused { error: caller.error("unimplemented"), outcome: fault.name() });
        }
        if matches!(verb, Verb::Fetch | Verb::Cancel) {
            return Ok(Task::Stored);
        }
        if verb == Verb::List {
            return Ok(Task::Listed);
        }
        let (model, asked) = checked.map_err(Refused::rejected)?;
        match verb {
            Verb::Other
            | Verb::Fetch
            | Verb::Cancel
            | Verb::List
            | Verb::Create
            | Verb::Delete
            | Verb::Download => Err(Refused::rejected(caller.error("unimplemented"))),
            Verb::Count => Ok(Task::Count { tokens: Usage::of_input(&asked, model).input() }),
            Verb::Generate | Verb::Predict => {
                self.ledger.edit(number, |record| {
                    record.size = Some(asked.size);
                    record.flex = asked.tier == Tier::Flex;
                    record.served_by =
                        Some(model.id.as_str()).filter(|id| *id != &*caller.model).map(Arc::from);
                });
                Ok(Task::Make { model, asked })
            }
        }
    }

    /// The same for what is stored: the limits of requests are not those of batches.
    fn decide_resource(&self, caller: &Caller, fault: &Fault) -> Result<Task, Refused> {
        let successor = "gemini-3.1-flash-image";
        let scripted = ApiError::of(fault, &caller.model, &caller.words(successor));
        // The address of an upload is its credential.
        let is_upload = caller.route.resource == Some(Resource::Uploads);
        if !is_upload && !scripted.as_ref().is_some_and(ApiError::is_page) {
            self.authenticate(caller).map_err(|error| Refused { error, outcome: "credentials" })?;
        }
        if let Some(error) = scripted {
            return Err(Refused { error, outcome: fault.name() });
        }
        if *fault == Fault::ResetAfterReceipt {
            return Err(Refused { error: caller.error("unimplemented"), outcome: fault.name() });
        }
        Ok(Task::Resource)
    }

    fn authenticate(&self, caller: &Caller) -> Result<(), ApiError> {
        let secret = caller.credentials.secret();
        let since = self.settings.rejected_keys.get(secret);
        let is_good = since.is_none_or(|since| *since > self.now())
            && self.settings.accepted_keys.as_ref().is_none_or(|keys| keys.contains(secret));
        let takes_tokens = matches!(caller.route.api, Api::OpenAiChat | Api::OpenAiImages);
        Err(caller.error(match (&caller.credentials.key, &caller.credentials.bearer) {
            (Some(_), Some(_)) => "two_credentials",
            (None, None) if caller.route.api == Api::Vertex => "unauthenticated",
            (None, None) => "bad_request_api_key_invalid",
            _ if is_good => return Ok(()),
            (None, Some(_)) if !takes_tokens => "unauthenticated",
            _ => "bad_request_api_key_invalid",
        }))
    }

    fn admit(&self, number: usize, caller: &Caller, weight: Weight) -> Result<(), Refused> {
        let time_of_day = self.settings.time_of_day;
        let admitted =
            self.limits.admit(&caller.project, &caller.model, self.now(), time_of_day, weight);
        admitted.map_err(|over| {
            self.ledger.edit(number, |record| record.request_counted = over.counted);
            let is_daily = |of: &Violation| of.limit == Limit::RequestsPerDay;
            let is_daily = over.violations.iter().any(is_daily);
            Refused {
                error: ApiError::quota(&caller.model, &over.violations, over.retry_after),
                outcome: if is_daily { "quota_day" } else { "quota_minute" },
            }
        })
    }

    /// The models that answer, as the API lists them.
    fn models(&self) -> Vec<Bytes> {
        let retired = |model: &Model| {
            let gone =
                self.settings.retired.get(&model.id).is_some_and(|(at, _)| *at <= self.now());
            gone || (model.retired.is_some() && !self.settings.revived.contains(&model.id))
        };
        let living = MODELS.iter().filter(|model| !retired(model));
        let listed = living.map(|model| {
            let makes = if model.predicts { "predict" } else { "generateContent" };
            obj! {
                "name": format!("models/{}", model.id),
                "supportedGenerationMethods": vec![makes.into(), "countTokens".into()],
            }
        });
        obj! { "models": listed.collect::<Vec<_>>() }.pretty()
    }

    fn living_model(&self, caller: &Caller) -> Result<&'static Model, ApiError> {
        let route = &caller.route;
        let id = route.model.as_str();
        let retired =
            |successor: &str| ApiError::named("not_found_retired", &caller.words(successor));
        let gone = self.settings.retired.get(id).filter(|(at, _)| *at <= self.now());
        if let Some((_, successor)) = gone {
            return Err(retired(successor));
        }
        let unknown = || {
            let is_vertex = route.api == Api::Vertex;
            caller.error(if is_vertex { "not_found_publisher_model" } else { "not_found_model" })
        };
        let model = known(id).ok_or_else(unknown)?;
        match &model.retired {
            Some(successor) if !self.settings.revived.contains(id) => Err(retired(successor)),
            // Imagen only predicts, and nothing else does.
            _ if (route.verb == Verb::Predict) != model.predicts
                && matches!(route.api, Api::Developer | Api::Vertex)
                && matches!(route.verb, Verb::Predict | Verb::Generate | Verb::Create) =>
            {
                Err(unknown())
            }
            _ => Ok(model),
        }
    }

    /// An interaction that was stored.
    async fn stored(
        &self,
        guard: AbortGuard,
        caller: &Caller,
        fault: &Fault,
    ) -> Result<Handled, SimError> {
        if *fault == (Fault::NoAnswer { charged: false }) {
            std::future::pending::<()>().await;
        }
        let (route, now) = (&caller.route, self.now());
        let id = route.id.as_str();
        let found = match route.verb {
            Verb::Cancel => self.interactions.cancel(&caller.project, id, now),
            _ => self.interactions.get(&caller.project, id),
        };
        self.ledger.edit(guard.number, |record| record.outcome = "fetched");
        let Some(interaction) = found else {
            return Ok(self.failed(guard, route, &caller.error("not_found_entity")));
        };
        if route.framing != Framing::Sse {
            return Ok(self.answered(guard, 200, (JSON, interaction.document(now)), fault));
        }
        let Some(events) = interaction.events_after(route.after.as_deref()) else {
            let error = ApiError::invalid("The value at 'last_event_id' is not an event.");
            return Ok(self.failed(guard, route, &error));
        };
        tokio::time::sleep(interaction.ends_at.saturating_sub(now)).await;
        Ok(self.answered(guard, 200, (SSE, events), fault))
    }

    /// Something is stored, or asked of what is.
    async fn resource(
        self: Arc<Self>,
        guard: AbortGuard,
        caller: &Caller,
        parts: &Parts,
        body: &Bytes,
        fault: &Fault,
    ) -> Result<Handled, SimError> {
        if *fault == (Fault::NoAnswer { charged: false }) {
            std::future::pending::<()>().await;
        }
        let (number, route) = (guard.number, &caller.route);
        let living = |name: &str| {
            let mut caller = caller.clone();
            caller.route.api = Api::Developer;
            caller.route.model = name.rsplit('/').next().unwrap_or(name).to_owned();
            self.living_model(&caller)
        };
        let asked = Asked {
            number,
            project: &caller.project,
            route,
            living: &living,
            uri: &parts.uri,
            headers: &parts.headers,
            body,
            now: self.now(),
        };
        let reply = match self.stored.answer(&asked, &self.settings, &self.pictures) {
            Ok(reply) => reply,
            Err(error) => {
                self.ledger.edit(number, |record| record.outcome = "rejected");
                return Ok(self.failed(guard, route, &error));
            }
        };
        let lines = if route.makes_batch() { self.stored.lines_of(number) } else { 0 };
        self.ledger.edit(number, |record| {
            record.batch_lines = lines;
            record.outcome = if lines > 0 { "batch" } else { "stored" };
        });
        let cut_head = match fault {
            Fault::NoAnswer { .. } => std::future::pending().await,
            Fault::ResetAfterGeneration => return Err(guard.fail(SimErrorKind::ConnectionReset)),
            Fault::CutHead { at } => Some(*at),
            _ => None,
        };
        let Reply { content_type, headers, body } = reply;
        let mut handled = self.answered(guard, 200, (content_type, body), fault);
        for (name, value) in headers {
            if let Ok(value) = HeaderValue::try_from(value) {
                handled.response.headers_mut().insert(name, value);
            }
        }
        Ok(Handled { cut_head, ..handled })
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
        let tier = match fault {
            Fault::TierDowngraded if asked.tier == Tier::Priority => Tier::Standard,
            _ => asked.tier,
        };
        let generator = Generator {
            pictures: &self.pictures,
            options: &self.settings.images,
            seed: self.settings.seed,
            number,
            route: &caller.route,
            model,
            asked,
            blocked_prompts_charge: self.settings.blocked_prompts_charge,
            tier,
            names_model: *fault != (Fault::Rerouted { named: false }),
        };
        let content = generator.content(fault);
        let price = self.settings.prices.get(&model.id).copied().unwrap_or(model.price);
        let bill = content.usage.bill(price);
        let bill = Bill { cost_microusd: tier.of(bill.cost_microusd), ..bill };
        let never_made = matches!(fault, Fault::NoAnswer { charged: false });
        let charged = content.charged && !never_made;
        let generated = content.generated && !never_made;
        self.ledger.edit(number, |record| {
            record.request_counted = true;
            record.input_tokens = bill.input_tokens;
            record.tier = tier;
        });

        let latency = match fault {
            Fault::Late { latency } => *latency,
            _ if content.generated => {
                self.latency(number, &self.settings.latency.of_image(&model.id, asked.size))
            }
            _ => self.latency(number, self.settings.latency.of_error()),
        };
        // A caller's deadline runs while the request queues, the server's own does not.
        let queue = if tier == Tier::Flex { self.weather.queue(number) } else { Duration::ZERO };
        let timeout = timeout.min(self.server_deadline() + queue);
        let latency = queue + latency;
        if latency > timeout {
            tokio::time::sleep(timeout).await;
            self.ledger.edit(number, |record| record.outcome = "server_deadline");
            if matches!(fault, Fault::NoAnswer { .. }) {
                std::future::pending::<()>().await;
            }
            return Ok(self.failed(guard, &caller.route, &caller.error("deadline_expired_504")));
        }
        let picture = content.final_picture().filter(|_| generated);
        self.ledger.edit(number, |record| {
            if let Some(picture) = picture {
                record.outcome = if *fault == Fault::None { "image" } else { fault.name() };
                record.image_hash = Some(picture.hash);
                record.image_len = Some(picture.bytes.len());
            } else if *fault == Fault::None {
                record.outcome = "text";
            }
        });
        if let Some(picture) = picture {
            lock(&self.final_images).insert(number, picture.clone());
        }
        if caller.route.api == Api::Interactions && !caller.route.unstored && !never_made {
            let (id, ends_at) = (generator.interaction_id(), self.now() + latency);
            let stored = generator.stored(&content, ends_at);
            if caller.route.background && caller.route.framing == Framing::Whole {
                // It goes on whether or not anybody waits for it.
                self.ledger.settle(number, generated, charged.then_some(bill));
                let body = stored.running.clone();
                self.interactions.store(caller.project.clone(), id, stored);
                return Ok(self.answered(guard, 200, (JSON, body), fault));
            }
            self.interactions.store(caller.project.clone(), id, stored);
        }
        if !queue.is_zero() {
            tokio::time::sleep(queue).await;
        }
        if charged {
            guard.if_dropped = Some(bill);
        }
        if latency > queue {
            tokio::time::sleep(latency - queue).await;
        }
        guard.if_dropped = None;
        self.ledger.settle(number, generated, charged.then_some(bill));
        match fault {
            Fault::NoAnswer { .. } => std::future::pending().await,
            Fault::ResetAfterGeneration => Err(guard.fail(SimErrorKind::ConnectionReset)),
            _ => {
                let mut handled = self.answered(guard, 200, generator.print(&content), fault);
                if let (Some(tier), Api::Developer) = (generator.named_tier(), caller.route.api) {
                    let tier = HeaderValue::from_static(tier.as_str());
                    handled.response.headers_mut().insert("x-gemini-service-tier", tier);
                }
                if let Fault::CutHead { at } = fault {
                    handled.cut_head = Some(*at);
                }
                Ok(handled)
            }
        }
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

    fn failed(&self, guard: AbortGuard, route: &Route, error: &ApiError) -> Handled {
        self.answered(guard, error.http, error.print(route.api, route.framing), &Fault::None)
    }

    /// A response of this status, content type and body, delivered as the fault says. From here on
    /// the body records the end.
    fn answered(
        &self,
        mut guard: AbortGuard,
        status: u16,
        (content_type, body): (&'static str, Vec<Bytes>),
        fault: &Fault,
    ) -> Handled {
        let number = guard.number;
        guard.over = true;
        self.ledger.edit(number, |record| record.status = Some(status));
        let delivery = self.delivery(fault);
        let mut response = Response::new(SimBody::new(body, delivery, self.ledger.clone(), number));
        *response.status_mut() =
            StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // As in recorded responses; no rate-limit headers and no Retry-After, ever.
        let timing = format!("gfet4t7; dur={}", 40 + mix(number as u64) % 100);
        let headers = response.headers_mut();
        headers.reserve(8);
        for (name, value) in [
            (header::CONTENT_TYPE, content_type),
            (header::VARY, "Origin, X-Origin, Referer"),
            (header::SERVER, "scaffolding on HTTPServer2"),
            (header::X_XSS_PROTECTION, "0"),
            (header::X_FRAME_OPTIONS, "SAMEORIGIN"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::ALT_SVC, "h3=\":443\"; ma=2592000,h3-29=\":443\"; ma=2592000"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if let Ok(timing) = HeaderValue::try_from(timing) {
            headers.insert("server-timing", timing);
        }
        response.extensions_mut().insert(RequestNumber(number));
        Handled { response, cut_head: None }
    }
}

/// Reads a request's body; `None` when it is longer than `most`.
async fn collect<B>(body: B, most: usize) -> Result<Option<Bytes>, SimError>
where
    B: Body<Data = Bytes> + Send + 'static,
{
    let broken = || SimError::new(SimErrorKind::RequestBody);
    match Limited::new(Box::pin(body).map_err(|_| broken()), most).collect().await {
        Ok(whole) => Ok(Some(whole.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Ok(None),
        Err(_) => Err(broken()),
    }
}
