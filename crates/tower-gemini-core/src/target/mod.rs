//! Targets that a call may be sent to instead (another model, size or upstream), and the rewriting
//! of requests for them.
//!
//! A [`Target`] is a model, perhaps with a cap on the size and an [`Upstream`] of its own. A
//! request can be [rewritten](rewrite) for it: the model in the path or in the body, the options
//! that the new model spells otherwise or lacks. Only the bytes that change are written anew;
//! twenty megabytes of reference images are shared. Each difference is reported as a
//! [`Degradation`], and a request without one is equal byte for byte.
//!
//! ```
//! use std::sync::Arc;
//! use http::{HeaderMap, Method, Request};
//! use tower_gemini_core::call::Call;
//! use tower_gemini_core::catalog::Catalog;
//! use tower_gemini_core::target::{Rules, Target, rewrite};
//!
//! let uri = "/v1beta/models/gemini-3-pro-image:generateContent".parse().unwrap();
//! let json = r#"{"contents":[{"parts":[{"text":"a cat"}]}],"generationConfig":{"imageConfig":{"imageSize":"4K"}}}"#;
//! let call = Arc::new(Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(json.as_bytes())));
//! let (mut parts, ()) = Request::post(uri).body(()).unwrap().into_parts();
//!
//! let flash = Target::new("gemini-2.5-flash-image");
//! let rules = Rules::new(Catalog::builtin());
//! let rewrite = rewrite(&parts, &call, &flash, &rules, || json.into()).unwrap();
//! let given_up: Vec<_> = rewrite.given_up().iter().map(ToString::to_string).collect();
//! assert_eq!(given_up, ["model gemini-3-pro-image → gemini-2.5-flash-image", "size 4K dropped"]);
//! rewrite.apply_to_head(&mut parts);
//! assert_eq!(parts.uri, "/v1beta/models/gemini-2.5-flash-image:generateContent");
//! let (bytes, _) = rewrite.into_body();
//! assert_eq!(bytes.unwrap().concat(), br#"{"contents":[{"parts":[{"text":"a cat"}]}],"generationConfig":{"imageConfig":{}}}"#);
//! ```

mod body;
mod degradation;
mod rewrite;
#[cfg(test)]
mod tests;
mod upstream;

use std::fmt;
use std::sync::Arc;

pub use self::degradation::{Degradation, GivenUp, MustKeep, Signatures, Unfit};
pub use self::rewrite::{Rewrite, Rules, rewrite};
pub use self::upstream::{Upstream, UpstreamId, UpstreamKind};
use crate::call::{ImageSize, ModelId};

/// What a call may be sent to: a model, perhaps with a cap on the size and another upstream. O(1)
/// to clone.
///
/// ```
/// use tower_gemini_core::{call::ImageSize, target::Target};
///
/// let target = Target::new("gemini-3-pro-image").size_cap(ImageSize::K2).attempts(2);
/// assert_eq!(target.to_string(), "gemini-3-pro-image up to 2K");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    model: ModelId,
    size_cap: Option<ImageSize>,
    attempts: Option<u32>,
    must_keep: MustKeep,
    upstream: Option<Arc<Upstream>>,
}

impl Target {
    /// Creates a target for a model, at the upstream that the caller's request names.
    #[must_use]
    pub fn new(model: &str) -> Self {
        let (size_cap, attempts, upstream) = (None, None, None);
        let must_keep = MustKeep::nothing();
        Self { model: ModelId::new(model), size_cap, attempts, must_keep, upstream }
    }

    /// Caps the size: a call for a larger one is sent with this.
    #[must_use]
    pub fn size_cap(mut self, size: ImageSize) -> Self {
        self.size_cap = Some(size);
        self
    }

    /// Sets how many attempts it gets before the next target (at least 1).
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = Some(attempts.max(1));
        self
    }

    /// Uses it only for calls of which it keeps this, beside what the call itself has to keep.
    #[must_use]
    pub fn must_keep(mut self, must_keep: MustKeep) -> Self {
        self.must_keep = must_keep;
        self
    }

    /// Sends to another upstream.
    #[must_use]
    pub fn on(mut self, upstream: Upstream) -> Self {
        self.upstream = Some(Arc::new(upstream));
        self
    }

    /// Returns the same target with another model.
    #[must_use]
    pub fn with_model(&self, model: &str) -> Self {
        Self { model: ModelId::new(model), ..self.clone() }
    }

    /// Returns its model.
    #[must_use]
    pub fn model(&self) -> &ModelId {
        &self.model
    }

    /// Returns the cap on the size, where there is one.
    #[must_use]
    pub fn max_size(&self) -> Option<ImageSize> {
        self.size_cap
    }

    /// Returns how many attempts it gets, where that is set.
    #[must_use]
    pub fn max_attempts(&self) -> Option<u32> {
        self.attempts
    }

    /// Returns what it must keep of a call.
    #[must_use]
    pub fn keeps(&self) -> MustKeep {
        self.must_keep
    }

    /// Returns its own upstream, where it has one.
    #[must_use]
    pub fn upstream(&self) -> Option<&Upstream> {
        self.upstream.as_deref()
    }

    /// Returns the account that pays there; empty for the account of the caller's credentials.
    #[must_use]
    pub fn account(&self) -> &str {
        self.upstream.as_ref().map_or("", |upstream| upstream.account_name())
    }
}

impl fmt::Display for Target {
    /// `gemini-3-pro-image up to 2K on aiplatform.googleapis.com`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.model)?;
        if let Some(size) = self.size_cap {
            write!(f, " up to {size}")?;
        }
        match &self.upstream {
            Some(upstream) => write!(f, " on {}", upstream.host()),
            None => Ok(()),
        }
    }
}

/// Which target a response came from. It stands in the response's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Served {
    /// The model that the request named.
    pub model: Option<ModelId>,
    /// The size that the request named; `None` leaves it to the model (1K).
    pub size: Option<ImageSize>,
    /// What all layers together gave up.
    pub given_up: Vec<Degradation>,
}

impl Served {
    /// Creates it for a response of `model` at `size`.
    #[must_use]
    pub fn new(
        model: Option<ModelId>,
        size: Option<ImageSize>,
        given_up: Vec<Degradation>,
    ) -> Self {
        Self { model, size, given_up }
    }

    /// Whether the image may differ from the one asked for.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.given_up.iter().any(Degradation::is_loss)
    }
}
