//! Names the dialects in which requests are asked and answered.

/// The API that a path belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    Developer,
    Vertex,
    OpenAiChat,
    OpenAiImages,
    Interactions,
}

/// How an answer is divided: one object, server-sent events, or an array of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Whole,
    Sse,
    Array,
}

/// What a request wants to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Generate,
    Count,
    Predict,
    Other,
}
