//! Cancellation at every await: nothing stays taken, nothing runs on, and the trail says what may
//! have been paid for.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use tower::{Service, ServiceExt};
use tower_gemini::CallOptions;
use tower_gemini::Trail;
use tower_gemini::body::WireBody;
use tower_gemini::verdict::Charge;
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

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn a_dropped_call_leaves_nothing_behind(
        weather in proptest::collection::vec(faults(), 0..6),
        polls in 0usize..40,
        read_frames in 0usize..6,
    ) {
        let scenario = Scenario { latency: Duration::from_secs(3), ..Scenario::new(weather) };
        in_paused_time(async {
            let sim = scenario.sim();
            let held = Arc::<AtomicUsize>::default();
            let service = scenario.stack().raw(Counted { inner: sim.service(), held: held.clone() });
            let trail = Trail::new();
            let mut request = scenario.request(TAG);
            request.extensions_mut().insert(CallOptions::new().trail(trail.clone()));
            let finished = {
                // Each poll is followed by the time that the call waits for, so that every await is
                // reached by some number of polls.
                let mut call = pin!(async {
                    let mut response = service.oneshot(request).await.ok()?;
                    for _ in 0..read_frames {
                        response.body_mut().frame().await?.ok()?;
                    }
                    Some(())
                });
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
            assert_eq!(held.load(Ordering::Relaxed), 0, "an attempt or a body is still held");
            let sends = sim.ledger().sends(TAG);
            tokio::time::advance(Duration::from_secs(3600)).await;
            tokio::task::yield_now().await;
            assert_eq!(sim.ledger().sends(TAG), sends, "something was sent after the call was dropped");
            assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0, "a task is still running");
            let ledger = sim.ledger();
            prop_assert!(
                trail.cost().contains(ledger.cost_microusd(TAG)),
                "finished {finished}: {trail} does not hold the bill of {} micro-dollars", ledger.cost_microusd(TAG)
            );
            prop_assert_eq!(trail.attempts().len(), sends);
            Ok(())
        })?;
    }
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
