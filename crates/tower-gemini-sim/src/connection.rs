//! One TCP connection that breaks on demand: cut within a head, cut after what was written, or
//! reset.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::lock;

/// What the bodies and the socket of one connection share.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    flushes: u64,
    waker: Option<Waker>,
    cut_head: Option<usize>,
    reset: bool,
}

impl Connection {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(crate) fn cut_head(&self, at: Option<usize>) {
        self.state().cut_head = at;
    }

    pub(crate) fn reset(&self) {
        self.state().reset = true;
    }
}

/// Waits in a body until the socket is flushed.
#[derive(Debug)]
pub(crate) struct FlushWaiter {
    connection: Arc<Connection>,
    waiting_since: Option<u64>,
}

impl FlushWaiter {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection, waiting_since: None }
    }

    /// Ready when everything that was handed over before the first call has been written to the
    /// socket.
    pub(crate) fn poll_flushed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.connection.state();
        let since = *self.waiting_since.get_or_insert(state.flushes);
        if state.flushes > since {
            return Poll::Ready(());
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// A socket that can be made to break.
#[derive(Debug)]
pub(crate) struct FaultyStream {
    stream: TcpStream,
    connection: Arc<Connection>,
    /// Bytes of a head that is to be cut.
    written: usize,
}

impl FaultyStream {
    pub(crate) fn new(stream: TcpStream, connection: Arc<Connection>) -> Self {
        Self { stream, connection, written: 0 }
    }
}

impl AsyncRead for FaultyStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for FaultyStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let cut = self.connection.state().cut_head;
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
            let mut state = self.connection.state();
            state.flushes += 1;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.connection.state().reset {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for FaultyStream {
    fn drop(&mut self) {
        if self.connection.state().reset {
            // Closing with a linger of zero sends RST instead of FIN.
            let _ = self.stream.set_zero_linger();
        }
    }
}
