//! Clients that misbehave, and the process told to end: a clear answer each time, nothing paid
//! lost, no key anywhere.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs,
    reason = "a test that cannot go on says where"
)]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower_gemini_sim::{Fault, ImageOptions, Latency, Sim, serve};

const KEY: &str = "AIzaSyA-sentinel-key-0123456789abcdefghij";
const PRO: &str = "/v1beta/models/gemini-3-pro-image:generateContent";
const APPLE: &str = r#"{"contents":[{"role":"user","parts":[{"text":"a red apple"}]}]}"#;

struct World {
    sim: Sim,
    _upstream: tower_gemini_sim::ServeHandle,
    gateway: tower_gemini_gateway::Running,
}

async fn world(sim: Sim, server: &str, rest: &str) -> World {
    let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n{server}\n[[upstream]]\nname = \"sim\"\nkind = \"gemini\"\nbase_url = \"{}\"\n{rest}",
        upstream.url()
    );
    World { sim, _upstream: upstream, gateway: tower_gemini_gateway::start(&config).await.unwrap() }
}

impl World {
    async fn in_flight(&self) -> f64 {
        let mut stream = self.connect().await;
        let head = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let page = to_the_end(&mut stream).await;
        let gauge = page.lines().find_map(|line| line.strip_prefix("gateway_requests_in_flight "));
        gauge.map_or(0.0, |value| value.parse().unwrap())
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.gateway.url().trim_start_matches("http://")).await.unwrap()
    }
}

fn head(length: usize, more: &str) -> String {
    format!(
        "POST {PRO} HTTP/1.1\r\nhost: localhost\r\nx-goog-api-key: {KEY}\r\nx-sim-call: call\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{more}\r\n"
    )
}

/// Everything that comes until the connection is closed.
async fn to_the_end(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut all))
        .await
        .expect("the connection is closed");
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn a_head_that_never_ends_is_answered_408() {
    let world = world(Sim::quick([]), "header_read_timeout = \"300ms\"", "").await;
    let mut slow = world.connect().await;
    slow.write_all(b"POST / HTTP/1.1\r\nhost: g").await.unwrap();
    let said = to_the_end(&mut slow).await;
    assert!(
        said.starts_with("HTTP/1.1 408") && said.contains("server.header_read_timeout"),
        "{said}"
    );
    // A byte now and then does not buy more time.
    let (mut read, mut write) = world.connect().await.into_split();
    let drip = tokio::spawn(async move {
        for byte in b"POST / HTTP/1.1\r\nhost: gateway.example\r\n".iter().cycle() {
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut said = [0; 12];
    tokio::time::timeout(Duration::from_secs(5), read.read_exact(&mut said))
        .await
        .expect("an answer")
        .unwrap();
    assert_eq!(&said, b"HTTP/1.1 408");
    drip.abort();
}

/// The head and the body of one answer, on a connection that stays.
async fn one_answer(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&all);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .expect("a length");
            if body.len() >= length.parse::<usize>().unwrap() {
                return text.into_owned();
            }
        }
        assert!(
            stream.read_buf(&mut all).await.unwrap() > 0,
            "closed after {}",
            String::from_utf8_lossy(&all)
        );
    }
}

#[tokio::test]
async fn an_idle_connection_outlives_the_time_for_a_head_and_is_closed_in_the_end() {
    let world =
        world(Sim::quick([]), "header_read_timeout = \"200ms\"\nidle_timeout = \"1500ms\"", "")
            .await;
    let mut stream = world.connect().await;
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        stream.write_all(head(APPLE.len(), "").as_bytes()).await.unwrap();
        stream.write_all(APPLE.as_bytes()).await.unwrap();
        assert!(one_answer(&mut stream).await.starts_with("HTTP/1.1 200"));
    }
    let since = tokio::time::Instant::now();
    assert_eq!(to_the_end(&mut stream).await, "");
    assert!(since.elapsed() > Duration::from_millis(1400), "{:?}", since.elapsed());
}

// What comes after a request that was not read to its end may be the rest of it, and is no head of
// another.
#[tokio::test]
async fn a_refused_request_ends_its_connection_in_order_and_an_answered_one_leaves_no_timer_behind()
{
    let world = world(Sim::quick([]), "header_read_timeout = \"300ms\"", "").await;
    for bytes in [2, 12 * 1024, 100 * 1024] {
        let mut stream = world.connect().await;
        let body = "x".repeat(bytes);
        stream
            .write_all(
                format!("{}{body}", head(bytes, "authorization: Bearer and-another\r\n"))
                    .as_bytes(),
            )
            .await
            .unwrap();
        let said = to_the_end(&mut stream).await;
        assert!(said.starts_with("HTTP/1.1 400") && !said.contains("HTTP/1.1 408"), "{said}");
    }
    let mut stream = world.connect().await;
    stream.write_all(format!("{}{APPLE}", head(APPLE.len(), "")).as_bytes()).await.unwrap();
    assert!(one_answer(&mut stream).await.starts_with("HTTP/1.1 200"));
    let quiet = tokio::time::timeout(Duration::from_millis(900), stream.read(&mut [0; 100])).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test]
async fn a_client_that_sends_all_of_too_much_before_it_reads_is_told_so() {
    let world = world(Sim::quick([]), "max_body = \"1KiB\"\nmax_in_flight = 4", "").await;
    for chunked in [false, true] {
        let mut stream = world.connect().await;
        let large = "x".repeat(8 * 1024 * 1024);
        let (head, body) = if chunked {
            let head = format!(
                "POST {PRO} HTTP/1.1\r\nhost: localhost\r\nx-goog-api-key: {KEY}\r\ntransfer-encoding: chunked\r\n\r\n"
            );
            (head, format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len()))
        } else {
            (head(large.len(), ""), large)
        };
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.expect("the gateway reads on");
        let said = to_the_end(&mut stream).await;
        assert!(said.starts_with("HTTP/1.1 413") && said.contains("server.max_body"), "{said}");
    }
    assert_eq!(world.sim.requests(), 0);
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_is_left_and_gets_it_when_it_asks_again() {
    let images = ImageOptions { variants: 1, ..ImageOptions::default() };
    let sim = Sim::builder().latency(Latency::none()).images(images).build();
    let world = world(sim, "response_stall_timeout = \"400ms\"", "").await;
    let large =
        APPLE.replacen('{', r#"{"generationConfig":{"imageConfig":{"imageSize":"4K"}},"#, 1);
    let ask = async || {
        let mut stream = world.connect().await;
        stream.write_all(head(large.len(), "connection: close\r\n").as_bytes()).await.unwrap();
        stream.write_all(large.as_bytes()).await.unwrap();
        stream
    };
    let mut deaf = ask().await;
    while !deaf.ready(tokio::io::Interest::READABLE).await.unwrap().is_readable() {}
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(to_the_end(&mut deaf).await.len() < 20_000_000, "what the sockets hold, and no more");
    let said = to_the_end(&mut ask().await).await;
    assert!(
        said.starts_with("HTTP/1.1 200") && said.len() > 20_000_000,
        "{}",
        &said[..said.len().min(500)]
    );
    assert_eq!((world.sim.requests(), world.sim.ledger().charges("call")), (1, 1));
}

#[tokio::test]
async fn a_body_that_never_ends_is_answered_408_and_nothing_is_sent() {
    let world = world(Sim::quick([]), "body_idle_timeout = \"300ms\"", "").await;
    let mut slow = world.connect().await;
    slow.write_all(head(APPLE.len(), "connection: close\r\n").as_bytes()).await.unwrap();
    slow.write_all(&APPLE.as_bytes()[..10]).await.unwrap();
    let said = to_the_end(&mut slow).await;
    assert!(said.starts_with("HTTP/1.1 408") && said.contains("body_idle_timeout"), "{said}");
    assert_eq!(world.sim.requests(), 0);
}

#[tokio::test]
async fn a_body_over_the_limit_is_answered_413_whether_it_says_so_or_not() {
    let world = world(Sim::quick([]), "max_body = \"1KiB\"", "").await;
    let mut told = world.connect().await;
    told.write_all(head(5000, "connection: close\r\n").as_bytes()).await.unwrap();
    let said = to_the_end(&mut told).await;
    assert!(said.starts_with("HTTP/1.1 413") && said.contains("max_body"), "{said}");
    let mut chunked = world.connect().await;
    let head = format!(
        "POST {PRO} HTTP/1.1\r\nhost: localhost\r\nx-goog-api-key: {KEY}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    );
    chunked.write_all(head.as_bytes()).await.unwrap();
    // The gateway may close before all of it is written.
    let _ = chunked
        .write_all(format!("{:x}\r\n{}\r\n0\r\n\r\n", 3000, "x".repeat(3000)).as_bytes())
        .await;
    let said = to_the_end(&mut chunked).await;
    assert!(said.starts_with("HTTP/1.1 413"), "{said}");
    assert_eq!(world.sim.requests(), 0);
}

#[tokio::test]
async fn what_is_no_http_is_answered_400_and_the_gateway_lives_on() {
    let world = world(Sim::quick([]), "", "").await;
    for nonsense in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
    ] {
        let mut stream = world.connect().await;
        stream.write_all(nonsense).await.unwrap();
        let _ = stream.shutdown().await;
        let said = to_the_end(&mut stream).await;
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
    }
    // Headers may hold any byte; what is not text in them is passed over.
    let mut odd = world.connect().await;
    odd.write_all(
        head(APPLE.len(), "connection: close\r\nx-server-timeout: \u{ff}\u{fe}\r\n").as_bytes(),
    )
    .await
    .unwrap();
    odd.write_all(APPLE.as_bytes()).await.unwrap();
    assert!(to_the_end(&mut odd).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn thousands_of_idle_connections_leave_room_for_work() {
    let world = world(Sim::quick([]), "max_connections = 4096", "").await;
    let mut idle = Vec::new();
    for _ in 0..3000 {
        // Where the machine allows no more files, fewer must do.
        match TcpStream::connect(world.gateway.url().trim_start_matches("http://")).await {
            Ok(stream) => idle.push(stream),
            Err(_) => break,
        }
    }
    assert!(idle.len() > 300, "{}", idle.len());
    idle.truncate(idle.len() - 10);
    let mut busy = world.connect().await;
    busy.write_all(head(APPLE.len(), "connection: close\r\n").as_bytes()).await.unwrap();
    busy.write_all(APPLE.as_bytes()).await.unwrap();
    assert!(to_the_end(&mut busy).await.starts_with("HTTP/1.1 200"));
}

// 744 of 1,000 clients were refused, although each would have had its turn.
#[tokio::test]
async fn requests_above_the_limit_wait_for_their_turn_and_none_is_refused() {
    let sim =
        Sim::builder().latency(Latency::fixed(Duration::from_millis(50))).tiny_images(true).build();
    let world = world(sim, "max_in_flight = 4", "").await;
    let url = world.gateway.url();
    let asked = (0..40).map(|n| ask(&url, n, KEY));
    for said in futures::future::join_all(asked).await {
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    }
    assert_eq!(world.sim.requests(), 40);
}

#[tokio::test]
async fn a_request_waits_no_longer_than_half_of_the_time_it_states() {
    let sim =
        Sim::builder().latency(Latency::fixed(Duration::from_secs(4))).tiny_images(true).build();
    let world = world(sim, "max_in_flight = 1", "").await;
    let mut first = world.connect().await;
    first.write_all(head(APPLE.len(), "").as_bytes()).await.unwrap();
    first.write_all(APPLE.as_bytes()).await.unwrap();
    while world.sim.requests() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut second = world.connect().await;
    let more = "x-server-timeout: 2\r\nconnection: close\r\n";
    second.write_all(head(APPLE.len(), more).as_bytes()).await.unwrap();
    let said = to_the_end(&mut second).await;
    assert!(said.starts_with("HTTP/1.1 503") && said.contains("server.queue_time"), "{said}");
    assert_eq!(world.sim.requests(), 1);
}

// Bodies of 110 MB were read, and kept, before anybody had looked at their token.
#[tokio::test]
async fn without_a_token_not_a_byte_of_a_body_is_asked_for() {
    let dir = tempdir("token");
    let file = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).unwrap();
        dir.join(name)
    };
    let (tokens, key) = (file("tokens", "ann:token-of-ann-0123456789\n"), file("key", KEY));
    let upstream = serve(Sim::quick([]), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[[upstream]]\nname = \"sim\"\nkind = \"gemini\"\nbase_url = \"{}\"\napi_key_file = {key:?}\n[auth]\nmode = \"tokens\"\ntokens_file = {tokens:?}\n",
        upstream.url()
    );
    let gateway = tower_gemini_gateway::start(&config).await.unwrap();
    for path in [PRO, "/v1/chat/completions"] {
        let addr = gateway.url().trim_start_matches("http://").to_owned();
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer wrong\r\nexpect: 100-continue\r\ncontent-length: 100000000\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let said = to_the_end(&mut stream).await;
        assert!(said.starts_with("HTTP/1.1 401"), "{said}");
    }
}

// Thousands of them took all connections for two minutes each.
#[tokio::test]
async fn a_connection_on_which_nothing_comes_is_closed_soon() {
    let world = world(Sim::quick([]), "first_byte_timeout = \"200ms\"", "").await;
    let mut silent = world.connect().await;
    assert_eq!(to_the_end(&mut silent).await, "");
}

// 256 bodies that came at a byte a second held all places for ten minutes.
#[tokio::test]
async fn slow_bodies_give_way_to_those_who_wait() {
    let world = world(Sim::quick([]), "max_in_flight = 2", "").await;
    let mut slow = Vec::new();
    for _ in 0..2 {
        let mut stream = world.connect().await;
        stream.write_all(head(1_000_000, "connection: close\r\n").as_bytes()).await.unwrap();
        slow.push(stream);
    }
    while world.in_flight().await < 2.0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let said = ask(&world.gateway.url(), 1, "another").await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    let mut given_way = Vec::new();
    for mut stream in slow {
        let said = tokio::time::timeout(Duration::from_millis(500), to_the_end(&mut stream)).await;
        given_way.extend(said.ok());
    }
    assert!(
        given_way
            .iter()
            .any(|said| said.starts_with("HTTP/1.1 503") && said.contains("too slowly")),
        "{given_way:?}"
    );
}

// Of 256 hang-ups 192 paid calls were lost, because fewer calls might be detached than in flight.
#[tokio::test]
async fn no_call_whose_client_hangs_up_is_one_too_many() {
    let sim = Sim::builder()
        .latency(Latency::fixed(Duration::from_millis(700)))
        .tiny_images(true)
        .build();
    let world = world(sim, "max_in_flight = 8", "[keep]\nmax_detached = 1\n").await;
    let url = world.gateway.url();
    let asked: Vec<_> = (0..8)
        .map(|n| {
            let url = url.clone();
            tokio::spawn(async move { ask(&url, n, KEY).await })
        })
        .collect();
    while world.sim.requests() < 8 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    asked.iter().for_each(tokio::task::JoinHandle::abort);
    for n in 0..8 {
        let said = ask(&url, n, KEY).await;
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    }
    assert_eq!(world.sim.requests(), 8, "each was paid for once");
}

#[tokio::test]
async fn a_place_in_flight_is_held_to_the_end_of_the_answer() {
    let sim = Sim::builder()
        .latency(Latency::fixed(Duration::from_millis(800)))
        .tiny_images(true)
        .build();
    let world = world(sim, "max_in_flight = 1\nqueue = 0", "").await;
    let mut first = world.connect().await;
    first.write_all(head(APPLE.len(), "connection: close\r\n").as_bytes()).await.unwrap();
    first.write_all(APPLE.as_bytes()).await.unwrap();
    while world.sim.requests() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut second = world.connect().await;
    second.write_all(head(APPLE.len(), "connection: close\r\n").as_bytes()).await.unwrap();
    second.write_all(APPLE.as_bytes()).await.unwrap();
    let said = to_the_end(&mut second).await;
    assert!(
        said.starts_with("HTTP/1.1 503")
            && said.contains("retry-after: 2")
            && said.contains("max_in_flight"),
        "{said}"
    );
    assert!(to_the_end(&mut first).await.starts_with("HTTP/1.1 200"));
    assert_eq!(world.sim.requests(), 1);
}

#[tokio::test]
async fn another_configuration_takes_effect_at_once_and_a_wrong_one_never() {
    let sim = Sim::quick([Fault::HighDemand, Fault::HighDemand, Fault::HighDemand]);
    let world = world(sim, "", "[retry]\nattempts = 1\n").await;
    let url = world.gateway.url();
    let config = |rest: &str| {
        format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[[upstream]]\nname = \"sim\"\nkind = \"gemini\"\nbase_url = \"{}\"\n{rest}",
            world._upstream.url()
        )
    };
    let ask = async || {
        let mut stream = TcpStream::connect(url.trim_start_matches("http://")).await.unwrap();
        stream.write_all(head(APPLE.len(), "connection: close\r\n").as_bytes()).await.unwrap();
        stream.write_all(APPLE.as_bytes()).await.unwrap();
        to_the_end(&mut stream).await
    };
    assert!(ask().await.starts_with("HTTP/1.1 503"));
    let error = world.gateway.reload(&config("[retry]\natempts = 9\n")).unwrap_err();
    assert!(error.to_string().contains("did you mean `attempts`?"), "{error}");
    assert!(ask().await.starts_with("HTTP/1.1 503"), "the one before stays");
    world.gateway.reload(&config("[responses]\nreport_headers = true\n")).unwrap();
    let said = ask().await;
    assert!(
        said.starts_with("HTTP/1.1 200") && said.contains("x-gemini-attempts: 2"),
        "{}",
        &said[..200]
    );
}

/// The program itself, with the simulator behind it.
struct Process {
    child: Child,
    url: String,
}

impl Process {
    fn start(dir: &std::path::Path, config: &str) -> Self {
        let file = dir.join("gateway.toml");
        std::fs::write(&file, config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_gemini-gateway"))
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = lines
            .find_map(|line| {
                line.ok()?
                    .strip_prefix("What is going on: ")
                    .and_then(|url| url.strip_suffix("/status"))
                    .map(str::to_owned)
            })
            .expect("it says where it listens");
        Self { child, url }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// The exit code, and everything that was logged.
    fn end(mut self) -> (i32, String) {
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code().unwrap_or(-1), log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

fn tempdir(name: &str) -> std::path::PathBuf {
    let dir = std::env::temp_dir().join(format!("gateway-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

async fn ask(url: &str, prompt: usize, key: &str) -> String {
    let body = APPLE.replace("apple", &format!("apple {prompt}"));
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).await.unwrap();
    let head = format!(
        "POST {PRO}?key={key} HTTP/1.1\r\nhost: localhost\r\nx-sim-call: {prompt}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    to_the_end(&mut stream).await
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_end_under_load_it_answers_all_it_took_keeps_what_was_left_and_logs_no_key() {
    let sim = Sim::builder()
        .latency(Latency::fixed(Duration::from_millis(1200)))
        .tiny_images(true)
        .build();
    let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let dir = tempdir("end");
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[[upstream]]\nname = \"sim\"\nkind = \"gemini\"\nbase_url = \"{}\"\n[keep]\ndir = {:?}\n[log]\nlevel = \"trace\"\n",
        upstream.url(),
        dir.join("kept")
    );
    let process = Process::start(&dir, &config);
    let url = process.url.clone();
    let mut waiting: Vec<_> = (0..40)
        .map(|n| {
            tokio::spawn({
                let url = url.clone();
                async move { ask(&url, n, KEY).await }
            })
        })
        .collect();
    while sim.requests() < 40 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // One caller hangs up just before the end.
    waiting.pop().unwrap().abort();
    process.signal("TERM");
    let ended = tokio::task::spawn_blocking(move || process.end());
    for asked in waiting {
        let said = asked.await.unwrap();
        assert!(
            said.starts_with("HTTP/1.1 200") && said.contains("inlineData"),
            "{}",
            &said[..said.len().min(300)]
        );
    }
    let (code, log) = ended.await.unwrap();
    assert_eq!(code, 0, "{log}");
    assert!(!log.contains("sentinel"), "a key in the log");
    assert!(log.contains("stopping"), "{log}");
    let ledger = sim.ledger();
    let charges: Vec<usize> = (0..40).map(|n| ledger.charges(&n.to_string())).collect();
    assert_eq!(charges, [1; 40]);
    // What the fortieth paid for is there after a restart.
    let process = Process::start(&dir, &config);
    let said = ask(&process.url, 39, KEY).await;
    assert!(said.starts_with("HTTP/1.1 200") && said.contains("inlineData"));
    assert_eq!(sim.ledger().charges("39"), 1);
    process.signal("TERM");
    assert_eq!(tokio::task::spawn_blocking(move || process.end()).await.unwrap().0, 0);
    std::fs::remove_dir_all(dir).unwrap();
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_twice_it_ends_at_once_and_says_that_something_may_be_lost() {
    let sim =
        Sim::builder().latency(Latency::fixed(Duration::from_secs(60))).tiny_images(true).build();
    let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let dir = tempdir("twice");
    let process = Process::start(
        &dir,
        &format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[[upstream]]\nname = \"sim\"\nkind = \"gemini\"\nbase_url = \"{}\"\n",
            upstream.url()
        ),
    );
    let asked = tokio::spawn({
        let url = process.url.clone();
        async move { ask(&url, 0, KEY).await }
    });
    while sim.requests() < 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    process.signal("TERM");
    tokio::time::sleep(Duration::from_millis(200)).await;
    process.signal("TERM");
    let (code, log) = tokio::task::spawn_blocking(move || process.end()).await.unwrap();
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("for the second time"), "{log}");
    asked.abort();
    std::fs::remove_dir_all(dir).unwrap();
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_file_is_read_again_and_a_broken_one_is_named_and_left() {
    let sim = Sim::quick([]);
    let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let dir = tempdir("reload");
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[[upstream]]\nname = \"sim\"\nkind = \"gemini\"\nbase_url = \"{}\"\n",
        upstream.url()
    );
    let process = Process::start(&dir, &config);
    std::fs::write(dir.join("gateway.toml"), format!("{config}[retry]\natempts = 1\n")).unwrap();
    process.signal("HUP");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!ask(&process.url, 0, KEY).await.contains("x-gemini-attempts"));
    std::fs::write(
        dir.join("gateway.toml"),
        format!("{config}[responses]\nreport_headers = true\n"),
    )
    .unwrap();
    // Without a signal: the file is looked at every two seconds.
    let mut told = false;
    for n in 1..60 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        told = ask(&process.url, n, KEY).await.contains("x-gemini-attempts");
        if told {
            break;
        }
    }
    assert!(told);
    process.signal("TERM");
    let (code, log) = tokio::task::spawn_blocking(move || process.end()).await.unwrap();
    assert_eq!(code, 0);
    assert!(
        log.contains("did you mean `attempts`?") && log.contains("configuration reloaded"),
        "{log}"
    );
    std::fs::remove_dir_all(dir).unwrap();
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_withdrawn_opens_nothing_and_a_new_one_does_without_a_restart() {
    let sim = Sim::quick([]);
    let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let dir = tempdir("tokens");
    let (key, tokens) = (dir.join("key"), dir.join("tokens"));
    std::fs::write(&key, KEY).unwrap();
    let token = |n: usize| format!("token-of-alice-{n:010}");
    std::fs::write(&tokens, format!("alice:{}\n", token(1))).unwrap();
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[[upstream]]\nname = \"sim\"\nkind = \"gemini\"\nbase_url = \"{}\"\napi_key_file = {key:?}\n[auth]\nmode = \"tokens\"\ntokens_file = {tokens:?}\n",
        upstream.url()
    );
    let process = Process::start(&dir, &config);
    assert!(ask(&process.url, 0, &token(1)).await.starts_with("HTTP/1.1 200"));
    assert!(ask(&process.url, 0, &token(2)).await.starts_with("HTTP/1.1 401"));
    // Whatever else is wrong.
    std::fs::write(dir.join("gateway.toml"), "[server\n").unwrap();
    std::fs::write(&tokens, format!("# alice had another one before\nalice:{}\n", token(2)))
        .unwrap();
    let mut taken = false;
    for n in 1..60 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        taken = ask(&process.url, n, &token(2)).await.starts_with("HTTP/1.1 200");
        if taken {
            break;
        }
    }
    assert!(taken);
    assert!(ask(&process.url, 0, &token(1)).await.starts_with("HTTP/1.1 401"));
    process.signal("TERM");
    let (code, log) = tokio::task::spawn_blocking(move || process.end()).await.unwrap();
    assert_eq!(code, 0);
    assert!(!log.contains("token-of-alice") && !log.contains("sentinel"), "{log}");
    std::fs::remove_dir_all(dir).unwrap();
}

// The rest of the file was a valid file: on loopback everybody came in, and callers' tokens went to
// Google as keys.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_cut_short_changes_nothing_until_the_change_is_acknowledged() {
    let sim = Sim::quick([]);
    let upstream = serve(sim.clone(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let dir = tempdir("cut");
    let (key, tokens) = (dir.join("key"), dir.join("tokens"));
    std::fs::write(&key, KEY).unwrap();
    std::fs::write(&tokens, "alice:token-of-alice-0123456789\n").unwrap();
    let open = |more: &str, of_upstream: &str| {
        format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n{more}[[upstream]]\nname = \"sim\"\nkind = \"gemini\"\nbase_url = \"{}\"\n{of_upstream}",
            upstream.url()
        )
    };
    let config = open("", &format!("api_key_file = {key:?}\n"))
        + &format!("[auth]\nmode = \"tokens\"\ntokens_file = {tokens:?}\n");
    let process = Process::start(&dir, &config);
    let file = dir.join("gateway.toml");
    std::fs::write(&file, open("", "")).unwrap();
    process.signal("HUP");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(ask(&process.url, 0, "AIzaSyA-somebodys-key-0123456789").await.contains(" 401 "));
    assert!(ask(&process.url, 1, "token-of-alice-0123456789").await.contains(" 200 "));
    process.signal("TERM");
    let (_, log) = tokio::task::spawn_blocking(move || process.end()).await.unwrap();
    assert!(log.contains("auth.mode becomes \"passthrough\""), "{log}");
    let code = log.split("accept_changes = \"").nth(1).unwrap().split('"').next().unwrap();

    let process = Process::start(&dir, &config);
    std::fs::write(&file, open(&format!("accept_changes = \"{code}\"\n"), "")).unwrap();
    process.signal("HUP");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(ask(&process.url, 2, "AIzaSyA-somebodys-key-0123456789").await.contains(" 200 "));
    process.signal("TERM");
    let (_, log) = tokio::task::spawn_blocking(move || process.end()).await.unwrap();
    assert!(log.contains("accepted by server.accept_changes"), "{log}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn wrong_arguments_and_files_are_said_in_words_and_start_nothing() {
    for (args, says) in [
        (vec!["--port", "1"], "unexpected argument '--port' found"),
        (vec!["serve", "--simulate=rain"], "possible values: calm, stormy"),
        (
            vec!["check", "--config", "/nowhere/gateway.toml"],
            "/nowhere/gateway.toml cannot be read",
        ),
        (vec!["--config", "/nowhere/gateway.toml"], "/nowhere/gateway.toml cannot be read"),
        (vec!["--listen", "0.0.0.0:0"], "allow_public"),
        (vec!["--listen", "192.0.2.1:1"], "allow_public"),
    ] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_gemini-gateway")).args(&args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(says), "{args:?}: {said}");
    }
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = busy.local_addr().unwrap().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_gemini-gateway"))
        .args(["--listen", &addr])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(2)
            && said.contains("write another address in server.listen or --listen"),
        "{said}"
    );
}
