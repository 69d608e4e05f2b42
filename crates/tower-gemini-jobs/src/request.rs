//! The request that draws an item.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request};
use serde_json::{Value, json};

use crate::item::Item;
use crate::lane::Lane;

/// An input image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Picture {
    /// Its media type.
    pub mime: String,
    /// The file.
    pub bytes: Bytes,
}

impl Picture {
    /// An image of the type that its first bytes show. `None` for anything that Gemini does not
    /// take (PNG, JPEG, WebP, HEIC and HEIF: Gemini API documentation, image understanding,
    /// 2026-07).
    #[must_use]
    pub fn new(bytes: Bytes) -> Option<Self> {
        let mime = match bytes.get(..12)? {
            [0x89, b'P', b'N', b'G', ..] => "image/png",
            [0xff, 0xd8, 0xff, ..] => "image/jpeg",
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => "image/webp",
            [_, _, _, _, b'f', b't', b'y', b'p', b'h', b'e', b'i', b'c' | b'x'] => "image/heic",
            [_, _, _, _, b'f', b't', b'y', b'p', b'm', b'i', b'f', b'1'] => "image/heif",
            _ => return None,
        };
        Some(Self { mime: mime.to_owned(), bytes })
    }
}

/// The JSON of a `generateContent` request for an item, as the Batch API and single calls take it.
#[must_use]
pub fn generate_content(item: &Item, inputs: &[Picture]) -> Value {
    let images = inputs.iter().map(|picture| {
        let data = STANDARD.encode(&picture.bytes);
        json!({"inlineData": {"mimeType": picture.mime, "data": data}})
    });
    let parts: Vec<_> = images.chain([json!({"text": item.prompt})]).collect();
    let mut config = json!({"responseModalities": ["IMAGE"]});
    let mut image = json!({});
    if let Some(size) = item.size {
        image["imageSize"] = size.as_str().into();
    }
    if let Some(aspect) = &item.aspect {
        image["aspectRatio"] = aspect.as_str().into();
    }
    if image != json!({}) {
        config["imageConfig"] = image;
    }
    json!({"contents": [{"role": "user", "parts": parts}], "generationConfig": config})
}

/// The request that draws an item with this model in this lane.
#[must_use]
pub fn single(item: &Item, model: &str, lane: Lane, inputs: &[Picture]) -> Request<Bytes> {
    let mut body = generate_content(item, inputs);
    if let Some(tier) = lane.service_tier() {
        body["serviceTier"] = tier.into();
    }
    let mut request = Request::new(Bytes::from(body.to_string()));
    *request.method_mut() = http::Method::POST;
    let path = format!("/v1beta/models/{model}:generateContent");
    *request.uri_mut() = path.parse().unwrap_or_default();
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower_gemini::call::{Call, ImageSize, ServiceTier};

    #[test]
    fn the_layers_read_from_the_request_what_the_item_asks_for() {
        let mut item = Item::new("a red apple");
        item.size = Some(ImageSize::K2);
        item.aspect = Some("16:9".to_owned());
        let png = Picture::new(Bytes::from_static(b"\x89PNG\r\n\x1a\n12345")).unwrap();
        let request = single(&item, "gemini-3-pro-image", Lane::Flex, &[png]);
        let (parts, body) = request.into_parts();
        let call = Call::parse(&parts.method, &parts.uri, &parts.headers, Some(&body));
        assert_eq!(call.model.as_ref().map(|model| model.as_str()), Some("gemini-3-pro-image"));
        assert_eq!((call.size, call.tier), (Some(ImageSize::K2), ServiceTier::Flex));
        assert!(call.wants_image && call.generates());
    }

    #[test]
    fn a_file_that_is_no_image_is_no_input() {
        assert_eq!(Picture::new(Bytes::from_static(b"<html>not found</html>")), None);
        assert_eq!(Picture::new(Bytes::from_static(b"\x89PNG")), None);
    }
}
