use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::body::{CallBody, JudgedBody, RequestTemplate, verdict_of};
use crate::error::Error;
use crate::trail::{Step, StopReason};
use http::{Request, Response};
use tokio::time::Instant;
use tower_gemini_core::call::{Call, ImageSize, ModelId};
use tower_gemini_core::target::{Rewrite, Rules, Target};
use tower_gemini_core::verdict::Charge;
use tower_service::Service;

use super::layer::Settings;
use crate::model_fallback::served;
use crate::optional::OptionalFuture;
use crate::ready::take_ready;
use crate::stage::CallService;

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

impl<S: CallService> Service<Request<CallBody>> for ResolutionFallback<S> {
    type Response = Response<JudgedBody<S::Upstream>>;
    type Error = Error;
    type Future = OptionalFuture<S::Future, Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<CallBody>) -> Self::Future {
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
    mut request: Request<CallBody>,
) -> Result<Response<JudgedBody<S::Upstream>>, Error>
where
    S: CallService,
{
    let ladder = &settings.ladder;
    let state = request.body().state().clone();
    let template = match RequestTemplate::new(&request) {
        Some(template) if template.call().wants_image && !state.must_keep().keeps_size() => {
            template
        }
        // Too large to hold, no image, or the caller keeps the size.
        _ => return inner.call(request).await,
    };
    let outer = request.body().retry().clone();
    let mut size = template.call().size;
    let mut given_up = Vec::new();
    loop {
        let below = smaller(&settings, &template, size);
        request.body_mut().set_retry(ladder.retries(outer.clone(), below.is_none()));
        let answer = inner.call(request).await;
        let verdict = verdict_of(&answer);
        let Some((below, rewrite)) = below.filter(|_| ladder.steps_down_after(verdict.outcome()))
        else {
            return served(answer, given_up);
        };
        let stop = if verdict.charge() == Charge::Charged {
            Some(StopReason::Charged)
        } else if state.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            Some(StopReason::DeadlineTooNear)
        } else {
            None
        };
        let permit = match stop {
            Some(why) => Err(why),
            // Out of the caller's allowance where the larger image may have been charged.
            None => state.permit_after(verdict).ok_or(StopReason::MaybeCharged),
        };
        let permit = match permit {
            Ok(permit) => permit,
            Err(why) => {
                state.record(Step::Stopped { why });
                return served(answer, given_up);
            }
        };
        state.record(Step::MovedOn {
            from: name(template.call(), size),
            to: name(template.call(), Some(below)),
            why: verdict.outcome(),
        });
        given_up = rewrite.given_up().to_vec();
        state.record(Step::Degraded { given_up: given_up.clone() });
        // The answer is dropped before the next send: it holds a connection, and nobody will read
        // it.
        drop(answer);
        size = Some(below);
        poll_fn(|cx| inner.poll_ready(cx)).await?;
        request = template.again_as(permit, rewrite);
    }
}

/// The next smaller size that this request can be rewritten to.
fn smaller(
    settings: &Settings,
    template: &RequestTemplate,
    size: Option<ImageSize>,
) -> Option<(ImageSize, Rewrite)> {
    let model = template.call().model.as_ref()?;
    let below = settings.ladder.below(size, settings.catalog().lookup(model.as_str()))?;
    let rules = Rules::new(settings.catalog()).must_keep(template.state().must_keep());
    let rewrite = template.rewritten(&Target::new(model.as_str()).size_cap(below), &rules).ok()?;
    // A size that stands where it cannot be changed would be asked for again.
    (!rewrite.is_unchanged()).then_some((below, rewrite))
}

fn name(call: &Call, size: Option<ImageSize>) -> String {
    let model = call.model.as_ref().map_or("", ModelId::as_str);
    format!("{model} {}", size.unwrap_or(ImageSize::K1))
}
