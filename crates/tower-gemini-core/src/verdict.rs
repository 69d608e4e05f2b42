//! What the response to an attempt means: its outcome, what it cost, how far it reaches, and how
//! long to wait.
//!
//! A [`Verdict`] is made by [`classify`](crate::classify::classify) from what the server said, or
//! by one of the named constructors here when the server said nothing. It cannot be made up: its
//! [`Charge`], by which a resend is permitted, is evidence and not an opinion.
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

use serde::{Deserialize, Serialize};

/// What is known about the charge of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Charge {
    /// Rejected before work, or never sent: nothing was paid.
    None,
    /// Work was done and the response states that it is not charged.
    Waived,
    /// Sent, outcome unknown: it may have been paid for.
    Maybe,
    /// Paid for: an image, or the tokens of a refusal.
    Charged,
}

impl Charge {
    /// Returns whether it is certain that nothing was paid.
    #[must_use]
    pub fn is_surely_free(self) -> bool {
        matches!(self, Self::None | Self::Waived)
    }

    /// Returns the word used in trails, logs and metrics: `none`, `waived`, `maybe` or `charged`.
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
    /// Unknown: sent without a response, or a 429 (Google does not say whether refused requests
    /// count).
    Maybe,
    /// Counted: every answered request is, a 503 and a 400 too.
    Counted,
}

impl QuotaCharge {
    /// Returns the word used in trails, logs and metrics: `none`, `maybe` or `counted`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Maybe => "maybe",
            Self::Counted => "counted",
        }
    }
}

/// The scope of an outcome: what would have to change for the same request to succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// The request itself: no model accepts it unchanged.
    Request,
    /// The model asked for, at this size: another model may succeed.
    Model,
    /// The account, project or key: every model behind it is closed.
    Account,
    /// The connection to the server: another attempt on the same target may succeed.
    Transport,
    /// A temporary condition of the service.
    Service,
}

macro_rules! outcomes {
    ($(
        $(#[$doc:meta])*
        $name:ident: $word:literal, $charge:ident, $quota:ident, $scope:ident, $transient:literal;
    )*) => {
        /// What an attempt ended in. The details (finish reason, message) are in the [`Verdict`].
        ///
        /// Serialized as [its word](Self::as_str).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum Outcome {
            $($(#[$doc])* #[serde(rename = $word)] $name,)*
        }

        impl Outcome {
            /// Every outcome, for tables and exhaustive tests.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Returns the snake-case word used in trails, logs, metrics and `gemini-gateway
            /// explain`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// Returns whether the same request to the same target may do better later. Says
            /// nothing about money: ask [`Charge::is_surely_free`] for that.
            #[must_use]
            pub fn is_transient(self) -> bool {
                match self { $(Self::$name => $transient,)* }
            }

            /// Charge, quota charge and scope unless the body says otherwise (the table in
            /// DESIGN.md, "Charge of an outcome").
            const fn defaults(self) -> (Charge, QuotaCharge, Scope) {
                match self {
                    $(Self::$name => (Charge::$charge, QuotaCharge::$quota, Scope::$scope),)*
                }
            }
        }
    };
}

// Each outcome's word, its usual charge, quota charge and scope, and whether it is transient.
outcomes! {
    /// A 2xx with an image in it, or well on its way to one.
    Image: "success", Charged, Counted, Request, false;
    /// A complete 2xx to a call that does not ask for an image (token counts, text, unknown paths).
    Answered: "answered", Charged, Counted, Request, false;
    /// A 200 without the image that was asked for and without a refusal (`NO_IMAGE`, `IMAGE_OTHER`,
    /// a bare `STOP`).
    NoImage: "no_image", Maybe, Counted, Model, true;
    /// The model ran out of output tokens before it drew anything.
    OutOfTokens: "out_of_tokens", Charged, Counted, Request, false;
    /// Refused after work was done (`IMAGE_SAFETY`, `PROHIBITED_CONTENT`, `RECITATION` …).
    ContentBlocked: "content_blocked", Charged, Counted, Request, false;
    /// The prompt itself was blocked.
    PromptBlocked: "prompt_blocked", Charged, Counted, Request, false;
    /// The stream broke off with an error, or ended without saying that it had.
    StreamError: "stream_error", Maybe, Counted, Model, true;
    /// A limit of this minute (requests, tokens or images).
    RateLimitedMinute: "rate_limit_minute", None, Maybe, Model, true;
    /// A limit of this day: closed until midnight Pacific, whatever the hint says.
    RateLimitedDay: "rate_limit_day", None, Maybe, Model, false;
    /// A 429 that does not say which limit it means.
    RateLimited: "rate_limit_unknown", None, Maybe, Model, true;
    /// The account spends faster than its tier allows (a rolling ten minutes): no model of it will
    /// respond.
    SpendRateLimited: "spend_rate_limit", None, Maybe, Account, true;
    /// No quota at all, or no means to pay: limit 0, prepaid credit or spending cap used up.
    /// Waiting does not help.
    QuotaZeroOrBilling: "quota_zero_or_billing", None, Maybe, Account, false;
    /// The model has no capacity now, whether it says so with a 503 or with a 429 without quota
    /// details.
    Overloaded: "overloaded", None, Counted, Model, true;
    /// The server gave up at a deadline (504, or a 503 that says "Deadline expired").
    Deadline: "deadline", None, Counted, Model, true;
    /// Google cancelled it (499), which happens under load. What that cost is not known.
    Cancelled: "cancelled", Maybe, Counted, Model, true;
    /// A fault inside the service (500).
    Internal: "internal", None, Counted, Model, true;
    /// A gateway in front of the service failed (502).
    BadGateway: "bad_gateway", None, Counted, Service, true;
    /// The request is malformed or asks for what the model cannot do.
    BadRequest: "bad_request", None, Counted, Request, false;
    /// The request is too large.
    PayloadTooLarge: "payload_too_large", None, Counted, Request, false;
    /// The conversation lacks the thought signatures that the API checks, or has wrong ones.
    MissingThoughtSignature: "missing_thought_signature", None, Counted, Request, false;
    /// The caller's place is not served.
    Region: "region", None, Counted, Account, false;
    /// The key or token is missing, wrong or expired.
    Auth: "auth", None, Counted, Account, false;
    /// The key is valid and may not do this.
    Permission: "permission", None, Counted, Account, false;
    /// No such model, path or entity; retired models respond so.
    NotFound: "not_found", None, Counted, Model, false;
    /// It surely never reached the server (connect, DNS, TLS, a refused stream, our own admission).
    NotSent: "not_sent", None, None, Transport, true;
    /// It was sent, and then the connection broke, the body ended early, or our timeout expired.
    Interrupted: "interrupted", Maybe, Maybe, Transport, true;
    /// Nothing known fits.
    Other: "other", Maybe, Maybe, Service, true;
}

impl Outcome {
    /// Returns whether the call got what it asked for.
    #[must_use]
    pub fn is_success(self) -> bool {
        matches!(self, Self::Image | Self::Answered)
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
    /// `retry_after` or a relative of it in a JSON body, as Cloudflare and relays write it.
    Body,
    /// "try again in 30 seconds" on an HTML page.
    Page,
    /// Nothing was said: the documented length of the family's window (600 s for the spend rate).
    Family,
    /// The server says that it passes and not when: an estimate of ours.
    Estimate,
}

/// How long the server asks to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WaitHint {
    hint: Duration,
    source: WaitSource,
}

impl WaitHint {
    /// Creates a hint as the server stated it.
    #[must_use]
    pub fn new(hint: Duration, source: WaitSource) -> Self {
        Self { hint, source }
    }

    /// Returns the delay as the server stated it.
    #[must_use]
    pub fn stated(&self) -> Duration {
        self.hint
    }

    /// Returns where it was found.
    #[must_use]
    pub fn source(&self) -> WaitSource {
        self.source
    }

    /// Returns the shortest wait that cannot be early, in whole milliseconds, rounded up.
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

/// What the response to one attempt means.
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
    /// Nothing of what it expects has been seen yet.
    is_expected: bool,
    detail: Option<Box<Detail>>,
}

/// The details of a verdict. Strings are redacted before they get here.
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
    pub(crate) fn new(outcome: Outcome) -> Self {
        let (charge, quota, scope) = outcome.defaults();
        Self {
            outcome,
            charge,
            quota,
            scope,
            wait: None,
            elsewhere: None,
            transient: None,
            is_expected: false,
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

    /// The request surely never reached the server: connect, DNS, TLS, a refused stream, or our own
    /// admission control.
    #[must_use]
    pub fn not_sent() -> Self {
        Self::new(Outcome::NotSent)
    }

    /// The server was never given the whole request, so it cannot have worked on it: no money. Its
    /// head may have arrived, and with it a request of the quota.
    #[must_use]
    pub fn never_whole() -> Self {
        Self::new(Outcome::NotSent).with_quota(QuotaCharge::Maybe)
    }

    /// An admission of our own said no before anything was sent: no money, no quota, and `wait`
    /// until it would say yes.
    ///
    /// `outcome` says which limit it was and `elsewhere` whether another model may succeed, so that
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
        Self::new(outcome)
            .with_charge(Charge::None)
            .with_quota(QuotaCharge::None)
            .with_elsewhere(elsewhere)
            .with_transient(transient)
            .with_wait(wait)
            .with_detail(detail)
    }

    /// Says that a retry is not to wait for this: the hint stays, for whoever asks later.
    #[must_use]
    pub fn not_retried(self) -> Self {
        self.with_transient(false)
    }

    /// Says that it holds for the whole account, and for no other account of the same service.
    #[must_use]
    pub fn of_account(self) -> Self {
        self.with_scope(Scope::Account)
    }

    /// It was sent (or may have been), and no complete response came back: it may have been paid
    /// for.
    #[must_use]
    pub fn interrupted() -> Self {
        Self::new(Outcome::Interrupted)
    }

    /// The head says success and more follows than was peeked: an image is on its way and counts as
    /// paid for.
    #[must_use]
    pub fn delivering() -> Self {
        Self::new(Outcome::Image)
    }

    /// The same of a stream, whose first events are small: an image is expected and counts as paid
    /// for, and the stream may turn out to hold none.
    #[must_use]
    pub fn delivering_stream() -> Self {
        Self { is_expected: true, ..Self::delivering() }
    }

    /// Whether an image was seen, or is surely on its way.
    pub(crate) fn has_image(&self) -> bool {
        self.outcome == Outcome::Image && !self.is_expected
    }

    /// The head says success to a call that asks for no image, and more follows than was peeked.
    #[must_use]
    pub fn answering() -> Self {
        Self::new(Outcome::Answered)
    }

    /// A whole response broke off after its head had promised success: the model had run to its
    /// end, so it was paid for.
    #[must_use]
    pub fn interrupted_delivery() -> Self {
        Self::new(Outcome::Interrupted)
            .with_charge(Charge::Charged)
            .with_quota(QuotaCharge::Counted)
    }

    /// A stream broke off with an error after content had been released. What Google bills for it
    /// is not known.
    #[must_use]
    pub fn broken_stream(inner: &Self) -> Self {
        let mut verdict = Self::new(Outcome::StreamError);
        verdict.detail.clone_from(&inner.detail);
        verdict
    }

    /// Returns what the attempt ended in.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Returns what is known of the money.
    #[must_use]
    pub fn charge(&self) -> Charge {
        self.charge
    }

    /// Returns what is known of the request quota.
    #[must_use]
    pub fn quota(&self) -> QuotaCharge {
        self.quota
    }

    /// Returns how far it reaches.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Returns how long the server asks to wait, where it does.
    #[must_use]
    pub fn wait(&self) -> Option<WaitHint> {
        self.wait
    }

    /// Returns the details, where there are any.
    #[must_use]
    pub fn detail(&self) -> Option<&Detail> {
        self.detail.as_deref()
    }

    /// Returns the most specific machine word, where there is one.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.detail.as_ref()?.reason.as_deref()
    }

    /// Returns the server's message, where there is one.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        self.detail.as_ref()?.message.as_deref()
    }

    /// Returns whether the same request to the same target may do better later and is not known to
    /// have been paid for.
    ///
    /// This is advice. Whether it may be *sent* is decided by its [`charge`](Self::charge).
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.charge != Charge::Charged
            && self.transient.unwrap_or_else(|| self.outcome.is_transient())
    }

    /// Returns whether another model behind the same account may succeed with this request.
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
            let verdict = Verdict::new(outcome).with_charge(Charge::Charged).with_transient(true);
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
    fn charges_are_shown_by_their_words() {
        let charges = [Charge::None, Charge::Waived, Charge::Maybe, Charge::Charged];
        assert_eq!(
            charges.map(|charge| charge.to_string()),
            ["none", "waived", "maybe", "charged"]
        );
        let quotas = [QuotaCharge::None, QuotaCharge::Maybe, QuotaCharge::Counted];
        assert_eq!(quotas.map(QuotaCharge::as_str), ["none", "maybe", "counted"]);
        assert_eq!(charges.map(Charge::is_surely_free), [true, true, false, false]);
        let verdict = Verdict::interrupted_delivery().with_reason("x");
        assert_eq!(verdict.to_string(), "interrupted (charge: charged), x");
        assert_eq!(verdict.outcome().to_string(), "interrupted");
    }

    #[test]
    fn only_an_image_and_an_answer_are_successes() {
        for &outcome in Outcome::ALL {
            let is_success = matches!(outcome, Outcome::Image | Outcome::Answered);
            assert_eq!(outcome.is_success(), is_success, "{outcome}");
        }
    }

    #[test]
    fn what_an_account_is_refused_no_other_model_of_it_cures() {
        assert!(!Verdict::new(Outcome::SpendRateLimited).another_model_helps());
        assert!(Verdict::new(Outcome::Overloaded).another_model_helps());
        assert!(!Verdict::interrupted_delivery().another_model_helps());
        assert_eq!(Verdict::never_whole().quota(), QuotaCharge::Maybe);
        let debug = format!("{:?}", Verdict::never_whole());
        assert!(debug.contains("NotSent") && !debug.contains("detail"), "{debug}");
        let wait = Some(WaitHint::new(Duration::from_secs(1), WaitSource::Family));
        for (wait, transient) in [(wait, true), (None, false)] {
            let detail = Detail::default();
            let refused = Verdict::refused_locally(Outcome::RateLimitedMinute, wait, true, detail);
            assert_eq!((refused.is_retryable(), refused.wait()), (transient, wait));
            assert_eq!(refused.quota(), QuotaCharge::None);
        }
        let day = Verdict::refused_locally(Outcome::RateLimitedDay, wait, true, Detail::default());
        assert!(!day.is_retryable() && day.another_model_helps());
    }

    #[test]
    fn outcome_words_are_unique() {
        let mut words: Vec<_> = Outcome::ALL.iter().map(|o| o.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Outcome::ALL.len());
    }
}
