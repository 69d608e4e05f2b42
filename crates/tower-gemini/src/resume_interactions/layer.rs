use tower_layer::Layer;

use super::ResumeInteractions;
use crate::stage::WireClient;

/// Makes [`ResumeInteractions`] services.
#[derive(Debug, Clone, Copy)]
pub struct ResumeInteractionsLayer {
    /// `None` where it is off.
    pub(super) max_held_bytes: Option<usize>,
}

impl ResumeInteractionsLayer {
    /// Creates a layer with the defaults of the [module](super).
    #[must_use]
    pub fn new() -> Self {
        Self { max_held_bytes: Some(64 << 20) }
    }

    /// Fetches nothing: an interaction whose response breaks off fails as any other call.
    #[must_use]
    pub fn off() -> Self {
        Self { max_held_bytes: None }
    }

    /// Sets how much of a whole response, or of one event of a stream, is held. What is longer is
    /// passed on as it comes, and cannot be resumed.
    #[must_use]
    pub fn max_held_bytes(mut self, bytes: usize) -> Self {
        self.max_held_bytes = Some(bytes);
        self
    }
}

impl Default for ResumeInteractionsLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: WireClient> Layer<S> for ResumeInteractionsLayer {
    type Service = ResumeInteractions<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ResumeInteractions::new(inner, *self)
    }
}
