//! What the journal of paid calls costs: the time of one call with each store, over a service that
//! answers at once with a 1K image, so that nothing else takes time.
//!
//! ```not_rust
//! cargo run --release -p tower-gemini-benches --example journal            # in the temporary directory
//! cargo run --release -p tower-gemini-benches --example journal -- /mnt/x  # on another disk
//! ```
//!
//! Needs `redis-server` on the PATH for the rows of redis. A call begins a record before its first
//! byte, adds its outcome, stores the response of 1.5 MB (an image of 1.1 MB in JSON) before the
//! last byte goes to its client, and forgets the record once that is delivered. The row without a
//! journal is what the stack itself takes; the differences to it count, and are this machine's and
//! its disk's.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a program for people, which stops where it cannot go on"
)]
#![allow(clippy::disallowed_methods, reason = "it measures real time")]

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use base64::Engine;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{Service, ServiceExt};
use tower_gemini::store::{Journal, MemoryJournal};
use tower_gemini::{GeminiStack, KeepPaidLayer};
use tower_gemini_store::{RedbStore, RedisStore};

/// Of a 1K image: 1.1 MB of JPEG.
const IMAGE_BYTES: usize = 1_100_000;
/// Calls of one row, by how many are under way at once.
const ROUNDS: [(usize, usize); 2] = [(1, 500), (32, 1_600)];
/// Calls before those that count: files, connections and scripts are there then.
const WARM_UP: usize = 64;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let dir = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = dir.join(format!("journal-cost-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    println!(
        "| journal | calls at once | before the first byte: p50 | p99 | whole call: p50 | p99 | calls/s |\n\
         | --- | --- | --- | --- | --- | --- | --- |"
    );
    rows("none", None).await;
    rows("memory", Some(Arc::new(MemoryJournal::new()))).await;
    for (name, flush_within) in [
        ("redb, flushed before each send (`flush_within` 0)", Duration::ZERO),
        ("redb, `flush_within` 50 ms", Duration::from_millis(50)),
    ] {
        let store =
            RedbStore::open(dir.join(format!("{}.redb", flush_within.as_millis()))).unwrap();
        rows(name, Some(Arc::new(store.flush_within(flush_within)))).await;
    }
    for (name, options) in [
        ("redis, in memory", &["--appendonly", "no"][..]),
        (
            "redis, `appendfsync always`",
            // No rewriting of the file while it is measured.
            &[
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
                "--auto-aof-rewrite-percentage",
                "0",
            ],
        ),
    ] {
        let Some(redis) = Redis::start(&dir, options) else {
            println!(
                "| {name} | skipped: `redis-server` is not on the PATH (`apt-get install redis-server`) | | | | | |"
            );
            continue;
        };
        let store = RedisStore::open(&redis.url).unwrap();
        rows(name, Some(Arc::new(store))).await;
    }
    let _ = std::fs::remove_dir_all(dir);
}

/// Measures one journal, with each number of calls at once.
async fn rows(name: &str, journal: Option<Arc<dyn Journal>>) {
    let keep = KeepPaidLayer::new();
    let keep = match journal {
        Some(journal) => keep.journal(journal),
        None => keep,
    };
    let stack = GeminiStack::new().keep_paid(keep).raw(Api(response()));
    let call = Arc::new(move |n| one(stack.clone(), n));
    // Two requests of one text would be the same.
    let number = Arc::new(AtomicUsize::new(0));
    measure(32, WARM_UP, call.clone(), number.clone()).await;
    for (at_once, calls) in ROUNDS {
        let began = Instant::now();
        let times = measure(at_once, calls, call.clone(), number.clone()).await;
        let per_second = calls as f64 / began.elapsed().as_secs_f64();
        let percentile = |of: fn(&Times) -> Duration, percent: usize| {
            let mut times: Vec<_> = times.iter().map(of).collect();
            times.sort_unstable();
            format!("{:.2} ms", times[times.len() * percent / 100].as_secs_f64() * 1e3)
        };
        println!(
            "| {name} | {at_once} | {} | {} | {} | {} | {per_second:.0} |",
            percentile(|times| times.to_send, 50),
            percentile(|times| times.to_send, 99),
            percentile(|times| times.whole, 50),
            percentile(|times| times.whole, 99),
        );
    }
}

/// What a client waits for.
struct Times {
    to_send: Duration,
    whole: Duration,
}

/// Makes so many calls, each of `at_once` tasks one after another.
async fn measure<F: Future<Output = Times> + Send>(
    at_once: usize,
    calls: usize,
    call: Arc<impl Fn(usize) -> F + Send + Sync + 'static>,
    number: Arc<AtomicUsize>,
) -> Vec<Times> {
    let end = number.load(Ordering::Relaxed) + calls;
    let worker = || {
        let (call, number) = (call.clone(), number.clone());
        tokio::spawn(async move {
            let mut times = Vec::new();
            let next = || {
                number.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                    (n < end).then_some(n + 1)
                })
            };
            while let Ok(n) = next() {
                times.push(call(n).await);
            }
            times
        })
    };
    let workers: Vec<_> = (0..at_once).map(|_| worker()).collect();
    let mut times = Vec::new();
    for worker in workers {
        times.extend(worker.await.unwrap());
    }
    times
}

tokio::task_local! {
    /// When the upstream was asked.
    static SENT: Cell<Option<Instant>>;
}

/// One call, and its response read to the end.
async fn one<S, B>(stack: S, n: usize) -> Times
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error: std::fmt::Debug>,
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let body = format!(r#"{{"contents":[{{"parts":[{{"text":"apple {n}"}}]}}]}}"#);
    let request = Request::post("http://api/v1beta/models/gemini-3-pro-image:generateContent")
        .header("content-type", "application/json")
        .header("x-goog-api-key", "a-key")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let timed = async {
        let began = Instant::now();
        let response = stack.oneshot(request).await.unwrap();
        let to_send = SENT.with(Cell::get).unwrap().duration_since(began);
        assert_eq!(response.status(), 200);
        let length = response.into_body().collect().await.unwrap().to_bytes().len();
        assert!(length > IMAGE_BYTES);
        Times { to_send, whole: began.elapsed() }
    };
    SENT.scope(Cell::new(None), timed).await
}

fn response() -> Bytes {
    let image = base64::engine::general_purpose::STANDARD.encode(vec![0x5a; IMAGE_BYTES]);
    let json = format!(
        r#"{{"candidates":[{{"content":{{"parts":[{{"inlineData":{{"mimeType":"image/jpeg","data":"{image}"}}}}]}},"finishReason":"STOP"}}],"usageMetadata":{{"promptTokenCount":8,"candidatesTokenCount":1120,"totalTokenCount":1128}}}}"#
    );
    Bytes::from(json)
}

/// Answers at once.
#[derive(Clone)]
struct Api(Bytes);

impl<B> Service<Request<B>> for Api {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        SENT.with(|sent| sent.set(Some(Instant::now())));
        ready(Ok(Response::new(Full::new(self.0.clone()))))
    }
}

/// A redis on a free port, ended with this value.
struct Redis {
    child: Child,
    url: String,
}

impl Redis {
    fn start(dir: &Path, options: &[&str]) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string(), "--dir"])
            .arg(dir)
            .args(options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let server = Self { child, url: format!("redis://127.0.0.1:{port}/") };
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(server)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
