//! The program, killed with SIGKILL at every step of a call: what was paid for is known to the next
//! process, or to another one on the same server, and nothing is paid twice.

#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test that cannot go on says where"
)]

mod common;

use std::time::Duration;

use common::{Gateway, Redis, Scratch, until};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::sleep;
use tower_gemini_sim::{Latency, Sim, serve};

const PRO: &str = "gemini-3-pro-image";
const TAG: &str = "call";
/// A drawing takes this long.
const DRAWING: Duration = Duration::from_millis(1_500);

fn start(dir: &Scratch, server: &str, upstream: &str) -> Gateway {
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n{server}\n[[upstream]]\nname = \"sim\"\n\
         kind = \"gemini\"\nbase_url = \"{upstream}\"\n",
    );
    Gateway::start(dir, &config)
}

fn headers(key: Option<&str>) -> String {
    let key = key.map(|key| format!("idempotency-key: {key}\r\n")).unwrap_or_default();
    format!("x-goog-api-key: k\r\nx-sim-call: {TAG}\r\n{key}")
}

async fn send(gateway: &Gateway, prompt: &str, key: Option<&str>) -> TcpStream {
    gateway.send(PRO, &headers(key), prompt).await
}

async fn ask(gateway: &Gateway, prompt: &str, key: Option<&str>) -> (u16, String) {
    gateway.ask(PRO, &headers(key), prompt).await
}

async fn stored(gateway: &Gateway, what: &str) -> u64 {
    gateway.status().await["stored"][what].as_u64().unwrap_or(u64::MAX)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Generating,
    CallerGone,
    Stored,
    Delivering,
    Replaying,
}

const STEPS: [Step; 5] =
    [Step::Generating, Step::CallerGone, Step::Stored, Step::Delivering, Step::Replaying];

/// Brings a call to this step. What is returned is open while the process is killed.
async fn bring_to(step: Step, gateway: &Gateway, sim: &Sim, key: Option<&str>) -> Vec<TcpStream> {
    let mut stream = send(gateway, "a red apple", key).await;
    until(async || sim.requests() == 1).await;
    match step {
        Step::Generating => vec![stream],
        Step::CallerGone => {
            drop(stream);
            // With a key a call is counted from its start.
            until(async || stored(gateway, "in_progress").await == 1).await;
            Vec::new()
        }
        Step::Stored | Step::Replaying => {
            drop(stream);
            match key {
                None => until(async || stored(gateway, "stored").await == 1).await,
                Some(_) => {
                    until(async || sim.ledger().charges(TAG) == 1).await;
                    until(async || stored(gateway, "in_progress").await == 0).await;
                }
            }
            if step == Step::Stored {
                return Vec::new();
            }
            let mut replay = send(gateway, "a red apple", key).await;
            some_of(&mut replay).await;
            vec![replay]
        }
        Step::Delivering => {
            some_of(&mut stream).await;
            vec![stream]
        }
    }
}

/// The head and the beginning of the body: the rest stays in the gateway and the sockets.
async fn some_of(stream: &mut TcpStream) {
    let mut some = [0; 1_000];
    stream.read_exact(&mut some).await.unwrap();
    assert!(some.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&some));
}

fn sim() -> Sim {
    Sim::builder().latency(Latency::fixed(DRAWING)).tiny_images(false).build()
}

/// After the kill: paid once, and what had arrived is delivered.
async fn judge(step: Step, key: Option<&str>, next: &Gateway, sim: &Sim) {
    let (status, text) = ask(next, "a red apple", key).await;
    assert_eq!(sim.ledger().charges(TAG), 1, "{step:?} {key:?}: {status}");
    if matches!(step, Step::Generating | Step::CallerGone) {
        assert_eq!(status, 424, "{step:?} {key:?}: {text}");
        assert!(text.contains("may have been charged"), "{text}");
        assert!(text.contains("x-should-retry: false"), "{text}");
    } else {
        assert_eq!(status, 200, "{step:?} {key:?}: {text}");
        assert!(text.len() > 100_000, "{step:?} {key:?}");
    }
}

#[tokio::test]
async fn killed_at_any_step_a_call_is_paid_once_and_what_had_arrived_is_delivered() {
    let cases = STEPS.into_iter().flat_map(|step| [(step, None), (step, Some("a-key"))]);
    for (n, (step, key)) in cases.enumerate() {
        let dir = Scratch::new(&format!("crash-redb-{n}"));
        let sim = sim();
        let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let server = format!("state_dir = {:?}", dir.0.join("state"));
        let gateway = start(&dir, &server, &upstream.url());
        let open = bring_to(step, &gateway, &sim, key).await;
        gateway.kill();
        drop(open);
        until(async || sim.ledger().charges(TAG) == 1).await;
        let next = start(&dir, &server, &upstream.url());
        judge(step, key, &next, &sim).await;
        // Told, and not sent; or delivered once: then the next request is another call.
        if key.is_none() {
            let (status, _) = ask(&next, "a red apple", key).await;
            let told = matches!(step, Step::Generating | Step::CallerGone);
            assert_eq!((status, sim.ledger().charges(TAG)), if told { (424, 1) } else { (200, 2) });
        }
    }
}

#[tokio::test]
async fn another_gateway_on_the_same_redis_takes_over_what_a_killed_one_left() {
    let redis_dir = Scratch::new("redis-server");
    let Some(redis) = Redis::start(&redis_dir).await else { return };
    what_a_killed_gateway_left_is_taken_over("redis", &redis.url()).await;
}

#[tokio::test]
async fn another_gateway_on_the_same_postgres_takes_over_what_a_killed_one_left() {
    let Some(postgres) = test_programs::postgres::start() else { return };
    what_a_killed_gateway_left_is_taken_over("postgres", &postgres.url()).await;
}

async fn what_a_killed_gateway_left_is_taken_over(name: &str, store: &str) {
    let cases = STEPS.into_iter().flat_map(|step| [(step, None), (step, Some("a-key"))]);
    // Side by side: each waits until the killed process counts as gone.
    let case = async |(n, (step, key)): (usize, (Step, Option<&'static str>))| {
        let [dir, other_dir] = ["a", "b"].map(|of| Scratch::new(&format!("crash-{name}-{of}-{n}")));
        let sim = sim();
        let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let server = format!("store = {:?}\nstore_prefix = \"case-{n}\"", store);
        let gateway = start(&dir, &server, &upstream.url());
        let other = start(&other_dir, &server, &upstream.url());
        let open = bring_to(step, &gateway, &sim, key).await;
        gateway.kill();
        drop(open);
        judge(step, key, &other, &sim).await;
    };
    futures::future::join_all(cases.enumerate().map(case)).await;
}

// The socket took it, and its client never read it: only the process that had delivered it knew.
#[tokio::test]
async fn a_response_that_its_client_never_read_is_there_for_a_marked_resend_after_the_kill() {
    let redis_dir = Scratch::new("unread-redis");
    let redis = Redis::start(&redis_dir).await;
    let case = async |name: &str, server: String, dir: &Scratch| {
        let sim = Sim::builder().latency(Latency::fixed(DRAWING)).tiny_images(true).build();
        let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mark = |sends: usize| format!("{}x-stainless-retry-count: {sends}\r\n", headers(None));
        let gateway = start(dir, &server, &upstream.url());
        let unread = gateway.send(PRO, &mark(0), "a red apple").await;
        unread.peek(&mut [0]).await.unwrap();
        sleep(DRAWING / 3).await;
        gateway.kill();
        drop(unread);
        let next = start(dir, &server, &upstream.url());
        for sends in [1, 2] {
            let (status, text) = next.ask(PRO, &mark(sends), "a red apple").await;
            assert_eq!((status, sim.ledger().charges(TAG)), (200, 1), "{name} {sends}: {text}");
        }
        let (status, _) = next.ask(PRO, &mark(0), "a red apple").await;
        assert_eq!((status, sim.ledger().charges(TAG)), (200, 2), "{name}: a call of its own");
    };
    let dir = Scratch::new("unread");
    case("redb", format!("state_dir = {:?}", dir.0.join("state")), &dir).await;
    if let Some(redis) = redis {
        case("redis", format!("store = {:?}", redis.url()), &dir).await;
    }
    if let Some(postgres) = test_programs::postgres::start() {
        case("postgres", format!("store = {:?}", postgres.url()), &dir).await;
    }
}

// Files were written only after the whole grace: ten were charged for five images.
#[tokio::test]
async fn a_sigterm_followed_by_a_sigkill_loses_nothing_that_was_stored() {
    let (dir, sim) = (Scratch::new("term"), sim());
    let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let server = format!("state_dir = {:?}", dir.0.join("state"));
    let gateway = start(&dir, &server, &upstream.url());
    let prompts = ["one", "two", "three", "four", "five"];
    let mut gone = Vec::new();
    for prompt in &prompts[..4] {
        gone.push(send(&gateway, prompt, None).await);
    }
    until(async || sim.requests() == 4).await;
    drop(gone);
    // Its caller waits, and keeps the process from ending by itself.
    sleep(DRAWING / 2).await;
    let waiting = send(&gateway, prompts[4], None).await;
    until(async || sim.requests() == 5).await;
    gateway.signal("-TERM");
    until(async || sim.ledger().charges(TAG) >= 4).await;
    let stored = async || {
        let log = std::fs::read_to_string(dir.0.join("log")).unwrap_or_default();
        log.matches("response stored").count() == 4
    };
    until(stored).await;
    gateway.kill();
    drop(waiting);
    until(async || sim.ledger().charges(TAG) == 5).await;
    let next = start(&dir, &server, &upstream.url());
    for prompt in &prompts[..4] {
        assert_eq!(ask(&next, prompt, None).await.0, 200, "{prompt}");
    }
    let (status, _) = ask(&next, prompts[4], None).await;
    assert!(status == 200 || status == 424, "{status}");
    assert_eq!(sim.ledger().charges(TAG), 5);
}

// An SDK with a timeout of 7 s on a generation of 8 s paid twice.
#[tokio::test]
async fn a_timeout_that_the_caller_states_detaches_and_its_resend_gets_the_image() {
    let (dir, sim) = (Scratch::new("stated"), sim());
    let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let gateway = start(&dir, "", &upstream.url());
    let stated = format!("{}x-server-timeout: 1\r\n", headers(None));
    let (first, text) = gateway.ask(PRO, &stated, "a red apple").await;
    assert_eq!(first, 424, "{text}");
    let (second, text) = ask(&gateway, "a red apple", None).await;
    assert_eq!(second, 200, "{text}");
    assert_eq!((sim.requests(), sim.ledger().charges(TAG)), (1, 1));
}
