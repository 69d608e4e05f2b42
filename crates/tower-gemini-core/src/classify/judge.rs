//! Decides what an error means from what it states.
//!
//! The rules are tried in this order, and the first that fits decides. What is final comes before
//! what passes, because the bodies of final refusals look friendly: "limit: 0" comes with a
//! `RetryInfo` of 40 s, a daily limit with one of 2 s.
//!
//! 1. **Refusals** that a proxy turned into an error (`channel:image_generation_failed`, a finish
//!    reason in the text): a retry would pay twice, whatever status the proxy chose.
//! 2. **Region**, because "the free tier is not available in your country, please enable billing"
//!    speaks of billing too.
//! 3. **Spend rate**, which passes after ten minutes, before
//! 4. **zero quota and billing**, which does not pass.
//! 5. **Overload by name** (`MODEL_CAPACITY_*`, "No capacity"), which comes as 429 and 503 and is
//!    nobody's quota.
//! 6. **Relays' own failures**: a connection that was never made, broke or timed out, a response
//!    that the relay could not read or that held no image.
//! 7. **Deadlines**, which come as 503, 504 and, wrapped, as 500.
//! 8. **Files** and projects that are not ready, then **keys, permissions, sizes, signatures**: by
//!    `ErrorInfo.reason` first, then by the words of the message.
//! 9. **Limits** (429): day before minute, since a violated day makes the minute's hint worthless.
//! 10. The **status** alone.
//!
//! Then the **charge by provenance**: a failure (5xx) is free only where Google said it, where the
//! words prove that nothing was sent, or where the upstream's [`ChargeRules`] say so.
//!
//! [`ChargeRules`]: crate::charge_rules::ChargeRules

use std::borrow::Cow;
use std::time::Duration;

use http::HeaderMap;

use super::facts::{Facts, names_quota};
use super::finish::{self, Finish};
use super::phrases::{List, PHRASES};
use super::text::{
    Lower, says_limit_zero, says_quota_zero, speaks_of_thought_signature, stated_status, successor,
};
use super::wait;
use crate::call::Call;
use crate::redact::redact;
use crate::verdict::{Charge, Detail, Outcome, QuotaCharge, Scope, Verdict, WaitHint, WaitSource};

/// The rolling window of the spend-based limit: "rolling 10 minutes" (Google's rate-limit page,
/// 2026).
const SPEND_WINDOW: Duration = Duration::from_secs(600);

/// How much of a server's message a verdict keeps: the recorded ones, links apart, say all within
/// it.
const MAX_MESSAGE: usize = 512;

/// Classifies an error. `http` is the status of the response itself, where it is known and is no
/// success.
pub(super) fn judge(call: &Call, http: Option<u16>, headers: &HeaderMap, facts: Facts) -> Verdict {
    let joined;
    let message = facts.message.as_deref().unwrap_or_default();
    let words = match &facts.debug {
        Some(debug) => {
            joined = format!("{message}\n{debug}");
            &joined
        }
        None => message,
    };
    let text = Lower::new(words);
    let case = Case {
        call,
        facts: &facts,
        code: code(http, &facts),
        text: &text,
        words,
        http,
        hint: wait::hint(&facts, &text, headers),
    };
    let verdict = case.by_provenance(case.decide());
    let wait = match verdict.outcome() {
        Outcome::SpendRateLimited => {
            Some(case.hint.unwrap_or(WaitHint::new(SPEND_WINDOW, WaitSource::Family)))
        }
        // "2 s" beside a violated day is wrong; hours are the truth.
        Outcome::RateLimitedDay => case.hint.filter(|hint| hint.stated() > wait::LONG),
        _ if verdict.is_retryable() => case.hint.or(verdict.wait()),
        _ => None,
    };
    let code = case.code;
    let has_advice = text.has_any(&["use ", "migrate to ", "switch to "]);
    describe(verdict.with_wait(wait), facts, code, http, has_advice)
}

/// The status that counts. The body decides, except where it only says "wrong" (400) or "broken"
/// (500) in a gateway's words and the response's own status says more.
fn code(http: Option<u16>, facts: &Facts) -> u16 {
    let is_vague = |code: u16| matches!(code, 400 | 500);
    let mut code = match (facts.code, facts.status) {
        (Some(number), Some(status))
            if is_vague(number) && !is_vague(status) && !facts.is_google =>
        {
            Some(status)
        }
        (Some(number), _) => Some(number),
        (None, status) => status,
    };
    let http = http.filter(|&http| http >= 400);
    if !facts.is_google {
        if code.is_none_or(is_vague) && http.is_some_and(|http| !is_vague(http)) {
            code = http;
        }
        // "Upstream error 503 Service Unavailable" inside a gateway's own 500 or 502.
        if code.is_none_or(|code| is_vague(code) || code == 502) && !facts.is_page {
            let stated = |text: &Option<String>| text.as_deref().and_then(stated_status);
            code = stated(&facts.message).or_else(|| stated(&facts.debug)).or(code);
        }
    }
    code.or(http).unwrap_or(0)
}

struct Case<'c> {
    call: &'c Call,
    facts: &'c Facts,
    code: u16,
    text: &'c Lower,
    words: &'c str,
    http: Option<u16>,
    hint: Option<WaitHint>,
}

/// How long an uploaded file is waited for that is still being processed (seconds:
/// home-assistant/core#140182), and Vertex AI's service agents ("in a few minutes":
/// GoogleCloudPlatform/generative-ai#1308). Waits of ours where the service names none.
const UNTIL_ACTIVE: Duration = Duration::from_secs(5);
const UNTIL_PROVISIONED: Duration = Duration::from_secs(60);

impl Case<'_> {
    fn decide(&self) -> Verdict {
        if self.is_everyday_overload() {
            return Verdict::new(Outcome::Overloaded);
        }
        self.refused()
            .or_else(|| self.region())
            .or_else(|| self.spend())
            .or_else(|| self.no_quota())
            .or_else(|| self.no_capacity())
            .or_else(|| self.relay_failed())
            .or_else(|| self.deadline())
            .or_else(|| self.not_ready())
            .or_else(|| self.by_reason())
            .or_else(|| self.by_words())
            .or_else(|| self.limited())
            .unwrap_or_else(|| self.by_status())
    }

    /// Google's 503 without details, the most frequent error of all. Only three things in its
    /// message would change the verdict: a "limit: 0" (there is no colon without it), a deadline,
    /// and a relay's connection under Google's status; the other rules need not be asked.
    fn is_everyday_overload(&self) -> bool {
        self.code == 503
            && self.is_googles_own()
            && self.facts.reason.is_none()
            && self.facts.violations == 0
            && memchr::memchr(b':', self.text.bytes()).is_none()
            && ["eadline", "connect", "timed out", "eof"]
                .iter()
                .all(|word| memchr::memmem::find(self.text.bytes(), word.as_bytes()).is_none())
    }

    fn reason(&self) -> &str {
        self.facts.reason.as_deref().unwrap_or_default()
    }

    fn word(&self) -> &str {
        self.facts.word.as_deref().unwrap_or_default()
    }

    fn kind(&self) -> &str {
        self.facts.kind.as_deref().unwrap_or_default()
    }

    /// Google's own error of a quite certain kind: texts that only proxies write need not be looked
    /// for.
    fn is_googles_own(&self) -> bool {
        self.facts.is_google && self.facts.word.is_none()
    }

    /// Whether the words, or a relay's machine word, hold one of the phrases.
    fn says(&self, list: &List) -> bool {
        self.text.has_any(list)
            || [self.word(), self.kind()]
                .iter()
                .any(|word| !word.is_empty() && list.iter().any(|phrase| word.contains(phrase)))
    }

    /// Whether it reports a failure rather than a refusal: 408, 499, a 5xx, or no status at all.
    fn is_failure(&self) -> bool {
        let fails = |code: u16| matches!(code, 408 | 499..);
        // A relay's own status counts beside the one in its body.
        self.code == 0
            || fails(self.code)
            || (!self.facts.is_google && self.code == 400 && self.http.is_some_and(fails))
    }

    /// Whether Google itself says what it says: its error in any wrapping, its front end's page, or
    /// words that only Google writes.
    fn is_said_by_google(&self) -> bool {
        self.facts.is_google || self.text.has_any(&PHRASES.googles_own)
    }

    /// Whether the words prove that nothing was sent. A page proves nothing: whose connection it
    /// speaks of is not known.
    fn proves_unsent(&self) -> bool {
        !self.facts.is_page && self.says(&PHRASES.never_sent)
    }

    /// What a relay says of its own connection to the service. It says what an attempt cost,
    /// whatever status it comes under and even where it comes in Google's format.
    fn relay_failed(&self) -> Option<Verdict> {
        // Google's own 400s quote why a URL could not be fetched.
        let may_be_misnamed = !self.facts.is_google && matches!(self.code, 400 | 409 | 422 | 424);
        if !self.is_failure() {
            let broke = may_be_misnamed && self.says(&PHRASES.broke_off);
            return broke.then(|| Verdict::new(Outcome::Interrupted));
        }
        if self.proves_unsent() {
            return Some(
                Verdict::new(Outcome::BadGateway)
                    .with_charge(Charge::None)
                    .with_quota(QuotaCharge::None),
            );
        }
        if self.facts.is_google && self.says(&PHRASES.googles_own) {
            return None;
        }
        if self.says(&PHRASES.no_image) {
            return Some(Verdict::new(Outcome::NoImage));
        }
        let is_googles = self.facts.is_google && self.code != 408;
        if !is_googles && self.says(&PHRASES.timed_out) {
            return Some(Verdict::new(Outcome::Deadline).with_charge(Charge::Maybe));
        }
        let broke = self.says(&PHRASES.broke_off)
            || (!self.facts.is_google && self.says(&PHRASES.unreadable));
        broke.then(|| Verdict::new(Outcome::Interrupted))
    }

    /// What a failure cost, by who reports it. Refusals (a wrong key, a limit) cost nothing
    /// whoever reports them.
    fn by_provenance(&self, verdict: Verdict) -> Verdict {
        use Outcome as O;
        let is_unexplained = verdict.charge() == Charge::None
            && matches!(
                verdict.outcome(),
                O::Overloaded | O::Deadline | O::Internal | O::BadGateway | O::Other
            )
            && self.is_failure()
            && !self.is_said_by_google()
            && !self.proves_unsent();
        if is_unexplained { verdict.with_charge(self.call.charge_rules.failure()) } else { verdict }
    }

    /// What the request names is not ready yet: it passes by waiting.
    fn not_ready(&self) -> Option<Verdict> {
        if self.code != 400 {
            return None;
        }
        let wait = if self.text.has_any(&PHRASES.not_active_yet) {
            UNTIL_ACTIVE
        } else if self.text.has_any(&PHRASES.being_provisioned) {
            UNTIL_PROVISIONED
        } else {
            return None;
        };
        let verdict =
            Verdict::new(Outcome::Other).with_charge(Charge::None).with_reason("not ready");
        let verdict = verdict.with_scope(Scope::Request).with_elsewhere(false);
        Some(verdict.with_wait(Some(WaitHint::new(wait, WaitSource::Estimate))))
    }

    /// A refusal of a prompt or an image, reported as an error.
    fn refused(&self) -> Option<Verdict> {
        if self.text.has_any(&PHRASES.prompt_refused_by_imagen) {
            // Imagen blocks prompts with a 400, before any work.
            let charge =
                if self.code == 400 && self.facts.is_google { Charge::None } else { Charge::Maybe };
            return Some(Verdict::new(Outcome::PromptBlocked).with_charge(charge));
        }
        if self.code == 400 && self.facts.is_google {
            // Google's own 400 is not charged, a refusal or not (billing FAQ).
            let is_refused = self.text.has_any(&PHRASES.image_refused_by_imagen)
                || finish::named_in(self.words)
                    .is_some_and(|(finish, _)| finish == Finish::Blocked);
            let verdict = Verdict::new(Outcome::ContentBlocked).with_charge(Charge::None);
            return is_refused.then_some(verdict);
        }
        if self.is_googles_own() {
            return None;
        }
        // A gateway that says what was blocked is more specific than the reason it quotes, which may
        // be either's.
        if self.word().contains("prompt_blocked")
            || (self.text.has("blockreason") && !self.text.has("finish"))
        {
            return Some(Verdict::new(Outcome::PromptBlocked).with_charge(Charge::Maybe));
        }
        // A word of the Interactions API (`image_safety`), or a finish reason that a proxy put into
        // its message.
        let word = self.word();
        let finish = match finish::from_code(word) {
            Some(finish) => Some((finish, word)),
            None => finish::named_in(self.words),
        };
        if let Some((finish, name)) = finish {
            // What a proxy made of a 200 was worked on: nobody but Google could waive it, and that
            // sentence is not here.
            let verdict = finish::verdict(self.call, finish, name).with_charge(Charge::Maybe);
            return Some(if finish == Finish::Blocked {
                verdict.with_transient(false)
            } else {
                verdict
            });
        }
        let is_refusal = |word: &str| {
            ["content_policy", "moderation_blocked", "content_filter", "sensitive_words"]
                .iter()
                .any(|name| word.contains(name))
        };
        if is_refusal(word) || is_refusal(self.kind()) || self.text.has_any(&PHRASES.prompt_refused)
        {
            return Some(Verdict::new(Outcome::PromptBlocked).with_charge(Charge::Maybe));
        }
        if word.contains("image_generation_failed") && self.text.has_any(&PHRASES.image_refused) {
            return Some(Verdict::new(Outcome::ContentBlocked).with_charge(Charge::Maybe));
        }
        None
    }

    fn region(&self) -> Option<Verdict> {
        let named =
            matches!(self.reason(), "LOCATION_TAX_POLICY_VIOLATED" | "LOCATION_POLICY_VIOLATED")
                || self.word().contains("unsupported_country")
                || self.text.has_any(&PHRASES.region);
        named.then(|| Verdict::new(Outcome::Region))
    }

    fn spend(&self) -> Option<Verdict> {
        let said = self.text.has_any(&PHRASES.spend_rate);
        said.then(|| Verdict::new(Outcome::SpendRateLimited))
    }

    /// No quota at all, or no means to pay.
    fn no_quota(&self) -> Option<Verdict> {
        let facts = self.facts;
        // A quota that is zero may be this model's alone; a balance that is used up is everybody's.
        let is_zero = facts.zero
            || self.every_window_is_violated()
            || (self.may_be_quota() && says_limit_zero(self.text))
            || (self.may_be_quota() && says_quota_zero(self.text));
        if is_zero {
            let verdict = Verdict::new(Outcome::QuotaZeroOrBilling);
            let Some(model) = self.zero_model() else { return Some(verdict.with_elsewhere(false)) };
            // No image model has a free tier, so another image model of the same project has none
            // either.
            let is_image = model.contains("image") || model.contains("imagen");
            let is_free =
                facts.free_tier > 0 || self.text.has("free_tier") || self.text.has("freetier");
            let helps = !(is_image && is_free);
            return Some(
                verdict
                    .with_scope(if helps { Scope::Model } else { Scope::Account })
                    .with_elsewhere(helps),
            );
        }
        if self.text.has_any(&PHRASES.no_free_tier) {
            // This model has no free tier; another may.
            return Some(
                Verdict::new(Outcome::QuotaZeroOrBilling)
                    .with_scope(Scope::Model)
                    .with_elsewhere(true),
            );
        }
        let reason = self.reason();
        let word = self.word();
        let has = |text: &str, words: &[&str]| words.iter().any(|word| text.contains(word));
        // "please enable billing" is also what daily limits of the free tier advise: there the limit
        // decides.
        let is_unpaid = self.code == 402
            || (self.code != 429 && self.text.has("enable billing"))
            || reason == "BILLING_DISABLED"
            || (reason.starts_with("INSUFFICIENT") && has(reason, &["CREDIT", "BALANCE"]))
            || (word.contains("insufficient")
                && has(word, &["quota", "balance", "credit", "fund"]))
            || (self.kind().contains("insufficient") && self.kind().contains("quota"))
            || matches!(word, "payment_required" | "billing_hard_limit_reached")
            || self.says(&PHRASES.unpaid);
        is_unpaid.then(|| Verdict::new(Outcome::QuotaZeroOrBilling))
    }

    /// The statuses under which "limit: 0" speaks of a quota (gemini-cli asks 429, 499 and 503);
    /// under 400 it may be a field's.
    fn may_be_quota(&self) -> bool {
        matches!(self.code, 0 | 402 | 403 | 429 | 499 | 503)
            || (!self.facts.is_google && self.text.has("quota"))
    }

    /// Until 2025-09 zero quotas were not spelled: the only sign was that minute, day and tokens of
    /// the free tier were all violated at once, none with a value. A single exhausted window is not
    /// that.
    fn every_window_is_violated(&self) -> bool {
        let facts = self.facts;
        facts.violations >= 2
            && facts.valued == 0
            && facts.free_tier == facts.violations
            && facts.day
            && facts.minute
            && !self.text.has("limit: ")
    }

    /// The model that the zero quota is about, where it says so.
    fn zero_model(&self) -> Option<&str> {
        if let Some(model) = self.facts.model.as_deref() {
            return Some(model);
        }
        // `model: m` in the message, `model:m` and `key: "model" value: "m"` where the dimensions
        // were printed.
        self.words.match_indices("model").find_map(|(at, name)| {
            let is_mark =
                |c: char| matches!(c, '"' | '\'' | '\\' | ':' | '=' | '>') || c.is_whitespace();
            let rest = self
                .words
                .get(at + name.len()..)
                .filter(|rest| rest.starts_with([':', '"', '\'']))?;
            let rest = rest.trim_start_matches(is_mark);
            let rest = rest.strip_prefix("value:").unwrap_or(rest).trim_start_matches(is_mark);
            let end = rest
                .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')))
                .unwrap_or(rest.len());
            rest.get(..end).filter(|model| model.contains('-'))
        })
    }

    /// The service has no room, under whatever status.
    fn no_capacity(&self) -> Option<Verdict> {
        // Google's pooled capacity: nobody's own quota is named, and the page it points to says so.
        let says_pooled = || {
            let text = self.text;
            (text.has("resource exhausted") && text.has("try again later"))
                || text.has("error-code-429")
        };
        let said = self.reason().starts_with("MODEL_CAPACITY")
            || self.facts.shared_pool
            || self.text.has_any(&PHRASES.no_capacity)
            || self.word() == "overloaded_error"
            || self.kind() == "overloaded_error"
            || (self.facts.violations == 0 && says_pooled());
        said.then(|| Verdict::new(Outcome::Overloaded))
    }

    fn deadline(&self) -> Option<Verdict> {
        let googles = self.text.has_any(&PHRASES.deadline);
        let is_timeout = matches!(self.code, 408 | 504 | 524);
        if !googles && !is_timeout {
            return None;
        }
        let verdict = Verdict::new(Outcome::Deadline);
        // When Google gives up it says so itself, and 5xx of its own are not charged. A gateway
        // that gives up knows nothing ("context deadline exceeded" is its own): what it waited for
        // may be finished, and paid for, after it hung up.
        let is_free = self.is_said_by_google() || self.text.has("deadline expired");
        Some(if is_free { verdict } else { verdict.with_charge(Charge::Maybe) })
    }

    fn by_reason(&self) -> Option<Verdict> {
        let is_in = |list: &List| list.iter().any(|reason| reason == self.reason());
        if is_in(&PHRASES.auth_reasons) {
            Some(Verdict::new(Outcome::Auth))
        } else {
            is_in(&PHRASES.permission_reasons).then(|| Verdict::new(Outcome::Permission))
        }
    }

    /// Decides by the message, for the statuses that have many meanings and for wrappers that have
    /// none.
    fn by_words(&self) -> Option<Verdict> {
        let text = self.text;
        let is_open = !self.facts.is_google || matches!(self.code, 0 | 400 | 401 | 403 | 404);
        if !is_open {
            return None;
        }
        if self.code < 500 && speaks_of_thought_signature(text) {
            return Some(Verdict::new(Outcome::MissingThoughtSignature));
        }
        if self.code != 404 && self.says(&PHRASES.auth) {
            return Some(Verdict::new(Outcome::Auth));
        }
        if matches!(self.code, 400 | 403) && text.has_any(&PHRASES.about_a_file) {
            // The file's absence or its access is this request's matter: the caller, the key and the
            // model are fine.
            return Some(Verdict::new(Outcome::BadRequest).with_scope(Scope::Request));
        }
        if text.has_any(&PHRASES.account_setting) {
            return Some(Verdict::new(Outcome::Permission));
        }
        if self.code == 413 || text.has_any(&PHRASES.too_large) {
            return Some(Verdict::new(Outcome::PayloadTooLarge));
        }
        if text.has("not allowed to use publisher model") {
            // The project lacks this model, not the service.
            return Some(
                Verdict::new(Outcome::Permission).with_scope(Scope::Model).with_elsewhere(true),
            );
        }
        if matches!(self.code, 0 | 400 | 403 | 500..) && text.has_any(&PHRASES.permission) {
            return Some(Verdict::new(Outcome::Permission));
        }
        if matches!(self.code, 0 | 400 | 404 | 500..)
            && (text.has_any(&PHRASES.model_not_found)
                || (text.has("publisher model") && text.has("not found")))
        {
            return Some(Verdict::new(Outcome::NotFound).with_elsewhere(true));
        }
        None
    }

    fn limited(&self) -> Option<Verdict> {
        let facts = self.facts;
        let legacy = facts.legacy_reason.as_deref().unwrap_or_default();
        let reason = self.reason();
        let is_in = |list: &List, word: &str| list.iter().any(|name| name == word);
        // A gateway's 500 or a bare text around a quota refusal.
        let is_wrapped = (self.code == 0 || self.code >= 500) && !facts.is_google;
        let is_limit = self.code == 429
            || facts.violations > 0
            || is_in(&PHRASES.limit_reasons, reason)
            || (self.code == 403 && is_in(&PHRASES.legacy_limit_reasons, legacy))
            || (is_wrapped && self.text.has_any(&PHRASES.limited));
        if !is_limit {
            return None;
        }
        let word = self.word();
        let long = self.hint.is_some_and(|hint| {
            hint.stated() > wait::LONG && hint.source() != WaitSource::RetryAfter
        });
        let short = self.hint.is_some_and(|hint| hint.stated() <= wait::LONG);
        let text = self.text;
        let outcome = if facts.day || word == "quota_exceeded" || legacy == "dailyLimitExceeded" {
            Outcome::RateLimitedDay
        } else if facts.minute {
            Outcome::RateLimitedMinute
        } else if (facts.violations == 0 && text.has_any(&PHRASES.per_day))
            || long
            // gemini-cli gives the model up at this word; only a short hint beside it says that it
            // passes.
            || (reason == "QUOTA_EXHAUSTED" && !short)
        {
            Outcome::RateLimitedDay
        } else if matches!(reason, "RATE_LIMIT_EXCEEDED" | "REQUEST_LIMIT_EXCEEDED")
            || (reason == "QUOTA_EXHAUSTED" && short)
            || word == "rate_limit_exceeded"
            || text.has_any(&PHRASES.per_minute)
            || (facts.violations == 0
                && text.has_any(&["input_token", "inputtoken", "token_count"]))
        {
            Outcome::RateLimitedMinute
        } else {
            Outcome::RateLimited
        };
        Some(Verdict::new(outcome))
    }

    fn by_status(&self) -> Verdict {
        let google = self.facts.is_google;
        match self.code {
            401 => Verdict::new(Outcome::Auth),
            403 | 407 | 451 => Verdict::new(Outcome::Permission),
            404 | 410 => self.not_found(),
            409 if self.facts.status == Some(409) && self.text.has("already exists") => {
                Verdict::new(Outcome::BadRequest)
            }
            // ABORTED: a clash of two writers, which the next attempt may not meet.
            409 | 425 => {
                Verdict::new(Outcome::Other).with_charge(Charge::None).with_elsewhere(false)
            }
            413 => Verdict::new(Outcome::PayloadTooLarge),
            499 => Verdict::new(Outcome::Cancelled),
            500 => Verdict::new(Outcome::Internal),
            // The model or the server cannot do this at all; another model may.
            501 => Verdict::new(Outcome::BadRequest).with_scope(Scope::Model).with_elsewhere(true),
            502 => Verdict::new(Outcome::BadGateway),
            503 | 529 => Verdict::new(Outcome::Overloaded),
            // A front that lost the origin: whether the origin had begun is unknown (521 to 523
            // never reached it, but a page of an unknown origin is no certainty).
            520..=527 => Verdict::new(Outcome::BadGateway).with_charge(Charge::Maybe),
            400..=498 => Verdict::new(Outcome::BadRequest),
            505..=599 => Verdict::new(Outcome::Internal),
            _ if google => Verdict::new(Outcome::Internal).with_charge(Charge::Maybe),
            _ => Verdict::new(Outcome::Other),
        }
    }

    fn not_found(&self) -> Verdict {
        let verdict = Verdict::new(Outcome::NotFound);
        let facts = self.facts;
        // The model is fine where a cache, a file or an earlier interaction is gone; a page instead
        // of JSON means that the host or the path is wrong, and a gateway's "Not Found" without a
        // model likewise.
        let about_model =
            if self.text.has_any(&["cache content", "cached content", "cachedcontent"])
                || facts.is_page
            {
                false
            } else if facts.is_google || self.text.has("requested entity") {
                !self.text.has_any(&["files/", "operations/", "corpora/", "interaction"])
            } else {
                // OpenRouter: "No endpoints found for vendor/m", "… that support image output".
                self.text.has_any(&["model", "no endpoints found"]) || self.word().contains("model")
            };
        verdict.with_elsewhere(about_model).with_scope(if about_model {
            Scope::Model
        } else {
            Scope::Request
        })
    }
}

/// Adds what the server said to a verdict.
fn describe(
    verdict: Verdict,
    facts: Facts,
    code: u16,
    http: Option<u16>,
    has_advice: bool,
) -> Verdict {
    use Outcome as O;
    // A gateway's own refusal may never have reached the service, nor touched its quota.
    let verdict = if !facts.is_google && verdict.quota() == QuotaCharge::Counted {
        verdict.with_quota(QuotaCharge::Maybe)
    } else {
        verdict
    };
    let stated = verdict.reason().or(facts.quota.id.as_deref());
    let stated = stated.or(facts.reason.as_deref()).or(facts.word.as_deref());
    let mut detail = Detail { reason: stated.map(|it| clip(it.to_owned())), ..Detail::default() };
    // A placeholder of a message is no message ("$grpcMessage", with the truth in DebugInfo alone).
    let message =
        facts.message.filter(|message| !message.starts_with('$') || facts.debug.is_none());
    let message = message.or(facts.debug);
    let may_have_successor = matches!(
        verdict.outcome(),
        O::NotFound
            | O::RateLimitedMinute
            | O::RateLimitedDay
            | O::RateLimited
            | O::Permission
            | O::BadRequest
    );
    if has_advice && may_have_successor {
        detail.successor = message.as_deref().and_then(successor).map(str::to_owned);
    }
    detail.message = message.map(clip);
    detail.inner_status = (code != 0 && http != Some(code))
        .then_some(code)
        .filter(|_| http.is_some() || facts.code.is_some());
    if names_quota(&facts.quota) || facts.quota.value.is_some() {
        detail.quota = Some(facts.quota);
    }
    if detail == Detail::default() { verdict } else { verdict.with_detail(detail) }
}

/// Cuts a text to what a verdict keeps, after redaction: a key must not survive because the cut
/// went through it.
pub(super) fn clip(text: String) -> String {
    let mut text = match redact(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(clean) => clean,
    };
    if let Some((end, _)) = text.char_indices().nth(MAX_MESSAGE) {
        text.truncate(end);
    }
    text
}
