//! What a request asks for, read from its path, headers and body.
//!
//! [`Call::parse`] never fails: a path it does not know gives an [`Dialect::Unrecognised`] call,
//! which passes through untouched and is still judged by its response.
//!
//! ```
//! use http::{HeaderMap, Method, Uri};
//! use tower_gemini_core::call::{Call, Dialect, ImageSize};
//!
//! let uri = Uri::from_static("/gateway/v1beta/models/gemini-3-pro-image:generateContent");
//! let body = br#"{"contents": [{"parts": [{"text": "a red apple"}]}],
//!                 "generationConfig": {"imageConfig": {"imageSize": "4K", "aspect_ratio": "16:9"}}}"#;
//! let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(body));
//! assert_eq!(call.dialect, Dialect::GeminiApi);
//! assert_eq!(call.model.unwrap().as_str(), "gemini-3-pro-image");
//! assert_eq!(call.size, Some(ImageSize::K4));
//! assert_eq!(call.aspect.as_deref(), Some("16:9"));
//! assert!(call.wants_image);
//! ```

mod body;
mod conversation;
mod path;

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, Method, Uri};

use self::body::Body;
pub use self::conversation::{Conversation, ModelPart, PartKind};
use self::path::Route;
use crate::catalog::{Catalog, Thinking};
use crate::charge_rules::ChargeRules;
pub use crate::scan::Framing;
pub use crate::size::{
    ImageSize, parse_aspect, parse_size, split_model_suffix, strip_model_prefix,
};

/// Which API a request is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// `…/v1beta/models/{model}:generateContent` of the Gemini Developer API.
    GeminiApi,
    /// `…/projects/{p}/locations/{l}/publishers/google/models/{model}:generateContent`, and express
    /// mode without a project.
    VertexAi,
    /// `…/chat/completions`, the model in the body.
    OpenAiChat,
    /// `…/images/generations` and `…/images/edits`, the model in the body.
    OpenAiImages,
    /// `…/interactions`, the model in the body, and `GET …/interactions/{id}`.
    Interactions,
    /// Anything else.
    Unrecognised,
}

impl Dialect {
    /// Whether requests have Google's own shape: the model and the verb in the path.
    pub(crate) fn is_gemini_shaped(self) -> bool {
        matches!(self, Self::GeminiApi | Self::VertexAi)
    }
}

/// What is asked of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verb {
    /// One response, whole: every dialect's plain form.
    Generate,
    /// `streamGenerateContent`, or `"stream": true` in the other dialects.
    StreamGenerate,
    /// `predict` and its relatives: Imagen's form.
    Predict,
    /// `predictLongRunning`, `batchGenerateContent`: returns an operation, not an image.
    Batch,
    /// `embedContent` and its relatives: returns numbers, and is billed by the token.
    Embed,
    /// `countTokens`, which generates nothing.
    Count,
    /// Anything else.
    Other,
}

/// A model's id as the request spells it, without `models/` or `publishers/google/models/` in
/// front. O(1) to clone.
///
/// Ids that the builtin catalogue knows are shared with it: parsing a call to a known model
/// allocates nothing for it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelId(Arc<str>);

impl ModelId {
    /// Takes any text: ids are data and never an enum, because most ids of early 2026 are retired.
    #[must_use]
    pub fn new(id: &str) -> Self {
        let known = Catalog::builtin().interned(id);
        Self(known.map_or_else(|| Arc::from(id), |(known, _)| known.clone()))
    }

    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the model draws drafts that a response may hold unmarked: it thinks, by the builtin
    /// catalogue. A model that is not known is taken not to, so that no image of it is left out.
    ///
    /// ```
    /// use tower_gemini_core::call::ModelId;
    ///
    /// assert!(ModelId::new("gemini-3-pro-image").makes_drafts());
    /// assert!(!ModelId::new("gemini-2.5-flash-image").makes_drafts());
    /// assert!(!ModelId::new("not-known").makes_drafts());
    /// ```
    #[must_use]
    pub fn makes_drafts(&self) -> bool {
        let known = Catalog::builtin().interned(self.as_str());
        known.is_some_and(|(_, model)| model.thinking != Thinking::None)
    }
}

impl Borrow<str> for ModelId {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Debug for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which service tier a request asks for. It changes the price: flex costs half, priority up to
/// twice as much (Gemini API documentation, optimization and priority inference, 2026-08).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ServiceTier {
    /// The tier of the list prices.
    #[default]
    Standard,
    /// Half the price, first to be turned away.
    Flex,
    /// Up to twice the price; may be served as standard.
    Priority,
    /// Another, whose price no list names: Vertex AI's deferred inference, or throughput that is
    /// paid for beforehand.
    Other,
}

impl ServiceTier {
    /// How long a request of this tier may wait for its turn before it is served: flex "queues 1
    /// to 15 minutes" (Gemini API documentation, flex inference, 2026-08), the others not.
    #[must_use]
    pub fn queue_time(self) -> Duration {
        match self {
            Self::Flex => Duration::from_secs(15 * 60),
            _ => Duration::ZERO,
        }
    }

    /// Returns its name in logs: that of the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Flex => "flex",
            Self::Priority => "priority",
            Self::Other => "other",
        }
    }

    fn named(name: &str) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match () {
            () if is("flex") => Self::Flex,
            () if is("priority") => Self::Priority,
            () if is("deferred") => Self::Other,
            () => Self::Standard,
        }
    }

    /// Returns the tier that a response names: the word of a request, or Vertex AI's `trafficType`
    /// (`ON_DEMAND_FLEX`). `None` for an empty name.
    pub(crate) fn served(name: &str) -> Option<Self> {
        const STANDARD: [&str; 3] = ["standard", "default", "on_demand"];
        const UNSAID: [&str; 4] = ["", "auto", "unspecified", "traffic_type_unspecified"];
        let name = name.trim();
        let (_, word) = name
            .split_at_checked("on_demand_".len())
            .filter(|(front, _)| front.eq_ignore_ascii_case("on_demand_"))
            .unwrap_or(("", name));
        let is = |known: &&str| name.eq_ignore_ascii_case(known);
        match Self::named(word) {
            _ if UNSAID.iter().any(is) => None,
            Self::Standard if !STANDARD.iter().any(is) => Some(Self::Other),
            tier => Some(tier),
        }
    }
}

impl fmt::Display for ServiceTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a request asks for. It is read once and shared, and replaced when a layer rewrites the
/// request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Call {
    /// The request's method.
    pub method: Method,
    /// The API that it is written for.
    pub dialect: Dialect,
    /// What the model is to do.
    pub verb: Verb,
    /// How the response will be framed.
    pub framing: Framing,
    /// The model asked for; `None` where neither path nor body names one.
    pub model: Option<ModelId>,
    /// The API version in the path (`v1`, `v1beta`, `v1alpha`, `v1beta1`), opaque.
    pub version: Option<Cow<'static, str>>,
    /// The size asked for; `None` leaves it to the model (1K class).
    pub size: Option<ImageSize>,
    /// The aspect ratio asked for, as spelled (`16:9`).
    pub aspect: Option<Cow<'static, str>>,
    /// Whether an image is asked for. `true` for an image model or `responseModalities` with
    /// `IMAGE`; `false` where the request clearly wants none (counting, text modalities only).
    pub wants_image: bool,
    /// How many images are asked for (`sampleCount`, `n`, `candidateCount`); 1 unless said
    /// otherwise (Imagen's own default is 4: Vertex AI documentation, Imagen API, `sampleCount`), 0
    /// when none is wanted.
    pub images: u32,
    /// Whether earlier turns of the model are sent along.
    pub multi_turn: bool,
    /// Whether reference images come with the request.
    pub has_input_images: bool,
    /// Whether it continues an earlier response (`continuationToken`, `previous_interaction_id`):
    /// never shared, held or retried blindly.
    pub is_continuation: bool,
    /// Whether files other than images (audio, video, documents) come with the request: the
    /// estimate below knows nothing of them.
    pub has_other_files: bool,
    /// The service tier asked for, in the body or in Vertex AI's header.
    pub tier: ServiceTier,
    /// What the upstream charges for where its response does not say: by the host of the URI,
    /// [`unknown`](ChargeRules::unknown) without one.
    pub charge_rules: ChargeRules,
    /// Input tokens, estimated from the text (4 bytes a token) and the images (258 tokens each):
    /// Gemini API documentation, "Understand and count tokens", 2026-07 (about 4 characters a
    /// token; 258 for an image of up to 384 pixels, and for each tile of a larger one). An estimate
    /// for admission and display, never for a bill: only `usageMetadata` counts tokens.
    pub input_tokens_estimate: u64,
}

impl Call {
    /// Reads a call from a request's method, URI, headers and, where it is at hand, whole body.
    ///
    /// Never fails and never panics: what cannot be read is left at its default, and an unknown
    /// path is [`Dialect::Unrecognised`].
    #[must_use]
    pub fn parse(method: &Method, uri: &Uri, headers: &HeaderMap, body: Option<&[u8]>) -> Self {
        let unrecognised = || Self { method: method.clone(), ..Self::unrecognised() };
        let path = path::normalised(uri.path());
        // Listing models, polling operations: nothing that makes an image is a GET.
        if *method != Method::POST {
            let is_fetch = *method == Method::GET && path::names_interaction(&path);
            let dialect = if is_fetch { Dialect::Interactions } else { Dialect::Unrecognised };
            let streams = is_fetch && uri.query().is_some_and(path::wants_stream);
            let framing = if streams { Framing::Sse } else { Framing::Whole };
            return Self { dialect, framing, ..unrecognised() };
        }
        let route = Route::parse(&path, uri.query());
        if route.dialect == Dialect::Unrecognised {
            return unrecognised();
        }
        let mut seen = read_body(headers, body);
        let name = route.model.or(seen.model.as_deref()).map(strip_model_prefix);
        let name = name.filter(|name| !name.is_empty());
        let known = name.and_then(|name| Catalog::builtin().interned(name));
        let (mut verb, mut framing) = (route.verb, route.framing);
        let model_in_body = !route.dialect.is_gemini_shaped();
        if model_in_body && seen.stream {
            (verb, framing) = (Verb::StreamGenerate, Framing::Sse);
        }
        let makes_images =
            known.map_or(name.is_some_and(names_an_image_model), |(_, known)| known.images);
        let wants_image = match verb {
            Verb::Generate | Verb::StreamGenerate => seen.modalities.unwrap_or(
                makes_images || seen.image_format || route.dialect == Dialect::OpenAiImages,
            ),
            Verb::Predict => makes_images,
            // The response is an operation, or no image.
            Verb::Batch | Verb::Embed | Verb::Count | Verb::Other => false,
        };
        let count = match verb {
            Verb::Predict => {
                // Imagen's own default (Vertex AI documentation, Imagen API, `sampleCount`).
                seen.sample_count.or_else(|| name.is_some_and(is_imagen).then_some(4))
            }
            _ => seen.n.filter(|_| model_in_body).or(seen.candidate_count),
        };
        let (_, size_in_name, ratio_in_name) =
            name.filter(|_| wants_image).map_or(("", None, None), split_model_suffix);
        let image_tokens = seen.input_images.saturating_mul(TOKENS_PER_IMAGE);
        Self {
            method: Method::POST,
            dialect: route.dialect,
            verb,
            framing,
            model: name.map(|name| {
                known.map_or_else(|| ModelId::new(name), |(id, _)| ModelId(id.clone()))
            }),
            version: route.version.map(version),
            size: seen.size.or(size_in_name),
            aspect: seen.aspect().or(ratio_in_name.map(Cow::Borrowed)),
            wants_image,
            images: if wants_image { count.unwrap_or(1).max(1) } else { 0 },
            multi_turn: seen.multi_turn,
            has_input_images: seen.input_images > 0,
            is_continuation: seen.continuation,
            has_other_files: seen.other_files,
            tier: tier_of_headers(headers).unwrap_or(seen.tier),
            charge_rules: uri.host().map_or_else(ChargeRules::unknown, ChargeRules::for_host),
            input_tokens_estimate: seen
                .text_bytes
                .div_ceil(BYTES_PER_TOKEN)
                .saturating_add(image_tokens),
        }
    }

    /// Returns a `POST` of which nothing is known: it passes through and is judged by its
    /// response alone.
    #[must_use]
    pub fn unrecognised() -> Self {
        Self {
            method: Method::POST,
            dialect: Dialect::Unrecognised,
            verb: Verb::Other,
            framing: Framing::Whole,
            model: None,
            version: None,
            size: None,
            aspect: None,
            wants_image: false,
            images: 0,
            multi_turn: false,
            has_input_images: false,
            is_continuation: false,
            has_other_files: false,
            tier: ServiceTier::Standard,
            charge_rules: ChargeRules::unknown(),
            input_tokens_estimate: 0,
        }
    }

    /// Whether a response may hold drafts that are not marked:
    /// [`ModelId::makes_drafts`] of its model.
    #[must_use]
    pub fn makes_drafts(&self) -> bool {
        self.model.as_ref().is_some_and(ModelId::makes_drafts)
    }

    /// Whether the response comes in pieces.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.framing != Framing::Whole
    }

    /// Whether a response to this call can be charged; `None` where that is not known, because the
    /// dialect or the verb is not recognised.
    ///
    /// | call | can be charged |
    /// | --- | --- |
    /// | `generateContent`, `predict`, batches, embeddings, interactions, OpenAI-style generations | yes |
    /// | `countTokens` (free: Gemini API documentation, pricing, 2026-10) | no |
    /// | `GET`, `HEAD`, `OPTIONS`, `TRACE`, `DELETE`: listings, polling, removal | no |
    /// | any other verb, path or method | not known |
    ///
    /// ```
    /// use http::{HeaderMap, Method, Uri};
    /// use tower_gemini_core::call::Call;
    ///
    /// let call = |method, path| Call::parse(&method, &Uri::from_static(path), &HeaderMap::new(), None);
    /// let count = call(Method::POST, "/v1beta/models/gemini-3-pro-image:countTokens");
    /// assert_eq!(count.can_be_charged(), Some(false));
    /// assert_eq!(call(Method::GET, "/v1beta/files").can_be_charged(), Some(false));
    /// assert_eq!(call(Method::POST, "/v1/orders").can_be_charged(), None);
    /// ```
    #[must_use]
    pub fn can_be_charged(&self) -> Option<bool> {
        if self.method.is_safe() || self.method == Method::DELETE {
            return Some(false);
        }
        match (self.dialect, self.verb) {
            (Dialect::Unrecognised, _) | (_, Verb::Other) => None,
            (_, Verb::Count) => Some(false),
            _ => Some(true),
        }
    }

    /// Whether the call asks a model to generate something: not to count, list or poll.
    #[must_use]
    pub fn generates(&self) -> bool {
        matches!(self.verb, Verb::Generate | Verb::StreamGenerate | Verb::Predict)
    }

    /// Whether it fetches an interaction that was started before, by its id: `GET …/interactions/{id}`.
    /// The response is judged as that of the call that started it, and is never charged again.
    ///
    /// ```
    /// use http::{HeaderMap, Method, Uri};
    /// use tower_gemini_core::call::Call;
    ///
    /// let uri = Uri::from_static("/v1beta/interactions/v1_abc");
    /// let call = Call::parse(&Method::GET, &uri, &HeaderMap::new(), None);
    /// assert!(call.fetches_interaction() && !call.generates());
    /// assert_eq!(call.can_be_charged(), Some(false));
    /// ```
    #[must_use]
    pub fn fetches_interaction(&self) -> bool {
        self.dialect == Dialect::Interactions && self.method == Method::GET
    }

    /// Whether repeating the request does no more than sending it once: `GET`, `HEAD`, `OPTIONS`,
    /// `TRACE`, `PUT` and `DELETE` (RFC 9110, section 9.2.2). No call that generates is, because
    /// each response is drawn and charged anew.
    ///
    /// ```
    /// use http::{HeaderMap, Method, Uri};
    /// use tower_gemini_core::call::Call;
    ///
    /// let list = Call::parse(&Method::GET, &Uri::from_static("/v1beta/models"), &HeaderMap::new(), None);
    /// assert!(list.is_idempotent() && !Call::unrecognised().is_idempotent());
    /// ```
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        self.method.is_idempotent()
    }
}

/// Gemini API documentation, "Understand and count tokens", 2026-07: a token is about 4 characters.
const BYTES_PER_TOKEN: u64 = 4;
/// The same page: an image of up to 384 pixels a side, or one tile of a larger one.
const TOKENS_PER_IMAGE: u64 = 258;

fn read_body<'a>(headers: &HeaderMap, body: Option<&'a [u8]>) -> Body<'a> {
    let Some(bytes) = body.filter(|_| !is_encoded(headers)) else { return Body::default() };
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    match kind.and_then(body::form_boundary) {
        Some(boundary) => Body::from_form(bytes, boundary),
        None => Body::from_json(bytes),
    }
}

/// Whether a body with these headers is compressed.
pub(crate) fn is_encoded(headers: &HeaderMap) -> bool {
    let encoding = headers.get(CONTENT_ENCODING);
    encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// What Vertex AI calls the service tier of pay-as-you-go requests (Vertex AI documentation,
/// priority and flex `PayGo`, 2026-07).
fn tier_of_headers(headers: &HeaderMap) -> Option<ServiceTier> {
    const NAME: HeaderName = HeaderName::from_static("x-vertex-ai-llm-shared-request-type");
    let named = headers.get(NAME)?.to_str().ok()?;
    Some(ServiceTier::named(named.trim()))
}

/// Versions seen in the wild are borrowed, others copied.
fn version(word: &str) -> Cow<'static, str> {
    let known = ["v1", "v1beta", "v1beta1", "v1alpha"].into_iter().find(|known| *known == word);
    known.map_or_else(|| Cow::Owned(word.to_owned()), Cow::Borrowed)
}

/// Whether a model that the catalogue does not know makes images: a name with one of the family
/// words in it is taken at its word, as new models appear faster than catalogues.
fn names_an_image_model(name: &str) -> bool {
    // `imagen` holds `image`.
    ["image", "nano-banana", "nanobanana"]
        .iter()
        .any(|word| contains_ignoring_case(name, word.as_bytes()))
}

fn is_imagen(name: &str) -> bool {
    contains_ignoring_case(name, b"imagen")
}

fn contains_ignoring_case(name: &str, word: &[u8]) -> bool {
    name.as_bytes().windows(word.len()).any(|window| window.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests;
