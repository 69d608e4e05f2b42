//! Tells the webhooks of jobs that have ended or reached their cap: signed, and at least once.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::future;
use hmac::{Hmac, Mac as _};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request};
use http_body_util::Full;
use serde_json::json;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;
use tower_gemini_jobs::{JobStore, Notice, StoreError};

use super::address;
use super::fetch::Reach;
use crate::wire::now_unix;

/// For one whole exchange. Ours: webhooks answer within a second.
const EXCHANGE: Duration = Duration::from_secs(10);
/// More of a receiver's answer is not read.
const LONGEST_ANSWER: usize = 64 * 1024;
/// How often the store is asked what is due. Ours.
const EVERY: Duration = Duration::from_secs(5);
/// How many are told at once, so that one receiver that does not answer delays few others. Ours.
const AT_ONCE: usize = 16;

/// What webhooks are signed with.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct WebhookSecret(Vec<u8>);

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl WebhookSecret {
    /// Reads `whsec_` and 24 to 64 bytes in base64 (Standard Webhooks, 2023-12).
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let bytes = BASE64_STANDARD.decode(text.trim().strip_prefix("whsec_")?).ok()?;
        (24..=64).contains(&bytes.len()).then_some(Self(bytes))
    }

    /// The value of `webhook-signature`.
    fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> Option<String> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        Some(format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes())))
    }
}

/// A message that is older, or from a time to come, is not taken (Standard Webhooks: "within an
/// allowable tolerance"; the five minutes of its libraries).
const TOLERANCE_SECONDS: u64 = 300;

impl WebhookSecret {
    /// Whether this secret signed a message that came in, a short time ago.
    pub(super) fn has_signed(&self, headers: &HeaderMap, body: &[u8], now_unix: u64) -> bool {
        let get = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let message = (get("webhook-id"), get("webhook-timestamp"), get("webhook-signature"));
        let (Some(id), Some(timestamp), Some(signatures)) = message else { return false };
        let is_fresh =
            timestamp.parse::<u64>().is_ok_and(|sent| sent.abs_diff(now_unix) <= TOLERANCE_SECONDS);
        let Some(signed) = self.sign(id, timestamp, body).filter(|_| is_fresh) else {
            return false;
        };
        // Several while a secret is replaced.
        signatures.split(' ').any(|one| bool::from(one.as_bytes().ct_eq(signed.as_bytes())))
    }
}

/// Tells webhooks. Clones share the store.
#[derive(Debug, Clone)]
pub(crate) struct Notifier {
    pub(super) store: JobStore,
    pub(super) secret: Option<WebhookSecret>,
    pub(super) reach: Reach,
}

impl Notifier {
    /// Tells what is due, until `stop` is true.
    pub(super) async fn run(&self, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            if let Err(error) = self.deliver_due(super::now_ms()).await {
                tracing::error!(%error, "webhooks of jobs are told later");
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                _ = stop.changed() => {}
            }
        }
    }

    /// Tells what is due, once.
    pub(super) async fn deliver_due(&self, now_ms: i64) -> Result<(), StoreError> {
        loop {
            let mut due = Vec::new();
            while due.len() < AT_ONCE
                && let Some(notice) = self.store.next_notice(now_ms).await?
            {
                due.push(notice);
            }
            if due.is_empty() {
                return Ok(());
            }
            let told = due.iter().map(|notice| self.deliver(notice, now_ms));
            future::join_all(told).await.into_iter().collect::<Result<(), _>>()?;
        }
    }

    async fn deliver(&self, notice: &Notice, now_ms: i64) -> Result<(), StoreError> {
        let job = &notice.job.id;
        let Some(url) = &notice.job.options.webhook else { return self.store.told(notice).await };
        let Err(error) = self.post(url, notice).await else { return self.store.told(notice).await };
        // The path of a webhook's URL may be a secret.
        match self.store.not_told(notice, now_ms).await? {
            Some(after) => {
                tracing::warn!(error, job, ?after, "the webhook of a job was not told");
            }
            None => tracing::error!(error, job, "the webhook of a job is not told: abandoned"),
        }
        Ok(())
    }

    /// One attempt.
    async fn post(&self, url: &str, notice: &Notice) -> Result<(), String> {
        let uri = address::url(url, self.reach.private).map_err(|what| format!("it {what}"))?;
        let counts = self.store.counts(&notice.job.id).await.map_err(|error| error.to_string())?;
        let job = &notice.job;
        let body = json!({
            "id": job.id, "name": job.options.name, "state": job.state, "stopped": job.stopped,
            "items": job.items, "counts": counts, "spent": job.spent, "requests": job.requests,
        });
        let (body, timestamp) = (body.to_string(), now_unix().to_string());
        let mut request = Request::post(uri)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &notice.id)
            .header("webhook-timestamp", &timestamp);
        let sign = |secret: &WebhookSecret| secret.sign(&notice.id, &timestamp, body.as_bytes());
        if let Some(signature) = self.secret.as_ref().and_then(sign) {
            request = request.header("webhook-signature", signature);
        }
        let request = request.body(Full::new(Bytes::from(body)));
        let request = request.map_err(|_| "no valid request".to_owned())?;
        self.reach.ask(request, EXCHANGE, LONGEST_ANSWER).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The example of the Standard Webhooks specification, and of its libraries' tests.
    #[test]
    fn a_signature_is_that_of_the_specification() {
        let secret = WebhookSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let body = br#"{"test": 2432232314}"#;
        let signed = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body).unwrap();
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_message_is_taken_only_whole_signed_and_fresh() {
        let secret = WebhookSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let body = br#"{"test": 2432232314}"#;
        let signed = "v1,AAAA v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let headers = |signature: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek".parse().unwrap());
            headers.insert("webhook-timestamp", "1614265330".parse().unwrap());
            headers.insert("webhook-signature", signature.parse().unwrap());
            headers
        };
        assert!(secret.has_signed(&headers(signed), body, 1_614_265_400));
        assert!(!secret.has_signed(&headers(signed), body, 1_614_265_330 + 301));
        assert!(!secret.has_signed(&headers(signed), b"{}", 1_614_265_400));
        assert!(!secret.has_signed(&headers("v1,AAAA"), body, 1_614_265_400));
        assert!(!secret.has_signed(&HeaderMap::new(), body, 1_614_265_400));
    }

    #[test]
    fn what_is_no_secret_of_the_specification_is_refused() {
        for bad in ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2hvcnQ=", "whsec_%"] {
            assert_eq!(WebhookSecret::parse(bad), None, "{bad}");
        }
    }
}
