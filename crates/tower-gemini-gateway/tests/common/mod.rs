//! The program and a redis as processes that a test starts, kills and talks to.
// Each test binary uses a part of this; the exemption of tests from these lints does not reach
// helpers.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// A directory of this test's own, removed at the end.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("gemini-gateway-{name}-{}", std::process::id());
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

/// A process that is killed with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A redis on a free port and a socket of its directory.
pub(crate) struct Redis {
    _process: Process,
    port: u16,
    socket: PathBuf,
}

impl Redis {
    /// `None`, said aloud, where the program is missing.
    pub(crate) async fn start(dir: &Scratch) -> Option<Self> {
        let program = test_programs::find(&["redis-server"], "redis-server")?;
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let socket = dir.0.join("redis.sock");
        let child = Command::new(program)
            .args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string(), "--dir"])
            .arg(&dir.0)
            .arg("--unixsocket")
            .arg(&socket)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { _process: Process(child), port, socket };
        until(async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await;
        Some(server)
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// The same server by its socket.
    pub(crate) fn unix_url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }
}

/// The program.
pub(crate) struct Gateway {
    process: Process,
    pub(crate) addr: String,
}

impl Gateway {
    /// Starts it with this configuration; its log is the file `log` of the directory.
    pub(crate) fn start(dir: &Scratch, config: &str) -> Self {
        Self::start_with(dir, config, &[])
    }

    /// The same with these environment variables.
    pub(crate) fn start_with(dir: &Scratch, config: &str, variables: &[(&str, &str)]) -> Self {
        let file = dir.0.join("gateway.toml");
        std::fs::write(&file, config).unwrap();
        let log = std::fs::File::create(dir.0.join("log")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_gemini-gateway"))
            .arg("--config")
            .arg(&file)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let process = Process(child);
        let addr = lines.find_map(|line| {
            let addr = line.strip_prefix("What is going on: http://")?;
            addr.strip_suffix("/status").map(str::to_owned)
        });
        // The rest of what it prints has to go somewhere.
        std::thread::spawn(move || lines.for_each(drop));
        let log = || std::fs::read_to_string(dir.0.join("log")).unwrap_or_default();
        Self { process, addr: addr.unwrap_or_else(|| panic!("it did not start: {}", log())) }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.process.0.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub(crate) fn kill(mut self) {
        self.process.0.kill().unwrap();
        self.process.0.wait().unwrap();
    }

    /// Sends a request for an image and reads nothing. `headers` are lines that end with CR LF.
    pub(crate) async fn send(&self, model: &str, headers: &str, prompt: &str) -> TcpStream {
        let body = format!(r#"{{"contents":[{{"parts":[{{"text":"{prompt}"}}]}}]}}"#);
        let request = format!(
            "POST /v1beta/models/{model}:generateContent HTTP/1.1\r\nhost: localhost\r\n\
             content-type: application/json\r\nconnection: close\r\n{headers}\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(&self.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// The status of a response, and all of it as text.
    pub(crate) async fn ask(&self, model: &str, headers: &str, prompt: &str) -> (u16, String) {
        let mut stream = self.send(model, headers, prompt).await;
        let mut all = Vec::new();
        let read = timeout(Duration::from_secs(60), stream.read_to_end(&mut all)).await;
        read.expect("a response").unwrap();
        let text = String::from_utf8_lossy(&all).into_owned();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, text)
    }

    /// `/status.json`.
    pub(crate) async fn status(&self) -> Value {
        status(&self.addr).await
    }
}

/// `/status.json` of the gateway at this address.
pub(crate) async fn status(addr: &str) -> Value {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let get = "GET /status.json HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(get.as_bytes()).await.unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).await.unwrap();
    let body = &all[all.find('{').unwrap_or(0)..=all.rfind('}').unwrap_or(0)];
    serde_json::from_str(body).unwrap_or_default()
}

/// A bounded wait for another process.
#[track_caller]
pub(crate) fn until(mut done: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
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
