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
    Content,
    Part,
    Inline,
    File,
    Feedback,
    Usage,
    UsageItem,
    UsageOutput,
    Prediction,
    Choice,
    /// What gateways keep of the provider's own response beside their translation.
    Provider,
    Message,
    ImageEntry,
    ImageUrl,
    MessagePart,
    DataItem,
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
    Type,
    Uri,
    Usage,
}

/// A member that means something.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Member {
    names: &'static [&'static str],
    pub(super) field: Field,
    /// What its value is where that is an object.
    pub(super) object: Node,
    /// What each element is where its value is an array.
    pub(super) each: Node,
}

const fn value(field: Field, names: &'static [&'static str]) -> Member {
    Member { names, field, object: Node::Skip, each: Node::Skip }
}

const fn object(field: Field, names: &'static [&'static str], object: Node) -> Member {
    Member { object, ..value(field, names) }
}

const fn array(field: Field, names: &'static [&'static str], each: Node) -> Member {
    Member { each, ..value(field, names) }
}

/// The members of a node. Names are in camel case, and read in snake case as well.
fn members(node: Node) -> &'static [Member] {
    use Field as F;
    const ROOT: &[Member] = &[
        array(F::Candidates, &["candidates"], Node::Candidate),
        object(F::Feedback, &["promptFeedback"], Node::Feedback),
        object(F::Usage, &["usageMetadata", "usage"], Node::Usage),
        value(F::ModelVersion, &["modelVersion"]),
        value(F::Model, &["model"]),
        value(F::Id, &["responseId", "id"]),
        value(F::Error, &["error"]),
        array(F::Errors, &["errors"], Node::ErrorItem),
        array(F::Predictions, &["predictions", "generatedImages"], Node::Prediction),
        array(F::Choices, &["choices"], Node::Choice),
        Member { object: Node::Root, ..array(F::DataList, &["data"], Node::DataItem) },
        array(F::Items, &["outputs", "output", "steps"], Node::Item),
        object(F::Delta, &["step", "delta"], Node::Item),
        object(F::Content, &["content"], Node::Item),
        object(F::Interaction, &["interaction"], Node::Root),
        // What Cloud Code, batch results and gateways wrap a response in.
        object(F::Response, &["response", "result"], Node::Root),
        value(F::Status, &["status"]),
        value(F::Object, &["object"]),
        value(F::Type, &["type", "eventType"]),
        value(F::Base64, &["b64Json"]),
        value(F::FinishReason, &["finishReason"]),
    ];
    const CANDIDATE: &[Member] = &[
        object(F::Content, &["content"], Node::Content),
        value(F::FinishReason, &["finishReason"]),
        value(F::FinishMessage, &["finishMessage"]),
        value(F::Error, &["error"]),
        // OpenRouter and LiteLLM keep Google's own reason beside their translation of it.
        value(F::NativeReason, &["nativeFinishReason"]),
        object(F::Provider, &["providerSpecificFields"], Node::Provider),
    ];
    const PART: &[Member] = &[
        object(F::Inline, &["inlineData"], Node::Inline),
        object(F::File, &["fileData"], Node::File),
        value(F::Text, &["text"]),
        value(F::Thought, &["thought"]),
        value(F::Signature, &["thoughtSignature"]),
    ];
    const USAGE: &[Member] = &[
        value(
            F::CountPrompt,
            &["promptTokenCount", "promptTokens", "inputTokens", "totalInputTokens"],
        ),
        value(
            F::CountCandidates,
            &["candidatesTokenCount", "completionTokens", "outputTokens", "totalOutputTokens"],
        ),
        value(F::CountThoughts, &["thoughtsTokenCount", "totalThoughtTokens"]),
        value(F::CountTotal, &["totalTokenCount", "totalTokens"]),
        array(F::Details, &["candidatesTokensDetails", "outputTokensByModality"], Node::UsageItem),
        object(F::Unknown, &["completionTokensDetails", "outputTokensDetails"], Node::UsageOutput),
    ];
    const PREDICTION: &[Member] = &[
        value(F::Base64, &["bytesBase64Encoded", "imageBytes"]),
        value(F::Mime, &["mimeType"]),
        value(F::Rai, &["raiFilteredReason"]),
        value(F::Uri, &["gcsUri"]),
        object(F::Unknown, &["image"], Node::Prediction),
    ];
    const CHOICE: &[Member] = &[
        object(F::Message, &["message"], Node::Message),
        object(F::Delta, &["delta"], Node::Message),
        value(F::FinishReason, &["finishReason"]),
        value(F::Error, &["error"]),
        value(F::NativeReason, &["nativeFinishReason"]),
        object(F::Provider, &["providerSpecificFields"], Node::Provider),
    ];
    const MESSAGE: &[Member] = &[
        array(F::Markdown, &["content"], Node::MessagePart),
        array(F::Images, &["images"], Node::ImageEntry),
        value(F::Refusal, &["refusal"]),
    ];
    const ITEM: &[Member] = &[
        value(F::Type, &["type"]),
        value(F::Text, &["text"]),
        value(F::Thought, &["thought"]),
        value(F::Signature, &["signature", "thoughtSignature"]),
        // `result` is the Responses API's.
        value(F::Data, &["data", "result"]),
        value(F::Mime, &["mimeType"]),
        value(F::Uri, &["uri", "url"]),
        Member { each: Node::Item, ..object(F::Content, &["content"], Node::Item) },
        Member { each: Node::Item, ..object(F::Summary, &["summary"], Node::Item) },
    ];
    match node {
        Node::Skip => &[],
        Node::Root => ROOT,
        Node::Candidate => CANDIDATE,
        Node::Content => const { &[array(F::Parts, &["parts"], Node::Part)] },
        Node::Part => PART,
        Node::Inline => const { &[value(F::Data, &["data"]), value(F::Mime, &["mimeType"])] },
        Node::File => {
            const { &[value(F::FileUri, &["fileUri"]), value(F::FileMime, &["mimeType"])] }
        }
        Node::Feedback => {
            const {
                &[
                    value(F::BlockReason, &["blockReason"]),
                    value(F::BlockMessage, &["blockReasonMessage"]),
                ]
            }
        }
        Node::Usage => USAGE,
        Node::UsageItem => {
            const {
                &[
                    value(F::Modality, &["modality"]),
                    value(F::CountTokens, &["tokenCount", "tokens"]),
                ]
            }
        }
        Node::UsageOutput => {
            const {
                &[
                    value(F::CountThoughts, &["reasoningTokens"]),
                    value(F::CountImages, &["imageTokens"]),
                ]
            }
        }
        Node::Prediction => PREDICTION,
        Node::Choice => CHOICE,
        Node::Provider => const { &[value(F::NativeReason, &["nativeFinishReason"])] },
        Node::Message => MESSAGE,
        Node::ImageEntry => {
            const {
                &[
                    value(F::Base64, &["b64Json"]),
                    object(F::Uri, &["imageUrl", "url"], Node::ImageUrl),
                ]
            }
        }
        Node::ImageUrl => const { &[value(F::Uri, &["url"])] },
        Node::MessagePart => {
            const {
                &[
                    value(F::Type, &["type"]),
                    value(F::Text, &["text"]),
                    object(F::Uri, &["imageUrl"], Node::ImageUrl),
                ]
            }
        }
        Node::DataItem => {
            const {
                &[
                    value(F::Base64, &["b64Json"]),
                    value(F::Mime, &["mimeType"]),
                    value(F::Uri, &["url"]),
                ]
            }
        }
        Node::Item => ITEM,
        Node::ErrorItem => {
            const { &[value(F::Code, &["code"]), value(F::FinishMessage, &["message"])] }
        }
    }
}

/// The member that `key` is within `node`.
pub(super) fn member(node: Node, key: &[u8]) -> Member {
    let is = |name: &&str| key == name.as_bytes() || is_snake(key, name);
    let found = members(node).iter().find(|member| member.names.iter().any(is));
    found.copied().unwrap_or_default()
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
