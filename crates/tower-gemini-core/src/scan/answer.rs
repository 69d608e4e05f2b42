//! What the scanner found in a response.

use std::ops::Range;

use bytes::Bytes;

use super::signatures::PartSignature;

/// What one complete 2xx response says, images apart. Everything is optional: missing fields are
/// normal.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Answer {
    /// Whether anything that looks like a response was in it (a `candidates`, `choices`, `data`,
    /// `predictions`, `outputs` or `steps` member, even an empty one).
    pub has_candidates: bool,
    /// The last `finishReason` (or `finish_reason`, or Interactions `status`/error code) of the
    /// first candidate, as spelled; a numeric enum is given as its digits.
    pub finish_reason: Option<String>,
    /// `finishMessage` of the first candidate.
    pub finish_message: Option<String>,
    /// `promptFeedback.blockReason`, as spelled; a numeric enum as its digits.
    pub block_reason: Option<String>,
    /// `promptFeedback.blockReasonMessage`.
    pub block_reason_message: Option<String>,
    /// Imagen's `raiFilteredReason`.
    pub rai_filtered_reason: Option<String>,
    /// The last `usageMetadata` (or OpenAI-style `usage`).
    pub usage: Option<Usage>,
    /// The response's own text, thoughts apart, cut to a bound (8 KiB).
    pub text: String,
    /// `modelVersion` (or `model`).
    pub model_version: Option<String>,
    /// The tier that it was served in, as spelled: `serviceTier` or `trafficType` (Vertex AI) of
    /// its usage, or `service_tier` in OpenAI's style.
    pub service_tier: Option<String>,
    /// `responseId` (or `id`, or `interaction_id`).
    pub response_id: Option<String>,
    /// The last `status`, as spelled: of an interaction, `completed`, `in_progress` and so on.
    pub status: Option<String>,
    /// `event_id` of the last complete event of an interaction's stream, from which it can be
    /// resumed.
    pub event_id: Option<String>,
    /// Image parts of any kind.
    pub images: u32,
    /// Image parts marked as thoughts.
    pub thought_images: u32,
    /// Image URLs that are not data URIs (`image_url`, `data[].url`, `fileData.fileUri` of an
    /// image): there is an image, elsewhere.
    pub image_urls: Vec<String>,
    /// The last final image: not a thought, unless there are only thoughts. Its bytes are
    /// there only when the scanner is decoding.
    pub image: Option<Image>,
    /// The final images before that one, in order: all that are not thoughts and that no later one
    /// replaces.
    pub earlier_images: Vec<Image>,
    /// The raw JSON of an error object met in the response (`{"error":…}` whole, in an event, or as
    /// a bare tail of a stream), cut to a bound (64 KiB).
    pub error: Option<Bytes>,
    /// Whether the stream said that it had ended: a finish reason, a block reason, `[DONE]`, or a
    /// whole JSON value.
    pub said_end: bool,
    /// Where the image parts stand in the response's bytes, for cutting drafts out.
    pub parts: Vec<PartSpan>,
    /// The parts that came with a thought signature, where the scanner was set to keep them.
    pub signatures: Vec<PartSignature>,
}

/// The image chosen from a response.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Image {
    /// The decoded bytes; empty when the scanner only judged, or wrote them to a sink.
    pub bytes: Bytes,
    /// How many bytes were decoded, wherever they went.
    pub len: u64,
    /// `mimeType` as stated; empty where none was.
    pub mime: String,
    /// Whether every image of the response was marked as a thought, so that this one is.
    pub is_thought: bool,
    /// Width in pixels, read from the image's own header bytes.
    pub width: Option<u32>,
    /// Height in pixels, read from the image's own header bytes.
    pub height: Option<u32>,
    /// `thoughtSignature` of the image's part, as spelled (base64), where the scanner was set to
    /// keep it.
    pub signature: Option<Bytes>,
}

/// Where one image part stands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartSpan {
    /// The bytes of the part's JSON value (or SSE event data element) within the response, counted
    /// from its first byte.
    pub span: Range<u64>,
    /// Marked `thought: true`.
    pub is_thought: bool,
    /// Whether this is a final image.
    pub is_final: bool,
    /// Whether it is an element of an array. If not, it is an event of its own.
    pub in_array: bool,
    /// Where the comma before it stands, if it is an array's element and not the first.
    pub comma_before: Option<u64>,
    /// Where the comma behind it stands, if it is an array's element and not the last.
    pub comma_after: Option<u64>,
    /// A text, or the beginning of another candidate, stands between the image before and this.
    pub(super) after_text: bool,
}

/// Token counts. Missing fields are 0; nothing is computed by subtraction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// `promptTokenCount` (or `prompt_tokens`, `input_tokens`).
    pub prompt: u64,
    /// `candidatesTokenCount` (or `completion_tokens`, `output_tokens`).
    pub candidates: u64,
    /// `thoughtsTokenCount`.
    pub thoughts: u64,
    /// `totalTokenCount` (or `total_tokens`).
    pub total: u64,
    /// `candidatesTokensDetails`.
    pub candidates_details: Vec<TokenCount>,
}

impl Usage {
    /// Output tokens that the details call `IMAGE`.
    #[must_use]
    pub fn image_tokens(&self) -> u64 {
        self.candidates_details
            .iter()
            .filter(|count| count.modality.eq_ignore_ascii_case("IMAGE"))
            .map(|count| count.tokens)
            .sum()
    }
}

/// Tokens of one modality.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenCount {
    /// `TEXT`, `IMAGE` …, as spelled.
    pub modality: String,
    /// How many.
    pub tokens: u64,
}
