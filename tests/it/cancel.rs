//! Cancellation at every await: nothing stays taken, nothing runs on, and the trail says what may
//! have been paid for.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use proptest::prelude::*;
use tower::{Layer, Service, ServiceExt};
use tower_gemini::body::WireBody;
use tower_gemini::model_fallback::Chain;
use tower_gemini::verdict::Charge;
use tower_gemini::{
    AnswerErrorsLayer, CallOptions, CollectRequestLayer, GeminiStack, ResolutionFallbackLayer,
    ThoughtSignaturesLayer, Trail,
};
use tower_gemini_sim::{Fault, SimBody, SimError, SimService};

use crate::harness::{Scenario, TAG, cases, faults, in_paused_time};

/// Counts what is in use: a future or a body that is alive holds one.
#[derive(Clone)]
struct Counted {
    inner: SimService,
    held: Arc<AtomicUsize>,
}

struct Hold(Arc<AtomicUsize>);

impl Hold {
    fn take(held: &Arc<AtomicUsize>) -> Self {
        held.fetch_add(1, Ordering::Relaxed);
        Self(held.clone())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct HeldBody {
    body: Pin<Box<SimBody>>,
    _hold: Hold,
}

impl Body for HeldBody {
    type Data = Bytes;
    type Error = SimError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, SimError>>> {
        self.body.as_mut().poll_frame(cx)
    }
}

impl Service<Request<WireBody>> for Counted {
    type Response = Response<HeldBody>;
    type Error = SimError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, SimError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SimError>> {
        Service::<Request<Full<Bytes>>>::poll_ready(&mut self.inner, cx)
    }

    fn call(&mut self, request: Request<WireBody>) -> Self::Future {
        let hold = Hold::take(&self.held);
        let mut inner = self.inner.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let request = Request::from_parts(parts, Full::new(body));
            let response = Service::<Request<Full<Bytes>>>::call(&mut inner, request).await?;
            Ok(response.map(|body| HeldBody { body: Box::pin(body), _hold: hold }))
        })
    }
}

/// What stands over and below the layers that every stack has.
#[derive(Debug, Clone, Copy)]
enum Form {
    Raw,
    Json,
    Images,
    AnswerErrors,
    Signatures,
    OtherModels,
    SmallerSizes,
}

const FORMS: [Form; 7] = [
    Form::Raw,
    Form::Json,
    Form::Images,
    Form::AnswerErrors,
    Form::Signatures,
    Form::OtherModels,
    Form::SmallerSizes,
];

/// A call, and so many frames of its response.
async fn read<S, B>(service: S, request: Request<Full<Bytes>>, frames: usize)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    B: Body + Unpin,
{
    let Ok(mut response) = service.oneshot(request).await else { return };
    for _ in 0..frames {
        let Some(Ok(_)) = response.body_mut().frame().await else { return };
    }
}

impl Form {
    fn call(
        self,
        stack: GeminiStack,
        client: Counted,
        request: Request<Full<Bytes>>,
        frames: usize,
    ) -> Pin<Box<dyn Future<Output = ()>>> {
        let raw = |stack: GeminiStack| stack.raw(client.clone());
        match self {
            Self::Raw => Box::pin(read(raw(stack), request, frames)),
            Self::Json => Box::pin(read(stack.json(client), request, frames)),
            Self::Images => Box::pin(async move {
                let _ = stack.images(client).oneshot(request).await;
            }),
            Self::AnswerErrors => {
                Box::pin(read(AnswerErrorsLayer::new().layer(raw(stack)), request, frames))
            }
            Self::Signatures => {
                let stack = stack.signatures(ThoughtSignaturesLayer::new());
                Box::pin(read(raw(stack), request, frames))
            }
            // When all have failed, it waits for the first that is back.
            Self::OtherModels => {
                let chain = Chain::new(["gemini-3-pro-image", "gemini-3.1-flash-image"]);
                Box::pin(read(raw(stack.fallback_to(chain)), request, frames))
            }
            Self::SmallerSizes => {
                let stack = stack.resolution(ResolutionFallbackLayer::new());
                Box::pin(read(raw(stack), request, frames))
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn a_dropped_call_leaves_nothing_behind(
        weather in proptest::collection::vec(faults(), 0..6),
        polls in 0usize..40,
        read_frames in 0usize..6,
    ) {
        for form in FORMS {
            let scenario = Scenario {
                latency: Duration::from_secs(3),
                size: if matches!(form, Form::SmallerSizes) { "4K" } else { "1K" },
                ..Scenario::new(weather.clone())
            };
            dropped(form, &scenario, polls, read_frames)?;
        }
    }
}

fn dropped(
    form: Form,
    scenario: &Scenario,
    polls: usize,
    read_frames: usize,
) -> Result<(), TestCaseError> {
    in_paused_time(async {
        let sim = scenario.sim();
        let held = Arc::<AtomicUsize>::default();
        let client = Counted { inner: sim.service(), held: held.clone() };
        let trail = Trail::new();
        let mut request = scenario.request(TAG);
        request.extensions_mut().insert(CallOptions::new().trail(trail.clone()));
        let finished = {
            // Each poll is followed by the time that the call waits for, so that every await is
            // reached by some number of polls.
            let mut call = form.call(scenario.stack(), client, request, read_frames);
            let mut finished = false;
            for _ in 0..polls {
                if call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                    finished = true;
                    break;
                }
                tokio::time::advance(Duration::from_millis(1500)).await;
            }
            finished
        };
        assert_eq!(held.load(Ordering::Relaxed), 0, "{form:?}: an attempt or a body is still held");
        let sends = sim.ledger().sends(TAG);
        tokio::time::advance(Duration::from_secs(3600)).await;
        tokio::task::yield_now().await;
        assert_eq!(sim.ledger().sends(TAG), sends, "{form:?}: sent after the drop");
        assert_eq!(
            tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            0,
            "{form:?}: a task is still running"
        );
        let ledger = sim.ledger();
        prop_assert!(
            trail.cost().contains(ledger.cost_microusd(TAG)),
            "{form:?}, finished {finished}: {trail} does not hold the bill of {} micro-dollars",
            ledger.cost_microusd(TAG)
        );
        prop_assert_eq!(trail.attempts().len(), sends);
        Ok(())
    })
}

#[test]
fn a_call_dropped_in_mid_flight_is_maybe_charged_in_its_trail() {
    let scenario = Scenario::new([Fault::None]);
    in_paused_time(async {
        let sim = scenario.sim();
        let trail = Trail::new();
        let mut request = scenario.request(TAG);
        request.extensions_mut().insert(CallOptions::new().trail(trail.clone()));
        let call = scenario.stack().raw(sim.service()).oneshot(request);
        assert!(tokio::time::timeout(Duration::from_secs(5), call).await.is_err());
        let attempt = &trail.attempts()[0];
        assert_eq!(attempt.charge, Charge::Maybe);
        assert_eq!(attempt.took, Duration::from_secs(5));
        // The server went on without us, and billed it.
        assert_eq!(sim.ledger().charges(TAG), 1);
    });
}

/// Comes in four pieces, a second apart; then it fails, or nothing comes any more.
fn upload(fails: bool, hold: Hold) -> impl Body<Data = Bytes, Error = io::Error> + Send + 'static {
    let piece = move |(number, hold)| async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let piece = match number {
            0..4 => Ok(Frame::data(Bytes::from_static(b"{\"contents\":"))),
            _ if fails => Err(io::Error::other("the disk is gone")),
            _ => std::future::pending().await,
        };
        Some((piece, (number + 1, hold)))
    };
    StreamBody::new(stream::unfold((0, hold), piece).boxed())
}

// The rest of a body that is too large to hold goes out as it comes: any of it may be the last.
#[test]
fn an_upload_that_is_dropped_or_fails_is_free_before_it_is_sent_and_is_not_sent_again() {
    for (fails, is_held) in [(false, true), (false, false), (true, true), (true, false)] {
        let case = format!("fails: {fails}, held: {is_held}");
        in_paused_time(async {
            let scenario = Scenario::new([]);
            let (sim, held, trail) = (scenario.sim(), Arc::default(), Trail::new());
            let collect = CollectRequestLayer::new().max_held_bytes(if is_held { 999 } else { 9 });
            let stack = scenario.stack().collect(collect);
            let mut request = scenario.request(TAG).map(|_| upload(fails, Hold::take(&held)));
            request.extensions_mut().insert(CallOptions::new().trail(trail.clone()));
            let call = stack.raw(sim.service()).oneshot(request);
            let charge = if is_held { Charge::None } else { Charge::Maybe };
            match tokio::time::timeout(Duration::from_secs(60), call).await {
                Ok(response) => {
                    let error = response.err().unwrap();
                    assert!(fails, "{case}: {error}");
                    assert_eq!(error.charge(), charge, "{case}: {error}");
                    assert_eq!(error.to_string().contains("the disk is gone"), is_held, "{error}");
                }
                Err(_) => assert!(!fails, "{case}"),
            }
            assert_eq!(held.load(Ordering::Relaxed), 0, "{case}: the upload is still held");
            tokio::time::sleep(Duration::from_secs(3600)).await;
            let charges: Vec<_> = trail.attempts().iter().map(|attempt| attempt.charge).collect();
            assert_eq!(charges, if is_held { vec![] } else { vec![charge] }, "{case}");
            assert_eq!(sim.ledger().charges(TAG), 0, "{case}");
        });
    }
}
