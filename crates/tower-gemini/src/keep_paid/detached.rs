//! A call and its caller: together, and when the caller has gone.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, TRANSFER_ENCODING};
use http::{HeaderMap, Response, StatusCode};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tower_gemini_core::error::Error;
use tower_gemini_core::trail::{NotKeptReason, Step, Trail, TrailObserver};
use tower_gemini_core::verdict::Charge;

use super::body::{Keepable, KeptBody, OnItsWay};
use super::identity::Identity;
use super::shared::{NamedResult, Shared};
use super::store::Answer;

/// What is known of a call apart from its answer.
pub(super) struct Task {
    pub(super) shared: Arc<Shared>,
    pub(super) identity: Identity,
    pub(super) trail: Trail,
    pub(super) marks_resends: bool,
}

impl Task {
    /// The caller is gone and nothing is left to finish.
    pub(super) fn leave(&self) {
        self.shared.leave(self.identity);
    }

    /// The caller has gone. Gives the runtime where what it left is to be finished.
    fn detach(&self) -> Option<Handle> {
        let Ok(runtime) = Handle::try_current() else {
            self.leave();
            return None;
        };
        if !self.shared.detach(self.identity) {
            self.not_kept(NotKeptReason::TooMany);
            return None;
        }
        tracing::info!(call = ?self.identity, "the caller went away: what it may have paid for is finished");
        self.trail.push(Step::CallerLeft);
        Some(runtime)
    }

    fn not_kept(&self, why: NotKeptReason) {
        self.trail.push(Step::NotKept { why });
        self.shared.not_kept(why);
    }
}

/// Whether the last attempt was or may have been paid for. One that never left costs nothing, and neither does waiting between attempts.
fn may_be_paid(trail: &Trail) -> bool {
    trail.attempts().last().is_some_and(|last| match last.outcome {
        None => trail.request_is_out(),
        Some(_) => !last.charge.is_surely_free(),
    })
}

type Answering<B> = Pin<Box<dyn Future<Output = Result<Response<B>, Error>> + Send>>;

/// A call whose caller is there. Dropped before its answer has come, it goes on alone where it may have been paid for.
pub(super) struct Attended<B: Keepable> {
    /// `None` once it has answered.
    call: Option<(Answering<B>, Task)>,
}

impl<B: Keepable> Attended<B> {
    pub(super) fn new(answer: impl Future<Output = Result<Response<B>, Error>> + Send + 'static, task: Task) -> Self {
        Self { call: Some((Box::pin(answer), task)) }
    }
}

impl<B: Keepable> Future for Attended<B> {
    type Output = Result<Response<KeptBody<B>>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some((answer, _)) = &mut self.call else { return Poll::Pending };
        let Poll::Ready(answer) = answer.as_mut().poll(cx) else { return Poll::Pending };
        let Some((_, task)) = self.call.take() else { return Poll::Pending };
        Poll::Ready(match answer {
            Ok(answer) => {
                let (mut parts, body) = answer.into_parts();
                parts.extensions.insert(task.trail.clone());
                let body = KeptBody::attended(body, parts.status, parts.headers.clone(), task);
                Ok(Response::from_parts(parts, body))
            }
            Err(error) => {
                task.leave();
                Err(error)
            }
        })
    }
}

impl<B: Keepable> Drop for Attended<B> {
    fn drop(&mut self) {
        let Some((answer, task)) = self.call.take() else { return };
        if !may_be_paid(&task.trail) {
            task.leave();
            return;
        }
        if let Some(runtime) = task.detach() {
            runtime.spawn(finish_call(answer, Orphan::new(task)));
        }
    }
}

impl<B: Keepable> OnItsWay<B> {
    /// All of it went to the caller, as far as can be seen from here.
    pub(super) fn delivered(self) {
        let Self { body, seen, task } = self;
        let paid = body.verdict().is_none_or(|verdict| !verdict.charge().is_surely_free());
        if let (true, Some(answer)) = (task.marks_resends && paid, seen.answer(&task.trail)) {
            task.shared.delivered(task.identity, answer);
        }
        task.leave();
    }

    /// The caller went away before the end.
    pub(super) fn left(self) {
        let Self { body, seen, task } = self;
        if body.verdict().is_some_and(|verdict| verdict.charge().is_surely_free()) {
            task.leave();
            return;
        }
        if let Some(runtime) = task.detach() {
            let orphan = Orphan::new(task);
            let until = orphan.until();
            runtime.spawn(finish_body(body, seen, orphan, until));
        }
    }
}

/// A call without its caller. Dropped before it has come to anything (the runtime ends, a layer panics), it is as if it never was.
struct Orphan {
    task: Task,
    over: bool,
}

impl Orphan {
    fn new(task: Task) -> Self {
        Self { task, over: false }
    }

    fn until(&self) -> Instant {
        Instant::now() + self.task.shared.settings.max_time
    }

    fn keep(mut self, answer: Answer) {
        self.over = true;
        let task = &self.task;
        tracing::info!(call = ?task.identity, bytes = answer.bytes, "kept for the caller's next identical request");
        task.trail.push(Step::Kept { bytes: answer.bytes as u64 });
        task.shared.reattach(task.identity, Some(Arc::new(answer)));
    }

    fn lose(mut self, why: NotKeptReason) {
        self.over = true;
        tracing::info!(call = ?self.task.identity, why = why.as_str(), "not kept");
        self.task.not_kept(why);
        self.task.shared.reattach(self.task.identity, None);
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        if !self.over {
            self.task.shared.reattach(self.task.identity, None);
        }
    }
}

/// Tells when an attempt has ended without costing anything: nobody wants another one.
struct WhenFree(Arc<Notify>);

impl WhenFree {
    fn of(trail: &Trail) -> Arc<Notify> {
        let free = Arc::new(Notify::new());
        trail.observe(Arc::new(Self(free.clone())));
        free
    }
}

impl TrailObserver for WhenFree {
    fn on_step(&self, step: &Step) {
        if matches!(step, Step::Attempt(attempt) if matches!(attempt.charge, Charge::None | Charge::Waived)) {
            self.0.notify_one();
        }
    }
}

async fn finish_call<B: Keepable>(mut answer: Answering<B>, orphan: Orphan) {
    let until = orphan.until();
    let free = WhenFree::of(&orphan.task.trail);
    let answer = tokio::select! {
        biased;
        answer = timeout_at(until, &mut answer) => answer,
        () = free.notified() => return orphan.lose(NotKeptReason::Free),
    };
    match answer {
        Ok(Ok(answer)) => {
            let (parts, body) = answer.into_parts();
            let seen = Collected::new(parts.status, parts.headers, orphan.task.shared.settings.max_bytes);
            finish_body(body, seen, orphan, until).await;
        }
        Ok(Err(error)) if error.charge().is_surely_free() => orphan.lose(NotKeptReason::Free),
        Ok(Err(_)) => orphan.lose(NotKeptReason::Broken),
        Err(_) => orphan.lose(NotKeptReason::TooLate),
    }
}

async fn finish_body<B: Keepable>(mut body: B, mut seen: Collected, orphan: Orphan, until: Instant) {
    match timeout_at(until, read(&mut body, &mut seen)).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return orphan.lose(NotKeptReason::Broken),
        Err(_) => return orphan.lose(NotKeptReason::TooLate),
    }
    if body.verdict().is_some_and(|verdict| verdict.charge().is_surely_free()) {
        return orphan.lose(NotKeptReason::Free);
    }
    // Dropped first: what reads along writes the attempt's end, and its cost, into the trail.
    drop(body);
    match seen.answer(&orphan.task.trail) {
        Some(answer) => orphan.keep(answer),
        None => orphan.lose(NotKeptReason::TooLarge),
    }
}

async fn read<B: Keepable>(body: &mut B, seen: &mut Collected) -> Result<(), Error> {
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            seen.push(&data);
        }
    }
    Ok(())
}

/// An answer as it comes together. Of one that is too large nothing is held.
pub(super) struct Collected {
    status: StatusCode,
    headers: HeaderMap,
    chunks: Option<Vec<Bytes>>,
    bytes: usize,
    most: usize,
}

impl Collected {
    pub(super) fn new(status: StatusCode, mut headers: HeaderMap, most: usize) -> Self {
        // What was said of the first connection is not true of the next.
        headers.remove(CONNECTION);
        headers.remove(TRANSFER_ENCODING);
        Self { status, headers, chunks: Some(Vec::new()), bytes: 0, most }
    }

    pub(super) fn push(&mut self, chunk: &Bytes) {
        self.bytes = self.bytes.saturating_add(chunk.len());
        if self.bytes > self.most {
            self.chunks = None;
        }
        if let Some(chunks) = &mut self.chunks {
            chunks.push(chunk.clone());
        }
    }

    /// The whole answer, where it is not too large.
    fn answer(self, trail: &Trail) -> Option<Answer> {
        let Self { status, headers, chunks, bytes, .. } = self;
        Some(Answer { status, headers, chunks: chunks?, bytes, at: Instant::now(), cost: trail.cost(), file: None })
    }
}

/// Runs the call of a name to its end, and tells everybody.
pub(super) async fn run_named<B: Keepable>(
    shared: Arc<Shared>,
    trail: Trail,
    answer: impl Future<Output = Result<Response<B>, Error>> + Send,
    result: watch::Sender<NamedResult>,
    tell: oneshot::Sender<Result<Arc<Answer>, Error>>,
) {
    shared.task_begins();
    let _end = TaskEnd(shared.clone());
    let free = WhenFree::of(&trail);
    let mut answer = std::pin::pin!(answer);
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut answer => break answer,
            () = free.notified() => {
                // The one receiver is the registry's own: nobody waits any more, and nobody wants another attempt.
                if tell.is_closed() && result.receiver_count() <= 1 {
                    result.send_replace(NamedResult::Free);
                    return;
                }
            }
        }
    };
    let whole = match answer {
        Ok(answer) => {
            let (parts, mut body) = answer.into_parts();
            let mut seen = Collected::new(parts.status, parts.headers, usize::MAX);
            match read(&mut body, &mut seen).await {
                Ok(()) => {
                    let charge = body.verdict().map_or(Charge::Maybe, |verdict| verdict.charge());
                    drop(body);
                    Ok((seen.answer(&trail), charge))
                }
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    };
    let told = match whole {
        Ok((Some(answer), charge)) => {
            let answer = Arc::new(answer);
            let paid = !charge.is_surely_free();
            result.send_replace(if paid { NamedResult::Answer(answer.clone()) } else { NamedResult::Free });
            Ok(answer)
        }
        // Nothing is too large for no bound.
        Ok((None, _)) => Err(Error::truncated(trail.cut_off())),
        Err(error) => {
            let free = error.charge().is_surely_free();
            result.send_replace(if free { NamedResult::Free } else { NamedResult::Lost });
            Err(error)
        }
    };
    // A caller that has gone can ask again by the same name.
    let _ = tell.send(told);
}

struct TaskEnd(Arc<Shared>);

impl Drop for TaskEnd {
    fn drop(&mut self) {
        self.0.task_ends();
    }
}
