//! What a request asks for, read from its path, headers and body.
//!
//! [`Call::parse`] never fails: a path it does not know gives an [`Dialect::Unrecognised`] call, which passes through untouched
//! and is still judged by its answer.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, Method, Uri};

/// Which API the request speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// `…/v1beta/models/{model}:generateContent` of the Gemini Developer API.
    GeminiApi,
    /// `…/projects/{p}/locations/{l}/publishers/google/models/{model}:generateContent`, and express mode without a project.
    VertexAi,
    /// `…/chat/completions`, the model in the body.
    OpenAiChat,
    /// `…/images/generations` and `…/images/edits`, the model in the body.
    OpenAiImages,
    /// `…/interactions`, the model in the body.
    Interactions,
    /// Anything else.
    Unrecognised,
}

/// What is asked of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verb {
    /// One answer, whole. Every dialect's plain form.
    Generate,
    /// `streamGenerateContent`, or `"stream": true` in the other dialects.
    StreamGenerate,
    /// `predict` and its relatives: Imagen's form.
    Predict,
    /// `predictLongRunning`, `batchGenerateContent`: answers with an operation, not with an image.
    Batch,
    /// `countTokens` and other verbs that make nothing.
    Count,
    /// Anything else.
    Other,
}

/// How a streamed answer is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Framing {
    /// One JSON value.
    Whole,
    /// Server-sent events (`alt=sse`, OpenAI-style and Interactions streams).
    Sse,
    /// One JSON array whose elements are the chunks (`streamGenerateContent` without `alt=sse`).
    JsonArray,
}

/// A size that Gemini's image models know, smallest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ImageSize {
    /// `"512"` (written without a K): 512 px class.
    Px512,
    /// `"1K"`: 1024 px class.
    K1,
    /// `"2K"`: 2048 px class.
    K2,
    /// `"4K"`: 4096 px class.
    K4,
}

impl ImageSize {
    /// Every size, smallest first.
    pub const ALL: [Self; 4] = [Self::Px512, Self::K1, Self::K2, Self::K4];

    /// The spelling of `imageConfig.imageSize`: upper-case K, and 512 without one.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Px512 => "512",
            Self::K1 => "1K",
            Self::K2 => "2K",
            Self::K4 => "4K",
        }
    }

    /// The nominal edge length in pixels of a square image.
    #[must_use]
    pub fn edge_px(self) -> u32 {
        match self {
            Self::Px512 => 512,
            Self::K1 => 1024,
            Self::K2 => 2048,
            Self::K4 => 4096,
        }
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A model's id as the request spells it, without `models/` or `publishers/google/models/` in front. O(1) to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId(Arc<str>);

impl ModelId {
    /// An id, any text: ids are data and never an enum (most of those in articles are retired).
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self(Arc::from(id))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a request asks for. Made once by the outermost layer and shared; made anew when a layer rewrites the request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Call {
    /// Which API it speaks.
    pub dialect: Dialect,
    /// What it asks of the model.
    pub verb: Verb,
    /// How the answer will be framed.
    pub framing: Framing,
    /// The model asked for; `None` where neither path nor body names one.
    pub model: Option<ModelId>,
    /// The API version in the path (`v1`, `v1beta`, `v1alpha`, `v1beta1`), opaque.
    pub version: Option<Box<str>>,
    /// The size asked for; `None` leaves it to the model (1K class).
    pub size: Option<ImageSize>,
    /// The aspect ratio asked for, as spelled (`16:9`).
    pub aspect: Option<Box<str>>,
    /// Whether an image is asked for. `true` for an image model or `responseModalities` with `IMAGE`; `false` where the request
    /// clearly wants none (counting, text modalities only).
    pub wants_image: bool,
    /// How many images are asked for (`sampleCount`, `n`, `candidateCount`); 1 unless said otherwise, 0 when none is wanted.
    pub images: u32,
    /// Whether earlier turns of the model are sent along.
    pub multi_turn: bool,
    /// Whether reference images come with the request.
    pub has_input_images: bool,
    /// A continuation of an earlier answer (`continuationToken`, `previous_interaction_id`): never shared, held or retried blindly.
    pub is_continuation: bool,
    /// Input tokens, estimated from the text (4 bytes a token) and the images (258 tokens each).
    pub input_tokens_estimate: u64,
}

impl Call {
    /// Reads a call from a request's method, URI, headers and, where it is at hand, whole body.
    ///
    /// Never fails and never panics: what cannot be read is left at its default, and an unknown path is
    /// [`Dialect::Unrecognised`].
    #[must_use]
    pub fn parse(_method: &Method, _uri: &Uri, _headers: &HeaderMap, _body: Option<&[u8]>) -> Self {
        Self::unrecognised()
    }

    /// A call of which nothing is known: it passes through and is judged by its answer alone.
    #[must_use]
    pub fn unrecognised() -> Self {
        Self {
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
            input_tokens_estimate: 0,
        }
    }

    /// Whether the answer comes in pieces.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.framing != Framing::Whole
    }
}
