//! The recommended order of layers, ready made: [`GeminiStack`], and [`compose`] for stacks by
//! hand.

use std::fmt;
use std::task::{Context, Poll};

use http::Request;
use tower_layer::{Identity, Layer};
use tower_service::Service;

use crate::attempt_timeout::{AttemptTimeout, AttemptTimeoutLayer};
use crate::classify_gemini_error::{ClassifyGeminiError, ClassifyGeminiErrorLayer};
use crate::collect_request::{CollectRequest, CollectRequestLayer};
use crate::final_image_extract::{
    FinalImageExtract, FinalImageExtractLayer, FinalImageJson, FinalImageJsonLayer,
};
use crate::jittered_retry::{JitteredRetry, JitteredRetryLayer, RetryPolicy};
use crate::model_fallback::{Chain, ModelFallback, ModelFallbackLayer};
use crate::peak_hour_router::{PeakHourRouter, PeakHourRouterLayer};
use crate::quota_guard::{QuotaGuard, QuotaGuardLayer};
use crate::resolution_fallback::{ResolutionFallback, ResolutionFallbackLayer};
use crate::spending::{Spending, SpendingLayer};
use crate::stage::{AttemptService, CallHandler, WireClient};
use crate::thought_signatures::{ThoughtSignatures, ThoughtSignaturesLayer};

/// Puts layers over a client, outermost first: a tuple of layers in the order of the stack.
///
/// An invalid order does not compile, and the error names the layer and its place. A tower
/// `ServiceBuilder` builds the same services, but hides that sentence behind an unsatisfied bound
/// of its own; use `compose` while a stack takes shape. Tuples of more than sixteen layers nest:
/// `(a, b, (c, d))`.
///
/// ```
/// use tower_gemini::{
///     AttemptTimeoutLayer, ClassifyGeminiErrorLayer, CollectRequestLayer, JitteredRetryLayer, compose,
/// };
/// # use http::{Request, Response};
/// # use http_body_util::Full;
/// # use bytes::Bytes;
/// # use tower_gemini::WireBody;
/// # let client = tower::service_fn(|_: Request<WireBody>| async {
/// #     Ok::<_, std::io::Error>(Response::new(Full::new(Bytes::new())))
/// # });
/// let gemini = compose(
///     (
///         CollectRequestLayer::new(),
///         JitteredRetryLayer::recommended(),
///         AttemptTimeoutLayer::new(),
///         ClassifyGeminiErrorLayer::new(),
///     ),
///     client,
/// );
/// # let _ = gemini;
/// ```
#[must_use]
pub fn compose<L: Layer<S>, S>(layers: L, client: S) -> L::Service {
    layers.layer(client)
}

/// The attempt stage over a client.
type Attempts<S> = Spending<QuotaGuard<AttemptTimeout<ClassifyGeminiError<S>>>>;
/// The call stage over a service of attempts.
type Calls<A> =
    ThoughtSignatures<PeakHourRouter<ModelFallback<ResolutionFallback<JitteredRetry<A>>>>>;
/// The call stage with the user's own attempt layer in it.
type Judged<S, A> = Calls<<A as Layer<Attempts<S>>>::Service>;

/// The recommended order of layers, over any client.
///
/// | slot | layer | default |
/// | --- | --- | --- |
/// | [`collect`](Self::collect) | [`CollectRequest`] | on, always |
/// | [`call_layer`](Self::call_layer) | your own, on calls | none |
/// | [`extract`](Self::extract) | [`FinalImageExtract`], in `images` and `json` | on |
/// | [`signatures`](Self::signatures) | [`ThoughtSignatures`] | off |
/// | [`peak_hours`](Self::peak_hours) | [`PeakHourRouter`] | off |
/// | [`fallback`](Self::fallback) | [`ModelFallback`] | off: an image of another model is the caller's to want |
/// | [`resolution`](Self::resolution) | [`ResolutionFallback`] | off: a smaller image is the caller's to want |
/// | [`retry`](Self::retry) | [`JitteredRetry`] | on; [`JitteredRetryLayer::off`] makes one attempt |
/// | [`attempt_layer`](Self::attempt_layer) | your own, on attempts | none |
/// | [`spending`](Self::spending) | [`Spending`] | off |
/// | [`quota`](Self::quota) | [`QuotaGuard`] | off |
/// | [`timeout`](Self::timeout) | [`AttemptTimeout`] | on |
/// | [`classify`](Self::classify) | [`ClassifyGeminiError`] | on, always |
///
/// [`AnswerErrors`](crate::AnswerErrors), [`Observe`](crate::Observe) and, over `json` and `raw`,
/// [`KeepPaid`](crate::KeepPaid) stand above it.
///
/// State that calls share (the retry budget, the quota's count, the health of targets) is shared by
/// every service made from one `GeminiStack` and by all their clones. A layer that is off costs
/// next to nothing.
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::Full;
/// use tower::{ServiceExt, service_fn};
/// use tower_gemini::{GeminiStack, WireBody};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// // Any client will do; this one always refuses the key.
/// let client = service_fn(|_: Request<WireBody>| async {
///     let body = br#"{"error":{"code":400,"message":"API key not valid.","status":"INVALID_ARGUMENT"}}"#;
///     Ok::<_, std::io::Error>(Response::builder().status(400).body(Full::new(Bytes::from_static(body))).unwrap())
/// });
/// let gemini = GeminiStack::new().images(client);
/// let request = Request::post("/v1beta/models/gemini-3-pro-image:generateContent").body(Full::new(Bytes::new())).unwrap();
/// let error = gemini.oneshot(request).await.unwrap_err();
/// assert_eq!(error.status().map(|status| status.as_u16()), Some(400));
/// assert_eq!(error.trail().unwrap().attempts().len(), 1);
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct GeminiStack<C = Identity, A = Identity> {
    slots: Slots,
    call_layer: C,
    attempt_layer: A,
}

#[derive(Debug, Clone)]
struct Slots {
    collect: CollectRequestLayer,
    extract: FinalImageExtractLayer,
    extract_json: FinalImageJsonLayer,
    signatures: ThoughtSignaturesLayer,
    peak_hours: PeakHourRouterLayer,
    fallback: ModelFallbackLayer,
    resolution: ResolutionFallbackLayer,
    retry: JitteredRetryLayer,
    spending: SpendingLayer,
    quota: QuotaGuardLayer,
    timeout: AttemptTimeoutLayer,
    classify: ClassifyGeminiErrorLayer,
}

impl GeminiStack {
    /// Every layer with its defaults.
    #[must_use]
    pub fn new() -> Self {
        let slots = Slots {
            collect: CollectRequestLayer::new(),
            extract: FinalImageExtractLayer::new(),
            extract_json: FinalImageJsonLayer::new(),
            signatures: ThoughtSignaturesLayer::off(),
            peak_hours: PeakHourRouterLayer::off(),
            fallback: ModelFallbackLayer::off(),
            resolution: ResolutionFallbackLayer::off(),
            retry: JitteredRetryLayer::recommended(),
            spending: SpendingLayer::off(),
            quota: QuotaGuardLayer::unlimited(),
            timeout: AttemptTimeoutLayer::new(),
            classify: ClassifyGeminiErrorLayer::new(),
        };
        Self { slots, call_layer: Identity::new(), attempt_layer: Identity::new() }
    }
}

impl Default for GeminiStack {
    fn default() -> Self {
        Self::new()
    }
}

/// One setter a slot.
macro_rules! slots {
    ($($(#[$doc:meta])* $name:ident: $layer:ty,)*) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $name(mut self, layer: $layer) -> Self {
            self.slots.$name = layer;
            self
        })*
    };
}

impl<C, A> GeminiStack<C, A> {
    slots! {
        /// How requests are held.
        collect: CollectRequestLayer,
        /// How [`images`](Self::images) takes the final image out.
        extract: FinalImageExtractLayer,
        /// How [`json`](Self::json) removes drafts.
        extract_json: FinalImageJsonLayer,
        /// Restores thought signatures in further turns. Off by default.
        signatures: ThoughtSignaturesLayer,
        /// Lets another model lead in peak hours. Off by default.
        peak_hours: PeakHourRouterLayer,
        /// Which other models and upstreams are asked. Off by default.
        fallback: ModelFallbackLayer,
        /// Which smaller sizes are asked for. Off by default.
        resolution: ResolutionFallbackLayer,
        /// How calls are retried.
        retry: JitteredRetryLayer,
        /// What may be spent. Off by default.
        spending: SpendingLayer,
        /// How much may be sent. Off by default: nothing is counted and nothing waits.
        quota: QuotaGuardLayer,
        /// How long attempts may take.
        timeout: AttemptTimeoutLayer,
        /// How responses are judged.
        classify: ClassifyGeminiErrorLayer,
    }

    /// Falls back along this chain.
    #[must_use]
    pub fn fallback_to(self, chain: Chain) -> Self {
        self.fallback(ModelFallbackLayer::new(chain))
    }

    /// Retries by this policy.
    #[must_use]
    pub fn retry_policy(self, policy: RetryPolicy) -> Self {
        self.retry(JitteredRetryLayer::new(policy))
    }

    /// Puts a layer of your own on whole calls, above [`FinalImageExtract`]: its service takes
    /// `Request<CallBody>`.
    #[must_use]
    pub fn call_layer<L>(self, layer: L) -> GeminiStack<L, A> {
        let Self { slots, attempt_layer, .. } = self;
        GeminiStack { slots, call_layer: layer, attempt_layer }
    }

    /// Puts a layer of your own on single attempts, below [`JitteredRetry`]: its service is an
    /// [`AttemptService`].
    #[must_use]
    pub fn attempt_layer<L>(self, layer: L) -> GeminiStack<C, L> {
        let Self { slots, call_layer, .. } = self;
        GeminiStack { slots, call_layer, attempt_layer: layer }
    }

    /// A service that returns the final image, decoded.
    #[must_use]
    pub fn images<S>(&self, client: S) -> Images<S, C, A>
    where
        S: WireClient,
        A: Layer<Attempts<S>, Service: AttemptService>,
        C: Layer<FinalImageExtract<Judged<S, A>>, Service: CallHandler>,
    {
        let extract = self.slots.extract.layer(self.judged(client));
        Images(self.slots.collect.layer(self.call_layer.layer(extract)))
    }

    /// A service that returns the API's JSON without the drafts. Responses with an error status
    /// pass unchanged.
    #[must_use]
    pub fn json<S>(&self, client: S) -> Json<S, C, A>
    where
        S: WireClient,
        A: Layer<Attempts<S>, Service: AttemptService>,
        C: Layer<FinalImageJson<Judged<S, A>>, Service: CallHandler>,
    {
        let extract = self.slots.extract_json.layer(self.judged(client));
        Json(self.slots.collect.layer(self.call_layer.layer(extract)))
    }

    /// A service that returns the API's own response, byte for byte, and a verdict beside it.
    #[must_use]
    pub fn raw<S>(&self, client: S) -> Raw<S, C, A>
    where
        S: WireClient,
        A: Layer<Attempts<S>, Service: AttemptService>,
        C: Layer<Judged<S, A>, Service: CallHandler>,
    {
        Raw(self.slots.collect.layer(self.call_layer.layer(self.judged(client))))
    }

    fn judged<S>(&self, client: S) -> Judged<S, A>
    where
        S: WireClient,
        A: Layer<Attempts<S>, Service: AttemptService>,
    {
        let slots = &self.slots;
        let (fallback, resolution) = slots.fallbacks();
        let attempts = (&slots.spending, &slots.quota, &slots.timeout, &slots.classify);
        let attempts = self.attempt_layer.layer(compose(attempts, client));
        let calls = (&slots.signatures, &slots.peak_hours, &fallback, &resolution, &slots.retry);
        compose(calls, attempts)
    }
}

impl Slots {
    /// Both fallbacks, as one walk along models and sizes where both are on.
    fn fallbacks(&self) -> (ModelFallbackLayer, ResolutionFallbackLayer) {
        let (fallback, resolution) = (self.fallback.clone(), self.resolution.clone());
        match resolution.ladder().filter(|_| fallback.is_on()).cloned() {
            Some(ladder) => (fallback.ladder(ladder), ResolutionFallbackLayer::off()),
            None => (fallback, resolution),
        }
    }
}

/// The services that a [`GeminiStack`] ends in.
macro_rules! terminals {
    ($($(#[$doc:meta])* $name:ident over $inner:ty;)*) => {
        $($(#[$doc])*
        pub struct $name<S, C = Identity, A = Identity>(
            CollectRequest<<C as Layer<$inner>>::Service>,
        )
        where
            A: Layer<Attempts<S>>,
            C: Layer<$inner>;

        impl<S, C, A> Clone for $name<S, C, A>
        where
            A: Layer<Attempts<S>>,
            C: Layer<$inner, Service: Clone>,
        {
            fn clone(&self) -> Self {
                Self(self.0.clone())
            }
        }

        impl<S, C, A> fmt::Debug for $name<S, C, A>
        where
            A: Layer<Attempts<S>>,
            C: Layer<$inner>,
        {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }

        impl<S, C, A, B> Service<Request<B>> for $name<S, C, A>
        where
            A: Layer<Attempts<S>>,
            C: Layer<$inner>,
            CollectRequest<<C as Layer<$inner>>::Service>: Service<Request<B>>,
        {
            type Response =
                <CollectRequest<<C as Layer<$inner>>::Service> as Service<Request<B>>>::Response;
            type Error =
                <CollectRequest<<C as Layer<$inner>>::Service> as Service<Request<B>>>::Error;
            type Future =
                <CollectRequest<<C as Layer<$inner>>::Service> as Service<Request<B>>>::Future;

            fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
                self.0.poll_ready(cx)
            }

            fn call(&mut self, request: Request<B>) -> Self::Future {
                self.0.call(request)
            }
        })*
    };
}

terminals! {
    /// A stack that returns [`FinalImage`](crate::FinalImage)s: [`GeminiStack::images`].
    Images over FinalImageExtract<Judged<S, A>>;
    /// A stack that returns the API's JSON without drafts: [`GeminiStack::json`].
    Json over FinalImageJson<Judged<S, A>>;
    /// A stack that returns the API's own responses, judged: [`GeminiStack::raw`].
    Raw over Judged<S, A>;
}
