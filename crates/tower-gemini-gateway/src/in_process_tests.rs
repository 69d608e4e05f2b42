//! The whole gateway but its sockets, in paused time: the simulator is its client in process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tower_gemini::body::WireBody;
use tower_gemini::calendar::PacificDay;
use tower_gemini::clock::{Clock, RuntimeClock, SystemClock};
use tower_gemini_sim::{Fault, Latency, Sim};

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
    let gateway = gateway(&sim, "[spending]\nper_hour = 0.2\nmode = \"expected\"\n");
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
fn asked(sim: &Sim) -> Vec<String> {
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
