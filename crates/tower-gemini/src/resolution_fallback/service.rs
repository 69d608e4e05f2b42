use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tokio::time::Instant;
use tower_gemini_core::body::{JudgedBody, KeptRequest, ReplayBody};
use tower_gemini_core::call::{Call, ImageSize, ModelId};
use tower_gemini_core::error::Error;
use tower_gemini_core::target::{Rewrite, Rules, Target};
use tower_gemini_core::trail::{Step, StopReason};
use tower_gemini_core::verdict::{Charge, Verdict};
use tower_service::Service;

use super::layer::Settings;
use crate::jittered_retry::RetryOverride;
use crate::judged::{JudgedService, ReplayRequest, judged};
use crate::model_fallback::{Visited, served};
use crate::optional::OptionalFuture;
use crate::ready::take_ready;

/// Asks for a smaller image when the large one does not come. See the [module](super).
#[derive(Debug, Clone)]
pub struct ResolutionFallback<S> {
    inner: S,
    settings: Option<Arc<Settings>>,
}

impl<S> ResolutionFallback<S> {
    pub(super) fn new(inner: S, settings: Option<Arc<Settings>>) -> Self {
        Self { inner, settings }
    }
}

impl<S, R> Service<R> for ResolutionFallback<S>
where
    R: ReplayRequest,
    S: JudgedService<Future: Send, Upstream: Send> + Clone + Send + 'static,
{
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = OptionalFuture<S::Future, Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let request = request.into_request();
        match &self.settings {
            Some(settings) => {
                let settings = settings.clone();
                let inner = take_ready(&mut self.inner);
                OptionalFuture::on(Box::pin(step_down(inner, settings, request)))
            }
            None => OptionalFuture::off(self.inner.call(request)),
        }
    }
}

async fn step_down<S>(
    mut inner: S,
    settings: Arc<Settings>,
    mut request: Request<ReplayBody>,
) -> Result<Response<JudgedBody<S::Upstream>>, Error>
where
    S: JudgedService,
{
    let ladder = &settings.ladder;
    let context = request.body().context().clone();
    // Kept with the request, so that all its sizes share it.
    request.extensions_mut().insert(Visited::default());
    let kept = match KeptRequest::of(&request) {
        Ok(kept) if kept.call().wants_image && !context.must_keep().keeps_size() => kept,
        // Too large to hold, no image, or the caller keeps the size.
        _ => return judged(inner.call(request)).await,
    };
    let outer = request.extensions().get::<RetryOverride>().cloned().unwrap_or_default();
    let mut size = kept.call().size;
    let mut given_up = Vec::new();
    loop {
        let below = smaller(&settings, &kept, size);
        request.extensions_mut().insert(ladder.retries(outer.clone(), below.is_none()));
        let answer = judged(inner.call(request)).await;
        let verdict = Verdict::of_result(&answer);
        let Some((below, rewrite)) = below.filter(|_| ladder.steps_down_after(verdict.outcome()))
        else {
            return served(answer, given_up);
        };
        let stop = if verdict.charge() == Charge::Charged {
            Some(StopReason::Charged)
        } else if context.deadline().is_some_and(|deadline| deadline <= Instant::now().into_std()) {
            Some(StopReason::DeadlineTooNear)
        } else {
            None
        };
        let permit = match stop {
            Some(why) => Err(why),
            // Out of the caller's allowance where the larger image may have been charged.
            None => context
                .allowance()
                .cloned()
                .unwrap_or_default()
                .buy(verdict)
                .ok_or(StopReason::MaybeCharged),
        };
        let permit = match permit {
            Ok(permit) => permit,
            Err(why) => {
                context.trail().push(Step::Stopped { why });
                return served(answer, given_up);
            }
        };
        context.trail().push(Step::MovedOn {
            from: name(kept.call(), size),
            to: name(kept.call(), Some(below)),
            why: verdict.outcome(),
        });
        given_up = rewrite.given_up().to_vec();
        context.trail().push(Step::Degraded { given_up: given_up.clone() });
        // The answer is dropped before the next send: it holds a connection, and nobody will read
        // it.
        drop(answer);
        size = Some(below);
        poll_fn(|cx| inner.poll_ready(cx)).await?;
        request = kept.again_as(permit, rewrite);
    }
}

/// The next smaller size that this request can be rewritten to.
fn smaller(
    settings: &Settings,
    kept: &KeptRequest,
    size: Option<ImageSize>,
) -> Option<(ImageSize, Rewrite)> {
    let model = kept.call().model.as_ref()?;
    let below = settings.ladder.below(size, settings.catalog().lookup(model.as_str()))?;
    let rules = Rules::new(settings.catalog()).must_keep(kept.context().must_keep());
    let rewrite = kept.rewritten(&Target::new(model.as_str()).size_cap(below), &rules).ok()?;
    // A size that stands where it cannot be changed would be asked for again.
    (!rewrite.is_unchanged()).then_some((below, rewrite))
}

fn name(call: &Call, size: Option<ImageSize>) -> String {
    let model = call.model.as_ref().map_or("", ModelId::as_str);
    format!("{model} {}", size.unwrap_or(ImageSize::K1))
}
