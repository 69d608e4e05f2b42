//! HTTP/1.1: every phase, many byte offsets, closed and reset.

use bytes::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tower_gemini::body::WireBody;
use tower_gemini::stage::WireClient;
use tower_gemini_reqwest::{ReqwestService, client_builder};

use super::{IMAGE, LONG, Tally, Truth, body, charge};

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

impl Cut {
    fn phase(self) -> &'static str {
        match self {
            Self::AtOnce => "before a byte was read",
            Self::Request(_) => "within the request",
            Self::Answer(_) => "before or within the answer",
        }
    }
}

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
            text.lines().find_map(|line| {
                line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok()
            })
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
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{IMAGE}",
            IMAGE.len()
        );
        let _ = stream.write_all(&answer.as_bytes()[..bytes.min(answer.len() - 1)]).await;
        let _ = stream.flush().await;
    }
    if reset {
        let _ = stream.set_zero_linger();
    }
    whole
}

async fn every_cut<S: WireClient>(name: &str, client: impl Fn() -> S) {
    let (small, large) = (body(500), body(LONG));
    let mut tally = Tally::default();
    for reset in [false, true] {
        let mut cuts: Vec<(&Bytes, Cut)> = vec![(&small, Cut::AtOnce), (&large, Cut::AtOnce)];
        cuts.extend((1..1200).step_by(41).map(|bytes| (&small, Cut::Request(bytes))));
        cuts.extend((0..260).step_by(7).map(|bytes| (&small, Cut::Answer(bytes))));
        cuts.extend(
            [1, 100, 5_000, 70_000, 500_000, 2_000_000, 6_000_000]
                .map(|bytes| (&large, Cut::Request(bytes))),
        );
        cuts.extend([0, 40, 150].map(|bytes| (&large, Cut::Answer(bytes))));
        for (body, cut) in cuts {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            let origin = tokio::spawn(origin(listener, cut, reset));
            let charge = charge(client(), addr, body.clone()).await;
            let truth = match origin.await.unwrap() {
                true => Truth::Whole,
                false if body.len() >= LONG => Truth::Unsent,
                false => Truth::Untold,
            };
            tally.note(cut.phase(), truth, charge, &(cut, reset, body.len()));
        }
    }
    // Nobody listens: connect errors are the other thing that a client can know.
    for _ in 0..20 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        tally.note(
            "nobody listens",
            Truth::Unsent,
            charge(client(), addr, small.clone()).await,
            &addr,
        );
    }
    tally.settle(name);
}

#[tokio::test]
async fn what_the_origin_had_whole_is_never_called_unsent_by_hypers_client() {
    every_cut("HTTP/1.1, hyper", || Client::builder(TokioExecutor::new()).build_http::<WireBody>())
        .await;
}

#[tokio::test]
async fn what_the_origin_had_whole_is_never_called_unsent_by_reqwest() {
    every_cut("HTTP/1.1, reqwest", || ReqwestService::new(client_builder().build().unwrap())).await;
}
