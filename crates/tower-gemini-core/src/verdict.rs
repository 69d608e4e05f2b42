//! What an attempt's answer means: its outcome, what it cost, how far it reaches, and how long to
//! wait.
//!
//! A [`Verdict`] is made by [`classify`](crate::classify::classify) from what the server said, or
//! by one of the named constructors here when the server said nothing. It cannot be made up: so a
//! [`ResendPermit`], which only an uncharged verdict grants, is evidence and not an opinion.
//!
//! ```
//! use tower_gemini_core::verdict::{Charge, Verdict};
//!
//! let not_sent = Verdict::not_sent();
//! assert_eq!(not_sent.charge(), Charge::None);
//! assert!(not_sent.charge().is_surely_free());
//!
//! let cut_off = Verdict::interrupted();
//! assert_eq!(cut_off.charge(), Charge::Maybe);
//! assert!(!cut_off.charge().is_surely_free());
//! ```

use std::fmt;
use std::time::Duration;

/// What the money side of an attempt is known to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Charge {
    /// Rejected before work, or never sent: nothing was paid.
    None,
    /// Work was done and the answer says in words that it is not charged.
    Waived,
    /// Sent, outcome unknown: it may have been paid for.
    Maybe,
    /// Paid for: an image, or the tokens of a refusal.
    Charged,
}

impl Charge {
    /// Whether it is certain that nothing was paid.
    #[must_use]
    pub fn is_surely_free(self) -> bool {
        matches!(self, Self::None | Self::Waived)
    }

    /// The word used in trails, logs and metrics: `none`, `waived`, `maybe` or `charged`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Waived => "waived",
            Self::Maybe => "maybe",
            Self::Charged => "charged",
        }
    }
}

impl fmt::Display for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an attempt took from the request quota. Quota and money differ: a 503 costs no money and
/// one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuotaCharge {
    /// Not counted: it never reached the server.
    None,
    /// Unknown: sent without an answer, or a 429 (Google does not say whether refused requests
    /// count).
    Maybe,
    /// Counted: every answered request is, a 503 and a 400 too.
    Counted,
}

impl QuotaCharge {
    /// The word used in trails, logs and metrics: `none`, `maybe` or `counted`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Maybe => "maybe",
            Self::Counted => "counted",
        }
    }
}

/// How far an outcome reaches: what would have to change for the same request to do better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// The request itself: no model accepts it as it stands.
    Request,
    /// The model asked for, at this size: another model may answer.
    Model,
    /// The account, project or key: every model behind it is closed.
    Account,
    /// The way to the server: another attempt on the same target may pass.
    Transport,
    /// A passing condition of the service.
    Service,
}

/// What an attempt ended in. The fine print (finish reason, message) is in the [`Verdict`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// A 2xx with an image in it, or well on its way to one.
    Image,
    /// A complete 2xx to a call that does not ask for an image (token counts, text, unknown paths).
    Answered,
    /// A 200 without the image that was asked for and without a refusal (`NO_IMAGE`, `IMAGE_OTHER`,
    /// a bare `STOP`).
    NoImage,
    /// The model ran out of output tokens before it drew anything.
    OutOfTokens,
    /// Refused after work was done (`IMAGE_SAFETY`, `PROHIBITED_CONTENT`, `RECITATION` …).
    ContentBlocked,
    /// The prompt itself was blocked.
    PromptBlocked,
    /// The stream broke off with an error, or ended without saying that it had.
    StreamError,
    /// A limit of this minute (requests, tokens or images).
    RateLimitedMinute,
    /// A limit of this day: closed until midnight Pacific, whatever the hint says.
    RateLimitedDay,
    /// A 429 that does not say which limit it means.
    RateLimited,
    /// The account spends faster than its tier allows (a rolling ten minutes): no model of it will
    /// answer.
    SpendRateLimited,
    /// No quota at all, or no means to pay: limit 0, prepaid credit or spending cap used up.
    /// Waiting cures nothing.
    QuotaZeroOrBilling,
    /// The model has no capacity now, whether it says so with a 503 or with a 429 without quota
    /// details.
    Overloaded,
    /// The server gave up at a deadline (504, or a 503 that says "Deadline expired").
    Deadline,
    /// A fault inside the service (500, 499 under load).
    Internal,
    /// A gateway in front of the service failed (502).
    BadGateway,
    /// The request is malformed or asks for what the model cannot do.
    BadRequest,
    /// The request is too large.
    PayloadTooLarge,
    /// The conversation lacks the thought signatures that the API checks, or has wrong ones.
    MissingThoughtSignature,
    /// The caller's place is not served.
    Region,
    /// The key or token is missing, wrong or expired.
    Auth,
    /// The key is valid and may not do this.
    Permission,
    /// No such model, path or entity; retired models answer so.
    NotFound,
    /// It surely never reached the server (connect, DNS, TLS, a refused stream, our own admission).
    NotSent,
    /// It was sent, and then the connection broke, the body ended early, or our own patience did.
    Interrupted,
    /// Nothing known fits.
    Other,
}

impl Outcome {
    /// Every outcome, for tables and exhaustive tests.
    pub const ALL: &'static [Self] = &[
        Self::Image,
        Self::Answered,
        Self::NoImage,
        Self::OutOfTokens,
        Self::ContentBlocked,
        Self::PromptBlocked,
        Self::StreamError,
        Self::RateLimitedMinute,
        Self::RateLimitedDay,
        Self::RateLimited,
        Self::SpendRateLimited,
        Self::QuotaZeroOrBilling,
        Self::Overloaded,
        Self::Deadline,
        Self::Internal,
        Self::BadGateway,
        Self::BadRequest,
        Self::PayloadTooLarge,
        Self::MissingThoughtSignature,
        Self::Region,
        Self::Auth,
        Self::Permission,
        Self::NotFound,
        Self::NotSent,
        Self::Interrupted,
        Self::Other,
    ];

    /// The snake-case word used in trails, logs, metrics and the `explain` example.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "success",
            Self::Answered => "answered",
            Self::NoImage => "no_image",
            Self::OutOfTokens => "out_of_tokens",
            Self::ContentBlocked => "content_blocked",
            Self::PromptBlocked => "prompt_blocked",
            Self::StreamError => "stream_error",
            Self::RateLimitedMinute => "rate_limit_minute",
            Self::RateLimitedDay => "rate_limit_day",
            Self::RateLimited => "rate_limit_unknown",
            Self::SpendRateLimited => "spend_rate_limit",
            Self::QuotaZeroOrBilling => "quota_zero_or_billing",
            Self::Overloaded => "overloaded",
            Self::Deadline => "deadline",
            Self::Internal => "internal",
            Self::BadGateway => "bad_gateway",
            Self::BadRequest => "bad_request",
            Self::PayloadTooLarge => "payload_too_large",
            Self::MissingThoughtSignature => "missing_thought_signature",
            Self::Region => "region",
            Self::Auth => "auth",
            Self::Permission => "permission",
            Self::NotFound => "not_found",
            Self::NotSent => "not_sent",
            Self::Interrupted => "interrupted",
            Self::Other => "other",
        }
    }

    /// Whether the call got what it asked for.
    #[must_use]
    pub fn is_success(self) -> bool {
        matches!(self, Self::Image | Self::Answered)
    }

    /// Whether the same request to the same target may do better later. Says nothing of money: ask
    /// [`Charge::is_surely_free`] for that.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::NoImage
                | Self::StreamError
                | Self::RateLimitedMinute
                | Self::RateLimited
                | Self::SpendRateLimited
                | Self::Overloaded
                | Self::Deadline
                | Self::Internal
                | Self::BadGateway
                | Self::NotSent
                | Self::Interrupted
                | Self::Other
        )
    }

    /// Charge, quota charge and scope unless the body says otherwise (the table in DESIGN.md,
    /// "Charge of an outcome").
    const fn defaults(self) -> (Charge, QuotaCharge, Scope) {
        use Charge as C;
        use QuotaCharge as Q;
        match self {
            Self::Image | Self::Answered => (C::Charged, Q::Counted, Scope::Request),
            Self::NoImage | Self::StreamError => (C::Maybe, Q::Counted, Scope::Model),
            Self::OutOfTokens | Self::ContentBlocked | Self::PromptBlocked => {
                (C::Charged, Q::Counted, Scope::Request)
            }
            Self::RateLimitedMinute | Self::RateLimitedDay => (C::None, Q::Maybe, Scope::Model),
            Self::RateLimited => (C::None, Q::Maybe, Scope::Model),
            Self::SpendRateLimited | Self::QuotaZeroOrBilling => {
                (C::None, Q::Maybe, Scope::Account)
            }
            Self::Overloaded | Self::Deadline | Self::Internal => {
                (C::None, Q::Counted, Scope::Model)
            }
            Self::BadGateway => (C::None, Q::Counted, Scope::Service),
            Self::BadRequest | Self::PayloadTooLarge | Self::MissingThoughtSignature => {
                (C::None, Q::Counted, Scope::Request)
            }
            Self::Region | Self::Auth | Self::Permission => (C::None, Q::Counted, Scope::Account),
            Self::NotFound => (C::None, Q::Counted, Scope::Model),
            Self::NotSent => (C::None, Q::None, Scope::Transport),
            Self::Interrupted => (C::Maybe, Q::Maybe, Scope::Transport),
            Self::Other => (C::Maybe, Q::Maybe, Scope::Service),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a wait hint was found, most trusted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum WaitSource {
    /// `google.rpc.RetryInfo.retryDelay`.
    RetryInfo,
    /// "Please retry in 56.18s" in the message.
    Message,
    /// `ErrorInfo.metadata.quotaResetDelay`.
    QuotaResetDelay,
    /// "quota will reset after 19h14m47s" in the message.
    ResetText,
    /// The `Retry-After` or `retry-after-ms` header. Google sends none; proxies do.
    RetryAfter,
    /// "try again in 30 seconds" on an HTML page.
    Page,
    /// Nothing was said: the documented length of the family's window (600 s for the spend rate).
    Family,
}

/// How long the server asks to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WaitHint {
    hint: Duration,
    source: WaitSource,
}

impl WaitHint {
    /// A hint as the server stated it.
    #[must_use]
    pub fn new(hint: Duration, source: WaitSource) -> Self {
        Self { hint, source }
    }

    /// The delay as the server stated it.
    #[must_use]
    pub fn stated(&self) -> Duration {
        self.hint
    }

    /// Where it was found.
    #[must_use]
    pub fn source(&self) -> WaitSource {
        self.source
    }

    /// The shortest wait that cannot be early, in whole milliseconds, rounded up.
    ///
    /// A whole number of seconds in `RetryInfo` was floored by Google while its message kept the
    /// fraction ("58s" beside "58.93s"), so up to a second is missing from it: one second is added.
    /// Everything else is rounded up to the next millisecond, the resolution of the timers.
    #[must_use]
    pub fn not_before(&self) -> Duration {
        let mut wait = self.hint;
        if self.source == WaitSource::RetryInfo && wait.subsec_nanos() == 0 {
            wait = wait.saturating_add(Duration::from_secs(1));
        }
        let part = wait.subsec_nanos() % 1_000_000;
        if part == 0 {
            wait
        } else {
            wait.saturating_add(Duration::from_nanos(u64::from(1_000_000 - part)))
        }
    }
}

/// What one attempt's answer means.
///
/// Small and cheap to clone; the text is boxed and absent on success.
#[derive(Clone, PartialEq, Eq)]
pub struct Verdict {
    outcome: Outcome,
    charge: Charge,
    quota: QuotaCharge,
    scope: Scope,
    wait: Option<WaitHint>,
    elsewhere: Option<bool>,
    transient: Option<bool>,
    detail: Option<Box<Detail>>,
}

/// The fine print of a verdict. Strings are redacted before they get here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Detail {
    /// The most telling machine word: a finish reason, block reason, quota id or
    /// `ErrorInfo.reason`.
    pub reason: Option<String>,
    /// The server's own words (error message, `finishMessage`, `blockReasonMessage`), cut to a
    /// bound.
    pub message: Option<String>,
    /// The status that the body states, where the HTTP status says something else.
    pub inner_status: Option<u16>,
    /// A model the server recommends instead (retired models name their successor).
    pub successor: Option<String>,
    /// The violated limit, where it is stated.
    pub quota: Option<QuotaDetail>,
}

/// What a `QuotaFailure` violation states, for learning limits from refusals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuotaDetail {
    /// `quotaId`, for example `GenerateRequestsPerMinutePerProjectPerModel`.
    pub id: Option<String>,
    /// `quotaMetric`, for example
    /// `generativelanguage.googleapis.com/generate_content_free_tier_requests`.
    pub metric: Option<String>,
    /// `quotaValue`: the limit itself.
    pub value: Option<u64>,
    /// `quotaDimensions`, in the order given.
    pub dimensions: Vec<(String, String)>,
}

impl Verdict {
    /// A verdict with the outcome's usual charge, quota charge and scope. Crate-private: evidence
    /// cannot be made up.
    pub(crate) fn of(outcome: Outcome) -> Self {
        let (charge, quota, scope) = outcome.defaults();
        Self {
            outcome,
            charge,
            quota,
            scope,
            wait: None,
            elsewhere: None,
            transient: None,
            detail: None,
        }
    }

    pub(crate) fn with_charge(mut self, charge: Charge) -> Self {
        self.charge = charge;
        self
    }

    pub(crate) fn with_quota(mut self, quota: QuotaCharge) -> Self {
        self.quota = quota;
        self
    }

    pub(crate) fn with_scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    pub(crate) fn with_wait(mut self, wait: Option<WaitHint>) -> Self {
        self.wait = wait;
        self
    }

    /// Overrides what the outcome and scope imply about other models.
    pub(crate) fn with_elsewhere(mut self, helps: bool) -> Self {
        self.elsewhere = Some(helps);
        self
    }

    /// Overrides what the outcome implies about waiting.
    pub(crate) fn with_transient(mut self, transient: bool) -> Self {
        self.transient = Some(transient);
        self
    }

    pub(crate) fn with_detail(mut self, detail: Detail) -> Self {
        self.detail = Some(Box::new(detail));
        self
    }

    pub(crate) fn with_reason(mut self, reason: impl Into<String>) -> Self {
        self.detail.get_or_insert_default().reason = Some(reason.into());
        self
    }

    /// It surely never reached the server: connect, DNS, TLS, a refused stream, or an admission of
    /// our own.
    #[must_use]
    pub fn not_sent() -> Self {
        Self::of(Outcome::NotSent)
    }

    /// The server was never given the whole request, so it cannot have worked on it: no money. Its
    /// head may have arrived, and with it a request of the quota.
    #[must_use]
    pub fn never_whole() -> Self {
        Self::of(Outcome::NotSent).with_quota(QuotaCharge::Maybe)
    }

    /// An admission of our own said no before anything was sent: no money, no quota, and `wait`
    /// until it would say yes.
    ///
    /// `outcome` says which limit it was and `elsewhere` whether another model may answer, so that
    /// retry and fallback treat it as Google's own refusal. Without a `wait` no waiting helps. It
    /// needs no evidence: what was not sent cannot have been charged.
    #[must_use]
    pub fn refused_locally(
        outcome: Outcome,
        wait: Option<WaitHint>,
        elsewhere: bool,
        detail: Detail,
    ) -> Self {
        let transient = wait.is_some() && outcome.is_transient();
        Self::of(outcome)
            .with_charge(Charge::None)
            .with_quota(QuotaCharge::None)
            .with_elsewhere(elsewhere)
            .with_transient(transient)
            .with_wait(wait)
            .with_detail(detail)
    }

    /// It was sent (or may have been), and no complete answer came back: it may have been paid for.
    #[must_use]
    pub fn interrupted() -> Self {
        Self::of(Outcome::Interrupted)
    }

    /// The head says success and more follows than was peeked: an image is on its way and counts as
    /// paid for.
    #[must_use]
    pub fn delivering() -> Self {
        Self::of(Outcome::Image)
    }

    /// The head says success to a call that asks for no image, and more follows than was peeked.
    #[must_use]
    pub fn answering() -> Self {
        Self::of(Outcome::Answered)
    }

    /// A whole answer broke off after its head had promised success: the model had run to its end,
    /// so it was paid for.
    #[must_use]
    pub fn interrupted_delivery() -> Self {
        Self::of(Outcome::Interrupted).with_charge(Charge::Charged).with_quota(QuotaCharge::Counted)
    }

    /// A stream broke off with an error after content had been released. What Google bills for it
    /// is not known.
    #[must_use]
    pub fn broken_stream(inner: &Self) -> Self {
        let mut verdict = Self::of(Outcome::StreamError);
        verdict.detail.clone_from(&inner.detail);
        verdict
    }

    /// What the attempt ended in.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// What is known of the money.
    #[must_use]
    pub fn charge(&self) -> Charge {
        self.charge
    }

    /// What is known of the request quota.
    #[must_use]
    pub fn quota(&self) -> QuotaCharge {
        self.quota
    }

    /// How far it reaches.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// How long the server asks to wait, where it does.
    #[must_use]
    pub fn wait(&self) -> Option<WaitHint> {
        self.wait
    }

    /// The fine print, where there is any.
    #[must_use]
    pub fn detail(&self) -> Option<&Detail> {
        self.detail.as_deref()
    }

    /// The most telling machine word, where there is one.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.detail.as_ref()?.reason.as_deref()
    }

    /// The server's own words, where there are any.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        self.detail.as_ref()?.message.as_deref()
    }

    /// Whether the same request to the same target may do better later and is not known to have
    /// been paid for.
    ///
    /// This is advice. Whether it may be *sent* is decided by its [`charge`](Self::charge).
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.charge != Charge::Charged
            && self.transient.unwrap_or_else(|| self.outcome.is_transient())
    }

    /// Whether another model behind the same account may answer this request.
    #[must_use]
    pub fn another_model_helps(&self) -> bool {
        if let Some(helps) = self.elsewhere {
            return helps;
        }
        match self.outcome {
            Outcome::RateLimitedDay | Outcome::NotFound => true,
            outcome => {
                outcome.is_transient()
                    && self.scope != Scope::Account
                    && self.charge != Charge::Charged
            }
        }
    }
}

impl fmt::Debug for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut s = f.debug_struct("Verdict");
        s.field("outcome", &self.outcome)
            .field("charge", &self.charge)
            .field("quota", &self.quota)
            .field("scope", &self.scope);
        if let Some(wait) = &self.wait {
            s.field("wait", wait);
        }
        if let Some(detail) = &self.detail {
            s.field("detail", detail);
        }
        s.finish()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (charge: {})", self.outcome, self.charge)?;
        if let Some(reason) = self.reason() {
            write!(f, ", {reason}")?;
        }
        if let Some(message) = self.message() {
            write!(f, ": {message}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charged_verdict_is_never_called_retryable() {
        for &outcome in Outcome::ALL {
            let verdict = Verdict::of(outcome).with_charge(Charge::Charged).with_transient(true);
            assert!(!verdict.is_retryable());
        }
    }

    #[test]
    fn whole_retry_info_seconds_get_the_second_that_google_cut_off() {
        let floored = WaitHint::new(Duration::from_secs(58), WaitSource::RetryInfo);
        assert_eq!(floored.not_before(), Duration::from_secs(59));
        let exact = WaitHint::new(Duration::from_nanos(56_185_908_122), WaitSource::Message);
        assert_eq!(exact.not_before(), Duration::from_millis(56_186));
        let header = WaitHint::new(Duration::from_secs(7), WaitSource::RetryAfter);
        assert_eq!(header.not_before(), Duration::from_secs(7));
    }

    #[test]
    fn outcome_words_are_unique() {
        let mut words: Vec<_> = Outcome::ALL.iter().map(|o| o.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Outcome::ALL.len());
    }
}
