//! What is done about a part that lacks its signature: pure.

use bytes::Bytes;
use tower_gemini_core::call::{Call, Conversation, Dialect, ModelPart, PartKind, Verb};
use tower_gemini_core::catalog::{Catalog, Family, Thinking};
use tower_gemini_core::scan::PartKey;

use super::store::Backend;

/// What the API takes in place of a signature that nobody has (Gemini API and Vertex AI
/// documentation, thought signatures, 2026-07). The field is bytes, and yet the raw words are
/// taken.
pub const PLACEHOLDER: &str = "skip_thought_signature_validator";

/// What is done about a checked part without a signature that was never seen here either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Missing {
    /// The call is refused as the API would refuse it, and nothing is sent.
    #[default]
    Refuse,
    /// [`PLACEHOLDER`] is written in its place. The model then edits without its own thoughts about
    /// the image.
    Placeholder,
    /// It is sent as it is, and the API decides.
    Send,
}

/// What is done with one request.
#[derive(Debug)]
pub(super) enum Plan<'a> {
    /// Nothing.
    Send,
    /// These signatures are written into it.
    Sign { signatures: Vec<(&'a ModelPart, Bytes)>, restored: u32, placeholders: u32 },
    /// It is refused for these parts.
    Refuse { missing: Vec<&'a ModelPart> },
}

/// Which service a call goes to, where its signatures are of interest: Gemini's own dialects,
/// earlier turns of the model, a model that thinks or is not known.
pub(super) fn backend_of(call: &Call) -> Option<Backend> {
    let backend = match call.dialect {
        Dialect::GeminiApi => Backend::GeminiApi,
        Dialect::VertexAi => Backend::VertexAi,
        _ => return None,
    };
    let thinks = model_of(call).is_none_or(|model| model.thinking != Thinking::None);
    (matches!(call.verb, Verb::Generate | Verb::StreamGenerate) && thinks).then_some(backend)
}

fn model_of(call: &Call) -> Option<&'static tower_gemini_core::catalog::Model> {
    Catalog::builtin().lookup(call.model.as_ref()?.as_str())
}

/// Whether the service is known to refuse this call for a missing signature. Gemini 3 Pro Image
/// does not enforce them on Vertex AI (its documentation, 2026-07). A model that the catalogue does
/// not know is not assumed to.
pub(super) fn is_enforced(call: &Call, strict_on_vertex: bool) -> bool {
    let Some(model) = model_of(call) else { return false };
    call.wants_image
        && (strict_on_vertex || call.dialect != Dialect::VertexAi || model.family != Family::Pro)
}

/// Decides: what was seen is restored wherever it lacks; what is checked and was not seen goes by
/// `missing`.
pub(super) fn plan<'a>(
    conversation: &'a Conversation,
    missing: Missing,
    enforced: bool,
    mut seen: impl FnMut(PartKey) -> Option<Bytes>,
) -> Plan<'a> {
    let (mut signatures, mut unseen) = (Vec::new(), Vec::new());
    for part in conversation.parts().iter().filter(|part| part.lacks_signature()) {
        match part.key.and_then(&mut seen) {
            Some(signature) => signatures.push((part, signature)),
            None if part.is_checked() && enforced => unseen.push(part),
            None => {}
        }
    }
    let restored = u32::try_from(signatures.len()).unwrap_or(u32::MAX);
    let mut placeholders = 0;
    match missing {
        Missing::Refuse if !unseen.is_empty() => return Plan::Refuse { missing: unseen },
        Missing::Placeholder => {
            placeholders = u32::try_from(unseen.len()).unwrap_or(u32::MAX);
            signatures.extend(
                unseen.into_iter().map(|part| (part, Bytes::from_static(PLACEHOLDER.as_bytes()))),
            );
        }
        Missing::Refuse | Missing::Send => {}
    }
    if signatures.is_empty() {
        Plan::Send
    } else {
        Plan::Sign { signatures, restored, placeholders }
    }
}

/// Returns the text of a refusal. It begins with what the API itself says of the first part, so
/// that a search for the API's words finds it.
pub(super) fn message(missing: &[&ModelPart]) -> String {
    let mut text = String::new();
    if let Some(first) = missing.first() {
        let kind = if first.kind == PartKind::Image { "Image" } else { "Text" };
        text = format!(
            "{kind} part is missing a thought_signature in content position {}, part position {}.",
            first.content, first.part
        );
    }
    if missing.len() > 1 {
        /// More than a person reads.
        const MOST: usize = 8;
        text.push_str(" Also missing (content, part):");
        for part in missing.iter().skip(1).take(MOST) {
            text.push_str(&format!(" ({}, {})", part.content, part.part));
        }
        if missing.len() > MOST + 1 {
            text.push_str(&format!(" and {} more", missing.len() - MOST - 1));
        }
        text.push('.');
    }
    text.push_str(" Not sent: give each part of the model's turns back with the thoughtSignature it came with.");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, Method};
    use tower_gemini_core::scan::PartKeyer;

    fn call(path: &str) -> Call {
        Call::parse(&Method::POST, &path.parse().unwrap(), &HeaderMap::new(), Some(b"{}"))
    }

    const BODY: &[u8] = br#"{"contents":[{"role":"model","parts":[{"text":"here"},{"inlineData":{"data":"AAAA"}},{"inlineData":{"data":"BBBB"}}]}]}"#;

    #[test]
    fn only_models_that_think_and_speak_geminis_dialects_are_of_interest() {
        assert_eq!(
            backend_of(&call("/v1beta/models/gemini-3-pro-image:generateContent")),
            Some(Backend::GeminiApi)
        );
        assert_eq!(
            backend_of(&call("/v1beta/models/gemini-99-image:streamGenerateContent")),
            Some(Backend::GeminiApi)
        );
        assert_eq!(
            backend_of(&call("/v1beta/models/gemini-2.5-flash-image:generateContent")),
            None
        );
        assert_eq!(backend_of(&call("/v1beta/models/gemini-3-pro-image:countTokens")), None);
        assert_eq!(backend_of(&call("/v1/chat/completions")), None);
    }

    #[test]
    fn vertex_is_lenient_with_pro_and_unknown_models_are_left_to_the_api() {
        let vertex = |model: &str| {
            call(&format!(
                "/v1/projects/p/locations/global/publishers/google/models/{model}:generateContent"
            ))
        };
        assert!(!is_enforced(&vertex("gemini-3-pro-image"), false));
        assert!(is_enforced(&vertex("gemini-3-pro-image"), true));
        assert!(is_enforced(&vertex("gemini-3.1-flash-image"), false));
        assert!(is_enforced(&call("/v1beta/models/gemini-3-pro-image:generateContent"), false));
        assert!(!is_enforced(&call("/v1beta/models/gemini-99-image:generateContent"), true));
    }

    #[test]
    fn a_part_that_was_seen_is_restored_whatever_happens_to_the_others() {
        let keyer = PartKeyer::new([1, 2]);
        let conversation = Conversation::read(BODY, &keyer);
        let image = keyer.image_base64(b"AAAA").unwrap();
        let seen = |part| (part == image).then(|| Bytes::from_static(b"c2ln"));
        let Plan::Sign { signatures, restored, placeholders } =
            plan(&conversation, Missing::Placeholder, true, seen)
        else {
            panic!()
        };
        assert_eq!((restored, placeholders, signatures.len()), (1, 2, 3));
        let Plan::Sign { signatures, .. } = plan(&conversation, Missing::Send, true, seen) else {
            panic!()
        };
        assert_eq!(signatures.len(), 1);
        let Plan::Refuse { missing } = plan(&conversation, Missing::Refuse, true, seen) else {
            panic!()
        };
        assert_eq!(
            message(&missing),
            "Text part is missing a thought_signature in content position 1, part position 1. Also missing (content, part): (1, 3). \
             Not sent: give each part of the model's turns back with the thoughtSignature it came with."
        );
        assert!(matches!(plan(&conversation, Missing::Refuse, false, |_| None), Plan::Send));
    }
}
