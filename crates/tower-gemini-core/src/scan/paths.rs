//! Which place in a response means what: the shapes of all dialects as one table.
//!
//! The dialect asked for is no guide, since relays respond to one in the shape of another; the
//! place of a member is.

/// What a container is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    /// Anything that is skipped.
    #[default]
    Skip,
    /// One response, or one chunk or event of it.
    Root,
    /// An array of them.
    RootArray,
    Candidates,
    Candidate,
    Content,
    Parts,
    Part,
    Inline,
    File,
    /// An object within a part that is neither data nor text: a function call, code and the like.
    Other,
    Feedback,
    Usage,
    UsageList,
    UsageItem,
    UsageOutput,
    Predictions,
    Prediction,
    Choices,
    Choice,
    /// What gateways keep of the provider's own response beside their translation.
    Provider,
    Message,
    Images,
    ImageEntry,
    ImageUrl,
    MessageParts,
    MessagePart,
    DataList,
    DataItem,
    /// Interactions: steps, outputs, and the contents of steps.
    Items,
    Item,
    Errors,
    ErrorItem,
}

/// What a member is, whatever its spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Field {
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
    CountTotal,
    Data,
    Delta,
    Details,
    Error,
    Errors,
    Feedback,
    File,
    FinishMessage,
    FinishReason,
    Id,
    Images,
    Inline,
    Interaction,
    Items,
    Message,
    Mime,
    Modality,
    Model,
    ModelVersion,
    NativeReason,
    Nested,
    Object,
    OutputDetails,
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
    Tokens,
    Type,
    Uri,
    Usage,
}

/// The member that `key` is within `node`.
pub(super) fn field(node: Node, key: &[u8]) -> Field {
    use Field as F;
    match (node, key) {
        (Node::Root, b"candidates") => F::Candidates,
        (Node::Root, b"promptFeedback" | b"prompt_feedback") => F::Feedback,
        (Node::Root, b"usageMetadata" | b"usage_metadata" | b"usage") => F::Usage,
        (Node::Root, b"modelVersion" | b"model_version") => F::ModelVersion,
        (Node::Root, b"model") => F::Model,
        (Node::Root, b"responseId" | b"response_id" | b"id") => F::Id,
        (Node::Root | Node::Candidate | Node::Choice, b"error") => F::Error,
        (Node::Root, b"errors") => F::Errors,
        (Node::Root, b"predictions" | b"generatedImages" | b"generated_images") => F::Predictions,
        (Node::Root, b"choices") => F::Choices,
        (Node::Root, b"data") => F::Data,
        (Node::Root, b"outputs" | b"output" | b"steps") => F::Items,
        (Node::Root, b"step" | b"delta") => F::Delta,
        (Node::Root, b"content") => F::Content,
        (Node::Root, b"interaction") => F::Interaction,
        // What Cloud Code, batch results and gateways wrap a response in.
        (Node::Root, b"response" | b"result") => F::Response,
        (Node::Root, b"status") => F::Status,
        (Node::Root, b"object") => F::Object,
        (Node::Root | Node::Item | Node::MessagePart, b"type") | (Node::Root, b"event_type") => {
            F::Type
        }
        (Node::Root | Node::DataItem | Node::ImageEntry, b"b64_json") => F::Base64,

        (Node::Candidate, b"content") => F::Content,
        (Node::Root | Node::Candidate | Node::Choice, b"finishReason" | b"finish_reason") => {
            F::FinishReason
        }
        // OpenRouter and LiteLLM keep Google's own reason beside their translation of it.
        (Node::Candidate | Node::Choice | Node::Provider, b"native_finish_reason") => {
            F::NativeReason
        }
        (Node::Candidate | Node::Choice, b"provider_specific_fields") => F::Provider,
        (Node::Candidate, b"finishMessage" | b"finish_message") | (Node::ErrorItem, b"message") => {
            F::FinishMessage
        }
        (Node::Content, b"parts") => F::Parts,
        (Node::Part, b"inlineData" | b"inline_data") => F::Inline,
        (Node::Part, b"fileData" | b"file_data") => F::File,
        (Node::Part | Node::Item | Node::MessagePart, b"text") => F::Text,
        (Node::Part | Node::Item, b"thought") => F::Thought,
        (Node::Part, b"thoughtSignature" | b"thought_signature") => F::Signature,
        (Node::Item, b"signature" | b"thought_signature") => F::Signature,
        // `result` is the Responses API's.
        (Node::Inline | Node::Item, b"data") | (Node::Item, b"result") => F::Data,
        (
            Node::Inline | Node::File | Node::Prediction | Node::Item | Node::DataItem,
            b"mimeType" | b"mime_type",
        ) => F::Mime,
        (Node::File, b"fileUri" | b"file_uri") => F::Uri,

        (Node::Feedback, b"blockReason" | b"block_reason") => F::BlockReason,
        (Node::Feedback, b"blockReasonMessage" | b"block_reason_message") => F::BlockMessage,

        (
            Node::Usage,
            b"promptTokenCount"
            | b"prompt_token_count"
            | b"prompt_tokens"
            | b"input_tokens"
            | b"total_input_tokens",
        ) => F::CountPrompt,
        (
            Node::Usage,
            b"candidatesTokenCount"
            | b"candidates_token_count"
            | b"completion_tokens"
            | b"output_tokens"
            | b"total_output_tokens",
        ) => F::CountCandidates,
        (
            Node::Usage,
            b"thoughtsTokenCount" | b"thoughts_token_count" | b"total_thought_tokens",
        )
        | (Node::UsageOutput, b"reasoning_tokens") => F::CountThoughts,
        (Node::Usage, b"totalTokenCount" | b"total_token_count" | b"total_tokens") => F::CountTotal,
        (
            Node::Usage,
            b"candidatesTokensDetails"
            | b"candidates_tokens_details"
            | b"output_tokens_by_modality",
        ) => F::Details,
        (Node::Usage, b"completion_tokens_details" | b"output_tokens_details") => F::OutputDetails,
        (Node::UsageOutput, b"image_tokens") => F::CountImages,
        (Node::UsageItem, b"modality") => F::Modality,
        (Node::UsageItem, b"tokenCount" | b"token_count" | b"tokens") => F::Tokens,

        (Node::Prediction, b"bytesBase64Encoded" | b"imageBytes") => F::Base64,
        (Node::Prediction, b"raiFilteredReason" | b"rai_filtered_reason") => F::Rai,
        (Node::Prediction, b"gcsUri" | b"gcs_uri") => F::Uri,
        (Node::Prediction, b"image") => F::Nested,

        (Node::Choice, b"message") => F::Message,
        (Node::Choice, b"delta") => F::Delta,
        (Node::Message, b"content") => F::Content,
        (Node::Message, b"images") => F::Images,
        (Node::Message, b"refusal") => F::Refusal,
        (Node::ImageEntry | Node::MessagePart, b"image_url")
        | (Node::ImageEntry | Node::ImageUrl | Node::DataItem, b"url") => F::Uri,

        (Node::Item, b"content") => F::Content,
        (Node::Item, b"summary") => F::Summary,
        (Node::Item, b"uri" | b"url") => F::Uri,
        (Node::ErrorItem, b"code") => F::Code,
        _ => F::Unknown,
    }
}

/// Returns what an object or array at that place is. `first` is whether it is its array's first
/// element.
pub(super) fn child(node: Node, field: Field, object: bool, first: bool) -> Node {
    use Field as F;
    match (node, field, object) {
        (Node::RootArray, _, true) | (Node::Root, F::Response | F::Interaction | F::Data, true) => {
            Node::Root
        }
        (Node::Root, F::Candidates, false) => Node::Candidates,
        (Node::Candidates, _, true) if first => Node::Candidate,
        (Node::Candidate, F::Content, true) => Node::Content,
        (Node::Content, F::Parts, false) => Node::Parts,
        (Node::Parts, _, true) => Node::Part,
        (Node::Part, F::Inline, true) => Node::Inline,
        (Node::Part, F::File, true) => Node::File,
        (Node::Part, _, true) => Node::Other,
        (Node::Root, F::Feedback, true) => Node::Feedback,
        (Node::Root, F::Usage, true) => Node::Usage,
        (Node::Usage, F::Details, false) => Node::UsageList,
        (Node::UsageList, _, true) => Node::UsageItem,
        (Node::Usage, F::OutputDetails, true) => Node::UsageOutput,
        (Node::Root, F::Predictions, false) => Node::Predictions,
        (Node::Predictions, _, true) | (Node::Prediction, F::Nested, true) => Node::Prediction,
        (Node::Root, F::Choices, false) => Node::Choices,
        (Node::Choices, _, true) if first => Node::Choice,
        (Node::Candidate | Node::Choice, F::Provider, true) => Node::Provider,
        (Node::Choice, F::Message | F::Delta, true) => Node::Message,
        (Node::Message, F::Images, false) => Node::Images,
        (Node::Images, _, true) => Node::ImageEntry,
        (Node::ImageEntry | Node::MessagePart, F::Uri, true) => Node::ImageUrl,
        (Node::Message, F::Content, false) => Node::MessageParts,
        (Node::MessageParts, _, true) => Node::MessagePart,
        (Node::Root, F::Data, false) => Node::DataList,
        (Node::DataList, _, true) => Node::DataItem,
        (Node::Root, F::Items, false) | (Node::Item, F::Content | F::Summary, false) => Node::Items,
        (Node::Root, F::Delta | F::Content, true)
        | (Node::Items, _, true)
        | (Node::Item, F::Content | F::Summary, true) => Node::Item,
        (Node::Root, F::Errors, false) => Node::Errors,
        (Node::Errors, _, true) => Node::ErrorItem,
        _ => Node::Skip,
    }
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
