//! The whole gateway but its sockets, in paused time: the simulator is its client in process.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tower::ServiceExt;
use tower_gemini::body::WireBody;
use tower_gemini::calendar::PacificDay;
use tower_gemini::clock::{Clock, RuntimeClock, SystemClock};
use tower_gemini_sim::{Builder, Fault, Latency, Quota, Record, Sim};

use crate::config::{Config, EXAMPLE};
use crate::handler::handle;
use crate::snapshot::Snapshot;
use crate::wire::now_unix;

const CALLS: usize = 120;
const AT_ONCE: usize = 16;

fn request(call: usize, prompt: usize) -> Request<Body> {
    Request::post("/v1beta/models/gemini-3-pro-image:generateContent")
        .header("x-goog-api-key", "AIzaSyA-storm-key-0123456789abcdefghijk")
        .header("x-sim-call", call.to_string())
        .body(Body::from(format!(r#"{{"contents":[{{"parts":[{{"text":"apple {prompt}"}}]}}]}}"#)))
        .unwrap()
}

/// How many of the calls deliver an image, and how long all of them take.
async fn delivered(config: &Config, seed: u64) -> (usize, Duration) {
    let latency = Latency::fixed(Duration::from_secs(2));
    let sim = Sim::builder().storm().seed(seed).latency(latency).tiny_images(true).build();
    let gateway = Arc::new(Snapshot::over(sim.service(), clock(), config, None).unwrap());
    let started = Instant::now();
    let calls = futures::stream::iter(0..CALLS).map(|n| {
        let (gateway, ledger) = (gateway.clone(), sim.clone());
        let request = request(n, n);
        async move {
            let (parts, body) = handle(gateway, started, request).await.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let text = String::from_utf8_lossy(&body);
            let is_image = parts.status.is_success() && text.contains("inlineData");
            if !is_image && std::env::var_os("STORM_FAILURES").is_some() {
                let ledger = ledger.ledger();
                let attempts: Vec<String> = ledger
                    .of_call(&n.to_string())
                    .map(|one| format!("{:.0?} {} {}", one.received_at, one.model, one.outcome))
                    .collect();
                println!("{:.0?} call {n}: {} after {attempts:?}", started.elapsed(), parts.status);
            }
            is_image
        }
    });
    let delivered =
        calls.buffer_unordered(AT_ONCE).filter(|ok| std::future::ready(*ok)).count().await;
    let ledger = sim.ledger();
    let twice = (0..CALLS).filter(|n| ledger.sends_after_charge(&n.to_string()) > 0).count();
    assert_eq!(twice, 0, "nothing is sent after a charge");
    (delivered, started.elapsed())
}

// The demonstration delivered 75 of 120 with the default file, and 18 with the fallback chain and
// `sizes = true` of its own comments.
#[tokio::test(start_paused = true)]
async fn the_storm_loses_few_images_and_the_fallback_chain_saves_more() {
    let models = EXAMPLE.lines().find(|line| line.starts_with("models = []")).unwrap();
    let models = models.split_once(": [").unwrap().1;
    let chain = format!("[fallback]\nmodels = [{models}\nsizes = true\n");
    let (plain, chain) = (Config::default(), Config::parse(&chain, "gateway.toml").unwrap());
    let mut results = Vec::new();
    for seed in 0..6 {
        let ((without, took), (with, took_with)) =
            (delivered(&plain, seed).await, delivered(&chain, seed).await);
        println!(
            "storm {seed}: {without} of {CALLS} delivered in {took:.0?}; with the chain {with} in \
             {took_with:.0?}"
        );
        results.push((seed, without, with));
    }
    for (seed, without, with) in results {
        assert!(without >= 100, "storm {seed}: {without} delivered with the default file");
        assert!(with >= 108, "storm {seed}: {with} delivered with the fallback chain");
    }
}

/// Runs with the paused runtime.
fn clock() -> RuntimeClock {
    RuntimeClock::starting_at(SystemClock.now())
}

fn gateway(sim: &Sim, toml: &str) -> Arc<Snapshot> {
    let config = Config::parse(toml, "gateway.toml").unwrap();
    Arc::new(Snapshot::over(sim.service(), clock(), &config, None).unwrap())
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_one_request_a_minute_is_sent_for_all_callers_or_each_sends_its_own() {
    for (more, least, most) in [("", 10, 25), ("[retry]\nprobe_every = \"0s\"\n", 60, 150)] {
        let outage = Duration::from_secs(600);
        let sim = Sim::quick((0..1000).map(|_| Fault::Overloaded));
        let gateway = gateway(&sim, more);
        let started = Instant::now();
        let calls = futures::stream::iter(0..30).map(|n| {
            let (gateway, request) = (gateway.clone(), request(n, n));
            async move {
                tokio::time::sleep(Duration::from_secs(10) * n as u32).await;
                handle(gateway, started, request).await
            }
        });
        let _ = tokio::time::timeout(outage, calls.buffer_unordered(30).count()).await;
        assert!((least..=most).contains(&sim.requests()), "{more} {}", sim.requests());
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_models_all_fail_waits_unless_the_file_says_otherwise() {
    let models = r#"models = ["gemini-3-pro-image", "gemini-3.1-flash-image"]"#;
    for (more, status) in [("", 200), ("wait = false\n", 503)] {
        let sim = Sim::quick((0..7).map(|_| Fault::Overloaded));
        let gateway = gateway(&sim, &format!("[fallback]\n{models}\n{more}"));
        let answer = handle(gateway, Instant::now(), request(0, 0)).await;
        assert_eq!(answer.status().as_u16(), status, "{more}");
    }
}

// Half of the places could wait for a model, and all of them hit it in the instant of its recovery.
#[tokio::test(start_paused = true)]
async fn calls_that_a_recovery_wakes_are_sent_one_after_the_other() {
    const WAITING: usize = 40;
    let sim = Sim::quick((0..8).map(|_| Fault::Overloaded));
    let models = r#"["gemini-3-pro-image", "gemini-3.1-flash-image"]"#;
    let gateway = gateway(&sim, &format!("[fallback]\nmodels = {models}\n"));
    let started = Instant::now();
    let calls = (0..WAITING).map(|n| {
        let gateway = gateway.clone();
        async move { handle(gateway, started, request(n, n)).await.status().as_u16() }
    });
    let statuses = futures::future::join_all(calls).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    let ledger = sim.ledger();
    let delivered: Vec<Duration> =
        ledger.requests().iter().filter(|one| one.charged).map(|one| one.received_at).collect();
    let (first, last) = (delivered[0], delivered[WAITING - 1]);
    assert!(last - first <= Duration::from_secs(4), "{delivered:?}");
    let at_once = |window: &[Duration]| window[5] - window[0] < Duration::from_millis(150);
    assert!(!delivered.windows(6).any(at_once), "{delivered:?}");
}

// The guard refused after a second, and the retry then waited a minute on the guard's own hint.
#[tokio::test(start_paused = true)]
async fn a_wait_that_the_file_does_not_allow_is_refused_and_not_waited_out() {
    let sim = Sim::quick([]);
    let gateway = gateway(&sim, "[quota]\nrpm = 1\nlongest_wait = \"1s\"\n");
    let started = Instant::now();
    assert_eq!(handle(gateway.clone(), started, request(0, 0)).await.status(), 200);
    assert_eq!(handle(gateway, started, request(1, 1)).await.status(), 429);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(sim.requests(), 1);
}

// It was told by a 503 that it came too early, and not which cap it was.
#[tokio::test(start_paused = true)]
async fn a_resend_of_what_a_cap_refused_is_told_of_the_cap_again() {
    let sim = Sim::quick([]);
    let toml = "[spending]\nper_hour = 0.2\nmode = \"expected\"\n";
    let config = Config::parse(toml, "gateway.toml").unwrap();
    // 2026-11-10 12:00, at the beginning of an hour.
    let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_794_312_000);
    let clock = RuntimeClock::starting_at(noon);
    let gateway = Arc::new(Snapshot::over(sim.service(), clock, &config, None).unwrap());
    let started = Instant::now();
    assert_eq!(handle(gateway.clone(), started, request(0, 0)).await.status(), 200);
    for resend in 0..3 {
        let response = handle(gateway.clone(), started, request(1, 1)).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&body);
        assert_eq!((status, text.contains("SPENDING_CAP")), (429, true), "{resend}: {text}");
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert_eq!(sim.requests(), 1);
}

// The gateway had no clock: a model whose day was spent was tried again after minutes.
#[tokio::test(start_paused = true)]
async fn a_spent_day_rests_until_midnight_pacific() {
    let spent = Fault::RateLimitDay { retry_after: Duration::from_millis(2_500) };
    let sim = Sim::quick([spent]);
    let models = r#"["gemini-3-pro-image", "gemini-3.1-flash-image"]"#;
    let gateway = gateway(&sim, &format!("[fallback]\nmodels = {models}\n"));
    let started = Instant::now();
    let now = i64::try_from(now_unix() * 1000).unwrap();
    let left = PacificDay::holding(now).end_ms() - now;
    let left = Duration::from_millis(left.unsigned_abs());
    for (call, wait) in [Duration::ZERO, left.mul_f64(0.9), left.mul_f64(0.2)].iter().enumerate() {
        tokio::time::advance(*wait).await;
        assert_eq!(handle(gateway.clone(), started, request(call, call)).await.status(), 200);
    }
    let ledger = sim.ledger();
    let asked: Vec<&str> = ledger.requests().iter().map(|one| &*one.model).collect();
    let (pro, flash) = ("gemini-3-pro-image", "gemini-3.1-flash-image");
    assert_eq!(asked, [pro, flash, flash, pro]);
}

/// The models that the simulator was asked for, in order.
pub(crate) fn asked(sim: &Sim) -> Vec<String> {
    sim.ledger().requests().iter().map(|one| one.model.to_string()).collect()
}

// Dates of an end were announced and withdrawn: what a call names is sent, and the API says what is
// gone.
#[tokio::test(start_paused = true)]
async fn a_retired_model_that_a_call_names_is_sent_and_a_retired_fallback_target_is_skipped() {
    let (old, pro) = ("gemini-2.5-flash-image-preview", "gemini-3-pro-image");
    let storm = [const { Fault::Overloaded }; 9];
    let sim = Sim::builder().latency(Latency::none()).revive(old).script(storm).build();
    let fallback = r#"models = ["gemini-3-pro-image-preview", "gemini-3-pro-image"]"#;
    let gateway = gateway(&sim, &format!("[fallback]\n{fallback}\n[retry]\nattempts = 1\n"));
    let request = Request::post(format!("/v1beta/models/{old}:generateContent"))
        .header("x-goog-api-key", "AIzaSyA-storm-key-0123456789abcdefghijk")
        .body(Body::from(r#"{"contents":[{"parts":[{"text":"apple"}]}]}"#));
    let _ = handle(gateway, Instant::now(), request.unwrap()).await;
    assert_eq!(asked(&sim), [old, pro]);
}

/// What a caller gets, and how often the upstream is asked, where it always answers so.
async fn behind_a_relay(more: &str, status: u16, body: &'static str) -> (u16, usize) {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let client = tower::service_fn(move |_: Request<WireBody>| {
        counted.fetch_add(1, Ordering::Relaxed);
        let response = Response::builder().status(status).body(Full::new(Bytes::from(body)));
        std::future::ready(response)
    });
    let relay =
        "[[upstream]]\nname = \"r\"\nkind = \"relay\"\nbase_url = \"https://relay.example\"\n";
    let config = Config::parse(&format!("{relay}{more}"), "gateway.toml").unwrap();
    let gateway = Arc::new(Snapshot::over(client, clock(), &config, None).unwrap());
    let response = handle(gateway, Instant::now(), request(0, 0)).await;
    (response.status().as_u16(), sent.load(Ordering::Relaxed))
}

// A relay's page or broken connection was called free: the image that it had lost was paid for twice.
#[tokio::test(start_paused = true)]
async fn a_relays_own_failure_is_sent_once_and_googles_is_retried() {
    let nginx = "<html><title>502 Bad Gateway</title><center>nginx</center></html>";
    assert_eq!(behind_a_relay("", 502, nginx).await, (424, 1));
    let broke = r#"{"error":{"message":"unexpected EOF","code":"do_request_failed"}}"#;
    assert_eq!(behind_a_relay("", 500, broke).await, (424, 1));
    let (status, sent) = behind_a_relay("[retry]\nmaybe_charged_resends = 1\n", 500, broke).await;
    assert_eq!((status, sent), (424, 2), "the operator bought one resend");
    let google = r#"{"error":{"code":503,"message":"The model is overloaded. Please try again later.","status":"UNAVAILABLE"}}"#;
    let refused =
        r#"{"error":{"message":"dial tcp: connection refused","code":"do_request_failed"}}"#;
    for (rules, status, body) in
        [("", 503, google), ("", 500, refused), ("charge_rules = \"google\"\n", 502, nginx)]
    {
        let (told, sent) = behind_a_relay(rules, status, body).await;
        assert_eq!(told, status, "{body}");
        assert!(sent > 1, "{body}");
    }
}

// Imagen's four predictions came out as one, and of text, image, text, image, text, image one image
// was left.
#[tokio::test(start_paused = true)]
async fn every_final_image_passes_byte_for_byte() {
    let image =
        |data: &str| format!(r#"{{"inlineData":{{"mimeType":"image/png","data":"{data}"}}}}"#);
    let text = r#"{"text": "and then"}"#;
    let content = |parts: &str| {
        format!(r#"{{ "content": {{"role":"model","parts":[{parts}]}}, "finishReason":"STOP"}}"#)
    };
    let prediction =
        |data: &str| format!(r#"{{"bytesBase64Encoded":"{data}","mimeType":"image/png"}}"#);
    let interleaved = [text, &image("QUJD"), text, &image("REVG"), text, &image("R0hJ")].join(",");
    let pro = "gemini-3-pro-image:generateContent";
    for (path, body) in [
        (pro, format!(r#"{{"candidates":[{}]}}"#, content(&interleaved))),
        (
            pro,
            format!(
                r#"{{"candidates":[{},{}]}}"#,
                content(&image("QUJD")),
                content(&image("REVG"))
            ),
        ),
        (
            "gemini-2.5-flash-image:generateContent",
            format!(r#"{{"candidates":[{}]}}"#, content(&[image("QUJD"), image("REVG")].join(","))),
        ),
        (
            "imagen-4.0-generate-001:predict",
            format!(
                r#"{{"predictions":[{}]}}"#,
                ["QUJD", "REVG", "R0hJ", "SktM"].map(prediction).join(", ")
            ),
        ),
    ] {
        let sent = Bytes::from(body.clone());
        let client = tower::service_fn(move |_: Request<WireBody>| {
            std::future::ready(Ok::<_, std::io::Error>(Response::new(Full::new(sent.clone()))))
        });
        let gateway = Arc::new(Snapshot::over(client, clock(), &Config::default(), None).unwrap());
        let request = Request::post(format!("/v1beta/models/{path}"))
            .header("x-goog-api-key", "AIzaSyA-key-0123456789abcdefghijklmnopq")
            .body(Body::from("{}"))
            .unwrap();
        let response = handle(gateway, Instant::now(), request).await;
        assert_eq!(response.status(), 200, "{path}");
        let passed = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(passed, body.as_bytes(), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_begins_with_an_error_is_not_charged() {
    let error = "data: {\"error\":{\"code\":503,\"message\":\"The model is overloaded.\",\"status\":\"UNAVAILABLE\"}}\n\n";
    let client = tower::service_fn(move |_: Request<WireBody>| {
        let response = Response::builder().header("content-type", "text/event-stream");
        std::future::ready(response.body(Full::new(Bytes::from(error))))
    });
    let config = Config::parse("[responses]\nreport_headers = true\n", "gateway.toml").unwrap();
    let gateway = Arc::new(Snapshot::over(client, clock(), &config, None).unwrap());
    let path = "/v1beta/models/gemini-3-pro-image:streamGenerateContent?alt=sse";
    let request = Request::post(path)
        .header("x-goog-api-key", "AIzaSyA-key-0123456789abcdefghijklmnopq")
        .body(Body::from("{}"))
        .unwrap();
    let response = handle(gateway, Instant::now(), request).await;
    assert_eq!(response.headers()["x-gemini-charge"], "maybe");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, error);
}

pub(crate) fn asking(call: usize, model: &str, size: &str) -> Request<Body> {
    let body = format!(
        r#"{{"contents":[{{"parts":[{{"text":"apple {call}"}}]}}],"generationConfig":{{"imageConfig":{{"imageSize":"{size}"}}}}}}"#
    );
    Request::post(format!("/v1beta/models/{model}:generateContent"))
        .header("x-goog-api-key", "a-token-of-a-caller")
        .header("x-sim-call", call.to_string())
        .body(Body::from(body))
        .unwrap()
}

// It got no fallback: it stands at the end of the list.
#[tokio::test(start_paused = true)]
async fn with_the_suggested_list_a_call_for_either_model_reaches_the_other_and_says_so() {
    let models = EXAMPLE.lines().find(|line| line.starts_with("models = []")).unwrap();
    let models = models.split_once(": [").unwrap().1;
    let toml = format!("[fallback]\nmodels = [{models}\n");
    let (pro, flash) = ("gemini-3-pro-image", "gemini-3.1-flash-image");
    for (asked_for, other) in [(pro, flash), (flash, pro)] {
        let sim = Sim::quick([Fault::Overloaded]);
        let answer = handle(gateway(&sim, &toml), Instant::now(), asking(0, asked_for, "1K")).await;
        assert_eq!(asked(&sim), [asked_for, other]);
        assert_eq!(answer.headers()["x-gemini-model"], other);
        assert_eq!(
            answer.headers()["x-gemini-degraded"],
            format!("model {asked_for} -> {other}").as_str()
        );
        let sim = Sim::quick([Fault::Overloaded]);
        let toml = format!("{toml}wrap = false\nwait = false\n");
        let answer = handle(gateway(&sim, &toml), Instant::now(), asking(0, flash, "1K")).await;
        assert_eq!(answer.status(), 200, "retried at the end of the list");
        assert!(!answer.headers().contains_key("x-gemini-model"));
    }
}

// The stored response was given as though it were what had been asked for.
#[tokio::test(start_paused = true)]
async fn a_stored_response_says_too_what_was_given_up_for_it() {
    let toml = "[fallback]\nmodels = [\"gemini-3-pro-image\", \"gemini-3.1-flash-image\"]\n";
    let latency = Latency::fixed(Duration::from_secs(20));
    let sim = Sim::builder().script([Fault::Overloaded]).latency(latency).tiny_images(true).build();
    let gateway = gateway(&sim, toml);
    let ask = || handle(gateway.clone(), Instant::now(), asking(0, "gemini-3-pro-image", "1K"));
    assert!(tokio::time::timeout(Duration::from_secs(10), ask()).await.is_err(), "it hangs up");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let answer = ask().await;
    assert_eq!(sim.requests(), 2, "nothing is sent again");
    assert_eq!(answer.headers()["x-gemini-model"], "gemini-3.1-flash-image");
    assert_eq!(
        answer.headers()["x-gemini-degraded"],
        "model gemini-3-pro-image -> gemini-3.1-flash-image"
    );
}

/// Upstreams with keys in files, and callers with a token.
struct Tokens {
    dir: std::path::PathBuf,
    toml: String,
}

impl Tokens {
    fn new(more: &str) -> Self {
        static DIRS: AtomicUsize = AtomicUsize::new(0);
        let number = DIRS.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("keys-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let tokens = dir.join("tokens");
        std::fs::write(&tokens, "ann:a-token-of-a-caller\n").unwrap();
        let toml =
            format!("[auth]\nmode = \"tokens\"\ntokens_file = \"{}\"\n{more}", tokens.display());
        Self { dir, toml }
    }

    fn upstream(mut self, name: &str, kind: &str, more: &str) -> Self {
        let key = self.dir.join(name);
        std::fs::write(&key, format!("key-of-{name}\n")).unwrap();
        let base = match kind {
            "relay" => format!("base_url = \"http://{name}.test\"\n"),
            _ => String::new(),
        };
        self.toml += &format!(
            "[[upstream]]\nname = \"{name}\"\nkind = \"{kind}\"\n{base}api_key_file = \"{}\"\n{more}\n",
            key.display()
        );
        self
    }
}

/// A simulated Google at which each of these keys has a project of its own.
fn of_projects<const N: usize>(names: [&str; N]) -> Builder {
    let sim = Sim::builder().tiny_images(true).latency(Latency::none());
    names.into_iter().fold(sim, |sim, name| sim.project(format!("key-of-{name}"), name))
}

impl Drop for Tokens {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_names_its_upstream_attempts_cap_and_what_it_must_keep() {
    let target =
        |model: &str, more: &str| format!("[[fallback.target]]\nmodel = \"{model}\"\n{more}");
    let (pro, flash) = ("gemini-3-pro-image", "gemini-3.1-flash-image");
    let chain = [
        target(pro, "attempts = 2\nretry = \"exponential_1s_x2\"\n"),
        target(flash, "size_cap = \"1K\"\nmust_keep = [\"size\"]\n"),
        target(pro, "upstream = \"vertex\"\nattempts = 1\n"),
        target(flash, "upstream = \"relay\"\nsize_cap = \"2K\"\n"),
    ];
    let file = Tokens::new(&format!("[fallback]\nwait = false\n{}", chain.concat()))
        .upstream("google", "gemini", "")
        .upstream("vertex", "vertex", "")
        .upstream("relay", "relay", "");
    let overloads = (0..3).map(|_| Fault::Overloaded);
    let sim = of_projects(["google", "vertex", "relay"]).script(overloads).build();
    let answer = handle(gateway(&sim, &file.toml), Instant::now(), asking(0, pro, "4K")).await;
    assert_eq!(answer.status(), 200);
    let ledger = sim.ledger();
    let sends: Vec<_> =
        ledger.requests().iter().map(|sent| (&*sent.model, &*sent.project)).collect();
    assert_eq!(
        sends,
        [(pro, "google"), (pro, "google"), (pro, "vertex"), (flash, "relay")],
        "the second target would cost the size"
    );
    assert_eq!(answer.headers()["x-gemini-upstream"], "relay.test");
    assert_eq!(
        answer.headers()["x-gemini-degraded"],
        "model gemini-3-pro-image -> gemini-3.1-flash-image, size 4K -> 2K"
    );
}

#[tokio::test(start_paused = true)]
async fn a_model_that_is_gone_is_followed_without_any_other_fallback_where_the_file_says_so() {
    for (more, status) in [("", 404), ("[fallback]\nsuccessors = true\n", 200)] {
        let sim = Sim::builder()
            .tiny_images(true)
            .retire("gemini-3-pro-image", "gemini-3.1-flash-image")
            .build();
        let answer =
            handle(gateway(&sim, more), Instant::now(), asking(0, "gemini-3-pro-image", "1K"))
                .await;
        assert_eq!(answer.status().as_u16(), status, "{more}");
    }
}

// Two keys of one project doubled its quota in silence.
#[tokio::test(start_paused = true)]
async fn keys_of_one_project_share_its_quota_and_projects_have_their_own() {
    for (projects, admitted) in [(["p", "p"], 5), (["p", "q"], 10)] {
        let of = |at: usize| format!("project = \"{}\"\n", projects[at]);
        let file = Tokens::new("[quota]\nrpm = 5\nlongest_wait = \"1s\"\n")
            .upstream("a", "gemini", &of(0))
            .upstream("b", "gemini", &of(1));
        let (sim, started) = (Sim::quick([]), Instant::now());
        let gateway = gateway(&sim, &file.toml);
        let calls = (0..20)
            .map(|n| handle(gateway.clone(), started, asking(n, "gemini-3-pro-image", "1K")));
        let minute = Duration::from_secs(59);
        let _ = tokio::time::timeout(minute, futures::future::join_all(calls)).await;
        assert_eq!(sim.requests(), admitted, "{projects:?}");
    }
}

// Two projects with different quotas, one of which Google closes in the middle.
#[tokio::test(start_paused = true)]
async fn a_pool_uses_every_quota_passes_none_and_loses_nothing_when_a_project_is_closed() {
    let quota = |rpm, rpd| Quota { rpm: Some(rpm), rpd: Some(rpd), ..Quota::UNLIMITED };
    let file = Tokens::new("")
        .upstream("small", "gemini", "quota = { rpm = 10, rpd = 200 }")
        .upstream("large", "gemini", "quota = { rpm = 30, rpd = 600 }");
    let closes = Duration::from_secs(15 * 60);
    let sim = of_projects(["small", "large"])
        .quota_of_project("small", quota(10, 200))
        .quota_of_project("large", quota(30, 600))
        .reject_key_from(closes, "key-of-small")
        .build();
    let (gateway, started) = (gateway(&sim, &file.toml), Instant::now());
    // 40 a minute fill both minutes. What comes after a project is closed fits the other one.
    let every = |second: u64| Duration::from_millis(if second < 15 * 60 { 1_490 } else { 2_100 });
    let mut at = Duration::ZERO;
    let calls = (0..680).map(|n| {
        let (gateway, after) = (gateway.clone(), at);
        at += every(at.as_secs());
        async move {
            tokio::time::sleep(after).await;
            let answer = handle(gateway, started, asking(n, "gemini-3-pro-image", "1K")).await;
            answer.status().as_u16()
        }
    });
    let answers = futures::future::join_all(calls.collect::<Vec<_>>()).await;
    let ledger = sim.ledger();
    let of = |project: &'static str| {
        ledger.requests().iter().filter(move |sent| &*sent.project == project)
    };
    let delivered = answers.iter().filter(|status| **status == 200).count();
    let refused = ledger.requests().iter().filter(|sent| sent.status == Some(429)).count();
    let before = |sent: &&Record| sent.received_at < closes;
    let (small, large) = (of("small").filter(before).count(), of("large").filter(before).count());
    println!(
        "{delivered} of 680 delivered, {refused} refused by Google; until the project was closed: small {small} of 150, large {large} of 450"
    );
    assert_eq!((delivered, refused), (680, 0));
    assert!(small >= 143 && large >= 428, "at least 95 % of both");
    // Those that waited for its quota were on their way.
    let rests = closes + Duration::from_secs(120);
    let probes = of("small").filter(|sent| sent.received_at >= rests).count();
    assert!(probes <= 3, "a project that is closed rests: {probes} were sent to it");
}

#[tokio::test(start_paused = true)]
async fn a_file_of_models_adds_them_and_corrects_prices_and_dates_also_while_the_gateway_runs() {
    let file = Tokens::new("");
    let path = file.dir.join("models.toml");
    let write = |microusd: u32| {
        let text = format!(
            "[[model]]\nid = \"house-banana\"\nfamily = \"flash\"\nimages = true\nsizes = [\"1K\"]\n\
             tokens_per_image = {{ \"1K\" = 1120 }}\n\
             [[model.price]]\nplatform = \"gemini-api\"\nsource = \"ours\"\nas_of = \"2026-11-01\"\n\
             per_image_microusd = {{ \"1K\" = {microusd} }}\n"
        );
        std::fs::write(&path, text).unwrap();
    };
    write(90_000);
    let toml = format!(
        "[catalog]\nfile = \"{}\"\n[fallback]\nmodels = [\"house-banana\"]\n[spending]\nper_call = 0.1\n",
        path.display()
    );
    let config = Config::parse(&toml, "gateway.toml").unwrap();
    let sim = Sim::quick([]);
    let before = Arc::new(Snapshot::over(sim.service(), clock(), &config, None).unwrap());
    let status = |gateway: Arc<Snapshot>| async {
        handle(gateway, Instant::now(), asking(0, "house-banana", "1K")).await.status().as_u16()
    };
    assert_eq!(status(before.clone()).await, 404, "it was sent, and this Gemini does not know it");
    let listed = Request::get("/v1/models").body(Body::empty()).unwrap();
    let listed = handle(before.clone(), Instant::now(), listed).await.into_body();
    let listed = listed.collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&listed).contains("house-banana"));
    assert!(before.layers().stats.asked_models().contains("house-banana"), "by its name");
    write(110_000);
    let after = Snapshot::over(sim.service(), clock(), &config, Some(&before)).unwrap();
    assert_eq!(status(Arc::new(after)).await, 402, "it costs more than its cap now");
    for (text, says) in [
        ("[[model]]\nid = 1\n", "line 2 of the model catalogue"),
        ("", "the model \"house-banana\" is not known"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Snapshot::over(sim.service(), clock(), &config, Some(&before)).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

// Statistics and observations knew the built-in models only: all others were one, "other".
#[tokio::test(start_paused = true)]
async fn a_model_that_a_reload_adds_is_counted_and_observed_by_its_name() {
    let file = Tokens::new("");
    let (path, seen) = (file.dir.join("models.toml"), file.dir.join("seen.csv"));
    let toml = format!(
        "[catalog]\nfile = \"{}\"\n[log]\nobservations = \"{}\"\n",
        path.display(),
        seen.display()
    );
    std::fs::write(&path, "").unwrap();
    let config = Config::parse(&toml, "gateway.toml").unwrap();
    let sim = Sim::quick([]);
    let before = Arc::new(Snapshot::over(sim.service(), clock(), &config, None).unwrap());
    let names = |gateway: Arc<Snapshot>| async move {
        handle(gateway.clone(), Instant::now(), asking(0, "house-banana", "1K")).await;
        gateway.layers().stats.asked_models().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names(before.clone()).await, ["other"]);
    let model = "[[model]]\nid = \"house-banana\"\nfamily = \"flash\"\nimages = true\n";
    std::fs::write(&path, model).unwrap();
    let after = Snapshot::over(sim.service(), clock(), &config, Some(&before)).unwrap();
    assert_eq!(names(Arc::new(after)).await, ["house-banana", "other"]);
    let seen = std::fs::read_to_string(&seen).unwrap();
    let models: Vec<_> = seen.lines().skip(1).map(|line| line.split(',').nth(1).unwrap()).collect();
    assert_eq!(models, ["other", "house-banana"]);
}

// A call that the upstream sent on to another model looked like what had been asked for.
#[tokio::test(start_paused = true)]
async fn a_response_of_another_model_than_the_one_it_was_sent_to_says_so() {
    let (old, new) = ("gemini-2.5-flash-image", "gemini-3.1-flash-image");
    let toml = "[responses]\nreport_headers = true\n[fallback]\nsuccessors = true\n";
    for (model, method, is_other) in [
        (old, "generateContent", true),
        (old, "streamGenerateContent?alt=sse", true),
        (new, "generateContent", false),
    ] {
        let sim = Sim::quick([Fault::Rerouted { named: true }]);
        let gateway = gateway(&sim, toml);
        let mut request = asking(0, model, "1K");
        *request.uri_mut() = format!("/v1beta/models/{model}:{method}").parse().unwrap();
        let answer = handle(gateway.clone(), Instant::now(), request).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["x-gemini-model"], new, "{method}");
        let degraded = answer.headers().get("x-gemini-degraded").map(|it| it.to_str().unwrap());
        let expected = format!("model {old} -> {new}");
        assert_eq!(degraded, is_other.then_some(&*expected), "{method}");
        answer.into_body().collect().await.unwrap();
        let report = gateway.layers().stats.report();
        assert_eq!(report.total.degraded, u64::from(is_other));
        assert!(gateway.layers().stats.asked_models().contains(new));
        assert!(report.total.cost.contains(sim.totals().cost_microusd), "{}", report.total.cost);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_openais_form_says_what_was_drawn() {
    let chat = r#"{"model":"MODEL","messages":[{"role":"user","content":"an apple"}]}"#;
    let images = r#"{"model":"MODEL","prompt":"an apple"}"#;
    let (old, new) = ("gemini-2.5-flash-image", "gemini-3.1-flash-image");
    for (path, body) in [("/v1/chat/completions", chat), ("/v1/images/generations", images)] {
        for (fault, drawn_by) in [(Fault::None, old), (Fault::Rerouted { named: true }, new)] {
            let sim = Sim::quick([fault]);
            let request = Request::post(path)
                .header("authorization", "Bearer a-token-of-a-caller")
                .header("content-type", "application/json")
                .body(Body::from(body.replace("MODEL", old)))
                .unwrap();
            let answer = handle(gateway(&sim, ""), Instant::now(), request).await;
            let is_degraded = answer.headers().contains_key("x-gemini-degraded");
            assert_eq!((answer.status().as_u16(), is_degraded), (200, drawn_by == new), "{path}");
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            let answer: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(answer["model"], drawn_by, "{path}");
            let image = answer.pointer("/choices/0/message/images/0").unwrap_or(&answer);
            // The simulator's small images: a sixty-fourth of each side.
            assert_eq!(image["size"], "16x16", "{path}");
        }
    }
}

/// Google, and another vendor at `vendor.test` or `images.vendor.example`.
fn with_vendor(google: &Sim, vendor: &Sim, toml: &str) -> Arc<Snapshot> {
    let (google, vendor) = (google.clone(), vendor.clone());
    let client = tower::service_fn(move |request: Request<WireBody>| {
        let is_vendors = request.uri().host().is_some_and(|host| host.contains("vendor"));
        let sim = if is_vendors { &vendor } else { &google };
        sim.service().oneshot(request)
    });
    let config = Config::parse(toml, "gateway.toml").unwrap_or_else(|error| panic!("{error}"));
    Arc::new(Snapshot::over(client, clock(), &config, None).unwrap())
}

fn vendor_config(more: &str) -> Tokens {
    let file = Tokens::new("");
    let models = file.dir.join("models.toml");
    std::fs::copy(
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/configs/other-vendor-models.toml"),
        &models,
    )
    .unwrap();
    let target = "[[fallback.target]]\nmodel = \"gemini-3-pro-image\"\n[[fallback.target]]\nmodel = \"their-image-1\"\nupstream = \"vendor\"\n";
    let catalog = format!("[catalog]\nfile = \"{}\"\n", models.display());
    let mut file = file.upstream("google", "gemini", "").upstream(
        "vendor",
        "openai",
        "base_url = \"http://vendor.test/v1\"\n",
    );
    file.toml += &format!("{catalog}[fallback]\nwait = false\n{more}{target}");
    file
}

#[tokio::test(start_paused = true)]
async fn another_vendor_draws_as_a_last_resort_and_both_ledgers_and_the_caller_know() {
    let vendor = || Sim::builder().tiny_images(true).latency(Latency::none()).build();
    for stream in ["generateContent", "streamGenerateContent?alt=sse", "streamGenerateContent"] {
        let (google, vendor) = (Sim::quick((0..9).map(|_| Fault::Overloaded)), vendor());
        let file = vendor_config("");
        let gateway = with_vendor(&google, &vendor, &file.toml);
        let mut request = asking(0, "gemini-3-pro-image", "4K");
        *request.uri_mut() = format!("/v1beta/models/gemini-3-pro-image:{stream}").parse().unwrap();
        let answer = handle(gateway, Instant::now(), request).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(
            answer.headers()["x-gemini-degraded"],
            "model gemini-3-pro-image -> their-image-1, vendor google -> vendor, size 4K -> 1K"
        );
        assert_eq!(answer.headers()["x-gemini-upstream"], "vendor.test");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&body);
        assert!(text.contains("inlineData") && text.contains("their-image-1"), "{text}");
        assert_eq!((google.totals().charged, vendor.totals().charged), (0, 1), "{stream}");
        let ledger = vendor.ledger();
        assert_eq!(&*ledger.requests()[0].model, "their-image-1");
    }
}

#[tokio::test(start_paused = true)]
async fn the_other_vendor_of_the_examples_draws_when_all_models_of_google_fail() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/configs");
    let text = std::fs::read_to_string(format!("{dir}/other-vendor.toml")).unwrap();
    let keys = Tokens::new("").upstream("google", "gemini", "").upstream("vendor", "openai", "");
    let file = |name: &str| keys.dir.join(name).display().to_string();
    // Only its keys and paths are of another machine.
    let toml = text
        .replace("env = \"GEMINI_API_KEY\"", &format!("file = \"{}\"", file("google")))
        .replace("env = \"VENDOR_API_KEY\"", &format!("file = \"{}\"", file("vendor")))
        .replace("/run/secrets/tokens", &file("tokens"))
        .replace("other-vendor-models.toml", &format!("{dir}/other-vendor-models.toml"));
    let (google, vendor) = (Sim::quick((0..2).map(|_| Fault::Overloaded)), Sim::quick([]));
    let gateway = with_vendor(&google, &vendor, &toml);
    let answer = handle(gateway, Instant::now(), asking(0, "gemini-3-pro-image", "1K")).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(asked(&google), ["gemini-3-pro-image", "gemini-3.1-flash-image"]);
    assert_eq!(asked(&vendor), ["their-image-1"]);
    assert_eq!(
        answer.headers()["x-gemini-degraded"],
        "model gemini-3-pro-image -> their-image-1, vendor google -> vendor"
    );
}

#[tokio::test(start_paused = true)]
async fn no_edit_conversation_text_or_call_that_keeps_its_vendor_goes_to_another() {
    let image = r#"{"inlineData":{"mimeType":"image/png","data":"iVBORw0KGgo="}}"#;
    let edit = format!(r#"{{"contents":[{{"parts":[{{"text":"blue"}},{image}]}}]}}"#);
    let turns = r#"{"contents":[{"role":"user","parts":[{"text":"a"}]},{"role":"model","parts":[{"text":"b"}]},{"role":"user","parts":[{"text":"c"}]}]}"#;
    let plain = r#"{"contents":[{"parts":[{"text":"a red apple"}]}]}"#;
    let text = r#"{"contents":[{"parts":[{"text":"2+2?"}]}],"generationConfig":{"responseModalities":["TEXT"]}}"#;
    let never = [edit.as_str(), turns, text].map(|body| ("", body));
    for (more, body) in never.into_iter().chain([("keep_vendor = true\n", plain)]) {
        let (google, vendor) = (Sim::quick((0..9).map(|_| Fault::Overloaded)), Sim::quick([]));
        let file = vendor_config(more);
        let gateway = with_vendor(&google, &vendor, &file.toml);
        let request = asking(0, "gemini-3-pro-image", "1K").map(|_| Body::from(body.to_owned()));
        let answer = handle(gateway, Instant::now(), request).await;
        assert_eq!(answer.status(), 503, "{body}");
        assert_eq!(vendor.requests(), 0, "{body}");
    }
}

// A vendor may stand behind Google's own front end, or speak like it: its failures were called free,
// and sent again.
#[tokio::test(start_paused = true)]
async fn no_words_of_another_vendors_server_make_its_failure_free() {
    let googles = r#"{"error":{"code":503,"message":"overloaded","status":"UNAVAILABLE"}}"#;
    assert_eq!(by_vendor(503, googles).await, (424, 1));
    assert_eq!(by_vendor(200, googles).await.1, 1);
    for fault in [Fault::BadGatewayHtml, Fault::Overloaded, Fault::Internal] {
        let google = Sim::quick((0..9).map(|_| Fault::Overloaded));
        let (vendor, file) = (Sim::quick([fault.clone()]), vendor_config(""));
        let gateway = with_vendor(&google, &vendor, &file.toml);
        let answer = handle(gateway, Instant::now(), asking(0, "gemini-3-pro-image", "1K")).await;
        assert_eq!((answer.status().as_u16(), vendor.requests()), (424, 1), "{fault:?}");
    }
}

/// What a caller gets, and how often a vendor is asked that always answers so, where Google is down.
async fn by_vendor(status: u16, body: &'static str) -> (u16, usize) {
    let (google, sent) =
        (Sim::quick((0..9).map(|_| Fault::Overloaded)), Arc::new(AtomicUsize::new(0)));
    let count = sent.clone();
    let client = tower::service_fn(move |request: Request<WireBody>| {
        let (google, is_vendors) = (google.service(), request.uri().host() == Some("vendor.test"));
        count.fetch_add(usize::from(is_vendors), Ordering::Relaxed);
        async move {
            if is_vendors {
                return Ok(Response::builder().status(status).body(Body::from(body)).unwrap());
            }
            google.oneshot(request).await.map(|response| response.map(Body::new))
        }
    });
    let file = vendor_config("");
    let config = Config::parse(&file.toml, "gateway.toml").unwrap();
    let gateway = Arc::new(Snapshot::over(client, clock(), &config, None).unwrap());
    let answer = handle(gateway, Instant::now(), asking(0, "gemini-3-pro-image", "1K")).await;
    (answer.status().as_u16(), sent.load(Ordering::Relaxed))
}

// What a vendor's failing server cost is not known: it is not Google, whose errors are free.
#[tokio::test(start_paused = true)]
async fn what_another_vendors_server_fails_at_is_sent_once() {
    let error = r#"{"error":{"message":"The server had an error","type":"server_error"}}"#;
    assert_eq!(by_vendor(500, error).await, (424, 1));
}

/// Google without capacity, and another vendor at the same address, which gives this response.
/// Returns what the caller gets and what the vendor got.
async fn at_one_address(
    vendors: Response<Body>,
) -> (http::response::Parts, Result<Bytes, axum::Error>, Vec<http::request::Parts>) {
    let (vendors, got) = (Arc::new(Mutex::new(Some(vendors))), Arc::new(Mutex::new(Vec::new())));
    let (response, heads) = (vendors, got.clone());
    let client = tower::service_fn(move |request: Request<WireBody>| {
        let (response, heads) = (response.clone(), heads.clone());
        async move {
            let (parts, body) = request.into_parts();
            body.collect().await.unwrap();
            if parts.uri.path().contains("/gemini/") {
                let error = r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
                return Ok(Response::builder().status(503).body(Body::from(error)).unwrap());
            }
            heads.lock().unwrap().push(parts);
            Ok::<_, std::io::Error>(response.lock().unwrap().take().unwrap())
        }
    });
    let file = vendor_config("");
    let toml = file.toml.replace(
        "kind = \"gemini\"\n",
        "kind = \"relay\"\nbase_url = \"http://vendor.test/gemini\"\n",
    );
    let config = Config::parse(&toml, "gateway.toml").unwrap_or_else(|error| panic!("{error}"));
    let gateway = Arc::new(Snapshot::over(client, clock(), &config, None).unwrap());
    let mut request = asking(0, "gemini-3-pro-image", "1K");
    for name in ["cookie", "x-goog-api-client", "user-agent", "x-goog-user-project"] {
        request.headers_mut().insert(name, "of-the-caller".parse().unwrap());
    }
    let (parts, body) = handle(gateway, Instant::now(), request).await.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes());
    let got = std::mem::take(&mut *got.lock().unwrap());
    (parts, body, got)
}

const VENDORS_IMAGE: &str = r#"{"data":[{"b64_json":"iVBORw0KGgo="}]}"#;

// Relays serve both APIs under one name: the vendor's key went to the relay with Gemini's request.
#[tokio::test(start_paused = true)]
async fn another_vendor_at_the_address_of_a_relay_gets_its_own_api_and_nothing_of_the_caller() {
    let (parts, body, got) = at_one_address(Response::new(Body::from(VENDORS_IMAGE))).await;
    assert_eq!(parts.status, 200);
    assert!(String::from_utf8_lossy(&body.unwrap()).contains("inlineData"));
    let [got] = &*got else { panic!("{got:?}") };
    assert_eq!(got.uri, "http://vendor.test/v1/images/generations");
    assert!(got.headers.contains_key("authorization"));
    assert!(!format!("{:?}", got.headers).contains("of-the-caller"), "{:?}", got.headers);
}

#[tokio::test(start_paused = true)]
async fn an_encoded_image_of_another_vendor_is_delivered_and_its_account_is_told_to_nobody() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut gzip, VENDORS_IMAGE.as_bytes()).unwrap();
    let response = Response::builder()
        .header("content-encoding", "gzip")
        .header("openai-organization", "of-the-owner")
        .header("location", "http://of-the-owner.test/")
        .body(Body::from(gzip.finish().unwrap()));
    let (parts, body, _) = at_one_address(response.unwrap()).await;
    assert!(String::from_utf8_lossy(&body.unwrap()).contains("inlineData"));
    assert!(!format!("{:?}", parts.headers).contains("of-the-owner"), "{:?}", parts.headers);
}

#[tokio::test(start_paused = true)]
async fn what_another_vendor_breaks_off_is_an_error_and_what_came_whole_is_delivered() {
    let cut = |came: &'static str| {
        let frames = [Ok(Bytes::from(came)), Err(std::io::Error::other("reset"))];
        Response::new(Body::from_stream(futures::stream::iter(frames)))
    };
    let (parts, body, got) = at_one_address(cut(r#"{"data":[{"b64_json":"iV"#)).await;
    assert!(!parts.status.is_success() || body.is_err(), "{} {body:?}", parts.status);
    assert_eq!(got.len(), 1);
    let (parts, body, _) = at_one_address(cut(VENDORS_IMAGE)).await;
    assert_eq!(parts.status, 200);
    assert!(String::from_utf8_lossy(&body.unwrap()).contains("inlineData"));
}

/// The most that a 1K image of Pro costs without drafts, and what it does cost.
const DRAFTLESS: &str = "[spending]\nassume_drafts = 0\n";
const IMAGE_USD: f64 = 0.134;

#[tokio::test(start_paused = true)]
async fn a_pool_passes_over_a_member_whose_budget_is_used_up_and_loses_nothing() {
    let latency = Duration::from_secs(2);
    let file = Tokens::new(DRAFTLESS)
        .upstream("small", "gemini", "budget = { per_day = 1.0 }")
        .upstream("large", "gemini", "");
    let sim = of_projects(["small", "large"]).latency(Latency::fixed(latency)).build();
    let (gateway, started) = (gateway(&sim, &file.toml), Instant::now());
    // Forty at once, and as many one after the other.
    let ask = |n| handle(gateway.clone(), started, asking(n, "gemini-3-pro-image", "1K"));
    let first = futures::future::join_all((0..40).map(ask)).await;
    assert!(started.elapsed() < latency * 2, "none waits while another upstream can take it");
    let mut statuses: Vec<_> = first.iter().map(|answer| answer.status().as_u16()).collect();
    for answer in first {
        answer.into_body().collect().await.unwrap();
    }
    for n in 40..80 {
        let answer = ask(n).await;
        statuses.push(answer.status().as_u16());
        answer.into_body().collect().await.unwrap();
    }
    assert_eq!(statuses, [200; 80]);
    let ledger = sim.ledger();
    let of =
        |project: &str| ledger.requests().iter().filter(|one| &*one.project == project).count();
    let (small, large) = (of("small"), of("large"));
    assert_eq!(small + large, 80, "nothing is sent twice");
    // The last image that fits is one whose worst case does.
    assert!((5..=7).contains(&small), "{small}");
    assert!(small as f64 * IMAGE_USD <= 1.0, "{small}");
    let (_, spent) = gateway.layers().budgets.spent().next().unwrap();
    assert_eq!((spent[0].images, spent[0].reserved.at_most_microusd), (small as u64, 0));
}

#[tokio::test(start_paused = true)]
async fn a_budget_refuses_where_there_is_no_other_upstream_and_moves_no_call_to_another_model() {
    let chain = "[fallback]\nmodels = [\"gemini-3-pro-image\", \"gemini-3.1-flash-image\"]\n";
    for chain in ["", chain] {
        let file = Tokens::new(&format!("{DRAFTLESS}{chain}")).upstream(
            "only",
            "gemini",
            "budget = { per_day = 0.5 }",
        );
        let sim = of_projects(["only"]).latency(Latency::fixed(Duration::from_secs(2))).build();
        let (gateway, started) = (gateway(&sim, &file.toml), Instant::now());
        // What running attempts have reserved is waited for.
        let calls = (0..6).map(|n| {
            let gateway = gateway.clone();
            async move {
                let answer = handle(gateway, started, asking(n, "gemini-3-pro-image", "1K")).await;
                let status = answer.status().as_u16();
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                (status, String::from_utf8_lossy(&body).into_owned())
            }
        });
        let answers = futures::future::join_all(calls).await;
        let refused: Vec<_> = answers.iter().filter(|(status, _)| *status != 200).collect();
        let sent = sim.requests();
        assert!((2..=3).contains(&sent) && refused.len() == 6 - sent, "{chain}: {sent} sent");
        for (status, text) in refused {
            assert_eq!((*status, text.contains("of the budget of only")), (429, true), "{text}");
            assert!(text.contains("SPENDING_CAP"), "{text}");
        }
        let ledger = sim.ledger();
        assert!(ledger.requests().iter().all(|one| &*one.model == "gemini-3-pro-image"), "{chain}");
    }
}

#[test]
fn a_budget_that_lets_no_image_pass_or_is_no_money_is_refused_at_start() {
    let pro = "[fallback]\nmodels = [\"gemini-3-pro-image\"]\n";
    let build = |budget: &str| {
        let upstream = "[[upstream]]\nname = \"g\"\nkind = \"gemini\"\n";
        let config = Config::parse(&format!("{upstream}budget = {{ {budget} }}\n{pro}"), "g.toml")?;
        Snapshot::build(&config, None)
    };
    for (budget, says) in [
        (
            "per_day = 1.0",
            "the budget of upstream \"g\": the cap of $1.0000 at most a day is below",
        ),
        ("total = -1.0", "the budget of upstream \"g\".total = -1 is not an amount of money"),
        ("per_hour = 5.0", "per_hour"),
    ] {
        let error = build(budget).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    build("per_day = 2.0, per_month = 20.0, total = 0.0").unwrap();
}
