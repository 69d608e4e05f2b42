//! A connection that is cut, wherever: what may have been paid for is never called "not sent".
//!
//! The origin is a socket that reads and writes so many bytes and then closes (FIN) or resets (RST), and says whether it had the whole
//! request. What a client can know is less than that: a request of a kilobyte fits into the socket's buffer at once, so of a connection
//! that breaks right after nobody can say how much of it arrived, and it counts as *maybe charged*. A request of megabytes that the
//! client has not handed over whole is recognised, and costs nothing.

use std::net::SocketAddr;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tower::{Layer, Service, ServiceExt};
use tower_gemini::core::body::ReplayBody;
use tower_gemini::core::context::CallOptions;
use tower_gemini::core::error::BoxError;
use tower_gemini::core::trail::Trail;
use tower_gemini::core::verdict::Charge;
use tower_gemini::{ClassifyGeminiErrorLayer, CollectRequestLayer};
use tower_gemini_reqwest::{ReqwestService, client_builder};

/// Where the origin stops.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// Before it has read anything.
    AtOnce,
    /// After so many bytes of the request, or after all of it where it is shorter.
    Request(usize),
    /// After the whole request and so many bytes of the answer.
    Answer(usize),
}

const IMAGE: &str = "{\"candidates\":[{\"content\":{\"parts\":[{\"inlineData\":{\"mimeType\":\"image/png\",\"data\":\"AQIDBAUGBwgJ\"}}]},\"finishReason\":\"STOP\"}]}";

/// Serves one connection. Gives whether it had the whole request.
async fn origin(listener: TcpListener, cut: Cut, reset: bool) -> bool {
    let (mut stream, _) = listener.accept().await.unwrap();
    let (mut seen, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    let most = match cut {
        Cut::AtOnce => 0,
        Cut::Request(bytes) => bytes,
        Cut::Answer(_) => usize::MAX,
    };
    let whole = loop {
        let head = seen.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
        let length = head.and_then(|head| {
            let text = String::from_utf8_lossy(&seen[..head]).to_lowercase();
            text.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok())
        });
        if head.zip(length).is_some_and(|(head, length)| seen.len() >= head + length) {
            break true;
        }
        let left = most - seen.len();
        if left == 0 {
            break false;
        }
        let room = left.min(buffer.len());
        match stream.read(&mut buffer[..room]).await {
            Ok(0) | Err(_) => break false,
            Ok(read) => seen.extend_from_slice(&buffer[..read]),
        }
    };
    if let (Cut::Answer(bytes), true) = (cut, whole) {
        let answer =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{IMAGE}", IMAGE.len());
        let _ = stream.write_all(&answer.as_bytes()[..bytes.min(answer.len() - 1)]).await;
        let _ = stream.flush().await;
    }
    if reset {
        let _ = stream.set_zero_linger();
    }
    whole
}

/// Sends one request to an origin that cuts there. Gives whether the origin had the whole of it, and what the client takes it to cost.
async fn send<S, B>(client: impl Fn() -> S, body: Bytes, cut: Cut, reset: bool) -> (bool, Charge)
where
    S: Service<Request<ReplayBody>, Response = http::Response<B>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    B: http_body::Body<Error: Into<BoxError>> + Unpin + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let origin = tokio::spawn(origin(listener, cut, reset));
    (charge(client(), addr, body).await, origin.await.unwrap()).swap()
}

trait Swap<A, B> {
    fn swap(self) -> (B, A);
}

impl<A, B> Swap<A, B> for (A, B) {
    fn swap(self) -> (B, A) {
        (self.1, self.0)
    }
}

async fn charge<S, B>(client: S, addr: SocketAddr, body: Bytes) -> Charge
where
    S: Service<Request<ReplayBody>, Response = http::Response<B>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    B: http_body::Body<Error: Into<BoxError>> + Unpin + Send,
{
    let trail = Trail::new();
    let request = Request::post(format!("http://{addr}/v1beta/models/gemini-3-pro-image:generateContent"))
        .header("content-type", "application/json")
        .extension(CallOptions::new().trail(trail.clone()))
        .body(Full::new(body))
        .unwrap();
    let service = CollectRequestLayer::new().layer(ClassifyGeminiErrorLayer::new().layer(client));
    if let Ok(answer) = service.oneshot(request).await {
        let _ = answer.into_body().collect().await;
    }
    trail.attempts().last().unwrap().charge
}

fn body(bytes: usize) -> Bytes {
    format!("{{\"contents\":[{{\"parts\":[{{\"text\":\"{}\"}}]}}]}}", "a".repeat(bytes)).into()
}

async fn every_cut<S, B>(name: &str, client: impl Fn() -> S)
where
    S: Service<Request<ReplayBody>, Response = http::Response<B>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    B: http_body::Body<Error: Into<BoxError>> + Unpin + Send,
{
    let (small, large) = (body(500), body(16 * 1024 * 1024));
    let (mut unsent, mut recognised, mut whole) = (0, 0, 0);
    for reset in [false, true] {
        let mut cuts: Vec<(&Bytes, Cut)> = vec![(&small, Cut::AtOnce)];
        cuts.extend((1..1200).step_by(41).map(|bytes| (&small, Cut::Request(bytes))));
        cuts.extend((0..260).step_by(7).map(|bytes| (&small, Cut::Answer(bytes))));
        cuts.extend([0, 100, 5_000, 70_000, 500_000, 2_000_000, 6_000_000].map(|bytes| (&large, Cut::Request(bytes))));
        cuts.extend([0, 40, 150].map(|bytes| (&large, Cut::Answer(bytes))));
        for (body, cut) in cuts {
            let (had_all, charge) = send(&client, body.clone(), cut, reset).await;
            if had_all {
                whole += 1;
                assert!(
                    !charge.is_surely_free(),
                    "{name}: {cut:?} (reset: {reset}) of {} bytes was called {charge}",
                    body.len()
                );
            } else if body.len() > 1_000_000 {
                // Beyond what sockets and the client's own buffers hold: the client can know.
                unsent += 1;
                recognised += usize::from(charge.is_surely_free());
            }
        }
    }
    // Nobody listens: connect errors are the other thing that a client can know.
    for _ in 0..20 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        unsent += 1;
        recognised += usize::from(charge(client(), addr, small.clone()).await.is_surely_free());
    }
    println!(
        "{name}: the origin had all of {whole} requests, none of them called unsent; of {unsent} unsent ones {recognised} were recognised"
    );
    assert!(whole > 60 && recognised * 100 >= unsent * 95, "{name}: {recognised} of {unsent}");
}

#[tokio::test]
async fn what_the_origin_had_whole_is_never_called_unsent_by_hypers_client() {
    every_cut("hyper", || Client::builder(TokioExecutor::new()).build_http::<ReplayBody>()).await;
}

#[tokio::test]
async fn what_the_origin_had_whole_is_never_called_unsent_by_reqwest() {
    every_cut("reqwest", || ReqwestService::new(client_builder().build().unwrap())).await;
}
