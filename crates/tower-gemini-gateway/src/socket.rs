//! A caller's socket, with the patience that a server has with it.
//!
//! hyper knows one timeout for a request's head, and it runs on an idle connection too: with ten
//! seconds for a head, clients would find the connections of their pools closed under a request.
//! Here the two are told apart. A head that does not come is answered, and not only cut; and after
//! an answer to a request that was not read to its end, what still comes is read and thrown away
//! for a while: closing at once would reset the connection, and many clients then lose the answer
//! that says why.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a client that is still sending is listened to after its answer: between two pieces, and
/// in all.
const LINGER_GAP: Duration = Duration::from_secs(2);
const LINGER: Duration = Duration::from_secs(15);

/// How patient a connection is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For a head, from its first byte to its last.
    pub(crate) head: Duration,
    /// Between requests.
    pub(crate) idle: Duration,
    /// With a client that takes nothing of its answer.
    pub(crate) stalled: Duration,
}

/// What the requests and the socket of one connection tell each other.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// Requests whose answers have not been handed to the socket whole.
    busy: AtomicUsize,
    /// Of the connection, which has to begin its patience anew when the last of them has ended.
    reader: Mutex<Option<Waker>>,
    /// A request's body was left unread.
    unread: AtomicBool,
    /// A head has come whole, and nothing was read since: a request may be answered before the next
    /// read.
    taken: AtomicBool,
}

impl Line {
    /// A request has begun; it ends with the guard.
    pub(crate) fn enter(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::AcqRel);
        self.taken.store(true, Ordering::Release);
        Busy(self.clone())
    }

    /// Whether a request's body was left unread: what comes next on this connection may be the rest
    /// of it.
    pub(crate) fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Acquire)
    }
}

/// One request under way on a connection.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Line>);

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.busy.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(reader) =
                self.0.reader.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            reader.wake();
        }
    }
}

/// A body that tells its connection's line how it ends. `G` is what is held until then.
pub(crate) struct OnLine<B, G> {
    body: B,
    guard: G,
}

/// Notes a request's body that was dropped before its end.
pub(crate) struct Unread {
    line: Arc<Line>,
    ended: bool,
}

impl Drop for Unread {
    fn drop(&mut self) {
        if !self.ended {
            self.line.unread.store(true, Ordering::Release);
        }
    }
}

impl<B: HttpBody> OnLine<B, Unread> {
    pub(crate) fn request(body: B, line: &Arc<Line>) -> Self {
        let ended = body.is_end_stream();
        Self { body, guard: Unread { line: line.clone(), ended } }
    }
}

impl OnLine<Body, Busy> {
    pub(crate) fn answer(body: Body, busy: Busy) -> Self {
        Self { body, guard: busy }
    }
}

/// What a guard is told of its body.
pub(crate) trait Guard: Unpin {
    fn ended(&mut self) {}
}

impl Guard for Busy {}

impl Guard for Unread {
    fn ended(&mut self) {
        self.ended = true;
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin, G: Guard> HttpBody for OnLine<B, G> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        // A body that broke has nothing left to read.
        if !matches!(frame, Some(Ok(_))) || self.body.is_end_stream() {
            self.guard.ended();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Between requests.
    Idle,
    /// Some of a head has come.
    Head,
    /// A request is under way.
    Busy,
    /// The refusal of a head is being written, and so much of it is out.
    Refusing(usize),
    /// What still comes is thrown away.
    Lingering,
}

/// A socket with its timers.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    line: Arc<Line>,
    patience: Patience,
    /// What is written where a head does not come in time.
    too_slow: Bytes,
    phase: Phase,
    timer: Option<Pin<Box<Sleep>>>,
    stalled: Option<Pin<Box<Sleep>>>,
    linger_until: Option<Instant>,
}

impl Socket {
    pub(crate) fn new(
        stream: TcpStream,
        line: Arc<Line>,
        patience: Patience,
        too_slow: Bytes,
    ) -> Self {
        Self {
            stream,
            line,
            patience,
            too_slow,
            phase: Phase::Idle,
            timer: None,
            stalled: None,
            linger_until: None,
        }
    }

    fn arm(&mut self, after: Duration) {
        let at = Instant::now() + after;
        match &mut self.timer {
            Some(timer) => timer.as_mut().reset(at),
            None => self.timer = Some(Box::pin(sleep_until(at))),
        }
    }

    fn is_due(&mut self, cx: &mut Context<'_>) -> bool {
        self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready())
    }

    /// Throws away what still comes, until the client closes, falls silent, or has had time enough.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.phase != Phase::Lingering {
            self.phase = Phase::Lingering;
            self.linger_until = Some(Instant::now() + LINGER);
            self.arm(LINGER_GAP);
        }
        let mut waste = [0; 8 * 1024];
        loop {
            let mut buf = ReadBuf::new(&mut waste);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    if self.linger_until.is_none_or(|until| Instant::now() >= until) {
                        return Poll::Ready(());
                    }
                    self.arm(LINGER_GAP);
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    return if self.is_due(cx) { Poll::Ready(()) } else { Poll::Pending };
                }
            }
        }
    }

    /// Writes the refusal of a head that did not come, and closes.
    fn poll_refuse(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Phase::Refusing(written) = self.phase {
            match self.too_slow.get(written..).filter(|rest| !rest.is_empty()) {
                Some(rest) => match ready!(Pin::new(&mut self.stream).poll_write(cx, rest)) {
                    Ok(more) if more > 0 => self.phase = Phase::Refusing(written + more),
                    _ => return Poll::Ready(()),
                },
                None => {
                    if ready!(Pin::new(&mut self.stream).poll_shutdown(cx)).is_err() {
                        return Poll::Ready(());
                    }
                    return self.poll_linger(cx);
                }
            }
        }
        self.poll_linger(cx)
    }

    /// What a write came to; an error where the client has taken nothing for too long.
    fn within_patience<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience.stalled;
        let stalled =
            self.stalled.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + patience)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if matches!(self.phase, Phase::Refusing(_) | Phase::Lingering) {
            return self.poll_refuse(cx).map(Ok);
        }
        if self.line.busy.load(Ordering::Acquire) > 0 {
            // While a request is under way, its own body has a patience of its own.
            self.phase = Phase::Busy;
            self.timer = None;
            *self.line.reader.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(cx.waker().clone());
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        if self.line.taken.swap(false, Ordering::AcqRel)
            || self.phase == Phase::Busy
            || self.timer.is_none()
        {
            self.phase = Phase::Idle;
            let idle = self.patience.idle;
            self.arm(idle);
        }
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(read) => {
                if self.phase == Phase::Idle && buf.filled().len() > before {
                    self.phase = Phase::Head;
                    let head = self.patience.head;
                    self.arm(head);
                }
                Poll::Ready(read)
            }
            Poll::Pending if !self.is_due(cx) => Poll::Pending,
            // Read as though the client had closed: hyper closes too.
            Poll::Pending if self.phase == Phase::Idle => Poll::Ready(Ok(())),
            Poll::Pending => {
                tracing::debug!("the head of a request did not come in time");
                self.phase = Phase::Refusing(0);
                self.poll_refuse(cx).map(Ok)
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.within_patience(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.within_patience(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let lingers = matches!(self.phase, Phase::Lingering | Phase::Head) || self.line.is_unread();
        if self.phase != Phase::Lingering {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        if lingers {
            ready!(self.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}
