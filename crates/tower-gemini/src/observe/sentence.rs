//! Writes one sentence about each finished call, from its trail.
//!
//! An operator should be able to tell the common cases apart at a glance: drafts next to the final
//! image, a retry that succeeded, a fallback that responded, and an outage of the whole service
//! (the four log scenarios of LaoZhang's "Nano Banana Pro errors", 2026-03).

use std::fmt::Write as _;
use std::time::Duration;

use crate::trail::{Attempt, Step, StopReason};
use tower_gemini_core::call::ImageSize;
use tower_gemini_core::verdict::{Charge, Outcome};

use super::observer::{attempts, charge_of, cost_of, is_systemic};
use super::outcome::CallOutcome;

/// Whether a step is an attempt that has not ended.
#[must_use]
pub fn is_under_way(step: &Step) -> bool {
    matches!(step, Step::Attempt(attempt) if attempt.outcome.is_none())
}

/// Writes the sentence about a call of these steps.
pub(super) fn sentence(steps: &[Step], outcome: CallOutcome, took: Duration) -> String {
    let all: Vec<_> = attempts(steps).collect();
    let mut text = match outcome {
        CallOutcome::Replayed => return replayed(steps),
        CallOutcome::ClientDisconnected => {
            let goes_on = steps.iter().any(|step| matches!(step, Step::ClientDisconnected))
                && steps.iter().any(is_under_way);
            let text = format!("the client disconnected after {}", seconds(took));
            if all.is_empty() {
                return format!("{text}, before anything was sent; nothing was charged");
            }
            if goes_on {
                return format!("{text}; the attempt is completed without it");
            }
            text
        }
        CallOutcome::Ended(outcome) if outcome.is_success() => {
            if all.is_empty() {
                return format!("success after {}", seconds(took));
            }
            success(&all, outcome, took)
        }
        _ if is_systemic(steps) => {
            let is_first = |attempt: &&&Attempt| attempt.model == all[0].model;
            let (first, rest) = all.split_at(all.iter().take_while(is_first).count());
            format!(
                "{}, and the fallback failed too ({}): systemic outage; see the status page, wait \
                 15 to 60 minutes",
                list(first, true),
                list(rest, true)
            )
        }
        _ => failure(steps, &all, outcome),
    };
    if all.is_empty() {
        text.push_str("; nothing was charged");
    } else {
        add_cost(&mut text, steps);
    }
    text
}

fn success(all: &[&Attempt], outcome: Outcome, took: Duration) -> String {
    let Some((last, before)) = all.split_last() else { return String::new() };
    let drafts = last.images.map_or(0, |images| images.saturating_sub(1));
    let plural = if drafts == 1 { "draft" } else { "drafts" };
    let images = format!("{} images ({drafts} {plural}), using the final one", drafts + 1);
    let (place, after) = (place(last), seconds(took));
    let mut text = match before.first() {
        None => {
            let what = match outcome {
                Outcome::Image if drafts > 0 => &images,
                Outcome::Image => "1 image",
                _ => "success",
            };
            let place = if place.is_empty() { place } else { format!(": {place}") };
            return format!("{what}{place}, {after}");
        }
        Some(first) if first.model != last.model => {
            format!("{}, then {place} responded after {after}", list(before, true))
        }
        Some(first) if first.size != last.size => {
            let requested = first.size.map_or("its default size", ImageSize::as_str);
            format!("{} at {requested}, then {place} responded after {after}", list(before, false))
        }
        Some(_) => {
            let place = if place.is_empty() { place } else { format!(": {place}") };
            format!("{}, then success after {after}{place}", list(before, false))
        }
    };
    if drafts > 0 {
        let _ = write!(text, "; {images}");
    }
    text
}

fn failure(steps: &[Step], all: &[&Attempt], outcome: CallOutcome) -> String {
    let several = all.iter().any(|attempt| attempt.model != all[0].model);
    let mut text = list(all, several);
    let (is_sent, now) = match outcome {
        CallOutcome::OwnQuota => (false, "the quota is used up by our own count"),
        CallOutcome::SpendingCap => (false, "it could exceed a spending cap"),
        CallOutcome::NoTarget => (false, "every target is cooling down or unsuitable"),
        CallOutcome::EarlierResponseLost => {
            (false, "an earlier, identical request may have been charged and its response was lost")
        }
        CallOutcome::NotRecorded => (
            !all.is_empty(),
            "what is paid for cannot be recorded; make the journal's store writable",
        ),
        CallOutcome::Rejected => (false, "it was rejected; the response says why"),
        CallOutcome::Ended(outcome) => (!all.is_empty(), advice(outcome)),
        CallOutcome::Replayed | CallOutcome::ClientDisconnected => (false, ""),
    };
    if !is_sent {
        text.push_str(if text.is_empty() { "not sent" } else { ", then not sent" });
    }
    let _ = write!(text, ": {now}");
    if let Some(why) = stopped_by(steps).filter(|_| outcome != CallOutcome::NoTarget) {
        let _ = write!(text, " (stopped: {})", why.as_str());
    }
    text
}

fn replayed(steps: &[Step]) -> String {
    let age = steps.iter().find_map(|step| match step {
        Step::Replayed { age, .. } => Some(*age),
        _ => None,
    });
    let age = age.filter(|age| !age.is_zero());
    let age = age.map_or(String::new(), |age| format!(", {} old", seconds(age)));
    format!(
        "replayed the response to an earlier, identical request{age}; nothing was charged again"
    )
}

/// Adds what the call cost: `; charged $0.1340`.
fn add_cost(text: &mut String, steps: &[Step]) {
    let cost = cost_of(steps);
    let _ = match (charge_of(steps), cost.at_most_microusd) {
        (Charge::None | Charge::Waived, _) => write!(text, "; nothing was charged"),
        // Refused prompts are charged for tokens that nobody has counted.
        (Charge::Charged, _) => write!(text, "; charged {cost}"),
        (Charge::Maybe, None) => write!(text, "; possibly charged, an unknown amount"),
        (Charge::Maybe, Some(_)) => write!(text, "; possibly charged: {cost}"),
    };
}

/// Returns why nothing more was sent, where the outcome does not say it.
fn stopped_by(steps: &[Step]) -> Option<StopReason> {
    use StopReason as R;
    let last = steps.iter().rev().find_map(|step| match step {
        Step::Stopped { why } => Some(*why),
        _ => None,
    });
    let is_implied = |why: &R| {
        matches!(
            why,
            R::NotRetryable | R::Charged | R::QuotaUsedUp | R::SpendingCap | R::EarlierResponseLost
        )
    };
    last.filter(|why| !is_implied(why))
}

/// Lists attempts: `3 x 500 on gemini-3-pro-image, 503 (overloaded) on gemini-2.5-flash-image`.
fn list(attempts: &[&Attempt], with_models: bool) -> String {
    let mut runs: Vec<(String, usize)> = Vec::new();
    for attempt in attempts {
        let mut one = label(attempt);
        if let (true, Some(model)) = (with_models, &attempt.model) {
            let _ = write!(one, " on {model}");
        }
        match runs.last_mut() {
            Some((last, count)) if *last == one => *count += 1,
            _ => runs.push((one, 1)),
        }
    }
    let run = |(one, count)| if count > 1 { format!("{count} x {one}") } else { one };
    runs.into_iter().map(run).collect::<Vec<_>>().join(", ")
}

/// Names what an attempt ended in: `429 (minute limit)`.
fn label(attempt: &Attempt) -> String {
    let Some(outcome) = attempt.outcome else { return "interrupted".to_owned() };
    let reason = attempt.reason.as_deref();
    let (status, what) = match outcome {
        Outcome::RateLimitedMinute => (429, "minute limit"),
        Outcome::RateLimitedDay => (429, "daily limit"),
        Outcome::RateLimited => (429, ""),
        Outcome::SpendRateLimited => (429, "spend limit"),
        Outcome::QuotaZeroOrBilling => (429, "no quota or billing"),
        Outcome::Overloaded => (503, "overloaded"),
        Outcome::Internal => (500, ""),
        Outcome::Cancelled => (499, "cancelled by the service"),
        Outcome::BadGateway => (502, ""),
        Outcome::Deadline => (504, "deadline"),
        Outcome::MissingThoughtSignature => (400, "thought signature"),
        Outcome::OutOfTokens => return "out of tokens before an image".to_owned(),
        Outcome::NotSent => return "not sent".to_owned(),
        Outcome::Interrupted => return "interrupted".to_owned(),
        Outcome::StreamError => return "broken stream".to_owned(),
        Outcome::Image | Outcome::Answered => return "success".to_owned(),
        Outcome::ContentBlocked | Outcome::PromptBlocked | Outcome::NoImage => {
            let what = if outcome == Outcome::NoImage { "no image" } else { "refused" };
            return reason.map_or(what.to_owned(), |reason| format!("{what} ({reason})"));
        }
        other => {
            return match (attempt.status, reason) {
                (Some(status), Some(reason)) => format!("{status} ({other}, {reason})"),
                (Some(status), None) => format!("{status} ({other})"),
                (None, _) => other.to_string(),
            };
        }
    };
    let status = attempt.status.unwrap_or(status);
    if what.is_empty() { status.to_string() } else { format!("{status} ({what})") }
}

/// Says what a failure means and what to do about it.
fn advice(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::RateLimitedMinute | Outcome::RateLimited => {
            "send slower, within the tier's limits"
        }
        Outcome::RateLimitedDay => "closed until midnight Pacific",
        Outcome::SpendRateLimited => "spending is faster than the tier allows; wait ten minutes",
        Outcome::QuotaZeroOrBilling => "waiting does not help; check the project's billing",
        Outcome::Overloaded => {
            "the model has no capacity; another model may respond, a new key, tier or region does \
             not help"
        }
        Outcome::Deadline => "the service reached its deadline; a smaller image may come",
        Outcome::Internal => "a fault of the service, usually for 15 to 60 minutes",
        Outcome::Cancelled => "the service cancels under load; what that cost is not known",
        Outcome::BadGateway => "a gateway of the service failed, usually for minutes",
        Outcome::ContentBlocked | Outcome::PromptBlocked => {
            "change the prompt; the same would be refused again"
        }
        Outcome::NoImage => "the model made no image; say in the prompt that one is wanted",
        Outcome::OutOfTokens => "allow more output tokens",
        Outcome::BadRequest => "the request is invalid, and stays so",
        Outcome::PayloadTooLarge => "make the request smaller",
        Outcome::MissingThoughtSignature => {
            "send the model's thought signatures back with its turn"
        }
        Outcome::Region => "the region is not supported; another key does not help",
        Outcome::Auth => "check the key",
        Outcome::Permission => "the key has no permission; a new one needs a few minutes",
        Outcome::NotFound => "the model does not exist, or no longer",
        Outcome::NotSent => "nothing reached the service; check the connection",
        Outcome::Interrupted | Outcome::StreamError => "it broke off after it was sent",
        _ => "an unknown error",
    }
}

/// Names where an attempt went: `gemini-3-pro-image 4K`.
fn place(attempt: &Attempt) -> String {
    let model = attempt.model.as_ref().map(|model| match &attempt.served_by {
        Some(other) => format!("{other} in place of {model}"),
        None => model.to_string(),
    });
    let size = attempt.size.map(|size| size.to_string());
    model.into_iter().chain(size).collect::<Vec<_>>().join(" ")
}

/// `4.1 s`, `41 s`.
fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 10.0 { format!("{seconds:.1} s") } else { format!("{seconds:.0} s") }
}

#[cfg(test)]
mod tests {
    use crate::trail::{AttemptId, NotStoredReason, Trail, WaitReason};
    use http::{HeaderMap, Method, StatusCode};
    use tower_gemini_core::call::{Call, ModelId};
    use tower_gemini_core::classify::classify;
    use tower_gemini_core::cost::Cost;
    use tower_gemini_core::verdict::Verdict;

    use super::super::outcome::{HowEnded, outcome_of};
    use super::*;

    const PRO: &str = "gemini-3-pro-image";
    const FLASH: &str = "gemini-2.5-flash-image";
    const MINUTE: &str = r#"{"error":{"code":429,"message":"Quota exceeded.","status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaId":"GenerateRequestsPerMinutePerProjectPerModel"}]}]}}"#;
    const OVERLOADED: &str =
        r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
    const INTERNAL: &str =
        r#"{"error":{"code":500,"message":"An internal error has occurred.","status":"INTERNAL"}}"#;
    const REFUSED: &str = r#"{"candidates":[{"finishReason":"IMAGE_SAFETY"}],"usageMetadata":{"promptTokenCount":10}}"#;

    /// A call, recorded attempt by attempt.
    struct Story(Trail);

    impl Story {
        fn new() -> Self {
            Self(Trail::new())
        }

        fn begin(&self, model: &str) -> AttemptId {
            self.0.begin_attempt(Some(ModelId::new(model)), Some(ImageSize::K2))
        }

        fn failed(self, model: &str, status: u16, body: &str) -> Self {
            let uri = format!("/v1beta/models/{model}:generateContent").parse().unwrap();
            let call = Call::parse(&Method::POST, &uri, &HeaderMap::new(), Some(b"{}"));
            let verdict = classify(
                &call,
                StatusCode::from_u16(status).unwrap(),
                &HeaderMap::new(),
                body.as_bytes(),
            );
            let cost =
                if verdict.charge().is_surely_free() { Cost::ZERO } else { Cost::up_to(2500) };
            self.begin(model).end(Some(status), &verdict, cost, Duration::from_secs(2));
            self
        }

        fn image(self, model: &str, images: Option<u32>) -> Self {
            let id = self.begin(model);
            id.end(
                Some(200),
                &Verdict::delivering(),
                Cost::exactly(134_000),
                Duration::from_secs(20),
            );
            images.into_iter().for_each(|images| id.count_images(images));
            self
        }

        fn then(self, step: Step) -> Self {
            self.0.push(step);
            self
        }

        fn ends(self, how: HowEnded, status: Option<u16>) -> String {
            let steps = self.0.steps();
            let outcome = outcome_of(&steps, how, status);
            sentence(&steps, outcome, Duration::from_millis(41_200))
        }
    }

    #[test]
    fn the_four_common_cases_read_differently() {
        let ok = Some(200);
        assert_eq!(
            Story::new().image(PRO, Some(3)).ends(HowEnded::Complete, ok),
            "3 images (2 drafts), using the final one: gemini-3-pro-image 2K, 41 s; charged $0.1340"
        );
        let waited = Step::Waited { delay: Duration::from_secs(12), why: WaitReason::ServerHint };
        assert_eq!(
            Story::new()
                .failed(PRO, 429, MINUTE)
                .then(waited)
                .image(PRO, Some(1))
                .ends(HowEnded::Complete, ok),
            "429 (minute limit), then success after 41 s: gemini-3-pro-image 2K; charged $0.1340"
        );
        assert_eq!(
            Story::new()
                .failed(PRO, 503, OVERLOADED)
                .image(FLASH, None)
                .ends(HowEnded::Complete, ok),
            "503 (overloaded) on gemini-3-pro-image, then gemini-2.5-flash-image 2K responded after 41 s; charged $0.1340"
        );
        let outage = (0..3).fold(Story::new(), |story, _| story.failed(PRO, 500, INTERNAL));
        assert_eq!(
            outage.failed(FLASH, 503, OVERLOADED).ends(HowEnded::Complete, Some(503)),
            "3 x 500 on gemini-3-pro-image, and the fallback failed too (503 (overloaded) on gemini-2.5-flash-image): systemic \
             outage; see the status page, wait 15 to 60 minutes; nothing was charged"
        );
    }

    #[test]
    fn each_other_end_of_a_call_has_its_sentence() {
        let ok = Some(200);
        let stopped = |why| Step::Stopped { why };
        let cut_off = |story: Story| {
            let id = story.begin(PRO);
            id.end(None, &Verdict::interrupted(), Cost::up_to(720_000), Duration::from_secs(20));
            story
        };
        for (sentence, expected) in [
            (
                Story::new().image(PRO, Some(1)).ends(HowEnded::Complete, ok),
                "1 image: gemini-3-pro-image 2K, 41 s; charged $0.1340",
            ),
            (
                Story::new()
                    .failed(PRO, 503, OVERLOADED)
                    .image(PRO, Some(2))
                    .ends(HowEnded::Complete, ok),
                "503 (overloaded), then success after 41 s: gemini-3-pro-image 2K; 2 images (1 draft), using the final one; charged $0.1340",
            ),
            (
                Story::new().failed(PRO, 200, REFUSED).ends(HowEnded::Complete, ok),
                "refused (IMAGE_SAFETY): change the prompt; the same would be refused again; possibly charged: $0.0000 to $0.0025",
            ),
            (
                Story::new()
                    .failed(PRO, 503, OVERLOADED)
                    .failed(PRO, 503, OVERLOADED)
                    .then(stopped(StopReason::AttemptsUsedUp))
                    .ends(HowEnded::Complete, Some(503)),
                "2 x 503 (overloaded): the model has no capacity; another model may respond, a new key, tier or region does not help \
                 (stopped: attempts used up); nothing was charged",
            ),
            (
                cut_off(Story::new())
                    .then(stopped(StopReason::MaybeCharged))
                    .ends(HowEnded::Failed(Some(Outcome::Interrupted)), None),
                "interrupted: it broke off after it was sent (stopped: it may have been charged); possibly charged: $0.0000 to $0.7200",
            ),
            (
                Story::new()
                    .then(stopped(StopReason::QuotaUsedUp))
                    .ends(HowEnded::Complete, Some(429)),
                "not sent: the quota is used up by our own count; nothing was charged",
            ),
            (
                Story::new()
                    .failed(PRO, 429, MINUTE)
                    .then(stopped(StopReason::QuotaUsedUp))
                    .ends(HowEnded::Complete, Some(429)),
                "429 (minute limit), then not sent: the quota is used up by our own count; nothing was charged",
            ),
            (
                Story::new()
                    .then(stopped(StopReason::SpendingCap))
                    .ends(HowEnded::Complete, Some(402)),
                "not sent: it could exceed a spending cap; nothing was charged",
            ),
            (
                Story::new()
                    .then(stopped(StopReason::NoTargetLeft))
                    .ends(HowEnded::Complete, Some(503)),
                "not sent: every target is cooling down or unsuitable; nothing was charged",
            ),
            (
                Story::new()
                    .then(stopped(StopReason::EarlierResponseLost))
                    .ends(HowEnded::Failed(Some(Outcome::Interrupted)), None),
                "not sent: an earlier, identical request may have been charged and its response was lost; nothing was charged",
            ),
            (
                Story::new().ends(HowEnded::Complete, Some(400)),
                "not sent: it was rejected; the response says why; nothing was charged",
            ),
            (
                Story::new().ends(HowEnded::Failed(Some(Outcome::NotSent)), None),
                "not sent: nothing reached the service; check the connection; nothing was charged",
            ),
            (
                Story::new().ends(HowEnded::NotRecorded, None),
                "not sent: what is paid for cannot be recorded; make the journal's store writable; nothing was charged",
            ),
            (
                Story::new().ends(HowEnded::Dropped, None),
                "the client disconnected after 41 s, before anything was sent; nothing was charged",
            ),
            (
                cut_off(Story::new()).ends(HowEnded::Dropped, None),
                "the client disconnected after 41 s; possibly charged: $0.0000 to $0.7200",
            ),
            (
                {
                    let story = Story::new();
                    let _ = story.begin(PRO);
                    story.then(Step::ClientDisconnected).ends(HowEnded::Dropped, None)
                },
                "the client disconnected after 41 s; the attempt is completed without it",
            ),
            (
                cut_off(Story::new())
                    .then(Step::ClientDisconnected)
                    .then(Step::NotStored { why: NotStoredReason::Broken })
                    .ends(HowEnded::Dropped, None),
                "the client disconnected after 41 s; possibly charged: $0.0000 to $0.7200",
            ),
            (
                Story::new()
                    .then(Step::Replayed {
                        age: Duration::from_secs(12),
                        cost: Cost::exactly(134_000),
                        outcome: Outcome::Image,
                    })
                    .ends(HowEnded::Complete, ok),
                "replayed the response to an earlier, identical request, 12 s old; nothing was charged again",
            ),
        ] {
            assert_eq!(sentence, expected);
        }
    }

    #[test]
    fn every_outcome_has_a_sentence_of_one_line() {
        let ours = [
            CallOutcome::Replayed,
            CallOutcome::OwnQuota,
            CallOutcome::SpendingCap,
            CallOutcome::NoTarget,
            CallOutcome::EarlierResponseLost,
            CallOutcome::NotRecorded,
            CallOutcome::Rejected,
            CallOutcome::ClientDisconnected,
        ];
        let ended = Outcome::ALL.iter().map(|&outcome| CallOutcome::Ended(outcome));
        for outcome in ended.chain(ours) {
            let text = sentence(&[], outcome, Duration::ZERO);
            assert!(
                text.len() > 10 && !text.contains('\n') && !text.starts_with(':'),
                "{outcome}: {text}"
            );
        }
    }

    #[test]
    fn failures_of_one_model_are_no_systemic_outage() {
        let one = (0..4).fold(Story::new(), |story, _| story.failed(PRO, 500, INTERNAL));
        assert!(!is_systemic(&one.0.steps()));
        // Nor is one whose fallback failed for another reason.
        assert!(!is_systemic(&one.failed(FLASH, 429, MINUTE).0.steps()));
    }
}
