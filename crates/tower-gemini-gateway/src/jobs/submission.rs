//! What `POST /jobs` says: settings and items, as JSON, JSONL or CSV.

use std::collections::BTreeMap;
use std::str::FromStr;

use axum::body::Body;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tower_gemini_jobs::read::{Format, items};
use tower_gemini_jobs::{Item, JobOptions, NewItem, Plan, RequestKey};

use super::address;
use super::answers::invalid;

use crate::config::{self, Config};
use crate::responses::{Rejection, json_response};
use crate::wire::IDEMPOTENCY_KEY;

/// The most items of one submission: with their plan they take some 10 MB, which the memory of a
/// translated request covers. `gemini-gateway jobs submit` reads files of any length.
pub(super) const MOST_ITEMS: usize = 10_000;
/// The most bad items that are told one by one. Ours: whoever mends so many runs it again.
const MOST_TOLD: usize = 100;
/// The longest text that says what is wrong with one. Ours.
const LONGEST_TOLD: usize = 300;
/// The longest item, as of a file: a prompt of the longest length, escaped.
const LONGEST_ITEM: usize = 2 * 1024 * 1024;
/// "Up to 14 reference images" (Gemini API documentation, image generation, 2026-07).
const MOST_INPUTS: usize = 14;
/// The longest `Idempotency-Key`, as most APIs have it.
const LONGEST_KEY: usize = 255;

/// The parameters of a request, each of which must be taken.
#[derive(Debug)]
pub(super) struct Query(BTreeMap<String, String>);

impl Query {
    pub(super) fn parse(query: Option<&str>) -> Result<Self, Rejection> {
        let mut found = BTreeMap::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, "1"));
            let text = |text: &str| {
                let text = text.replace('+', " ");
                let decoded = percent_decode_str(&text).decode_utf8();
                decoded.map(String::from).map_err(|_| invalid("the query is no UTF-8"))
            };
            if let Some(_twice) = found.insert(text(name)?, text(value)?) {
                return Err(invalid(format!("`{name}` is in the query twice")));
            }
        }
        Ok(Self(found))
    }

    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    pub(super) fn number<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Rejection> {
        let parsed = self.take(name).map(|text| text.parse());
        parsed.transpose().map_err(|_| invalid(format!("`{name}` is no such number")))
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Rejection> {
        match self.take(name).as_deref() {
            None | Some("0" | "false") => Ok(false),
            Some("1" | "true") => Ok(true),
            Some(_) => Err(invalid(format!("`{name}` is 1 or 0"))),
        }
    }

    /// An error where something is left that nobody asked for.
    pub(super) fn finish(&self) -> Result<(), Rejection> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(invalid(format!("the parameter `{name}` is not known here"))),
        }
    }

    /// The settings of a job, by the names that they have in JSON.
    fn options(self) -> Result<JobOptions, Rejection> {
        let value = |name: &str, text: String| match name {
            "name" | "model" | "webhook" => Value::from(text),
            "lanes" => text.split(',').map(|lane| Value::from(lane.trim())).collect(),
            _ => serde_json::from_str(&text).unwrap_or_else(|_| Value::from(text)),
        };
        let options = self.0.into_iter().map(|(name, text)| {
            let value = value(&name, text);
            (name, value)
        });
        let options = Value::Object(options.collect::<Map<_, _>>());
        serde_json::from_value(options).map_err(|error| invalid(format!("the query: {error}")))
    }
}

/// An item as it was read, with its number: from 1 in an array, of its line elsewhere.
type ReadItem = (u64, Result<Item, String>);

/// What a caller submits.
#[derive(Debug)]
pub(super) struct Submission {
    options: JobOptions,
    items: Vec<ReadItem>,
    pub(super) plan_only: bool,
    pub(super) skip_bad: bool,
    pub(super) key: Option<RequestKey>,
}

/// A body of JSON, but for what its items say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    #[serde(default)]
    options: JobOptions,
    items: Vec<IgnoredAny>,
}

/// The same with its items as they stand there. Each is read by itself, so that one that is bad keeps
/// none from being read, and a tree is never built.
#[derive(Debug, Deserialize)]
struct Elements<'b> {
    #[serde(borrow)]
    items: Vec<&'b RawValue>,
}

/// One element as an item.
fn item(element: &str) -> Result<Item, String> {
    if element.len() > LONGEST_ITEM {
        return Err(format!("it is longer than {LONGEST_ITEM} bytes; give images as URLs"));
    }
    serde_json::from_str(element).map_err(|error| error.to_string())
}

/// What is kept of an item that was read, which is bounded by what came.
fn kept(read: Result<Item, String>) -> Result<Item, String> {
    match read {
        Ok(item) if item.inputs.len() > MOST_INPUTS => {
            Err(format!("it has {} inputs; Gemini takes {MOST_INPUTS}", item.inputs.len()))
        }
        Ok(item) => Ok(item),
        Err(what) => Err(what.chars().take(LONGEST_TOLD).collect()),
    }
}

fn too_many() -> String {
    format!(
        "one submission may have {MOST_ITEMS} items: send several, or use `gemini-gateway jobs \
         submit`"
    )
}

impl Submission {
    /// Blocks: a body may have a hundred megabytes.
    pub(super) fn read(parts: &Parts, body: &Bytes) -> Result<Self, Rejection> {
        let mut query = Query::parse(parts.uri.query())?;
        let (plan_only, skip_bad) = (query.flag("plan")?, query.flag("skip_bad")?);
        let kind = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
        let key = request_key(parts, kind, body)?;
        let (options, items) = if kind.eq_ignore_ascii_case("application/json") {
            query.finish()?;
            let bad = |error| invalid(format!("the body: {error}. Nothing was sent."));
            // Counted first: an element takes more than the two bytes that it may have there.
            let whole: Whole = serde_json::from_slice(body).map_err(bad)?;
            if whole.items.len() > MOST_ITEMS {
                return Err(invalid(too_many()));
            }
            let elements: Elements<'_> = serde_json::from_slice(body).map_err(bad)?;
            let items = elements.items.into_iter().map(|element| kept(item(element.get())));
            let items = (1..).zip(items);
            (whole.options, items.collect())
        } else {
            let format = match kind.eq_ignore_ascii_case("text/csv") {
                true => Format::Csv,
                false => Format::Jsonl,
            };
            let read = items(&body[..], format).take(MOST_ITEMS + 1).map(|read| match read {
                Ok((line, item)) => (line, kept(Ok(item))),
                Err(fault) => (fault.line, kept(Err(fault.what))),
            });
            (query.options()?, read.collect::<Vec<_>>())
        };
        if items.len() > MOST_ITEMS {
            return Err(invalid(too_many()));
        }
        options.check().map_err(invalid)?;
        Ok(Self { options, items, plan_only, skip_bad, key })
    }

    /// Plans the items. Blocks.
    pub(super) fn plan(self, config: &Config) -> Result<Planned, Rejection> {
        let allows_private = config.jobs.private_urls;
        if let Some(webhook) = &self.options.webhook {
            let checked = address::url(webhook, allows_private);
            checked.map_err(|what| invalid(format!("`webhook` {what}")))?;
        }
        let planner = super::planner(config, self.options.clone()).map_err(|error| {
            tracing::error!(%error, "jobs cannot be planned");
            let message = "This gateway cannot read its catalogue of models. Nothing was sent.";
            Rejection::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message)
        })?;
        let (mut planned, mut bad, mut bad_items) = (Vec::new(), Vec::new(), 0);
        let mut plan = planner.plan();
        for (number, item) in self.items {
            let item = item.and_then(|item| {
                check_inputs(&item, &config.jobs)?;
                planner.item(item)
            });
            match item {
                Ok(item) => {
                    plan.add(&item);
                    planned.push(item);
                }
                Err(what) => {
                    bad_items += 1;
                    if bad.len() < MOST_TOLD {
                        bad.push((number, what.chars().take(LONGEST_TOLD).collect()));
                    }
                }
            }
        }
        let (plan, now_ms) = (plan.finish(), planner.now_ms());
        Ok(Planned { options: self.options, items: planned, plan, bad, bad_items, now_ms })
    }
}

/// What a caller's items come to.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) options: JobOptions,
    pub(super) items: Vec<NewItem>,
    pub(super) plan: Plan,
    bad: Vec<(u64, String)>,
    pub(super) bad_items: u64,
    pub(super) now_ms: i64,
}

impl Planned {
    pub(super) fn bad_json(&self) -> Value {
        self.bad.iter().map(|(number, what)| json!({ "number": number, "what": what })).collect()
    }
}

/// The refusal of all items for those that are bad.
pub(super) fn refused(planned: &Planned, bad: Value) -> Response<Body> {
    let all = planned.items.len() as u64 + planned.bad_items;
    let message = format!(
        "{} of {all} items are bad, so nothing is queued: mend them, or leave them out with \
         ?skip_bad=1. Nothing was sent.",
        planned.bad_items
    );
    let error = json!({
        "code": 400, "message": message, "status": "INVALID_ARGUMENT",
        "bad_items": planned.bad_items, "bad": bad,
    });
    json_response(StatusCode::BAD_REQUEST, json!({ "error": error }).to_string())
}

/// Inputs that a caller may name: never files of this machine.
fn check_inputs(item: &Item, jobs: &config::Jobs) -> Result<(), String> {
    for input in &item.inputs {
        if input.starts_with("item:") {
            continue;
        }
        if !input.starts_with("https://") && !input.starts_with("http://") {
            return Err(format!(
                "input `{input}` is a path, which would be a file of the gateway's machine: write \
                 item:NAME, or a URL"
            ));
        }
        if !jobs.input_urls {
            return Err(format!("input `{input}`: URLs are off here (jobs.input_urls)"));
        }
        address::url(input, jobs.private_urls).map_err(|what| format!("input `{input}` {what}"))?;
    }
    Ok(())
}

fn request_key(parts: &Parts, kind: &str, body: &[u8]) -> Result<Option<RequestKey>, Rejection> {
    let Some(key) = parts.headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = key.to_str().ok().map(str::trim).filter(|key| (1..=LONGEST_KEY).contains(&key.len()));
    let key = key.ok_or_else(|| {
        invalid(format!("Idempotency-Key is 1 to {LONGEST_KEY} characters of ASCII"))
    })?;
    let mut digest = Sha256::new();
    for part in [parts.uri.query().unwrap_or_default().as_bytes(), b"\n", kind.as_bytes(), b"\n"] {
        digest.update(part);
    }
    digest.update(body);
    let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Some(RequestKey::new(key, digest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_keeps_no_more_than_its_bounds() {
        let mut many = Item::new("a");
        many.inputs = vec![String::new(); MOST_INPUTS + 1];
        assert!(kept(Ok(many)).unwrap_err().contains("15 inputs"));
        assert_eq!(kept(Err("x".repeat(9999))).unwrap_err().len(), LONGEST_TOLD);
        let long = format!("{{\"prompt\":\"{}\"}}", "a".repeat(LONGEST_ITEM));
        assert!(item(&long).unwrap_err().contains("longer than"));
    }
}
