use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tokio::time::{Instant, sleep};
use tower_gemini_core::call::{Call, ModelId};
use tower_layer::Layer;
use tower_service::Service;

use super::layer::{PeakHourRouterLayer, Settings};
use super::route::{known_as, worth_waiting};
use crate::body::{CallBody, JudgedBody};
use crate::call_state::{CallState, Place};
use crate::error::Error;
use crate::optional::OptionalFuture;
use crate::ready::{take_ready, until_ready};
use crate::stage::CallService;
use crate::trail::{PreferReason, Step, WaitReason};

/// Lets another model lead in peak hours, and deferrable calls wait. See the [module](super).
#[derive(Debug, Clone)]
pub struct PeakHourRouter<S> {
    inner: S,
    settings: Option<Arc<Settings>>,
}

impl<S: CallService> Layer<S> for PeakHourRouterLayer {
    type Service = PeakHourRouter<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let settings = (!self.is_off).then(|| self.settings.clone());
        PeakHourRouter { inner, settings }
    }
}

impl<S: CallService> Service<Request<CallBody>> for PeakHourRouter<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = OptionalFuture<S::Future, Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<CallBody>) -> Self::Future {
        let Some(settings) = &self.settings else {
            return OptionalFuture::off(self.inner.call(request));
        };
        let state = request.body().state();
        state.pass(Place::PeakHourRouter);
        let waits = settings.wait(patience(state, settings.reserve)).is_some();
        // The wait may be hours: it is spent with a clone that was not made ready and so holds
        // nothing, and that is asked anew afterwards. What was made ready is dropped: a service
        // that is kept for its next call would keep a place, and this call might wait for that.
        let ready = take_ready(&mut self.inner);
        let inner = if waits { ready.clone() } else { ready };
        OptionalFuture::on(Box::pin(route(inner, settings.clone(), request, waits)))
    }
}

async fn route<S: CallService>(
    mut inner: S,
    settings: Arc<Settings>,
    request: Request<CallBody>,
    waits: bool,
) -> Result<Response<JudgedBody<S::Upstream>>, Error> {
    let state = request.body().state().clone();
    if waits {
        settings.wait_for_quiet(&state).await;
        until_ready(&mut inner, &state).await?;
    }
    settings.lead(request.body().call(), &state);
    inner.call(request).await
}

/// A deferred call looks at the clock this often: it may have been set, and the machine may have
/// slept.
const LONGEST_NAP: Duration = Duration::from_secs(600);

/// How long a call may wait; zero where its caller does not let it.
fn patience(state: &CallState, reserve: Duration) -> Duration {
    let Some(patience) = state.patience() else { return Duration::ZERO };
    let left = state.deadline().map(|at| at.saturating_duration_since(Instant::now()));
    left.map_or(patience, |left| patience.min(left.saturating_sub(reserve)))
}

impl Settings {
    fn wait(&self, patience: Duration) -> Option<Duration> {
        worth_waiting(&self.schedule, self.clock.now(), patience)
    }

    async fn wait_for_quiet(&self, state: &CallState) {
        let (began, patience) = (Instant::now(), patience(state, self.reserve));
        while let Some(wait) = self.wait(patience.saturating_sub(began.elapsed())) {
            sleep(wait.min(LONGEST_NAP)).await;
        }
        let delay = began.elapsed();
        state.defer(delay);
        state.record(Step::Waited { delay, why: WaitReason::QuietHours });
    }

    /// Prefers the model that should lead this call.
    fn lead(&self, call: &Call, state: &CallState) {
        // A continuation belongs to the model that began it; a caller's own preference wins.
        let Some(asked) = call.model.as_ref() else { return };
        if call.is_continuation || state.preferred().is_some() {
            return;
        }
        let name = known_as(asked.as_str());
        let route = self.routes.scheduled(name, self.schedule.is_peak(self.clock.now()));
        let Some(route) = route.filter(|route| route.lead != name) else { return };
        let (asked, model, why) =
            (asked.clone(), ModelId::new(&route.lead), PreferReason::PeakHours);
        state.record(Step::Preferred { asked, model: model.clone(), why });
        state.prefer(model);
    }
}
