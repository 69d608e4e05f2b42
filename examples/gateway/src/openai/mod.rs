//! OpenAI-style requests as Gemini requests, and the answers back: pure, but for reading a form.
//!
//! | OpenAI | Gemini |
//! | --- | --- |
//! | `model` | the catalogue's id of it: `nano-banana-pro`, `google/…`, `models/…`, a size or ratio behind the name |
//! | `messages` of `system` and `developer` | `systemInstruction` |
//! | `messages` of `user` and `assistant`, text and `image_url` data URIs | `contents`; what an assistant drew goes back with its signature |
//! | `size` (`1024x1024`, `2K`), `aspect_ratio`, `image_config` | `imageConfig` |
//! | `quality`: `high` and `hd` where no size is asked for | `imageSize` 2K, where the model makes it |
//! | `temperature`, `top_p`, `max_tokens`, `max_completion_tokens`, `stop`, `seed`, the penalties | `generationConfig` |
//! | `modalities` | `responseModalities`; text and image unless said otherwise |
//! | `extra_body.google.generation_config` | merged into `generationConfig` as it is |
//! | `n` above 1, `mask`, `tools`, audio, files, images by URL | refused in words, before anything is sent |
//!
//! Back come the final image and no draft, as `message.images[]` (chat) or `data[].b64_json` (images), and `finish_reason` by the usual
//! words: `stop`, `length`, `content_filter`; Gemini's own stands beside it as `native_finish_reason`.

mod error;
mod reply;
mod request;
mod stream;

use bytes::Bytes;
use http::HeaderMap;
use serde_json::json;
use tower_gemini::core::catalog::Catalog;

pub use error::{OpenAiError, error_from_google};
pub use reply::Reply;
pub use stream::StreamTranslator;

/// Which of OpenAI's calls a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `…/chat/completions`
    Chat,
    /// `…/images/generations`
    Generations,
    /// `…/images/edits`
    Edits,
    /// `…/models` under `…/openai`
    Models,
}

/// A request in Gemini's words.
#[derive(Debug)]
pub struct Translated {
    /// Where it goes.
    pub path_and_query: String,
    /// What it says.
    pub body: Bytes,
    /// How its answer is told.
    pub reply: Reply,
}

/// Which call a path is, under any prefix.
#[must_use]
pub fn route(path: &str) -> Option<Kind> {
    let mut segments = path.trim_end_matches('/').rsplit('/');
    let (last, before) = (segments.next()?, segments.next()?);
    match (before, last) {
        ("chat", "completions") => Some(Kind::Chat),
        ("images", "generations") => Some(Kind::Generations),
        ("images", "edits") => Some(Kind::Edits),
        ("openai", "models") => Some(Kind::Models),
        // `/openai/v1/models`; a bare `/v1/models` is Google's own list too.
        (_, "models") if path.contains("/openai/") => Some(Kind::Models),
        _ => None,
    }
}

/// Translates a request.
///
/// # Errors
///
/// What cannot be said to Gemini, or is no request at all, in words. Nothing was sent.
pub async fn request(kind: Kind, headers: &HeaderMap, body: &Bytes) -> Result<Translated, OpenAiError> {
    request::translate(kind, headers, body).await
}

/// The catalogue's image models, as OpenAI lists models.
#[must_use]
pub fn models(created: u64) -> Bytes {
    let models: Vec<_> = Catalog::builtin()
        .models()
        .filter(|model| model.images)
        .map(|model| json!({ "id": model.id, "object": "model", "created": created, "owned_by": model.vendor }))
        .collect();
    Bytes::from(json!({ "object": "list", "data": models }).to_string())
}
