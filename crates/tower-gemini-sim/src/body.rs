//! Sends bodies in chunks, late, in part, or not at all.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use crate::error::{SimError, SimErrorKind};
use crate::ledger::{Delivered, Ledger};

/// What follows the last byte that the server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Clean,
    Broken,
    Never,
}

/// How a body is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delivery {
    pub(crate) chunk: usize,
    pub(crate) every: Duration,
    /// Bytes that leave the server; all when none.
    pub(crate) cut: Option<usize>,
    pub(crate) end: End,
    /// Whether the length is announced.
    pub(crate) announced: bool,
}

/// The body of a response.
///
/// Dropping it before the end records in the ledger that the response was not read.
pub struct SimBody {
    segments: VecDeque<Bytes>,
    /// Bytes still to be handed over.
    left: usize,
    /// Bytes that the announced length promises beyond those.
    withheld: usize,
    delivery: Delivery,
    sleep: Option<Pin<Box<Sleep>>>,
    ledger: Arc<Ledger>,
    number: usize,
    /// Bytes that were handed over.
    taken: usize,
    /// The last byte that leaves the server is the last one of the response.
    complete: bool,
    /// The ledger has the end.
    finished: bool,
    #[cfg(feature = "serve")]
    flush: Option<crate::connection::FlushWaiter>,
}

impl fmt::Debug for SimBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimBody")
            .field("left", &self.left)
            .field("delivery", &self.delivery)
            .finish_non_exhaustive()
    }
}

impl SimBody {
    pub(crate) fn new(
        segments: Vec<Bytes>,
        delivery: Delivery,
        ledger: Arc<Ledger>,
        number: usize,
    ) -> Self {
        let whole: usize = segments.iter().map(Bytes::len).sum();
        let left = delivery.cut.map_or(whole, |cut| cut.min(whole));
        let complete = left == whole && delivery.end == End::Clean;
        // A body that ends in good order is announced with the length that it has.
        let withheld = if delivery.end == End::Clean { 0 } else { whole - left };
        let mut body = Self {
            segments: segments.into_iter().filter(|segment| !segment.is_empty()).collect(),
            left,
            withheld,
            delivery,
            sleep: None,
            ledger,
            number,
            taken: 0,
            complete,
            finished: false,
            #[cfg(feature = "serve")]
            flush: None,
        };
        // A response without a body has arrived with its head.
        body.close_if_whole();
        body
    }

    fn close_if_whole(&mut self) {
        if self.left == 0 && self.complete {
            self.close(Delivered::Full);
        }
    }

    /// Records how much was read, once.
    fn close(&mut self, delivered: Delivered) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let now = self.ledger.now();
        self.ledger.edit(self.number, |record| {
            record.delivered = delivered;
            record.ended_at = Some(now);
        });
    }

    fn close_early(&mut self) {
        self.close(if self.taken == 0 { Delivered::NotDelivered } else { Delivered::Partial });
    }

    #[cfg(feature = "serve")]
    pub(crate) fn over(mut self, flush: crate::connection::FlushWaiter) -> Self {
        self.flush = Some(flush);
        self
    }

    fn next_chunk(&mut self) -> Bytes {
        let wanted = self.delivery.chunk.max(1).min(self.left);
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
            if !this.delivery.every.is_zero() {
                let every = this.delivery.every;
                let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(every)));
                ready!(sleep.as_mut().poll(cx));
                this.sleep = None;
            }
            let chunk = this.next_chunk();
            this.taken += chunk.len();
            this.close_if_whole();
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        match this.delivery.end {
            End::Never => Poll::Pending,
            End::Clean => {
                this.close_early();
                Poll::Ready(None)
            }
            End::Broken => {
                #[cfg(feature = "serve")]
                if let Some(flush) = &mut this.flush {
                    // What was said before must be on the wire before the connection is cut.
                    ready!(flush.poll_flushed(cx));
                }
                #[cfg(not(feature = "serve"))]
                let _ = cx;
                this.close_early();
                Poll::Ready(Some(Err(SimError::new(SimErrorKind::BodyCut))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.finished
    }

    fn size_hint(&self) -> SizeHint {
        if self.delivery.announced {
            SizeHint::with_exact((self.left + self.withheld) as u64)
        } else {
            SizeHint::default()
        }
    }
}

impl Drop for SimBody {
    fn drop(&mut self) {
        self.close_early();
    }
}
