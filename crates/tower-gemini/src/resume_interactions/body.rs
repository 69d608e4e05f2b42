use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

use crate::body::and_held;
use crate::error::BoxError;

/// The body of a response that [`ResumeInteractions`](super::ResumeInteractions) returns: the
/// client's own, or that of an interaction that was fetched.
pub struct ResumedBody<B> {
    held: VecDeque<Bytes>,
    rest: Rest<B>,
}

/// What follows what is held.
pub(super) enum Rest<B> {
    /// Nothing, and an error if there was one.
    End(Option<BoxError>),
    /// The client's body.
    Passed(B),
    /// What a task that runs within this body passes on.
    Piped(Piped),
}

impl<B> ResumedBody<B> {
    pub(super) fn new(held: impl IntoIterator<Item = Bytes>, rest: Rest<B>) -> Self {
        Self { held: held.into_iter().collect(), rest }
    }
}

/// Chunks on their way from a task to its body.
#[derive(Debug, Clone, Default)]
pub(super) struct Pipe(Arc<Mutex<VecDeque<Bytes>>>);

impl Pipe {
    fn with<T>(&self, f: impl FnOnce(&mut VecDeque<Bytes>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Passes chunks on, and waits until they were read. The body polls the task when they were.
    pub(super) async fn send(&self, chunks: impl IntoIterator<Item = Bytes>) {
        self.with(|queue| queue.extend(chunks));
        poll_fn(|_| match self.with(|queue| queue.is_empty()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}

type Task = Pin<Box<dyn Future<Output = Option<BoxError>> + Send>>;

/// A task that fills a body, run by whoever reads the body.
pub(super) struct Piped {
    pipe: Pipe,
    /// Under a lock that is never contended, so that bodies stay `Sync`.
    task: Mutex<Option<Task>>,
}

impl Piped {
    /// `task` ends with the error that ends the body.
    pub(super) fn new(
        pipe: Pipe,
        task: impl Future<Output = Option<BoxError>> + Send + 'static,
    ) -> Self {
        Self { pipe, task: Mutex::new(Some(Box::pin(task))) }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        loop {
            if let Some(chunk) = self.pipe.with(VecDeque::pop_front) {
                return Poll::Ready(Some(Ok(chunk)));
            }
            let task = self.task.get_mut().unwrap_or_else(PoisonError::into_inner);
            let Some(running) = task else { return Poll::Ready(None) };
            match running.as_mut().poll(cx) {
                Poll::Ready(error) => {
                    *task = None;
                    if let Some(error) = error {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                Poll::Pending if self.pipe.with(|queue| queue.is_empty()) => return Poll::Pending,
                Poll::Pending => {}
            }
        }
    }
}

impl<B> Body for ResumedBody<B>
where
    B: Body<Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Some(chunk) = this.held.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        match &mut this.rest {
            Rest::End(error) => Poll::Ready(error.take().map(Err)),
            Rest::Passed(body) => Pin::new(body).poll_frame(cx).map(|frame| {
                frame.map(|frame| match frame {
                    Ok(frame) => {
                        Ok(frame.map_data(|mut data| data.copy_to_bytes(data.remaining())))
                    }
                    Err(error) => Err(error.into()),
                })
            }),
            Rest::Piped(piped) => piped.poll(cx).map(|chunk| chunk.map(|it| it.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty()
            && match &self.rest {
                Rest::End(error) => error.is_none(),
                Rest::Passed(body) => body.is_end_stream(),
                Rest::Piped(_) => false,
            }
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.held.iter().map(|chunk| chunk.len() as u64).sum();
        match &self.rest {
            Rest::End(None) => SizeHint::with_exact(held),
            Rest::Passed(body) => and_held(body.size_hint(), held),
            Rest::End(Some(_)) | Rest::Piped(_) => SizeHint::default(),
        }
    }
}

impl<B> fmt::Debug for ResumedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = match self.rest {
            Rest::End(_) => "end",
            Rest::Passed(_) => "passed",
            Rest::Piped(_) => "piped",
        };
        f.debug_struct("ResumedBody").field("held", &self.held.len()).field("rest", &rest).finish()
    }
}
