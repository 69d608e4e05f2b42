//! Which place in a response means what: the shapes of all dialects as one table.
//!
//! The dialect asked for is no guide, since relays respond to one in the shape of another; the
//! place of a member is.

/// What an object is, or each element of an array.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    /// Anything that is skipped.
    #[default]
    Skip,
    /// One response, or one chunk or event of it.
    Root,
    Candidate,
    /// A candidate behind the first: only its images count. A choice likewise.
    OtherCandidate,
    OtherChoice,
    Content,
    Part,
    Inline,
    File,
    Feedback,
    Usage,
    UsageItem,
    UsageOutput,
    Choice,
    /// What gateways keep of the provider's own response beside their translation.
    Provider,
    Message,
    /// An image, or what holds one, in a list: Imagen's predictions, the Images API's data, and a
    /// chat message's parts and images.
    Entry,
    ImageUrl,
    /// Interactions: steps, outputs, and the contents of steps.
    Item,
    ErrorItem,
}

/// What a member is, whatever its spelling.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    #[default]
    Unknown,
    Base64,
    BlockMessage,
    BlockReason,
    Candidates,
    Choices,
    Code,
    Content,
    CountCandidates,
    CountImages,
    CountPrompt,
    CountThoughts,
    CountTokens,
    CountTotal,
    Data,
    DataList,
    Delta,
    Details,
    Error,
    Errors,
    EventId,
    Feedback,
    File,
    FileMime,
    FileUri,
    FinishMessage,
    FinishReason,
    Id,
    Images,
    Inline,
    Interaction,
    Items,
    /// A text that may show an image.
    Markdown,
    Message,
    Mime,
    Modality,
    Model,
    ModelVersion,
    NativeReason,
    Object,
    Parts,
    Predictions,
    Provider,
    Rai,
    Refusal,
    Response,
    Signature,
    Status,
    Summary,
    Text,
    Thought,
    Tier,
    Type,
    Uri,
    Usage,
}

/// A member of an object: what it is, what its value is where that is an object, and what each
/// element is where its value is an array.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Member {
    pub(super) field: Field,
    pub(super) object: Node,
    pub(super) each: Node,
}

/// A [`Member`] with its names, which are in camel case, and read in snake case as well.
type Row = (Field, &'static [&'static str], Node, Node);

fn members(node: Node) -> &'static [Row] {
    use Field as F;
    use Node as N;
    match node {
        N::Skip => &[],
        N::Root => &[
            (F::Candidates, &["candidates"], N::Skip, N::Candidate),
            (F::Feedback, &["promptFeedback"], N::Feedback, N::Skip),
            (F::Usage, &["usageMetadata", "usage"], N::Usage, N::Skip),
            (F::ModelVersion, &["modelVersion"], N::Skip, N::Skip),
            (F::Model, &["model"], N::Skip, N::Skip),
            (F::Tier, &["serviceTier"], N::Skip, N::Skip),
            (F::Id, &["responseId", "id", "interactionId"], N::Skip, N::Skip),
            (F::EventId, &["eventId"], N::Skip, N::Skip),
            (F::Error, &["error"], N::Skip, N::Skip),
            (F::Errors, &["errors"], N::Skip, N::ErrorItem),
            (F::Predictions, &["predictions", "generatedImages"], N::Skip, N::Entry),
            (F::Choices, &["choices"], N::Skip, N::Choice),
            (F::DataList, &["data"], N::Root, N::Entry),
            (F::Items, &["outputs", "output", "steps"], N::Skip, N::Item),
            (F::Delta, &["step", "delta"], N::Item, N::Skip),
            (F::Content, &["content"], N::Item, N::Skip),
            (F::Interaction, &["interaction"], N::Root, N::Skip),
            // What Cloud Code, batch results and gateways wrap a response in.
            (F::Response, &["response", "result"], N::Root, N::Skip),
            (F::Status, &["status"], N::Skip, N::Skip),
            (F::Object, &["object"], N::Skip, N::Skip),
            (F::Type, &["type", "eventType"], N::Skip, N::Skip),
            (F::Base64, &["b64Json"], N::Skip, N::Skip),
            (F::FinishReason, &["finishReason"], N::Skip, N::Skip),
        ],
        N::Candidate => &[
            (F::Content, &["content"], N::Content, N::Skip),
            (F::FinishReason, &["finishReason"], N::Skip, N::Skip),
            (F::FinishMessage, &["finishMessage"], N::Skip, N::Skip),
            (F::Error, &["error"], N::Skip, N::Skip),
            // OpenRouter and LiteLLM keep Google's own reason beside their translation of it.
            (F::NativeReason, &["nativeFinishReason"], N::Skip, N::Skip),
            (F::Provider, &["providerSpecificFields"], N::Provider, N::Skip),
        ],
        N::OtherCandidate => &[(F::Content, &["content"], N::Content, N::Skip)],
        N::OtherChoice => &[
            (F::Message, &["message"], N::Message, N::Skip),
            (F::Delta, &["delta"], N::Message, N::Skip),
        ],
        N::Content => &[(F::Parts, &["parts"], N::Skip, N::Part)],
        N::Part => &[
            (F::Inline, &["inlineData"], N::Inline, N::Skip),
            (F::File, &["fileData"], N::File, N::Skip),
            (F::Text, &["text"], N::Skip, N::Skip),
            (F::Thought, &["thought"], N::Skip, N::Skip),
            (F::Signature, &["thoughtSignature"], N::Skip, N::Skip),
        ],
        N::Inline => {
            &[(F::Data, &["data"], N::Skip, N::Skip), (F::Mime, &["mimeType"], N::Skip, N::Skip)]
        }
        N::File => &[
            (F::FileUri, &["fileUri"], N::Skip, N::Skip),
            (F::FileMime, &["mimeType"], N::Skip, N::Skip),
        ],
        N::Feedback => &[
            (F::BlockReason, &["blockReason"], N::Skip, N::Skip),
            (F::BlockMessage, &["blockReasonMessage"], N::Skip, N::Skip),
        ],
        N::Usage => &[
            // The Gemini API's, and Vertex AI's.
            (F::Tier, &["serviceTier", "trafficType"], N::Skip, N::Skip),
            (F::CountPrompt, &PROMPT_COUNTS, N::Skip, N::Skip),
            (F::CountCandidates, &CANDIDATES_COUNTS, N::Skip, N::Skip),
            (F::CountThoughts, &["thoughtsTokenCount", "totalThoughtTokens"], N::Skip, N::Skip),
            (F::CountTotal, &["totalTokenCount", "totalTokens"], N::Skip, N::Skip),
            (F::Details, &["candidatesTokensDetails"], N::Skip, N::UsageItem),
            (F::Details, &["outputTokensByModality"], N::Skip, N::UsageItem),
            (F::Unknown, &["completionTokensDetails"], N::UsageOutput, N::Skip),
            (F::Unknown, &["outputTokensDetails"], N::UsageOutput, N::Skip),
        ],
        N::UsageItem => &[
            (F::Modality, &["modality"], N::Skip, N::Skip),
            (F::CountTokens, &["tokenCount", "tokens"], N::Skip, N::Skip),
        ],
        N::UsageOutput => &[
            (F::CountThoughts, &["reasoningTokens"], N::Skip, N::Skip),
            (F::CountImages, &["imageTokens"], N::Skip, N::Skip),
        ],
        N::Choice => &[
            (F::Message, &["message"], N::Message, N::Skip),
            (F::Delta, &["delta"], N::Message, N::Skip),
            (F::FinishReason, &["finishReason"], N::Skip, N::Skip),
            (F::Error, &["error"], N::Skip, N::Skip),
            (F::NativeReason, &["nativeFinishReason"], N::Skip, N::Skip),
            (F::Provider, &["providerSpecificFields"], N::Provider, N::Skip),
        ],
        N::Provider => &[(F::NativeReason, &["nativeFinishReason"], N::Skip, N::Skip)],
        N::Message => &[
            (F::Markdown, &["content"], N::Skip, N::Entry),
            (F::Images, &["images"], N::Skip, N::Entry),
            // Relays that keep Gemini's own parts.
            (F::Parts, &["multiModContent"], N::Skip, N::Part),
            (F::Refusal, &["refusal"], N::Skip, N::Skip),
        ],
        N::Entry => &[
            (F::Type, &["type"], N::Skip, N::Skip),
            (F::Text, &["text"], N::Skip, N::Skip),
            (F::Base64, &["b64Json", "bytesBase64Encoded", "imageBytes"], N::Skip, N::Skip),
            (F::Mime, &["mimeType"], N::Skip, N::Skip),
            (F::Uri, &["imageUrl", "url", "gcsUri"], N::ImageUrl, N::Skip),
            (F::Rai, &["raiFilteredReason"], N::Skip, N::Skip),
            (F::Unknown, &["image"], N::Entry, N::Skip),
        ],
        N::ImageUrl => &[(F::Uri, &["url"], N::Skip, N::Skip)],
        N::Item => &[
            (F::Type, &["type"], N::Skip, N::Skip),
            (F::Text, &["text"], N::Skip, N::Skip),
            (F::Thought, &["thought"], N::Skip, N::Skip),
            (F::Signature, &["signature", "thoughtSignature"], N::Skip, N::Skip),
            // `result` is the Responses API's.
            (F::Data, &["data", "result"], N::Skip, N::Skip),
            (F::Mime, &["mimeType"], N::Skip, N::Skip),
            (F::Uri, &["uri", "url"], N::Skip, N::Skip),
            (F::Content, &["content"], N::Item, N::Item),
            (F::Summary, &["summary"], N::Item, N::Item),
        ],
        N::ErrorItem => &[
            (F::Code, &["code"], N::Skip, N::Skip),
            (F::FinishMessage, &["message"], N::Skip, N::Skip),
        ],
    }
}

const PROMPT_COUNTS: [&str; 4] =
    ["promptTokenCount", "promptTokens", "inputTokens", "totalInputTokens"];
const CANDIDATES_COUNTS: [&str; 4] =
    ["candidatesTokenCount", "completionTokens", "outputTokens", "totalOutputTokens"];

/// The member that `key` is within `node`.
pub(super) fn member(node: Node, key: &[u8]) -> Member {
    // Both spellings begin with the same letter, and most names with another.
    let is = |name: &&str| {
        key.first() == name.as_bytes().first() && (key == name.as_bytes() || is_snake(key, name))
    };
    let found = members(node).iter().find(|row| row.1.iter().any(is));
    found.map(|&(field, _, object, each)| Member { field, object, each }).unwrap_or_default()
}

/// Whether `key` is that name in snake case.
fn is_snake(key: &[u8], name: &str) -> bool {
    let mut key = key.iter();
    name.bytes().all(|b| {
        (!b.is_ascii_uppercase() || key.next() == Some(&b'_'))
            && key.next() == Some(&b.to_ascii_lowercase())
    }) && key.next().is_none()
}

/// Returns whether a type is an image's.
pub(super) fn is_image(mime: &str) -> bool {
    mime.get(..6).is_some_and(|family| family.eq_ignore_ascii_case("image/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_has_a_bit_of_its_own() {
        assert!((Field::Usage as u8) < 64);
    }
}
