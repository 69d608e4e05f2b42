//! What a gateway keeps over its own end: over a restart, and over a kill -9 of the program.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod common;

use common::{Gateway, Redis, Scratch};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower_gemini_gateway::Running;
use tower_gemini_sim::{ServeHandle, Sim, serve};

async fn upstream() -> (Sim, ServeHandle) {
    let sim = Sim::quick([]);
    (sim.clone(), serve(sim, ([127, 0, 0, 1], 0).into()).await.unwrap())
}

/// A cap a month that the worst case of three images reaches, with the drafts assumed away.
/// A killed process's reservation counts for half an hour, and calls wait for it: not here for longer
/// than ten seconds.
fn config(upstream: &ServeHandle, server: &str) -> String {
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n{server}\n[[upstream]]\nname = \"sim\"\nkind = \"relay\"\n\
         base_url = \"{}\"\ncharge_rules = \"google\"\n[spending]\nper_month = 0.5\nassume_drafts = 0\n\
         [retry]\ndeadline = \"10s\"\n",
        upstream.url()
    )
}

/// Asks for an image: the status, and the body.
async fn ask(addr: &str, prompt: usize) -> (u16, String) {
    let body = format!(r#"{{"contents":[{{"parts":[{{"text":"apple {prompt}"}}]}}]}}"#);
    let request = format!(
        "POST /v1beta/models/gemini-3-pro-image:generateContent HTTP/1.1\r\nhost: {addr}\r\n\
         x-goog-api-key: AIzaSyA-state-key-0123456789abcdefghijk\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer)
}

/// Asks until the cap refuses, and says how many images came.
async fn spend(addr: &str, first: usize) -> usize {
    for n in 0..20 {
        let (status, answer) = ask(addr, first + n).await;
        if status != 200 {
            assert!(answer.contains("SPENDING_CAP"), "{answer}");
            return n;
        }
    }
    panic!("the cap refuses nothing");
}

// Three restarts passed a monthly cap.
#[tokio::test]
async fn a_cap_holds_over_restarts() {
    let (scratch, (sim, upstream)) = (Scratch::new("restart"), upstream().await);
    let dir = scratch.0.join("state");
    let config = config(&upstream, &format!("state_dir = {dir:?}"));
    let mut images = Vec::new();
    for start in 0..3 {
        let gateway = tower_gemini_gateway::start(&config).await.unwrap();
        let addr = gateway.url().trim_start_matches("http://").to_owned();
        images.push(spend(&addr, 100 * start).await);
        // Settled at the end: none of them counts as its worst case.
        assert_eq!(gateway.shutdown().await, 0);
    }
    assert!(images[0] > 0, "{images:?}");
    assert_eq!(images[1..], [0, 0], "{images:?}");
    assert_eq!(sim.totals().charged, images[0]);
}

/// In token mode, with `ask`'s key as Ann's token and another one as Ben's.
fn token_config(scratch: &Scratch, upstream: &str, server: &str, limits: &str) -> String {
    let (tokens, key) = (scratch.0.join("tokens"), scratch.0.join("key"));
    std::fs::write(&key, "AIzaSyA-key-of-the-gateway-0123456789ab").unwrap();
    // The digest of `ask`'s key.
    let hash = "sha256:24db363867ad4223a42f0aed8dfcd1cf6600a93ceae9376a1f48754b0335ee2b";
    // The digest of `token-of-ben-0123456`.
    let ben = "sha256:014172bf04dfb067d94d8e642c851870a37e77da8970fecf849716a41d12488c";
    let list = format!(
        "[[token]]\nname = \"ann\"\nhash = \"{hash}\"\n{limits}\n[[token]]\nname = \"ben\"\n\
         hash = \"{ben}\"\n"
    );
    std::fs::write(&tokens, list).unwrap();
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n{server}\n[[upstream]]\nname = \"sim\"\n\
         kind = \"relay\"\nbase_url = \"{upstream}\"\ncharge_rules = \"google\"\n\
         api_key_file = {key:?}\n[auth]\nmode = \"tokens\"\ntokens_file = {tokens:?}\n"
    )
}

async fn start(config: &str) -> (Running, String) {
    let gateway = tower_gemini_gateway::start(config).await.unwrap();
    let addr = gateway.url().trim_start_matches("http://").to_owned();
    (gateway, addr)
}

#[tokio::test]
async fn the_budget_of_a_token_holds_over_restarts() {
    let (scratch, (_, upstream)) = (Scratch::new("token"), upstream().await);
    let state = format!("state_dir = {:?}", scratch.0.join("state"));
    let config = token_config(&scratch, &upstream.url(), &state, "usd_per_month = 2.0");
    let mut images = Vec::new();
    for run in 0..2 {
        let (gateway, addr) = start(&config).await;
        images.push(spend(&addr, 100 * run).await);
        assert_eq!(gateway.shutdown().await, 0);
    }
    assert!(images[0] > 0 && images[1] == 0, "{images:?}");
}

// A restart gave each token another day.
#[tokio::test]
async fn the_calls_of_a_tokens_day_are_counted_over_restarts() {
    let (scratch, (_, upstream)) = (Scratch::new("day"), upstream().await);
    let state = format!("state_dir = {:?}", scratch.0.join("state"));
    let config = token_config(&scratch, &upstream.url(), &state, "rpd = 3");
    let mut statuses = Vec::new();
    for run in 0..3 {
        let (gateway, addr) = start(&config).await;
        for call in 0..2 {
            statuses.push(ask(&addr, 10 * run + call).await.0);
        }
        assert_eq!(gateway.shutdown().await, 0);
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429, 429]);
}

/// `/status.json` without what is of a moment.
async fn figures(addr: &str) -> Value {
    let mut status = common::status(addr).await;
    for key in ["at_unix_seconds", "uptime_seconds", "recent_calls", "load", "diagnosis"] {
        assert!(status[key].take() != Value::Null, "{key}");
    }
    status["last_hour"]["start_unix_seconds"].take();
    for caller in status["callers"].as_array_mut().into_iter().flatten() {
        for limit in caller["limits"].as_array_mut().into_iter().flatten() {
            limit["resets_in_seconds"].take();
        }
    }
    status
}

#[tokio::test]
async fn figures_before_a_restart_equal_those_after() {
    let (scratch, (_, upstream)) = (Scratch::new("figures"), upstream().await);
    let state = format!("state_dir = {:?}", scratch.0.join("state"));
    let limits = "usd_per_month = 2.0\nrpd = 50";
    let config = token_config(&scratch, &upstream.url(), &state, limits);
    let config = config.replace(
        "charge_rules",
        "budget = { per_month = 50.0 }\nquota = { rpd = 900 }\ncharge_rules",
    );
    let (gateway, addr) = start(&config).await;
    // The last call is refused: then everything before it is settled, and known to be.
    let images = spend(&addr, 0).await;
    common::until(async || {
        let status = common::status(&addr).await;
        status["callers"][0]["spending"][0]["reserved_at_most_microusd"] == 0
    })
    .await;
    let before = figures(&addr).await;
    assert_eq!(before["total"]["images"], images);
    assert_eq!(before["callers"][0]["limits"][0]["used"], images + 1, "{before}");
    assert_eq!(before["callers"][0]["spending"][1]["rejected_attempts"], 1, "{before}");
    assert_eq!(gateway.shutdown().await, 0);

    let (gateway, addr) = start(&config).await;
    // Both are heard from the store, one after the other.
    common::until(async || {
        let now = figures(&addr).await;
        now["callers"] == before["callers"] && now["budgets"][0]["spending"][1]["images"] == images
    })
    .await;
    let mut after = figures(&addr).await;
    // Quotas are shown once they are asked for, and the store was asked for this one meanwhile.
    assert_eq!(after["quotas"].take().as_array().map(Vec::len), Some(0));
    let mut expected = before.clone();
    expected["quotas"].take();
    // What was spent there was last heard before the end of the last attempt.
    let (was, is) = (expected["budgets"].take(), after["budgets"].take());
    assert_eq!(is[0]["upstream"], was[0]["upstream"]);
    assert_eq!(after, expected);
    // A further call adds to them.
    assert_eq!(ask(&addr, 900).await.0, 429);
    let later = common::status(&addr).await;
    assert_eq!(later["total"]["calls"], images + 2);
    assert_eq!(later["callers"][0]["limits"][0]["used"], images + 2);
    gateway.shutdown().await;
}

#[tokio::test]
async fn figures_that_cannot_be_saved_cost_no_call() {
    let (scratch, (_, upstream)) = (Scratch::new("unsaved"), upstream().await);
    let dir = scratch.0.join("state");
    // A directory in the place of the file stands for a disk that takes no more.
    std::fs::create_dir_all(dir.join("figures.unfinished")).unwrap();
    let config = config(&upstream, &format!("state_dir = {dir:?}"));
    let (gateway, addr) = start(&config).await;
    assert_eq!(ask(&addr, 0).await.0, 200);
    assert_eq!(gateway.shutdown().await, 0);
    assert!(!dir.join("figures").exists());
    let (gateway, addr) = start(&config).await;
    assert_eq!(common::status(&addr).await["total"]["calls"], 0);
    assert_eq!(ask(&addr, 0).await.0, 200);
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_kill_loses_no_more_figures_than_those_since_the_last_write() {
    let (scratch, (_, upstream)) = (Scratch::new("kill-figures"), upstream().await);
    let dir = scratch.0.join("state");
    let config = config(&upstream, &format!("state_dir = {dir:?}"));
    let program = Gateway::start(&scratch, &config);
    assert_eq!(ask(&program.addr, 0).await.0, 200);
    assert_eq!(ask(&program.addr, 1).await.0, 200);
    // The first write is due five seconds after the start.
    let written = async || {
        let figures = std::fs::read_to_string(dir.join("figures")).unwrap_or_default();
        figures.contains(r#"[{"call":{"ended":"success"}},2]"#)
    };
    common::until(written).await;
    program.kill();
    let program = Gateway::start(&scratch, &config);
    let status = program.status().await;
    assert_eq!((&status["total"]["calls"], &status["total"]["images"]), (&2.into(), &2.into()));
    program.kill();
}

#[tokio::test]
async fn the_budget_of_an_upstream_holds_over_restarts_and_the_other_gets_the_rest() {
    let scratch = Scratch::new("budget");
    let ((small, small_at), (large, large_at)) = (upstream().await, upstream().await);
    let state = format!("state_dir = {:?}", scratch.0.join("state"));
    let config = token_config(&scratch, &small_at.url(), &state, "");
    let budget = "budget = { per_month = 0.5 }\ncharge_rules";
    let pool = config.replace("charge_rules", budget);
    let (first, rest) = pool.split_once("[auth]").unwrap();
    let key = scratch.0.join("other-key");
    std::fs::write(&key, "AIzaSyA-other-key-of-the-gateway-0123456").unwrap();
    let config = format!(
        "{first}[[upstream]]\nname = \"large\"\nkind = \"relay\"\nbase_url = \"{}\"\n\
         charge_rules = \"google\"\napi_key_file = {key:?}\n[auth]{rest}\
         [spending]\nassume_drafts = 0\n",
        large_at.url()
    );
    let mut sent = Vec::new();
    for run in 0..3 {
        let (gateway, addr) = start(&config).await;
        let calls = (0..10).map(|n| ask(&addr, 100 * run + n));
        for (status, answer) in futures::future::join_all(calls).await {
            assert_eq!(status, 200, "{answer}");
        }
        assert_eq!(gateway.shutdown().await, 0);
        sent.push((small.totals().charged, large.totals().charged));
    }
    let of_small = sent[0].0;
    assert!((1..=3).contains(&of_small), "three images cost $0.402: {sent:?}");
    assert!(sent.iter().all(|(small, _)| *small <= 3), "{sent:?}");
    assert_eq!(sent[2].0 + sent[2].1, 30, "nothing is lost or sent twice: {sent:?}");
}

/// An upstream that creates a file `abc`, and has it.
async fn files() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                assert!(stream.read_buf(&mut head).await.unwrap() > 0);
            }
            let body = r#"{"file":{"name":"files/abc"}}"#;
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    url
}

async fn file(addr: &str, token: &str, method: &str, path: &str) -> u16 {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {addr}\r\nx-goog-api-key: {token}\r\n\
         connection: close\r\ncontent-length: 0\r\n\r\n"
    );
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

const ANN: &str = "AIzaSyA-state-key-0123456789abcdefghijk";
const BEN: &str = "token-of-ben-0123456";
const CREATE: (&str, &str) = ("POST", "/upload/v1beta/files");
const READ: (&str, &str) = ("GET", "/v1beta/files/abc");

#[tokio::test]
async fn what_a_token_created_is_its_own_after_a_restart() {
    let scratch = Scratch::new("owned");
    let state = format!("state_dir = {:?}", scratch.0.join("state"));
    let config = token_config(&scratch, &files().await, &state, "");
    let (gateway, addr) = start(&config).await;
    assert_eq!(file(&addr, ANN, READ.0, READ.1).await, 403, "nobody created it");
    assert_eq!(file(&addr, ANN, CREATE.0, CREATE.1).await, 200);
    assert_eq!(gateway.shutdown().await, 0);
    let (_gateway, addr) = start(&config).await;
    assert_eq!(file(&addr, ANN, READ.0, READ.1).await, 200);
    assert_eq!(file(&addr, BEN, READ.0, READ.1).await, 403);
}

#[tokio::test]
async fn gateways_on_one_redis_know_what_a_token_created_through_the_others() {
    let scratch = Scratch::new("owned-redis");
    let Some(redis) = Redis::start(&scratch).await else { return };
    gateways_know_what_a_token_created(&scratch, &redis.unix_url()).await;
}

#[tokio::test]
async fn gateways_on_one_postgres_know_what_a_token_created_through_the_others() {
    let Some(postgres) = test_programs::postgres::start() else { return };
    gateways_know_what_a_token_created(&Scratch::new("owned-postgres"), &postgres.url()).await;
}

async fn gateways_know_what_a_token_created(scratch: &Scratch, store: &str) {
    let store = format!("store = {store:?}");
    let config = token_config(scratch, &files().await, &store, "");
    let ((_one, one), (_other, other)) = (start(&config).await, start(&config).await);
    assert_eq!(file(&one, ANN, CREATE.0, CREATE.1).await, 200);
    assert_eq!(file(&other, ANN, READ.0, READ.1).await, 200);
    assert_eq!(file(&other, BEN, READ.0, READ.1).await, 403);
    // Created anew by Ben, elsewhere: it is Ann's nowhere.
    assert_eq!(file(&other, BEN, CREATE.0, CREATE.1).await, 200);
    assert_eq!(file(&one, BEN, READ.0, READ.1).await, 200);
    assert_eq!(file(&one, ANN, READ.0, READ.1).await, 403);
}

#[tokio::test]
async fn a_second_gateway_on_the_same_directory_is_refused() {
    let (scratch, (_, upstream)) = (Scratch::new("second"), upstream().await);
    let config = config(&upstream, &format!("state_dir = {:?}", scratch.0));
    let first = tower_gemini_gateway::start(&config).await.unwrap();
    let error = tower_gemini_gateway::start(&config).await.unwrap_err().to_string();
    assert!(error.contains("in use by another gateway"), "{error}");
    first.shutdown().await;
    tower_gemini_gateway::start(&config).await.unwrap().shutdown().await;
}

async fn a_kill_passes_no_cap(scratch: &Scratch, server: &str) {
    let (sim, upstream) = upstream().await;
    let config = config(&upstream, server);
    let program = Gateway::start(scratch, &config);
    let (status, answer) = ask(&program.addr, 0).await;
    assert_eq!(status, 200, "{answer}");
    program.kill();
    let program = Gateway::start(scratch, &config);
    let rest = spend(&program.addr, 100).await;
    program.kill();
    let program = Gateway::start(scratch, &config);
    assert_eq!(spend(&program.addr, 200).await, 0);
    // Whatever the kills left unsettled counts as more than it was, and never as less.
    assert!((1.0 + rest as f64) * 0.134 <= 0.5, "{rest}");
    assert_eq!(sim.totals().charged, 1 + rest);
}

#[tokio::test]
async fn a_kill_passes_no_cap_with_redb() {
    let scratch = Scratch::new("kill");
    let dir = scratch.0.join("state");
    a_kill_passes_no_cap(&scratch, &format!("state_dir = {dir:?}")).await;
}

#[tokio::test]
async fn a_kill_passes_no_cap_with_redis() {
    let scratch = Scratch::new("kill-redis");
    let Some(redis) = Redis::start(&scratch).await else { return };
    a_kill_passes_no_cap(&scratch, &format!("store = {:?}", redis.unix_url())).await;
}

#[tokio::test]
async fn a_kill_passes_no_cap_with_postgres() {
    let Some(postgres) = test_programs::postgres::start() else { return };
    let scratch = Scratch::new("kill-postgres");
    a_kill_passes_no_cap(&scratch, &format!("store = {:?}", postgres.url())).await;
}

#[tokio::test]
async fn the_password_of_a_postgres_is_in_no_log_and_no_error() {
    let Some(postgres) = test_programs::postgres::start() else { return };
    let (scratch, (_, upstream)) = (Scratch::new("password"), upstream().await);
    let url = |user: &str| postgres.url().replace("postgres@", &format!("{user}:pass-SENTINEL@"));
    let log = "\n[log]\nlevel = \"trace\"\n";
    let config = |user: &str| config(&upstream, &format!("store = {:?}", url(user)));
    let program = Gateway::start(&scratch, &format!("{}{log}", config("postgres")));
    assert_eq!(ask(&program.addr, 0).await.0, 200);
    program.kill();
    let lines = std::fs::read_to_string(scratch.0.join("log")).unwrap();
    assert!(lines.contains("DEBUG") && !lines.contains("SENTINEL"), "{lines}");

    let refused = tower_gemini_gateway::start(&config("nobody-at-all")).await.unwrap_err();
    let shown = format!("{refused} {refused:?}");
    assert!(shown.contains("nobody-at-all") && !shown.contains("SENTINEL"), "{shown}");
}
