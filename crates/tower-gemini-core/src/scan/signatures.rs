//! The thought signatures of a response's parts, each with a key that finds its part again in a
//! later request.
//!
//! Clients send a model's turn back re-encoded: base64 in the other alphabet (google-genai in
//! Python, measured 2026-11), JSON in other spellings. So a part is known by a keyed hash of what
//! it decodes to.

use std::convert::Infallible;
use std::fmt;
use std::hash::Hasher;

use bytes::Bytes;
use siphasher::sip128::{Hasher128, SipHasher13};
use xxhash_rust::xxh3::Xxh3;

use super::base64::Decoder;

/// A text is known by its first 8 KiB, the same bound that [`Answer::text`](super::Answer::text)
/// has.
pub(crate) const MAX_TEXT: usize = 8 << 10;

/// The secret of a set of [`PartKey`]s: without it nobody can make a part that is taken for
/// another.
///
/// Two sets are as different as their seeds.
#[derive(Clone, Copy)]
pub struct PartKeyer(u64, u64);

impl fmt::Debug for PartKeyer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The seeds are the secret.
        f.write_str("PartKeyer")
    }
}

/// What a part of a conversation is known by: a keyed hash of the decoded image or of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartKey(u128);

impl From<u128> for PartKey {
    fn from(key: u128) -> Self {
        Self(key)
    }
}

impl From<PartKey> for u128 {
    fn from(key: PartKey) -> Self {
        key.0
    }
}

impl PartKeyer {
    /// A set of keys by two seeds, which should be random.
    #[must_use]
    pub fn new(seeds: [u64; 2]) -> Self {
        Self(seeds[0], seeds[1])
    }

    /// The seeds, by which the same keys are made in another process. They are a secret.
    #[must_use]
    pub fn seeds(&self) -> [u64; 2] {
        [self.0, self.1]
    }

    /// The key of an image by its base64, in either alphabet, padded or not. `None` where it is not
    /// base64.
    ///
    /// ```
    /// use tower_gemini_core::scan::PartKeyer;
    ///
    /// let keyer = PartKeyer::new([1, 2]);
    /// assert_eq!(keyer.image_base64(b"++//AA=="), keyer.image_base64(b"--__AA"));
    /// assert_ne!(keyer.image_base64(b"++//AA=="), keyer.image_base64(b"++//AQ=="));
    /// assert_eq!(keyer.image_base64(b"?"), None);
    /// ```
    #[must_use]
    pub fn image_base64(&self, base64: &[u8]) -> Option<PartKey> {
        let (mut decoder, mut hash, mut len) = (Decoder::default(), self.image(), 0);
        let mut out = |bytes: &[u8]| {
            hash.push(bytes);
            len += bytes.len();
            Ok::<_, Infallible>(())
        };
        let Ok(()) = decoder.push(base64, &mut out);
        let Ok(good) = decoder.finish(&mut out);
        (good && len > 0).then(|| hash.key())
    }

    /// The key of a text.
    #[must_use]
    pub fn text(&self, text: &str) -> PartKey {
        let mut end = text.len().min(MAX_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut hasher = SipHasher13::new_with_keys(self.0, self.1);
        // An image that spells a text is another part than the text.
        hasher.write_u8(b't');
        hasher.write(text.get(..end).unwrap_or_default().as_bytes());
        PartKey(hasher.finish128().as_u128())
    }

    /// XXH3, not SipHash: that took three times as long as decoding and judging the image.
    pub(super) fn image(&self) -> ImageHash {
        let mut hasher = Xxh3::with_seed(self.0);
        hasher.update(&self.1.to_le_bytes());
        ImageHash(hasher)
    }
}

/// One part of a response that came with a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartSignature {
    /// What the part is known by.
    pub part: PartKey,
    /// Its signature, as spelled (base64).
    pub signature: Bytes,
}

/// A hash of an image's bytes, as they are decoded.
pub(super) struct ImageHash(Xxh3);

impl ImageHash {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn key(&self) -> PartKey {
        PartKey(self.0.digest128())
    }
}

impl fmt::Debug for ImageHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its state holds the secret.
        f.write_str("ImageHash")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::Framing;
    use crate::scan::Scanner;
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn keyer() -> PartKeyer {
        PartKeyer::new([11, 12])
    }

    #[derive(Debug, Clone)]
    struct Part {
        text: Option<String>,
        image: Vec<u8>,
        signature: Option<Vec<u8>>,
        thought: bool,
    }

    fn parts() -> impl Strategy<Value = Vec<Part>> {
        let bytes = |max| proptest::collection::vec(any::<u8>(), 1..max);
        let part = (
            // Markdown's images are part of the text.
            proptest::option::of(prop_oneof![
                "\\PC{1,20}",
                "a?!\\[b?(\\]\\(data:image/png;base64,QUJD\\))?",
            ]),
            bytes(60),
            proptest::option::of(bytes(90)),
            any::<bool>(),
        )
            .prop_map(|(text, image, signature, thought)| Part {
                text,
                image,
                signature,
                thought,
            });
        proptest::collection::vec(part, 0..6)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn every_signature_is_found_under_its_parts_key_however_the_answer_is_cut(
            parts in parts(), stream in any::<bool>(), signature_first in any::<bool>(), chunk in 1_usize..40,
        ) {
            let printed: Vec<Value> = parts
                .iter()
                .map(|part| {
                    let mut value = serde_json::Map::new();
                    let signature = part.signature.as_ref().map(|bytes| json!(STANDARD.encode(bytes)));
                    if let (true, Some(signature)) = (signature_first, &signature) {
                        value.insert("thoughtSignature".into(), signature.clone());
                    }
                    match &part.text {
                        Some(text) => value.insert("text".into(), json!(text)),
                        None => value.insert("inlineData".into(), json!({"mimeType": "image/png", "data": STANDARD.encode(&part.image)})),
                    };
                    if part.thought {
                        value.insert("thought".into(), json!(true));
                    }
                    if let (false, Some(signature)) = (signature_first, signature) {
                        value.insert("thought_signature".into(), signature);
                    }
                    Value::Object(value)
                })
                .collect();
            let answer = |parts: &[Value]| json!({"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]}).to_string();
            let (body, framing) = if stream {
                (printed.iter().map(|part| format!("data: {}\r\n\r\n", answer(std::slice::from_ref(part)))).collect(), Framing::Sse)
            } else {
                (answer(&printed), Framing::Whole)
            };
            let mut scanner = Scanner::judging(framing).keep_signatures(keyer());
            for chunk in body.as_bytes().chunks(chunk) {
                scanner.feed(chunk).unwrap();
            }
            let found = match scanner.finish() {
                Ok(answer) => answer.signatures,
                // A stream without an event is none.
                Err(failure) => failure.found.signatures,
            };
            let expected: Vec<_> = parts
                .iter()
                .filter_map(|part| {
                    let signature = STANDARD.encode(part.signature.as_ref()?).into();
                    // As a client sends it back, in the other alphabet.
                    let key = match &part.text {
                        Some(text) => keyer().text(text),
                        None => keyer().image_base64(URL_SAFE_NO_PAD.encode(&part.image).as_bytes()).unwrap(),
                    };
                    Some(PartSignature { part: key, signature })
                })
                .collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn another_secret_gives_other_keys_and_a_text_is_no_image() {
        let other = PartKeyer::new([11, 13]);
        assert_ne!(keyer().text("cat"), other.text("cat"));
        assert_ne!(
            keyer().text("cat"),
            keyer().image_base64(STANDARD.encode("cat").as_bytes()).unwrap()
        );
        assert_eq!(format!("{:?}", keyer()), "PartKeyer");
        let long = "ü".repeat(9_000);
        assert_eq!(keyer().text(&long), keyer().text(&long[..8_192]));
    }

    #[test]
    fn without_being_asked_no_signature_is_kept() {
        let body = br#"{"candidates":[{"content":{"parts":[{"text":"a","thoughtSignature":"QUJD"}]},"finishReason":"STOP"}]}"#;
        let mut scanner = Scanner::judging(Framing::Whole);
        scanner.feed(body).unwrap();
        assert!(scanner.finish().unwrap().signatures.is_empty());
    }
}
