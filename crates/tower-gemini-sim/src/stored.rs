//! Answers requests about what is stored: batches, files and webhooks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Uri};
use serde_json::Value;

use crate::answer::Generator;
use crate::api_error::ApiError;
use crate::batch::{Batch, BatchRecord, Label, Line, OPENAI_ENDPOINT, OPENAI_WINDOW};
use crate::builder::Builder;
use crate::dialect::{Api, Resource, Verb};
use crate::fault::{BatchFault, Fault};
use crate::files::{self, Files, ID_LETTERS};
use crate::hash::{hash64, letters};
use crate::image::PictureCache;
use crate::json::{Json, obj};
use crate::ledger::Ledger;
use crate::lock;
use crate::model::{Model, Tier};
use crate::reply::{Page, Reply};
use crate::request::{Route, check, field};
use crate::webhook::{WebhookEvent, Webhooks};

/// Everything that is stored under ids of its own.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    /// In order of creation, deleted ones included: they are billed all the same.
    batches: Mutex<Vec<Batch>>,
    script: Mutex<VecDeque<BatchFault>>,
    files: Files,
    webhooks: Webhooks,
    /// Told when a batch or a listener is new, or a batch ends early.
    #[cfg(feature = "serve")]
    changed: tokio::sync::Notify,
}

/// What a request about something stored asks.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) number: usize,
    pub(crate) project: &'a Arc<str>,
    pub(crate) route: &'a Route,
    /// Finds a model that answers: batches that are created ask for theirs.
    pub(crate) living: &'a (dyn Fn(&str) -> Result<&'static Model, ApiError> + Sync),
    pub(crate) uri: &'a Uri,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) body: &'a Bytes,
    pub(crate) now: Duration,
}

fn no_such_batch() -> ApiError {
    ApiError::named("not_found_entity", &[])
}

impl Asked<'_> {
    fn is_openai(&self) -> bool {
        self.route.api == Api::OpenAiChat
    }

    /// Whether it may name this batch: OpenAI's form has no place for inline requests.
    fn sees(&self, batch: &Batch) -> bool {
        let has_form = !self.is_openai() || batch.api == Api::OpenAiChat;
        batch.project == *self.project && !batch.deleted && has_form
    }

    fn names(&self, batch: &Batch) -> bool {
        batch.id == self.route.id && self.sees(batch)
    }

    /// A batch in the caller's form.
    fn form(&self, batch: &Batch, settings: &Builder, is_listed: bool) -> Json {
        match self.is_openai() {
            true => batch.openai(settings, self.now),
            false => batch.operation(settings, self.now, is_listed),
        }
    }
}

impl Stored {
    pub(crate) fn new(script: VecDeque<BatchFault>) -> Self {
        Self { script: Mutex::new(script), ..Self::default() }
    }

    pub(crate) fn push_script(&self, faults: impl IntoIterator<Item = BatchFault>) {
        lock(&self.script).extend(faults);
    }

    pub(crate) fn clear(&self) {
        lock(&self.batches).clear();
        self.files.clear();
    }

    pub(crate) fn answer(
        &self,
        asked: &Asked<'_>,
        settings: &Builder,
        pictures: &PictureCache,
    ) -> Result<Reply, ApiError> {
        let Asked { project, route, uri, headers, body, now, .. } = *asked;
        let id = route.id.as_str();
        let (files, webhooks) = (&self.files, &self.webhooks);
        let json = || crate::request::json(body);
        match (route.resource, route.verb) {
            (Some(Resource::Batches), Verb::Create) => {
                self.create(asked, settings, pictures, &json()?)
            }
            (Some(Resource::Batches), Verb::List) => self.list(asked, settings),
            (Some(Resource::Batches), Verb::Fetch) => {
                let batches = lock(&self.batches);
                let batch = batches.iter().find(|batch| asked.names(batch));
                let batch = batch.ok_or_else(no_such_batch)?;
                Ok(Reply::json(asked.form(batch, settings, false)))
            }
            (Some(Resource::Batches), Verb::Cancel | Verb::Delete) => {
                let mut batches = lock(&self.batches);
                let batch = batches.iter_mut().find(|batch| asked.names(batch));
                let batch = batch.ok_or_else(no_such_batch)?;
                if route.verb == Verb::Delete {
                    batch.deleted = true;
                } else if !batch.moment(now).state.is_end() {
                    batch.cancelled = Some(now);
                    self.notify();
                }
                let form = || Reply::json(asked.form(batch, settings, false));
                Ok(if asked.is_openai() { form() } else { Reply::empty() })
            }
            (Some(Resource::Files), Verb::Create) => {
                files.start(project, settings, uri, headers, body)
            }
            (Some(Resource::Uploads), _) => files.go_on(id, settings, headers, body, now),
            (Some(Resource::Files), Verb::List) => files.list(project, settings, uri, now),
            (Some(Resource::Files), Verb::Delete) => files.delete(project, id, now),
            (Some(Resource::Files), verb) => match self.results(project, id, now) {
                Some((_, lines)) if verb == Verb::Download => Ok(Reply {
                    content_type: "application/jsonl",
                    headers: Vec::new(),
                    body: lines,
                }),
                Some((ended, lines)) => {
                    let size = lines.iter().map(Bytes::len).sum();
                    Ok(Reply::json(files::generated(id, size, settings.timestamp(ended))))
                }
                None if verb == Verb::Download => files.download(project, id, now),
                None => files.get(project, id, settings, now),
            },
            (Some(Resource::Webhooks), Verb::Create) => {
                let made = webhooks.create(project, settings, &json()?, now)?;
                self.notify();
                Ok(made)
            }
            (Some(Resource::Webhooks), Verb::List) => webhooks.list(project, settings, uri),
            (Some(Resource::Webhooks), Verb::Delete) => webhooks.delete(project, id),
            (Some(Resource::Webhooks), _) => webhooks.get(project, settings, id),
            (None, _) | (Some(Resource::Batches), _) => Err(ApiError::named("unimplemented", &[])),
        }
    }

    /// When a batch ended, and the file with its results.
    fn results(
        &self,
        project: &Arc<str>,
        id: &str,
        now: Duration,
    ) -> Option<(Duration, Vec<Bytes>)> {
        let batches = lock(&self.batches);
        let batch_id = id.strip_prefix("batch-")?.split('-').next()?;
        let of_file = |batch: &&Batch| batch.project == *project && batch.id == batch_id;
        let batch = batches.iter().find(of_file)?;
        Some((batch.moment(now).since, batch.file(id, now)?))
    }

    fn list(&self, asked: &Asked<'_>, settings: &Builder) -> Result<Reply, ApiError> {
        let batches = lock(&self.batches);
        let newest_first: Vec<_> = batches.iter().rev().filter(|batch| asked.sees(batch)).collect();
        let page = Page::of(asked.uri, &newest_first, |batch| batch.id.as_str())?;
        let operations: Vec<Json> =
            page.items.iter().map(|batch| asked.form(batch, settings, true)).collect();
        if asked.is_openai() {
            let id = |batch: Option<&&Batch>| batch.map(|batch| format!("batches/{}", batch.id));
            return Ok(Reply::json(obj! {
                "object": "list",
                "data": operations,
                "first_id": id(page.items.first()),
                "last_id": id(page.items.last()),
                "has_more": page.next.is_some(),
            }));
        }
        let operations = (!operations.is_empty()).then_some(operations);
        Ok(Reply::json(obj! { "operations": operations, "nextPageToken": page.next }))
    }

    /// Makes a batch, with all that will become of it.
    fn create(
        &self,
        asked: &Asked<'_>,
        settings: &Builder,
        pictures: &PictureCache,
        body: &Value,
    ) -> Result<Reply, ApiError> {
        let Asked { number, project, route, living, now, .. } = *asked;
        // The path names the model, or each line its own.
        let is_openai = asked.is_openai();
        let model = if is_openai { None } else { Some(living(&route.model)?) };
        let order = ["endpoint", "completionWindow"].map(|name| text(body, name));
        if is_openai && order != [Some(OPENAI_ENDPOINT), Some(OPENAI_WINDOW)] {
            return Err(ApiError::invalid(format!(
                "Only the endpoint {OPENAI_ENDPOINT} and the window {OPENAI_WINDOW} are supported."
            )));
        }
        let batch = field(body, "batch").unwrap_or(&Value::Null);
        let config = field(batch, "inputConfig").unwrap_or(&Value::Null);
        let input = text(config, "fileName").or_else(|| text(body, "inputFileId"));
        let input = input.map(|name| name.trim_start_matches("files/"));
        let inline = field(config, "requests").and_then(|requests| field(requests, "requests"));
        let lines = match (input, inline.and_then(Value::as_array)) {
            (Some(id), None) => lines_of_file(&self.files.bytes(project, id, now)?, is_openai),
            (None, Some(requests)) if asked.body.len() <= settings.batches.inline_bytes => {
                requests.iter().map(|request| Ok(line_of_request(request))).collect()
            }
            (None, Some(_)) => {
                return Err(ApiError::invalid(format!(
                    "Request payload size exceeds the limit: {} bytes.",
                    settings.batches.inline_bytes
                )));
            }
            _ => Vec::new(),
        };
        if lines.is_empty() {
            return Err(ApiError::invalid(
                "* BatchGenerateContentRequest.batch.input_config: the batch has no requests\n",
            ));
        }
        let mut batches = lock(&self.batches);
        let is_open =
            |batch: &&Batch| batch.project == *project && !batch.moment(now).state.is_end();
        if batches.iter().filter(is_open).count() >= settings.batches.concurrent {
            return Err(ApiError::named("exhausted_bare", &[]));
        }
        let fault = lock(&self.script).pop_front().unwrap_or_default();
        let failure = match &fault {
            BatchFault::Failed(why) => {
                let internal = || ApiError::named("internal", &[]);
                let model = model.map_or("", |model| &model.id);
                Some(error_of(why, model).unwrap_or_else(internal))
            }
            _ => None,
        };
        let meets = |index: usize| match &fault {
            BatchFault::LinesFailed { first, count, fault }
                if (*first..first.saturating_add(*count)).contains(&index) =>
            {
                fault
            }
            _ => &Fault::None,
        };
        let alone = Route { api: route.api, ..Route::default() };
        let lines = lines.into_iter().enumerate().map(|(index, read)| {
            let (label, request) = read.unwrap_or_else(|error| (Label::Key(None), Err(error)));
            let made = request.and_then(|request| {
                let named = || living(text(&request, "model").unwrap_or_default());
                let model = model.map_or_else(named, Ok)?;
                let asked = check(route.api, Verb::Generate, model, &request)?;
                let generator = Generator {
                    pictures,
                    options: &settings.images,
                    seed: settings.seed,
                    // Every line has a response id of its own.
                    number: number.wrapping_mul(1_000_003).wrapping_add(index + 1),
                    route: &alone,
                    model,
                    asked: &asked,
                    blocked_prompts_charge: settings.blocked_prompts_charge,
                    tier: Tier::Standard,
                    names_model: true,
                };
                make(&generator, settings, meets(index))
            });
            let unmade = |error: ApiError| (Err(error), None, None);
            let (result, bill, image_hash) = made.unwrap_or_else(unmade);
            Line { label, result, bill, image_hash }
        });
        let lines = lines.collect();
        let seed = settings.seed ^ hash64(b"batch") ^ batches.len() as u64;
        let made = Batch {
            project: project.clone(),
            api: route.api,
            // As long as recorded ones.
            id: letters(ID_LETTERS, seed, 36),
            number,
            model: model.map(|model| model.id.as_str()),
            display_name: text(batch, "displayName").map(str::to_owned),
            input: input.map(str::to_owned),
            fault,
            failure,
            metadata: field(body, "metadata").map(Json::from),
            created: now,
            pending: settings.batches.pending,
            running: settings.batches.running,
            cancelled: None,
            deleted: false,
            has_own_webhooks: field(batch, "webhookConfig").is_some(),
            lines,
            is_settled: false,
            is_announced: false,
        };
        let reply = Reply::json(asked.form(&made, settings, false));
        batches.push(made);
        self.notify();
        Ok(reply)
    }

    /// Enters the bills of batches that have ended into the ledger.
    pub(crate) fn settle(&self, ledger: &Ledger, now: Duration) {
        for batch in lock(&self.batches).iter_mut().filter(|batch| !batch.is_settled) {
            let moment = batch.moment(now);
            if moment.state.is_end() {
                let (bill, charged) = batch.bill(moment);
                ledger.settle(batch.number, bill.is_some(), bill);
                ledger.edit(batch.number, |record| record.batch_lines_charged = charged);
                batch.is_settled = true;
            }
        }
    }

    pub(crate) fn lines_of(&self, number: usize) -> usize {
        let batches = lock(&self.batches);
        let made = batches.iter().rev().find(|batch| batch.number == number);
        made.map_or(0, |batch| batch.lines.len())
    }

    pub(crate) fn records(&self, now: Duration) -> Vec<BatchRecord> {
        lock(&self.batches).iter().map(|batch| batch.record(now)).collect()
    }

    /// What is to be sent to listeners by now, each once.
    pub(crate) fn deliveries(&self, settings: &Builder, now: Duration) -> Vec<WebhookEvent> {
        let mut due = Vec::new();
        for batch in lock(&self.batches).iter_mut().filter(|batch| !batch.is_announced) {
            if batch.moment(now).state.is_end() {
                due.extend(self.webhooks.deliveries(settings, batch, now));
                batch.is_announced = true;
            }
        }
        due
    }

    fn notify(&self) {
        #[cfg(feature = "serve")]
        self.changed.notify_one();
    }

    /// Waits until a batch has ended that somebody listens to. It waits for ever, and without a
    /// timer, while nobody does.
    #[cfg(feature = "serve")]
    pub(crate) async fn ended(&self, ledger: &Ledger) {
        loop {
            let next = {
                let batches = lock(&self.batches);
                let awaited = batches
                    .iter()
                    .filter(|batch| !batch.is_announced && self.webhooks.listens(&batch.project));
                awaited.filter_map(Batch::ends_at).min()
            };
            let left = next.map(|at| at.saturating_sub(ledger.now()));
            match left {
                Some(Duration::ZERO) => return,
                Some(left) => {
                    tokio::select! {
                        () = tokio::time::sleep(left) => {}
                        () = self.changed.notified() => {}
                    }
                }
                None => self.changed.notified().await,
            }
        }
    }
}

/// A line before the model reads it: its label, and its request or what is wrong with it.
type Read = Result<(Label, Result<Value, ApiError>), ApiError>;

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    field(value, name).and_then(Value::as_str)
}

fn request_of(line: &Value, name: &str) -> Result<Value, ApiError> {
    let missing = || ApiError::invalid(format!("The value at '{name}' is required."));
    field(line, name).cloned().ok_or_else(missing)
}

fn line_of_request(line: &Value) -> (Label, Result<Value, ApiError>) {
    let label = match field(line, "metadata") {
        Some(metadata) => Label::Metadata {
            json: metadata.into(),
            key: metadata.get("key").and_then(Value::as_str).map(str::to_owned),
        },
        None => Label::Key(None),
    };
    (label, request_of(line, "request"))
}

fn lines_of_file(bytes: &Bytes, is_openai: bool) -> Vec<Read> {
    let (key, request) = if is_openai { ("custom_id", "body") } else { ("key", "request") };
    let lines = bytes.split(|byte| *byte == b'\n');
    let filled = lines.filter(|line| !line.trim_ascii().is_empty());
    filled
        .map(|line| {
            let line = crate::request::json(line)?;
            let key = text(&line, key).map(str::to_owned);
            Ok((Label::Key(key), request_of(&line, request)))
        })
        .collect()
}

/// The error that a line or a whole batch meets; `None` for faults that leave a response.
fn error_of(fault: &Fault, model: &str) -> Option<ApiError> {
    let words = [("{model}", model), ("{secret}", "")];
    let is_broken = fault.is_transport() || *fault == Fault::ErrorInOk;
    let internal = || is_broken.then(|| ApiError::named("internal", &[]));
    ApiError::of(fault, model, &words).or_else(internal)
}

/// What a line comes to: its result, its bill and its image.
type Made = (Result<Json, ApiError>, Option<crate::ledger::Bill>, Option<u64>);

fn make(generator: &Generator<'_>, settings: &Builder, fault: &Fault) -> Result<Made, ApiError> {
    let model = generator.model;
    if let Some(error) = error_of(fault, &model.id) {
        return Err(error);
    }
    let content = generator.content(fault);
    let price = settings.prices.get(&model.id).copied().unwrap_or(model.price);
    let bill = content.charged.then(|| content.usage.bill(price).at_half_price());
    let image = content.final_picture().map(|picture| picture.hash);
    Ok((Ok(generator.of_line(&content)), bill, image))
}
