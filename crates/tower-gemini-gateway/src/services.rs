//! The stacks behind the gateway: the house's layers in its recommended order, over one client.
//!
//! ```text
//! whole   CollectRequest ▶ KeepPaid ▶ Tell ▶ hold ▶ FinalImageJson ▶ choosing ▶ attempt ▶ client     answers in one piece
//! stream  CollectRequest ▶ KeepPaid ▶ Tell ▶                         choosing ▶ attempt ▶ client     answers in pieces
//! plain   CollectRequest ▶            Tell ▶                                    attempt ▶ client     continuations, and what makes nothing
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
use tower_gemini::body::HasVerdict;
use tower_gemini::body::{AttemptBody, CallBody, JudgedBody, WireBody};
use tower_gemini::error::{BoxError, Error};
use tower_gemini::final_image_extract::FinalImageJsonLayer;
use tower_gemini::{
    AttemptTimeoutLayer, ClassifyGeminiErrorLayer, CollectRequestLayer, JitteredRetryLayer,
    KeepPaidLayer, ModelFallbackLayer, ObserveLayer, PeakHourRouterLayer, QuotaGuardLayer,
    ResolutionFallbackLayer, SingleAttemptLayer, SpendingLayer, ThoughtSignaturesLayer,
};

use crate::hold::hold;
use crate::tell::Tell;

/// The attempt stage of a stack.
type Attempts = BoxCloneSyncService<Request<AttemptBody>, Response<JudgedBody<Incoming>>, Error>;
/// A stack whose answers are judged.
type Judged = BoxCloneSyncService<Request<CallBody>, Response<JudgedBody<Incoming>>, Error>;
/// A stack as the proxy calls it. A verdict is in the extensions of its answers.
pub(crate) type Answers =
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
pub(crate) struct Services {
    /// For answers in one piece: held whole before their head goes out, up to a bound.
    pub(crate) whole: Answers,
    /// For answers in pieces.
    pub(crate) stream: Answers,
    /// Sent once, and never kept, shared or moved elsewhere.
    pub(crate) plain: Answers,
}

impl Layers {
    /// The stacks over `client`. `strip_drafts` cuts drafts out of whole answers; `most_held` bytes
    /// of one are held.
    pub(crate) fn services<C>(&self, client: C, strip_drafts: bool, most_held: usize) -> Services
    where
        C: Service<
                Request<WireBody>,
                Response = Response<Incoming>,
                Error: Into<BoxError>,
                Future: Send,
            > + Clone
            + Send
            + Sync
            + 'static,
    {
        let attempt = self.quota.layer(self.timeout.layer(self.classify.layer(client)));
        let attempt: Attempts = match &self.spending {
            Some(spending) => Attempts::new(spending.layer(attempt)),
            None => Attempts::new(attempt),
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
                FinalImageJsonLayer::new().max_held_bytes(most_held).layer(chosen.clone());
            self.kept(AndThen::new(stripped, move |answer| hold(answer, most_held)))
        } else {
            self.kept(AndThen::new(chosen.clone(), move |answer| hold(answer, most_held)))
        };
        Services {
            whole,
            stream: self.kept(chosen),
            plain: self.watched(Tell(SingleAttemptLayer::new().layer(attempt))),
        }
    }

    fn kept<S, B>(&self, stack: S) -> Answers
    where
        S: Service<Request<CallBody>, Response = Response<B>, Error = Error, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
        B: Body<Data = Bytes, Error = Error> + HasVerdict + Send + Unpin + 'static,
    {
        match &self.keep {
            Some(keep) => self.watched(keep.layer(Tell(stack))),
            None => self.watched(Tell(stack)),
        }
    }

    fn watched<S, B>(&self, stack: S) -> Answers
    where
        S: Service<Request<CallBody>, Response = Response<B>, Error = Error, Future: Send>
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
        Answers::new(MapResponse::new(watched, |answer: Response<_>| {
            answer.map(|body| axum::body::Body::new(BodyExt::map_err(body, BoxError::from)))
        }))
    }
}
