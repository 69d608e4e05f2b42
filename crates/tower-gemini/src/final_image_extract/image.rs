use std::fmt;

use crate::error::Error;
use bytes::Bytes;
use http::HeaderMap;
use tower_gemini_core::call::{Call, Framing, ModelId};
use tower_gemini_core::classify::{classify_answer, classify_without_status};
use tower_gemini_core::scan::{Answer, Image, Scanner, Usage};

use super::service::refused;

/// The final image of a response, and what came with it; of several final images the first, and the
/// [others](Self::others) in order.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct FinalImage {
    /// The image file, decoded. Empty only where it was written elsewhere, or the response gave a
    /// [`url`](Self::url) instead.
    pub bytes: Bytes,
    /// How many bytes the image file has, wherever they are.
    pub len: u64,
    /// Its media type as the response states it, or, where it states none, as the bytes show.
    pub mime: String,
    /// Width in pixels, read from the image's own header.
    pub width: Option<u32>,
    /// Height in pixels, read from the image's own header.
    pub height: Option<u32>,
    /// Every image of the response was marked as a thought, so this is the last of those. Strict
    /// callers take it for a sketch.
    pub is_thought: bool,
    /// Drafts that came with it and were left out.
    pub drafts: u32,
    /// Why the model stopped, as spelled.
    pub finish_reason: Option<String>,
    /// The model's own text, thoughts apart, cut to 8 KiB.
    pub text: String,
    /// What the response says it used. Missing usage never costs an image.
    pub usage: Option<Usage>,
    /// The image part's thought signature as spelled (base64); it must go back with the image in a
    /// further turn.
    pub signature: Option<Bytes>,
    /// The model that responded.
    pub model_version: Option<String>,
    /// The response's id.
    pub response_id: Option<String>,
    /// Where the image is, where the response names a place instead of holding it (some proxies do).
    pub url: Option<String>,
    /// The final images behind this one, in order: a response can interleave several with text, and
    /// a request can ask for several.
    pub others: Vec<Image>,
    /// The places of the final images behind this one, where the answer names places.
    pub other_urls: Vec<String>,
}

impl FinalImage {
    /// Reads the final image out of a complete JSON response body.
    ///
    /// For the responses of [`GeminiStack::json`](crate::GeminiStack::json), over which `KeepPaid`
    /// and `AnswerErrors` can stand, and of a client without a stack, such as reqwest's
    /// `response.bytes()`. Takes every shape that [`FinalImageExtract`](crate::FinalImageExtract)
    /// takes, except server-sent events, and images of any size.
    ///
    /// ```
    /// use tower_gemini::FinalImage;
    ///
    /// let body = br#"{"candidates":[{"content":{"parts":[
    ///     {"inlineData":{"mimeType":"image/png","data":"AA=="},"thought":true},
    ///     {"inlineData":{"mimeType":"image/png","data":"AQID"}}]},"finishReason":"STOP"}]}"#;
    /// let image = FinalImage::from_json(body)?;
    /// assert_eq!((&image.bytes[..], image.drafts), (&[1, 2, 3][..], 1));
    ///
    /// let refused = br#"{"candidates":[{"finishReason":"IMAGE_SAFETY"}]}"#;
    /// assert!(FinalImage::from_json(refused).unwrap_err().is_refusal());
    /// # Ok::<_, tower_gemini::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`FinalImageExtract`](crate::FinalImageExtract), with the charge as far as the body alone
    /// says it: the response is a refusal, an error or empty, ends early, or cannot be read.
    pub fn from_json(body: &[u8]) -> Result<Self, Error> {
        let mut call = Call::unrecognised();
        call.wants_image = true;
        let is_array = body.trim_ascii_start().first() == Some(&b'[');
        call.framing = if is_array { Framing::JsonArray } else { Framing::Whole };
        let verdict = || classify_without_status(&call, &HeaderMap::new(), body);
        let scan = |unmarked_drafts| {
            let scanner = Scanner::decoding(call.framing).unmarked_drafts(unmarked_drafts);
            let mut scanner = scanner.max_image_bytes(u64::MAX);
            match scanner.feed(body) {
                Ok(()) => scanner.finish().map_err(|failure| failure.error),
                Err(error) => Err(error),
            }
        };
        let mut scanned = scan(true);
        // Which model drew it the response itself says, after the images.
        if let Ok(answer) = &scanned {
            let drawn_by = answer.model_version.as_deref().map(ModelId::new);
            if !drawn_by.is_some_and(|model| model.makes_drafts())
                && answer.images - answer.thought_images > 1
            {
                scanned = scan(false);
            }
        }
        let answer = scanned.map_err(|error| match error.is_truncated() {
            true => Error::truncated(verdict()),
            false => Error::corrupt(error.to_string(), verdict()),
        })?;
        let verdict = classify_answer(&call, &answer);
        refused(&verdict)?;
        Self::from_answer(answer).ok_or_else(|| Error::no_image(verdict))
    }

    /// The image of a scanned response; `None` where it has none.
    #[must_use]
    pub fn from_answer(answer: Answer) -> Option<Self> {
        let mut finals = answer.earlier_images;
        finals.extend(answer.image);
        for image in finals.iter_mut().filter(|image| image.mime.is_empty()) {
            sniff(image.bytes.get(..12).unwrap_or(&image.bytes)).clone_into(&mut image.mime);
        }
        let mut urls = answer.image_urls;
        let drafts = (answer.images as usize).saturating_sub(finals.len());
        let (image, url) = match (finals.is_empty(), urls.is_empty()) {
            (true, true) => return None,
            (true, false) => (Image::default(), Some(urls.remove(0))),
            (false, _) => (finals.remove(0), None),
        };
        Some(Self {
            drafts: u32::try_from(drafts).unwrap_or(u32::MAX),
            bytes: image.bytes,
            len: image.len,
            mime: image.mime,
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
            others: finals,
            other_urls: urls,
        })
    }

    /// All final images as files to write, in order: `name.png`, or of several `name-1.png`,
    /// `name-2.png` and so on. The ending is that of the type that the bytes show, or else of the
    /// stated one.
    ///
    /// ```
    /// # use tower_gemini::FinalImage;
    /// # let dir = std::env::temp_dir();
    /// let body = br#"{"candidates":[{"content":{"parts":[
    ///     {"inlineData":{"mimeType":"image/png","data":"AQID"}}, {"text":"and a dog"},
    ///     {"inlineData":{"mimeType":"image/jpeg","data":"BAUG"}}]},"finishReason":"STOP"}]}"#;
    /// let image = FinalImage::from_json(body)?;
    /// for (name, bytes) in image.files("pets") {
    ///     std::fs::write(dir.join(name), bytes)?;
    /// }
    /// assert_eq!(std::fs::read(dir.join("pets-1.png"))?, [1, 2, 3]);
    /// assert_eq!(std::fs::read(dir.join("pets-2.jpg"))?, [4, 5, 6]);
    /// # for name in ["pets-1.png", "pets-2.jpg"] { std::fs::remove_file(dir.join(name))?; }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn files(&self, name: &str) -> impl Iterator<Item = (String, &Bytes)> {
        let others = self.others.iter().map(|image| (&image.bytes, image.mime.as_str()));
        let images = std::iter::once((&self.bytes, self.mime.as_str())).chain(others);
        images.filter(|(bytes, _)| !bytes.is_empty()).enumerate().map(move |(n, (bytes, mime))| {
            let number = if self.others.is_empty() { String::new() } else { format!("-{}", n + 1) };
            (format!("{name}{number}.{}", ending(bytes, mime)), bytes)
        })
    }
}

fn ending(bytes: &[u8], mime: &str) -> &'static str {
    let shown = sniff(bytes.get(..12).unwrap_or(bytes));
    match if shown.is_empty() { mime } else { shown } {
        "image/png" => "png",
        "image/jpeg" | "image/jpg" => "jpg",
        "image/webp" => "webp",
        "image/gif" => "gif",
        _ => "img",
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
            .field("others", &(self.others.len() + self.other_urls.len()))
            .field("finish_reason", &self.finish_reason)
            .field("signature_bytes", &self.signature.as_ref().map(Bytes::len))
            .field("model_version", &self.model_version)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower_gemini_core::verdict::Charge;

    #[test]
    fn the_last_image_that_is_no_draft_is_read_from_every_json_shape() {
        let part =
            |data: &str| format!(r#"{{"inlineData":{{"mimeType":"image/png","data":"{data}"}}}}"#);
        let chunk = |parts: &str, finish: &str| {
            format!(
                r#"{{"candidates":[{{"content":{{"parts":[{parts}]}}{finish}}}],"modelVersion":"gemini-3-pro-image"}}"#
            )
        };
        let stop = r#","finishReason":"STOP""#;
        let shapes = [
            chunk(&format!("{},{}", part("AA=="), part("AQID")), stop),
            format!("[{},{}]", chunk(&part("AA=="), ""), chunk(&part("AQID"), stop)),
            r#"{"predictions":[{"bytesBase64Encoded":"AQID","mimeType":"image/png"}]}"#.to_owned(),
            r#"{"created":1,"data":[{"b64_json":"AQID"}]}"#.to_owned(),
        ];
        for body in shapes {
            let image = FinalImage::from_json(body.as_bytes());
            assert_eq!(&image.expect(&body).bytes[..], [1, 2, 3], "{body}");
        }
    }

    // A response with several images gave one of them, although all were paid for.
    #[test]
    fn all_final_images_are_delivered_in_order() {
        let part = |data: &str| format!(r#"{{"inlineData":{{"data":"{data}"}}}}"#);
        let body = |parts: [String; 3], model: &str| {
            let parts = parts.join(",");
            format!(
                r#"{{"candidates":[{{"content":{{"parts":[{parts}]}},"finishReason":"STOP"}}],"modelVersion":"{model}"}}"#
            )
        };
        let all = |body: &str| {
            let image = FinalImage::from_json(body.as_bytes()).expect(body);
            let others = image.others.into_iter().map(|image| image.bytes);
            (
                std::iter::once(image.bytes).chain(others).map(|it| it[0]).collect::<Vec<_>>(),
                image.drafts,
            )
        };
        let text = r#"{"text":"and"}"#.to_owned();
        let interleaved = body([part("AQ=="), text, part("Ag==")], "gemini-3-pro-image");
        assert_eq!(all(&interleaved), (vec![1, 2], 0));
        let beside = [part("AQ=="), part("Ag=="), part("Aw==")];
        assert_eq!(all(&body(beside.clone(), "gemini-3-pro-image")), (vec![3], 2));
        assert_eq!(all(&body(beside.clone(), "gemini-2.5-flash-image")), (vec![1, 2, 3], 0));
        assert_eq!(all(&body(beside, "not-known")), (vec![1, 2, 3], 0));
        let urls = br#"{"data":[{"url":"https://h/1"},{"url":"https://h/2"}]}"#;
        let image = FinalImage::from_json(urls).unwrap();
        assert_eq!((image.url.as_deref(), image.other_urls.len()), (Some("https://h/1"), 1));
    }

    // Behind `json` there was no way to the image but to write the extraction anew.
    #[test]
    fn a_body_without_an_image_is_an_error_that_says_why_and_what_it_cost() {
        let error = |body: &str| FinalImage::from_json(body.as_bytes()).unwrap_err();
        let blocked = error(r#"{"promptFeedback":{"blockReason":"PROHIBITED_CONTENT"}}"#);
        assert!(blocked.is_refusal(), "{blocked}");
        let empty = error(r#"{"candidates":[{"finishReason":"STOP"}]}"#);
        assert!(empty.is_empty_answer() && empty.charge() != Charge::None, "{empty}");
        let busy = error(
            r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#,
        );
        assert!(busy.to_string().contains("overloaded"), "{busy}");
        let cut = error(
            r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AQ"#,
        );
        assert!(cut.is_truncated() && !cut.charge().is_surely_free(), "{cut}");
        let page = error("<html>502 Bad Gateway</html>");
        assert!(page.is_corrupt(), "{page}");
    }

    #[test]
    fn the_bytes_decide_the_ending_of_a_file() {
        assert_eq!(ending(b"\x89PNG\r\n", "image/jpeg"), "png");
        assert_eq!(ending(b"\xff\xd8\xff\xe0", "image/png"), "jpg");
        assert_eq!(ending(b"?", "image/webp"), "webp");
        assert_eq!(ending(b"?", "text/html"), "img");
    }

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
        // What the response states is passed on as it is.
        assert_eq!(typed(b"\x89PNG", "image/x-odd").as_deref(), Some("image/x-odd"));
    }
}
