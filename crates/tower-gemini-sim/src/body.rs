//! Bodies that arrive in chunks, late, in part, or not at all.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::{error, fmt, io};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use crate::ledger::Delivered;
use crate::service::Inner;

/// What broke on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SimErrorKind {
    /// Nobody listened; the request was not received.
    ConnectionRefused,
    /// The connection was reset after the request had been received.
    ConnectionReset,
    /// The connection ended within the head of the answer.
    HeadCut,
    /// The connection ended within the body of the answer.
    BodyCut,
    /// The caller's own body failed while it was being read.
    RequestBody,
}

/// A failure of the transport, as a client sees one: its source is an [`io::Error`] of the kind
/// that a socket would give.
#[derive(Debug)]
pub struct SimError {
    kind: SimErrorKind,
    source: io::Error,
}

impl SimError {
    pub(crate) fn new(kind: SimErrorKind) -> Self {
        let source = match kind {
            SimErrorKind::ConnectionRefused => io::ErrorKind::ConnectionRefused,
            SimErrorKind::ConnectionReset => io::ErrorKind::ConnectionReset,
            SimErrorKind::HeadCut | SimErrorKind::BodyCut => io::ErrorKind::UnexpectedEof,
            SimErrorKind::RequestBody => io::ErrorKind::BrokenPipe,
        };
        Self { kind, source: source.into() }
    }

    /// What broke.
    pub fn kind(&self) -> SimErrorKind {
        self.kind
    }

    /// Whether the request is known not to have been received.
    pub fn is_connect(&self) -> bool {
        self.kind == SimErrorKind::ConnectionRefused
    }
}

impl fmt::Display for SimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            SimErrorKind::ConnectionRefused => "could not connect to the server",
            SimErrorKind::ConnectionReset => "the connection was reset before an answer",
            SimErrorKind::HeadCut => "the connection ended within the head of the answer",
            SimErrorKind::BodyCut => "the connection ended within the body of the answer",
            SimErrorKind::RequestBody => "the body of the request could not be read",
        })
    }
}

impl error::Error for SimError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&self.source)
    }
}

/// What follows the last byte that the server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Clean,
    Broken,
    Never,
}

/// How a body travels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Journey {
    pub(crate) chunk: usize,
    pub(crate) every: Duration,
    /// Bytes that leave the server; all when none.
    pub(crate) cut: Option<usize>,
    pub(crate) end: End,
    /// Whether the length is announced.
    pub(crate) announced: bool,
}

/// The body of an answer.
///
/// Dropping it before the end tells the ledger that the answer did not arrive.
pub struct SimBody {
    segments: VecDeque<Bytes>,
    /// Bytes still to be handed over.
    left: usize,
    /// Bytes that the announced length promises beyond those.
    withheld: usize,
    journey: Journey,
    sleep: Option<Pin<Box<Sleep>>>,
    receipt: Receipt,
    finished: bool,
    #[cfg(feature = "serve")]
    line: Option<crate::serve::Line>,
}

impl fmt::Debug for SimBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimBody")
            .field("left", &self.left)
            .field("journey", &self.journey)
            .finish_non_exhaustive()
    }
}

impl SimBody {
    pub(crate) fn new(
        segments: Vec<Bytes>,
        journey: Journey,
        sim: Arc<Inner>,
        number: usize,
    ) -> Self {
        let whole: usize = segments.iter().map(Bytes::len).sum();
        let left = journey.cut.map_or(whole, |cut| cut.min(whole));
        let complete = left == whole && journey.end == End::Clean;
        // A body that ends in good order is announced with the length that it has.
        let withheld = if journey.end == End::Clean { 0 } else { whole - left };
        Self {
            segments: segments.into_iter().filter(|segment| !segment.is_empty()).collect(),
            left,
            withheld,
            journey,
            sleep: None,
            receipt: Receipt { sim, number, taken: 0, complete },
            finished: false,
            #[cfg(feature = "serve")]
            line: None,
        }
        .settled()
    }

    /// An answer without a body has arrived with its head.
    fn settled(mut self) -> Self {
        if self.left == 0 && self.receipt.complete {
            self.receipt.close(true);
            self.finished = true;
        }
        self
    }

    #[cfg(feature = "serve")]
    pub(crate) fn over(mut self, line: crate::serve::Line) -> Self {
        self.line = Some(line);
        self
    }

    fn next_chunk(&mut self) -> Bytes {
        let wanted = self.journey.chunk.max(1).min(self.left);
        let Some(first) = self.segments.front_mut() else {
            self.left = 0;
            return Bytes::new();
        };
        self.left -= wanted;
        if first.len() > wanted {
            return first.split_to(wanted);
        }
        if first.len() == wanted {
            return self.segments.pop_front().unwrap_or_default();
        }
        // The chunk spans segments: the only place where bytes are copied.
        let mut chunk = BytesMut::with_capacity(wanted);
        while chunk.len() < wanted {
            let Some(segment) = self.segments.front_mut() else { break };
            let take = segment.len().min(wanted - chunk.len());
            chunk.extend_from_slice(&segment.split_to(take));
            if segment.is_empty() {
                self.segments.pop_front();
            }
        }
        chunk.freeze()
    }
}

impl Body for SimBody {
    type Data = Bytes;
    type Error = SimError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SimError>>> {
        let this = &mut *self;
        if this.finished {
            return Poll::Ready(None);
        }
        if this.left > 0 {
            if !this.journey.every.is_zero() {
                let every = this.journey.every;
                let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(every)));
                ready!(sleep.as_mut().poll(cx));
                this.sleep = None;
            }
            let chunk = this.next_chunk();
            this.receipt.taken += chunk.len();
            if this.left == 0 && this.receipt.complete {
                this.receipt.close(true);
                this.finished = true;
            }
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        match this.journey.end {
            End::Never => Poll::Pending,
            End::Clean => {
                this.receipt.close(false);
                this.finished = true;
                Poll::Ready(None)
            }
            End::Broken => {
                #[cfg(feature = "serve")]
                if let Some(line) = &mut this.line {
                    // What was said before must be on the wire before the connection is cut.
                    ready!(line.poll_flushed(cx));
                }
                #[cfg(not(feature = "serve"))]
                let _ = cx;
                this.receipt.close(false);
                this.finished = true;
                Poll::Ready(Some(Err(SimError::new(SimErrorKind::BodyCut))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.finished
    }

    fn size_hint(&self) -> SizeHint {
        if self.journey.announced {
            SizeHint::with_exact((self.left + self.withheld) as u64)
        } else {
            SizeHint::default()
        }
    }
}

/// Tells the ledger how much was taken, at the end or when dropped.
struct Receipt {
    sim: Arc<Inner>,
    number: usize,
    taken: usize,
    complete: bool,
}

impl Receipt {
    fn close(&mut self, whole: bool) {
        let delivered = match (whole, self.taken) {
            (true, _) => Delivered::Full,
            (false, 0) => Delivered::NotDelivered,
            (false, _) => Delivered::Partial,
        };
        let now = self.sim.now();
        self.sim.ledger.edit(self.number, |record| {
            if record.ended_at.is_none() {
                record.delivered = delivered;
                record.ended_at = Some(now);
            }
        });
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        self.close(false);
    }
}
