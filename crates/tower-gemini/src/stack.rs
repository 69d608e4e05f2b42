//! The recommended order of layers, ready made: [`GeminiStack`], and [`compose`] for stacks by
//! hand.

use std::fmt;
use std::task::{Context, Poll};

use http::Request;
use tower_layer::{Identity, Layer};
use tower_service::Service;

use crate::answer_errors::AnswerErrorsLayer;
use crate::attempt_timeout::AttemptTimeoutLayer;
use crate::classify_gemini_error::ClassifyGeminiErrorLayer;
use crate::collect_request::CollectRequestLayer;
use crate::final_image_extract::{FinalImageExtractLayer, FinalImageJsonLayer};
use crate::jittered_retry::{JitteredRetryLayer, RetryPolicy};
use crate::model_fallback::{Chain, ModelFallbackLayer};
use crate::observe::ObserveLayer;
use crate::peak_hour_router::PeakHourRouterLayer;
use crate::quota_guard::QuotaGuardLayer;
use crate::resolution_fallback::ResolutionFallbackLayer;
use crate::resume_interactions::ResumeInteractionsLayer;
use crate::spending::SpendingLayer;
use crate::thought_signatures::ThoughtSignaturesLayer;

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

/// All layers and the two open slots, outermost first. `E`, `O` and `K` are the slots of
/// [`AnswerErrors`](crate::AnswerErrors), [`Observe`](crate::Observe) and `KeepPaid`, `X` takes the
/// image out, `C` and `A` are the user's own layers.
type Whole<E, O, K, C, X, A> = (
    E,
    O,
    CollectRequestLayer,
    K,
    C,
    X,
    ThoughtSignaturesLayer,
    PeakHourRouterLayer,
    ModelFallbackLayer,
    ResolutionFallbackLayer,
    JitteredRetryLayer,
    A,
    SpendingLayer,
    QuotaGuardLayer,
    AttemptTimeoutLayer,
    (ClassifyGeminiErrorLayer, ResumeInteractionsLayer),
);
/// All of them over a client.
type Built<S, E, O, K, C, X, A> = <Whole<E, O, K, C, X, A> as Layer<S>>::Service;

/// The recommended order of layers, over any client.
///
/// | slot | layer | default |
/// | --- | --- | --- |
/// | [`answer_errors`](Self::answer_errors) | [`AnswerErrors`](crate::AnswerErrors) | off: a program can read an `Error` |
/// | [`observe`](Self::observe) | [`Observe`](crate::Observe) | off |
/// | [`collect`](Self::collect) | [`CollectRequest`](crate::CollectRequest) | on, always |
#[cfg_attr(
    feature = "keep-paid",
    doc = "| [`keep_paid`](Self::keep_paid) | [`KeepPaid`](crate::KeepPaid) | off: it holds responses in memory |"
)]
/// | [`call_layer`](Self::call_layer) | your own, on calls | none |
/// | [`extract`](Self::extract) | [`FinalImageExtract`](crate::FinalImageExtract), in `images` and `json` | on |
/// | [`signatures`](Self::signatures) | [`ThoughtSignatures`](crate::ThoughtSignatures) | off |
/// | [`peak_hours`](Self::peak_hours) | [`PeakHourRouter`](crate::PeakHourRouter) | off |
/// | [`fallback`](Self::fallback) | [`ModelFallback`](crate::ModelFallback) | off: another model gives another image |
/// | [`resolution`](Self::resolution) | [`ResolutionFallback`](crate::ResolutionFallback) | off: a smaller image is another image |
/// | [`retry`](Self::retry) | [`JitteredRetry`](crate::JitteredRetry) | on; [`JitteredRetryLayer::off`] makes one attempt |
/// | [`attempt_layer`](Self::attempt_layer) | your own, on attempts | none |
/// | [`spending`](Self::spending) | [`Spending`](crate::Spending) | off |
/// | [`quota`](Self::quota) | [`QuotaGuard`](crate::QuotaGuard) | off |
/// | [`timeout`](Self::timeout) | [`AttemptTimeout`](crate::AttemptTimeout) | on |
/// | [`classify`](Self::classify) | [`ClassifyGeminiError`](crate::ClassifyGeminiError) | on, always |
/// | [`resume`](Self::resume) | [`ResumeInteractions`](crate::ResumeInteractions) | on: it concerns interactions only |
///
/// `AnswerErrors` and `KeepPaid` need a response body, so `images` with one of them is a compile
/// error: use `json`, and read the image with
/// [`FinalImage::from_json`](crate::FinalImage::from_json). `images` is observed by
/// [`ObserveLayer::whole_responses`].
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
pub struct GeminiStack<E = Identity, O = Identity, K = Identity, C = Identity, A = Identity> {
    slots: Slots,
    /// Layers that change the types of the stack.
    typed: Typed<E, O, K, C, A>,
}

#[derive(Debug, Clone)]
struct Typed<E, O, K, C, A> {
    answer_errors: E,
    observe: O,
    keep_paid: K,
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
    resume: ResumeInteractionsLayer,
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
            quota: QuotaGuardLayer::off(),
            timeout: AttemptTimeoutLayer::new(),
            classify: ClassifyGeminiErrorLayer::new(),
            resume: ResumeInteractionsLayer::new(),
        };
        let off = Identity::new;
        let typed = Typed {
            answer_errors: off(),
            observe: off(),
            keep_paid: off(),
            call_layer: off(),
            attempt_layer: off(),
        };
        Self { slots, typed }
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

/// A setter of a slot whose layer changes the types of the stack.
macro_rules! typed_slot {
    ($self:ident.$name:ident = $layer:ident, $($other:ident),*) => {{
        let Self { slots, typed: Typed { $($other,)* .. } } = $self;
        GeminiStack { slots, typed: Typed { $name: $layer, $($other),* } }
    }};
}

impl<E, O, K, C, A> GeminiStack<E, O, K, C, A> {
    /// Turns errors into responses, for servers and clients that retry by themselves. Off by
    /// default. Over [`json`](Self::json) and [`raw`](Self::raw).
    #[must_use]
    pub fn answer_errors(
        self,
        layer: AnswerErrorsLayer,
    ) -> GeminiStack<AnswerErrorsLayer, O, K, C, A> {
        typed_slot!(self.answer_errors = layer, observe, keep_paid, call_layer, attempt_layer)
    }

    /// Reports every call. Off by default. Over [`images`](Self::images) set
    /// [`ObserveLayer::whole_responses`].
    #[must_use]
    pub fn observe<M>(self, layer: ObserveLayer<M>) -> GeminiStack<E, ObserveLayer<M>, K, C, A> {
        typed_slot!(self.observe = layer, answer_errors, keep_paid, call_layer, attempt_layer)
    }

    /// Completes calls whose clients disconnected. Off by default. Over [`json`](Self::json) and
    /// [`raw`](Self::raw).
    #[cfg(feature = "keep-paid")]
    #[must_use]
    pub fn keep_paid(
        self,
        layer: crate::KeepPaidLayer,
    ) -> GeminiStack<E, O, crate::KeepPaidLayer, C, A> {
        typed_slot!(self.keep_paid = layer, answer_errors, observe, call_layer, attempt_layer)
    }

    slots! {
        /// How requests are held.
        collect: CollectRequestLayer,
        /// How [`images`](Self::images) extracts the final image.
        extract: FinalImageExtractLayer,
        /// How [`json`](Self::json) removes drafts.
        extract_json: FinalImageJsonLayer,
        /// Restores thought signatures in further turns. Off by default.
        signatures: ThoughtSignaturesLayer,
        /// Tries another model first in peak hours. Off by default.
        peak_hours: PeakHourRouterLayer,
        /// Falls back to other models and upstreams. Off by default.
        fallback: ModelFallbackLayer,
        /// Falls back to smaller sizes. Off by default.
        resolution: ResolutionFallbackLayer,
        /// How calls are retried.
        retry: JitteredRetryLayer,
        /// Limits what is spent. Off by default.
        spending: SpendingLayer,
        /// Limits what is sent. Off by default: nothing is counted and nothing waits.
        quota: QuotaGuardLayer,
        /// How long attempts may take.
        timeout: AttemptTimeoutLayer,
        /// How responses are judged.
        classify: ClassifyGeminiErrorLayer,
        /// How interactions are fetched whose responses broke off.
        resume: ResumeInteractionsLayer,
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

    /// Puts a layer of your own on whole calls, above
    /// [`FinalImageExtract`](crate::FinalImageExtract): its service takes `Request<CallBody>`.
    #[must_use]
    pub fn call_layer<L>(self, layer: L) -> GeminiStack<E, O, K, L, A> {
        typed_slot!(self.call_layer = layer, answer_errors, observe, keep_paid, attempt_layer)
    }

    /// Puts a layer of your own on single attempts, below [`JitteredRetry`](crate::JitteredRetry):
    /// its service is an [`AttemptService`](crate::stage::AttemptService).
    #[must_use]
    pub fn attempt_layer<L>(self, layer: L) -> GeminiStack<E, O, K, C, L> {
        typed_slot!(self.attempt_layer = layer, answer_errors, observe, keep_paid, call_layer)
    }
}

impl<E: Clone, O: Clone, K: Clone, C: Clone, A: Clone> GeminiStack<E, O, K, C, A> {
    /// A service that returns the final image, decoded.
    #[must_use]
    pub fn images<S>(&self, client: S) -> Images<S, E, O, K, C, A>
    where
        Whole<E, O, K, C, FinalImageExtractLayer, A>: Layer<S>,
    {
        Images(compose(self.whole(self.slots.extract), client))
    }

    /// A service that returns the API's JSON without the drafts. Responses with an error status
    /// pass unchanged.
    #[must_use]
    pub fn json<S>(&self, client: S) -> Json<S, E, O, K, C, A>
    where
        Whole<E, O, K, C, FinalImageJsonLayer, A>: Layer<S>,
    {
        Json(compose(self.whole(self.slots.extract_json), client))
    }

    /// A service that returns the API's own response, byte for byte, and a verdict beside it.
    #[must_use]
    pub fn raw<S>(&self, client: S) -> Raw<S, E, O, K, C, A>
    where
        Whole<E, O, K, C, Identity, A>: Layer<S>,
    {
        Raw(compose(self.whole(Identity::new()), client))
    }

    /// All layers in their order.
    fn whole<X>(&self, extract: X) -> Whole<E, O, K, C, X, A> {
        let Self { slots, typed } = self.clone();
        let (fallback, resolution) = slots.fallbacks();
        (
            typed.answer_errors,
            typed.observe,
            slots.collect,
            typed.keep_paid,
            typed.call_layer,
            extract,
            slots.signatures,
            slots.peak_hours,
            fallback,
            resolution,
            slots.retry,
            typed.attempt_layer,
            slots.spending,
            slots.quota,
            slots.timeout,
            (slots.classify, slots.resume),
        )
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
    ($($(#[$doc:meta])* $name:ident with $extract:ty;)*) => {
        $($(#[$doc])*
        pub struct $name<S, E = Identity, O = Identity, K = Identity, C = Identity, A = Identity>(
            Built<S, E, O, K, C, $extract, A>,
        )
        where
            Whole<E, O, K, C, $extract, A>: Layer<S>;

        impl<S, E, O, K, C, A> Clone for $name<S, E, O, K, C, A>
        where
            Whole<E, O, K, C, $extract, A>: Layer<S, Service: Clone>,
        {
            fn clone(&self) -> Self {
                Self(self.0.clone())
            }
        }

        impl<S, E, O, K, C, A> fmt::Debug for $name<S, E, O, K, C, A>
        where
            Whole<E, O, K, C, $extract, A>: Layer<S>,
        {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }

        impl<S, E, O, K, C, A, B> Service<Request<B>> for $name<S, E, O, K, C, A>
        where
            Whole<E, O, K, C, $extract, A>: Layer<S, Service: Service<Request<B>>>,
        {
            type Response = <Built<S, E, O, K, C, $extract, A> as Service<Request<B>>>::Response;
            type Error = <Built<S, E, O, K, C, $extract, A> as Service<Request<B>>>::Error;
            type Future = <Built<S, E, O, K, C, $extract, A> as Service<Request<B>>>::Future;

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
    Images with FinalImageExtractLayer;
    /// A stack that returns the API's JSON without drafts: [`GeminiStack::json`].
    Json with FinalImageJsonLayer;
    /// A stack that returns the API's own responses, judged: [`GeminiStack::raw`].
    Raw with Identity;
}
