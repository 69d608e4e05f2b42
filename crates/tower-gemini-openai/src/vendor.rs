//! Sends Gemini requests to another vendor that speaks OpenAI's images API, and reads its responses
//! as Gemini's.

use bytes::Bytes;
use http::StatusCode;
use tower_gemini_core::call::{Call, Framing, ImageSize, ModelId};
use tower_gemini_core::redact::redact;

use super::json::{self, Json, object};

/// Makes the body of `POST …/images/generations` that asks for the same.
///
/// Only the text of a request can be said there: instructions and prompt, one after the other.
/// `imageSize` and `aspectRatio` become a `size` that is square, or 3:2 either way.
///
/// # Errors
///
/// What cannot be sent, as a sentence: images, earlier turns, a body that is no JSON.
///
/// ```
/// use bytes::Bytes;
/// use http::{HeaderMap, Method, Uri};
/// use tower_gemini_core::call::Call;
/// use tower_gemini_openai::vendor::images_request;
///
/// let uri = Uri::from_static("https://vendor.example/v1beta/models/their-image-1:generateContent");
/// let body = Bytes::from_static(br#"{"contents":[{"parts":[{"text":"a red apple"}]}],"generationConfig":{"imageConfig":{"aspectRatio":"3:2"}}}"#);
/// let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(&body));
/// assert_eq!(
///     images_request(&call, &body)?,
///     r#"{"model":"their-image-1","prompt":"a red apple","n":1,"size":"1536x1024","response_format":"b64_json"}"#
/// );
/// # Ok::<(), &'static str>(())
/// ```
pub fn images_request(call: &Call, body: &[u8]) -> Result<Bytes, &'static str> {
    let request =
        json::parse(body, json::MAX_VALUES).map_err(|_| "the body of the request is no JSON")?;
    let contents = request.get("contents").and_then(Json::list).unwrap_or_default();
    let [turn] = contents else { return Err("another vendor knows no earlier turns") };
    let instruction = request.any(&["systemInstruction", "system_instruction"]);
    let mut prompt = String::new();
    for text in instruction.into_iter().chain([turn]).flat_map(parts) {
        let text = text.get("text").and_then(Json::text).ok_or("another vendor takes text only")?;
        if !prompt.is_empty() {
            prompt.push('\n');
        }
        prompt.push_str(text);
    }
    if prompt.is_empty() {
        return Err("the request has no text");
    }
    let model = call.model.as_ref().map_or("", ModelId::as_str);
    // OpenAI's own models always answer with base64, and refuse to be asked for it.
    let is_openais = model.starts_with("gpt-") || model.starts_with("chatgpt-");
    let format = (!is_openais).then(|| ("response_format", "b64_json".into()));
    let images = u64::from(call.images.max(1));
    if images > MOST_IMAGES {
        return Err("another vendor makes ten images at most in one call");
    }
    let members = [
        ("model", model.into()),
        ("prompt", prompt.as_str().into()),
        ("n", images.into()),
        ("size", size_of(call).into()),
    ];
    Ok(Bytes::from(object(members.into_iter().chain(format)).to_bytes(body.len())))
}

/// The most that OpenAI's images API makes at once (`n`; API reference, 2026).
const MOST_IMAGES: u64 = 10;

fn parts<'a>(turn: &'a Json<'a>) -> &'a [Json<'a>] {
    turn.get("parts").and_then(Json::list).unwrap_or_default()
}

fn size_of(call: &Call) -> String {
    let side = match call.size.unwrap_or(ImageSize::K1) {
        ImageSize::Px512 => 512,
        ImageSize::K2 => 2048,
        ImageSize::K4 => 4096,
        _ => 1024,
    };
    let number = |text: &str| text.parse::<u32>().ok();
    let ratio = call.aspect.as_deref().and_then(|aspect| aspect.split_once(':'));
    let ratio = ratio.and_then(|(width, height)| Some((number(width)?, number(height)?)));
    let long = side / 2 * 3;
    match ratio {
        Some((width, height)) if width > height => format!("{long}x{side}"),
        Some((width, height)) if width < height => format!("{side}x{long}"),
        _ => format!("{side}x{side}"),
    }
}

/// A response in Gemini's form.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GeminiResponse {
    /// Its `content-type`.
    pub content_type: &'static str,
    /// Its body.
    pub body: Bytes,
}

/// Reads a response of the images API as the response to a call for `model`, in the framing that
/// the call asks for.
///
/// A refusal (a status from 400 to 499, but for those of timeouts and of requests under way)
/// becomes an error in Google's form: nothing was made.
/// `None` for everything else that is no list of images, such as an error of the vendor's server:
/// what that cost is not known, and its words are not Google's.
#[must_use]
pub fn gemini_response(
    model: &str,
    framing: Framing,
    status: StatusCode,
    body: &[u8],
) -> Option<GeminiResponse> {
    let response = json::parse(body, json::MAX_RESPONSE_VALUES).ok()?;
    let translated = if status.is_success() {
        images(model, &response)?
    } else if is_refusal(status) {
        return Some(GeminiResponse { content_type: JSON, body: error(status, &response)? });
    } else {
        return None;
    };
    let body = translated.to_bytes(body.len() + 512);
    let (content_type, body) = match framing {
        Framing::Sse => ("text/event-stream", [b"data: ", &body[..], b"\r\n\r\n"].concat()),
        Framing::JsonArray => (JSON, [b"[", &body[..], b"]"].concat()),
        _ => (JSON, body),
    };
    Some(GeminiResponse { content_type, body: body.into() })
}

/// Whether nothing was made. Who gave up waiting (408, 499), or was told that the same is under way
/// (409), does not know.
fn is_refusal(status: StatusCode) -> bool {
    status.is_client_error() && !matches!(status.as_u16(), 408 | 409 | 499)
}

const JSON: &str = "application/json; charset=UTF-8";

fn images<'a>(model: &'a str, response: &'a Json<'a>) -> Option<Json<'a>> {
    let data = response.get("data").and_then(Json::list).filter(|data| !data.is_empty())?;
    let mut candidates = Vec::with_capacity(data.len());
    for (index, image) in data.iter().enumerate() {
        let part = match (image.get("b64_json"), image.get("url")) {
            (Some(data), _) => {
                let data = data.text()?;
                let inline = [("mimeType", mime(data).into()), ("data", data.into())];
                ("inlineData", object(inline))
            }
            (None, Some(url)) => {
                let file = [("mimeType", "image/png".into()), ("fileUri", url.text()?.into())];
                ("fileData", object(file))
            }
            (None, None) => return None,
        };
        let content =
            object([("role", "model".into()), ("parts", Json::List(vec![object([part])]))]);
        candidates.push(object([
            ("content", content),
            ("finishReason", "STOP".into()),
            ("index", (index as u64).into()),
        ]));
    }
    let count = |name: &str| response.at(&["usage", name]).and_then(Json::count);
    let usage = count("output_tokens").map(|output| {
        let input = count("input_tokens").unwrap_or(0);
        let usage = object([
            ("promptTokenCount", input.into()),
            ("candidatesTokenCount", output.into()),
            ("totalTokenCount", input.saturating_add(output).into()),
        ]);
        ("usageMetadata", usage)
    });
    let members = [("candidates", Json::List(candidates)), ("modelVersion", model.into())];
    Some(object(members.into_iter().chain(usage)))
}

/// The type of an image by the beginning of its base64.
fn mime(data: &str) -> &'static str {
    match data.get(..4) {
        Some("/9j/") => "image/jpeg",
        Some("UklG") => "image/webp",
        _ => "image/png",
    }
}

/// A refusal in Google's form.
fn error(status: StatusCode, response: &Json<'_>) -> Option<Bytes> {
    let error = response.get("error")?;
    let message = redact(error.get("message")?.text()?);
    let reason = error.text_of(&["code", "type"]).unwrap_or("VENDOR_ERROR");
    let word = match status.as_u16() {
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        429 => "RESOURCE_EXHAUSTED",
        _ => "INVALID_ARGUMENT",
    };
    let info = object([
        ("@type", "type.googleapis.com/google.rpc.ErrorInfo".into()),
        ("reason", reason.into()),
        ("domain", "another-vendor".into()),
    ]);
    let error = object([
        ("code", u64::from(status.as_u16()).into()),
        ("message", (*message).into()),
        ("status", word.into()),
        ("details", Json::List(vec![info])),
    ]);
    Some(Bytes::from(object([("error", error)]).to_bytes(512)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, Method, Uri};
    use tower_gemini_core::classify::classify;
    use tower_gemini_core::verdict::{Charge, Outcome, Verdict};

    fn call(body: &str, method: &str) -> Call {
        let uri: Uri = format!("https://v/v1beta/models/gpt-image-1:{method}").parse().unwrap();
        Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(body.as_bytes()))
    }

    fn request(body: &str) -> Result<Bytes, &'static str> {
        images_request(&call(body, "generateContent"), body.as_bytes())
    }

    #[test]
    fn text_size_and_count_are_sent_and_what_cannot_be_said_there_is_refused() {
        let body = r#"{"systemInstruction":{"parts":[{"text":"in oil"}]},"contents":[{"parts":[{"text":"a red"},{"text":"apple"}]}],"generationConfig":{"imageConfig":{"aspectRatio":"9:16","imageSize":"2K"}}}"#;
        assert_eq!(
            request(body).unwrap(),
            r#"{"model":"gpt-image-1","prompt":"in oil\na red\napple","n":1,"size":"2048x3072"}"#
        );
        for (body, says) in [
            (
                r#"{"contents":[{"parts":[{"text":"a"}]},{"parts":[{"text":"b"}]}]}"#,
                "earlier turns",
            ),
            (r#"{"contents":[{"parts":[{"inlineData":{"data":"QUJD"}}]}]}"#, "text only"),
            (r#"{"contents":[{"parts":[]}]}"#, "no text"),
            (
                r#"{"contents":[{"parts":[{"text":"a"}]}],"generationConfig":{"candidateCount":999}}"#,
                "ten images",
            ),
            ("{", "no JSON"),
        ] {
            assert!(request(body).unwrap_err().contains(says), "{body}");
        }
    }

    fn judged(method: &str, status: u16, body: &str) -> Option<(Verdict, GeminiResponse)> {
        let call = call("{}", method);
        let status = StatusCode::from_u16(status).unwrap();
        let response = gemini_response("gpt-image-1", call.framing, status, body.as_bytes())?;
        Some((classify(&call, status, &HeaderMap::new(), &response.body), response))
    }

    #[test]
    fn images_are_delivered_in_every_framing_and_with_their_tokens() {
        let body = r#"{"created":1,"data":[{"b64_json":"iVBORw0KGgo="},{"b64_json":"/9j/4AAQ"}],"usage":{"input_tokens":5,"output_tokens":1056}}"#;
        for method in ["generateContent", "streamGenerateContent", "streamGenerateContent?alt=sse"]
        {
            let (verdict, response) = judged(method, 200, body).unwrap();
            assert!(verdict.outcome().is_success(), "{method}: {verdict:?}");
            let text = String::from_utf8(response.body.to_vec()).unwrap();
            for says in
                ["iVBORw0KGgo=", "image/jpeg", "\"candidatesTokenCount\":1056", "gpt-image-1"]
            {
                assert!(text.contains(says), "{says}: {text}");
            }
        }
        assert_eq!(judged("generateContent", 200, r#"{"data":[]}"#), None);
    }

    #[test]
    fn what_broke_off_or_came_too_late_is_not_free() {
        let broken = r#"{"created":1,"data":[{"b64_json":"iVBORw0KGgo"#;
        assert_eq!(judged("generateContent", 200, broken), None);
        let call = call("{}", "generateContent");
        let verdict = classify(&call, StatusCode::OK, &HeaderMap::new(), broken.as_bytes());
        assert_eq!((verdict.outcome(), verdict.charge()), (Outcome::Interrupted, Charge::Charged));
        let late = r#"{"error":{"message":"timed out","type":"timeout"}}"#;
        assert_eq!(judged("generateContent", 408, late), None, "left to the rules of its host");
    }

    #[test]
    fn a_refusal_is_free_and_an_error_of_the_vendors_server_is_left_as_it_is() {
        for (status, code, outcome) in [
            (400, "moderation_blocked", Outcome::BadRequest),
            (401, "invalid_api_key", Outcome::Auth),
            (429, "rate_limit_exceeded", Outcome::RateLimited),
        ] {
            let body = format!(r#"{{"error":{{"message":"no","type":"x","code":"{code}"}}}}"#);
            let (verdict, response) = judged("generateContent", status, &body).unwrap();
            assert_eq!((verdict.outcome(), verdict.charge()), (outcome, Charge::None), "{code}");
            assert!(String::from_utf8_lossy(&response.body).contains(code));
        }
        let failed = r#"{"error":{"message":"The server had an error","type":"server_error"}}"#;
        assert_eq!(judged("generateContent", 500, failed), None);
        assert_eq!(judged("generateContent", 502, "<html>"), None);
        for status in [408, 409, 499] {
            assert_eq!(judged("generateContent", status, failed), None, "{status}");
        }
    }
}
