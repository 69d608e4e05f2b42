//! Whole gateways without a socket, with callers that want more than they may.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::time::Instant;
use tower_gemini::body::WireBody;
use tower_gemini::clock::{Clock, RuntimeClock, SystemClock};
use tower_gemini_sim::{Latency, Sim};

use super::{Connection, hashed};
use crate::config::Config;
use crate::handler::handle;
use crate::snapshot::Snapshot;

const ANN: &str = "token-of-ann-0123456";
const BEN: &str = "token-of-ben-0123456";
const PRO: &str = "/v1beta/models/gemini-3-pro-image:generateContent";
const APPLE: &str = r#"{"contents":[{"parts":[{"text":"a sentinel apple"}]}]}"#;

const PEAR: &str = r#"{"contents":[{"parts":[{"text":"a sentinel pear"}]}]}"#;

/// A directory with a key and a list of tokens.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("door-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("key"), "AIzaSyA-the-gateways-own-key-0123456789").unwrap();
        Self(dir)
    }

    /// A configuration whose callers are Ann, with these grants, and Ben.
    fn config(&self, grants: &str, more: &str) -> Config {
        let table = |name: &str, token: &str, grants: &str| {
            format!("[[token]]\nname = \"{name}\"\nhash = \"{}\"\n{grants}\n", hashed(token))
        };
        let tokens = table("ann", ANN, grants) + &table("ben", BEN, "");
        std::fs::write(self.0.join("tokens"), tokens).unwrap();
        let (key, tokens) = (self.0.join("key"), self.0.join("tokens"));
        let file = format!(
            "{more}\n[[upstream]]\nname = \"google\"\nkind = \"gemini\"\napi_key_file = {key:?}\n\
             [auth]\nmode = \"tokens\"\ntokens_file = {tokens:?}\n"
        );
        Config::parse(&file, "gateway.toml").unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What reached the upstream.
#[derive(Clone, Default)]
struct Sent(Arc<Mutex<Vec<Parts>>>);

impl Sent {
    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn last(&self) -> Parts {
        self.0.lock().unwrap().last().unwrap().clone()
    }
}

/// A gateway over an upstream that always answers so.
fn over(config: &Config, status: u16, body: &'static str) -> (Arc<Snapshot>, Sent) {
    let sent = Sent::default();
    let seen = sent.clone();
    let client = tower::service_fn(move |request: Request<WireBody>| {
        seen.0.lock().unwrap().push(request.into_parts().0);
        std::future::ready(Response::builder().status(status).body(Full::new(Bytes::from(body))))
    });
    (Arc::new(Snapshot::over(client, clock(), config, None).unwrap()), sent)
}

/// Runs with the paused runtime.
fn clock() -> RuntimeClock {
    RuntimeClock::starting_at(SystemClock.now())
}

async fn send(gateway: &Arc<Snapshot>, request: Request<Body>) -> (u16, String) {
    let (parts, body) = handle(gateway.clone(), Instant::now(), request).await.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status.as_u16(), String::from_utf8_lossy(&body).into_owned())
}

fn request(method: &str, path: &str, token: &str, body: &'static str) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("content-type", "application/json");
    let request = if token.is_empty() { request } else { request.header("x-goog-api-key", token) };
    request.body(Body::from(body)).unwrap()
}

async fn ask(
    gateway: &Arc<Snapshot>,
    token: &str,
    method: &str,
    path: &str,
    body: &'static str,
) -> u16 {
    send(gateway, request(method, path, token, body)).await.0
}

// A token was worth the whole Google API with the company's key.
#[tokio::test(start_paused = true)]
async fn a_token_opens_what_generates_and_the_rest_only_where_its_list_allows_it() {
    let dir = Dir::new();
    let config = dir.config("allow = [\"GET /v1beta/files\"]", "");
    let (gateway, sent) = over(&config, 200, "{}");
    for (method, path) in [
        ("GET", "/v1beta/models"),
        ("POST", "/v1beta/models/gemini-3-pro-image:countTokens"),
        ("GET", "/v1beta/files"),
    ] {
        assert_eq!(ask(&gateway, ANN, method, path, "{}").await, 200, "{method} {path}");
    }
    assert_eq!(sent.count(), 3);
    for (method, path) in [
        ("GET", "/v1beta/tunedModels"),
        ("DELETE", "/v1beta/tunedModels/company-model"),
        ("POST", "/v1beta/corpora"),
        ("POST", "/v1beta/models/text:embedContent"),
        ("GET", "/v1beta/cachedContents"),
    ] {
        assert_eq!(ask(&gateway, ANN, method, path, "{}").await, 403, "{method} {path}");
    }
    assert_eq!(ask(&gateway, BEN, "GET", "/v1beta/files", "").await, 403);
    assert_eq!(sent.count(), 3, "nothing was sent");
}

#[tokio::test(start_paused = true)]
async fn what_was_created_through_one_token_is_no_other_tokens() {
    let dir = Dir::new();
    let (cache, name) = (r#"{"name":"cachedContents/abc"}"#, "/v1beta/cachedContents");
    let (gateway, sent) = over(&dir.config("", ""), 200, cache);
    let by_id = "/v1beta/cachedContents/abc";
    assert_eq!(ask(&gateway, ANN, "GET", by_id, "").await, 403, "nobody created it");
    assert_eq!(ask(&gateway, ANN, "POST", name, "{}").await, 200);
    assert_eq!(ask(&gateway, ANN, "GET", by_id, "").await, 200);
    assert_eq!(ask(&gateway, ANN, "DELETE", by_id, "").await, 200);
    let before = sent.count();
    assert_eq!(ask(&gateway, BEN, "GET", by_id, "").await, 403);
    assert_eq!(ask(&gateway, BEN, "DELETE", by_id, "").await, 403);
    // Nor is it read by naming it.
    let names_it = r#"{"cachedContent":"cachedContents/abc","contents":[]}"#;
    let count = "/v1beta/models/gemini-3-pro-image:countTokens";
    assert_eq!(ask(&gateway, BEN, "POST", PRO, names_it).await, 403);
    assert_eq!(ask(&gateway, BEN, "POST", count, names_it).await, 403);
    assert_eq!(sent.count(), before, "nothing was sent");
    assert_eq!(ask(&gateway, ANN, "POST", count, names_it).await, 200);
}

// Nothing of a response without a stated length was remembered: chunked, or once compressed.
#[tokio::test(start_paused = true)]
async fn what_was_created_is_remembered_without_a_stated_length_and_what_is_long_passes_whole() {
    const LONG: usize = 3 * 1024 * 1024;
    let dir = Dir::new();
    let client = tower::service_fn(|request: Request<WireBody>| {
        let rest = match *request.method() {
            http::Method::POST => "\"}".to_owned(),
            _ => "x".repeat(LONG) + "\"}",
        };
        let chunks = [r#"{"name":"cachedContents/abc","x":""#.to_owned(), rest];
        let frames = chunks.map(|chunk| Ok::<_, std::io::Error>(Frame::data(Bytes::from(chunk))));
        let body = StreamBody::new(futures::stream::iter(frames));
        std::future::ready(Response::builder().body(body))
    });
    let gateway = Arc::new(Snapshot::over(client, clock(), &dir.config("", ""), None).unwrap());
    assert_eq!(ask(&gateway, ANN, "POST", "/v1beta/cachedContents", "{}").await, 200);
    let by_id = request("GET", "/v1beta/cachedContents/abc", ANN, "");
    let response = handle(gateway.clone(), Instant::now(), by_id).await;
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(body.len() > LONG && body.ends_with(b"x\"}"));
}

#[tokio::test(start_paused = true)]
async fn an_upload_in_two_requests_is_of_the_token_that_began_it() {
    let dir = Dir::new();
    let client = tower::service_fn(|request: Request<WireBody>| {
        let response = match request.uri().query() {
            None => Response::builder()
                .header(
                    "x-goog-upload-url",
                    "https://generativelanguage.googleapis.com/upload/v1beta/files?upload_id=u1",
                )
                .body(Full::default()),
            Some(_) => {
                Response::builder().body(Full::new(Bytes::from(r#"{"file":{"name":"files/f1"}}"#)))
            }
        };
        std::future::ready(response)
    });
    let gateway = Snapshot::over(client, clock(), &dir.config("", ""), None).unwrap();
    let gateway = Arc::new(gateway);
    let mut begin = request("POST", "/upload/v1beta/files", ANN, "{}");
    begin.headers_mut().insert("host", "gw:8787".parse().unwrap());
    let response = handle(gateway.clone(), Instant::now(), begin).await;
    let goes_on = response.headers()["x-goog-upload-url"].to_str().unwrap().to_owned();
    assert_eq!(goes_on, "http://gw:8787/upload/v1beta/files?upload_id=u1");
    let path = goes_on.trim_start_matches("http://gw:8787");
    // As Google's clients do: without a credential.
    assert_eq!(ask(&gateway, "", "POST", path, "the bytes of an image").await, 200);
    let other = "/upload/v1beta/files?upload_id=u2";
    assert_eq!(ask(&gateway, "", "POST", other, "the bytes of an image").await, 401);
    assert_eq!(ask(&gateway, BEN, "GET", "/v1beta/files/f1", "").await, 403);
    assert_ne!(ask(&gateway, ANN, "GET", "/v1beta/files/f1", "").await, 403);
}

/// A clock that is set at will.
#[derive(Debug, Clone)]
struct Settable(RuntimeClock, Arc<Mutex<(bool, Duration)>>);

impl Settable {
    fn set(&self, is_ahead: bool, by: Duration) {
        *self.1.lock().unwrap() = (is_ahead, by);
    }
}

impl Clock for Settable {
    fn now(&self) -> std::time::SystemTime {
        let (is_ahead, by) = *self.1.lock().unwrap();
        if is_ahead { self.0.now() + by } else { self.0.now() - by }
    }
}

#[tokio::test(start_paused = true)]
async fn clock_jumps_neither_expire_stored_responses_nor_lock_caps() {
    let sim =
        Sim::builder().latency(Latency::fixed(Duration::from_secs(2))).tiny_images(true).build();
    let clock = Settable(clock(), Arc::default());
    let year = Duration::from_secs(365 * 86_400);
    // Room for one worst case a day beside what was spent.
    let config = Config::parse("[spending]\nper_day = 1.8\n", "gateway.toml").unwrap();
    let gateway = Snapshot::over(sim.service(), clock.clone(), &config, None).unwrap();
    let gateway = Arc::new(gateway);
    for (is_ahead, sent) in [(true, 1), (false, 2)] {
        let body = if is_ahead { APPLE } else { PEAR };
        let handled =
            handle(gateway.clone(), Instant::now(), request("POST", PRO, "AIza-key", body));
        assert!(tokio::time::timeout(Duration::from_secs(1), handled).await.is_err());
        tokio::time::sleep(Duration::from_secs(5)).await;
        clock.set(is_ahead, year);
        // What was paid for is there, whatever the date.
        assert_eq!(ask(&gateway, "AIza-key", "POST", PRO, body).await, 200);
        assert_eq!(sim.requests(), sent);
        clock.set(true, Duration::ZERO);
    }
    // The day is spent, and the next one is not.
    let plum = r#"{"contents":[{"parts":[{"text":"a plum"}]}]}"#;
    let fig = r#"{"contents":[{"parts":[{"text":"a fig"}]}]}"#;
    assert_eq!(ask(&gateway, "AIza-key", "POST", PRO, plum).await, 429);
    clock.set(true, Duration::from_secs(86_400));
    assert_eq!(ask(&gateway, "AIza-key", "POST", PRO, fig).await, 200);
}

#[tokio::test(start_paused = true)]
async fn an_interaction_is_of_the_token_that_began_it() {
    let dir = Dir::new();
    let body = r#"{"id":"v1_abc","status":"completed","model":"gemini-3.5-flash","outputs":[{"type":"text","text":"x"}]}"#;
    let (gateway, _) = over(&dir.config("", ""), 200, body);
    let begin = r#"{"model":"gemini-3.5-flash","input":"hi"}"#;
    let fetch = "/v1beta/interactions/v1_abc";
    assert_eq!(ask(&gateway, ANN, "GET", fetch, "").await, 403);
    assert_eq!(ask(&gateway, ANN, "POST", "/v1beta/interactions", begin).await, 200);
    assert_eq!(ask(&gateway, ANN, "GET", fetch, "").await, 200);
    assert_eq!(ask(&gateway, BEN, "GET", fetch, "").await, 403);
    let goes_on = r#"{"model":"m","previous_interaction_id":"v1_abc","input":"more"}"#;
    assert_eq!(ask(&gateway, BEN, "POST", "/v1beta/interactions", goes_on).await, 403);
    assert_eq!(ask(&gateway, ANN, "POST", "/v1beta/interactions", goes_on).await, 200);
}

#[tokio::test(start_paused = true)]
async fn a_token_neither_names_another_project_nor_another_method() {
    let dir = Dir::new();
    let (gateway, sent) = over(&dir.config("", ""), 200, "{}");
    let models = || Request::get("/v1beta/models").header("x-goog-api-key", ANN);
    let extra = models()
        .header("x-goog-user-project", "other")
        .header("x-goog-iam-authorization-token", "t")
        .header("x-goog-api-client", "kept");
    assert_eq!(send(&gateway, extra.body(Body::empty()).unwrap()).await.0, 200);
    let headers = sent.last().headers;
    assert_eq!(headers["x-goog-api-client"], "kept");
    let gone = ["x-goog-user-project", "x-goog-iam-authorization-token"];
    assert!(gone.iter().all(|name| !headers.contains_key(*name)), "{headers:?}");
    let before = sent.count();
    let over = models().header("x-http-method-override", "DELETE").body(Body::empty()).unwrap();
    assert_eq!(send(&gateway, over).await.0, 400);
    for path in [
        "/v1beta/models?$httpMethod=DELETE",
        "/v1beta/models?%24userProject=other",
        "/v1beta/models/../files",
        "/v1beta/models/%2e%2e/files",
    ] {
        assert_eq!(ask(&gateway, ANN, "GET", path, "").await, 400, "{path}");
    }
    let squeezed = Request::post(PRO)
        .header("x-goog-api-key", ANN)
        .header("content-encoding", "gzip")
        .body(Body::from("x"));
    assert_eq!(send(&gateway, squeezed.unwrap()).await.0, 400);
    assert_eq!(sent.count(), before, "nothing was sent");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_cannot_be_read_is_not_sent_behind_the_gateways_key() {
    let dir = Dir::new();
    let (gateway, sent) = over(&dir.config("", ""), 200, "{}");
    for body in ["{'contents':[]}", "{\"contents\":[]", "\u{8}protobuf"] {
        assert_eq!(ask(&gateway, ANN, "POST", PRO, body).await, 400, "{body}");
    }
    assert_eq!(sent.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_bucket_is_read_with_the_gateways_rights_only_where_the_list_allows_it() {
    let dir = Dir::new();
    let config = dir.config("allow = [\"GET /gs:/mine/**\", \"* /v1beta/openai/**\"]", "");
    let (gateway, sent) = over(&config, 200, "{}");
    let names = |object: &'static str| match object {
        "mine" => r#"{"contents":[{"parts":[{"fileData":{"fileUri":"gs://mine/a/b.png"}}]}]}"#,
        _ => r#"{"contents":[{"parts":[{"fileData":{"fileUri":"gs://other/a/b.png"}}]}]}"#,
    };
    let count = "/v1beta/models/gemini-3-pro-image:countTokens";
    assert_eq!(ask(&gateway, ANN, "POST", count, names("mine")).await, 200);
    assert_eq!(ask(&gateway, ANN, "POST", count, names("other")).await, 403);
    assert_eq!(ask(&gateway, BEN, "POST", count, names("mine")).await, 403);
    // What the list allows may have any body.
    assert_eq!(ask(&gateway, ANN, "POST", "/v1beta/openai/embeddings", "no JSON").await, 200);
    assert_eq!(ask(&gateway, BEN, "POST", "/v1beta/openai/embeddings", "{}").await, 403);
    assert_eq!(sent.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_spends_no_more_than_its_budget_and_takes_nothing_from_others() {
    let dir = Dir::new();
    let sim = Sim::builder().latency(Latency::none()).tiny_images(true).build();
    let config = dir.config("usd_per_day = 1.6", "");
    let gateway = Arc::new(Snapshot::over(sim.service(), clock(), &config, None).unwrap());
    assert_eq!(ask(&gateway, ANN, "POST", PRO, APPLE).await, 200);
    // What is left might not be enough for another, if it were made with ten drafts.
    let (status, said) = send(&gateway, request("POST", PRO, ANN, APPLE)).await;
    assert!(status == 429 && said.contains("SPENDING_CAP"), "{status} {said}");
    assert_eq!(ask(&gateway, BEN, "POST", PRO, APPLE).await, 200);
    assert_eq!(sim.requests(), 2);
    // It outlives a reload, with a list that grants more.
    let more = dir.config("usd_per_day = 3.2", "");
    let next = Snapshot::over(sim.service(), clock(), &more, Some(&gateway)).unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    let next = Arc::new(next);
    // Another request: the same would go on with the call that was refused.
    assert_eq!(ask(&next, ANN, "POST", PRO, PEAR).await, 200);
    let list = match next.auth() {
        crate::auth::Auth::Tokens(source) => source.list().unwrap(),
        crate::auth::Auth::Passthrough => panic!("it has tokens"),
    };
    let spent = next.door().allowances.of(list.iter().next().unwrap()).spent();
    assert!(spent.iter().all(|period| period.images == 2), "{spent:?}");
}

// Reads were refused or queued with the calls that cost something.
#[tokio::test(start_paused = true)]
async fn with_caps_set_reads_that_cost_nothing_pass() {
    let dir = Dir::new();
    let spending = "[spending]\nper_day = 0.000001\nmode = \"expected\"";
    let (gateway, sent) = over(&dir.config("usd_per_day = 0.000001", spending), 200, "{}");
    assert_eq!(ask(&gateway, ANN, "POST", PRO, APPLE).await, 402);
    assert_eq!(sent.count(), 0);
    for path in ["/v1beta/models", "/v1beta/models/gemini-3-pro-image"] {
        assert_eq!(ask(&gateway, ANN, "GET", path, "").await, 200);
    }
    let count = "/v1beta/models/gemini-3-pro-image:countTokens";
    assert_eq!(ask(&gateway, ANN, "POST", count, "{}").await, 200);
    let (gateway, _) = over(&Config::parse(spending, "gateway.toml").unwrap(), 200, "{}");
    for path in ["/v1beta/files", "/v1beta/files/abc", "/v1beta/interactions/v1_abc"] {
        assert_eq!(ask(&gateway, "AIzaSyA-key", "GET", path, "").await, 200, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_has_no_more_requests_in_flight_than_it_may() {
    let dir = Dir::new();
    let sim = Sim::builder().latency(Latency::fixed(Duration::from_secs(2))).build();
    let config = dir.config("concurrency = 1", "");
    let gateway = Arc::new(Snapshot::over(sim.service(), clock(), &config, None).unwrap());
    let first = tokio::spawn({
        let gateway = gateway.clone();
        async move { ask(&gateway, ANN, "POST", PRO, APPLE).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(ask(&gateway, ANN, "POST", PRO, APPLE).await, 429);
    assert_eq!(ask(&gateway, BEN, "POST", PRO, APPLE).await, 200);
    assert_eq!(first.await.unwrap(), 200);
    assert_eq!(ask(&gateway, ANN, "POST", PRO, APPLE).await, 200);
}

/// A request on a connection of its own.
fn on(connection: Connection, mut request: Request<Body>) -> Request<Body> {
    request.extensions_mut().insert(connection);
    request
}

fn connection(local: &str) -> Connection {
    Connection::new("192.0.2.9:4000".parse().unwrap(), local.parse().unwrap())
}

// All callers without a credential were one caller: the image of one was given to the next.
#[tokio::test(start_paused = true)]
async fn a_second_anonymous_caller_never_gets_anothers_stored_response() {
    let sim = Sim::builder().latency(Latency::fixed(Duration::from_secs(2))).build();
    let gateway = Snapshot::over(sim.service(), clock(), &Config::default(), None).unwrap();
    let gateway = Arc::new(gateway);
    let hang_up = async |request| {
        let handled = handle(gateway.clone(), Instant::now(), request);
        assert!(tokio::time::timeout(Duration::from_secs(1), handled).await.is_err());
        tokio::time::sleep(Duration::from_secs(5)).await;
    };
    let anonymous = || request("POST", PRO, "", APPLE);
    for (first, second, sent) in [
        (anonymous(), anonymous(), 2),
        (on(connection("10.0.0.1:80"), anonymous()), on(connection("10.0.0.1:80"), anonymous()), 2),
        // Who shows a credential is somebody, and gets what was paid for.
        (request("POST", PRO, "AIza-key", APPLE), request("POST", PRO, "AIza-key", APPLE), 1),
    ] {
        let before = sim.requests();
        hang_up(first).await;
        let _ = send(&gateway, second).await;
        assert_eq!(sim.requests() - before, sent);
    }
}

#[tokio::test(start_paused = true)]
async fn no_response_is_sniffed_and_no_protocol_is_switched() {
    for (status, told) in [(200, 200), (404, 404), (101, 502)] {
        let (gateway, _) = over(&Config::default(), status, "{}");
        let request = request("GET", "/v1beta/models", "AIza-key", "");
        let response = handle(gateway, Instant::now(), request).await;
        assert_eq!(response.status(), told);
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    }
    let (gateway, _) = over(&Config::default(), 101, "");
    let status = ask(&gateway, "AIza-key", "POST", PRO, APPLE).await;
    assert!(status == 424 || status == 502, "{status}");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_was_pointed_at_loopback_is_refused_everything() {
    let (gateway, sent) = over(&Config::default(), 200, "{}");
    for path in ["/status.json", "/metrics", "/v1beta/models"] {
        let request = |host: &str| {
            let request = Request::get(path).header("host", host).header("x-goog-api-key", "AIza");
            on(connection("127.0.0.1:8787"), request.body(Body::empty()).unwrap())
        };
        assert_eq!(send(&gateway, request("evil.example")).await.0, 421, "{path}");
        assert_eq!(send(&gateway, request("localhost:8787")).await.0, 200, "{path}");
    }
    assert_eq!(sent.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn beyond_loopback_the_status_pages_need_a_token_that_allows_them_or_their_own_port() {
    let dir = Dir::new();
    let config = dir.config("allow = [\"GET /status\", \"GET /status.json\"]", "");
    let (gateway, _) = over(&config, 200, "{}");
    let get = |local: &str, path: &str, token: &str| {
        on(connection(local), request("GET", path, token, ""))
    };
    for (local, path, token, status) in [
        ("10.0.0.1:80", "/status.json", "", 401),
        ("10.0.0.1:80", "/status.json", ANN, 200),
        ("10.0.0.1:80", "/metrics", ANN, 403),
        ("10.0.0.1:80", "/status.json", BEN, 403),
        ("10.0.0.1:80", "/healthz", "", 200),
        ("127.0.0.1:80", "/status.json", "", 200),
    ] {
        let (is, _) = send(&gateway, get(local, path, token)).await;
        assert_eq!(is, status, "{local} {path} {token}");
    }
    // As a browser shows it.
    use base64::Engine;
    let basic = base64::prelude::BASE64_STANDARD.encode(format!("x:{ANN}"));
    let mut request = get("10.0.0.1:80", "/status", "");
    request.headers_mut().insert("authorization", format!("Basic {basic}").parse().unwrap());
    assert_eq!(send(&gateway, request).await.0, 200);
    let status_port = connection("10.0.0.1:90").for_status();
    let on_port = |path: &str| on(status_port, self::request("GET", path, "", ""));
    assert_eq!(send(&gateway, on_port("/metrics")).await.0, 200);
    assert_eq!(send(&gateway, on_port("/v1beta/models")).await.0, 404);

    let open =
        Config::parse("[server]\nallow_public = true\nlisten = \"0.0.0.0:80\"\n", "gateway.toml");
    let (gateway, _) = over(&open.unwrap(), 200, "{}");
    assert_eq!(send(&gateway, get("10.0.0.1:80", "/status.json", "")).await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn failed_logins_wait_and_a_valid_token_from_the_same_address_does_not() {
    let dir = Dir::new();
    let (gateway, _) = over(&dir.config("", ""), 200, "{}");
    let from = connection("10.0.0.1:80");
    let ask = async |token| {
        let began = Instant::now();
        let request = on(from, request("GET", "/v1beta/models", token, ""));
        (send(&gateway, request).await.0, began.elapsed())
    };
    for _ in 0..10 {
        assert_eq!(ask("a-wrong-token-0123456").await.0, 401);
    }
    assert_eq!(ask("a-wrong-token-0123456").await, (401, Duration::from_secs(5)));
    assert_eq!(ask(ANN).await, (200, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn every_request_leaves_one_line_without_its_prompt_and_secrets() {
    let dir = Dir::new();
    let audit = dir.0.join("audit.jsonl");
    let config = dir.config("", &format!("[log]\naudit = {audit:?}\n"));
    let sim =
        Sim::builder().latency(Latency::fixed(Duration::from_secs(2))).tiny_images(true).build();
    let gateway = Arc::new(Snapshot::over(sim.service(), clock(), &config, None).unwrap());
    assert_eq!(ask(&gateway, ANN, "POST", PRO, APPLE).await, 200);
    assert_eq!(ask(&gateway, BEN, "DELETE", "/v1beta/files/abc", "").await, 403);
    assert_eq!(ask(&gateway, "a-wrong-token-0123456", "POST", PRO, APPLE).await, 401);
    // One that hangs up: its line comes when the call behind it has ended.
    let request = request("POST", PRO, BEN, APPLE);
    let handled = handle(gateway.clone(), Instant::now(), request);
    assert!(tokio::time::timeout(Duration::from_secs(1), handled).await.is_err());
    tokio::time::sleep(Duration::from_secs(10)).await;

    let text = std::fs::read_to_string(audit).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |key: &str| lines.iter().map(|line| line[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("caller"), ["ann".into(), "ben".into(), serde_json::Value::Null, "ben".into()]);
    assert_eq!(of("status"), [200.into(), 403.into(), 401.into(), serde_json::Value::Null]);
    let outcomes = ["success", "refused_here", "refused_here", "client_disconnected"];
    assert_eq!(of("outcome"), outcomes);
    assert_eq!(lines[0]["path"], PRO);
    for (line, is_paid) in lines.iter().zip([true, false, false, true]) {
        assert_eq!(line["cost_at_least_microusd"].as_u64().unwrap() > 0, is_paid, "{line}");
    }
    assert!(!text.contains("sentinel") && !text.contains("token-of") && !text.contains("AIza"));
}

#[tokio::test(start_paused = true)]
async fn the_status_shows_what_each_token_used_of_what_it_may() {
    let dir = Dir::new();
    let (gateway, _) = over(&dir.config("rpm = 5\nusd_per_day = 1.6", ""), 200, "{}");
    assert!(gateway.door().callers().is_empty(), "nobody has called");
    let path = "/v1beta/models/gemini-3-pro-image:generateContent";
    ask(&gateway, ANN, "POST", path, "{}").await;
    let callers = gateway.door().callers();
    let [ann] = &callers[..] else { panic!("{callers:?}") };
    assert_eq!((ann.name.as_str(), ann.limits[0].used, ann.limits[0].limit), ("ann", 1, 5));
    let day = ann.spending.iter().find(|one| one.period == "day").unwrap();
    assert_eq!(day.cap_microusd, Some(1_600_000));
}
