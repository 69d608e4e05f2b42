use tower_layer::Layer;

use super::{FinalImageExtract, FinalImageJsonLayer};
use crate::stage::CallService;

/// Makes [`FinalImageExtract`] services.
#[derive(Debug, Clone, Copy)]
pub struct FinalImageExtractLayer {
    pub(super) max_image_bytes: u64,
    pub(super) keep_signature: bool,
}

impl FinalImageExtractLayer {
    /// The defaults of the [module](super).
    #[must_use]
    pub fn new() -> Self {
        Self { max_image_bytes: 64 * 1024 * 1024, keep_signature: true }
    }

    /// The largest image that is taken into memory; a larger one is an error.
    #[must_use]
    pub fn max_image_bytes(mut self, bytes: u64) -> Self {
        self.max_image_bytes = bytes;
        self
    }

    /// Whether to keep the thought signature, 1 to 3 MB of it, for a further turn.
    #[must_use]
    pub fn keep_signature(mut self, keep: bool) -> Self {
        self.keep_signature = keep;
        self
    }

    /// The same JSON without the drafts, in place of the image: for callers that read the API's
    /// response themselves.
    #[must_use]
    pub fn json() -> FinalImageJsonLayer {
        FinalImageJsonLayer::new()
    }
}

impl Default for FinalImageExtractLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: CallService> Layer<S> for FinalImageExtractLayer {
    type Service = FinalImageExtract<S>;

    fn layer(&self, inner: S) -> Self::Service {
        FinalImageExtract::new(inner, *self)
    }
}
