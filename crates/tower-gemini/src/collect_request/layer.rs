use tower_layer::Layer;

use super::CollectRequest;
use crate::stage::CallHandler;

/// Makes [`CollectRequest`] services.
#[derive(Debug, Clone, Copy)]
pub struct CollectRequestLayer {
    max_held_bytes: usize,
}

impl CollectRequestLayer {
    /// Holds up to 110 MiB of a request.
    #[must_use]
    pub fn new() -> Self {
        Self { max_held_bytes: 110 * 1024 * 1024 }
    }

    /// Holds up to this many bytes; what is longer is sent once.
    #[must_use]
    pub fn max_held_bytes(mut self, bytes: usize) -> Self {
        self.max_held_bytes = bytes;
        self
    }
}

impl Default for CollectRequestLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: CallHandler> Layer<S> for CollectRequestLayer {
    type Service = CollectRequest<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CollectRequest { inner, max_held_bytes: self.max_held_bytes }
    }
}
