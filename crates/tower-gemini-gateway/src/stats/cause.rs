//! What failures come from.

use serde::Serialize;
use tower_gemini::verdict::Outcome;

/// What most failures come from; also the kind of a single failure, by its remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// 429s: more is sent than the limits allow.
    RateLimited,
    /// 503s: the models have no capacity.
    Overloaded,
    /// 500s, 502s and 504s of some models.
    ServerFault,
    /// Prompts or images are refused.
    Refused,
    /// Responses come without images.
    NoImage,
    /// Requests are malformed.
    BadRequest,
    /// Conversations lack their thought signatures.
    ThoughtSignatures,
    /// Keys, permissions or regions.
    KeyOrRegion,
    /// Models that no longer exist.
    ModelGone,
    /// Connections, and timeouts of our own.
    Connection,
    /// No single cause.
    Mixed,
    /// Every model fails by the service's own fault.
    SystemicOutage,
    /// The configured quota or spending caps.
    OwnLimits,
    /// Nothing is sent, since it cannot be recorded first: the store of the journal fails.
    NotRecorded,
    /// Hardly anything fails.
    Nothing,
    /// Too few calls to tell.
    NotEnoughData,
}

impl Cause {
    /// Returns the kind of a failed attempt; `None` for a success.
    pub(super) fn from_outcome(outcome: Outcome) -> Option<Self> {
        use Outcome as O;
        Some(match outcome {
            O::Image | O::Answered => return None,
            O::RateLimitedMinute
            | O::RateLimitedDay
            | O::RateLimited
            | O::SpendRateLimited
            | O::QuotaZeroOrBilling => Self::RateLimited,
            O::Overloaded => Self::Overloaded,
            O::Internal | O::Deadline | O::BadGateway | O::Cancelled => Self::ServerFault,
            O::ContentBlocked | O::PromptBlocked => Self::Refused,
            O::NoImage | O::OutOfTokens => Self::NoImage,
            O::BadRequest | O::PayloadTooLarge => Self::BadRequest,
            O::MissingThoughtSignature => Self::ThoughtSignatures,
            O::Auth | O::Permission | O::Region => Self::KeyOrRegion,
            O::NotFound => Self::ModelGone,
            O::NotSent | O::Interrupted | O::StreamError => Self::Connection,
            _ => Self::Mixed,
        })
    }
}
