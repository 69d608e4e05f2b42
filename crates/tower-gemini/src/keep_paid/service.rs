use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::body::CallBody;
use crate::call_state::CallState;
use crate::error::{Error, TimeLimit};
use crate::trail::{Step, StopReason};
use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode};
use serde_json::json;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};
use tower_gemini_core::call::Verb;
use tower_gemini_core::verdict::Verdict;
use tower_service::Service;

use super::body::{Keepable, KeptBody};
use super::course::Course;
use super::detached::{Attended, Task, run_named};
use super::files;
use super::identity::Identity;
use super::named::{Named, NamedResult};
use super::shared::{Found, Shared, after};
use super::store::Answer;
use crate::quota_guard::REFUSAL_DOMAIN;
use crate::ready::take_ready;

/// By which a caller says that two requests are one (the IETF's draft of the HTTP `Idempotency-Key`
/// header).
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// By which openai's clients number their sends; 0 is the first.
const RETRY_COUNT: HeaderName = HeaderName::from_static("x-stainless-retry-count");

const LOST_BEFORE: &str = "not sent: an earlier request that was the same was or may have been paid for after its caller had gone, and its \
                           answer was lost; asking once more sends it";
const LOST_BY_NAME: &str = "an earlier request with this idempotency key was or may have been paid for, and its answer was lost; another \
                            key asks again";

/// In the extensions of the answer to a request that was not sent because of its `Idempotency-Key`:
/// the key was used for another request (status 422), or the request is too large to be held, and
/// so to be told from another (413). The body is an error in Google's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyRefused;

/// Finishes what its callers left, and keeps it for them. See the [module](super).
#[derive(Debug, Clone)]
pub struct KeepPaid<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> KeepPaid<S> {
    pub(super) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
    }
}

/// An answer on its way.
type Answering<B> = Pin<Box<dyn Future<Output = Result<Response<KeptBody<B>>, Error>> + Send>>;

impl<S, B> Service<Request<CallBody>> for KeepPaid<S>
where
    S: Service<Request<CallBody>, Response = Response<B>, Error = Error, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
    B: Keepable,
{
    type Response = Response<KeptBody<B>>;
    type Error = Error;
    type Future = Answering<B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<CallBody>) -> Self::Future {
        let inner = take_ready(&mut self.inner);
        // Nobody upstream knows it.
        let key = request.headers_mut().remove(IDEMPOTENCY_KEY);
        let call = request.body().call();
        let makes = matches!(call.verb, Verb::Generate | Verb::StreamGenerate | Verb::Predict)
            && !call.is_continuation;
        let Some(identity) = makes.then(|| Identity::of(&request)).flatten() else {
            if makes && key.is_some() {
                let answer = refused_by_key(
                    request.body().state(),
                    StatusCode::PAYLOAD_TOO_LARGE,
                    TOO_LARGE_FOR_A_KEY,
                );
                return Box::pin(async move { Ok(answer) });
            }
            let mut inner = inner;
            let answer = inner.call(request);
            return Box::pin(async move { Ok(answer.await?.map(KeptBody::passing)) });
        };
        let sends = request
            .headers()
            .get(RETRY_COUNT)
            .and_then(|count| count.to_str().ok()?.trim().parse::<u32>().ok());
        let asked = Asked {
            shared: self.shared.clone(),
            identity,
            context: request.body().state().clone(),
            marks_resends: sends.is_some(),
            is_resend: sends.is_some_and(|sends| sends > 0),
        };
        match key {
            Some(key) if tokio::runtime::Handle::try_current().is_ok() => {
                let name = Identity::of_key(&request, key.as_bytes());
                Box::pin(asked.by_name(name, inner, request))
            }
            _ => Box::pin(asked.alone(inner, request)),
        }
    }
}

/// Somebody who waits for a call of a name, and says so when it does no more.
struct Waiter {
    named: Named,
    // Dropped after what is waited with: whoever is told then counts one less.
    _leaves: Leaves,
}

impl Waiter {
    fn new(named: Named) -> Self {
        let leaves = Leaves(named.left.clone());
        Self { named, _leaves: leaves }
    }
}

struct Leaves(Arc<Notify>);

impl Drop for Leaves {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// A request and who it is from.
struct Asked {
    shared: Arc<Shared>,
    identity: Identity,
    context: CallState,
    /// The client numbers its sends.
    marks_resends: bool,
    is_resend: bool,
}

impl Asked {
    /// Gives what was kept for this request, or sends it.
    async fn alone<S, B>(
        self,
        mut inner: S,
        request: Request<CallBody>,
    ) -> Result<Response<KeptBody<B>>, Error>
    where
        S: Service<
                Request<CallBody>,
                Response = Response<B>,
                Error = Error,
                Future: Send + 'static,
            >,
        B: Keepable,
    {
        let settings = &self.shared.settings;
        let grace = after(
            Instant::now(),
            if self.is_resend { settings.resend_grace } else { settings.grace },
        );
        loop {
            let (changes, until) = match self.shared.find(
                self.identity,
                Instant::now() < grace,
                self.is_resend,
                self.marks_resends,
            ) {
                Found::Answer(answer) => return Ok(self.redeemed(answer)),
                Found::Orphan(changes) => (changes, None),
                Found::Live(changes) => (changes, Some(grace)),
                Found::OnDisk(loss) => match self.read_back(loss).await {
                    Some(answer) => return Ok(self.redeemed(answer)),
                    None if self.buys() => {
                        self.shared.untell(self.identity);
                        break;
                    }
                    None => return Err(self.lost(LOST_BEFORE)),
                },
                Found::Lost if self.buys() => {
                    self.shared.untell(self.identity);
                    break;
                }
                Found::Lost => return Err(self.lost(LOST_BEFORE)),
                // Or a request beside another, and not after it.
                Found::Nothing => break,
            };
            self.wait(&changes, until).await?;
        }
        let course = Course::begin(&self.context);
        // Before it counts as one whose caller is there: should it panic, nobody would take it out
        // again.
        let answer = inner.call(request);
        self.shared.enter(self.identity, &course, self.marks_resends && !self.is_resend);
        let task = Task {
            shared: self.shared.clone(),
            identity: self.identity,
            course,
            marks_resends: self.marks_resends,
        };
        let answer = Attended::new(answer, task).await?;
        Ok(answer)
    }

    /// Whether the caller allows a send after one that may have been paid for, and pays with this
    /// one for it.
    fn buys(&self) -> bool {
        self.context.permit_after(&Verdict::interrupted()).is_some()
    }

    /// Nothing was sent for this request; what was sent before it may have been paid for.
    fn lost(&self, why: &'static str) -> Error {
        self.context.record(Step::Stopped { why: StopReason::LostBefore });
        Error::lost_before(why).with_trail(self.context.trail().clone())
    }

    /// Reads an answer that had to go from memory. A caller that goes away meanwhile leaves it
    /// where it is.
    async fn read_back(&self, loss: Arc<Answer>) -> Option<Arc<Answer>> {
        struct Taken<'a>(&'a Shared, Identity, Option<Arc<Answer>>);
        impl Drop for Taken<'_> {
            fn drop(&mut self) {
                if let Some(loss) = self.2.take() {
                    self.0.leave_on_disk(self.1, &loss, false);
                }
            }
        }
        let mut taken = Taken(&self.shared, self.identity, Some(loss.clone()));
        let read = files::read(&loss).await;
        taken.2 = None;
        match read {
            Ok(answer) => Some(Arc::new(answer)),
            Err(error) => {
                tracing::warn!(%error, "a kept answer that had to go from memory cannot be read from where it is written down");
                // Before anybody else looks.
                if self.marks_resends {
                    self.shared.told_of_loss(self.identity);
                }
                self.shared.leave_on_disk(self.identity, &loss, true);
                None
            }
        }
    }

    /// Waits for something to happen to calls that are alike, until the grace is over or the call's
    /// deadline is there.
    async fn wait(&self, changes: &Arc<Notify>, grace: Option<Instant>) -> Result<(), Error> {
        let mut changed = std::pin::pin!(changes.notified());
        // Whoever looks first and listens then misses what happens in between.
        changed.as_mut().enable();
        if !self.shared.is_waiting_worthwhile(self.identity, changes) {
            return Ok(());
        }
        let deadline = self.context.deadline();
        let until = match (grace, deadline) {
            (Some(grace), Some(deadline)) => Some(grace.min(deadline)),
            (grace, deadline) => grace.or(deadline),
        };
        let time = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = changed => Ok(()),
            () = time => match deadline {
                Some(deadline) if deadline <= Instant::now() => Err(self.too_late()),
                _ => Ok(()),
            },
        }
    }

    fn too_late(&self) -> Error {
        // This call sent nothing; what it waited for goes on.
        Error::timeout(TimeLimit::Deadline, std::time::Duration::ZERO, Verdict::not_sent())
            .with_trail(self.context.trail().clone())
    }

    fn told_again(&self, answer: &Answer) {
        self.context.record(Step::Redeemed {
            age: answer.at.elapsed(),
            cost: answer.cost,
            outcome: answer.outcome,
        });
    }

    fn redeemed<B: Keepable>(&self, answer: Arc<Answer>) -> Response<KeptBody<B>> {
        self.told_again(&answer);
        let again = self.marks_resends;
        self.response(
            &answer,
            KeptBody::redeemed(self.shared.clone(), self.identity, answer.clone(), again),
        )
    }

    fn response<B: Keepable>(&self, answer: &Answer, body: KeptBody<B>) -> Response<KeptBody<B>> {
        let mut response = Response::new(body);
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers.clone();
        response.extensions_mut().insert(self.context.trail().clone());
        response
    }

    /// Gives what the call of this name came to, or sends it: then all who give it this name get
    /// its answer.
    async fn by_name<S, B>(
        self,
        name: Identity,
        mut inner: S,
        request: Request<CallBody>,
    ) -> Result<Response<KeptBody<B>>, Error>
    where
        S: Service<
                Request<CallBody>,
                Response = Response<B>,
                Error = Error,
                Future: Send + 'static,
            >,
        B: Keepable,
    {
        loop {
            let mut waiter = match self
                .shared
                .named(name, self.identity, Course::begin(&self.context))
                .map_err(Waiter::new)
            {
                Err(waiter) if waiter.named.request != self.identity => {
                    // As the IETF's draft says.
                    return Ok(refused_by_key(
                        &self.context,
                        StatusCode::UNPROCESSABLE_ENTITY,
                        KEY_REUSED,
                    ));
                }
                Err(waiter) => waiter,
                Ok(report) => {
                    let (tell, told) = oneshot::channel();
                    // In a task from the start: others may come to depend on it, whatever its first
                    // caller does.
                    tokio::spawn(run_named(self.shared.clone(), inner.call(request), report, tell));
                    return match told.await {
                        Ok(Ok(answer)) => Ok(self.response(&answer, KeptBody::whole(&answer))),
                        Ok(Err(error)) => Err(error),
                        // The task ended with the runtime.
                        Err(_) => Err(Error::truncated(Verdict::interrupted())),
                    };
                }
            };
            let done = async {
                let done = waiter
                    .named
                    .result
                    .wait_for(|result| !matches!(result, NamedResult::UnderWay))
                    .await;
                done.map_or_else(
                    |_| NamedResult::Lost(Arc::new(Answer::lost(Instant::now()))),
                    |result| result.clone(),
                )
            };
            let deadline = self.context.deadline();
            let time = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let result = tokio::select! {
                biased;
                result = done => result,
                () = time => return Err(self.too_late()),
            };
            let answer = match result {
                NamedResult::Answer(answer) => (*answer).clone(),
                NamedResult::Lost(loss) => match files::read(&loss).await {
                    Ok(answer) => answer,
                    Err(_) => return Err(self.lost(LOST_BY_NAME)),
                },
                NamedResult::Free | NamedResult::UnderWay => continue,
            };
            self.told_again(&answer);
            return Ok(self.response(&answer, KeptBody::whole(&answer)));
        }
    }
}

/// A reason, and the sentence that says it.
const KEY_REUSED: (&str, &str) = (
    "IDEMPOTENCY_KEY_REUSED",
    "Not sent: this Idempotency-Key was used for another request. A new request needs a new key.",
);
const TOO_LARGE_FOR_A_KEY: (&str, &str) = (
    "IDEMPOTENCY_KEY_NOT_HONOURED",
    "Not sent: a request of this size is not held, so that its Idempotency-Key could not keep it from being paid for twice. Send it without \
     the key, or smaller.",
);

fn refused_by_key<B: Keepable>(
    context: &CallState,
    status: StatusCode,
    (reason, message): (&str, &str),
) -> Response<KeptBody<B>> {
    let body = json!({ "error": {
        "code": status.as_u16(),
        "message": message,
        "status": "INVALID_ARGUMENT",
        "details": [{ "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": REFUSAL_DOMAIN }],
    }});
    let body = Bytes::from(body.to_string());
    let length = body.len();
    let mut response = Response::new(KeptBody::ours(body));
    *response.status_mut() = status;
    response.extensions_mut().insert(KeyRefused);
    response.extensions_mut().insert(context.trail().clone());
    let headers = response.headers_mut();
    headers.insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/json; charset=UTF-8"),
    );
    headers.insert(http::header::CONTENT_LENGTH, http::HeaderValue::from(length));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    use crate::trail::Trail;
    use tower::Layer;

    use super::*;
    use crate::keep_paid::KeepPaidLayer;
    use crate::keep_paid::named::Report;

    struct IsUnheard {
        report: Report,
        when_woken: AtomicBool,
    }

    impl Wake for IsUnheard {
        fn wake(self: Arc<Self>) {
            self.when_woken.store(self.report.is_unheard(), Ordering::Relaxed);
        }
    }

    // Told while the one who leaves still counted, the call looked once more, saw it there, and was
    // never told again.
    #[test]
    fn who_leaves_a_call_is_gone_when_the_call_is_told() {
        let shared = KeepPaidLayer::new().layer(()).shared;
        let (name, request) = (Identity([1; 32]), Identity([2; 32]));
        let named = || shared.named(name, request, Course::begin(&Trail::new()));
        let report = named().unwrap();
        let left = report.left.clone();
        let told = Arc::new(IsUnheard { report, when_woken: AtomicBool::new(false) });
        let mut listening = std::pin::pin!(left.notified());
        let waker = told.clone().into();
        assert!(listening.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        let waiter = Waiter::new(named().unwrap_err());
        assert!(!told.report.is_unheard());
        drop(waiter);
        assert!(told.when_woken.load(Ordering::Relaxed));
    }
}
