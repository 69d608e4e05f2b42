//! Attacks on memory and places, beside honest callers, on the program under an enforced limit: it
//! goes on, honest callers are served, and nothing that was paid for is lost.
//!
//! `SOAK_SECONDS=600 cargo test --release -p tower-gemini-gateway --test ceiling -- --nocapture`
//! keeps it up for so long, and prints figures.

#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs,
    reason = "a test that cannot go on says where"
)]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tower_gemini_sim::{ImageOptions, Latency, Sim, serve};

const PRO: &str = "/v1beta/models/gemini-3-pro-image:generateContent";
const APPLE: &str = r#"{"contents":[{"role":"user","parts":[{"text":"a red apple"}]}]}"#;
const MIB: usize = 1024 * 1024;

/// The program with no more than so many bytes of data, which the kernel enforces.
struct Limited {
    child: Child,
    addr: String,
    log: Arc<std::sync::Mutex<String>>,
}

impl Limited {
    fn start(name: &str, config: &str, data_mib: usize) -> Self {
        let file = std::env::temp_dir().join(format!("ceiling-{name}-{}.toml", std::process::id()));
        std::fs::write(&file, config).unwrap();
        let limited = format!("ulimit -d {} && exec \"$0\" --config \"$1\"", data_mib * 1024);
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(limited)
            .arg(env!("CARGO_BIN_EXE_gemini-gateway"))
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(std::sync::Mutex::new(String::new()));
        let mut errors = child.stderr.take().unwrap();
        let logged = log.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = errors.read(&mut chunk) {
                logged.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..length]));
            }
        });
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = lines.find_map(|line| {
            let line = line.ok()?;
            Some(
                line.strip_prefix("What is going on: http://")?.strip_suffix("/status")?.to_owned(),
            )
        });
        let addr = url.unwrap_or_else(|| panic!("it started: {}", log.lock().unwrap()));
        Self { child, addr, log }
    }

    fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Resident memory at its peak and now, in MiB, where the system says so.
    fn resident(&self) -> Option<(usize, usize)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse::<usize>().ok()
        };
        Some((of("VmHWM:")? / 1024, of("VmRSS:")? / 1024))
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

/// One side of the soak: what it sends, until it is told to stop.
#[derive(Clone)]
struct Side {
    addr: String,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
}

impl Side {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    async fn connect(&self) -> Option<TcpStream> {
        self.sent.fetch_add(1, Ordering::Relaxed);
        TcpStream::connect(&self.addr).await.ok()
    }

    /// Sends a head and a part of a body.
    async fn begin(
        &self,
        path: &str,
        key: &str,
        more: &str,
        length: usize,
        body: &[u8],
    ) -> Option<TcpStream> {
        let mut stream = self.connect().await?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nx-goog-api-key: {key}\r\nconnection: close\r\ncontent-type: application/json\r\n{more}content-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.ok()?;
        stream.write_all(body).await.ok()?;
        Some(stream)
    }

    async fn ask(&self, path: &str, key: &str, more: &str, body: &str) -> String {
        let Some(mut stream) = self.begin(path, key, more, body.len(), body.as_bytes()).await
        else {
            return String::new();
        };
        let mut all = Vec::new();
        let _ = timeout(Duration::from_secs(180), stream.read_to_end(&mut all)).await;
        String::from_utf8_lossy(&all).into_owned()
    }
}

fn prompt(text: &str) -> String {
    APPLE.replace("a red apple", text)
}

fn large(text: &str) -> String {
    prompt(text).replacen('{', r#"{"generationConfig":{"imageConfig":{"imageSize":"4K"}},"#, 1)
}

/// Bodies that say they are long, and of which a few bytes come now and then.
async fn unfinished_bodies(side: Side, n: usize) {
    while side.goes_on() {
        let Some(mut stream) = side.begin(PRO, "attacker-1", "", 30_000_000, b"{").await else {
            return;
        };
        for _ in 0..1000 {
            if !side.goes_on() || stream.write_all(&vec![b' '; 2048 * (1 + n % 2)]).await.is_err() {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
    }
}

/// A tree of as many values as there is text for.
async fn countless_values(side: Side, _: usize) {
    let body = format!("{{\"x\":[{}]}}", vec!["{\"\":0}"; 8 * MIB / 7].join(","));
    while side.goes_on() {
        let said = side.ask("/v1/chat/completions", "attacker-2", "", &body).await;
        assert!(!said.starts_with("HTTP/1.1 200"), "{said}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Clients that ask for a large image and do not read it.
async fn deaf_clients(side: Side, n: usize) {
    for round in 0.. {
        if !side.goes_on() {
            return;
        }
        let body = large(&format!("deaf {n} {round}"));
        let stream = side.begin(PRO, "attacker-3", "", body.len(), body.as_bytes()).await;
        sleep(Duration::from_secs(10)).await;
        drop(stream);
    }
}

async fn silent_sockets(side: Side, _: usize) {
    while side.goes_on() {
        let stream = side.connect().await;
        sleep(Duration::from_secs(5)).await;
        drop(stream);
    }
}

async fn waiters_on_one_key(side: Side, _: usize) {
    for round in 0.. {
        if !side.goes_on() {
            return;
        }
        let key = format!("idempotency-key: one-{}\r\n", round / 4);
        side.ask(PRO, "attacker-4", &key, &prompt(&format!("keyed {}", round / 4))).await;
    }
}

/// Clients that hang up once their call is on its way.
async fn hang_ups(side: Side, n: usize) {
    for round in 0.. {
        if !side.goes_on() {
            return;
        }
        let body = prompt(&format!("hang-up {n} {round}"));
        let stream = side.begin(PRO, "attacker-5", "", body.len(), body.as_bytes()).await;
        sleep(Duration::from_millis(200)).await;
        drop(stream);
        sleep(Duration::from_millis(300)).await;
    }
}

/// What an honest caller saw.
#[derive(Debug, Default)]
struct Served {
    calls: Vec<String>,
    images: usize,
    slowest: Duration,
    refused: Vec<String>,
}

/// Asks for one image after the other, as the SDKs do: a 503 or 429 is sent again after a while.
async fn honest(side: Side, n: usize) -> Served {
    let mut served = Served::default();
    while side.goes_on() {
        let (call, started) = (format!("honest-{n}-{}", served.calls.len()), Instant::now());
        let (key, more) = (format!("honest-{}", n % 3), format!("x-sim-call: {call}\r\n"));
        for attempt in 0..4 {
            let said = side.ask(PRO, &key, &more, &prompt(&call)).await;
            if said.starts_with("HTTP/1.1 200") && said.contains("inlineData") {
                served.images += 1;
                break;
            }
            served.refused.push(said.chars().take(700).collect());
            sleep(Duration::from_secs(1 << attempt)).await;
        }
        served.slowest = served.slowest.max(started.elapsed());
        served.calls.push(call);
    }
    served
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_attack_and_a_limit_it_goes_on_serves_honest_callers_and_loses_nothing_paid() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let seconds = Duration::from_secs(seconds.unwrap_or(15));
    let images = ImageOptions { variants: 1, ..ImageOptions::default() };
    let sim = Sim::builder().latency(Latency::fixed(Duration::from_millis(500))).images(images);
    let sim = sim.build();
    let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (memory, beside) = (256, 128);
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nmemory = \"{memory}MiB\"\nmax_in_flight = 64\n[[upstream]]\nname = \"sim\"\nkind = \"gemini\"\nbase_url = \"{}\"\n[log]\nlevel = \"warn\"\n",
        upstream.url()
    );
    let mut gateway = Limited::start("soak", &config, memory + beside);
    let side = Side { addr: gateway.addr.clone(), stop: Arc::default(), sent: Arc::default() };
    let attack = Side { sent: Arc::default(), ..side.clone() };
    let mut attackers = Vec::new();
    for n in 0..20 {
        attackers.push(tokio::spawn(unfinished_bodies(attack.clone(), n)));
        attackers.push(tokio::spawn(deaf_clients(attack.clone(), n)));
        attackers.push(tokio::spawn(waiters_on_one_key(attack.clone(), n)));
        attackers.push(tokio::spawn(hang_ups(attack.clone(), n)));
    }
    attackers.push(tokio::spawn(countless_values(attack.clone(), 0)));
    for n in 0..200 {
        attackers.push(tokio::spawn(silent_sockets(attack.clone(), n)));
    }
    let honest: Vec<_> = (0..9).map(|n| tokio::spawn(honest(side.clone(), n))).collect();
    let soon = Instant::now();
    let mut peak_of_gauge = 0.0_f64;
    while soon.elapsed() < seconds && gateway.is_running() {
        sleep(Duration::from_millis(500)).await;
        let page = timeout(Duration::from_secs(5), get(&gateway.addr, "/metrics")).await;
        let gauge = page.ok().as_deref().and_then(|page| {
            page.lines().find_map(|line| line.strip_prefix("gateway_memory_bytes "))?.parse().ok()
        });
        peak_of_gauge = peak_of_gauge.max(gauge.unwrap_or(0.0));
    }
    assert!(gateway.is_running(), "{}", gateway.log.lock().unwrap());
    side.stop.store(true, Ordering::Relaxed);
    let (mut asked, mut served, mut slowest) = (0, 0, Duration::ZERO);
    for one in honest {
        let one = one.await.unwrap();
        assert_eq!(one.images, one.calls.len(), "{:?}", one.refused);
        (asked, served) = (asked + one.calls.len(), served + one.images);
        for call in one.calls {
            assert_eq!(sim.ledger().charges(&call), 1, "{call} was paid for more than once");
        }
        slowest = slowest.max(one.slowest);
    }
    attackers.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(gateway.is_running(), "{}", gateway.log.lock().unwrap());
    sleep(Duration::from_secs(3)).await;
    let resident = gateway.resident();
    println!(
        "attackers sent {}, honest callers asked {asked} times and got {served} images, the slowest after {slowest:?}; \
         accounted for {} MiB at most; resident at the peak and after, in MiB: {resident:?}, limit {}",
        attack.sent.load(Ordering::Relaxed),
        peak_of_gauge as usize / MIB,
        memory + beside,
    );
    assert!(served > 0);
    // And then it is as it was.
    let said = side.ask(PRO, "honest-0", "", &prompt("after all")).await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
}

async fn get(addr: &str, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(addr).await else { return String::new() };
    let head = format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(head.as_bytes()).await;
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    String::from_utf8_lossy(&all).into_owned()
}
