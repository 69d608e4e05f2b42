use std::future::{Future, poll_fn, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Buf;
use http::header::{ACCEPT_ENCODING, HeaderValue};
use http::{Request, Response, StatusCode};
use tokio::time::Instant;
use tower_gemini_core::call::Call;
use tower_gemini_core::catalog::Catalog;
use tower_gemini_core::cost::{Cost, ServedBy, cost_served};
use tower_gemini_core::scan::Usage;
use tower_gemini_core::target::UpstreamId;
use tower_gemini_core::verdict::{Outcome, Verdict};
use tower_service::Service;

use super::ClassifyGeminiErrorLayer;
use super::evidence::Evidence;
use crate::body::{AttemptBody, BodyEnd, BodyGuard, Ended, JudgedBody, Peek, PeekLimits, WireBody};
use crate::call_state::{Attempt, AttemptEnd};
use crate::error::{BoxError, Error};
use crate::headers::for_passed_body;
use crate::ready::take_ready;
use crate::stage::{UpstreamBody, WireClient};
use crate::trail::ResponseFacts;

/// Judges the responses of a client. See the [module](super).
#[derive(Debug, Clone)]
pub struct ClassifyGeminiError<S> {
    inner: S,
    settings: ClassifyGeminiErrorLayer,
}

crate::access::inner_access!(ClassifyGeminiError);

impl<S> ClassifyGeminiError<S> {
    pub(super) fn new(inner: S, settings: ClassifyGeminiErrorLayer) -> Self {
        Self { inner, settings }
    }
}

type ResponseFuture<B> =
    Pin<Box<dyn Future<Output = Result<Response<JudgedBody<B>>, Error>> + Send>>;

impl<S: WireClient> Service<Request<AttemptBody>> for ClassifyGeminiError<S> {
    type Response = Response<JudgedBody<S::ResponseBody>>;
    type Error = Error;
    type Future = ResponseFuture<S::ResponseBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // Nothing has been sent while a client only says that it is not ready.
        self.inner
            .poll_ready(cx)
            .map_err(|error| Error::transport(error.into(), Verdict::not_sent()))
    }

    fn call(&mut self, mut request: Request<AttemptBody>) -> Self::Future {
        request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let attempt = request.body().attempt().clone();
        let mut call = request.body().call().clone();
        // A target of another upstream has that upstream's rules.
        let rules = self.settings.rules_for(request.uri());
        if call.charge_rules != rules {
            Arc::make_mut(&mut call).charge_rules = rules;
        }
        let log = AttemptLog {
            started: Instant::now(),
            status: None,
            call,
            catalog: self.settings.catalog.clone(),
            end: None,
            was_sent: false,
            is_closed: false,
            attempt,
        };
        if let Err(error) = log.attempt.state().check_order() {
            return Box::pin(ready(Err(error)));
        }
        let ClassifyGeminiErrorLayer { limits, evidence, .. } = self.settings;
        let gates = log.attempt.gates();
        if gates.is_empty() {
            let (request, log) = log.begin(request);
            return Box::pin(
                Sent { future: self.inner.call(request), log }.judged(limits, evidence),
            );
        }
        let mut client = take_ready(&mut self.inner);
        Box::pin(async move {
            for gate in gates {
                gate.pass(&log.call).await?;
            }
            let (request, log) = log.begin(request);
            Sent { future: client.call(request), log }.judged(limits, evidence).await
        })
    }
}

/// An attempt that is with the client. Dropped before its verdict is known, it was cut off, and may
/// have been charged.
struct Sent<F> {
    /// Dropped before the log: the request can go out until then.
    future: F,
    log: AttemptLog,
}

impl<F> Sent<F> {
    async fn judged<B, E>(
        self,
        limits: PeekLimits,
        evidence: Evidence,
    ) -> Result<Response<JudgedBody<B>>, Error>
    where
        F: Future<Output = Result<Response<B>, E>>,
        B: UpstreamBody,
        E: Into<BoxError>,
    {
        // In this order: what is declared last is dropped first.
        let mut log = self.log;
        let future = self.future;
        let (head, mut body) = match future.await {
            Ok(response) => response.into_parts(),
            Err(error) => {
                let error: BoxError = error.into();
                // A server that was never given the whole request cannot have worked on it.
                let verdict =
                    if evidence(&*error) { Verdict::not_sent() } else { log.attempt.cut_off() };
                let error = Error::transport(error, verdict);
                log.finish(error.verdict(), None, None, None, &ServedBy::new());
                return Err(error.with_trail(log.attempt.state().trail().clone()));
            }
        };
        log.status = Some(head.status);
        let mut peek = Peek::new(log.call.clone(), &head, limits);
        let (mut failed, mut ended) = (None, false);
        while peek.wants_more() && !ended && failed.is_none() {
            match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                Some(Ok(frame)) => {
                    // Trailers of a response this short carry nothing that a verdict needs.
                    if let Ok(mut data) = frame.into_data() {
                        peek.push(data.copy_to_bytes(data.remaining()));
                    }
                }
                Some(Err(error)) => failed = Some(error.into()),
                None => ended = true,
            }
        }
        ended = ended || (failed.is_none() && body.is_end_stream());
        judge(head, peek, body, failed, ended, log)
    }
}

fn judge<B>(
    mut head: http::response::Parts,
    peek: Peek,
    body: B,
    failed: Option<BoxError>,
    ended: bool,
    mut log: AttemptLog,
) -> Result<Response<JudgedBody<B>>, Error>
where
    B: UpstreamBody,
{
    let success = head.status.is_success();
    let (call, state) = (log.call.clone(), log.attempt.state().clone());
    let mut body = match failed {
        // A 2xx that broke off: nobody can say whether the image was made.
        Some(error) if success => {
            tracing::debug!(
                error = %tower_gemini_core::redact::redact(&error.to_string()),
                "the response broke off while it was peeked"
            );
            let error = Error::transport(error, Verdict::interrupted());
            let served = peek.decide(&head.headers, false).served;
            log.finish(error.verdict(), None, None, None, &served);
            return Err(error.with_trail(state.trail().clone()));
        }
        // The status of an error says enough; its body ends as the upstream's did.
        Some(error) => {
            let decided = peek.decide(&head.headers, true);
            let verdict = decided.verdict().clone();
            JudgedBody::failed(decided, Error::transport(error, verdict), call, state)
        }
        None => {
            let decided = peek.decide(&head.headers, ended);
            JudgedBody::new(decided, (!ended).then_some(body), call, state)
        }
    };
    let (verdict, usage, images) = (body.verdict(), body.usage(), body.images());
    if body.is_open() {
        // Written now as it is known now; the body's end says more.
        let cost = log.note(verdict, usage, body.served_by());
        log.end = Some((verdict.clone(), usage.cloned(), images, cost));
        body.guard(Box::new(log));
    } else {
        log.finish(verdict, usage, images, body.facts(), body.served_by());
    }
    for_passed_body(&mut head.headers);
    Ok(Response::from_parts(head, body))
}

/// Writes an attempt's end down: at the head, and once more when the body has ended. Dropped before
/// either, it was cut off: maybe charged.
#[derive(Debug)]
struct AttemptLog {
    attempt: Attempt,
    started: Instant,
    status: Option<StatusCode>,
    call: Arc<Call>,
    catalog: Option<Arc<Catalog>>,
    was_sent: bool,
    is_closed: bool,
    /// How it ended, as far as is known, where its body may say more.
    end: Option<(Verdict, Option<Usage>, Option<u32>, Cost)>,
}

impl AttemptLog {
    /// The request goes out.
    fn begin(mut self, request: Request<AttemptBody>) -> (Request<WireBody>, Self) {
        let by_uri = || {
            request.uri().authority()?;
            Some(Arc::new(UpstreamId::from_request(request.uri(), &self.call)))
        };
        let upstream = request.body().upstream().cloned().or_else(by_uri);
        self.attempt.begin(&self.call, upstream);
        self.was_sent = true;
        (request.map(AttemptBody::into_wire), self)
    }

    /// Writes down how it ended, as far as is known, and returns what it cost.
    fn note(&self, verdict: &Verdict, usage: Option<&Usage>, served: &ServedBy) -> Cost {
        let catalog = self.catalog.as_deref().unwrap_or_else(|| Catalog::builtin());
        let cost = cost_served(catalog, &self.call, served, verdict, usage);
        self.attempt.served_by(
            served.in_place_of(catalog, &self.call),
            served.tier.filter(|tier| *tier != self.call.tier),
        );
        self.attempt.end(self.status, verdict, cost, self.started.elapsed());
        cost
    }

    /// Writes down how it ended: nothing more will be known.
    fn finish(
        &mut self,
        verdict: &Verdict,
        usage: Option<&Usage>,
        images: Option<u32>,
        facts: Option<&ResponseFacts>,
        served: &ServedBy,
    ) {
        let cost = self.note(verdict, usage, served);
        self.close(&AttemptEnd { verdict, usage, images, facts, cost });
    }

    fn close(&mut self, end: &AttemptEnd<'_>) {
        if !std::mem::replace(&mut self.is_closed, true) {
            self.attempt.close(end);
        }
    }
}

impl Drop for AttemptLog {
    fn drop(&mut self) {
        match self.end.take() {
            _ if self.is_closed => {}
            Some((verdict, usage, images, cost)) => {
                let (verdict, usage) = (&verdict, usage.as_ref());
                self.close(&AttemptEnd { verdict, usage, images, facts: None, cost });
            }
            None if self.was_sent => {
                let verdict = self.attempt.cut_off();
                self.finish(&verdict, None, None, None, &ServedBy::new());
            }
            // Dropped at a gate, nothing was sent.
            None => {}
        }
    }
}

impl BodyGuard for AttemptLog {
    fn on_end(&mut self, end: &BodyEnd<'_>) {
        // An image that nobody read to its end is as charged as before, which is written down when
        // this is dropped; only what was read says more.
        if end.how != Ended::Dropped || end.verdict.outcome() != Outcome::Image {
            self.finish(end.verdict, end.usage, end.images, end.facts, end.served);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call_state::{CallState, Passing as Pass, SendGate};
    use crate::collect_request::CollectRequestLayer;
    use crate::single_attempt::SingleAttemptLayer;
    use crate::stack::compose;
    use bytes::Bytes;
    use http_body_util::Full;
    use std::sync::Mutex;
    use std::time::Duration;
    use tower::{ServiceExt, layer::layer_fn, service_fn};
    use tower_gemini_core::verdict::Charge;

    /// Records what happens to it; lets attempts pass ten milliseconds later, or not at all.
    #[derive(Debug)]
    struct Journal {
        passes: bool,
        log: Arc<Mutex<Vec<String>>>,
    }

    impl SendGate for Journal {
        fn pass<'a>(&'a self, _: &'a Call) -> Pass<'a> {
            Box::pin(async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                self.log.lock().unwrap().push("passed".into());
                match self.passes {
                    true => Ok(()),
                    false => {
                        Err(Error::transport("the journal is full".into(), Verdict::not_sent()))
                    }
                }
            })
        }

        fn settle(&self, end: &AttemptEnd<'_>) {
            self.log.lock().unwrap().push(format!("settled {}", end.verdict.charge()));
        }
    }

    /// A call that is dropped after this many milliseconds, where it has not ended.
    async fn log_of(
        passes: bool,
        within_ms: u64,
    ) -> (Vec<String>, CallState, Option<Result<(), Error>>) {
        let state = Arc::<Mutex<Option<CallState>>>::default();
        let of_call = state.clone();
        let log = Arc::<Mutex<Vec<String>>>::default();
        let sent = log.clone();
        let client = service_fn(move |_: Request<WireBody>| {
            sent.lock().unwrap().push("sent".into());
            std::future::ready(Ok::<_, std::io::Error>(
                Response::builder().status(503).body(Full::<Bytes>::default()).unwrap(),
            ))
        });
        let gate = Arc::new(Journal { passes, log: log.clone() });
        let gated = layer_fn(move |inner| {
            let (gate, of_call) = (gate.clone(), of_call.clone());
            tower::util::MapRequest::new(inner, move |request: Request<crate::CallBody>| {
                let state = request.body().state();
                state.add_gate(gate.clone());
                *of_call.lock().unwrap() = Some(state.clone());
                request
            })
        });
        let classify = ClassifyGeminiErrorLayer::new();
        let layers = (CollectRequestLayer::new(), gated, SingleAttemptLayer::new(), classify);
        let call = compose(layers, client).oneshot(Request::new(Full::<Bytes>::default()));
        let outcome = tokio::time::timeout(Duration::from_millis(within_ms), call).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let log = log.lock().unwrap().clone();
        let state = state.lock().unwrap().take().unwrap();
        (log, state, outcome.ok().map(|outcome| outcome.map(drop)))
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_passes_its_gates_before_its_first_byte_and_settles_them_once() {
        let (log, _, outcome) = log_of(true, 20).await;
        assert_eq!(log.len(), 3, "{log:?}");
        assert_eq!(log[..2], ["passed", "sent"]);
        assert!(log[2].starts_with("settled"), "{log:?}");
        assert!(outcome.is_some_and(|outcome| outcome.is_ok()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_a_gate_refuses_is_not_sent_and_free() {
        let (log, _, outcome) = log_of(false, 20).await;
        assert_eq!(log, ["passed"]);
        assert_eq!(outcome.unwrap().unwrap_err().charge(), Charge::None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_is_dropped_at_its_gate_was_not_sent() {
        let (log, state, outcome) = log_of(true, 5).await;
        assert!(outcome.is_none() && log.is_empty(), "{log:?}");
        assert_eq!((state.worst_charge(), state.trail().attempts().len()), (Charge::None, 0));
    }
}
