//! Decides what a 2xx response means and what it cost.
//!
//! Rules in this order:
//!
//! 1. An **error** in it: the stream broke, whatever came before, a `STOP` included.
//! 2. The **status** of an interaction, where it is not done or says more than a finish reason.
//! 3. An **image** that is more than a draft: that was asked for, and is paid for.
//! 4. A **block** of the prompt.
//! 5. The **finish reason**.
//! 6. An end that was not announced: the stream **broke off**.
//! 7. Whether there was anything of an answer at all.

use http::HeaderMap;
use serde_json::json;

use super::finish::{self, Finish};
use super::judge::{clip, judge};
use super::read;
use super::text::says_not_charged;
use crate::call::{Call, Dialect, Verb};
use crate::scan::Answer;
use crate::verdict::{Charge, Detail, Outcome, QuotaCharge, Verdict};

pub(super) fn judge_answer(call: &Call, answer: &Answer) -> Verdict {
    if let Some(error) = &answer.error {
        return broken_by(call, answer, error);
    }
    let has_image = answer.images > 0 || !answer.image_urls.is_empty();
    // A response out of a log does not say which API it is of.
    let is_known = !matches!(call.dialect, Dialect::Interactions | Dialect::Unrecognised);
    let status = answer.status.as_deref().filter(|_| !is_known);
    if let Some(verdict) = status.and_then(|status| by_status(call, answer, status, has_image)) {
        return verdict;
    }
    let status = status.filter(|_| call.dialect == Dialect::Interactions);
    let finish = answer.finish_reason.as_deref().or(status);
    let finish = finish.map(|spelled| finish::finish_word(call.dialect, spelled));
    let meaning = finish.as_deref().map(finish::meaning);
    if has_image {
        let only_drafts = answer.image_urls.is_empty() && answer.thought_images >= answer.images;
        if only_drafts && meaning == Some(Finish::Blocked) {
            let word = finish.unwrap_or_default();
            return describe(
                finish::verdict(call, Finish::Blocked, &word).with_charge(Charge::Charged),
                answer,
            );
        }
        // Sketches and no word of an end: it stopped on the way to the image, however cleanly its
        // JSON is closed.
        if answer.said_end && !(only_drafts && finish.is_none()) {
            return Verdict::new(Outcome::Image);
        }
        return cut_off().with_charge(Charge::Charged);
    }
    let mut verdict = without_image(call, answer, finish.as_deref(), meaning);
    if call.fetches_interaction() && answer.said_end {
        // However often it is fetched, it stays what it is.
        verdict = verdict.with_transient(false).with_elsewhere(false);
    }
    let charge = charge(call, answer, &verdict, finish.as_deref());
    describe(verdict.with_charge(charge), answer)
}

/// What the status of an interaction says that no finish reason does (Gemini API documentation,
/// Interactions API and background execution, 2026-11). `None` for one that is judged as any other
/// answer: `completed`, `incomplete`, `budget_exceeded`, `failed` by a code of a refusal.
fn by_status(call: &Call, answer: &Answer, status: &str, has_image: bool) -> Option<Verdict> {
    let charge = if made(answer) > 0 { Charge::Charged } else { Charge::Maybe };
    match status {
        // It goes on without this response: it is fetched by its id, and never sent again.
        "queued" | "in_progress" if answer.said_end && !(has_image && call.is_streaming()) => {
            let verdict = Verdict::new(Outcome::Answered).with_charge(Charge::Maybe);
            Some(verdict.with_reason(status))
        }
        _ if has_image => None,
        // The caller's tool is asked for.
        "requires_action" => {
            Some(Verdict::new(Outcome::Answered).with_charge(charge).with_reason(status))
        }
        // Somebody asked for that.
        "cancelled" => {
            let verdict = Verdict::new(Outcome::Cancelled).with_charge(charge).with_reason(status);
            Some(verdict.with_transient(false).with_elsewhere(false))
        }
        "failed" => {
            let code = answer.finish_reason.as_deref().filter(|code| *code != status)?;
            if finish::from_code(code).is_some() {
                return None;
            }
            let error = json!({ "error": { "code": code, "message": answer.finish_message } });
            Some(broken_by(call, answer, error.to_string().as_bytes()))
        }
        _ => None,
    }
}

/// The response ended before it said that it had. The server answered, so the request counts.
fn cut_off() -> Verdict {
    Verdict::new(Outcome::Interrupted)
        .with_quota(QuotaCharge::Counted)
        .with_reason("no finish reason")
}

/// The response holds an error. What was paid for before it is unknown, unless an image had
/// arrived.
fn broken_by(call: &Call, answer: &Answer, error: &[u8]) -> Verdict {
    let cause = judge(call, None, &HeaderMap::new(), read::read(error));
    let is_paid = answer.images > 0 || !answer.image_urls.is_empty() || has_image_tokens(answer);
    let is_passing = cause.is_retryable();
    let mut detail = cause.detail().cloned().unwrap_or_default();
    if detail.reason.is_none() {
        detail.reason = Some(cause.outcome().as_str().to_owned());
    }
    // Where waiting does not help, the stream's break is final too, and a model that had begun to
    // response is not missing.
    Verdict::new(Outcome::StreamError)
        .with_charge(if is_paid { Charge::Charged } else { Charge::Maybe })
        .with_transient(is_passing)
        .with_elsewhere(
            !is_paid && cause.another_model_helps() && cause.outcome() != Outcome::NotFound,
        )
        .with_wait(cause.wait().filter(|_| is_passing))
        .with_detail(detail)
}

fn without_image(
    call: &Call,
    answer: &Answer,
    finish: Option<&str>,
    meaning: Option<Finish>,
) -> Verdict {
    let block =
        answer.block_reason.as_deref().map(|spelled| finish::block_word(call.dialect, spelled));
    let is_blocked = block.as_deref().is_some_and(|block| block != "BLOCK_REASON_UNSPECIFIED")
        || (answer.block_reason_message.is_some() && finish.is_none() && answer.text.is_empty());
    if is_blocked {
        let verdict = Verdict::new(Outcome::PromptBlocked);
        return match block {
            Some(block) => verdict.with_reason(block),
            None => verdict,
        };
    }
    if let (Some(word), Some(meaning)) = (finish, meaning) {
        let is_text_call = !call.wants_image && !answer.text.is_empty();
        return match meaning {
            // A text call that ran to its limit got its text, if cut; one that ended for an unknown
            // reason got it too.
            Finish::OutOfTokens | Finish::Unknown if is_text_call => {
                Verdict::new(Outcome::Answered).with_reason(word)
            }
            _ => finish::verdict(call, meaning, word),
        };
    }
    if answer.rai_filtered_reason.is_some() {
        return Verdict::new(Outcome::ContentBlocked);
    }
    if matches!(call.verb, Verb::Count | Verb::Batch) && answer.said_end {
        // Counts and operations: nothing to recognise in them.
        return Verdict::new(Outcome::Answered);
    }
    if answer.has_candidates {
        let is_empty = answer.text.is_empty() && call.wants_image;
        if !(answer.said_end || is_empty) {
            return cut_off();
        }
        return Verdict::new(if call.wants_image { Outcome::NoImage } else { Outcome::Answered });
    }
    if !answer.said_end && (call.wants_image || call.dialect != Dialect::Unrecognised) {
        return cut_off();
    }
    // Foreign JSON, or a page where a response should be.
    Verdict::new(if call.wants_image { Outcome::Other } else { Outcome::Answered })
}

fn has_image_tokens(answer: &Answer) -> bool {
    answer.usage.as_ref().is_some_and(|usage| usage.image_tokens() > 0)
}

/// Output tokens, thoughts included.
fn made(answer: &Answer) -> u64 {
    answer.usage.as_ref().map_or(0, |usage| usage.candidates.saturating_add(usage.thoughts))
}

/// Returns what an imageless 2xx cost, from its usage and its words. Only words of the service
/// waive; the model's own do not.
fn charge(call: &Call, answer: &Answer, verdict: &Verdict, finish: Option<&str>) -> Charge {
    let is_waived = words_of(answer).any(says_not_charged);
    if has_image_tokens(answer) {
        // Counted and waived at once: one of the two is wrong, and the caller's money is not staked
        // on which.
        return if is_waived { Charge::Maybe } else { Charge::Charged };
    }
    if is_waived {
        return Charge::Waived;
    }
    let made = made(answer);
    match verdict.outcome() {
        Outcome::Answered | Outcome::Image => Charge::Charged,
        // Model Armor screens before the model is asked, and the recorded usage of its blocks
        // counts nothing.
        Outcome::PromptBlocked => {
            let is_unasked = answer
                .usage
                .as_ref()
                .is_some_and(|usage| usage.prompt == 0 && usage.total == 0 && made == 0);
            let by_armor = answer
                .block_reason
                .as_deref()
                .is_some_and(|spelled| finish::block_word(call.dialect, spelled) == "MODEL_ARMOR");
            if by_armor && is_unasked { Charge::None } else { Charge::Maybe }
        }
        // Tokens were made, and text and thinking are billed whether or not an image follows.
        // Without usage nothing is known.
        Outcome::ContentBlocked | Outcome::OutOfTokens
            if made > 0 && finish != Some("MODEL_ARMOR") =>
        {
            Charge::Charged
        }
        Outcome::NoImage
            if made > 0 && matches!(finish, Some("STOP" | "NO_IMAGE" | "COMPLETED")) =>
        {
            Charge::Charged
        }
        Outcome::MissingThoughtSignature if made > 0 => Charge::Charged,
        // Nothing was made or counted: the upstream's rule for empty successes.
        Outcome::NoImage | Outcome::Other if answer.usage.is_none() && answer.text.is_empty() => {
            call.charge_rules.empty_success()
        }
        _ => Charge::Maybe,
    }
}

/// The service's own words, which alone can waive a charge.
fn words_of(answer: &Answer) -> impl Iterator<Item = &str> {
    [&answer.finish_message, &answer.block_reason_message, &answer.rai_filtered_reason]
        .into_iter()
        .flatten()
        .map(String::as_str)
}

fn describe(verdict: Verdict, answer: &Answer) -> Verdict {
    let clip_str = |text: &str| clip(text.to_owned());
    let said = words_of(answer).next();
    // Without words of the service, the model's own say why there is no image ("I cannot create
    // that image.").
    let said = said.or_else(|| {
        Some(answer.text.trim()).filter(|text| !text.is_empty() && !verdict.outcome().is_success())
    });
    let mut detail = Detail { message: said.map(clip_str), ..Detail::default() };
    detail.reason = verdict.reason().map(clip_str);
    if detail == Detail::default() { verdict } else { verdict.with_detail(detail) }
}
