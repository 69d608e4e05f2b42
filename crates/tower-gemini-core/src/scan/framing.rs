//! How the JSON of a response is cut into pieces.

/// How a response is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Framing {
    /// One JSON value.
    Whole,
    /// Server-sent events (`alt=sse`, OpenAI-style and Interactions streams).
    Sse,
    /// One JSON array whose elements are the chunks (`streamGenerateContent` without `alt=sse`).
    JsonArray,
}
