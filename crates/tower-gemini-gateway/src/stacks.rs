//! Builds the gateway's three stacks over one client, from [`GeminiStack`].

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use tower::Service;
use tower::util::{BoxCloneSyncService, MapResponse};
use tower_gemini::body::HasVerdict;
use tower_gemini::error::Error;
use tower_gemini::final_image_extract::FinalImageJsonLayer;
use tower_gemini::stage::WireClient;
use tower_gemini::{
    AttemptTimeoutLayer, ClassifyGeminiErrorLayer, CollectRequestLayer, GeminiStack,
    JitteredRetryLayer, KeepPaidLayer, ModelFallbackLayer, ObserveLayer, PacingLayer,
    PeakHourRouterLayer, QuotaGuardLayer, ResolutionFallbackLayer, ResumeInteractionsLayer,
    SpendingLayer, ThoughtSignaturesLayer,
};

use crate::budgets::{Budgets, BudgetsLayer};
use crate::config::Responses;
use crate::door::TokenSpendingLayer;
use crate::state::State;
use crate::state_guard::StateGuardLayer;
use crate::stats::Stats;
use crate::transform::TransformLayer;

/// A stack as the handler calls it. A verdict is in the extensions of its responses.
pub(crate) type Stack = BoxCloneSyncService<Request<Body>, Response<Body>, Error>;

/// The layers, with the state that their services share. Cloned into the next snapshot where their
/// settings did not change.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    pub(crate) observe: ObserveLayer,
    pub(crate) stats: Stats,
    pub(crate) collect: CollectRequestLayer,
    pub(crate) keep: Option<KeepPaidLayer>,
    pub(crate) signatures: ThoughtSignaturesLayer,
    pub(crate) peak: PeakHourRouterLayer,
    /// Over its pool, in each route.
    pub(crate) fallback: ModelFallbackLayer,
    pub(crate) resolution: ResolutionFallbackLayer,
    pub(crate) retry: JitteredRetryLayer,
    pub(crate) pacing: PacingLayer,
    pub(crate) spending: SpendingLayer,
    /// Of upstreams, in each route.
    pub(crate) budgets: Budgets,
    pub(crate) timeout: AttemptTimeoutLayer,
    pub(crate) resume: ResumeInteractionsLayer,
}

/// What differs from route to route.
#[derive(Debug)]
pub(crate) struct RouteLayers<'a> {
    pub(crate) fallback: ModelFallbackLayer,
    pub(crate) quota: QuotaGuardLayer,
    pub(crate) budgets: BudgetsLayer,
    pub(crate) classify: ClassifyGeminiErrorLayer,
    pub(crate) responses: &'a Responses,
}

/// The three stacks.
#[derive(Debug, Clone)]
pub(crate) struct Stacks {
    /// For whole responses: buffered before their head goes out, up to a limit.
    pub(crate) whole: Stack,
    /// For streams.
    pub(crate) stream: Stack,
    /// For continuations and calls that generate nothing: sent once, never stored, shared or moved
    /// to another target.
    pub(crate) plain: Stack,
}

impl Layers {
    /// The stacks of one route over `client`.
    pub(crate) fn stacks<C>(&self, route: RouteLayers<'_>, state: &State, client: C) -> Stacks
    where
        C: WireClient<Future: 'static> + Sync,
    {
        let RouteLayers { fallback, quota, budgets, classify, responses } = route;
        let (strip_drafts, buffer_up_to) = (responses.strip_drafts, responses.buffer_up_to.0);
        let plain = GeminiStack::new()
            .observe(self.observe.clone())
            .collect(self.collect)
            .retry(JitteredRetryLayer::off())
            .attempt_layer((self.pacing.clone(), TokenSpendingLayer, budgets))
            .spending(self.spending.clone())
            .quota(quota)
            .timeout(self.timeout)
            .classify(classify)
            .resume(self.resume);
        // Below KeepPaid, so that what is stored are the bytes that the caller gets.
        let full = plain
            .clone()
            .keep_paid(self.keep.clone().unwrap_or_else(KeepPaidLayer::off))
            .extract_json(FinalImageJsonLayer::new().max_held_bytes(buffer_up_to))
            .signatures(self.signatures.clone())
            .peak_hours(self.peak.clone())
            .fallback(fallback)
            .resolution(self.resolution.clone())
            .retry(self.retry.clone());
        let layers = |transform| (transform, StateGuardLayer { state: state.clone() });
        let buffering = layers(TransformLayer { buffer_up_to: Some(buffer_up_to) });
        let whole = full.clone().call_layer(buffering);
        let passing = layers(TransformLayer { buffer_up_to: None });
        Stacks {
            whole: match strip_drafts {
                true => erased(whole.json(client.clone())),
                false => erased(whole.raw(client.clone())),
            },
            stream: erased(full.call_layer(passing.clone()).raw(client.clone())),
            plain: erased(plain.call_layer(passing).raw(client)),
        }
    }
}

/// Boxes a stack, and moves the verdict from a body to the extensions of its response.
fn erased<S, B>(stack: S) -> Stack
where
    S: Service<Request<Body>, Response = Response<B>, Error = Error, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    B: HttpBody<Data = Bytes, Error = Error> + HasVerdict + Send + 'static,
{
    Stack::new(MapResponse::new(stack, |response: Response<B>| {
        let (mut parts, body) = response.into_parts();
        if let Some(verdict) = body.verdict() {
            parts.extensions.insert(verdict.clone());
        }
        Response::from_parts(parts, Body::new(body))
    }))
}
