//! Sends notices to the webhook: with timeouts, a few retries, and never its URL in an error.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::{sleep, timeout};
use tower_gemini::redact::redact;

use super::decide::{AlertState, Notice, Severity};
use crate::config::{self, AlertKind, ConfigError, WebhookUrl};
use crate::outbound::{self, HttpClient, innermost};
use crate::{log, upstream};

/// For a connection, and for one whole exchange. Ours: webhooks answer within a second.
const CONNECT: Duration = Duration::from_secs(5);
const EXCHANGE: Duration = Duration::from_secs(10);
/// Before each further attempt. Ours: Slack asks to be sent one message a second.
const PAUSES: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(25)];
/// The longest feed that is read: Google Cloud's has about 2 MB.
const LONGEST_FEED: usize = 16 * 1024 * 1024;

const COUNTER: &str = "gateway_alerts_total";

/// Where alerts go and where incidents are looked up, with the client for both.
#[derive(Debug, Clone)]
pub(crate) struct Channel {
    webhook: WebhookUrl,
    pub(super) feed: Option<Uri>,
    client: HttpClient<Full<Bytes>>,
    pub(super) repeat_every: Duration,
    kinds: Vec<AlertKind>,
}

/// A failure of one attempt, without the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    what: String,
    /// Whether another attempt may do better.
    is_passing: bool,
}

impl Failure {
    fn passing(what: impl Into<String>) -> Self {
        Self { what: what.into(), is_passing: true }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Channel {
    /// `None` where nobody is told.
    pub(super) fn build(
        config: &config::Alerts,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, ConfigError> {
        let Some(webhook) = config.webhook(env)? else { return Ok(None) };
        let url = webhook.uri();
        log::hide(&url.to_string());
        log::hide(url.path_and_query().map_or("", |path| path.as_str()));
        if upstream::is_unencrypted(url) {
            let host = url.host().unwrap_or_default();
            tracing::warn!(host, "alerts go to another machine unencrypted: use https://");
        }
        let target = config::Upstream::other("alerts.webhook", url.clone(), config.proxy.clone());
        Ok(Some(Self {
            client: outbound::client(&target, CONNECT)?,
            webhook,
            feed: config.status_feed.as_ref().map(|feed| feed.0.clone()),
            repeat_every: config.repeat_every.0,
            kinds: config.kinds.clone(),
        }))
    }

    pub(super) fn wants(&self, notice: &Notice) -> bool {
        self.kinds.is_empty() || self.kinds.contains(&notice.condition.kind)
    }

    /// One attempt.
    pub(super) async fn post(&self, message: Bytes) -> Result<(), Failure> {
        let request = Request::post(self.webhook.uri()).header(CONTENT_TYPE, "application/json");
        self.exchange(request, message, 64 * 1024).await.map(drop)
    }

    /// The text of the feed.
    pub(super) async fn read(&self, feed: &Uri) -> Result<Bytes, Failure> {
        self.exchange(Request::get(feed), Bytes::new(), LONGEST_FEED).await
    }

    async fn exchange(
        &self,
        request: http::request::Builder,
        body: Bytes,
        longest: usize,
    ) -> Result<Bytes, Failure> {
        let refused = |what: &str| Failure { what: what.to_owned(), is_passing: false };
        let request = request.body(Full::new(body)).map_err(|_| refused("no valid request"))?;
        let exchange = async {
            let response = self.client.request(request).await;
            let response = response.map_err(|error| Failure::passing(innermost(&error)))?;
            let status = response.status();
            if !status.is_success() {
                let is_passing = status.is_server_error()
                    || matches!(
                        status,
                        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                    );
                return Err(Failure { what: format!("it answered {status}"), is_passing });
            }
            let body = Limited::new(response.into_body(), longest).collect().await;
            body.map(|body| body.to_bytes()).map_err(|error| Failure::passing(innermost(&*error)))
        };
        let exchange = timeout(EXCHANGE, exchange).await;
        exchange.map_err(|_| Failure::passing("no answer within 10 s"))?
    }
}

/// What became of notices.
#[derive(Debug, Default)]
pub(crate) struct Delivery {
    sent: AtomicU64,
    failed: AtomicU64,
    problem: Mutex<Option<String>>,
}

impl Delivery {
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Why the latest alert could not be delivered.
    pub(crate) fn problem(&self) -> Option<String> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        // One assignment is all that is done under it.
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message by `post`, again after failures that may pass.
    pub(super) async fn deliver<F>(&self, mut post: impl FnMut() -> F)
    where
        F: Future<Output = Result<(), Failure>>,
    {
        let mut pauses = PAUSES.into_iter();
        loop {
            let Err(failure) = post().await else { return self.succeed() };
            match pauses.next().filter(|_| failure.is_passing) {
                Some(pause) => sleep(pause).await,
                None => return self.fail(failure.what),
            }
        }
    }

    fn succeed(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        metrics::counter!(COUNTER, "result" => "sent").increment(1);
        if self.lock().take().is_some() {
            tracing::info!("alerts are delivered again");
        }
    }

    /// Logged once, until one is delivered.
    pub(super) fn fail(&self, what: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        metrics::counter!(COUNTER, "result" => "failed").increment(1);
        if self.lock().replace(what.clone()).is_none() {
            tracing::error!(error = what, "alerts cannot be delivered to alerts.webhook");
        }
    }
}

/// Describes the counter.
pub(crate) fn describe_metrics() {
    let what = "Alerts to alerts.webhook, by result: sent or failed";
    metrics::describe_counter!(COUNTER, what);
}

/// The message, which Slack shows by its `text`.
#[derive(Debug, Serialize)]
struct Message<'a> {
    text: String,
    kind: AlertKind,
    severity: Severity,
    state: AlertState,
    subject: &'a str,
    what: &'a str,
    advice: String,
    at: String,
}

/// A notice as the webhook gets it.
pub(super) fn message(notice: &Notice, at: SystemTime) -> Bytes {
    let Notice { state, condition } = notice;
    let kind = condition.kind;
    let (what, subject) = (redact(&condition.what), redact(&condition.subject));
    let own = redact(&condition.advice);
    let advice = [own.as_ref(), advice(kind)].into_iter().filter(|part| !part.is_empty());
    let advice = advice.collect::<Vec<_>>().join(" ");
    let text = match state {
        AlertState::Firing => format!("gemini-gateway, {}: {what}\n{advice}", kind.as_str()),
        AlertState::Resolved => format!("gemini-gateway, {} is over: {what}", kind.as_str()),
    };
    let message = Message {
        // Slack's own three: everything else is text.
        text: text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;"),
        kind,
        severity: condition.severity,
        state: *state,
        subject: &subject,
        what: &what,
        advice,
        at: Timestamp::try_from(at).unwrap_or_default().to_string(),
    };
    // Every key is a string and every value plain data.
    serde_json::to_vec(&message).unwrap_or_default().into()
}

/// What is always to be done about a kind of alert.
pub(super) fn advice(kind: AlertKind) -> &'static str {
    static ADVICE: LazyLock<BTreeMap<String, String>> =
        LazyLock::new(|| toml::from_str(include_str!("advice.toml")).unwrap_or_default());
    ADVICE.get(kind.as_str()).map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use tokio::time::Instant;

    use super::super::decide::Condition;
    use super::*;

    fn passing() -> Result<(), Failure> {
        Err(Failure::passing("it answered 503"))
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_retried_a_few_times_and_what_may_not_is_not() {
        let refused = || Err(Failure { what: "it answered 404".to_owned(), is_passing: false });
        for (results, attempts, seconds, problem) in [
            (vec![Ok(())], 1, 0, None),
            (vec![passing(), passing(), Ok(())], 3, 6, None),
            (vec![passing(); 9], 4, 31, Some("it answered 503")),
            (vec![passing(), refused(), Ok(())], 2, 1, Some("it answered 404")),
        ] {
            let (delivery, started) = (Delivery::default(), Instant::now());
            let mut results = results.into_iter();
            let left = results.len();
            delivery.deliver(|| ready(results.next().unwrap())).await;
            assert_eq!(left - results.len(), attempts);
            assert_eq!(started.elapsed().as_secs(), seconds);
            assert_eq!(delivery.problem().as_deref(), problem);
            let failed = u64::from(problem.is_some());
            assert_eq!((delivery.sent(), delivery.failed()), (1 - failed, failed));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_problem_lasts_until_one_is_delivered() {
        let delivery = Delivery::default();
        delivery.deliver(|| ready(passing())).await;
        assert!(delivery.problem().is_some());
        delivery.deliver(|| ready(Ok(()))).await;
        assert_eq!((delivery.problem(), delivery.failed(), delivery.sent()), (None, 1, 1));
    }

    #[test]
    fn a_message_is_text_for_slack_and_fields_for_programs_without_secrets() {
        let condition = Condition {
            kind: AlertKind::Outage,
            subject: "m".to_owned(),
            severity: Severity::Critical,
            what: "<!channel> & AIzaSyA-sentinel-0123456789abcdefghijk".to_owned(),
            advice: "First this.".to_owned(),
        };
        let notice = Notice { state: AlertState::Firing, condition };
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_508_400);
        let message: serde_json::Value = serde_json::from_slice(&message(&notice, at)).unwrap();
        let text = message["text"].as_str().unwrap();
        assert!(text.starts_with("gemini-gateway, outage: &lt;!channel&gt; &amp; "), "{text}");
        assert!(!message.to_string().contains("sentinel"));
        assert!(message["advice"].as_str().unwrap().starts_with("First this. fallback.models"));
        for (field, value) in [
            ("kind", "outage"),
            ("severity", "critical"),
            ("state", "firing"),
            ("subject", "m"),
            ("at", "2026-11-24T08:20:00Z"),
        ] {
            assert_eq!(message[field], value, "{field}");
        }
    }
}
