//! The recommended order, ready made.
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{ServiceExt, service_fn};
//! use tower_gemini::GeminiStack;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! // Any client will do; this one is overloaded.
//! let client = service_fn(|_| async {
//!     let body = br#"{"error":{"code":400,"message":"API key not valid.","status":"INVALID_ARGUMENT"}}"#;
//!     Ok::<_, std::io::Error>(Response::builder().status(400).body(Full::new(Bytes::from_static(body))).unwrap())
//! });
//! let gemini = GeminiStack::new().images(client);
//! let request = Request::post("/v1beta/models/gemini-3-pro-image:generateContent").body(Full::new(Bytes::new())).unwrap();
//! let error = gemini.oneshot(request).await.unwrap_err();
//! assert_eq!(error.status().map(|status| status.as_u16()), Some(400));
//! assert_eq!(error.trail().unwrap().attempts().len(), 1);
//! # }
//! ```

use tower_layer::Layer;

use crate::attempt_timeout::{AttemptTimeout, AttemptTimeoutLayer};
use crate::classify_gemini_error::{ClassifyGeminiError, ClassifyGeminiErrorLayer};
use crate::collect_request::{CollectRequest, CollectRequestLayer};
use crate::final_image_extract::{FinalImageExtract, FinalImageExtractLayer, FinalImageJson};
use crate::jittered_retry::{JitteredRetry, JitteredRetryLayer, RetryPolicy};
use crate::model_fallback::{Chain, ModelFallback, ModelFallbackLayer};
use crate::quota_guard::{QuotaGuard, QuotaGuardLayer};
use crate::resolution_fallback::{ResolutionFallback, ResolutionFallbackLayer};

/// The judged middle of the recommended stack.
pub type Judged<S> = ModelFallback<
    ResolutionFallback<JitteredRetry<QuotaGuard<AttemptTimeout<ClassifyGeminiError<S>>>>>,
>;
/// The recommended stack that answers with [`FinalImage`](crate::FinalImage)s.
pub type Images<S> = CollectRequest<FinalImageExtract<Judged<S>>>;
/// The recommended stack that answers with the API's JSON, without drafts.
pub type Json<S> = CollectRequest<FinalImageJson<Judged<S>>>;
/// The recommended stack that answers with the API's own answer, judged.
pub type Raw<S> = CollectRequest<Judged<S>>;

/// The recommended order of layers, over any client.
///
/// `CollectRequest > FinalImageExtract > ModelFallback > ResolutionFallback > JitteredRetry >
/// QuotaGuard > AttemptTimeout > ClassifyGeminiError > client`, each with its documented defaults
/// unless set here. The two fallbacks and the quota are off, and cost next to nothing, until they
/// are set. State that calls share (the retry budget, the quota's count, the health of targets) is
/// shared by every service made from one `GeminiStack` and by all their clones.
#[derive(Debug, Clone)]
pub struct GeminiStack {
    collect: CollectRequestLayer,
    extract: FinalImageExtractLayer,
    fallback: ModelFallbackLayer,
    resolution: ResolutionFallbackLayer,
    retry: JitteredRetryLayer,
    quota: QuotaGuardLayer,
    timeout: AttemptTimeoutLayer,
    classify: ClassifyGeminiErrorLayer,
}

impl GeminiStack {
    /// Every layer with its defaults.
    #[must_use]
    pub fn new() -> Self {
        Self {
            collect: CollectRequestLayer::new(),
            extract: FinalImageExtractLayer::new(),
            fallback: ModelFallbackLayer::off(),
            resolution: ResolutionFallbackLayer::off(),
            retry: JitteredRetryLayer::recommended(),
            quota: QuotaGuardLayer::unlimited(),
            timeout: AttemptTimeoutLayer::new(),
            classify: ClassifyGeminiErrorLayer::new(),
        }
    }

    /// How requests are held.
    #[must_use]
    pub fn collect(mut self, layer: CollectRequestLayer) -> Self {
        self.collect = layer;
        self
    }

    /// How images are taken out.
    #[must_use]
    pub fn extract(mut self, layer: FinalImageExtractLayer) -> Self {
        self.extract = layer;
        self
    }

    /// Which other models are asked. Off by default: an image of another model is the caller's to
    /// want.
    #[must_use]
    pub fn fallback(mut self, layer: ModelFallbackLayer) -> Self {
        self.fallback = layer;
        self
    }

    /// Falls back along this chain.
    #[must_use]
    pub fn fallback_to(self, chain: Chain) -> Self {
        self.fallback(ModelFallbackLayer::new(chain))
    }

    /// Which smaller sizes are asked for. Off by default: a smaller image is the caller's to want.
    #[must_use]
    pub fn resolution(mut self, layer: ResolutionFallbackLayer) -> Self {
        self.resolution = layer;
        self
    }

    /// How calls are retried.
    #[must_use]
    pub fn retry(mut self, layer: JitteredRetryLayer) -> Self {
        self.retry = layer;
        self
    }

    /// How calls are retried, by this policy.
    #[must_use]
    pub fn retry_policy(self, policy: RetryPolicy) -> Self {
        self.retry(JitteredRetryLayer::new(policy))
    }

    /// How much may be sent. Without this nothing is counted and nothing waits.
    #[must_use]
    pub fn quota(mut self, layer: QuotaGuardLayer) -> Self {
        self.quota = layer;
        self
    }

    /// How long attempts may take.
    #[must_use]
    pub fn timeout(mut self, layer: AttemptTimeoutLayer) -> Self {
        self.timeout = layer;
        self
    }

    /// How answers are judged.
    #[must_use]
    pub fn classify(mut self, layer: ClassifyGeminiErrorLayer) -> Self {
        self.classify = layer;
        self
    }

    /// A service that answers with the final image.
    #[must_use]
    pub fn images<S>(&self, client: S) -> Images<S> {
        self.collect.layer(self.extract.layer(self.judged(client)))
    }

    /// A service that answers with the API's JSON without the drafts. Answers with an error status
    /// pass unchanged.
    #[must_use]
    pub fn json<S>(&self, client: S) -> Json<S> {
        self.collect.layer(FinalImageExtractLayer::json().layer(self.judged(client)))
    }

    /// A service that answers with the API's own answer, byte for byte, and a verdict beside it.
    #[must_use]
    pub fn raw<S>(&self, client: S) -> Raw<S> {
        self.collect.layer(self.judged(client))
    }

    /// The middle of the stack, from the fallbacks down to the client: for stacks that put layers
    /// of their own between it and [`CollectRequest`].
    #[must_use]
    pub fn judged<S>(&self, client: S) -> Judged<S> {
        let attempt = self.quota.layer(self.timeout.layer(self.classify.layer(client)));
        self.fallback.layer(self.resolution.layer(self.retry.layer(attempt)))
    }
}

impl Default for GeminiStack {
    fn default() -> Self {
        Self::new()
    }
}
