//! Reads the model's own turns in a request, and finds the parts that lack the thought signature
//! that the API requires.
//!
//! ```
//! use bytes::Bytes;
//! use tower_gemini_core::call::{Conversation, PartKind};
//! use tower_gemini_core::scan::PartKeyer;
//!
//! let body = Bytes::from_static(br#"{"contents": [
//!     {"role": "user", "parts": [{"text": "a cat"}]},
//!     {"role": "model", "parts": [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]},
//!     {"role": "user", "parts": [{"text": "with a hat"}]}]}"#);
//! let conversation = Conversation::read(&body, &PartKeyer::new([1, 2]));
//! let part = &conversation.parts()[0];
//! assert_eq!((part.content, part.part, part.kind), (2, 1, PartKind::Image));
//! assert!(part.lacks_signature() && part.is_checked());
//!
//! let signed = Conversation::sign(&body, &[(part, Bytes::from_static(b"c2lnbmVk"))]).concat();
//! let signed = Conversation::read(&signed, &PartKeyer::new([1, 2]));
//! assert!(!signed.parts()[0].lacks_signature());
//! ```

use std::ops::Range;

use bytes::Bytes;

use crate::json::{Cursor, Edits, Kind, Text};
use crate::scan::{MAX_KEYED_TEXT, PartKey, PartKeyer};

/// What a part of the model's turn is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PartKind {
    /// An image, inline or by its address.
    Image,
    /// A text.
    Text,
    /// Anything else: function calls, code, data that is no image.
    Other,
}

/// One part of one of the model's turns.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelPart {
    /// Which of `contents` it is in, counted from 1 as the API's own message counts.
    pub content: usize,
    /// Which part of it, counted from 1.
    pub part: usize,
    /// What it is.
    pub kind: PartKind,
    /// Whether it is marked as a thought. Drafts are; they carry no signature and are not checked.
    pub is_thought: bool,
    /// Whether it is the first part of its turn that is not a thought.
    pub is_first_shown: bool,
    /// Whether its turn holds an image that is not a thought.
    pub is_in_image_turn: bool,
    /// The key under which its signature was kept; `None` where it has one, and where it is neither
    /// text nor inline image.
    pub key: Option<PartKey>,
    signature: Signature,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Signature {
    Present,
    /// A member without content, to be replaced.
    Empty(Range<usize>),
    /// No member; it can be written here.
    Absent(usize),
}

impl ModelPart {
    /// Whether it has no signature, or an empty one.
    #[must_use]
    pub fn lacks_signature(&self) -> bool {
        self.signature != Signature::Present
    }

    /// Whether the API requires its signature: every image part, and the first part after the
    /// thoughts, of a turn with an image in it (Gemini API documentation, thought signatures,
    /// 2026-07: "strict" in image editing).
    #[must_use]
    pub fn is_checked(&self) -> bool {
        match self.kind {
            PartKind::Image => !self.is_thought,
            PartKind::Text => self.is_first_shown && self.is_in_image_turn,
            PartKind::Other => false,
        }
    }
}

/// The most parts that are read of a turn, and kept of a request: many more than any conversation
/// has. A body of two bytes a part would take a hundred times its size.
const MAX_PARTS: usize = 16 * 1024;

/// The model's own turns in a request of Gemini's shape.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversation {
    parts: Vec<ModelPart>,
}

/// A part as it was read, before its turn's role is known.
struct Raw<'a> {
    text: Option<Text<'a>>,
    data: Option<Text<'a>>,
    is_image: bool,
    is_thought: bool,
    signature: Signature,
}

impl Raw<'_> {
    fn kind(&self) -> PartKind {
        match self.text {
            _ if self.is_image => PartKind::Image,
            Some(_) => PartKind::Text,
            None => PartKind::Other,
        }
    }
}

impl Conversation {
    /// Reads the model's turns of a whole request body. Images are passed over at memory speed;
    /// only those without a signature are decoded, to compute their keys. Never fails: a body
    /// without a conversation has no turns.
    #[must_use]
    pub fn read(body: &[u8], keyer: &PartKeyer) -> Self {
        let mut parts = Vec::new();
        Cursor::new(body).object(|c, key| match key {
            b"contents" => {
                let mut content = 0;
                c.each(|c| {
                    content += 1;
                    turn(c, content, keyer, &mut parts);
                });
            }
            _ => c.skip(),
        });
        Self { parts }
    }

    /// Returns the parts of the model's turns, in order.
    #[must_use]
    pub fn parts(&self) -> &[ModelPart] {
        &self.parts
    }

    /// Returns the parts whose signature the API requires and that have none.
    pub fn missing(&self) -> impl Iterator<Item = &ModelPart> {
        self.parts.iter().filter(|part| part.is_checked() && part.lacks_signature())
    }

    /// Writes signatures into parts that lack them. The result is slices of the body and the
    /// signatures between them: nothing is copied and nothing else changes. The parts must be of
    /// this body. Signatures are written as given: base64, or one of the documented placeholders.
    #[must_use]
    pub fn sign(body: &Bytes, signatures: &[(&ModelPart, Bytes)]) -> Vec<Bytes> {
        let mut edits = Edits::default();
        for (part, signature) in signatures {
            let (span, before, after) = match &part.signature {
                Signature::Present => continue,
                Signature::Empty(span) => (span.clone(), "\"", "\""),
                Signature::Absent(at) => (*at..*at, "\"thoughtSignature\":\"", "\","),
            };
            let end = span.end;
            edits.replace(span, before);
            edits.replace(end..end, signature.clone());
            edits.replace(end..end, after);
        }
        edits.apply(body)
    }
}

fn turn<'a>(c: &mut Cursor<'a>, content: usize, keyer: &PartKeyer, parts: &mut Vec<ModelPart>) {
    let mut is_model = false;
    let mut raw: Vec<Raw<'a>> = Vec::new();
    c.object(|c, key| match key {
        b"role" => is_model = c.text().is_some_and(|role| role.is("model")),
        b"parts" => {
            // A member that comes twice replaces the one before.
            raw.clear();
            c.each(|c| match raw.len() {
                ..MAX_PARTS => raw.push(part(c)),
                _ => c.skip(),
            });
        }
        _ => c.skip(),
    });
    if !is_model {
        return;
    }
    let is_shown = |raw: &Raw<'_>| !raw.is_thought && raw.kind() != PartKind::Other;
    let first_shown = raw.iter().position(is_shown);
    let is_in_image_turn = raw.iter().any(|raw| raw.is_image && !raw.is_thought);
    let room = MAX_PARTS.saturating_sub(parts.len());
    for (index, raw) in raw.into_iter().enumerate().take(room) {
        let kind = raw.kind();
        let key = match (&raw.signature, kind) {
            (Signature::Present, _) => None,
            (_, PartKind::Image) => {
                raw.data.and_then(|data| keyer.image_base64(data.decoded()?.as_bytes()))
            }
            // Longer than what a text is known by six times over, since each of its bytes may be an
            // escape.
            (_, PartKind::Text) => raw
                .text
                .filter(|text| text.len() <= 1 << 20)
                .and_then(|text| text.decoded())
                .map(|text| keyer.text(&text)),
            _ => None,
        };
        parts.push(ModelPart {
            content,
            part: index + 1,
            kind,
            is_thought: raw.is_thought,
            is_first_shown: first_shown == Some(index),
            is_in_image_turn,
            key,
            signature: raw.signature,
        });
    }
    const { assert!(MAX_KEYED_TEXT < 1 << 20) };
}

fn part<'a>(c: &mut Cursor<'a>) -> Raw<'a> {
    let mut raw = Raw {
        text: None,
        data: None,
        is_image: false,
        is_thought: false,
        // Behind the opening bracket: a part that is anything has a member to stand before.
        signature: Signature::Absent(c.position() + 1),
    };
    c.object(|c, key| match key {
        b"text" => raw.text = c.text().filter(|text| !text.is_empty()),
        b"thought" => raw.is_thought = c.is_true(),
        b"inlineData" | b"fileData" => {
            let mut is_image = c.kind() == Kind::Object;
            let mut data = None;
            c.object(|c, key| match key {
                b"mimeType" => {
                    is_image = c.text().is_none_or(|m| m.is_empty() || m.starts_with("image/"));
                }
                b"data" => data = c.text(),
                _ => c.skip(),
            });
            raw.is_image |= is_image;
            raw.data = data.or(raw.data);
        }
        b"thoughtSignature" => {
            let start = c.position();
            let has_text = c.text().is_some_and(|text| !text.is_empty());
            raw.signature = if has_text {
                Signature::Present
            } else {
                Signature::Empty(start..c.position_after())
            };
        }
        _ => c.skip(),
    });
    raw
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn keyer() -> PartKeyer {
        PartKeyer::new([7, 9])
    }

    #[test]
    fn the_role_may_stand_behind_the_parts_and_names_in_either_spelling() {
        let body = br#"{"contents":[{"parts":[{"inline_data":{"data":"AAAA","mime_type":"image/png"},"thought_signature":null}],"role":"model"}]}"#;
        let found = Conversation::read(body, &keyer());
        assert_eq!(found.parts().len(), 1);
        assert!(found.parts()[0].lacks_signature());
        assert_eq!(found.parts()[0].key, keyer().image_base64(b"AAAA"));
        let signed = Conversation::sign(
            &Bytes::from_static(body),
            &[(&found.parts()[0], Bytes::from_static(b"QUJD"))],
        )
        .concat();
        let value: Value = serde_json::from_slice(&signed).unwrap();
        assert_eq!(value["contents"][0]["parts"][0]["thought_signature"], "QUJD");
    }

    #[test]
    fn thoughts_and_turns_of_text_alone_are_not_checked() {
        let body = json!({"contents": [
            {"role": "model", "parts": [{"text": "hm", "thought": true}, {"text": "which cat?"}]},
            {"role": "model", "parts": [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}, "thought": true}, {"text": "here"},
                {"inlineData": {"mimeType": "image/png", "data": "BBBB"}}]},
            {"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]},
        ]});
        let found = Conversation::read(body.to_string().as_bytes(), &keyer());
        let missing: Vec<_> =
            found.missing().map(|part| (part.content, part.part, part.kind)).collect();
        assert_eq!(missing, [(2, 2, PartKind::Text), (2, 3, PartKind::Image)]);
    }

    #[test]
    fn a_byte_order_mark_moves_no_position() {
        let body = Bytes::from(
            "\u{feff}{\"contents\":[{\"role\":\"model\",\"parts\":[{\"inlineData\":{\"data\":\"AAAA\"}}]}]}",
        );
        let found = Conversation::read(&body, &keyer());
        let signed =
            Conversation::sign(&body, &[(&found.parts()[0], Bytes::from_static(b"QUJD"))]).concat();
        let value: Value = serde_json::from_slice(&signed[3..]).unwrap();
        assert_eq!(value["contents"][0]["parts"][0]["thoughtSignature"], "QUJD");
    }

    // 110 MB of them took gigabytes.
    #[test]
    fn a_conversation_of_countless_parts_takes_no_more_than_so_many() {
        let parts = |count: usize| vec!["0"; count].join(",");
        let turn = |parts: &str| format!("{{\"role\":\"model\",\"parts\":[{parts}]}}");
        let many = turn(&parts(MAX_PARTS + 9));
        for turns in [many.clone(), vec![turn(&parts(99)); MAX_PARTS / 99 + 9].join(",")] {
            let body = format!("{{\"contents\":[{turns}]}}");
            let found = Conversation::read(body.as_bytes(), &keyer());
            assert_eq!(found.parts().len(), MAX_PARTS);
        }
    }

    #[test]
    fn signing_copies_nothing_of_the_body() {
        let body = Bytes::from(json!({"contents": [{"role": "model", "parts": [{"inlineData": {"data": "AAAA"}}, {"inlineData": {"data": "BBBB"}}]}]}).to_string());
        let found = Conversation::read(&body, &keyer());
        let signature = Bytes::from(vec![b'A'; 1000]);
        let signatures: Vec<_> =
            found.parts().iter().map(|part| (part, signature.clone())).collect();
        let chunks = Conversation::sign(&body, &signatures);
        let (within, of_signature) = (body.as_ptr_range(), signature.as_ptr());
        let kept: usize =
            chunks.iter().filter(|chunk| within.contains(&chunk.as_ptr())).map(Bytes::len).sum();
        assert_eq!(kept, body.len(), "every byte is sent from where it lay");
        assert_eq!(chunks.iter().filter(|chunk| chunk.as_ptr() == of_signature).count(), 2);
    }

    fn any_part() -> impl Strategy<Value = Value> {
        let signature = prop_oneof![
            Just(None),
            Just(Some(json!(""))),
            Just(Some(Value::Null)),
            Just(Some(json!("c2ln")))
        ];
        let what = prop_oneof![
            "\\PC{0,12}".prop_map(|text| json!({"text": text})),
            proptest::collection::vec(any::<u8>(), 1..40).prop_map(|bytes| {
                use base64::Engine as _;
                json!({"inlineData": {"mimeType": "image/png", "data": base64::engine::general_purpose::STANDARD.encode(bytes)}})
            }),
            Just(json!({"functionCall": {"name": "f", "args": {"parts": [1, {"text": "x"}]}}})),
            Just(json!({"fileData": {"fileUri": "gs://a", "mimeType": "image/png"}})),
        ];
        (what, signature, any::<Option<bool>>()).prop_map(|(mut part, signature, thought)| {
            if let Some(signature) = signature {
                part["thoughtSignature"] = signature;
            }
            if let Some(thought) = thought {
                part["thought"] = json!(thought);
            }
            part
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        /// Against serde_json: the same parts lack a signature, and after signing every one of them
        /// has the one that was given while everything else stands as it stood.
        #[test]
        fn signing_changes_signatures_and_nothing_else(
            turns in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any_part(), 0..5)), 0..5),
            pretty in any::<bool>(),
        ) {
            let contents: Vec<Value> = turns
                .iter()
                .map(|(model, parts)| json!({"role": if *model { "model" } else { "user" }, "parts": parts}))
                .collect();
            let mut wanted = json!({"contents": contents, "generationConfig": {"imageConfig": {"imageSize": "2K"}}});
            let body = if pretty { serde_json::to_string_pretty(&wanted) } else { serde_json::to_string(&wanted) }.unwrap();
            let body = Bytes::from(body);
            let found = Conversation::read(&body, &keyer());
            let lacking: Vec<_> = found.parts().iter().filter(|part| part.lacks_signature()).collect();
            let signatures: Vec<_> =
                lacking.iter().enumerate().map(|(n, part)| (*part, Bytes::from(format!("c2ln{n:04}")))).collect();
            let signed = Conversation::sign(&body, &signatures).concat();
            let mut expected = 0;
            for content in wanted["contents"].as_array_mut().unwrap() {
                if content["role"] != "model" {
                    continue;
                }
                for part in content["parts"].as_array_mut().unwrap() {
                    if part["thoughtSignature"].as_str().is_none_or(str::is_empty) {
                        part["thoughtSignature"] = json!(format!("c2ln{expected:04}"));
                        expected += 1;
                    }
                }
            }
            prop_assert_eq!(expected, lacking.len());
            prop_assert_eq!(serde_json::from_slice::<Value>(&signed).unwrap(), wanted);
        }

        #[test]
        fn no_bytes_make_it_fail(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let body = Bytes::from(bytes);
            let found = Conversation::read(&body, &keyer());
            let all: Vec<_> = found.parts().iter().map(|part| (part, Bytes::from_static(b"x"))).collect();
            let _ = Conversation::sign(&body, &all);
        }
    }
}
