use std::fmt;

use http::Extensions;
use reqwest_middleware::{Middleware, Next, Result};
use tower_gemini::GeminiStack;

use crate::leaf::ChannelLeaf;
use crate::middleware::StackMiddleware;

/// The recommended stack as one middleware. See the [crate](crate) for an example.
///
/// Responses are the API's own, byte for byte, or its [JSON without the drafts](Self::json). When
/// attempts run out, the last response comes back with its status and its body.
pub struct GeminiMiddleware {
    stack: GeminiStack,
    leaf: ChannelLeaf,
    is_json: bool,
    middleware: Box<dyn Middleware>,
}

impl GeminiMiddleware {
    /// The recommended stack with its defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::with(GeminiStack::new())
    }

    /// This stack. One with layers of your own, or with `Observe`, goes into a
    /// [`StackMiddleware`]: `StackMiddleware::new(stack.raw(ChannelLeaf::new()))`.
    #[must_use]
    pub fn with(stack: GeminiStack) -> Self {
        Self::build(stack, ChannelLeaf::new(), false)
    }

    /// Removes the drafts from responses: every image but the final one is cut out of the JSON, and
    /// nothing else is touched.
    #[must_use]
    pub fn json(self) -> Self {
        Self::build(self.stack, self.leaf, true)
    }

    /// Resumes streams of interactions that break off, through this client:
    /// [`ChannelLeaf::resuming_with`]. Without it they end with an error that has the id.
    #[must_use]
    pub fn resume_streams_with(self, client: reqwest::Client) -> Self {
        Self::build(self.stack, ChannelLeaf::resuming_with(client), self.is_json)
    }

    fn build(stack: GeminiStack, leaf: ChannelLeaf, is_json: bool) -> Self {
        let middleware: Box<dyn Middleware> = match is_json {
            true => Box::new(StackMiddleware::new(stack.json(leaf.clone()))),
            false => Box::new(StackMiddleware::new(stack.raw(leaf.clone()))),
        };
        Self { stack, leaf, is_json, middleware }
    }
}

impl Default for GeminiMiddleware {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for GeminiMiddleware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GeminiMiddleware").field("stack", &self.stack).finish_non_exhaustive()
    }
}

#[async_trait::async_trait]
impl Middleware for GeminiMiddleware {
    async fn handle(
        &self,
        request: reqwest::Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<reqwest::Response> {
        self.middleware.handle(request, extensions, next).await
    }
}
