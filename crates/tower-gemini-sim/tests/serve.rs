//! The simulator behind a real socket, spoken to by hand.
#![cfg(feature = "serve")]
// The exemption of tests from these lints does not reach helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{CAT, PRO};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tower_gemini_sim::{Batches, Delivered, Fault, ServeHandle, Sim, hash64, serve};

async fn start(sim: &Sim) -> ServeHandle {
    serve(sim.clone(), ([127, 0, 0, 1], 0).into()).await.unwrap()
}

fn request(close: bool) -> String {
    let connection = if close { "close" } else { "keep-alive" };
    format!(
        "POST /v1beta/models/{PRO}:generateContent HTTP/1.1\r\nhost: gemini\r\nx-goog-api-key: k\r\nconnection: {connection}\r\n\
         content-length: {}\r\n\r\n{CAT}",
        CAT.len()
    )
}

/// Everything that arrives until the connection ends, and how it ended.
async fn exchange(server: &ServeHandle) -> (Vec<u8>, std::io::Result<()>) {
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    stream.write_all(request(true).as_bytes()).await.unwrap();
    let mut got = Vec::new();
    let end = stream.read_to_end(&mut got).await;
    (got, end.map(drop))
}

fn head_and_body(answer: &[u8]) -> (&str, &[u8]) {
    let at = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    (std::str::from_utf8(&answer[..at]).unwrap(), &answer[at..])
}

#[tokio::test]
async fn an_answer_with_its_length_round_trips() {
    let sim = Sim::builder()
        .latency(tower_gemini_sim::Latency::none())
        .tiny_images(true)
        .announce_length(true)
        .build();
    let server = start(&sim).await;
    let (answer, end) = exchange(&server).await;
    end.unwrap();
    let (head, body) = head_and_body(&answer);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
    let image = common::final_image(&serde_json::from_slice(body).unwrap()).unwrap();
    let record = sim.ledger().requests()[0].clone();
    assert_eq!((record.image_hash, record.delivered), (Some(hash64(&image)), Delivered::Full));
    server.shutdown().await;
}

#[tokio::test]
async fn one_connection_carries_many_requests_in_chunks() {
    let sim = Sim::quick([Fault::None, Fault::HighDemand, Fault::PayloadTooLargeHtml]);
    let server = start(&sim).await;
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    for (end_of_body, status) in
        [("}\n\r\n0\r\n\r\n", "200 OK"), ("}\n\r\n0\r\n\r\n", "503 Service Unavailable")]
    {
        stream.write_all(request(false).as_bytes()).await.unwrap();
        let mut got = Vec::new();
        while !got.ends_with(end_of_body.as_bytes()) {
            assert_ne!(stream.read_buf(&mut got).await.unwrap(), 0);
        }
        let (head, _) = head_and_body(&got);
        assert!(head.contains(status) && head.contains("transfer-encoding: chunked"), "{head}");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_cut_body_stops_at_its_byte_and_closes_the_connection() {
    for at in [0, 1, 500] {
        let sim = Sim::builder()
            .latency(tower_gemini_sim::Latency::none())
            .tiny_images(true)
            .announce_length(true)
            .script([Fault::CutBody { at }])
            .build();
        let server = start(&sim).await;
        let (answer, _) = exchange(&server).await;
        let (head, body) = head_and_body(&answer);
        assert_eq!(body.len(), at, "{head}");
        let promised: usize = head
            .split("content-length: ")
            .nth(1)
            .unwrap()
            .split('\r')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert!(promised > at);
        assert!(sim.ledger().requests()[0].charged);
        server.shutdown().await;
    }
}

#[tokio::test]
async fn a_cut_head_stops_at_its_byte() {
    for at in [0, 1, 40] {
        let sim = Sim::quick([Fault::CutHead { at }]);
        let server = start(&sim).await;
        let (answer, _) = exchange(&server).await;
        assert_eq!(answer.len(), at);
        assert!(b"HTTP/1.1 200 OK\r\n".starts_with(&answer[..at.min(17)]));
        server.shutdown().await;
    }
}

#[tokio::test]
async fn a_reset_is_a_reset() {
    for fault in [Fault::ConnectionRefused, Fault::ResetAfterReceipt, Fault::ResetAfterGeneration] {
        let sim = Sim::quick([fault.clone()]);
        let server = start(&sim).await;
        let (answer, end) = exchange(&server).await;
        assert!(answer.is_empty());
        assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "{fault:?}");
        let record = sim.ledger().requests()[0].clone();
        assert_eq!(
            (record.received, record.charged),
            (fault != Fault::ConnectionRefused, fault == Fault::ResetAfterGeneration)
        );
        server.shutdown().await;
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_while_the_model_works_pays() {
    let sim = Sim::builder()
        .latency(tower_gemini_sim::Latency::fixed(Duration::from_secs(300)))
        .tiny_images(true)
        .build();
    let server = start(&sim).await;
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    stream.write_all(request(false).as_bytes()).await.unwrap();
    while sim.ledger().requests().first().is_none_or(|record| !record.request_counted) {
        tokio::task::yield_now().await;
    }
    drop(stream);
    while !sim.ledger().requests()[0].aborted {
        tokio::task::yield_now().await;
    }
    assert!(sim.ledger().requests()[0].charged);
    server.shutdown().await;
}

/// A stalled answer never ends by itself: waiting for it would keep a test running for ever.
#[tokio::test]
async fn shutdown_does_not_wait_for_a_stalled_answer() {
    let sim = Sim::quick([Fault::StallBody { at: 10 }]);
    let server = start(&sim).await;
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    stream.write_all(request(false).as_bytes()).await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"{\n  \"candi\r\n") {
        assert_ne!(stream.read_buf(&mut got).await.unwrap(), 0);
    }
    server.shutdown().await;
    assert_eq!(sim.ledger().requests()[0].delivered, Delivered::Partial);
}

#[tokio::test]
async fn a_batch_that_ends_is_told_to_a_listener_over_http() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let times = Batches {
        pending: Duration::ZERO,
        running: Duration::from_millis(1),
        ..Batches::default()
    };
    let sim = Sim::builder().latency(tower_gemini_sim::Latency::none()).tiny_images(true);
    let sim = sim.batches(times).build();
    let server = start(&sim).await;
    for (path, body) in [
        (
            "webhooks".to_owned(),
            format!(
                r#"{{ "uri": "http://127.0.0.1:{port}/hook?a=b", "subscribed_events": ["batch.succeeded"] }}"#
            ),
        ),
        (
            format!("models/{PRO}:batchGenerateContent"),
            format!(
                r#"{{ "batch": {{ "inputConfig": {{ "requests": {{ "requests": [{{ "request": {CAT} }}] }} }} }} }}"#
            ),
        ),
    ] {
        let made = common::send(&sim, common::post(format!("http://gemini/v1beta/{path}"), body));
        assert_eq!(made.await.unwrap().status, 200);
    }
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"}}") {
        assert_ne!(stream.read_buf(&mut heard).await.unwrap(), 0);
    }
    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    let (head, body) = head_and_body(&heard);
    assert!(head.starts_with("POST /hook?a=b HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: 127.0.0.1:{port}\r\n")), "{head}");
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    assert_eq!(body["data"]["id"], *sim.batches()[0].name);
    // Sent once, and not to be taken again.
    assert!(sim.take_webhooks().is_empty());
    server.shutdown().await;
}
