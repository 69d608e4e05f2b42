//! Before a request has a connection, or as its connection turns out to be closed: nothing was
//! sent, and nothing is owed.

use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::Instant;
use tower_gemini::body::WireBody;
use tower_gemini::verdict::Charge;
use tower_gemini_reqwest::{ReqwestService, client_builder};

use super::{LONG, body, charge};

/// An address that answers no SYN: its queue of connections that nobody accepts is full.
struct Deaf {
    addr: SocketAddr,
    _queue: (tokio::net::TcpListener, Vec<TcpStream>),
}

fn deaf() -> Option<Deaf> {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(1).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    for _ in 0..16 {
        match TcpStream::connect_timeout(&addr, Duration::from_millis(200)) {
            Ok(stream) => waiting.push(stream),
            Err(_) => return Some(Deaf { addr, _queue: (listener, waiting) }),
        }
    }
    // Systems differ in what they do with a connection too many.
    None
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_does_not_come_within_10_s_costs_nothing_with_reqwest() {
    let Some(deaf) = deaf() else {
        println!("skipped: this system takes every connection");
        return;
    };
    let began = Instant::now();
    let charge =
        charge(ReqwestService::new(client_builder().build().unwrap()), deaf.addr, body(500)).await;
    assert_eq!((charge, began.elapsed().as_secs()), (Charge::None, 10));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_does_not_come_in_time_costs_nothing_with_hyper() {
    let Some(deaf) = deaf() else {
        println!("skipped: this system takes every connection");
        return;
    };
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(Duration::from_secs(3)));
    let began = Instant::now();
    let client = Client::builder(TokioExecutor::new()).build::<_, WireBody>(connector);
    assert_eq!(
        (charge(client, deaf.addr, body(500)).await, began.elapsed().as_secs()),
        (Charge::None, 3)
    );
}

/// The server has closed a connection, and its client is handed a request before it has looked:
/// hyper gives the request back unsent.
#[tokio::test]
async fn a_request_for_a_connection_that_is_found_closed_costs_nothing() {
    for bytes in [500, LONG] {
        let (ours, theirs) = tokio::io::duplex(1024);
        let (sender, connection) =
            hyper::client::conn::http1::handshake::<_, WireBody>(TokioIo::new(ours)).await.unwrap();
        drop(theirs);
        let sender = Arc::new(Mutex::new(sender));
        let client = tower::service_fn(move |request| sender.lock().unwrap().send_request(request));
        let nowhere = ([127, 0, 0, 1], 1).into();
        let (charge, _) = tokio::join!(charge(client, nowhere, body(bytes)), connection);
        assert_eq!(charge, Charge::None);
    }
}
