//! Batches: what becomes of one in the course of time, what it says of itself, and its bill.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use crate::api_error::ApiError;
use crate::builder::Builder;
use crate::dialect::Api;
use crate::fault::BatchFault;
use crate::files::ID_LETTERS;
use crate::hash::{hash64, letters};
use crate::json::{Json, obj};
use crate::ledger::Bill;

/// When a batch that is not done expires (ai.google.dev "Batch API", 2026-09).
const EXPIRES_AFTER: Duration = Duration::from_secs(48 * 3600);

/// The only endpoint and the only window of OpenAI-compatible batches here.
pub(crate) const OPENAI_ENDPOINT: &str = "/v1/chat/completions";
pub(crate) const OPENAI_WINDOW: &str = "24h";

/// What a caller tells a line from the others by.
#[derive(Debug, Clone)]
pub(crate) enum Label {
    /// `key` of a line in a file, or `custom_id` of one of the OpenAI-compatible endpoint.
    Key(Option<String>),
    /// `metadata` of an inline request.
    Metadata { json: Json, key: Option<String> },
}

impl Label {
    fn key(&self) -> Option<&str> {
        match self {
            Self::Key(key) | Self::Metadata { key, .. } => key.as_deref(),
        }
    }

    /// A result with it: `response` or `error` first, as recorded results have it.
    fn result(&self, name: &'static str, value: Json) -> Json {
        match self {
            Self::Key(key) => obj! { (name): value, "key": key.clone() },
            Self::Metadata { json, .. } => obj! { (name): value, "metadata": json.clone() },
        }
    }
}

/// A request of a batch and what the model makes of it.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) label: Label,
    pub(crate) result: Result<Json, ApiError>,
    /// At the price of batches.
    pub(crate) bill: Option<Bill>,
    pub(crate) image_hash: Option<u64>,
}

/// One batch.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    pub(crate) project: Arc<str>,
    /// Whose form its files have.
    pub(crate) api: Api,
    pub(crate) id: String,
    /// The request that made it.
    pub(crate) number: usize,
    /// `None` where each line names its own.
    pub(crate) model: Option<&'static str>,
    pub(crate) display_name: Option<String>,
    /// The file with its requests, unless they were inline.
    pub(crate) input: Option<String>,
    pub(crate) fault: BatchFault,
    /// Why all of it fails.
    pub(crate) failure: Option<ApiError>,
    /// Its creator's own, in OpenAI's form.
    pub(crate) metadata: Option<Json>,
    pub(crate) created: Duration,
    pub(crate) pending: Duration,
    pub(crate) running: Duration,
    pub(crate) cancelled: Option<Duration>,
    pub(crate) deleted: bool,
    /// It names listeners of its own, so that those of the project are not told.
    pub(crate) has_own_webhooks: bool,
    pub(crate) lines: Vec<Line>,
    pub(crate) is_settled: bool,
    pub(crate) is_announced: bool,
}

/// Where a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub enum BatchState {
    /// It waits for its turn.
    #[serde(rename = "BATCH_STATE_PENDING")]
    Pending,
    /// Its lines are being made.
    #[serde(rename = "BATCH_STATE_RUNNING")]
    Running,
    /// It ended with results.
    #[serde(rename = "BATCH_STATE_SUCCEEDED")]
    Succeeded,
    /// It ended without results.
    #[serde(rename = "BATCH_STATE_FAILED")]
    Failed,
    /// Its caller ended it.
    #[serde(rename = "BATCH_STATE_CANCELLED")]
    Cancelled,
    /// It was not done in 48 hours.
    #[serde(rename = "BATCH_STATE_EXPIRED")]
    Expired,
}

impl BatchState {
    /// Returns its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "BATCH_STATE_PENDING",
            Self::Running => "BATCH_STATE_RUNNING",
            Self::Succeeded => "BATCH_STATE_SUCCEEDED",
            Self::Failed => "BATCH_STATE_FAILED",
            Self::Cancelled => "BATCH_STATE_CANCELLED",
            Self::Expired => "BATCH_STATE_EXPIRED",
        }
    }

    /// Whether nothing more becomes of it.
    pub fn is_end(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }
}

/// What is true of a batch at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) state: BatchState,
    /// When it came to that.
    pub(crate) since: Duration,
    /// Lines that the model is done with.
    done: usize,
}

impl Batch {
    fn begins(&self) -> Option<Duration> {
        match self.fault {
            BatchFault::Stuck | BatchFault::Expired { running: false } => None,
            _ => Some(self.created + self.pending),
        }
    }

    /// How it ends by itself, and when.
    fn end(&self) -> Option<(BatchState, Duration)> {
        let ends = self.created + self.pending + self.running;
        let expires = self.created + EXPIRES_AFTER;
        match self.fault {
            BatchFault::Stuck => None,
            BatchFault::Expired { .. } => Some((BatchState::Expired, expires)),
            _ if ends > expires => Some((BatchState::Expired, expires)),
            BatchFault::Failed(_) => Some((BatchState::Failed, ends)),
            _ => Some((BatchState::Succeeded, ends)),
        }
    }

    /// Lines that are done after it ran until then, evenly.
    fn done_by(&self, at: Duration, begins: Duration) -> usize {
        if matches!(self.fault, BatchFault::Expired { .. }) {
            return 0;
        }
        let ran = at.saturating_sub(begins).as_secs_f64();
        let share = if self.running.is_zero() { 1.0 } else { ran / self.running.as_secs_f64() };
        ((share * self.lines.len() as f64) as usize).min(self.lines.len())
    }

    pub(crate) fn moment(&self, now: Duration) -> Moment {
        let begins = self.begins();
        let until = |at: Duration| begins.map_or(0, |begins| self.done_by(at, begins));
        if let Some(at) = self.cancelled {
            let began = begins.is_some_and(|begins| begins <= at);
            // One that had begun was seen to end well, with an error for each line not done.
            let keeps = self.fault == BatchFault::CancelledWithResults;
            let state = if began && !keeps { BatchState::Succeeded } else { BatchState::Cancelled };
            return Moment { state, since: at, done: until(at) };
        }
        // The answer to its creation never says more than that, however quick it is.
        if now <= self.created {
            return Moment { state: BatchState::Pending, since: now, done: 0 };
        }
        match (self.end(), begins) {
            (Some((state, at)), _) if at <= now => {
                let is_done = state == BatchState::Succeeded;
                Moment { state, since: at, done: if is_done { self.lines.len() } else { 0 } }
            }
            (_, Some(begins)) if begins <= now => {
                Moment { state: BatchState::Running, since: begins, done: until(now) }
            }
            _ => Moment { state: BatchState::Pending, since: self.created, done: 0 },
        }
    }

    /// When it ends, unless it is cancelled before.
    #[cfg(feature = "serve")]
    pub(crate) fn ends_at(&self) -> Option<Duration> {
        self.cancelled.or_else(|| self.end().map(|(_, at)| at))
    }

    /// How often each line is in the results.
    fn times(&self, moment: Moment) -> Vec<usize> {
        let count = match moment.state {
            BatchState::Succeeded => self.lines.len(),
            BatchState::Cancelled if self.fault == BatchFault::CancelledWithResults => moment.done,
            _ => 0,
        };
        let is_in = |index: usize, first: usize, count: usize| {
            (first..first.saturating_add(count)).contains(&index)
        };
        let times = |index| match self.fault {
            _ if index >= count => 0,
            BatchFault::LinesMissing { first, count, .. } if is_in(index, first, count) => 0,
            BatchFault::LinesTwice { first, count } if is_in(index, first, count) => 2,
            _ => 1,
        };
        (0..self.lines.len()).map(times).collect()
    }

    /// What each line is charged in the end: those that are delivered, and lost ones if the fault
    /// says so.
    fn charges(&self, moment: Moment) -> Vec<Option<Bill>> {
        let lost = matches!(self.fault, BatchFault::LinesMissing { charged: true, .. })
            && moment.state == BatchState::Succeeded;
        let lines = self.lines.iter().zip(self.times(moment)).enumerate();
        lines
            .map(|(index, (line, times))| {
                line.bill.filter(|_| index < moment.done && (lost || times > 0))
            })
            .collect()
    }

    /// The bill of a batch that has ended, and how many lines are on it.
    pub(crate) fn bill(&self, moment: Moment) -> (Option<Bill>, usize) {
        let charged: Vec<Bill> = self.charges(moment).into_iter().flatten().collect();
        (charged.iter().copied().reduce(Bill::plus), charged.len())
    }

    fn result(&self, moment: Moment, index: usize) -> Json {
        let line = &self.lines[index];
        if self.api == Api::OpenAiChat {
            return self.openai_result(moment, index);
        }
        match &line.result {
            // A line that was not done when the batch was cancelled says only that.
            _ if index >= moment.done => line.label.result("error", obj! { "code": 1u64 }),
            Ok(response) => line.label.result("response", response.clone()),
            Err(error) => line.label.result("error", error.to_status()),
        }
    }

    /// A result in OpenAI's form: the status and the body that its request would get alone.
    fn openai_result(&self, moment: Moment, index: usize) -> Json {
        let line = &self.lines[index];
        let id = letters(ID_LETTERS, hash64(self.id.as_bytes()) ^ index as u64, 24);
        let cancelled = || {
            let message = "This request was not executed before the batch was cancelled.";
            obj! { "code": "batch_cancelled", "message": message }
        };
        let (status, body, error) = match &line.result {
            _ if index >= moment.done => (None, None, Some(cancelled())),
            Ok(body) => (Some(200), Some(body.clone()), None),
            Err(error) => (Some(error.http), Some(error.to_openai()), None),
        };
        let response = status.map(|status| {
            obj! { "status_code": u64::from(status), "request_id": id.clone(), "body": body }
        });
        obj! {
            "id": format!("batch_req_{id}"),
            "custom_id": line.label.key().map(str::to_owned),
            "response": response.unwrap_or(Json::Null),
            "error": error.unwrap_or(Json::Null),
        }
    }

    /// The lines of the results, once they are there.
    fn results(&self, moment: Moment, now: Duration) -> Option<Vec<usize>> {
        let late = match self.fault {
            BatchFault::ResultsLate { by } => by,
            _ => Duration::ZERO,
        };
        let times = self.times(moment);
        let has_results =
            moment.state == BatchState::Succeeded || times.iter().any(|times| *times > 0);
        if !has_results || now < moment.since + late {
            return None;
        }
        let lines = times.iter().enumerate();
        let lines = lines.flat_map(|(index, times)| std::iter::repeat_n(index, *times));
        let mut results: Vec<_> = lines.collect();
        if self.fault == BatchFault::OutOfOrder {
            results.reverse();
        }
        Some(results)
    }

    fn is_inline(&self) -> bool {
        self.input.is_none() && self.fault != BatchFault::ResultsInFile
    }

    /// The files with its results, if that is where they are, by id: all of them, or in OpenAI's
    /// form those with a response and then those without.
    fn files(&self, now: Duration) -> [Option<(String, Vec<usize>)>; 2] {
        let moment = self.moment(now);
        let lines = self.results(moment, now).filter(|_| !self.is_inline());
        let id = format!("batch-{}", self.id);
        if self.api != Api::OpenAiChat {
            return [lines.map(|lines| (id, lines)), None];
        }
        let is_good = |index: &usize| *index < moment.done && self.lines[*index].result.is_ok();
        let (good, bad): (Vec<_>, Vec<_>) =
            lines.into_iter().flatten().partition(|index| is_good(index));
        let errors = format!("{id}-errors");
        [(id, good), (errors, bad)].map(|file| Some(file).filter(|(_, lines)| !lines.is_empty()))
    }

    /// The names of those files.
    pub(crate) fn file_names(&self, now: Duration) -> [Option<String>; 2] {
        self.files(now).map(|file| file.map(|(id, _)| format!("files/{id}")))
    }

    /// One of those files.
    pub(crate) fn file(&self, id: &str, now: Duration) -> Option<Vec<Bytes>> {
        let (_, lines) = self.files(now).into_iter().flatten().find(|(file, _)| file == id)?;
        let moment = self.moment(now);
        let end = || Bytes::from_static(b"\n");
        let line = |index| self.result(moment, index).compact().into_iter().chain([end()]);
        Some(lines.into_iter().flat_map(line).collect())
    }

    fn output(&self, moment: Moment, now: Duration, is_listed: bool) -> Option<Json> {
        if !self.is_inline() {
            let [file, _] = self.file_names(now);
            return file.map(|file| obj! { "responsesFile": file });
        }
        let results = self.results(moment, now).filter(|_| !is_listed)?;
        let results: Vec<_> = results.iter().map(|index| self.result(moment, *index)).collect();
        Some(obj! { "inlinedResponses": obj! { "inlinedResponses": results } })
    }

    /// The error of the operation, in the end. None is known of an expired one.
    pub(crate) fn error(&self, state: BatchState) -> Option<Json> {
        match state {
            BatchState::Failed => self.failure.as_ref().map(ApiError::to_status),
            // As answered; the documentation says code 1.
            BatchState::Cancelled => {
                Some(obj! { "code": 13u64, "message": "Batch was cancelled." })
            }
            _ => None,
        }
    }

    /// How many lines have a response, failed, and are still to be done.
    fn counts(&self, moment: Moment) -> [usize; 3] {
        let done = &self.lines[..moment.done];
        let good = done.iter().filter(|line| line.result.is_ok()).count();
        // Lines that were cancelled have failed, unless the batch says that it was cancelled.
        let left = self.lines.len() - moment.done;
        let is_over = moment.state == BatchState::Succeeded;
        let bad = moment.done - good;
        if is_over { [good, bad + left, 0] } else { [good, bad, left] }
    }

    fn stats(&self, moment: Moment) -> Json {
        let [good, bad, left] =
            self.counts(moment).map(|count| (count > 0).then(|| count.to_string()));
        obj! {
            "requestCount": self.lines.len().to_string(),
            "successfulRequestCount": good,
            "failedRequestCount": bad,
            "pendingRequestCount": left,
        }
    }

    /// The batch, as the OpenAI-compatible endpoint answers it.
    pub(crate) fn openai(&self, settings: &Builder, now: Duration) -> Json {
        let moment = self.moment(now);
        let state = moment.state;
        let status = match state {
            BatchState::Pending => "validating",
            BatchState::Running => "in_progress",
            BatchState::Succeeded => "completed",
            BatchState::Failed => "failed",
            BatchState::Cancelled => "cancelled",
            BatchState::Expired => "expired",
        };
        let unix = |at: Duration| settings.unix(at).as_secs();
        let since = |of: BatchState| (state == of).then(|| unix(moment.since));
        let left_queue = self.cancelled.unwrap_or(now);
        let began = self.begins().filter(|at| state != BatchState::Pending && *at <= left_queue);
        let failure = self.failure.as_ref().filter(|_| state == BatchState::Failed);
        let errors = failure.map(|error| {
            let data = vec![obj! { "code": error.status, "message": error.message.clone() }];
            obj! { "object": "list", "data": data }
        });
        let [output, failed_lines] = self.file_names(now);
        let [good, bad, _] = self.counts(moment).map(|count| count as u64);
        obj! {
            "id": format!("batches/{}", self.id),
            "object": "batch",
            "endpoint": OPENAI_ENDPOINT,
            "errors": errors,
            "input_file_id": self.input.clone().map(|file| format!("files/{file}")),
            "completion_window": OPENAI_WINDOW,
            "status": status,
            "output_file_id": output,
            "error_file_id": failed_lines,
            "created_at": unix(self.created),
            "in_progress_at": began.map(unix),
            "expires_at": unix(self.created + EXPIRES_AFTER),
            "completed_at": since(BatchState::Succeeded),
            "failed_at": since(BatchState::Failed),
            "expired_at": since(BatchState::Expired),
            "cancelled_at": since(BatchState::Cancelled),
            "request_counts": obj! {
                "total": self.lines.len() as u64,
                "completed": good,
                "failed": bad,
            },
            "metadata": self.metadata.clone(),
        }
    }

    /// The operation, as `get` answers it; lists leave inline results out.
    pub(crate) fn operation(&self, settings: &Builder, now: Duration, is_listed: bool) -> Json {
        const TYPES: &str = "type.googleapis.com/google.ai.generativelanguage.v1main.";
        let moment = self.moment(now);
        let is_end = moment.state.is_end();
        let name = format!("batches/{}", self.id);
        let output = || self.output(moment, now, is_listed);
        let response = || match output()? {
            Json::Obj(fields) => Some(Json::Obj(
                fields.led_by("@type", format!("{TYPES}GenerateContentBatchOutput")),
            )),
            other => Some(other),
        };
        let error = if is_end { self.error(moment.state) } else { None };
        let response = if is_end && error.is_none() { response() } else { None };
        let metadata = obj! {
            "@type": format!("{TYPES}GenerateContentBatch"),
            "model": self.model.map(|model| format!("models/{model}")),
            "displayName": self.display_name.clone(),
            "inputConfig": self.input.clone().map(|file| obj! { "fileName": format!("files/{file}") }),
            "output": output(),
            "createTime": settings.timestamp(self.created),
            "endTime": is_end.then(|| settings.timestamp(moment.since)),
            "updateTime": settings.timestamp(moment.since),
            "batchStats": self.stats(moment),
            "state": moment.state.as_str(),
            "name": name.clone(),
        };
        obj! {
            "name": name,
            "metadata": metadata,
            "done": is_end.then_some(true),
            "error": error,
            "response": response,
        }
    }

    /// What is true of it, for who judges its client.
    pub(crate) fn record(&self, now: Duration) -> BatchRecord {
        let moment = self.moment(now);
        let (times, charges) = (self.times(moment), self.charges(moment));
        let has_ended = moment.state.is_end();
        let line = |(index, line): (usize, &Line)| {
            let charge = charges[index].filter(|_| has_ended);
            LineRecord {
                key: line.label.key().map(Arc::from),
                in_results: times[index],
                has_response: index < moment.done && line.result.is_ok(),
                charged: charge.is_some(),
                cost_microusd: charge.map_or(0, |bill| bill.cost_microusd),
                image_hash: line.image_hash.filter(|_| index < moment.done),
            }
        };
        BatchRecord {
            name: format!("batches/{}", self.id).into(),
            number: self.number,
            project: self.project.clone(),
            fault: self.fault.clone(),
            state: moment.state,
            created_at: self.created,
            ended_at: has_ended.then_some(moment.since),
            lines: self.lines.iter().enumerate().map(line).collect(),
        }
    }
}

/// One batch, as the server knows it, whether or not its client does.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BatchRecord {
    /// Its resource name, `batches/…`.
    pub name: Arc<str>,
    /// The [number](crate::Record::number) of the request that created it, whose record has its
    /// bill once it has ended.
    pub number: usize,
    /// The project that the key belongs to.
    pub project: Arc<str>,
    /// What befalls it.
    pub fault: BatchFault,
    /// Where it is.
    pub state: BatchState,
    /// Since the simulator's clock began.
    pub created_at: Duration,
    /// When it ended, if it has.
    pub ended_at: Option<Duration>,
    /// Its lines in the order of the input.
    pub lines: Vec<LineRecord>,
}

/// One line of a [`BatchRecord`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LineRecord {
    /// `key` of a line in a file, or of an inline request's `metadata`.
    pub key: Option<Arc<str>>,
    /// How often it is in the results.
    pub in_results: usize,
    /// The model answered it; the others are errors, or not done.
    pub has_response: bool,
    /// It is on the bill.
    pub charged: bool,
    /// Its part of the bill in micro-dollars: half of what the same request costs alone.
    pub cost_microusd: u64,
    /// [`hash64`](crate::hash64) of the final image's file in its response.
    pub image_hash: Option<u64>,
}
