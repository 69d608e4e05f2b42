//! The program, killed with SIGKILL at every step of a call: what was paid for is known to the next
//! process, or to another one on the same redis, and nothing is paid twice.

#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test that cannot go on says where"
)]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tower_gemini_sim::{Latency, Sim, serve};

const PRO: &str = "/v1beta/models/gemini-3-pro-image:generateContent";
const TAG: &str = "call";
/// A drawing takes this long.
const DRAWING: Duration = Duration::from_millis(1_500);

/// A directory of this test's own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("gemini-gateway-crash-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A redis on a free port.
struct Redis(Child, u16);

impl Redis {
    async fn start(dir: &Scratch) -> Option<Self> {
        test_programs::find(&["redis-server"], "redis-server")?;
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string()])
            .arg("--dir")
            .arg(&dir.0)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self(child, port);
        for _ in 0..1_000 {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Some(server);
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("redis-server does not answer");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program.
struct Gateway {
    child: Child,
    addr: String,
}

impl Gateway {
    fn start(dir: &Scratch, server: &str, upstream: &str, rest: &str) -> Self {
        let config = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n{server}\n[[upstream]]\nname = \"sim\"\n\
             kind = \"gemini\"\nbase_url = \"{upstream}\"\n{rest}",
        );
        let file = dir.0.join("gateway.toml");
        std::fs::write(&file, config).unwrap();
        let log = std::fs::File::create(dir.0.join("log")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_gemini-gateway"))
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let addr = lines.find_map(|line| {
            let addr = line.strip_prefix("What is going on: http://")?;
            addr.strip_suffix("/status").map(str::to_owned)
        });
        // The rest of what it prints has to go somewhere.
        std::thread::spawn(move || lines.for_each(drop));
        let log = || std::fs::read_to_string(dir.0.join("log")).unwrap_or_default();
        Self { child, addr: addr.unwrap_or_else(|| panic!("it did not start: {}", log())) }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    async fn send(&self, prompt: &str, key: Option<&str>) -> TcpStream {
        let body = format!(r#"{{"contents":[{{"parts":[{{"text":"{prompt}"}}]}}]}}"#);
        let key = key.map(|key| format!("idempotency-key: {key}\r\n")).unwrap_or_default();
        let head = format!(
            "POST {PRO} HTTP/1.1\r\nhost: localhost\r\nx-goog-api-key: k\r\nx-sim-call: {TAG}\r\n\
             content-type: application/json\r\nconnection: close\r\n{key}\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(&self.addr).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    /// The status and how many bytes came.
    async fn ask(&self, prompt: &str, key: Option<&str>) -> (u16, String) {
        let mut stream = self.send(prompt, key).await;
        let mut all = Vec::new();
        let read = timeout(Duration::from_secs(60), stream.read_to_end(&mut all)).await;
        read.expect("a response").unwrap();
        let text = String::from_utf8_lossy(&all).into_owned();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, text)
    }

    async fn stored(&self) -> Value {
        let mut stream = TcpStream::connect(&self.addr).await.unwrap();
        let get = "GET /status.json HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(get.as_bytes()).await.unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        let body = &all[all.find('{').unwrap_or(0)..=all.rfind('}').unwrap_or(0)];
        serde_json::from_str::<Value>(body).unwrap_or_default()["stored"].clone()
    }

    async fn until_stored(&self, responses: u64) {
        until(async || self.stored().await["stored"] == responses).await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A bounded wait for another process.
#[track_caller]
fn until(mut done: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    let asked = std::panic::Location::caller();
    async move {
        for _ in 0..2_000 {
            if done().await {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("it did not come to what {asked} waits for");
    }
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
    let mut stream = gateway.send("a red apple", key).await;
    until(async || sim.requests() == 1).await;
    match step {
        Step::Generating => vec![stream],
        Step::CallerGone => {
            drop(stream);
            // With a key a call is counted from its start.
            until(async || gateway.stored().await["in_progress"] == 1).await;
            Vec::new()
        }
        Step::Stored | Step::Replaying => {
            drop(stream);
            match key {
                None => gateway.until_stored(1).await,
                Some(_) => {
                    until(async || sim.ledger().charges(TAG) == 1).await;
                    until(async || gateway.stored().await["in_progress"] == 0).await;
                }
            }
            if step == Step::Stored {
                return Vec::new();
            }
            let mut replay = gateway.send("a red apple", key).await;
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
    let (status, text) = next.ask("a red apple", key).await;
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
        let dir = Scratch::new(&format!("redb-{n}"));
        let sim = sim();
        let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let server = format!("state_dir = {:?}", dir.0.join("state"));
        let gateway = Gateway::start(&dir, &server, &upstream.url(), "");
        let open = bring_to(step, &gateway, &sim, key).await;
        gateway.kill();
        drop(open);
        until(async || sim.ledger().charges(TAG) == 1).await;
        let next = Gateway::start(&dir, &server, &upstream.url(), "");
        judge(step, key, &next, &sim).await;
        // Told, and not sent; or delivered once: then the next request is another call.
        if key.is_none() {
            let (status, _) = next.ask("a red apple", key).await;
            let told = matches!(step, Step::Generating | Step::CallerGone);
            assert_eq!((status, sim.ledger().charges(TAG)), if told { (424, 1) } else { (200, 2) });
        }
    }
}

#[tokio::test]
async fn another_gateway_on_the_same_redis_takes_over_what_a_killed_one_left() {
    let redis_dir = Scratch::new("redis-server");
    let Some(redis) = Redis::start(&redis_dir).await else { return };
    let cases = STEPS.into_iter().flat_map(|step| [(step, None), (step, Some("a-key"))]);
    // Side by side: each waits until the killed process counts as gone.
    let case = async |(n, (step, key)): (usize, (Step, Option<&'static str>))| {
        let (dir, other_dir) = (Scratch::new(&format!("a-{n}")), Scratch::new(&format!("b-{n}")));
        let sim = sim();
        let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let server =
            format!("store = \"redis://127.0.0.1:{}/\"\nstore_prefix = \"case-{n}\"", redis.1);
        let gateway = Gateway::start(&dir, &server, &upstream.url(), "");
        let other = Gateway::start(&other_dir, &server, &upstream.url(), "");
        let open = bring_to(step, &gateway, &sim, key).await;
        gateway.kill();
        drop(open);
        judge(step, key, &other, &sim).await;
    };
    futures::future::join_all(cases.enumerate().map(case)).await;
}

// Files were written only after the whole grace: ten were charged for five images.
#[tokio::test]
async fn a_sigterm_followed_by_a_sigkill_loses_nothing_that_was_stored() {
    let (dir, sim) = (Scratch::new("term"), sim());
    let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let server = format!("state_dir = {:?}", dir.0.join("state"));
    let gateway = Gateway::start(&dir, &server, &upstream.url(), "");
    let prompts = ["one", "two", "three", "four", "five"];
    let mut gone = Vec::new();
    for prompt in &prompts[..4] {
        gone.push(gateway.send(prompt, None).await);
    }
    until(async || sim.requests() == 4).await;
    drop(gone);
    // Its caller waits, and keeps the process from ending by itself.
    sleep(DRAWING / 2).await;
    let waiting = gateway.send(prompts[4], None).await;
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
    let next = Gateway::start(&dir, &server, &upstream.url(), "");
    for prompt in &prompts[..4] {
        assert_eq!(next.ask(prompt, None).await.0, 200, "{prompt}");
    }
    let (status, _) = next.ask(prompts[4], None).await;
    assert!(status == 200 || status == 424, "{status}");
    assert_eq!(sim.ledger().charges(TAG), 5);
}

// An SDK with a timeout of 7 s on a generation of 8 s paid twice.
#[tokio::test]
async fn a_timeout_that_the_caller_states_detaches_and_its_resend_gets_the_image() {
    let (dir, sim) = (Scratch::new("stated"), sim());
    let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let gateway = Gateway::start(&dir, "", &upstream.url(), "");
    let ask = async |stated: &str| {
        let body = r#"{"contents":[{"parts":[{"text":"a red apple"}]}]}"#;
        let head = format!(
            "POST {PRO} HTTP/1.1\r\nhost: localhost\r\nx-goog-api-key: k\r\nx-sim-call: {TAG}\r\n\
             {stated}connection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(&gateway.addr).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        String::from_utf8_lossy(&all[..all.len().min(2_000)]).into_owned()
    };
    let first = ask("x-server-timeout: 1\r\n").await;
    assert!(first.starts_with("HTTP/1.1 424"), "{first}");
    let second = ask("").await;
    assert!(second.starts_with("HTTP/1.1 200"), "{second}");
    assert_eq!((sim.requests(), sim.ledger().charges(TAG)), (1, 1));
}
