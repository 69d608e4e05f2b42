use std::fmt;

use bytes::Bytes;
use tower_gemini_core::scan::{Answer, Usage};

/// The final image of an answer, and what came with it.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct FinalImage {
    /// The image file, decoded. Empty only where it was written elsewhere, or the answer gave a
    /// [`url`](Self::url) instead.
    pub bytes: Bytes,
    /// How many bytes the image file has, wherever they are.
    pub len: u64,
    /// Its media type as the answer states it, or, where it states none, as the bytes show.
    pub mime: String,
    /// Width in pixels, read from the image's own header.
    pub width: Option<u32>,
    /// Height in pixels, read from the image's own header.
    pub height: Option<u32>,
    /// Every image of the answer was marked as a thought, so this is the last of those. Strict
    /// callers take it for a sketch.
    pub is_thought: bool,
    /// Drafts that came with it and were left out.
    pub drafts: u32,
    /// Why the model stopped, as spelled.
    pub finish_reason: Option<String>,
    /// The model's own text, thoughts apart, cut to 8 KiB.
    pub text: String,
    /// What the answer says it used. Missing usage never costs an image.
    pub usage: Option<Usage>,
    /// The image part's thought signature as spelled (base64); it must go back with the image in a
    /// further turn.
    pub signature: Option<Bytes>,
    /// The model that answered.
    pub model_version: Option<String>,
    /// The answer's id.
    pub response_id: Option<String>,
    /// Where the image is, where the answer names a place instead of holding it (some proxies do).
    pub url: Option<String>,
}

impl FinalImage {
    /// The image of a scanned answer; `None` where it has none.
    #[must_use]
    pub fn from_answer(answer: Answer) -> Option<Self> {
        let url = answer.image_urls.last().cloned();
        let image = match answer.image {
            Some(image) => image,
            None => {
                url.as_ref()?;
                tower_gemini_core::scan::Image::default()
            }
        };
        let url = url.filter(|_| image.len == 0);
        let image_head = image.bytes.slice(..image.bytes.len().min(12));
        Some(Self {
            drafts: answer.images.saturating_sub(u32::from(image.len > 0)),
            bytes: image.bytes,
            len: image.len,
            mime: if image.mime.is_empty() { sniff(&image_head).to_owned() } else { image.mime },
            width: image.width,
            height: image.height,
            is_thought: image.is_thought,
            finish_reason: answer.finish_reason,
            text: answer.text,
            usage: answer.usage,
            signature: image.signature,
            model_version: answer.model_version,
            response_id: answer.response_id,
            url,
        })
    }
}

/// The media type that a file's first bytes show; empty where they show none that an image model
/// makes.
fn sniff(head: &[u8]) -> &'static str {
    match head {
        [0x89, b'P', b'N', b'G', ..] => "image/png",
        [0xFF, 0xD8, 0xFF, ..] => "image/jpeg",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => "image/webp",
        [b'G', b'I', b'F', b'8', ..] => "image/gif",
        _ => "",
    }
}

impl fmt::Debug for FinalImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Megabytes of pixels, and of signature, help nobody in a log.
        f.debug_struct("FinalImage")
            .field("len", &self.len)
            .field("mime", &self.mime)
            .field("width", &self.width)
            .field("height", &self.height)
            .field("is_thought", &self.is_thought)
            .field("drafts", &self.drafts)
            .field("finish_reason", &self.finish_reason)
            .field("signature_bytes", &self.signature.as_ref().map(Bytes::len))
            .field("model_version", &self.model_version)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_stated_type_has_the_type_of_its_bytes() {
        let typed = |bytes: &'static [u8], mime: &str| {
            let mut image = tower_gemini_core::scan::Image::default();
            image.bytes = Bytes::from_static(bytes);
            image.len = bytes.len() as u64;
            image.mime = mime.to_owned();
            let mut answer = Answer::default();
            answer.images = 1;
            answer.image = Some(image);
            FinalImage::from_answer(answer).map(|image| image.mime)
        };
        assert_eq!(typed(b"\x89PNG\r\n\x1a\n", "").as_deref(), Some("image/png"));
        assert_eq!(typed(b"\xFF\xD8\xFF\xE0", "").as_deref(), Some("image/jpeg"));
        assert_eq!(typed(b"RIFF....WEBPVP8 ", "").as_deref(), Some("image/webp"));
        assert_eq!(typed(b"\x01", "").as_deref(), Some(""));
        // What the answer states is passed on as it is.
        assert_eq!(typed(b"\x89PNG", "image/x-odd").as_deref(), Some("image/x-odd"));
    }
}
