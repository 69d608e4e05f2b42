//! OpenAI-style requests as Gemini requests, and the answers back: pure functions over bytes,
//! without a socket and without a clock.
//!
//! ```
//! use bytes::Bytes;
//! use tower_gemini_gateway::openai::{self, Kind};
//! use http::{HeaderMap, StatusCode};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let kind = openai::route("/v1/images/generations").unwrap();
//! assert_eq!(kind, Kind::Generations);
//! let body = Bytes::from_static(br#"{"model": "nano-banana-pro", "prompt": "a red apple", "size": "4096x4096"}"#);
//! let translated = openai::request(kind, &HeaderMap::new(), &body).await.unwrap();
//! assert_eq!(translated.path_and_query, "/v1beta/models/gemini-3-pro-image:generateContent");
//! assert_eq!(
//!     translated.body,
//!     r#"{"contents":[{"role":"user","parts":[{"text":"a red apple"}]}],"generationConfig":{"responseModalities":["IMAGE"],"imageConfig":{"aspectRatio":"1:1","imageSize":"4K"}}}"#
//! );
//!
//! let answer = br#"{"candidates": [{"content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": "QUJD"}}]}, "finishReason": "STOP"}]}"#;
//! let (status, answer) = translated.reply.whole(StatusCode::OK, answer, 1_700_000_000);
//! assert_eq!(status, 200);
//! assert_eq!(answer, r#"{"created":1700000000,"data":[{"b64_json":"QUJD"}],"output_format":"png"}"#);
//! # }
//! ```
//!
//! # Requests
//!
//! | OpenAI | Gemini |
//! | --- | --- |
//! | `model` | the catalogue's id of it: aliases (`nano-banana-pro`), `google/…`, `models/…`; a size or ratio behind the name (`-4k`, `-2k-9x16`) goes into `imageConfig` |
//! | `messages` of `system` and `developer` | `systemInstruction` |
//! | `messages` of `user` and `assistant` | `contents`: texts, `image_url` data URIs in either alphabet of base64, data URIs within Markdown |
//! | `message.images[]` of an assistant | the image that the model drew, with its `thought_signature` |
//! | `message.extra_content.google.thought_signature` | the signature of its text |
//! | `size` (`1024x1024`, `4K`, `auto`), `image_size`, `aspect_ratio`, `image_config` | `imageConfig`; `image_config` wins over `image_size` over `size` over `quality` over the model's name |
//! | `quality` (images) | `low` is 512, `high` and `hd` are 2K where the model makes them; `medium`, `standard` and `auto` leave it to the model |
//! | `temperature`, `top_p`, `top_k`, `max_tokens`, `max_completion_tokens`, `stop`, `seed`, `response_format` (chat) | `generationConfig` |
//! | `modalities` | `responseModalities`; the images API asks for the image alone |
//! | `reasoning_effort` | `thinkingLevel`, where the model leaves a choice |
//! | `service_tier` | `serviceTier`, as it changes the price |
//! | `generation_config`, `image_config`, `thinking_config`, `safety_settings` at the top or in `extra_body` | as they are, over what was made of the rest |
//! | `google` at the top or in `extra_body` | the same, and everything else in it beside the contents |
//! | `stream`, `stream_options.include_usage` | `streamGenerateContent`; a last chunk with token counts |
//!
//! Refused before anything is sent, each in words that say what to do: images by address, audio and
//! files; `n` above 1 (Gemini's image models make one image a request); `mask`; `background:
//! transparent`; tools; `stream` of the images API; sizes that the model does not make. Other
//! members are ignored, such as `user`, `style` or `output_format`: none of them changes what is
//! paid for.
//!
//! # Answers
//!
//! Back comes the final image and no draft: as `message.images[0]` (chat) or `data[0]` (images).
//! `finish_reason` is `stop`, `length` or `content_filter`; Gemini's own word stands beside it as
//! `native_finish_reason`, and the service's words in `refusal`. The images API answers a refusal
//! with a 400: it was charged, and nobody sends again for a 400. Errors are objects, keep their
//! status and Google's details, and hold no keys.
//!
//! # Conversations
//!
//! Whoever sends `message` back as it came sends the image and the signatures with it, and the edit
//! goes on. OpenAI's form keeps no order of text and image: the part that is signed is sent first,
//! since Gemini signs the first part that is no thought.

mod answer;
mod blob;
mod chat;
mod config;
mod error;
mod events;
mod images;
mod json;
mod reply;
mod stream;
mod target;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use tower_gemini::catalog::{Catalog, Date, Family, Model};

pub use error::{OpenAiError, error_from_google};
pub use reply::Reply;
pub use stream::StreamTranslator;

use images::Form;
use json::{Json, object};
use target::Target;

/// Which of OpenAI's calls a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `…/chat/completions`
    Chat,
    /// `…/images/generations`
    Generations,
    /// `…/images/edits`
    Edits,
    /// `…/models`, which needs no upstream: see [`models`].
    Models,
}

/// A request in Gemini's words; its body is JSON.
#[derive(Debug, Clone)]
pub struct Translated {
    /// Where it goes: `/v1beta/models/M:generateContent`, or `…:streamGenerateContent?alt=sse`.
    pub path_and_query: String,
    /// What it says.
    pub body: Bytes,
    /// How the answer is told.
    pub reply: Reply,
}

/// Which call a path is, under any prefix, with slashes doubled or at its end.
///
/// `/v1beta/models` is Gemini's own list and none of OpenAI's. `/v1/models` is both APIs': it
/// counts as OpenAI's here, so a request with Gemini's header (`x-goog-api-key`) should go past.
///
/// ```
/// use tower_gemini_gateway::openai::{Kind, route};
///
/// assert_eq!(route("/gw/t1/v1beta/openai/chat/completions"), Some(Kind::Chat));
/// assert_eq!(route("//v1//images/edits/"), Some(Kind::Edits));
/// assert_eq!(route("/v1beta/openai/models"), Some(Kind::Models));
/// assert_eq!(route("/v1beta/models"), None);
/// ```
#[must_use]
pub fn route(path: &str) -> Option<Kind> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let mut segments = path.rsplit('/').filter(|segment| !segment.is_empty());
    let last = segments.next()?;
    let before = segments.next();
    match (before, last) {
        (Some("chat"), "completions") => Some(Kind::Chat),
        (Some("images"), "generations") => Some(Kind::Generations),
        (Some("images"), "edits") => Some(Kind::Edits),
        (Some("openai" | "v1"), "models") => Some(Kind::Models),
        _ => None,
    }
}

/// Translates a request. Only the form of `images/edits` makes it wait, and never for long: its
/// bytes are all there.
///
/// # Errors
///
/// What cannot be said to Gemini, or is no request at all, in words. Nothing was sent, so nothing
/// was paid.
pub async fn request(
    kind: Kind,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Translated, OpenAiError> {
    let content_type =
        headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_form = content_type
        .trim_start()
        .get(..19)
        .is_some_and(|kind| kind.eq_ignore_ascii_case("multipart/form-data"));
    if is_form && kind != Kind::Chat {
        let boundary = multer::parse_boundary(content_type)
            .map_err(|_| OpenAiError::new("the form's Content-Type states no boundary"))?;
        let form = Form::read(body, boundary).await?;
        let room = form.images.iter().map(|(_, data)| data.len() + 64).sum();
        return images::translate(kind, &form.as_json(), &form, room);
    }
    let asked: Json<'_> = match serde_json::from_slice(body) {
        Ok(asked @ Json::Object(_)) => asked,
        Ok(_) => {
            return Err(OpenAiError::new(
                "the body is JSON, but no object; a request is {\"model\": …}",
            ));
        }
        Err(error) => {
            return Err(OpenAiError::new(format!(
                "the body is not the JSON of a request: {error}"
            )));
        }
    };
    match kind {
        Kind::Chat => chat::translate(&asked, body.len()),
        Kind::Generations | Kind::Edits => {
            images::translate(kind, &asked, &Form::default(), body.len())
        }
        Kind::Models => Err(OpenAiError::new("models are listed with GET")),
    }
}

fn translated(
    target: &Target,
    is_stream: bool,
    body: &Json<'_>,
    room: usize,
    reply: Reply,
) -> Translated {
    Translated {
        path_and_query: target.path(is_stream),
        body: Bytes::from(body.to_bytes(room + 1024)),
        reply,
    }
}

/// The catalogue's image models, as OpenAI lists models. `now` is the time in seconds since 1970:
/// models that are retired by then are left out, and it stands for the day of release where that is
/// not known.
#[must_use]
pub fn models(now: u64) -> Bytes {
    let today = day_of(now);
    let listed = Catalog::builtin()
        .models()
        .filter(|model| model.images && model.family != Family::Imagen)
        .filter(|model| !today.is_some_and(|today| model.is_retired_on(today)));
    let entry = |model: &'static Model| {
        let created = model.released.map_or(now, seconds_of);
        let (id, vendor) = (model.id.as_str(), model.vendor.as_str());
        object([
            ("id", id.into()),
            ("object", "model".into()),
            ("created", created.into()),
            ("owned_by", vendor.into()),
        ])
    };
    let list = listed.map(entry).collect();
    Bytes::from(object([("object", "list".into()), ("data", Json::List(list))]).to_bytes(4096))
}

const SECONDS_A_DAY: u64 = 86_400;

/// The day, by the calendar's own arithmetic: years of March to February, so that the leap day is
/// the last.
fn day_of(seconds: u64) -> Option<Date> {
    let days = seconds / SECONDS_A_DAY + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + carry;
    Date::new(
        u16::try_from(year).ok()?,
        u8::try_from(month).ok()?,
        u8::try_from(day_of_month).ok()?,
    )
}

/// The first second of a day since 1970.
fn seconds_of(day: Date) -> u64 {
    let month = u64::from(day.month());
    let (year, month) = if month > 2 {
        (u64::from(day.year()), month - 3)
    } else {
        (u64::from(day.year()).saturating_sub(1), month + 9)
    };
    let (era, year) = (year / 400, year % 400);
    let day = (153 * month + 2) / 5 + u64::from(day.day()) - 1 + year * 365 + year / 4 - year / 100;
    (era * 146_097 + day).saturating_sub(719_468) * SECONDS_A_DAY
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
                (seconds_of(day), day_of(seconds), day_of(seconds + 86_399)),
                (seconds, Some(day), Some(day)),
                "{text}"
            );
        }
    }
}
