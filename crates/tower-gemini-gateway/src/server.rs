//! The socket: connections in bounds, and an end that loses nothing that was paid for.

use std::convert::Infallible;
use std::future::Future;
use std::io;
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
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::socket::{Line, OnLine, Patience, Socket};
use crate::{answers, config};

/// Room for a request's head: Google's own front end takes 16 KiB a header; SDKs send one or two.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Serves until `stop` is done, then lets what is under way end, for `grace` at most and until
/// `at_once` is done. Gives `false` where something was still under way then.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    limits: &config::Server,
    stop: impl Future<Output = ()>,
    at_once: impl Future<Output = ()>,
    grace: Duration,
) -> io::Result<bool> {
    let mut http = http1::Builder::new();
    // The socket's own patience tells heads from idle connections, and answers.
    http.header_read_timeout(None).max_buf_size(MAX_HEAD_BYTES).keep_alive(true);
    let patience = Patience {
        head: limits.header_read_timeout.0,
        idle: limits.idle_timeout.0,
        stalled: limits.answer_stall_timeout.0,
    };
    let too_slow = answers::head_too_slow(patience.head);
    let connections = Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS)));
    let graceful = GracefulShutdown::new();
    // Ended with this future: what their callers had to leave is known to be left then, and can be
    // written down.
    let mut tasks = JoinSet::new();
    tokio::pin!(stop);
    loop {
        // Connections beyond the bound wait where the kernel keeps them, and cost nothing here.
        let place = tokio::select! {
            () = &mut stop => break,
            place = connections.clone().acquire_owned() => place,
        };
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
            // One that has ended is let go.
            Some(_) = tasks.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, mostly: a moment later some are free.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Small answers wait for nothing. A socket that cannot do it works without.
        let _ = stream.set_nodelay(true);
        let app = app.clone();
        let line = Arc::new(Line::default());
        let socket = Socket::new(stream, line.clone(), patience, too_slow.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            // From here on, and not from when the future is first polled: the socket asks whether
            // anything is under way.
            let busy = line.enter();
            let answer =
                app.clone().oneshot(request.map(|body| Body::new(OnLine::request(body, &line))));
            let line = line.clone();
            async move {
                let mut answer = answer.await?;
                if line.is_unread() {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer.map(|body| OnLine::answer(body, busy)))
            }
        });
        let connection = graceful.watch(http.serve_connection(TokioIo::new(socket), service));
        tasks.spawn(async move {
            // A connection that broke, or a head that came too slowly, concerns nobody else.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    }
    drop(listener);
    tracing::info!(grace_s = grace.as_secs(), "stopping: what is under way is finished");
    let whole = tokio::select! {
        () = graceful.shutdown() => true,
        () = tokio::time::sleep(grace) => false,
        () = at_once => false,
    };
    tasks.shutdown().await;
    Ok(whole)
}
