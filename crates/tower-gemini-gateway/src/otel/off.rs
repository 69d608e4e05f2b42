//! Stands in for the export of spans in a build without the feature `otel`: the configuration has
//! no endpoint then, and trace context passes unchanged.

use http::{Extensions, Request};
use tower_gemini::CallOptions;
use tower_gemini::call::Call;
use tower_gemini::catalog::Catalog;

use crate::config::{self, ConfigError};
use crate::upstream::Upstream;

#[derive(Debug, Clone, Default)]
pub(crate) struct Otel;

impl Otel {
    pub(crate) fn build(
        config: &config::Otel,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        // There are none without an endpoint.
        config.headers(env).map(|_| Self)
    }

    pub(crate) fn mark(&self, _: &Call, _: (&Catalog, &[Upstream]), _: &mut Extensions) {}

    pub(crate) fn begin<B>(&self, _: &mut Request<B>, options: CallOptions) -> CallOptions {
        options
    }

    pub(crate) async fn finish(&self) {}
}

pub(crate) fn propagate<B>(request: Request<B>) -> Request<B> {
    request
}
