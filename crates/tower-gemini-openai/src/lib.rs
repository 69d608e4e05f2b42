//! Translates OpenAI-style chat and image requests into Gemini requests, and Gemini's responses
//! back: pure functions over bytes, without I/O, clock or runtime.
//!
//! ```
//! use bytes::Bytes;
//! use http::{HeaderMap, StatusCode};
//! use tower_gemini_openai::{Endpoint, to_gemini};
//!
//! let endpoint = Endpoint::from_path("/v1/images/generations").unwrap();
//! assert_eq!(endpoint, Endpoint::ImageGenerations);
//! let body = Bytes::from_static(br#"{"model": "nano-banana-pro", "prompt": "a red apple", "size": "4096x4096"}"#);
//! let gemini = to_gemini(endpoint, &HeaderMap::new(), &body)?;
//! assert_eq!(gemini.path_and_query, "/v1beta/models/gemini-3-pro-image:generateContent");
//! assert_eq!(
//!     gemini.body,
//!     r#"{"contents":[{"role":"user","parts":[{"text":"a red apple"}]}],"generationConfig":{"responseModalities":["IMAGE"],"imageConfig":{"aspectRatio":"1:1","imageSize":"4K"}}}"#
//! );
//!
//! let response = br#"{"candidates": [{"content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": "QUJD"}}]}, "finishReason": "STOP"}]}"#;
//! let (status, response) = gemini.translator.response(StatusCode::OK, response, 1_700_000_000);
//! assert_eq!(status, 200);
//! assert_eq!(response, r#"{"created":1700000000,"data":[{"b64_json":"QUJD"}],"output_format":"png","model":"nano-banana-pro"}"#);
//! # Ok::<(), tower_gemini_openai::OpenAiError>(())
//! ```
//!
//! # Requests
//!
//! | OpenAI | Gemini |
//! | --- | --- |
//! | `model` | its id in the catalogue: aliases (`nano-banana-pro`), `google/…`, `models/…`; a size or ratio suffix (`-4k`, `-2k-9x16`) goes into `imageConfig` |
//! | `messages` of `system` and `developer` | `systemInstruction` |
//! | `messages` of `user` and `assistant` | `contents`: text, `image_url` data URIs in either base64 alphabet, data URIs in Markdown |
//! | `image_url` and `file` with `gs://…`, `files/…` or the URI of an uploaded file | `fileData`, with the type that is stated (`format`) or in the name; nothing is fetched |
//! | `message.images[]` of an assistant | the image that the model made, with its `thought_signature` |
//! | `message.extra_content.google.thought_signature` | the signature of its text |
//! | `size` (`1024x1024`, `4K`, `auto`), `image_size`, `aspect_ratio`, `image_config` | `imageConfig`; `image_config` wins over `image_size` over `size` over `quality` over the model's suffix |
//! | `quality` (images) | `low` is 512, `high` and `hd` are 2K where the model makes them; `medium`, `standard` and `auto` leave it to the model |
//! | `temperature`, `top_p`, `top_k`, `max_tokens`, `max_completion_tokens`, `stop`, `seed`, `response_format` (chat) | `generationConfig` |
//! | `modalities` | `responseModalities`; the images API asks for the image alone |
//! | `reasoning_effort` | `thinkingLevel`, where the model has a choice |
//! | `service_tier` | `serviceTier`, because it changes the price |
//! | `generation_config`, `image_config`, `thinking_config`, `safety_settings` at the top or in `extra_body` | copied, over what was derived from the rest |
//! | `google` at the top or in `extra_body` | the same, and all its other members next to the contents |
//! | `n` from 1 to 10 | [`GeminiRequest::count`]: so many requests, because Gemini's image models make one image per request; [`ResponseMerger`] merges the responses, [`ChoiceStream`] the streams |
//! | `stream`, `stream_options.include_usage` | `streamGenerateContent`; a last chunk with token counts |
//!
//! Rejected before anything is sent, with a message that says what to do: images by any other
//! address; audio; `n` above 10; `mask`; `background: transparent`;
//! tools; `stream` of the images API; sizes that the model does not make. Other members, such as
//! `user`, `style` or `output_format`, are ignored: none of them changes what is charged.
//!
//! # Responses
//!
//! The response holds every final image in order and no draft: in `message.images` (chat) or `data`
//! (images). Each says the `size` that was drawn (`1024x768`), read from the image's own header, and
//! the response the `model` that drew it; the images API has the `size` that all of its images share
//! beside `data` too. `finish_reason` is `stop`, `length` or `content_filter`; Gemini's own value is in
//! `native_finish_reason`, and the service's explanation in `refusal`. The images API reports a
//! refusal as a 400: it was charged, and no client retries a 400. Errors are objects, keep their
//! status and Google's details, and contain no keys.
//!
//! # Conversations
//!
//! A client that sends `message` back as it received it sends the image and the signatures with it,
//! so the edit continues. OpenAI's format does not keep the order of text and image: the signed part
//! is sent first, because Gemini signs the first part that is not a thought.

mod chat;
mod error;
mod gemini;
mod images;
mod inline_image;
mod json;
mod merge;
mod model;
mod response;
mod settings;
mod sse;
mod stream;
pub mod vendor;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use jiff::tz::TimeZone;
use tower_gemini_core::catalog::{Catalog, Date, Family};

pub use error::{OpenAiError, translate_error};
pub use merge::{ChoiceStream, ResponseMerger};
pub use response::ResponseTranslator;
pub use stream::StreamTranslator;

use json::{Json, object};

/// An endpoint of OpenAI's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// `…/chat/completions`
    ChatCompletions,
    /// `…/images/generations`
    ImageGenerations,
    /// `…/images/edits`
    ImageEdits,
    /// `…/models`, answered without an upstream: see [`list_models`].
    Models,
}

impl Endpoint {
    /// Finds the endpoint of a path, under any prefix, with doubled or trailing slashes.
    ///
    /// `/v1beta/models` is Gemini's own list, so it is `None`. `/v1/models` exists in both APIs and
    /// counts as OpenAI's here: let a request with Gemini's header (`x-goog-api-key`) pass through.
    ///
    /// ```
    /// use tower_gemini_openai::Endpoint;
    ///
    /// let chat = Endpoint::from_path("/gw/t1/v1beta/openai/chat/completions");
    /// assert_eq!(chat, Some(Endpoint::ChatCompletions));
    /// assert_eq!(Endpoint::from_path("//v1//images/edits/"), Some(Endpoint::ImageEdits));
    /// assert_eq!(Endpoint::from_path("/v1beta/openai/models"), Some(Endpoint::Models));
    /// assert_eq!(Endpoint::from_path("/v1beta/models"), None);
    /// ```
    #[must_use]
    pub fn from_path(path: &str) -> Option<Self> {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let mut segments = path.rsplit('/').filter(|segment| !segment.is_empty());
        let last = segments.next()?;
        match (segments.next(), last) {
            (Some("chat"), "completions") => Some(Self::ChatCompletions),
            (Some("images"), "generations") => Some(Self::ImageGenerations),
            (Some("images"), "edits") => Some(Self::ImageEdits),
            (Some("openai" | "v1"), "models") => Some(Self::Models),
            _ => None,
        }
    }
}

/// A translated request: JSON for Gemini's `generateContent`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GeminiRequest {
    /// `/v1beta/models/M:generateContent`, or `…:streamGenerateContent?alt=sse`.
    pub path_and_query: String,
    /// The JSON body.
    pub body: Bytes,
    /// How many responses the client wants: `n`, from 1 to 10. Gemini's image models make one image
    /// per request, so the request is to be sent so often. [`ResponseTranslator::merger`] makes one
    /// response of the translated ones, and [`ChoiceStream`] one stream.
    pub count: usize,
    /// Translates the response to this request.
    pub translator: ResponseTranslator,
}

/// Translates a request to `endpoint`: JSON, or a `multipart/form-data` form for the images API.
///
/// # Errors
///
/// What Gemini has no equivalent for, or what is not a request at all, each with a message that
/// says what to do instead. Nothing has been sent, so nothing is charged.
pub fn to_gemini(
    endpoint: Endpoint,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<GeminiRequest, OpenAiError> {
    const FORM: &str = "multipart/form-data";
    let content_type =
        headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.trim_start().get(..FORM.len()).unwrap_or_default();
    if media_type.eq_ignore_ascii_case(FORM) && endpoint != Endpoint::ChatCompletions {
        let boundary = multer::parse_boundary(content_type)
            .map_err(|_| OpenAiError::new("the form's Content-Type has no boundary"))?;
        let form = images::read_form(body, boundary)?;
        // Base64 is a third longer.
        return images::translate(endpoint, &form, body.len() / 3 * 4);
    }
    let request = json::parse(body, json::MAX_VALUES).map_err(|error| {
        OpenAiError::new(format!("the body is not the JSON of a request: {error}"))
    })?;
    if request.members().is_none() {
        return Err(OpenAiError::new("the body is not a JSON object; send {\"model\": …}"));
    }
    match endpoint {
        Endpoint::ChatCompletions => chat::translate(&request, body.len()),
        Endpoint::ImageGenerations | Endpoint::ImageEdits => {
            images::translate(endpoint, &request, body.len())
        }
        Endpoint::Models => Err(OpenAiError::new("models are listed with GET")),
    }
}

/// Lists a catalogue's image models in OpenAI's format.
///
/// `now_unix_seconds` hides models that are retired by then, and stands in for a release date that
/// is not known.
#[must_use]
pub fn list_models(catalog: &Catalog, now_unix_seconds: u64) -> Bytes {
    let today = date_at(now_unix_seconds);
    let listed = catalog
        .models()
        .filter(|model| model.images && model.family != Family::Imagen)
        .filter(|model| !today.is_some_and(|today| model.is_retired_on(today)));
    let entries = listed.map(|model| {
        let created = model.released.and_then(unix_seconds_at).unwrap_or(now_unix_seconds);
        object([
            ("id", model.id.as_str().into()),
            ("object", "model".into()),
            ("created", created.into()),
            ("owned_by", model.vendor.as_str().into()),
        ])
    });
    let data = Json::List(entries.collect());
    Bytes::from(object([("object", "list".into()), ("data", data)]).to_bytes(4096))
}

fn date_at(unix_seconds: u64) -> Option<Date> {
    let at = jiff::Timestamp::from_second(i64::try_from(unix_seconds).ok()?).ok()?;
    Some(at.to_zoned(TimeZone::UTC).date())
}

fn unix_seconds_at(date: Date) -> Option<u64> {
    let start = date.to_zoned(TimeZone::UTC).ok()?.timestamp();
    u64::try_from(start.as_second()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_seconds_are_each_others_inverse() {
        for (text, seconds) in [
            ("1970-01-01", 0),
            ("2000-02-29", 951_782_400),
            ("2000-03-01", 951_868_800),
            ("2026-11-25", 1_795_564_800),
        ] {
            let day: Date = text.parse().unwrap();
            assert_eq!(
                (unix_seconds_at(day), date_at(seconds), date_at(seconds + 86_399)),
                (Some(seconds), Some(day), Some(day)),
                "{text}"
            );
        }
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
