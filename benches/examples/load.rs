//! Load on loopback: the gateway, without a journal of paid calls and with one, beside a bare proxy
//! (axum in front, hyper's client behind, nothing between), in one run.
//!
//! ```not_rust
//! cargo build --release -p tower-gemini-gateway -p tower-gemini-benches \
//!     --bin gemini-gateway --example load
//! target/release/examples/load            # needs `wrk`, a public load tool, on the PATH
//! target/release/examples/load /mnt/x     # with the journal on another disk than the temporary one
//! ```
//!
//! Starts an upstream that answers at once (or after a delay) with a fixed answer of an image, the
//! proxies as processes of their own, drives them with wrk by turns, and prints latency, CPU time a
//! request and memory. Ratios count; the rest is this machine's.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a program for people, which stops where it cannot go on"
)]
#![allow(clippy::disallowed_methods, reason = "it measures real time")]

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use http::{Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// Of a 1K image: 1.1 MB of JPEG.
const IMAGE_BYTES: usize = 1_100_000;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let text = |n: usize| args.get(n).map(String::as_str);
    match text(1) {
        Some("upstream") => on_runtime(upstream(text(2).unwrap().parse().unwrap())),
        Some("bare") => {
            on_runtime(bare(text(2).unwrap().parse().unwrap(), text(3).unwrap().to_owned()))
        }
        _ => drive(),
    }
}

fn on_runtime(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(work);
}

/// `/v1beta/models/M:generateContent`: a small answer for the model `small`, an image for every
/// other; a header says how late.
async fn upstream(addr: SocketAddr) {
    let answer = |bytes: usize| {
        let data = base64::engine::general_purpose::STANDARD.encode(vec![0x5a; bytes]);
        let json = format!(
            "{{\n  \"candidates\": [{{\"content\": {{\"parts\": [{{\"inlineData\": {{\"mimeType\": \"image/jpeg\", \"data\": \"{data}\"}}}}]}}, \"finishReason\": \"STOP\"}}],\n  \"usageMetadata\": {{\"promptTokenCount\": 8, \"candidatesTokenCount\": 1120, \"totalTokenCount\": 1128}}\n}}\n"
        );
        bytes::Bytes::from(json)
    };
    let (small, image) = (answer(600), answer(IMAGE_BYTES));
    let handler = move |request: Request<Body>| {
        let body =
            if request.uri().path().contains("small") { small.clone() } else { image.clone() };
        let delay = request
            .headers()
            .get("x-delay-ms")
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .unwrap_or(0);
        async move {
            let _ = axum::body::to_bytes(request.into_body(), usize::MAX).await;
            if delay > 0 {
                tokio::time::sleep(Duration::from_millis(delay)).await;
            }
            ([("content-type", "application/json; charset=UTF-8")], body).into_response()
        }
    };
    let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
    axum::serve(listener, axum::Router::new().fallback(handler)).await.unwrap();
}

/// The least that a proxy does.
async fn bare(addr: SocketAddr, base: String) {
    type Upstream = (Client<HttpConnector, Body>, String);
    async fn pass(State((client, base)): State<Upstream>, mut request: Request<Body>) -> Response {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = format!("{base}{path}").parse::<Uri>().unwrap();
        request.headers_mut().remove("host");
        match client.request(request).await {
            Ok(answer) => answer.map(Body::new).into_response(),
            Err(error) => (http::StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
        }
    }
    let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
    let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
    axum::serve(listener, axum::Router::new().fallback(pass).with_state((client, base)))
        .await
        .unwrap();
}

/// A process that is ended with this value.
struct Running {
    child: Child,
    addr: SocketAddr,
}

impl Running {
    fn start(mut command: Command, addr: SocketAddr) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while TcpStream::connect(addr).is_err() {
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "nothing listens on {addr}: {command:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { child, addr }
    }

    /// CPU time so far, in clock ticks of 10 ms.
    fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_addr() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// One run of wrk against one server.
struct Figures {
    requests: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
    failed: u64,
}

fn wrk(server: &Running, model: &str, connections: u32, seconds: u32, dir: &Path) -> Figures {
    let script = dir.join("post.lua");
    let mut file = std::fs::File::create(&script).unwrap();
    write!(
        file,
        "local n = 0\nrequest = function()\n n = n + 1\n return wrk.format('POST', nil, {{['content-type']='application/json',['x-goog-api-key']='k'..n}}, \
         '{{\"contents\":[{{\"parts\":[{{\"text\":\"a red apple\"}}]}}]}}')\nend\n\
         done = function(s, l, r)\n io.write(string.format('FIGURES %d %d %d %d\\n', s.requests, l:percentile(50), l:percentile(99), \
         s.errors.status + s.errors.connect + s.errors.read + s.errors.timeout))\nend\n"
    )
    .unwrap();
    let before = server.ticks();
    let output = Command::new("wrk")
        .args([
            "-t1",
            &format!("-c{connections}"),
            &format!("-d{seconds}s"),
            "--timeout",
            "20s",
            "-s",
        ])
        .arg(&script)
        .arg(format!("http://{}/v1beta/models/{model}:generateContent", server.addr))
        .output()
        .expect("wrk is a public load tool; install it with your system's packages");
    let ticks = server.ticks() - before;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("FIGURES "))
        .unwrap_or_else(|| panic!("wrk said: {text}"));
    let figures: Vec<f64> = line.split(' ').map(|figure| figure.parse().unwrap()).collect();
    Figures {
        requests: figures[0],
        p50_us: figures[1],
        p99_us: figures[2],
        cpu_us: ticks as f64 * 10_000.0 / figures[0].max(1.0),
        failed: figures[3] as u64,
    }
}

/// The gateway, with these lines in its `[server]`.
fn start_gateway(dir: &Path, server: &str, base: &str) -> Running {
    let me = std::env::current_exe().unwrap();
    let gateway =
        me.parent().and_then(|examples| examples.parent()).unwrap().join("gemini-gateway");
    std::fs::create_dir_all(dir).unwrap();
    let (addr, config) = (free_addr(), dir.join("gateway.toml"));
    let text = format!(
        "[server]\nlisten = \"{addr}\"\nmax_in_flight = 20000\nmax_connections = 20000\nmemory = \"48GiB\"\n{server}\n\
         [[upstream]]\nname = \"load\"\nkind = \"gemini\"\nbase_url = \"{base}\"\n\
         [log]\nlevel = \"warn\"\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(&gateway);
    command.arg("--config").arg(&config);
    Running::start(command, addr)
}

fn drive() {
    let me = std::env::current_exe().unwrap();
    let dir = std::env::temp_dir().join(format!("gateway-load-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();

    let addr = free_addr();
    let mut command = Command::new(&me);
    command.args(["upstream", &addr.to_string()]);
    let upstream = Running::start(command, addr);
    let base = format!("http://{}", upstream.addr);

    let addr = free_addr();
    let mut command = Command::new(&me);
    command.args(["bare", &addr.to_string(), &base]);
    let bare = Running::start(command, addr);

    let ours = start_gateway(&dir.join("without"), "", &base);
    let state = std::env::args().nth(1).map_or_else(|| dir.clone(), PathBuf::from);
    let state = state.join(format!("gateway-load-state-{}", std::process::id()));
    let journaled = start_gateway(&dir.join("with"), &format!("state_dir = {state:?}"), &base);
    let proxies =
        [("bare", &bare), ("gateway", &ours), ("gateway with a journal (redb)", &journaled)];

    println!(
        "| load | proxy | requests/s | p50 | p99 | CPU a request | failed |\n| --- | --- | --- | --- | --- | --- | --- |"
    );
    for (name, model, connections) in [
        ("small answer, 1 connection", "gemini-small-image", 1),
        ("small answer, 32 connections", "gemini-small-image", 32),
        ("1K image (1.5 MB of JSON), 1 connection", "gemini-3-pro-image", 1),
        ("1K image, 8 connections", "gemini-3-pro-image", 8),
    ] {
        for round in 0..3 {
            for (proxy, server) in proxies {
                let figures = wrk(server, model, connections, 4, &dir);
                // The first round fills pools and caches.
                if round > 0 {
                    println!(
                        "| {name} | {proxy} | {:.0} | {:.0} µs | {:.0} µs | {:.0} µs | {} |",
                        figures.requests / 4.0,
                        figures.p50_us,
                        figures.p99_us,
                        figures.cpu_us,
                        figures.failed
                    );
                }
            }
        }
    }

    println!(
        "\nRequests held in flight while the model works (10 s), and what each costs in memory:\n"
    );
    println!(
        "| proxy | in flight | memory before | memory during | a request |\n| --- | --- | --- | --- | --- |"
    );
    for (proxy, server) in proxies {
        const IN_FLIGHT: u64 = 2_000;
        let before = server.resident_kib();
        let sockets: Vec<TcpStream> = (0..IN_FLIGHT)
            .map(|n| {
                let mut socket = TcpStream::connect(server.addr).unwrap();
                let body = "{\"contents\":[{\"parts\":[{\"text\":\"a red apple\"}]}]}";
                write!(
                    socket,
                    "POST /v1beta/models/gemini-small-image:generateContent HTTP/1.1\r\nhost: localhost\r\nx-goog-api-key: k{n}\r\nx-delay-ms: 10000\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                )
                .unwrap();
                socket
            })
            .collect();
        std::thread::sleep(Duration::from_secs(5));
        let during = server.resident_kib();
        let mut answered = 0;
        for mut socket in sockets {
            use std::io::Read;
            let mut head = [0; 12];
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            answered += u64::from(socket.read_exact(&mut head).is_ok() && &head[9..] == b"200");
        }
        println!(
            "| {proxy} | {answered} of {IN_FLIGHT} answered | {:.1} MiB | {:.1} MiB | {:.1} KiB |",
            before as f64 / 1024.0,
            during as f64 / 1024.0,
            during.saturating_sub(before) as f64 / IN_FLIGHT as f64
        );
    }
    drop(journaled);
    let _ = std::fs::remove_dir_all(state);
    let _ = std::fs::remove_dir_all(dir);
}
