//! Single calls to an upstream, judged as the gateway judges its own: a free one that shows the
//! key, and one image.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Full};
use jiff::fmt::rfc2822::DateTimeParser;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::ServiceExt as _;
use tower_gemini::call::{Call, ImageSize};
use tower_gemini::catalog::{Catalog, Model};
use tower_gemini::cost::{Cost, ServedBy, expected, worst_case};
use tower_gemini::scan::Usage;
use tower_gemini::verdict::Verdict;
use tower_gemini::{
    AttemptTimeoutLayer, ClassifyGeminiErrorLayer, CollectRequestLayer, SingleAttemptLayer, compose,
};

use crate::config::{ConfigError, Upstream, UpstreamKind};
use crate::outbound::innermost;
use crate::today::current_models;
use crate::{outbound, wire};

/// How much of a response is kept: a list of all models is below 100 kB.
const KEPT_BYTES: usize = 1024 * 1024;

/// An upstream that is called.
pub(super) struct Caller<'a> {
    upstream: &'a Upstream,
    /// The models, with those of `catalog.file`.
    pub(super) catalog: &'a Catalog,
    base: Uri,
    key: Option<HeaderValue>,
    connect: Duration,
}

/// What came of a call.
pub(super) struct Called {
    pub(super) verdict: Verdict,
    pub(super) usage: Option<Usage>,
    /// Which model and tier it was served by.
    pub(super) served: ServedBy,
    /// How far this machine's clock is ahead of the upstream's, in seconds; negative where it is
    /// behind. `None` without a Date header.
    pub(super) ahead: Option<i64>,
    /// Why there is no complete response.
    pub(super) failure: Option<String>,
    pub(super) took: Duration,
    body: Vec<u8>,
}

impl<'a> Caller<'a> {
    pub(super) fn new(
        upstream: &'a Upstream,
        catalog: &'a Catalog,
        key: Option<HeaderValue>,
        connect: Duration,
    ) -> Self {
        Self { upstream, catalog, base: upstream.base_url(), key, connect }
    }

    pub(super) fn name(&self) -> &str {
        &self.upstream.name
    }

    /// A call that is free and needs the key.
    pub(super) fn free_call(&self) -> Option<Request<Full<Bytes>>> {
        match self.upstream.kind {
            // Keys of express mode may count tokens; whether they may list models is not
            // documented.
            UpstreamKind::Vertex => {
                let model = &current_models(self.catalog).next()?.id;
                let body = json!({ "contents": [{ "role": "user", "parts": [{ "text": "hi" }] }] });
                self.request(Method::POST, &self.path(model, "countTokens"), body.to_string())
            }
            UpstreamKind::OpenAi => self.request(Method::GET, "/models", String::new()),
            _ => self.request(Method::GET, "/v1beta/models?pageSize=1000", String::new()),
        }
    }

    /// Whether it makes images by Gemini's API.
    pub(super) fn speaks_gemini(&self) -> bool {
        self.upstream.kind != UpstreamKind::OpenAi
    }

    /// Below the base, for the platform of the upstream.
    fn path(&self, model: &str, verb: &str) -> String {
        match (self.upstream.kind.is_vertex(), &self.upstream.project) {
            (false, _) => format!("/v1beta/models/{model}:{verb}"),
            (true, None) => format!("/v1/publishers/google/models/{model}:{verb}"),
            (true, Some(project)) => format!(
                "/v1/projects/{project}/locations/global/publishers/google/models/{model}:{verb}"
            ),
        }
    }

    fn request(&self, method: Method, path: &str, body: String) -> Option<Request<Full<Bytes>>> {
        let uri = wire::upstream_uri(&self.base, path)?;
        let mut request = Request::new(Full::from(body));
        (*request.method_mut(), *request.uri_mut()) = (method, uri);
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some((name, key)) = self.key.clone().and_then(|key| self.upstream.kind.signed(key)) {
            headers.insert(name, key);
        }
        Some(request)
    }

    /// Sends a request once. `within` is for the whole response.
    ///
    /// # Errors
    ///
    /// Where no client can be built by the configuration.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        within: Duration,
    ) -> Result<Called, ConfigError> {
        let host = self.base.host().unwrap_or_default();
        let rules = self.upstream.charge_rules();
        let layers = (
            CollectRequestLayer::new(),
            SingleAttemptLayer::new(),
            AttemptTimeoutLayer::new().limit(within),
            ClassifyGeminiErrorLayer::new().charge_rules(host, rules),
        );
        let stack = compose(layers, outbound::client(self.upstream, self.connect)?);
        let started = Instant::now();
        let response = match stack.oneshot(request).await {
            Ok(response) => response,
            Err(error) => {
                return Ok(Called {
                    verdict: error.verdict().clone(),
                    usage: None,
                    served: ServedBy::new(),
                    ahead: None,
                    failure: Some(reason(&error)),
                    took: started.elapsed(),
                    body: Vec::new(),
                });
            }
        };
        let (head, mut body) = response.into_parts();
        let ahead = ahead(&head.headers);
        let (mut kept, mut failed) = (Vec::new(), None);
        while let Some(frame) = body.frame().await {
            match frame.map(http_body::Frame::into_data) {
                Ok(Ok(data)) if kept.len() < KEPT_BYTES => kept.extend_from_slice(&data),
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
        }
        let verdict = failed.as_ref().map_or_else(|| body.verdict(), |error| error.verdict());
        Ok(Called {
            verdict: verdict.clone(),
            usage: body.usage().cloned(),
            served: body.served_by().clone(),
            ahead,
            failure: failed.as_ref().map(|error| reason(error)),
            took: started.elapsed(),
            body: kept,
        })
    }
}

/// An error with the cause below all others.
fn reason(error: &(dyn StdError + 'static)) -> String {
    match (error.to_string(), innermost(error)) {
        (text, cause) if text.contains(&cause) => text,
        (text, cause) => format!("{text}: {cause}"),
    }
}

/// Reads the Date header (RFC 9110, 6.6.1: whole seconds).
fn ahead(headers: &HeaderMap) -> Option<i64> {
    let date = DateTimeParser::new().parse_timestamp(headers.get(header::DATE)?).ok()?;
    let now = i64::try_from(wire::now_unix()).ok()?;
    Some(now.saturating_sub(date.as_second()))
}

impl Called {
    /// The ids of the models that a list names; empty where it is none.
    pub(super) fn models(&self) -> BTreeSet<String> {
        let list: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let models = list["models"].as_array().map(Vec::as_slice).unwrap_or_default();
        let names = models.iter().filter_map(|model| model["name"].as_str());
        names.map(|name| name.trim_start_matches("models/").to_owned()).collect()
    }
}

/// The image that shows whether images come.
pub(super) struct Canary<'a> {
    pub(super) model: &'a str,
    catalog: &'a Catalog,
    pub(super) size: ImageSize,
    pub(super) request: Request<Full<Bytes>>,
    pub(super) call: Call,
}

impl<'a> Canary<'a> {
    /// The cheapest image at 1K or below, of the models that are listed: where none of the list is
    /// known, a relay may name them otherwise, and all count.
    pub(super) fn cheapest(caller: &Caller<'a>, listed: &BTreeSet<String>) -> Option<Self> {
        let is_listed = |model: &&Model| listed.contains(&model.id);
        let any_listed = current_models(caller.catalog).any(|model| is_listed(&model));
        let models = current_models(caller.catalog).filter(|model| !any_listed || is_listed(model));
        let sizes = models.flat_map(|model| {
            let small = model.sizes.iter().filter(|size| **size <= ImageSize::K1);
            small.filter_map(move |size| Self::new(caller, model, *size))
        });
        sizes.min_by_key(|canary| canary.expected().at_most_microusd.unwrap_or(u64::MAX))
    }

    fn new(caller: &Caller<'a>, model: &'a Model, size: ImageSize) -> Option<Self> {
        let mut config = json!({ "responseModalities": ["IMAGE"] });
        if model.accepts_image_size {
            config["imageConfig"] = json!({ "imageSize": size.as_str() });
        }
        let parts = json!([{ "text": "a red apple on a white background" }]);
        let contents = json!([{ "role": "user", "parts": parts }]);
        let body = json!({ "contents": contents, "generationConfig": config }).to_string();
        let path = caller.path(&model.id, "generateContent");
        let call_body = Some(body.as_bytes());
        let uri = wire::upstream_uri(&caller.base, &path)?;
        let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), call_body);
        let request = caller.request(Method::POST, &path, body)?;
        Some(Self { model: &model.id, catalog: caller.catalog, size, request, call })
    }

    pub(super) fn expected(&self) -> Cost {
        expected(self.catalog, &self.call)
    }

    pub(super) fn worst_case(&self) -> Cost {
        worst_case(self.catalog, &self.call, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn canary(listed: &[&str]) -> String {
        canary_of(&Config::default(), listed)
    }

    fn canary_of(config: &Config, listed: &[&str]) -> String {
        let catalog = config.read_catalog().unwrap();
        let caller = Caller::new(&config.upstream[0], &catalog, None, Duration::from_secs(1));
        let listed = listed.iter().map(|id| (*id).to_owned()).collect();
        let canary = Canary::cheapest(&caller, &listed).unwrap();
        format!("{} {} {}", canary.model, canary.size, canary.expected())
    }

    #[test]
    fn the_canary_is_the_cheapest_image_of_the_models_that_the_key_may_use() {
        assert!(canary(&[]).starts_with("gemini-3.1-flash-lite-image 1K $0.03"), "{}", canary(&[]));
        let pro = ["gemini-3-pro-image", "gemini-2.5-pro"];
        assert!(canary(&pro).starts_with("gemini-3-pro-image 1K $0.14"), "{}", canary(&pro));
        assert_eq!(canary(&["somebody-elses"]), canary(&[]));
    }

    #[test]
    fn the_canary_is_priced_by_the_configurations_catalogue() {
        let dir = std::env::temp_dir().join(format!("doctor-catalog-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let models = "[[model]]\nid = \"gemini-9-image\"\nfamily = \"flash\"\nimages = true\n\
                      sizes = [\"1K\"]\ntokens_per_image = { \"1K\" = 1000 }\n[[model.price]]\n\
                      platform = \"gemini-api\"\nper_image_microusd = { \"1K\" = 1000 }\n\
                      input_microusd_per_mtok = 1000\ntext_output_microusd_per_mtok = 1000\n\
                      image_output_microusd_per_mtok = 1000000\nsource = \"a test\"\n\
                      as_of = \"2026-11-30\"\n";
        std::fs::write(dir.join("models.toml"), models).unwrap();
        let file = format!("[catalog]\nfile = {:?}\n", dir.join("models.toml"));
        let config = Config::parse(&file, "gateway.toml").unwrap();
        let found = canary_of(&config, &[]);
        assert!(found.starts_with("gemini-9-image 1K $0.001"), "{found}");
        std::fs::remove_dir_all(dir).unwrap();
    }

    // It was asked for Google's list with Google's header, and a working key was reported as wrong.
    #[test]
    fn another_vendor_is_asked_for_its_own_list_of_models_with_a_bearer_key() {
        let file = "[[upstream]]\nname = \"google\"\nkind = \"gemini\"\napi_key_env = \"G\"\n\
                    [[upstream]]\nname = \"vendor\"\nkind = \"openai\"\napi_key_env = \"V\"\n\
                    base_url = \"https://vendor.example/v1\"\n\
                    [auth]\nmode = \"tokens\"\ntokens_env = \"T\"\n\
                    [[fallback.target]]\nmodel = \"gemini-3-pro-image\"\nupstream = \"vendor\"\n";
        let config = Config::parse(file, "gateway.toml").unwrap();
        let key = Some(HeaderValue::from_static("a-key"));
        let catalog = Catalog::builtin();
        let caller = Caller::new(&config.upstream[1], catalog, key, Duration::from_secs(1));
        let request = caller.free_call().unwrap();
        assert_eq!(request.uri(), "https://vendor.example/v1/models");
        assert_eq!(request.headers()[header::AUTHORIZATION], "Bearer a-key");
        assert!(!caller.speaks_gemini());
    }

    #[test]
    fn the_clock_is_compared_with_the_date_header_in_seconds() {
        let mut headers = HeaderMap::new();
        assert_eq!(ahead(&headers), None);
        headers.insert(header::DATE, HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT"));
        let drift = ahead(&headers).unwrap();
        assert_eq!(drift, wire::now_unix() as i64 - 784_111_777);
        headers.insert(header::DATE, HeaderValue::from_static("yesterday"));
        assert_eq!(ahead(&headers), None);
    }
}
