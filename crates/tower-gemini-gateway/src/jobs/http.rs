//! Jobs over HTTP, for callers with tokens: each sees its own, and nothing of others.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::header::{ALLOW, HeaderValue, LOCATION};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower_gemini_jobs::{ItemState, Job, JobState, NewJob, StoreError, delete_job, manifest_csv};

use super::answers::{
    failed, image, internal, invalid, is_id, item_json, job_json, json_page, no_place,
    no_such_image, no_such_job,
};
use super::submission::{self, Query, Submission};
use super::{Jobs, batch_ended, page};
use crate::body_fault::BodyFault;
use crate::door::entry::{self, Entry, ServedHere};
use crate::handler::collect;
use crate::limits::BoundedBody;
use crate::memory::{self, Handling};
use crate::queue::Place;
use crate::responses::{self, ErrorFormat, Rejection, json_response};
use crate::snapshot::Snapshot;
use crate::wire;

/// Items in one answer, where the caller does not say: a page of them is read at a glance.
const USUAL_LIMIT: u32 = 100;
/// The most in one answer: about 1 MB of JSON.
const LONGEST_LIMIT: u32 = 1000;
/// Whether a path is one of jobs.
pub(crate) fn is_path(path: &str) -> bool {
    let path = wire::collapse_slashes(path);
    path == "/jobs" || path.starts_with("/jobs/") || page::is_path(&path)
}

/// Answers a request for a path of jobs.
pub(crate) async fn handle(
    gateway: Arc<Snapshot>,
    jobs: Option<&Jobs>,
    mut request: Request<Body>,
) -> Response<Body> {
    let path = wire::collapse_slashes(request.uri().path()).into_owned();
    if page::is_for(&request, &path) {
        return page::handle(&gateway, jobs, &path, request).await;
    }
    if path == batch_ended::PATH && request.method() == Method::POST {
        return batch_ended::handle(&gateway, jobs, request).await;
    }
    request.extensions_mut().insert(ServedHere);
    let (request, entry) = match entry::enter(&gateway, &path, Instant::now(), request).await {
        Ok(entered) => entered,
        Err(response) => return response,
    };
    match answer(&gateway, jobs, &path, &entry, request).await {
        Ok((response, taken)) => entry.leave(response, taken).await,
        Err(rejection) => entry.leave(rejection.into_response(ErrorFormat::Gemini), ()).await,
    }
}

/// Answers a request that came in. Its place and memory are taken until the last byte is out.
async fn answer(
    gateway: &Snapshot,
    jobs: Option<&Jobs>,
    path: &str,
    entry: &Entry,
    request: Request<Body>,
) -> Result<(Response<Body>, (Place, Arc<memory::RequestMemory>)), Rejection> {
    let Some(owner) = entry.caller.token_name() else {
        return Err(Rejection::new(
            StatusCode::FORBIDDEN,
            "PERMISSION_DENIED",
            "Jobs over HTTP are charged to the token that submits them, and callers have none \
             here: set [auth] mode = \"tokens\", or use `gemini-gateway jobs`. Nothing was sent.",
        ));
    };
    let jobs = jobs.ok_or_else(no_place)?;
    let (parts, body) = request.into_parts();
    let server = &gateway.config().server;
    if body.size_hint().lower() > server.max_body.0 as u64 {
        return Err(Rejection::fault(BodyFault::TooLarge { limit: server.max_body.0 }));
    }
    let is_submission = path == "/jobs" && parts.method == Method::POST;
    // A submission becomes items, as a translated request becomes another one.
    let handling = if is_submission { Handling::Translated } else { Handling::Passing };
    let size = (handling, body.size_hint());
    let sharer = entry.caller.sharer();
    let (place, memory) = memory::admit(gateway.queue(), sharer, &parts, size).await?;
    let (most, idle) = (server.max_body.0, server.body_idle_timeout.0);
    let body = Body::new(BoundedBody::new(body, most, idle, Some(memory.clone())));
    let asked = Asked { gateway, jobs, owner, parts: &parts };
    let response = match is_submission {
        true => asked.submit(collect(body).await?).await?,
        false => asked.route(path).await?,
    };
    Ok((response, (place, memory)))
}

/// A request of an owner.
struct Asked<'a> {
    gateway: &'a Snapshot,
    jobs: &'a Jobs,
    owner: &'a str,
    parts: &'a Parts,
}

impl Asked<'_> {
    async fn route(&self, path: &str) -> Result<Response<Body>, Rejection> {
        let segments: Vec<_> = path.split('/').skip(2).collect();
        let method = &self.parts.method;
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let deletes = *method == Method::DELETE;
        let (fits, allow) = match *segments {
            [] => (reads, "GET, POST"),
            [_] => (reads || deletes, "GET, DELETE"),
            [_, "pause" | "resume" | "cancel" | "retry"] => (*method == Method::POST, "POST"),
            _ => (reads, "GET"),
        };
        if !fits {
            return Ok(not_allowed(allow));
        }
        let mut query = Query::parse(self.parts.uri.query())?;
        match *segments {
            [] => self.list(query).await,
            [id] if deletes => {
                query.finish()?;
                self.delete(&self.job(id).await?).await
            }
            [id] => {
                query.finish()?;
                Ok(json_page(&self.shown(&self.job(id).await?).await?))
            }
            [id, "items"] => self.items(&self.job(id).await?, query).await,
            [id, "items", number, "image"] => self.image(id, number, "1", &query).await,
            [id, "items", number, "image", which] => self.image(id, number, which, &query).await,
            [id, "manifest"] => self.manifest(self.job(id).await?, query).await,
            [id, verb @ ("pause" | "resume" | "cancel" | "retry")] => {
                let job = self.job(id).await?;
                let changed = self.change(&job, verb, &mut query).await?;
                let mut shown = self.shown(&self.job(id).await?).await?;
                shown["changed"] = changed;
                Ok(json_page(&shown))
            }
            _ => Err(no_such_job()),
        }
    }

    /// A job of this owner. One of another's is as one that does not exist.
    async fn job(&self, id: &str) -> Result<Job, Rejection> {
        let found = if is_id(id) { self.jobs.store.job(id).await.map_err(failed)? } else { None };
        found.filter(|job| job.owner == self.owner).ok_or_else(no_such_job)
    }

    async fn shown(&self, job: &Job) -> Result<Value, Rejection> {
        let counts = self.jobs.store.counts(&job.id).await.map_err(failed)?;
        Ok(job_json(job, &counts))
    }

    async fn list(&self, mut query: Query) -> Result<Response<Body>, Rejection> {
        let limit = query.number("limit")?.unwrap_or(USUAL_LIMIT).min(LONGEST_LIMIT);
        query.finish()?;
        let jobs = self.jobs.store.jobs(Some(self.owner)).await.map_err(failed)?;
        let mut shown = Vec::new();
        for job in jobs.iter().take(limit as usize) {
            shown.push(self.shown(job).await?);
        }
        Ok(json_page(&json!({ "jobs": shown })))
    }

    async fn items(&self, job: &Job, mut query: Query) -> Result<Response<Body>, Rejection> {
        let state = query.take("state").map(|word| {
            let state = ItemState::ALL.iter().copied().find(|state| state.as_str() == word);
            let words: Vec<_> = ItemState::ALL.iter().map(|state| state.as_str()).collect();
            state.ok_or_else(|| invalid(format!("`state` is one of {}", words.join(", "))))
        });
        let state = state.transpose()?;
        let after = query.number("after")?.unwrap_or(0_i64);
        let limit = query.number("limit")?.unwrap_or(USUAL_LIMIT).clamp(1, LONGEST_LIMIT);
        query.finish()?;
        let items = self.jobs.store.items(&job.id, state, after, limit).await.map_err(failed)?;
        let is_full = items.len() == limit as usize;
        let next = items.last().filter(|_| is_full).map(|last| last.number);
        let items: Vec<_> = items.iter().map(item_json).collect();
        Ok(json_page(&json!({ "items": items, "next_after": next })))
    }

    async fn image(
        &self,
        id: &str,
        number: &str,
        which: &str,
        query: &Query,
    ) -> Result<Response<Body>, Rejection> {
        query.finish()?;
        let job = self.job(id).await?;
        let number = number.parse().map_err(|_| no_such_image())?;
        let which = which.parse().map_err(|_| no_such_image())?;
        image(self.jobs, &job.id, number, which).await
    }

    async fn manifest(&self, job: Job, mut query: Query) -> Result<Response<Body>, Rejection> {
        let format = query.take("format");
        query.finish()?;
        match format.as_deref() {
            Some("csv") => {
                let text = manifest_csv(&self.jobs.store, &job.id).await.map_err(failed)?;
                Ok(responses::page("text/csv; charset=utf-8", text))
            }
            None | Some("jsonl") => {
                let lines = lines(self.jobs.clone(), job.id);
                Ok(responses::page("application/jsonl; charset=utf-8", Body::from_stream(lines)))
            }
            Some(_) => Err(invalid("`format` is jsonl or csv")),
        }
    }

    /// What changed: whether something did, or how many items.
    async fn change(&self, job: &Job, verb: &str, query: &mut Query) -> Result<Value, Rejection> {
        let store = &self.jobs.store;
        let changed = match verb {
            "pause" => {
                query.finish()?;
                store.pause(&job.id).await.map_err(failed)?.into()
            }
            "cancel" => {
                query.finish()?;
                store.cancel(&job.id, super::now_ms()).await.map_err(failed)?.into()
            }
            "resume" => {
                let (usd, requests) = (query.number("max_usd")?, query.number("max_requests")?);
                query.finish()?;
                if usd.is_some() || requests.is_some() {
                    store.set_caps(&job.id, usd, requests).await.map_err(failed)?;
                }
                store.resume(&job.id).await.map_err(failed)?.into()
            }
            _ => {
                let unknown = query.flag("unknown")?;
                query.finish()?;
                if job.state == JobState::Cancelled {
                    return Err(invalid("the job is cancelled: submit another one"));
                }
                store.retry(&job.id, unknown).await.map_err(failed)?.into()
            }
        };
        self.jobs.wake();
        Ok(changed)
    }

    async fn delete(&self, job: &Job) -> Result<Response<Body>, Rejection> {
        let Jobs { store, places, .. } = self.jobs;
        if !delete_job(store, &job.id, &places.dir).await.map_err(failed)? {
            let message = "The job has not ended. Cancel it first, and wait for what is in flight.";
            return Err(Rejection::new(StatusCode::CONFLICT, "FAILED_PRECONDITION", message));
        }
        Ok(responses::no_content())
    }

    async fn submit(&self, body: Bytes) -> Result<Response<Body>, Rejection> {
        let unplanned = |_| internal("the items could not be planned");
        // Thousands of items take longer than other tasks should wait.
        let parts = self.parts.clone();
        let submission = tokio::task::spawn_blocking(move || Submission::read(&parts, &body)).await;
        let submission = submission.map_err(unplanned)??;
        let store = &self.jobs.store;
        let key = submission.key.clone().filter(|_| !submission.plan_only);
        let before = async || match &key {
            Some(key) => store.submitted(self.owner, key).await.map_err(failed),
            None => Ok(None),
        };
        if let Some(job) = before().await? {
            return self.accepted(&job, json!({})).await;
        }
        let (plan_only, skip_bad) = (submission.plan_only, submission.skip_bad);
        let config = self.gateway.config().clone();
        let planned = tokio::task::spawn_blocking(move || submission.plan(&config)).await;
        let planned = planned.map_err(unplanned)??;
        let bad = planned.bad_json();
        if plan_only {
            return Ok(json_page(&json!({
                "plan": planned.plan, "bad_items": planned.bad_items, "bad": bad,
            })));
        }
        if planned.bad_items > 0 && !skip_bad {
            return Ok(submission::refused(&planned, bad));
        }
        let job = NewJob::new(self.owner, planned.options, planned.now_ms).key(key.clone());
        let job = match store.submit(job, planned.items.into_iter().map(Ok)).await {
            Ok(job) => job,
            // The same request at the same moment was first.
            Err(error) => match before().await? {
                Some(job) => return self.accepted(&job, json!({})).await,
                None => return Err(failed(error)),
            },
        };
        self.jobs.wake();
        let more = json!({ "plan": planned.plan, "bad_items": planned.bad_items, "bad": bad });
        self.accepted(&job, more).await
    }

    async fn accepted(&self, job: &Job, mut answer: Value) -> Result<Response<Body>, Rejection> {
        answer["job"] = self.shown(job).await?;
        let mut response = json_response(StatusCode::ACCEPTED, answer.to_string());
        // Relative, so that it holds below any prefix.
        if let Ok(location) = HeaderValue::try_from(format!("jobs/{}", job.id)) {
            response.headers_mut().insert(LOCATION, location);
        }
        Ok(response)
    }
}

/// The manifest of a job, a page at a time: what callers may know, without the steps of calls.
fn lines(
    jobs: Jobs,
    job: String,
) -> impl futures::Stream<Item = Result<String, StoreError>> + Send + 'static {
    stream::try_unfold((jobs, job, 0), |(jobs, job, after)| async move {
        let items = jobs.store.items(&job, Some(ItemState::Done), after, LONGEST_LIMIT).await?;
        let Some(last) = items.last() else { return Ok(None) };
        let after = last.number;
        let mut text = String::new();
        for item in &items {
            let line = item.result.as_deref().and_then(|line| serde_json::from_str(line).ok());
            let Some(Value::Object(mut line)) = line else { continue };
            line.remove("trail");
            text += &Value::Object(line).to_string();
            text.push('\n');
        }
        Ok(Some((text, (jobs, job, after))))
    })
}

fn not_allowed(allow: &'static str) -> Response<Body> {
    let message = format!("This path takes {allow} only. Nothing was sent.");
    let rejection = Rejection::new(StatusCode::METHOD_NOT_ALLOWED, "UNIMPLEMENTED", message);
    let mut response = rejection.into_response(ErrorFormat::Gemini);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}
