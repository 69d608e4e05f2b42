//! The gateway's own key, echoed by an upstream in every place that it can put it, and the URL that
//! alerts go to, are nowhere afterwards: not in what is answered, printed, logged, counted or stored.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// In no form that names it as a key, and with characters that JSON and URLs may spell otherwise.
const KEY: &str = "gateway/SENTINEL+0123456789";
/// Whatever is around it was lost on purpose; this part is in each of its spellings.
const MARK: &str = "SENTINEL";
/// Where alerts are sent, to an upstream that refuses them.
const WEBHOOK: &str = "/services/SENTINEL/B0?c=1";
const TOKEN: &str = "token-of-ann-0123456";
const PRO: &str = "/v1beta/models/gemini-3-pro-image";
const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

fn image(text: &str) -> String {
    format!(
        r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{text}"}},{{"inlineData":{{"mimeType":"image/png","data":"{PIXEL}"}}}}]}},"finishReason":"STOP","finishMessage":"{text}"}}],"modelVersion":"{text}","responseId":"{text}"}}"#
    )
}

fn error(code: u16, message: &str, details: &str) -> String {
    let status = if code == 429 { "RESOURCE_EXHAUSTED" } else { "PERMISSION_DENIED" };
    format!(
        r#"{{"error":{{"code":{code},"message":"{message}","status":"{status}","details":[{details}]}}}}"#
    )
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// What the upstream sends for a request with this word in it: the line of its status, headers, and
/// its body.
fn answer(word: &str) -> (String, String, Vec<u8>) {
    let info = format!(
        r#"{{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"{KEY}","domain":"{KEY}","metadata":{{"consumer":"{KEY}","{KEY}":"x"}}}}"#
    );
    let debug = format!(
        r#"{{"@type":"type.googleapis.com/google.rpc.DebugInfo","detail":"Invalid API key: {KEY}"}}"#
    );
    let quota = format!(
        r#"{{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{{"quotaMetric":"{KEY}","quotaId":"{KEY}","quotaDimensions":{{"model":"{KEY}"}}}}]}}"#
    );
    let ok = |body: String| ("200 OK".to_owned(), String::new(), body.into_bytes());
    let refused = |code: u16, message: &str, details: &str| {
        (format!("{code} No"), String::new(), error(code, message, details).into_bytes())
    };
    let event = |text: &str| format!("data: {text}\r\n\r\n");
    match word {
        "reason" => (format!("403 no {KEY}"), String::new(), error(403, "no", "").into_bytes()),
        "phrase" => (format!("200 {KEY}"), String::new(), image("").into_bytes()),
        "header" => {
            let (line, _, body) = refused(400, "bad", "");
            (line, format!("x-debug: {KEY}\r\nlocation: http://x/?key={KEY}\r\n"), body)
        }
        "message" => refused(403, &format!("The key {KEY} is not valid"), ""),
        "info" => refused(403, "no", &info),
        "details" => refused(403, "no", &debug),
        "quota" => refused(429, &format!("limit: 0, model: {KEY}"), &quota),
        "busy" => refused(503, &format!("overloaded for {KEY}"), &info),
        "successor" => {
            let to = "no longer available to new users. Please update your code to use models/";
            refused(404, &format!("This model models/x is {to}{KEY}"), "")
        }
        "page" => ("502 No".into(), "content-type: text/html\r\n".into(), KEY.into()),
        "gzip-error" => {
            let body = gzip(&error(403, KEY, &debug));
            ("403 No".into(), "content-encoding: gzip\r\n".into(), body)
        }
        "br-error" => ("403 No".into(), "content-encoding: br\r\n".into(), KEY.into()),
        "br" => ("200 OK".into(), "content-encoding: br\r\n".into(), KEY.into()),
        "gzip" => ("200 OK".into(), "content-encoding: gzip\r\n".into(), gzip(&image(KEY))),
        "json" => ok(image(&KEY.replace('/', "\\/"))),
        "url" => ok(image("http://x/?key=gateway%2FSENTINEL%2B0123456789")),
        "lower-url" => ok(image("http://x/?key=gateway%2fSENTINEL%2b0123456789")),
        "text" => ok(format!(
            r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{KEY}"}}]}},"finishReason":"STOP"}}]}}"#
        )),
        "blocked" => ok(format!(
            r#"{{"promptFeedback":{{"blockReason":"{KEY}","blockReasonMessage":"{KEY}"}}}}"#
        )),
        "broken" => ok(image(KEY).chars().take(120).collect()),
        "interaction" => ok(format!(
            r#"{{"id":"{KEY}","status":"failed","error":{{"code":"{KEY}","message":"{KEY}"}}}}"#
        )),
        "stream" => ok(event(&image(KEY)) + &event(&error(500, KEY, &info))),
        "stream-error" => ok(event(&error(429, KEY, &info))),
        "stream-text" => ok(event(&format!(
            r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{KEY}"}}]}}}}]}}"#
        )) + &event(&image(KEY))),
        "file" => ok(format!(r#"{{"file":{{"name":"files/{KEY}","uri":"{KEY}"}}}}"#)),
        _ => ok(image(KEY)),
    }
}

fn is_whole(request: &[u8]) -> bool {
    let request = String::from_utf8_lossy(request);
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let length = head.split_once("content-length: ").map_or("0", |(_, length)| length);
    body.len() >= length.lines().next().unwrap().parse().unwrap()
}

async fn upstream() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !is_whole(&request) {
                    assert!(stream.read_buf(&mut request).await.unwrap() > 0);
                }
                let request = String::from_utf8_lossy(&request);
                if request.starts_with(&format!("POST {WEBHOOK} ")) {
                    let refusal = "HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n";
                    return stream.write_all(refusal.as_bytes()).await.unwrap();
                }
                assert!(request.contains(KEY), "{request}");
                let word = request.rsplit_once("word ").map_or("", |(_, word)| word);
                let word = word.split('.').next().unwrap_or_default();
                if word == "late" {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                let (line, headers, body) = answer(word);
                let kind = if word.starts_with("stream") {
                    "text/event-stream"
                } else {
                    "application/json"
                };
                let head = format!(
                    "HTTP/1.1 {line}\r\n{headers}content-type: {kind}\r\ncontent-length: {}\r\n\
                     connection: close\r\n\r\n",
                    body.len()
                );
                // In pieces, of which one ends within the key.
                let whole = [head.as_bytes(), &body].concat();
                let cut = whole.len() - body.len() / 2;
                stream.write_all(&whole[..cut]).await.unwrap();
                stream.flush().await.unwrap();
                tokio::task::yield_now().await;
                stream.write_all(&whole[cut..]).await.unwrap();
            });
        }
    });
    url
}

async fn send(addr: &str, method: &str, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {addr}\r\nx-goog-api-key: {TOKEN}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

fn prompt(word: &str) -> String {
    format!(r#"{{"contents":[{{"parts":[{{"text":"word {word}."}}]}}]}}"#)
}

/// Every file below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program in a directory of its own, and what it printed and answered.
struct Gateway {
    dir: PathBuf,
    program: Program,
    printed: BufReader<std::process::ChildStdout>,
    addr: String,
    answers: Vec<(String, String)>,
}

impl Gateway {
    async fn start(name: &str, more: &str) -> Self {
        let dir = format!("gemini-gateway-secrets-{name}-{}", std::process::id());
        let dir = std::env::temp_dir().join(dir);
        std::fs::create_dir_all(&dir).unwrap();
        let at = |name: &str| dir.join(name);
        std::fs::write(at("key"), KEY).unwrap();
        std::fs::write(at("tokens"), format!("ann:{TOKEN}\n")).unwrap();
        let upstream = upstream().await;
        std::fs::write(at("webhook"), format!("{upstream}{WEBHOOK}\n")).unwrap();
        let config = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nstate_dir = {:?}\n[keep]\ndir = {:?}\n\
             [log]\nlevel = \"trace\"\naudit = {:?}\nobservations = {:?}\n\
             [signatures]\nfile = {:?}\n[responses]\nreport_headers = true\n\
             [[upstream]]\nname = \"up\"\nkind = \"gemini\"\nbase_url = \"{}\"\n\
             api_key_file = {:?}\n[auth]\nmode = \"tokens\"\ntokens_file = {:?}\n\
             [alerts]\nwebhook_file = {:?}\n{more}",
            at("state"),
            at("kept"),
            at("audit"),
            at("observations"),
            at("signatures"),
            upstream,
            at("key"),
            at("tokens"),
            at("webhook"),
        );
        std::fs::write(at("gateway.toml"), config).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_gemini-gateway"))
            .arg("--config")
            .arg(at("gateway.toml"))
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(at("stderr")).unwrap())
            .spawn();
        let mut program = Program(child.unwrap());
        let mut printed = BufReader::new(program.0.stdout.take().unwrap());
        let mut line = String::new();
        let addr = loop {
            line.clear();
            assert!(printed.read_line(&mut line).unwrap() > 0);
            let url = line.split_once("http://").map(|(_, url)| url.trim());
            if let Some(addr) = url.and_then(|url| url.strip_suffix("/status")) {
                break addr.to_owned();
            }
        };
        Self { dir, program, printed, addr, answers: Vec::new() }
    }

    async fn ask(&mut self, method: &str, path: &str, body: &str) {
        let mut stream = send(&self.addr, method, path, body).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        self.answers.push((format!("{path} {body}"), answer));
    }

    async fn generate(&mut self, word: &str) {
        self.ask("POST", &format!("{PRO}:generateContent"), &prompt(word)).await;
    }

    /// The first answer to a request with this in it.
    fn of(&self, part: &str) -> &str {
        &self.answers.iter().find(|(asked, _)| asked.contains(part)).unwrap().1
    }

    /// Asks for its pages, ends it, and looks for secrets in everything. The files that it left.
    async fn end_without_secrets(mut self) -> Vec<PathBuf> {
        for page in ["/status", "/status.json", "/metrics", "/readyz"] {
            self.ask("GET", page, "").await;
        }
        let pid = self.program.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let mut rest = String::new();
        self.printed.read_to_string(&mut rest).unwrap();
        assert_eq!(self.program.0.wait().unwrap().code(), Some(0));
        self.answers.push(("printed".to_owned(), rest));
        for (asked, answer) in &self.answers {
            assert!(!answer.contains(MARK) && !answer.contains(TOKEN), "{asked}: {answer}");
        }
        let own = ["key", "tokens", "webhook"].map(|name| self.dir.join(name));
        let left: Vec<_> = files(&self.dir).into_iter().filter(|at| !own.contains(at)).collect();
        for path in &left {
            let bytes = std::fs::read(path).unwrap();
            for secret in [MARK, TOKEN] {
                let found = bytes.windows(secret.len()).position(|here| here == secret.as_bytes());
                let found = found.map(|at| {
                    let around = at.saturating_sub(200)..bytes.len().min(at + 80);
                    String::from_utf8_lossy(&bytes[around])
                });
                assert!(found.is_none(), "{}: {}", path.display(), found.unwrap_or_default());
            }
        }
        std::fs::remove_dir_all(&self.dir).unwrap();
        left
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_an_upstream_echoes_is_nowhere_afterwards() {
    // A model that has retired is an alert.
    let plain = "[retry]\nattempts = 1\nprobe_every = \"0s\"\n\
                 [quota.model.\"gemini-2.5-flash-image\"]\nrpm = 9\n";
    let mut gateway = Gateway::start("plain", plain).await;
    for word in [
        "reason",
        "phrase",
        "header",
        "message",
        "info",
        "details",
        "quota",
        "busy",
        "page",
        "gzip-error",
        "br-error",
        "br",
        "gzip",
        "json",
        "url",
        "lower-url",
        "text",
        "blocked",
        "broken",
        "image",
    ] {
        gateway.generate(word).await;
        let chat = format!(
            r#"{{"model":"gemini-3-pro-image","messages":[{{"role":"user","content":"word {word}."}}]}}"#
        );
        gateway.ask("POST", "/v1/chat/completions", &chat).await;
    }
    let streamed = format!("{PRO}:streamGenerateContent?alt=sse");
    for word in ["stream", "stream-error", "stream-text", "busy", "gzip-error"] {
        gateway.ask("POST", &streamed, &prompt(word)).await;
    }
    let interaction = r#"{"model":"gemini-3-pro-image","input":"word interaction."}"#;
    gateway.ask("POST", "/v1beta/interactions", interaction).await;
    gateway.ask("POST", "/upload/v1beta/files", r#"{"displayName":"word file."}"#).await;
    // One that hangs up: what it paid for is stored.
    let late = format!("{PRO}:generateContent");
    let hung_up = send(&gateway.addr, "POST", &late, &prompt("late")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(hung_up);
    tokio::time::sleep(Duration::from_millis(600)).await;

    // The search says something only where the cases came through.
    for word in ["phrase", "gzip", "json", "url", "image"] {
        let answer = gateway.of(&format!("word {word}."));
        assert!(answer.contains(" 200 ") && answer.contains(PIXEL), "{word}: {answer}");
    }
    let broken_off = gateway.of("word br.");
    assert!(broken_off.contains("x-gemini-charge: maybe"), "{broken_off}");
    for word in ["message", "gzip-error", "stream-text", "file", "interaction"] {
        let answer = gateway.of(&format!("word {word}."));
        assert!(answer.contains("*********"), "{word}: {answer}");
    }
    gateway.ask("GET", "/status.json", "alerts").await;
    let status = gateway.of("/status.json alerts");
    assert!(status.contains("\"problem\":\"it answered 404 Not Found\""), "{status}");
    let log = std::fs::read_to_string(gateway.dir.join("stderr")).unwrap();
    assert_eq!(log.matches("alerts cannot be delivered").count(), 1, "logged once");
    let left = gateway.end_without_secrets().await;
    for name in ["/state.responses/", "/state.redb", "/audit", "/observations", "/stderr"] {
        let is_left = |path: &PathBuf| path.to_string_lossy().contains(name);
        assert!(left.iter().any(is_left), "{name}: {left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_named_as_a_models_successor_names_no_model() {
    let chain = "[fallback]\nmodels = [\"gemini-3-pro-image\", \"gemini-3.1-flash-image\"]\n\
                 wait = false\n";
    let mut gateway = Gateway::start("chain", chain).await;
    for word in ["successor", "quota"] {
        gateway.generate(word).await;
    }
    gateway.end_without_secrets().await;
}
