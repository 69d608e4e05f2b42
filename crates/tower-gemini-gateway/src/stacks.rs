//! Composes the gateway's three stacks over one client.
//!
//! ```text
//! whole   CollectRequest ▶ KeepPaid ▶ Transform ▶ buffer ▶ FinalImageJson ▶ choosing ▶ attempt ▶ client     whole responses
//! stream  CollectRequest ▶ KeepPaid ▶ Transform ▶                         choosing ▶ attempt ▶ client     streams
//! plain   CollectRequest ▶            Tell ▶                                    attempt ▶ client     continuations, and calls that generate nothing
//! choosing = ThoughtSignatures ▶ PeakHourRouter ▶ ModelFallback ▶ ResolutionFallback ▶ JitteredRetry
//! attempt  = Spending ▶ QuotaGuard ▶ AttemptTimeout ▶ ClassifyGeminiError
//! ```

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tower::util::{AndThen, BoxCloneSyncService, MapResponse};
use tower::{Layer, Service};
use tower_gemini::answer_errors::HasVerdict;
use tower_gemini::core::body::{JudgedBody, ReplayBody};
use tower_gemini::core::error::{BoxError, Error};
use tower_gemini::final_image_extract::FinalImageJsonLayer;
use tower_gemini::{
    AttemptTimeoutLayer, ClassifyGeminiErrorLayer, CollectRequestLayer, JitteredRetryLayer,
    KeepPaidLayer, ModelFallbackLayer, ObserveLayer, PeakHourRouterLayer, QuotaGuardLayer,
    ResolutionFallbackLayer, SpendingLayer, ThoughtSignaturesLayer,
};

use crate::buffer::buffer;
use crate::transform::TransformResponses;

/// A stack whose answers are judged.
type Judged = BoxCloneSyncService<Request<ReplayBody>, Response<JudgedBody<Incoming>>, Error>;
/// A stack as the proxy calls it. A verdict is in the extensions of its answers.
pub(crate) type Stack =
    BoxCloneSyncService<Request<axum::body::Body>, Response<axum::body::Body>, Error>;

/// The layers, with the state that their services share. Cloned into the next set on a reload where
/// their settings did not change.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    pub(crate) observe: ObserveLayer,
    pub(crate) collect: CollectRequestLayer,
    pub(crate) keep: Option<KeepPaidLayer>,
    pub(crate) signatures: Option<ThoughtSignaturesLayer>,
    pub(crate) peak: Option<PeakHourRouterLayer>,
    pub(crate) fallback: ModelFallbackLayer,
    pub(crate) resolution: ResolutionFallbackLayer,
    pub(crate) retry: JitteredRetryLayer,
    pub(crate) spending: Option<SpendingLayer>,
    pub(crate) quota: QuotaGuardLayer,
    pub(crate) timeout: AttemptTimeoutLayer,
    pub(crate) classify: ClassifyGeminiErrorLayer,
}

/// The three stacks.
#[derive(Debug, Clone)]
pub(crate) struct Stacks {
    /// For whole responses: held whole before their head goes out, up to a bound.
    pub(crate) whole: Stack,
    /// For streams.
    pub(crate) stream: Stack,
    /// Sent once, and never kept, shared or moved elsewhere.
    pub(crate) plain: Stack,
}

impl Layers {
    /// The stacks over `client`. `strip_drafts` cuts drafts out of whole answers; `buffer_up_to` bytes
    /// of one are held.
    pub(crate) fn stacks<C>(&self, client: C, strip_drafts: bool, buffer_up_to: usize) -> Stacks
    where
        C: Service<
                Request<ReplayBody>,
                Response = Response<Incoming>,
                Error: Into<BoxError>,
                Future: Send,
            > + Clone
            + Send
            + Sync
            + 'static,
    {
        let attempt = self.quota.layer(self.timeout.layer(self.classify.layer(client)));
        let attempt: Judged = match &self.spending {
            Some(spending) => Judged::new(spending.layer(attempt)),
            None => Judged::new(attempt),
        };
        let chosen = self.fallback.layer(self.resolution.layer(self.retry.layer(attempt.clone())));
        let chosen: Judged = match &self.peak {
            Some(peak) => Judged::new(peak.layer(chosen)),
            None => Judged::new(chosen),
        };
        let chosen: Judged = match &self.signatures {
            Some(signatures) => Judged::new(signatures.layer(chosen)),
            None => chosen,
        };
        let whole = if strip_drafts {
            let stripped =
                FinalImageJsonLayer::new().max_held_bytes(buffer_up_to).layer(chosen.clone());
            self.kept(AndThen::new(stripped, move |answer| buffer(answer, buffer_up_to)))
        } else {
            self.kept(AndThen::new(chosen.clone(), move |answer| buffer(answer, buffer_up_to)))
        };
        Stacks {
            whole,
            stream: self.kept(chosen),
            plain: self.watched(TransformResponses(attempt)),
        }
    }

    fn kept<S, B>(&self, stack: S) -> Stack
    where
        S: Service<Request<ReplayBody>, Response = Response<B>, Error = Error, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
        B: Body<Data = Bytes, Error = Error> + HasVerdict + Send + Unpin + 'static,
    {
        match &self.keep {
            Some(keep) => self.watched(keep.layer(TransformResponses(stack))),
            None => self.watched(TransformResponses(stack)),
        }
    }

    fn watched<S, B>(&self, stack: S) -> Stack
    where
        S: Service<Request<ReplayBody>, Response = Response<B>, Error = Error, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
        B: Body<Data = Bytes, Error = Error> + HasVerdict + Send + 'static,
    {
        let judged = MapResponse::new(stack, |answer: Response<B>| {
            let (mut parts, body) = answer.into_parts();
            if let Some(verdict) = body.verdict() {
                parts.extensions.insert(verdict.clone());
            }
            Response::from_parts(parts, body)
        });
        let watched = self.observe.layer(self.collect.layer(judged));
        Stack::new(MapResponse::new(watched, |answer: Response<_>| {
            answer.map(|body| axum::body::Body::new(BodyExt::map_err(body, BoxError::from)))
        }))
    }
}
