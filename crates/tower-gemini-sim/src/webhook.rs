//! Webhooks of a project: who listens to what, and what they are sent, signed as Standard Webhooks
//! are.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::api_error::ApiError;
use crate::batch::{Batch, BatchState};
use crate::builder::Builder;
use crate::fault::BatchFault;
use crate::files::ID_LETTERS;
use crate::hash::{hash64, letters, mix};
use crate::json::{Json, obj};
use crate::lock;
use crate::reply::{Page, Reply};

/// Somebody who listens.
#[derive(Debug, Clone)]
struct Webhook {
    project: Arc<str>,
    id: String,
    name: Option<String>,
    uri: String,
    events: Vec<String>,
    secret: [u8; 32],
    created: Duration,
}

/// All of them, of all projects.
#[derive(Debug, Default)]
pub(crate) struct Webhooks(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    all: Vec<Webhook>,
    made: u64,
    sent: u64,
}

/// One event on its way to one listener.
#[derive(Debug, Clone)]
pub(crate) struct WebhookEvent {
    uri: String,
    secret: [u8; 32],
    id: String,
    body: Bytes,
}

impl WebhookEvent {
    #[cfg(all(test, feature = "serve"))]
    pub(crate) fn for_tests() -> Self {
        let uri = "http://127.0.0.1:1/hook".to_owned();
        Self { uri, secret: [7; 32], id: "msg_1".to_owned(), body: Bytes::from_static(b"{}") }
    }

    /// The request, signed for this moment; `None` when the listener's address is none.
    pub(crate) fn request(&self, settings: &Builder, now: Duration) -> Option<Request<Bytes>> {
        let timestamp = settings.unix(now).as_secs().to_string();
        let signed = [self.id.as_bytes(), timestamp.as_bytes(), &self.body].join(&b'.');
        let signature = format!("v1,{}", STANDARD.encode(hmac_sha256(&self.secret, &signed)));
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.uri)
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header("webhook-id", &self.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature);
        request.body(self.body.clone()).ok()
    }
}

/// RFC 2104 over SHA-256, for keys that are no longer than a block.
fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let padded = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().into()
}

impl Webhooks {
    pub(crate) fn create(
        &self,
        project: &Arc<str>,
        settings: &Builder,
        asked: &Value,
        now: Duration,
    ) -> Result<Reply, ApiError> {
        let text = |name| asked.get(name).and_then(Value::as_str).map(str::to_owned);
        let events = asked.get("subscribed_events").and_then(Value::as_array);
        let events = events.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
        let (Some(uri), events) = (text("uri"), events.collect::<Vec<_>>()) else {
            return Err(ApiError::invalid("The value at 'uri' is required."));
        };
        if events.is_empty() {
            return Err(ApiError::invalid("The value at 'subscribed_events' is required."));
        }
        let mut inner = lock(&self.0);
        inner.made += 1;
        let seed = settings.seed ^ hash64(b"webhook") ^ inner.made;
        let mut secret = [0; 32];
        for (index, word) in secret.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&mix(seed ^ (index as u64) << 32).to_le_bytes());
        }
        let id = letters(ID_LETTERS, seed, 24);
        let (project, name) = (project.clone(), text("name"));
        let webhook = Webhook { project, id, name, uri, events, secret, created: now };
        let reply = Reply::json(webhook.json(settings, true));
        inner.all.push(webhook);
        Ok(reply)
    }

    pub(crate) fn get(
        &self,
        project: &Arc<str>,
        settings: &Builder,
        id: &str,
    ) -> Result<Reply, ApiError> {
        let inner = lock(&self.0);
        let found = inner.all.iter().find(|webhook| webhook.is(project, id));
        let found = found.ok_or_else(|| ApiError::named("not_found_entity", &[]))?;
        Ok(Reply::json(found.json(settings, false)))
    }

    pub(crate) fn list(
        &self,
        project: &Arc<str>,
        settings: &Builder,
        uri: &Uri,
    ) -> Result<Reply, ApiError> {
        let inner = lock(&self.0);
        let of_project: Vec<_> =
            inner.all.iter().filter(|webhook| webhook.project == *project).collect();
        let page = Page::of(uri, &of_project, |webhook| webhook.id.as_str())?;
        let listed: Vec<Json> =
            page.items.iter().map(|webhook| webhook.json(settings, false)).collect();
        Ok(Reply::json(obj! { "webhooks": listed, "next_page_token": page.next }))
    }

    pub(crate) fn delete(&self, project: &Arc<str>, id: &str) -> Result<Reply, ApiError> {
        let mut inner = lock(&self.0);
        let before = inner.all.len();
        inner.all.retain(|webhook| !webhook.is(project, id));
        if inner.all.len() == before {
            return Err(ApiError::named("not_found_entity", &[]));
        }
        Ok(Reply::empty())
    }

    /// Whether anybody of this project listens.
    #[cfg(feature = "serve")]
    pub(crate) fn listens(&self, project: &Arc<str>) -> bool {
        lock(&self.0).all.iter().any(|webhook| webhook.project == *project)
    }

    /// What is sent about a batch that has ended: nothing to those of the project where the batch
    /// names its own.
    pub(crate) fn deliveries(
        &self,
        settings: &Builder,
        batch: &Batch,
        now: Duration,
    ) -> Vec<WebhookEvent> {
        let moment = batch.moment(now);
        let event = match moment.state {
            BatchState::Succeeded => "batch.succeeded",
            BatchState::Failed => "batch.failed",
            BatchState::Cancelled => "batch.cancelled",
            BatchState::Expired => "batch.expired",
            BatchState::Pending | BatchState::Running => return Vec::new(),
        };
        let times = match batch.fault {
            _ if batch.has_own_webhooks => 0,
            BatchFault::Webhooks { times } => times,
            _ => 1,
        };
        let [file, _] = batch.file_names(now);
        let error = (moment.state == BatchState::Failed).then(|| batch.error(moment.state));
        let error = |name| match error.clone().flatten() {
            Some(Json::Obj(fields)) => fields.get(name),
            _ => None,
        };
        let body = obj! {
            "type": event,
            "version": "v1",
            "timestamp": settings.timestamp(moment.since),
            "data": obj! {
                "id": format!("batches/{}", batch.id),
                "output_file_uri": file,
                "error_code": error("code"),
                "error_message": error("message"),
            },
        };
        let body: Bytes = body.compact().concat().into();
        let mut inner = lock(&self.0);
        let Inner { all, sent, .. } = &mut *inner;
        let hears = |webhook: &&Webhook| {
            webhook.project == batch.project && webhook.events.iter().any(|heard| heard == event)
        };
        let deliver = |webhook: &Webhook| {
            *sent += 1;
            let id = format!("msg_{}", letters(ID_LETTERS, settings.seed ^ *sent, 24));
            let (uri, secret) = (webhook.uri.clone(), webhook.secret);
            std::iter::repeat_n(WebhookEvent { uri, secret, id, body: body.clone() }, times)
        };
        all.iter().filter(hears).flat_map(deliver).collect()
    }
}

impl Webhook {
    fn is(&self, project: &Arc<str>, id: &str) -> bool {
        self.project == *project && self.id == id
    }

    /// In the snake case of this API. The secret is shown once.
    fn json(&self, settings: &Builder, is_new: bool) -> Json {
        let secret = format!("whsec_{}", STANDARD.encode(self.secret));
        let events = self.events.iter().cloned().map(Json::from).collect::<Vec<_>>();
        let created = settings.timestamp(self.created);
        obj! {
            "id": self.id.clone(),
            "name": self.name.clone(),
            "uri": self.uri.clone(),
            "subscribed_events": events,
            "state": "enabled",
            "signing_secrets": vec![obj! { "truncated_secret": format!("{}…", &secret[..10]) }],
            "create_time": created.clone(),
            "update_time": created,
            "new_signing_secret": is_new.then_some(secret),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 4231, test case 2.
    #[test]
    fn the_signature_is_hmac_sha256() {
        let mac = hmac_sha256(b"Jefe", b"what do ya want for nothing?");
        let hex: String = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }
}
