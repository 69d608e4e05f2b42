//! A call and its caller: together, and when the caller has gone.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::error::Error;
use crate::trail::{NotKeptReason, Step, Trail, TrailObserver};
use bytes::Bytes;
use http::header::{CONNECTION, TRANSFER_ENCODING};
use http::{HeaderMap, Response, StatusCode};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};
use tower_gemini_core::verdict::{Charge, Outcome, Verdict};

use super::body::{Keepable, KeptBody, OnItsWay};
use super::course::Course;
use super::identity::Identity;
use super::named::Report;
use super::shared::{Came, Shared, after};
use super::store::{Answer, is_of_use};

/// What is known of a call apart from its answer.
pub(super) struct Task {
    pub(super) shared: Arc<Shared>,
    pub(super) identity: Identity,
    pub(super) course: Course,
    pub(super) marks_resends: bool,
}

impl Task {
    /// The caller has what there is.
    fn leave(&self) {
        self.shared.leave(self.identity, &self.course.record);
    }

    /// The caller is told of this error. One that went away unnoticed never hears it, and its
    /// resend is told then.
    pub(super) fn failed(&self, error: &Error) {
        let may_have_cost = !error.charge().is_surely_free() || self.course.was_out_before();
        if self.marks_resends && may_have_cost {
            self.shared.told_of_loss(self.identity);
        }
        self.leave();
    }

    /// The caller has gone, and what is under way costs nothing.
    fn leave_free(&self) {
        if self.course.was_out_before() {
            self.shared.abandon(self.identity, &self.course.record);
        } else {
            self.leave();
        }
    }

    /// The caller has gone. Gives the runtime where what it left is to be finished.
    fn detach(self) -> Option<(Handle, Orphan)> {
        let Ok(runtime) = Handle::try_current() else {
            self.shared.abandon(self.identity, &self.course.record);
            return None;
        };
        if !self.shared.detach(self.identity, &self.course.record) {
            self.not_kept(NotKeptReason::TooMany);
            return None;
        }
        tracing::info!(call = ?self.identity, "the caller went away: what it may have paid for is finished");
        self.course.trail.push(Step::CallerLeft);
        Some((runtime, Orphan { task: self, over: false }))
    }

    fn not_kept(&self, why: NotKeptReason) {
        self.course.trail.push(Step::NotKept { why });
        self.shared.not_kept(why);
    }
}

type Answering<B> = Pin<Box<dyn Future<Output = Result<Response<B>, Error>> + Send>>;

/// A call whose caller is there. Dropped before its answer has come, it goes on alone where it may
/// have been paid for.
pub(super) struct Attended<B: Keepable> {
    /// `None` once it has answered.
    call: Option<(Answering<B>, Task)>,
}

impl<B: Keepable> Attended<B> {
    pub(super) fn new(
        answer: impl Future<Output = Result<Response<B>, Error>> + Send + 'static,
        task: Task,
    ) -> Self {
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
                parts.extensions.insert(task.course.trail.clone());
                let body = KeptBody::attended(body, parts.status, parts.headers.clone(), task);
                Ok(Response::from_parts(parts, body))
            }
            Err(error) => {
                task.failed(&error);
                Err(error)
            }
        })
    }
}

impl<B: Keepable> Drop for Attended<B> {
    fn drop(&mut self) {
        let Some((answer, task)) = self.call.take() else { return };
        if !task.course.is_out() {
            // First, and looked at again then: it can go out until it is dropped.
            drop(answer);
            if task.course.is_out() {
                task.shared.abandon(task.identity, &task.course.record);
            } else {
                task.leave_free();
            }
            return;
        }
        if let Some((runtime, orphan)) = task.detach() {
            runtime.spawn(finish_call(answer, orphan));
        }
    }
}

impl<B: Keepable> OnItsWay<B> {
    /// All of it went to the caller, as far as can be seen from here.
    pub(super) fn delivered(self) {
        let Self { body, seen, task, .. } = self;
        let verdict = body.verdict().cloned();
        let paid = verdict.as_ref().is_none_or(|verdict| !verdict.charge().is_surely_free());
        if task.marks_resends && paid {
            if !is_of_use(seen.status, outcome_of(verdict.as_ref())) {
                task.shared.told_of_loss(task.identity);
            } else {
                match seen.answer(&task.course.trail, verdict) {
                    Some(answer) => task.shared.delivered(task.identity, answer),
                    // There was no room for a copy.
                    None => task.shared.told_of_loss(task.identity),
                }
            }
        }
        task.leave();
    }

    /// The caller went away before the end.
    pub(super) fn left(self) {
        let Self { body, seen, task, .. } = self;
        if body.verdict().is_some_and(|verdict| verdict.charge().is_surely_free()) {
            task.leave_free();
            return;
        }
        if let Some((runtime, orphan)) = task.detach() {
            let until = orphan.until();
            runtime.spawn(finish_body(body, seen, orphan, until));
        }
    }
}

/// A call without its caller. Dropped before it has come to anything (the runtime ends, a layer
/// panics), it is lost.
struct Orphan {
    task: Task,
    over: bool,
}

impl Orphan {
    fn until(&self) -> Instant {
        after(Instant::now(), self.task.shared.settings.max_time)
    }

    fn keep(mut self, mut answer: Answer) {
        self.over = true;
        answer.record = self.task.course.record.clone();
        let task = &self.task;
        tracing::info!(call = ?task.identity, bytes = answer.bytes, "kept for the caller's next identical request");
        task.course.trail.push(Step::Kept { bytes: answer.bytes as u64 });
        task.shared.reattach(task.identity, &task.course.record, Came::Answer(Arc::new(answer)));
    }

    fn end(mut self, why: NotKeptReason) {
        self.over = true;
        tracing::info!(call = ?self.task.identity, why = why.as_str(), "not kept");
        let task = &self.task;
        task.not_kept(why);
        // What is free now may have been sent after something that was not.
        let is_free = why == NotKeptReason::Free && !task.course.was_out_before();
        task.shared.reattach(
            task.identity,
            &task.course.record,
            if is_free { Came::Free } else { Came::Lost },
        );
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        if !self.over {
            self.task.shared.reattach(self.task.identity, &self.task.course.record, Came::Lost);
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
        if matches!(step, Step::Attempt(attempt) if matches!(attempt.charge, Charge::None | Charge::Waived))
        {
            self.0.notify_one();
        }
    }
}

async fn finish_call<B: Keepable>(mut answer: Answering<B>, orphan: Orphan) {
    let until = orphan.until();
    let free = WhenFree::of(&orphan.task.course.trail);
    let answer = loop {
        tokio::select! {
            biased;
            answer = timeout_at(until, &mut answer) => break answer,
            // Unless the next one has gone out since.
            () = free.notified() => if !orphan.task.course.is_out() {
                // First, and looked at again then: it can go out until it is dropped.
                drop(answer);
                let is_out = orphan.task.course.is_out();
                return orphan.end(if is_out { NotKeptReason::Broken } else { NotKeptReason::Free });
            },
        }
    };
    match answer {
        Ok(Ok(answer)) => {
            let (parts, body) = answer.into_parts();
            let seen = Collected::bounded(parts.status, parts.headers, orphan.task.shared.clone());
            finish_body(body, seen, orphan, until).await;
        }
        Ok(Err(error)) if error.charge().is_surely_free() => orphan.end(NotKeptReason::Free),
        Ok(Err(_)) => orphan.end(NotKeptReason::Broken),
        Err(_) => orphan.end(NotKeptReason::TooLate),
    }
}

async fn finish_body<B: Keepable>(
    mut body: B,
    mut seen: Collected,
    orphan: Orphan,
    until: Instant,
) {
    match timeout_at(until, read(&mut body, &mut seen)).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return orphan.end(NotKeptReason::Broken),
        Err(_) => return orphan.end(NotKeptReason::TooLate),
    }
    let verdict = body.verdict().cloned();
    if verdict.as_ref().is_some_and(|verdict| verdict.charge().is_surely_free()) {
        return orphan.end(NotKeptReason::Free);
    }
    if !is_of_use(seen.status, outcome_of(verdict.as_ref())) {
        return orphan.end(NotKeptReason::Broken);
    }
    // Dropped first: what reads along writes the attempt's end, and its cost, into the trail.
    drop(body);
    match seen.answer(&orphan.task.course.trail, verdict) {
        Some(answer) => orphan.keep(answer),
        None => orphan.end(NotKeptReason::TooLarge),
    }
}

fn outcome_of(verdict: Option<&Verdict>) -> Outcome {
    verdict.map_or(Outcome::Other, Verdict::outcome)
}

async fn read<B: Keepable>(body: &mut B, seen: &mut Collected) -> Result<(), Error> {
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            seen.push(&data);
        }
    }
    Ok(())
}

/// An answer as it comes together. Of one that is too large, or comes beside too many others,
/// nothing is held.
pub(super) struct Collected {
    status: StatusCode,
    headers: HeaderMap,
    chunks: Option<Vec<Bytes>>,
    bytes: usize,
    /// Whose room it takes.
    room: Option<Arc<Shared>>,
}

impl Collected {
    /// Within the bound that holds for all that is on its way.
    pub(super) fn bounded(status: StatusCode, headers: HeaderMap, room: Arc<Shared>) -> Self {
        Self::new(status, headers, Some(room))
    }

    fn new(status: StatusCode, mut headers: HeaderMap, room: Option<Arc<Shared>>) -> Self {
        // What was said of the first connection is not true of the next.
        headers.remove(CONNECTION);
        headers.remove(TRANSFER_ENCODING);
        Self { status, headers, chunks: Some(Vec::new()), bytes: 0, room }
    }

    pub(super) fn push(&mut self, chunk: &Bytes) {
        let Some(chunks) = &mut self.chunks else { return };
        if self.room.as_ref().is_none_or(|room| room.reserve(chunk.len())) {
            chunks.push(chunk.clone());
            self.bytes += chunk.len();
        } else {
            self.let_go();
        }
    }

    fn let_go(&mut self) -> Option<(Vec<Bytes>, usize)> {
        let chunks = self.chunks.take()?;
        let bytes = std::mem::take(&mut self.bytes);
        if let Some(room) = &self.room {
            room.release(bytes);
        }
        Some((chunks, bytes))
    }

    /// The whole answer, where it is not too large.
    fn answer(mut self, trail: &Trail, verdict: Option<Verdict>) -> Option<Answer> {
        let (chunks, bytes) = self.let_go()?;
        Some(Answer {
            status: self.status,
            headers: std::mem::take(&mut self.headers),
            chunks,
            bytes,
            at: Instant::now(),
            cost: trail.cost(),
            outcome: outcome_of(verdict.as_ref()),
            verdict: verdict.map(Arc::new),
            record: Arc::default(),
        })
    }
}

impl Drop for Collected {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Runs the call of a name to its end, and tells everybody. Where nobody waits for it any more, it
/// goes on as any call without a caller does: while it may have been paid for, and no longer than
/// that is waited for.
pub(super) async fn run_named<B: Keepable>(
    shared: Arc<Shared>,
    answer: impl Future<Output = Result<Response<B>, Error>> + Send,
    report: Report,
    mut tell: oneshot::Sender<Result<Arc<Answer>, Error>>,
) {
    shared.task_begins();
    let _end = TaskEnd(shared.clone());
    let trail = &report.course.trail;
    let free = WhenFree::of(trail);
    let mut whole = Box::pin(whole(answer, &report.course));
    let (mut alone_until, mut place) = (None, None);
    let whole = loop {
        let alone = tell.is_closed() && report.is_unheard();
        if alone && !report.course.is_out() {
            // First, and looked at again then: it can go out until it is dropped.
            drop(whole);
            report.none(!report.course.is_out());
            return;
        }
        // Without a caller it is one of those that are finished within bounds.
        place = if alone { place.or_else(|| Place::take(&shared)) } else { None };
        if alone && place.is_none() {
            shared.not_kept(NotKeptReason::TooMany);
            drop(whole);
            report.none(false);
            return;
        }
        let soon = || after(Instant::now(), shared.settings.max_time);
        alone_until = if alone { alone_until.or_else(|| Some(soon())) } else { None };
        let too_late = async {
            match alone_until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            whole = &mut whole => break whole,
            // Looked at again from the top.
            () = free.notified() => {}
            () = report.left.notified() => {}
            () = tell.closed(), if !tell.is_closed() => {}
            // Somebody may have come back to it since.
            () = too_late => if tell.is_closed() && report.is_unheard() {
                report.none(false);
                return;
            },
        }
    };
    let told = match whole {
        Ok(answer) => {
            let paid =
                answer.verdict.as_ref().is_none_or(|verdict| !verdict.charge().is_surely_free());
            Ok(if paid {
                let answer = report.answer(answer);
                shared.trim_names();
                answer
            } else {
                report.none(true);
                Arc::new(answer)
            })
        }
        Err(error) => {
            report.none(error.charge().is_surely_free());
            Err(error)
        }
    };
    // A caller that has gone can ask again by the same name.
    let _ = tell.send(told);
}

/// A place among the calls that are finished without their callers.
struct Place(Arc<Shared>);

impl Place {
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        shared.take_place().then(|| Self(shared.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.leave_place();
    }
}

/// An answer to its end.
async fn whole<B: Keepable>(
    answer: impl Future<Output = Result<Response<B>, Error>>,
    course: &Course,
) -> Result<Answer, Error> {
    let (parts, mut body) = answer.await?.into_parts();
    // It goes to whoever asked, however large it is.
    let mut seen = Collected::new(parts.status, parts.headers, None);
    read(&mut body, &mut seen).await?;
    let verdict = body.verdict().cloned();
    drop(body);
    // Nothing is too large for no bound.
    seen.answer(&course.trail, verdict).ok_or_else(|| Error::truncated(course.cut_off()))
}

struct TaskEnd(Arc<Shared>);

impl Drop for TaskEnd {
    fn drop(&mut self) {
        self.0.task_ends();
    }
}
