//! Serves connections within limits, and stops without losing what was paid for.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::header::CONNECTION;
use http::{HeaderValue, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::door::Connection;
use crate::limits::hold;
use crate::queue::Queue;
use crate::socket::{ConnectionState, Socket, SocketTimeouts, TrackedBody};
use crate::tls::Acceptor;
use crate::{config, files, responses};

/// Room for a request's head: Google's own front end accepts 16 KiB a header; SDKs send one or two.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Serves until `stop` resolves, then lets the requests in flight end, within the grace time and
/// until `stop_now` resolves. Returns `false` where something was still in flight then.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Acceptor,
    app: Router,
    limits: &config::Server,
    queue: &Queue,
    mut stop: oneshot::Receiver<()>,
    stop_now: oneshot::Receiver<()>,
) -> bool {
    let mut http = http1::Builder::new();
    // The socket's own timeouts tell heads from idle connections, and respond.
    http.header_read_timeout(None).max_buf_size(MAX_HEAD_BYTES).keep_alive(true);
    let timeouts = SocketTimeouts {
        first_byte: limits.first_byte_timeout.0,
        head: limits.header_read_timeout.0,
        idle: limits.idle_timeout.0,
        stalled: limits.response_stall_timeout.0,
    };
    let too_slow = responses::head_too_slow(timeouts.head);
    let most = files::most_connections(limits).min(Semaphore::MAX_PERMITS);
    let connections = Arc::new(Semaphore::new(most));
    let graceful = GracefulShutdown::new();
    // They end with this future: what is lost with them is known then, and can be saved as lost.
    let mut tasks = JoinSet::new();
    loop {
        // Connections beyond the limit wait in the kernel's queue and cost nothing here.
        let slot = tokio::select! {
            _ = &mut stop => break,
            slot = connections.clone().acquire_owned() => slot,
        };
        let accepted = tokio::select! {
            _ = &mut stop => break,
            accepted = listener.accept() => accepted,
            // Reap ended connections.
            Some(_) = tasks.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Mostly out of file descriptors: a moment later some are free.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Small responses go out at once. A socket that cannot do it works without.
        let _ = stream.set_nodelay(true);
        // A socket that has no address of its own any more is closed.
        let Ok(local) = stream.local_addr() else { continue };
        let connection = Connection::new(peer, local);
        let app = app.clone();
        let state = Arc::new(ConnectionState::default());
        let stream = tls.stream(stream);
        let socket = Socket::new(stream, state.clone(), timeouts, too_slow.clone(), queue.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            // From here on, not from the first poll of the future: the socket asks whether a
            // request is in flight.
            let busy = state.enter();
            let mut request = request.map(|body| Body::new(TrackedBody::new(body, state.clone())));
            request.extensions_mut().insert(connection);
            let (response, state) = (app.clone().oneshot(request), state.clone());
            async move {
                let mut response = response.await?;
                if state.is_unread() {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(hold(response, busy))
            }
        });
        let served = graceful.watch(http.serve_connection(TokioIo::new(socket), service));
        tasks.spawn(async move {
            // A broken connection, or a slow head, concerns nobody else.
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(slot);
        });
    }
    drop(listener);
    let grace = limits.shutdown_grace.0;
    tracing::info!(grace_s = grace.as_secs(), "stopping after the requests in flight");
    let whole = tokio::select! {
        () = graceful.shutdown() => true,
        () = tokio::time::sleep(grace) => false,
        _ = stop_now => false,
    };
    tasks.shutdown().await;
    whole
}
