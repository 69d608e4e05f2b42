//! A client's socket with the server's timeouts.
//!
//! hyper has one timeout for a request's head, and it runs on an idle connection too: with ten
//! seconds for a head, clients would find the connections of their pools closed under a request.
//! Here the two are separate. A head that does not arrive gets a response before the connection
//! closes. After a response to a request that was not read to its end, what still arrives is read
//! and discarded for a while: closing at once would reset the connection, and many clients then
//! lose the response that says why.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::queue::Queue;
use crate::tls::Stream;

/// How long a client that is still sending is read after its response: between two chunks, and in
/// all.
const LINGER_GAP: Duration = Duration::from_secs(2);
const LINGER: Duration = Duration::from_secs(15);

/// The timeouts of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SocketTimeouts {
    /// For the first byte on a new connection.
    pub(crate) first_byte: Duration,
    /// For a head, from its first byte to its last.
    pub(crate) head: Duration,
    /// Between requests.
    pub(crate) idle: Duration,
    /// For a client that reads nothing of its response.
    pub(crate) stalled: Duration,
}

/// While others wait for what a response takes, its client is looked at after waiting so long for
/// it, and has to read at this rate, in bytes a second: a picture of 2 MB in half a minute.
const UNHURRIED: Duration = Duration::from_secs(5);
const LEAST_RATE_UNDER_PRESSURE: u64 = 64 * 1024;

/// How fast a client reads its response.
#[derive(Debug)]
struct Pace {
    /// Since when it has read nothing.
    silent_since: Option<Instant>,
    /// How long it was waited for, and what it has read in that time.
    waited: Duration,
    bytes: u64,
    /// When that is looked at next.
    look: Pin<Box<Sleep>>,
}

/// What the requests and the socket of one connection share.
#[derive(Debug, Default)]
pub(crate) struct ConnectionState {
    /// Requests whose responses have not been handed to the socket whole.
    busy: AtomicUsize,
    /// Wakes the connection, which restarts its timeout when the last of them has ended.
    reader: Mutex<Option<Waker>>,
    /// A request's body was left unread.
    unread: AtomicBool,
    /// A head has arrived whole, and nothing was read since: a request may be answered before the
    /// next read.
    taken: AtomicBool,
}

impl ConnectionState {
    /// A request has begun; it ends with the guard.
    pub(crate) fn enter(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::AcqRel);
        self.taken.store(true, Ordering::Release);
        Busy(self.clone())
    }

    /// Whether a request's body was left unread: the next bytes on this connection may be the rest
    /// of it.
    pub(crate) fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Acquire)
    }
}

/// One request in flight on a connection.
#[derive(Debug)]
pub(crate) struct Busy(Arc<ConnectionState>);

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

/// A request's body that tells its connection when it is dropped before its end.
pub(crate) struct TrackedBody<B> {
    body: B,
    state: Arc<ConnectionState>,
    ended: bool,
}

impl<B: HttpBody> TrackedBody<B> {
    pub(crate) fn new(body: B, state: Arc<ConnectionState>) -> Self {
        let ended = body.is_end_stream();
        Self { body, state, ended }
    }
}

impl<B> Drop for TrackedBody<B> {
    fn drop(&mut self) {
        if !self.ended {
            self.state.unread.store(true, Ordering::Release);
        }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for TrackedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        // A broken body has nothing left to read.
        self.ended |= !matches!(frame, Some(Ok(_))) || self.body.is_end_stream();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Between requests.
    Idle,
    /// A part of a head has arrived.
    Head,
    /// A request is in flight, or the connection is new.
    Busy,
    /// The response to a slow head is being written; this is left of it.
    Rejecting(Bytes),
    /// What still arrives is discarded, until then at most.
    Lingering(Instant),
}

/// A socket with its timers.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: Stream,
    state: Arc<ConnectionState>,
    timeouts: SocketTimeouts,
    /// What is written where a head does not arrive in time.
    too_slow: Bytes,
    phase: Phase,
    /// Of the phase.
    timer: Pin<Box<Sleep>>,
    /// `None` where the client has never been waited for.
    pace: Option<Pace>,
    /// Whether anything has arrived.
    is_new: bool,
    /// What others may wait for.
    queue: Queue,
}

impl Socket {
    pub(crate) fn new(
        stream: Stream,
        state: Arc<ConnectionState>,
        timeouts: SocketTimeouts,
        too_slow: Bytes,
        queue: Queue,
    ) -> Self {
        let (timer, phase) = (Box::pin(sleep(timeouts.first_byte)), Phase::Busy);
        let (pace, is_new) = (None, true);
        Self { stream, state, timeouts, too_slow, phase, timer, pace, is_new, queue }
    }

    fn enter(&mut self, phase: Phase, timeout: Duration) {
        self.phase = phase;
        self.timer.as_mut().reset(Instant::now() + timeout);
    }

    /// Discards what still arrives, until the client closes, falls silent, or its time is over.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = match self.phase {
            Phase::Lingering(until) => until,
            _ => {
                let until = Instant::now() + LINGER;
                self.enter(Phase::Lingering(until), LINGER_GAP);
                until
            }
        };
        let mut discarded = [0; 8 * 1024];
        loop {
            let mut buf = ReadBuf::new(&mut discarded);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() && Instant::now() < until => {
                    self.enter(Phase::Lingering(until), LINGER_GAP);
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.timer.as_mut().poll(cx),
            }
        }
    }

    /// Writes the response to a slow head, and closes.
    fn poll_reject(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Phase::Rejecting(rest) = &mut self.phase {
            let stream = Pin::new(&mut self.stream);
            if rest.is_empty() {
                if ready!(stream.poll_shutdown(cx)).is_err() {
                    return Poll::Ready(());
                }
                break;
            }
            match ready!(stream.poll_write(cx, rest)) {
                Ok(written) if written > 0 => rest.advance(written),
                _ => return Poll::Ready(()),
            }
        }
        self.poll_linger(cx)
    }

    /// The result of a write; an error where the client has read nothing for too long, or too slowly
    /// while others wait.
    fn at_pace(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(result) = written {
            if let (Some(pace), Ok(bytes)) = (&mut self.pace, &result) {
                pace.bytes += *bytes as u64;
                pace.waited += pace.silent_since.take().map_or(Duration::ZERO, |it| it.elapsed());
            }
            return Poll::Ready(result);
        }
        let limit = self.timeouts.stalled;
        let look_after = limit.min(UNHURRIED);
        let pace = self.pace.get_or_insert_with(|| Pace {
            silent_since: None,
            waited: Duration::ZERO,
            bytes: 0,
            look: Box::pin(sleep(look_after)),
        });
        if pace.silent_since.is_none() {
            pace.silent_since = Some(Instant::now());
            pace.look.as_mut().reset(Instant::now() + look_after);
        }
        loop {
            let silent = pace.silent_since.map_or(Duration::ZERO, |it| it.elapsed());
            let waited = pace.waited + silent;
            let is_slow = pace.bytes < waited.as_secs() * LEAST_RATE_UNDER_PRESSURE;
            let gives_way = waited >= UNHURRIED && is_slow && self.queue.is_under_pressure();
            if silent >= limit || gives_way {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            ready!(pace.look.as_mut().poll(cx));
            pace.look.as_mut().reset(Instant::now() + look_after.min(limit - silent));
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if matches!(self.phase, Phase::Rejecting(_) | Phase::Lingering(_)) {
            return self.poll_reject(cx).map(Ok);
        }
        if self.state.busy.load(Ordering::Acquire) > 0 {
            // While a request is in flight, its body has a timeout of its own.
            self.phase = Phase::Busy;
            *self.state.reader.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(cx.waker().clone());
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        if self.state.taken.swap(false, Ordering::AcqRel) || self.phase == Phase::Busy {
            self.pace = None;
            let idle = if self.is_new { self.timeouts.first_byte } else { self.timeouts.idle };
            self.enter(Phase::Idle, idle);
        }
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(read) => {
                self.is_new &= buf.filled().len() == before;
                if self.phase == Phase::Idle && buf.filled().len() > before {
                    let head = self.timeouts.head;
                    self.enter(Phase::Head, head);
                }
                Poll::Ready(read)
            }
            Poll::Pending if self.timer.as_mut().poll(cx).is_pending() => Poll::Pending,
            // Read as though the client had closed: hyper closes too.
            Poll::Pending if self.phase == Phase::Idle => Poll::Ready(Ok(())),
            Poll::Pending => {
                tracing::debug!("the head of a request did not arrive in time");
                self.phase = Phase::Rejecting(self.too_slow.clone());
                self.poll_reject(cx).map(Ok)
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
        self.at_pace(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.at_pace(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let is_lingering = matches!(self.phase, Phase::Lingering(_));
        if !is_lingering {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        if is_lingering || self.phase == Phase::Head || self.state.is_unread() {
            ready!(self.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}
