//! Builds the gateway's three stacks over one client, from [`GeminiStack`].

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use tower::util::{BoxCloneSyncService, MapResponse};
use tower::{Layer, Service};
use tower_gemini::body::CallBody;
use tower_gemini::body::HasVerdict;
use tower_gemini::error::{BoxError, Error};
use tower_gemini::final_image_extract::FinalImageJsonLayer;
use tower_gemini::quota_guard::QuotaUsage;
use tower_gemini::stage::WireClient;
use tower_gemini::target::UpstreamId;
use tower_gemini::{
    AttemptTimeoutLayer, CollectRequestLayer, GeminiStack, JitteredRetryLayer, KeepPaidLayer,
    ModelFallbackLayer, ObserveLayer, PeakHourRouterLayer, QuotaGuardLayer,
    ResolutionFallbackLayer, SpendingLayer, ThoughtSignaturesLayer,
};

use crate::stats::Stats;
use crate::transform::TransformResponses;

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
    pub(crate) fallback: ModelFallbackLayer,
    pub(crate) resolution: ResolutionFallbackLayer,
    pub(crate) retry: JitteredRetryLayer,
    pub(crate) spending: SpendingLayer,
    /// One for each upstream, in their order.
    pub(crate) quotas: Vec<(UpstreamId, QuotaGuardLayer)>,
    pub(crate) timeout: AttemptTimeoutLayer,
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
    /// The usage of every quota.
    pub(crate) fn quota_usages(&self) -> Vec<QuotaUsage> {
        self.quotas.iter().flat_map(|(_, quota)| quota.usages()).collect()
    }

    /// The stacks of one upstream over `client`. `strip_drafts` removes drafts from whole
    /// responses, of which `buffer_up_to` bytes are buffered.
    pub(crate) fn stacks<C>(
        &self,
        quota: &QuotaGuardLayer,
        client: C,
        strip_drafts: bool,
        buffer_up_to: usize,
    ) -> Stacks
    where
        C: WireClient<Future: 'static> + Sync,
    {
        let plain = GeminiStack::new()
            .collect(self.collect)
            .retry(JitteredRetryLayer::off())
            .spending(self.spending.clone())
            .quota(quota.clone())
            .timeout(self.timeout);
        let full = plain
            .clone()
            .extract_json(FinalImageJsonLayer::new().max_held_bytes(buffer_up_to))
            .signatures(self.signatures.clone())
            .peak_hours(self.peak.clone())
            .fallback(self.fallback.clone())
            .resolution(self.resolution.clone())
            .retry(self.retry.clone());
        let (keep, client) = (self.keep.clone(), || client.clone());
        let whole = full.clone().call_layer(Deliver { keep, buffer_up_to: Some(buffer_up_to) });
        let stream = full.call_layer(Deliver { keep: self.keep.clone(), buffer_up_to: None });
        let plain = plain.call_layer(Deliver { keep: None, buffer_up_to: None });
        Stacks {
            whole: match strip_drafts {
                true => self.observed(whole.json(client())),
                false => self.observed(whole.raw(client())),
            },
            stream: self.observed(stream.raw(client())),
            plain: self.observed(plain.raw(client())),
        }
    }

    fn observed<S>(&self, stack: S) -> Stack
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Error, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        let observed = self.observe.layer(stack);
        Stack::new(MapResponse::new(observed, |response: Response<_>| response.map(Body::new)))
    }
}

/// What stands between CollectRequest and the layers that choose a target: KeepPaid, so that what
/// is stored are the bytes that the caller gets, over their transformation.
#[derive(Debug, Clone)]
struct Deliver {
    keep: Option<KeepPaidLayer>,
    buffer_up_to: Option<usize>,
}

type Calls = BoxCloneSyncService<Request<CallBody>, Response<Body>, Error>;

impl<S, B> Layer<S> for Deliver
where
    S: Service<Request<CallBody>, Response = Response<B>, Error = Error, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    B: HttpBody<Data = Bytes, Error = Error> + HasVerdict + Send + Unpin + 'static,
{
    type Service = Calls;

    fn layer(&self, inner: S) -> Calls {
        let transformed = TransformResponses::new(inner, self.buffer_up_to);
        match &self.keep {
            Some(keep) => Calls::new(MapResponse::new(keep.layer(transformed), erased)),
            None => Calls::new(MapResponse::new(transformed, erased)),
        }
    }
}

/// Moves the verdict from a body to the extensions of its response.
fn erased<B>(response: Response<B>) -> Response<Body>
where
    B: HttpBody<Data = Bytes, Error = Error> + HasVerdict + Send + 'static,
{
    let (mut parts, body) = response.into_parts();
    if let Some(verdict) = body.verdict() {
        parts.extensions.insert(verdict.clone());
    }
    Response::from_parts(parts, Body::new(body.map_err(BoxError::from)))
}
