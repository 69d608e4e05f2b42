//! Serves the simulator over HTTP/1.1, with keep-alive and connections that really break.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use crate::connection::{Connection, FaultyStream, FlushWaiter};
use crate::error::SimErrorKind;
use crate::service::Sim;
use crate::webhook::WebhookEvent;

/// A running server. Dropping it stops the server too.
#[derive(Debug)]
pub struct ServeHandle {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

impl ServeHandle {
    /// Where the server listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://127.0.0.1:port`, for clients that want a base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Stops listening and closes every connection, idle, busy or stalled.
    pub async fn shutdown(mut self) {
        drop(self.stop.take());
        if let Some(task) = self.task.take() {
            // The task only ends; it has nothing to report.
            let _ = task.await;
        }
    }
}

/// Serves a simulator over HTTP/1.1; port 0 takes a free port.
///
/// Faults of the transport are real: a cut closes the connection after exactly so many bytes, a
/// reset sends RST. The one exception is
/// [`Fault::ConnectionRefused`](crate::Fault::ConnectionRefused): the connection was accepted
/// before anybody could know which fault its request meets, so it is reset before the request's
/// body is read. "Delivered" means handed to the socket.
///
/// # Errors
///
/// When the address cannot be bound.
pub async fn serve(sim: Sim, addr: SocketAddr) -> io::Result<ServeHandle> {
    let listener = TcpListener::bind(addr).await?;
    let addr = listener.local_addr()?;
    let (stop, mut stopped) = oneshot::channel();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                _ = &mut stopped => break,
                accepted = listener.accept() => {
                    // A connection that failed while being accepted concerns nobody else.
                    if let Ok((stream, _)) = accepted {
                        connections.spawn(connection(sim.clone(), stream));
                    }
                }
                due = sim.next_webhooks() => {
                    for webhook in due {
                        connections.spawn(deliver(sim.clone(), webhook, send));
                    }
                }
                Some(_) = connections.join_next() => {}
            }
        }
        connections.shutdown().await;
    });
    Ok(ServeHandle { addr, stop: Some(stop), task: Some(task) })
}

async fn connection(sim: Sim, stream: TcpStream) {
    // Small answers wait for nothing.
    let _ = stream.set_nodelay(true);
    let connection = Arc::new(Connection::default());
    let io = TokioIo::new(FaultyStream::new(stream, connection.clone()));
    let service = service_fn(move |request: Request<Incoming>| {
        let (service, connection) = (sim.service(), connection.clone());
        async move {
            match service.handle(request).await {
                Ok(handled) => {
                    connection.cut_head(handled.cut_head);
                    Ok(handled.response.map(|body| body.over(FlushWaiter::new(connection))))
                }
                Err(error) => {
                    if matches!(
                        error.kind(),
                        SimErrorKind::ConnectionRefused | SimErrorKind::ConnectionReset
                    ) {
                        connection.reset();
                    }
                    Err(error)
                }
            }
        }
    });
    // An error here is a fault that did its work, or a client that left.
    let _ = http1::Builder::new().serve_connection(io, service).await;
}

/// When a webhook that failed is sent again, after each other: 24 hours of exponential backoff
/// (ai.google.dev "Webhooks", 2026-07), on the schedule that Standard Webhooks recommends.
const RESENDS: [Duration; 7] = [
    Duration::from_secs(5),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(5 * 3600),
    Duration::from_secs(6 * 3600),
    Duration::from_secs(10 * 3600),
];

/// A listener that takes longer has failed ("a few seconds", ai.google.dev "Webhooks", 2026-07).
const LISTENER_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends a webhook until its listener answers with a 2xx. Over plain HTTP only.
async fn deliver<F>(sim: Sim, webhook: WebhookEvent, send: impl Fn(Request<Bytes>) -> F)
where
    F: Future<Output = Option<StatusCode>>,
{
    for pause in RESENDS {
        let Some(request) = sim.sign(&webhook) else { return };
        let sent = tokio::time::timeout(LISTENER_TIMEOUT, send(request)).await;
        if matches!(sent, Ok(Some(status)) if status.is_success()) {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

async fn send(mut request: Request<Bytes>) -> Option<StatusCode> {
    let host = request.uri().authority()?.clone();
    let address = (host.host(), host.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) = client::handshake(TokioIo::new(stream)).await.ok()?;
    let path = request.uri().path_and_query().cloned()?;
    *request.uri_mut() = Uri::from(path);
    request.headers_mut().insert(header::HOST, HeaderValue::from_str(host.as_str()).ok()?);
    let response = sender.send_request(request.map(Full::new));
    tokio::select! {
        response = response => response.ok().map(|response| response.status()),
        _ = connection => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_webhook_that_fails_is_sent_again_later_under_its_id_and_signed_anew() {
        let sim = Sim::quick([]);
        let webhook = WebhookEvent::for_tests();
        let sent = Arc::new(Mutex::new(Vec::new()));
        let (seen, clock) = (sent.clone(), sim.clone());
        let listener = move |request: Request<Bytes>| {
            let header = |name: &str| request.headers()[name].to_str().map(str::to_owned).unwrap();
            let mut seen = seen.lock().unwrap();
            seen.push((
                clock.now().as_secs(),
                header("webhook-id"),
                header("webhook-timestamp"),
                header("webhook-signature"),
            ));
            // No answer, then an error, then well.
            let answer = [None, Some(StatusCode::BAD_GATEWAY), Some(StatusCode::NO_CONTENT)];
            std::future::ready(answer[seen.len() - 1])
        };
        deliver(sim, webhook, listener).await;
        let sent = sent.lock().unwrap();
        let at: Vec<_> = sent.iter().map(|(at, ..)| *at).collect();
        assert_eq!(at, [0, 5, 305]);
        assert_eq!(sent[0].1, sent[2].1);
        assert_ne!(sent[0].2, sent[2].2, "the timestamp is that of the attempt");
        assert_ne!(sent[0].3, sent[2].3);
    }
}
