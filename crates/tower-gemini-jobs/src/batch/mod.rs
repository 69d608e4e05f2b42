//! The batch lane: half the price, within 24 hours, and never sent twice.
//!
//! Google's Batch API has no key of idempotency: a creation that is sent twice makes two batches
//! that are both paid. So a batch is recorded before it is created, under a name of its own, and
//! one whose creation was not answered is looked for by that name. Where it cannot be found its
//! items are *unknown*: nothing is created again unless the job bought that.

mod wire;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use serde_json::{Value, json};
use tower_gemini::call::{self, ImageSize};
use tower_gemini::classify::classify_without_status;
use tower_gemini::cost::{Cost, ServedBy, cost_served_on};
use tower_gemini::jittered_retry::RetryOverride;
use tower_gemini::verdict::{Charge, Verdict};
use tower_gemini::{CallOptions, FinalImage, Trail};

use self::wire::{BatchState, Line, Operation, Results, Status};
use crate::draw::Draw;
use crate::job::{ItemState, JobState, Spent};
use crate::lane::Lane;
use crate::output::Delivered;
use crate::plan::of_lane;
use crate::request::{generate_content, single};
use crate::run::{Call, Seen, Worker, done, failed, reason_of, write};
use crate::store::{
    BatchLimits, BatchStep, Holder, Settlement, StoreError, StoredBatch, StoredItem,
};

/// Half of the 100 batches that a project may have open ("Rate limits", 2026-09): others need some.
const OPEN: i64 = 50;
/// What the results of one batch may have, in bytes: they are read in one piece. Ours.
const RESULT_BYTES: u64 = 96 * 1024 * 1024;
/// Items of one batch. Ours.
const ITEMS: usize = 200;
/// Requests that are sent inline, whose results come inline too; the limit is 20 MB (guide,
/// 2026-09).
const INLINE_ITEMS: usize = 4;
const INLINE_BYTES: usize = 16 * 1024 * 1024;
/// A batch whose creation was not answered is looked for so long. Ours: far above any delay between
/// a creation and the list.
const LOOK_FOR_MS: i64 = 15 * 60 * 1000;
/// Pages of the list that are looked through: 100 pages of 100 batches.
const PAGES: usize = 100;

/// What an item takes as a result at most: three images in base64 (the final one and two drafts) and
/// a signature of up to 3 MB. Measured of single responses in 2026-11: 1.5 MB of JSON for an image of
/// 1K, 5 MB for one of 2K, 54 MB at 4K with two drafts.
fn result_bytes(item: &StoredItem) -> u64 {
    let megabytes = match item.item.size {
        Some(ImageSize::Px512) => 4,
        None | Some(ImageSize::K1) => 6,
        Some(ImageSize::K2) => 18,
        Some(_) => 56,
    };
    megabytes * 1024 * 1024
}

fn display_name(batch: &StoredBatch) -> String {
    format!("tower-gemini-{}", batch.id)
}

/// What a request to the Batch API came to.
enum Answer {
    Ok(Bytes),
    /// It was refused, for nothing.
    Refused(StatusCode, Verdict),
    /// Nobody can say.
    Lost(String),
}

impl<D: Draw> Worker<D> {
    /// Makes the batches that can be made, and looks after one that is due. `false` where nothing
    /// was to be done.
    pub(crate) async fn batch_step(&self) -> Result<bool, StoreError> {
        let now_ms = self.now_ms();
        let ask = self.ask(now_ms, "");
        let limits = BatchLimits { open: OPEN, bytes: RESULT_BYTES, items: ITEMS };
        if let Some(batch) = self.store().form_batch(&ask, limits, result_bytes).await? {
            self.create(&batch).await?;
            return Ok(true);
        }
        let again = crate::millis(self.batch_interval());
        let Some(batch) = self.store().next_batch(&ask, again).await? else { return Ok(false) };
        match batch.step {
            // Its worker ended before anything was sent.
            BatchStep::Forming => self.release(&batch).await?,
            BatchStep::Sent => self.look_for(&batch).await?,
            BatchStep::Open => self.look_after(&batch).await?,
            BatchStep::Closed => {}
        }
        Ok(true)
    }

    async fn create(&self, batch: &StoredBatch) -> Result<(), StoreError> {
        let mut lines = Vec::new();
        for item in self.store().items_of_batch(batch).await? {
            match self.pictures(&item).await {
                Ok(pictures) => {
                    let request = generate_content(&item.item, &pictures);
                    lines.push((item.number.to_string(), request));
                }
                Err(why) => {
                    let settlement = failed(&item, Spent::default(), 0, why);
                    self.settle_as(Holder::Batch(&batch.id), &item, settlement).await?;
                }
            }
        }
        if lines.is_empty() {
            return self.store().batch_is(batch, BatchStep::Closed, None).await;
        }
        let name = display_name(batch);
        let file = wire::input_file(&lines);
        let body = if lines.len() <= INLINE_ITEMS && file.len() <= INLINE_BYTES {
            wire::create_inline(&name, &lines)
        } else {
            match self.upload(batch, &name, file).await {
                Ok(file) => wire::create_from_file(&name, &file),
                Err(why) => return self.refused(batch, &Verdict::not_sent(), &why).await,
            }
        };
        // From here on nobody can say that nothing was made.
        if !self.store().may_create(batch, self.name()).await? {
            return Ok(());
        }
        let path = format!("/v1beta/models/{}:batchGenerateContent", batch.model);
        match self.send(batch, Method::POST, &path, Bytes::from(body.to_string())).await {
            Answer::Ok(body) => match Operation::parse(&body) {
                Some(made) => self.store().batch_is(batch, BatchStep::Open, Some(&made.name)).await,
                // Looked for by its name.
                None => Ok(()),
            },
            Answer::Refused(_, verdict) => {
                let why = format!("the Batch API refused it: {}", reason_of(Some(&verdict)));
                self.refused(batch, &verdict, &why).await
            }
            Answer::Lost(why) => {
                tracing::warn!(batch = batch.id, why, "a batch may have been made: looking for it");
                Ok(())
            }
        }
    }

    /// Uploads the lines of a batch. Failing costs nothing.
    async fn upload(
        &self,
        batch: &StoredBatch,
        name: &str,
        file: Vec<u8>,
    ) -> Result<String, String> {
        let body = json!({"file": {"displayName": name}}).to_string();
        let mut start = self.request_for(batch, Method::POST, "/upload/v1beta/files", body.into());
        let length = file.len().to_string();
        for (header, value) in [
            ("x-goog-upload-protocol", "resumable"),
            ("x-goog-upload-command", "start"),
            ("x-goog-upload-header-content-type", "application/jsonl"),
            ("x-goog-upload-header-content-length", &length),
        ] {
            if let Ok(value) = HeaderValue::from_str(value) {
                start.headers_mut().insert(header, value);
            }
        }
        let started = self.draw().draw(start).await;
        let place = started.headers.get("x-goog-upload-url").and_then(|url| url.to_str().ok());
        let place: http::Uri = place.and_then(|url| url.parse().ok()).ok_or_else(|| {
            format!("the upload of its requests failed: {}", reason_of(started.verdict.as_ref()))
        })?;
        let path = place.path_and_query().map_or("/", |path| path.as_str());
        let mut upload = self.request_for(batch, Method::POST, path, file.into());
        for (header, value) in
            [("x-goog-upload-offset", "0"), ("x-goog-upload-command", "upload, finalize")]
        {
            upload.headers_mut().insert(header, HeaderValue::from_static(value));
        }
        let uploaded = self.draw().draw(upload).await;
        let file: Option<Value> = serde_json::from_slice(&uploaded.body).ok();
        let name = file.as_ref().and_then(|file| file["file"]["name"].as_str()).map(str::to_owned);
        name.ok_or_else(|| {
            format!("the upload of its requests failed: {}", reason_of(uploaded.verdict.as_ref()))
        })
    }

    /// Looks for a batch whose creation was not answered.
    async fn look_for(&self, batch: &StoredBatch) -> Result<(), StoreError> {
        let (name, mut page) = (display_name(batch), String::new());
        for _ in 0..PAGES {
            let path = match page.as_str() {
                "" => "/v1beta/batches?pageSize=100".to_owned(),
                page => format!("/v1beta/batches?pageSize=100&pageToken={page}"),
            };
            let Answer::Ok(body) = self.send(batch, Method::GET, &path, Bytes::new()).await else {
                return Ok(()); // again later
            };
            let Some((found, next)) = wire::find_on_page(&body, &name) else { return Ok(()) };
            if let Some(found) = found {
                return self.store().batch_is(batch, BatchStep::Open, Some(&found)).await;
            }
            if next.is_empty() {
                break;
            }
            page = next;
        }
        if self.now_ms() - batch.created_ms < LOOK_FOR_MS {
            return Ok(());
        }
        let why = "its batch may have been made, and is in no list of batches";
        self.lose(batch, why).await
    }

    /// Asks how far a batch is, and settles its items at its end.
    async fn look_after(&self, batch: &StoredBatch) -> Result<(), StoreError> {
        let name = batch.name.as_deref().unwrap_or_default();
        if batch.job_state == JobState::Cancelled && !batch.is_cancelled {
            let path = format!("/v1beta/{name}:cancel");
            if let Answer::Ok(_) = self.send(batch, Method::POST, &path, Bytes::from("{}")).await {
                self.store().batch_was_cancelled(batch).await?;
            }
        }
        let path = format!("/v1beta/{name}");
        let body = match self.send(batch, Method::GET, &path, Bytes::new()).await {
            Answer::Ok(body) => body,
            Answer::Refused(StatusCode::NOT_FOUND, _) => {
                return self.lose(batch, "its batch is gone").await;
            }
            _ => return Ok(()), // again later
        };
        let Some(operation) = Operation::parse(&body) else { return Ok(()) };
        if operation.state == BatchState::Open {
            return Ok(());
        }
        match &operation.results {
            Results::Inline(lines) => self.settle_lines(batch, lines).await?,
            Results::File(file) => {
                let path = format!("/v1beta/{file}:download?alt=media");
                match self.send(batch, Method::GET, &path, Bytes::new()).await {
                    Answer::Ok(file) => {
                        let lines: Vec<_> = wire::lines(&file).collect();
                        self.settle_lines(batch, &lines).await?;
                    }
                    // It may be late, or too large for the memory that is left now.
                    _ => return Ok(()),
                }
            }
            // A batch may succeed before its results are there.
            Results::None if operation.state == BatchState::Succeeded => return Ok(()),
            // "A failed and an expired batch" have no results, and no line that counts as made.
            Results::None if operation.succeeded == 0 => {
                let status = operation.error.unwrap_or_default();
                return self.close(batch, |item| self.line_failed(batch, item, &status)).await;
            }
            Results::None => {}
        }
        // What is left has no result.
        self.lose(batch, "its batch has no result for it").await
    }

    async fn settle_lines(
        &self,
        batch: &StoredBatch,
        lines: &[Line<'_>],
    ) -> Result<(), StoreError> {
        // Items that are settled already, after a crash or by a line that is there twice, are not
        // here.
        let mut items = self.store().items_of_batch(batch).await?;
        for line in lines {
            let at = items.iter().position(|item| line.key() == Some(&item.number.to_string()));
            let Some(item) = at.map(|at| items.swap_remove(at)) else { continue };
            let settlement = match (&line.response, &line.error) {
                (Some(response), _) => {
                    self.line_answered(batch, &item, response.get().as_bytes()).await?
                }
                (None, Some(status)) => self.line_failed(batch, &item, status),
                (None, None) => self.lost(&item, &batch.options, "its line of results is empty"),
            };
            self.settle_as(Holder::Batch(&batch.id), &item, settlement).await?;
        }
        Ok(())
    }

    /// Judges a response like that of a single call, at half its price.
    async fn line_answered(
        &self,
        batch: &StoredBatch,
        item: &StoredItem,
        response: &[u8],
    ) -> Result<Settlement, StoreError> {
        let (parts, body) = single(&item.item, &item.model, Lane::Batch, &[]).into_parts();
        let call = call::Call::parse(&parts.method, &parts.uri, &parts.headers, Some(&body));
        let read = FinalImage::from_json(response);
        let (verdict, usage) = match &read {
            Ok(image) => (Verdict::delivering(), image.usage.as_ref()),
            Err(error) => (error.verdict().clone(), None),
        };
        // The model that drew it decides its price, and not the one that was asked for.
        let model = read.as_ref().ok().and_then(|image| image.model_version.as_deref());
        let served = model.map_or(ServedBy::new(), |model| ServedBy::new().named(model));
        let cost = cost_served_on(self.platform(), self.catalog(), &call, &served, &verdict, usage);
        // What was reserved is the worst case in this lane.
        let worst = Cost::up_to(item.reserved_microusd);
        let cost = of_lane(cost, Lane::Batch).bounded_by(worst);
        let spent = Spent::of(cost, item.reserved_microusd);
        match read {
            Ok(image) if !image.bytes.is_empty() => {
                let delivered =
                    Delivered { spent, requests: 1, degraded: Vec::new(), trail: Trail::new() };
                let record = write(self.dir(), item, image, delivered).await?;
                Ok(done(item, &record))
            }
            _ => {
                let seen = Seen { charge: verdict.charge(), spent, requests: 1 };
                Ok(self.decided(batch, item, &verdict, &seen, reason_of(Some(&verdict))))
            }
        }
    }

    /// A line that ended in an error is free (guide, "Pricing": responses are paid).
    fn line_failed(&self, batch: &StoredBatch, item: &StoredItem, status: &Status) -> Settlement {
        let body = status.as_error_body();
        let verdict =
            classify_without_status(&call::Call::unrecognised(), &HeaderMap::new(), &body);
        let seen = Seen { charge: Charge::None, spent: Spent::default(), requests: 1 };
        let reason = format!("in its batch: code {} {}", status.code, status.message);
        self.decided(batch, item, &verdict, &seen, reason)
    }

    /// What becomes of an item after its part of a batch.
    fn decided(
        &self,
        batch: &StoredBatch,
        item: &StoredItem,
        verdict: &Verdict,
        seen: &Seen,
        reason: String,
    ) -> Settlement {
        let time = self.time_left(item, false);
        self.after(
            item,
            &batch.options,
            seen,
            Call { verdict: Some(verdict), sent: true, time },
            reason,
        )
    }

    /// Settles what is left of a batch, and closes it.
    async fn close(
        &self,
        batch: &StoredBatch,
        with: impl Fn(&StoredItem) -> Settlement,
    ) -> Result<(), StoreError> {
        for item in self.store().items_of_batch(batch).await? {
            self.settle_as(Holder::Batch(&batch.id), &item, with(&item)).await?;
        }
        self.store().batch_is(batch, BatchStep::Closed, None).await
    }

    /// Nothing was made, after a try that was free.
    async fn refused(
        &self,
        batch: &StoredBatch,
        verdict: &Verdict,
        why: &str,
    ) -> Result<(), StoreError> {
        let seen = Seen { charge: Charge::None, spent: Spent::default(), requests: 0 };
        self.close(batch, |item| self.decided(batch, item, verdict, &seen, why.to_owned())).await
    }

    /// Nothing was made or tried: its items wait for another batch.
    async fn release(&self, batch: &StoredBatch) -> Result<(), StoreError> {
        let waiting = |item: &StoredItem| Settlement {
            state: ItemState::Waiting,
            ..failed(item, Spent::default(), 0, "its worker ended".to_owned())
        };
        self.close(batch, waiting).await
    }

    /// Nobody can say what became of the items that are left.
    async fn lose(&self, batch: &StoredBatch, why: &str) -> Result<(), StoreError> {
        self.close(batch, |item| self.lost(item, &batch.options, why)).await
    }

    /// A request for the job of a batch.
    fn request_for(
        &self,
        batch: &StoredBatch,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Request<Bytes> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().unwrap_or_default();
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(http::header::CONTENT_TYPE, json);
        request.extensions_mut().insert(crate::draw::OfJob(batch.job.clone()));
        // What fails is asked again at the next step.
        let once = RetryOverride::none().attempts(1);
        request.extensions_mut().insert(CallOptions::new().retry(once));
        request
    }

    async fn send(&self, batch: &StoredBatch, method: Method, path: &str, body: Bytes) -> Answer {
        let drawn = self.draw().draw(self.request_for(batch, method, path, body)).await;
        let Some(status) = drawn.status else {
            return Answer::Lost(reason_of(drawn.verdict.as_ref()));
        };
        if status.is_success() {
            return Answer::Ok(drawn.body);
        }
        let verdict = drawn.verdict.unwrap_or_else(|| {
            classify_without_status(&call::Call::unrecognised(), &drawn.headers, &drawn.body)
        });
        match verdict.charge().is_surely_free() {
            true => Answer::Refused(status, verdict),
            false => Answer::Lost(reason_of(Some(&verdict))),
        }
    }
}
