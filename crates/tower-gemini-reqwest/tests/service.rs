//! A reqwest client as the innermost service, against the simulator over loopback.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{CAT, KEY, Upstream, everything_printed, quick_stack, url_at};
use futures::future::select;
use http::Request;
use tower::ServiceExt as _;
use tower_gemini::body::WireBody;
use tower_gemini::classify_gemini_error::evidence::was_not_sent;
use tower_gemini::error::BoxError;
use tower_gemini::verdict::{Charge, Outcome};
use tower_gemini_reqwest::{ReqwestService, client_builder};
use tower_gemini_sim::{Fault, hash64};

fn service() -> ReqwestService {
    ReqwestService::new(client_builder().build().unwrap())
}

fn request(url: String) -> Request<reqwest::Body> {
    Request::post(url).header("x-sim-call", "cat").body(CAT.into()).unwrap()
}

/// What the service itself says to a request, without a stack that hides keys too.
async fn bare_error(url: String) -> BoxError {
    let body = WireBody::from(Bytes::from(CAT));
    service().oneshot(Request::post(url).body(body).unwrap()).await.unwrap_err()
}

fn free_address() -> String {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    format!("http://{free}")
}

#[tokio::test]
async fn an_overload_is_outlived_and_the_image_comes_as_it_was_drawn_and_paid_for_once() {
    let upstream = Upstream::scripted([Fault::HighDemand, Fault::None]).await;
    let image =
        quick_stack().images(service()).oneshot(request(upstream.url())).await.unwrap().into_body();
    assert_eq!(image.bytes, upstream.sim.image_for(1).unwrap());
    assert_eq!((upstream.sends(), upstream.charges()), (2, 1));
}

// A shorter length cut the request, a longer one let the server wait for ever.
#[tokio::test]
async fn a_stale_length_neither_cuts_the_request_nor_lets_the_server_wait() {
    for stale in ["3", "99999"] {
        let upstream = Upstream::scripted([]).await;
        let body = WireBody::from(Bytes::from(CAT));
        let request = Request::post(upstream.url())
            .header("x-sim-call", "cat")
            .header("content-length", stale)
            .body(body)
            .unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(20), service().oneshot(request))
            .await
            .expect("it is answered")
            .unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(upstream.sim.ledger().requests()[0].body_hash, Some(hash64(CAT.as_bytes())));
    }
}

#[tokio::test]
async fn only_what_surely_never_left_counts_as_not_sent() {
    for url in [free_address(), "gopher://gemini.example".into()] {
        let error = bare_error(url_at(&url)).await;
        assert!(was_not_sent(&*error), "{url}: {error:?}");
    }
    for fault in [
        Fault::ResetAfterReceipt,
        Fault::ResetAfterGeneration,
        Fault::CutHead { at: 0 },
        Fault::CutHead { at: 20 },
    ] {
        let upstream = Upstream::scripted([fault.clone()]).await;
        let error = bare_error(upstream.url()).await;
        assert!(!was_not_sent(&*error), "{fault:?}: {error:?}");
    }
}

#[tokio::test]
async fn the_key_is_in_nothing_that_an_error_prints() {
    let mut errors = vec![
        bare_error(url_at(&free_address())).await,
        bare_error(url_at("gopher://gemini.example")).await,
    ];
    for fault in [Fault::ResetAfterReceipt, Fault::CutHead { at: 10 }] {
        errors.push(bare_error(Upstream::scripted([fault]).await.url()).await);
    }
    for error in errors {
        let printed = everything_printed(&*error);
        assert!(!printed.contains(KEY), "{printed}");
    }
}

// The server answers with its reset while megabytes are still to come: it cannot have worked on
// half a request.
#[tokio::test]
async fn a_request_that_broke_off_before_all_of_it_was_handed_out_was_not_paid_for() {
    use tokio::io::AsyncReadExt as _;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = url_at(&format!("http://{}", listener.local_addr().unwrap()));
    let server = tokio::spawn(async move {
        for _ in 0..3 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut some = [0; 1024];
            stream.read_exact(&mut some).await.unwrap();
        }
    });
    let body = vec![b' '; 64 * 1024 * 1024];
    let error = quick_stack()
        .images(service())
        .oneshot(Request::post(url).body(reqwest::Body::from(body)).unwrap())
        .await
        .unwrap_err();
    assert_eq!(
        (error.verdict().outcome(), error.charge()),
        (Outcome::NotSent, Charge::None),
        "{error}"
    );
    // So it was tried again, as often as the policy says.
    assert_eq!(error.trail().unwrap().attempts().len(), 3);
    server.await.unwrap();
}

#[tokio::test]
async fn twenty_megabytes_go_through_unchanged() {
    let upstream = Upstream::scripted([]).await;
    let body = format!(
        r#"{{"contents":[{{"parts":[{{"text":"{}"}}]}}]}}"#,
        "a cat, ".repeat(20 * 1024 * 1024 / 7)
    );
    let hash = hash64(body.as_bytes());
    let request = Request::post(upstream.url()).body(reqwest::Body::from(body)).unwrap();
    quick_stack().images(service()).oneshot(request).await.unwrap();
    assert_eq!(upstream.sim.ledger().requests()[0].body_hash, Some(hash));
}

#[tokio::test]
async fn the_answer_keeps_its_url() {
    let upstream = Upstream::scripted([]).await;
    let answer = quick_stack().json(service()).oneshot(request(upstream.url())).await.unwrap();
    let answer = reqwest::Response::from(answer.map(|_| reqwest::Body::default()));
    assert_eq!(answer.url().as_str(), upstream.told_url());
}

#[tokio::test]
async fn dropping_the_call_closes_the_connection() {
    let upstream = Upstream::slow().await;
    let call = quick_stack().images(service()).oneshot(request(upstream.url()));
    drop(select(Box::pin(call), Box::pin(upstream.received(1))).await);
    upstream.aborted().await;
}

#[tokio::test]
async fn a_clients_redirect_is_an_answer_and_is_not_followed() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await.unwrap();
        let answer = "HTTP/1.1 307 Temporary Redirect\r\nlocation: /elsewhere\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        tokio::time::timeout(Duration::from_millis(50), listener.accept()).await.is_err()
    });
    let answer =
        client_builder().build().unwrap().post(url_at(&url)).body(CAT).send().await.unwrap();
    assert_eq!(answer.status(), 307);
    assert!(server.await.unwrap(), "a second connection came");
}
