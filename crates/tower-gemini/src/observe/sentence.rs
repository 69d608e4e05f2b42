//! One sentence for people about each finished call: pure, from its trail.
//!
//! Article 001 shows four log scenarios that an operator should be able to tell apart at a glance
//! (three images of which two are drafts; a 429 and then success; a 503 and another model; three
//! 500s and a fallback that failed too). These are theirs, and the others.

use std::fmt::Write as _;
use std::time::Duration;

use crate::trail::{Attempt, Step, StopReason};
use tower_gemini_core::call::ImageSize;
use tower_gemini_core::cost::Cost;
use tower_gemini_core::verdict::{Charge, Outcome};

use super::outcome::{CallOutcome, FailureKind};

/// What a sentence is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finished<'a> {
    pub(super) steps: &'a [Step],
    pub(super) outcome: CallOutcome,
    pub(super) took: Duration,
}

/// Whether a step is an attempt whose end is not known yet.
pub(super) fn is_under_way(step: &Step) -> bool {
    matches!(step, Step::Attempt(attempt) if attempt.outcome.is_none())
}

/// What is known of the money of a whole call: the worst of its attempts.
pub(super) fn charge_of(steps: &[Step]) -> Charge {
    let mut worst = Charge::None;
    for attempt in attempts(steps) {
        worst = match (worst, attempt.charge) {
            (Charge::Charged, _) | (_, Charge::Charged) => Charge::Charged,
            (Charge::Maybe, _) | (_, Charge::Maybe) => Charge::Maybe,
            (Charge::Waived, _) | (_, Charge::Waived) => Charge::Waived,
            _ => Charge::None,
        };
    }
    worst
}

/// Whether a call shows an outage of the whole service: at least three attempts, at two models or
/// more, all failed by its own fault.
pub(super) fn is_systemic(steps: &[Step]) -> bool {
    let all: Vec<_> = attempts(steps).collect();
    let first = all.first().map(|attempt| &attempt.model);
    all.len() >= 3
        && all.iter().any(|attempt| Some(&attempt.model) != first)
        && all.iter().all(|attempt| {
            attempt.outcome.and_then(FailureKind::of).is_some_and(FailureKind::is_service)
        })
}

fn attempts(steps: &[Step]) -> impl Iterator<Item = &Attempt> {
    steps.iter().filter_map(|step| match step {
        Step::Attempt(attempt) => Some(attempt),
        _ => None,
    })
}

/// The sentence.
pub(super) fn sentence(call: &Finished<'_>) -> String {
    let all: Vec<_> = attempts(call.steps).collect();
    match call.outcome {
        CallOutcome::Redeemed => redeemed(call.steps),
        CallOutcome::CallerLeft => caller_left(call, &all),
        CallOutcome::Ended(outcome) if outcome.is_success() => success(call, &all, outcome),
        outcome => failure(call, &all, outcome),
    }
}

fn success(call: &Finished<'_>, all: &[&Attempt], outcome: Outcome) -> String {
    let Some((last, before)) = all.split_last() else {
        return format!("answered after {}", seconds(call.took));
    };
    let drafts = last.images.map_or(0, |images| images.saturating_sub(1));
    let images = format!(
        "{} images ({drafts} {}), using the final one",
        drafts + 1,
        if drafts == 1 { "draft" } else { "drafts" }
    );
    let (place, after) = (place(last), seconds(call.took));
    let mut text = match before.first() {
        None => {
            let what = match outcome {
                Outcome::Image if drafts > 0 => &images,
                Outcome::Image => "1 image",
                _ => "answered",
            };
            if place.is_empty() {
                format!("{what}, {after}")
            } else {
                format!("{what}: {place}, {after}")
            }
        }
        Some(first) if first.model != last.model => {
            format!("{}, then {place} answered after {after}", list(before, true))
        }
        Some(first) if first.size != last.size => {
            let asked = first.size.map_or("its usual size", ImageSize::as_str);
            format!("{} at {asked}, then {place} answered after {after}", list(before, false))
        }
        Some(_) if place.is_empty() => {
            format!("{}, then success after {after}", list(before, false))
        }
        Some(_) => format!("{}, then success after {after}: {place}", list(before, false)),
    };
    if drafts > 0 && !before.is_empty() {
        let _ = write!(text, "; {images}");
    }
    money(&mut text, call.steps);
    text
}

fn failure(call: &Finished<'_>, all: &[&Attempt], outcome: CallOutcome) -> String {
    let mut text = String::new();
    let several =
        all.iter().any(|attempt| Some(&attempt.model) != all.first().map(|first| &first.model));
    if is_systemic(call.steps) {
        let model = all.first().and_then(|first| first.model.as_ref());
        let (first, rest) =
            all.split_at(all.iter().take_while(|one| one.model.as_ref() == model).count());
        let _ = write!(
            text,
            "{}, and the fallback failed too ({}): systemic outage; see the status page, wait 15 to 60 minutes",
            list(first, true),
            list(rest, true)
        );
    } else {
        let tried = list(all, several);
        let (what, now) = match outcome {
            CallOutcome::OwnQuota => {
                ("not sent", "our own count says that the quota is used up".to_owned())
            }
            CallOutcome::SpendingCap => {
                ("not sent", "it might have passed a spending cap".to_owned())
            }
            CallOutcome::NoTarget => (
                "not sent",
                "every target rests after failures, or is out of the question".to_owned(),
            ),
            CallOutcome::LostBefore => (
                "not sent",
                "an earlier, identical request may have been paid for, and its answer was lost"
                    .to_owned(),
            ),
            CallOutcome::RefusedHere => {
                ("not sent", "it was refused here; the answer says why".to_owned())
            }
            CallOutcome::Ended(outcome) => ("", what_now(outcome)),
            CallOutcome::Redeemed | CallOutcome::CallerLeft => ("", String::new()),
        };
        text.push_str(&tried);
        if !what.is_empty() {
            let _ = write!(text, "{}{what}", if tried.is_empty() { "" } else { ", then " });
        }
        if text.is_empty() {
            text.push_str("not sent");
        }
        let _ = write!(text, ": {now}");
        if let Some(why) = given_up(call.steps).filter(|_| outcome != CallOutcome::NoTarget) {
            let _ = write!(text, " (given up: {})", why.as_str());
        }
    }
    if all.is_empty() {
        text.push_str("; nothing was charged");
    } else {
        money(&mut text, call.steps);
    }
    text
}

fn caller_left(call: &Finished<'_>, all: &[&Attempt]) -> String {
    let after = seconds(call.took);
    let goes_on = call.steps.iter().any(|step| matches!(step, Step::CallerLeft))
        && call.steps.iter().any(is_under_way);
    let mut text = format!("the caller left after {after}");
    if all.is_empty() {
        text.push_str(", before anything was sent; nothing was charged");
        return text;
    }
    if goes_on {
        text.push_str("; what may have been paid for is finished without it");
        return text;
    }
    money(&mut text, call.steps);
    text
}

fn redeemed(steps: &[Step]) -> String {
    let age = steps.iter().find_map(|step| match step {
        Step::Redeemed { age, .. } => Some(*age),
        _ => None,
    });
    let age = age
        .filter(|age| !age.is_zero())
        .map_or(String::new(), |age| format!(", {} old", seconds(age)));
    format!(
        "given the answer to the caller's earlier, identical request{age}; nothing was paid again"
    )
}

/// `; $0.1340`, and what is certain of it.
fn money(text: &mut String, steps: &[Step]) {
    let cost: Cost = attempts(steps).map(|attempt| attempt.cost).sum();
    let _ = match (charge_of(steps), cost.at_most_microusd) {
        (Charge::None | Charge::Waived, _) => write!(text, "; nothing was charged"),
        // Refused prompts are charged for tokens that nobody has counted.
        (Charge::Charged, _) => write!(text, "; charged {cost}"),
        (Charge::Maybe, None) => {
            write!(text, "; it may have been charged, for how much is not known")
        }
        (Charge::Maybe, Some(_)) => write!(text, "; it may have been charged: {cost}"),
    };
}

/// Why nothing more was sent, where that is not said by the outcome itself.
fn given_up(steps: &[Step]) -> Option<StopReason> {
    let last = steps.iter().rev().find_map(|step| match step {
        Step::Stopped { why } => Some(*why),
        _ => None,
    });
    last.filter(|why| {
        matches!(
            why,
            StopReason::AttemptsUsedUp
                | StopReason::ElapsedUsedUp
                | StopReason::DeadlineTooNear
                | StopReason::WaitTooLong
                | StopReason::BudgetSpent
                | StopReason::NotReplayable
                | StopReason::MaybeCharged
                | StopReason::NoTargetLeft
        )
    })
}

/// `3 x 500 on gemini-3-pro-image, 503 (overloaded) on gemini-2.5-flash-image`.
fn list(attempts: &[&Attempt], models: bool) -> String {
    let mut runs: Vec<(String, usize)> = Vec::new();
    for attempt in attempts {
        let mut one = label(attempt);
        if let (true, Some(model)) = (models, &attempt.model) {
            let _ = write!(one, " on {model}");
        }
        match runs.last_mut() {
            Some((last, count)) if *last == one => *count += 1,
            _ => runs.push((one, 1)),
        }
    }
    let runs: Vec<_> = runs
        .into_iter()
        .map(|(one, count)| if count > 1 { format!("{count} x {one}") } else { one })
        .collect();
    runs.join(", ")
}

/// `429 (limit of the minute)`.
fn label(attempt: &Attempt) -> String {
    let reason =
        || attempt.reason.as_deref().map_or(String::new(), |reason| format!(" ({reason})"));
    let Some(outcome) = attempt.outcome else { return "cut off".to_owned() };
    let status = |usual: u16| attempt.status.unwrap_or(usual);
    match outcome {
        Outcome::RateLimitedMinute => format!("{} (limit of the minute)", status(429)),
        Outcome::RateLimitedDay => format!("{} (limit of the day)", status(429)),
        Outcome::RateLimited => status(429).to_string(),
        Outcome::SpendRateLimited => format!("{} (spending too fast)", status(429)),
        Outcome::QuotaZeroOrBilling => format!("{} (no quota or no means to pay)", status(429)),
        Outcome::Overloaded if attempt.status == Some(429) => "429 (no capacity)".to_owned(),
        Outcome::Overloaded => format!("{} (overloaded)", status(503)),
        Outcome::Internal => status(500).to_string(),
        Outcome::BadGateway => status(502).to_string(),
        Outcome::Deadline => format!("{} (deadline)", status(504)),
        Outcome::ContentBlocked | Outcome::PromptBlocked => format!("refused{}", reason()),
        Outcome::NoImage => format!("no image{}", reason()),
        Outcome::OutOfTokens => "out of tokens before an image".to_owned(),
        Outcome::MissingThoughtSignature => format!("{} (thought signature)", status(400)),
        Outcome::NotSent => "not sent".to_owned(),
        Outcome::Interrupted => "cut off".to_owned(),
        Outcome::StreamError => "broken stream".to_owned(),
        Outcome::Image | Outcome::Answered => "success".to_owned(),
        other => match attempt.status {
            Some(status) => {
                format!(
                    "{status} ({other}{})",
                    attempt.reason.as_deref().map_or(String::new(), |r| format!(", {r}"))
                )
            }
            None => other.to_string(),
        },
    }
}

/// What a failure means, and what now.
fn what_now(outcome: Outcome) -> String {
    match outcome {
        Outcome::RateLimitedMinute | Outcome::RateLimited => "send slower, within the limits of your tier",
        Outcome::RateLimitedDay => "closed until midnight Pacific",
        Outcome::SpendRateLimited => "the account spends faster than its tier allows; wait ten minutes",
        Outcome::QuotaZeroOrBilling => "no waiting helps; see to the billing of the project",
        Outcome::Overloaded => "the model has no capacity; another model may answer, a new key, tier or region does not help",
        Outcome::Deadline => "the service gave up at its deadline; a smaller image may come",
        Outcome::Internal => "a fault of the service; such last 15 to 60 minutes",
        Outcome::BadGateway => "a gateway of the service failed; such pass in minutes",
        Outcome::ContentBlocked | Outcome::PromptBlocked => "change the prompt; the same would be refused again",
        Outcome::NoImage => "the model drew nothing; say in the prompt that an image is wanted",
        Outcome::OutOfTokens => "allow more output tokens",
        Outcome::BadRequest => "the request is at fault, and will be each time",
        Outcome::PayloadTooLarge => "make the request smaller",
        Outcome::MissingThoughtSignature => "send the model's thought signatures back with its turn",
        Outcome::Region => "this place is not served; no other key helps",
        Outcome::Auth => "see to the key",
        Outcome::Permission => "the key may not do this; a new one needs a few minutes",
        Outcome::NotFound => "no such model, or no longer",
        Outcome::NotSent => "nothing reached the service; see to the connection",
        Outcome::Interrupted | Outcome::StreamError => "it broke off after it was sent",
        _ => "nothing known fits",
    }
    .to_owned()
}

/// `gemini-3-pro-image 4K`, or nothing.
fn place(attempt: &Attempt) -> String {
    match (&attempt.model, attempt.size) {
        (Some(model), Some(size)) => format!("{model} {size}"),
        (Some(model), None) => model.to_string(),
        (None, Some(size)) => size.to_string(),
        (None, None) => String::new(),
    }
}

/// `4.1 s`, `41 s`.
fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 10.0 { format!("{seconds:.1} s") } else { format!("{seconds:.0} s") }
}

#[cfg(test)]
mod tests {
    use crate::trail::{AttemptId, NotKeptReason, Trail, WaitReason};
    use http::{HeaderMap, Method, StatusCode};
    use tower_gemini_core::call::{Call, ModelId};
    use tower_gemini_core::classify::classify;
    use tower_gemini_core::verdict::Verdict;

    use super::super::outcome::{How, outcome_of};
    use super::*;

    const PRO: &str = "gemini-3-pro-image";
    const FLASH: &str = "gemini-2.5-flash-image";
    const MINUTE: &str = r#"{"error":{"code":429,"message":"Quota exceeded.","status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaId":"GenerateRequestsPerMinutePerProjectPerModel"}]}]}}"#;
    const OVERLOADED: &str =
        r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
    const INTERNAL: &str =
        r#"{"error":{"code":500,"message":"An internal error has occurred.","status":"INTERNAL"}}"#;
    const REFUSED: &str = r#"{"candidates":[{"finishReason":"IMAGE_SAFETY"}],"usageMetadata":{"promptTokenCount":10}}"#;

    /// A call that is told attempt by attempt.
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

        fn ends(self, how: How, status: Option<u16>) -> String {
            let steps = self.0.steps();
            let outcome = outcome_of(&steps, how, status);
            sentence(&Finished { steps: &steps, outcome, took: Duration::from_millis(41_200) })
        }
    }

    #[test]
    fn the_four_scenarios_of_article_001() {
        let ok = Some(200);
        assert_eq!(
            Story::new().image(PRO, Some(3)).ends(How::Complete, ok),
            "3 images (2 drafts), using the final one: gemini-3-pro-image 2K, 41 s; charged $0.1340"
        );
        let waited = Step::Waited { delay: Duration::from_secs(12), why: WaitReason::ServerHint };
        assert_eq!(
            Story::new()
                .failed(PRO, 429, MINUTE)
                .then(waited)
                .image(PRO, Some(1))
                .ends(How::Complete, ok),
            "429 (limit of the minute), then success after 41 s: gemini-3-pro-image 2K; charged $0.1340"
        );
        assert_eq!(
            Story::new().failed(PRO, 503, OVERLOADED).image(FLASH, None).ends(How::Complete, ok),
            "503 (overloaded) on gemini-3-pro-image, then gemini-2.5-flash-image 2K answered after 41 s; charged $0.1340"
        );
        let outage = (0..3).fold(Story::new(), |story, _| story.failed(PRO, 500, INTERNAL));
        assert_eq!(
            outage.failed(FLASH, 503, OVERLOADED).ends(How::Complete, Some(503)),
            "3 x 500 on gemini-3-pro-image, and the fallback failed too (503 (overloaded) on gemini-2.5-flash-image): systemic \
             outage; see the status page, wait 15 to 60 minutes; nothing was charged"
        );
    }

    #[test]
    fn a_sentence_for_each_other_way_that_a_call_can_end() {
        let ok = Some(200);
        let stopped = |why| Step::Stopped { why };
        let cut_off = |story: Story| {
            let id = story.begin(PRO);
            id.end(None, &Verdict::interrupted(), Cost::up_to(720_000), Duration::from_secs(20));
            story
        };
        for (sentence, expected) in [
            (
                Story::new().image(PRO, Some(1)).ends(How::Complete, ok),
                "1 image: gemini-3-pro-image 2K, 41 s; charged $0.1340",
            ),
            (
                Story::new()
                    .failed(PRO, 503, OVERLOADED)
                    .image(PRO, Some(2))
                    .ends(How::Complete, ok),
                "503 (overloaded), then success after 41 s: gemini-3-pro-image 2K; 2 images (1 draft), using the final one; charged $0.1340",
            ),
            (
                Story::new().failed(PRO, 200, REFUSED).ends(How::Complete, ok),
                "refused (IMAGE_SAFETY): change the prompt; the same would be refused again; it may have been charged: $0.0000 to $0.0025",
            ),
            (
                Story::new()
                    .failed(PRO, 503, OVERLOADED)
                    .failed(PRO, 503, OVERLOADED)
                    .then(stopped(StopReason::AttemptsUsedUp))
                    .ends(How::Complete, Some(503)),
                "2 x 503 (overloaded): the model has no capacity; another model may answer, a new key, tier or region does not help \
                 (given up: attempts used up); nothing was charged",
            ),
            (
                cut_off(Story::new())
                    .then(stopped(StopReason::MaybeCharged))
                    .ends(How::Failed(Some(Outcome::Interrupted)), None),
                "cut off: it broke off after it was sent (given up: it may have been paid for); it may have been charged: $0.0000 to $0.7200",
            ),
            (
                Story::new().then(stopped(StopReason::QuotaUsedUp)).ends(How::Complete, Some(429)),
                "not sent: our own count says that the quota is used up; nothing was charged",
            ),
            (
                Story::new()
                    .failed(PRO, 429, MINUTE)
                    .then(stopped(StopReason::QuotaUsedUp))
                    .ends(How::Complete, Some(429)),
                "429 (limit of the minute), then not sent: our own count says that the quota is used up; nothing was charged",
            ),
            (
                Story::new().then(stopped(StopReason::SpendingCap)).ends(How::Complete, Some(402)),
                "not sent: it might have passed a spending cap; nothing was charged",
            ),
            (
                Story::new().then(stopped(StopReason::NoTargetLeft)).ends(How::Complete, Some(503)),
                "not sent: every target rests after failures, or is out of the question; nothing was charged",
            ),
            (
                Story::new()
                    .then(stopped(StopReason::LostBefore))
                    .ends(How::Failed(Some(Outcome::Interrupted)), None),
                "not sent: an earlier, identical request may have been paid for, and its answer was lost; nothing was charged",
            ),
            (
                Story::new().ends(How::Complete, Some(400)),
                "not sent: it was refused here; the answer says why; nothing was charged",
            ),
            (
                Story::new().ends(How::Failed(Some(Outcome::NotSent)), None),
                "not sent: nothing reached the service; see to the connection; nothing was charged",
            ),
            (
                Story::new().ends(How::Left, None),
                "the caller left after 41 s, before anything was sent; nothing was charged",
            ),
            (
                cut_off(Story::new()).ends(How::Left, None),
                "the caller left after 41 s; it may have been charged: $0.0000 to $0.7200",
            ),
            (
                {
                    let story = Story::new();
                    let _ = story.begin(PRO);
                    story.then(Step::CallerLeft).ends(How::Left, None)
                },
                "the caller left after 41 s; what may have been paid for is finished without it",
            ),
            (
                cut_off(Story::new())
                    .then(Step::CallerLeft)
                    .then(Step::NotKept { why: NotKeptReason::Broken })
                    .ends(How::Left, None),
                "the caller left after 41 s; it may have been charged: $0.0000 to $0.7200",
            ),
            (
                Story::new()
                    .then(Step::Redeemed {
                        age: Duration::from_secs(12),
                        cost: Cost::exactly(134_000),
                        outcome: Outcome::Image,
                    })
                    .ends(How::Complete, ok),
                "given the answer to the caller's earlier, identical request, 12 s old; nothing was paid again",
            ),
        ] {
            assert_eq!(sentence, expected);
        }
    }

    #[test]
    fn every_outcome_has_its_sentence_of_one_line() {
        for outcome in CallOutcome::all() {
            let text = sentence(&Finished { steps: &[], outcome, took: Duration::ZERO });
            assert!(
                text.len() > 10 && !text.contains('\n') && !text.starts_with(':'),
                "{outcome}: {text}"
            );
        }
    }

    #[test]
    fn one_model_that_fails_is_no_systemic_outage() {
        let one = (0..4).fold(Story::new(), |story, _| story.failed(PRO, 500, INTERNAL));
        assert!(!is_systemic(&one.0.steps()));
        // Nor is one whose fallback was refused for another reason.
        assert!(!is_systemic(&one.failed(FLASH, 429, MINUTE).0.steps()));
    }
}
