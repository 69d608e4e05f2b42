//! Names the dialects in which requests are asked and answered.

/// The API that a path belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Api {
    #[default]
    Developer,
    Vertex,
    OpenAiChat,
    OpenAiImages,
    Interactions,
}

/// How a response is divided: one object, server-sent events, or an array of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Framing {
    #[default]
    Whole,
    Sse,
    Array,
}

/// What is stored under ids of its own, other than interactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    Batches,
    Files,
    /// A file that is being sent, in parts.
    Uploads,
    Webhooks,
}

/// What a request wants to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Verb {
    Generate,
    Count,
    Predict,
    /// List the models.
    List,
    /// Fetch what was stored.
    Fetch,
    /// End what is stored and goes on.
    Cancel,
    /// Store something.
    Create,
    /// Forget what is stored.
    Delete,
    /// Fetch the bytes of a file.
    Download,
    #[default]
    Other,
}

pub(crate) const JSON: &str = "application/json; charset=UTF-8";
/// What `alt=sse` answers, errors included: a plain JSON error comes under this type too
/// (js-genai's recordings, 2025-08).
pub(crate) const SSE: &str = "text/event-stream";
