//! The simulator behind a socket: HTTP/1.1, keep-alive, and connections that really break.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use crate::body::SimErrorKind;
use crate::service::Sim;

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
    let wire = Arc::new(Wire::default());
    let io = TokioIo::new(Tapped { stream, wire: wire.clone(), written: 0 });
    let service = service_fn(move |request: Request<Incoming>| {
        let (service, wire) = (sim.service(), wire.clone());
        async move {
            match service.handle(request).await {
                Ok(handled) => {
                    wire.cut_head(handled.cut_head);
                    Ok(handled.response.map(|body| body.over(Line { wire, waiting_since: None })))
                }
                Err(error) => {
                    if matches!(
                        error.kind(),
                        SimErrorKind::ConnectionRefused | SimErrorKind::ConnectionReset
                    ) {
                        wire.reset();
                    }
                    Err(error)
                }
            }
        }
    });
    // An error here is a fault that did its work, or a client that left.
    let _ = http1::Builder::new().serve_connection(io, service).await;
}

/// What bodies and the socket of one connection tell each other.
#[derive(Debug, Default)]
struct Wire {
    state: Mutex<WireState>,
}

#[derive(Debug, Default)]
struct WireState {
    flushes: u64,
    waker: Option<Waker>,
    cut_head: Option<usize>,
    reset: bool,
}

impl Wire {
    fn state(&self) -> std::sync::MutexGuard<'_, WireState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut_head(&self, at: Option<usize>) {
        self.state().cut_head = at;
    }

    fn reset(&self) {
        self.state().reset = true;
    }
}

/// A body's end of a [`Wire`].
#[derive(Debug)]
pub(crate) struct Line {
    wire: Arc<Wire>,
    waiting_since: Option<u64>,
}

impl Line {
    /// Ready when everything that was handed over before the first call has been written to the
    /// socket.
    pub(crate) fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.wire.state();
        let since = *self.waiting_since.get_or_insert(state.flushes);
        if state.flushes > since {
            return Poll::Ready(());
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// The socket, with a hand on its plug.
#[derive(Debug)]
struct Tapped {
    stream: TcpStream,
    wire: Arc<Wire>,
    /// Bytes of a head that is to be cut.
    written: usize,
}

impl AsyncRead for Tapped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let cut = self.wire.state().cut_head;
        let Some(cut) = cut else { return Pin::new(&mut self.stream).poll_write(cx, buf) };
        let left = cut.saturating_sub(self.written);
        if left == 0 {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let part = &buf[..buf.len().min(left)];
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, part))?;
        self.written += written;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        let waker = {
            let mut state = self.wire.state();
            state.flushes += 1;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.wire.state().reset {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for Tapped {
    fn drop(&mut self) {
        if self.wire.state().reset {
            // Closing with a linger of zero sends RST instead of FIN.
            let _ = self.stream.set_zero_linger();
        }
    }
}
