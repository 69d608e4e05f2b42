//! What a refusal says about limits that are not published. Pure.

use tower_gemini_core::verdict::{Outcome, QuotaDetail, Verdict};

use super::admission::{Moment, RestReason, WINDOW_MS};
use super::limits::{Limits, QuotaAmounts, QuotaDimension};
use crate::clock::millis;

/// One correction that a refusal leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lesson {
    /// Closes the day until midnight Pacific. The hint is ignored: Google's hints for daily limits
    /// are seconds long.
    CloseDay,
    /// Lets nothing through for this long.
    Rest { ms: u64, reason: RestReason, whole_project: bool },
    /// Sets the limit that Google states.
    Stated { dimension: QuotaDimension, limit: u64 },
    /// Lowers a limit that was refused although it was not reached.
    Lower { dimension: QuotaDimension },
}

/// How long a model rests after a 429 that is about capacity and brings no hint (operators' guide
/// to RESOURCE_EXHAUSTED, 2026-02: the first wait after an overload).
const CAPACITY_REST_MS: u64 = 10_000;
/// How long a model rests after a minute's limit without a hint: a whole window (gemini-cli waits
/// 60 s too).
const MINUTE_REST_MS: u64 = WINDOW_MS;
/// How long an account without means to pay rests. Ours: one request a minute notices a paid bill.
const ACCOUNT_REST_MS: u64 = 60_000;
/// From this share of a limit on, a refusal without details is taken to be about that limit. Ours:
/// the estimate of tokens and the order of arrival leave some doubt, 20 % is plenty.
const NEAR_PERCENT: u64 = 80;

/// Returns the corrections that a verdict leads to, given what was taken and the limits as they are
/// known now. `status` is the HTTP status.
pub(crate) fn lessons(
    verdict: &Verdict,
    status: Option<u16>,
    taken: QuotaAmounts,
    limits: &Limits,
) -> Vec<Lesson> {
    let hint_ms = verdict.wait().map(|wait| millis(wait.not_before()));
    let quota = verdict.detail().and_then(|detail| detail.quota.as_ref());
    let dimension = quota.and_then(dimension_of);
    let stated = quota.and_then(|quota| quota.value).filter(|&value| value > 0);
    let rest = |usual_ms, reason| Lesson::Rest {
        ms: hint_ms.unwrap_or(usual_ms),
        reason,
        whole_project: false,
    };
    match verdict.outcome() {
        Outcome::RateLimitedDay => {
            let day = dimension.filter(|&of| of == QuotaDimension::RequestsPerDay);
            let limit =
                day.zip(stated).map(|(dimension, limit)| Lesson::Stated { dimension, limit });
            [Lesson::CloseDay].into_iter().chain(limit).collect()
        }
        Outcome::RateLimitedMinute => {
            let limit = dimension.and_then(|dimension| match stated {
                Some(limit) => Some(Lesson::Stated { dimension, limit }),
                None => limits.get(dimension).map(|_| Lesson::Lower { dimension }),
            });
            let rest = rest(MINUTE_REST_MS, RestReason::MinuteExhausted);
            [rest].into_iter().chain(limit).collect()
        }
        Outcome::RateLimited => {
            let is_near = |&dimension: &QuotaDimension| {
                limits.get(dimension).is_some_and(|limit| {
                    u128::from(taken.get(dimension)) * 100
                        >= u128::from(limit) * u128::from(NEAR_PERCENT)
                })
            };
            let near = QuotaDimension::ALL.into_iter().filter(is_near);
            let lowered: Vec<_> = near.map(|dimension| Lesson::Lower { dimension }).collect();
            let reason = match lowered.is_empty() {
                true => RestReason::Capacity,
                false => RestReason::MinuteExhausted,
            };
            [rest(CAPACITY_REST_MS, reason)].into_iter().chain(lowered).collect()
        }
        // A 503 is for retry and fallback. A 429 that says "no capacity" means the same, and rests
        // the model.
        Outcome::Overloaded if status == Some(429) => {
            vec![rest(CAPACITY_REST_MS, RestReason::Capacity)]
        }
        Outcome::SpendRateLimited => {
            let ms = hint_ms.unwrap_or(ACCOUNT_REST_MS);
            vec![Lesson::Rest { ms, reason: RestReason::Account, whole_project: true }]
        }
        Outcome::QuotaZeroOrBilling => {
            let (ms, reason) = (ACCOUNT_REST_MS, RestReason::Account);
            vec![Lesson::Rest { ms, reason, whole_project: false }]
        }
        _ => Vec::new(),
    }
}

/// Returns which of our dimensions a violation is about, by the spellings seen (`…PerMinute…`,
/// `…_per_day`, `…input_token_count`).
fn dimension_of(quota: &QuotaDetail) -> Option<QuotaDimension> {
    let words = [quota.id.as_deref(), quota.metric.as_deref()].map(Option::unwrap_or_default);
    let text = words.join(" ").to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let (day, tokens, images) = (
        has(&["perday", "per_day", "daily"]),
        has(&["token"]),
        has(&["imagesper", "generated_images"]),
    );
    match (day, tokens, images) {
        (true, false, false) => Some(QuotaDimension::RequestsPerDay),
        // Tokens and images of a day are not among our dimensions; the day is closed all the same.
        (true, ..) => None,
        (false, true, _) => Some(QuotaDimension::TokensPerMinute),
        (false, _, true) => Some(QuotaDimension::ImagesPerMinute),
        (false, false, false) => {
            has(&["perminute", "per_minute"]).then_some(QuotaDimension::RequestsPerMinute)
        }
    }
}

/// How long a lowered limit is kept before it is raised a step. Ours: ten windows, so that a wrong
/// guess costs a tenth of the refusals that raising it in each window would cost.
const PROBE_MS: u64 = 10 * WINDOW_MS;

/// Holds the limits of one (project, model) that refusals lowered, and when each was last changed.
#[derive(Debug, Clone)]
pub(crate) struct Learned {
    configured: Limits,
    current: Limits,
    touched_ms: [Option<u64>; 4],
}

impl Learned {
    pub(crate) fn new(configured: Limits) -> Self {
        Self { configured, current: configured, touched_ms: [None; 4] }
    }

    pub(crate) fn current(&self) -> Limits {
        self.current
    }

    /// Sets a limit that Google states. A configured limit may be lower on purpose, so it is never
    /// exceeded.
    pub(crate) fn stated(&mut self, now: Moment, dimension: QuotaDimension, limit: u64) {
        let limit =
            self.configured.get(dimension).map_or(limit, |configured| configured.min(limit));
        self.set(now, dimension, limit);
    }

    /// Lowers a limit by a tenth, at most once a window: a burst of refusals says one thing.
    pub(crate) fn lower(&mut self, now: Moment, dimension: QuotaDimension) {
        let recent =
            self.touched_ms[dimension.index()].is_some_and(|at| now.steady_ms < at + WINDOW_MS);
        if let (Some(limit), false) = (self.current.get(dimension), recent) {
            self.set(now, dimension, limit.saturating_sub((limit / 10).max(1)).max(1));
        }
    }

    fn set(&mut self, now: Moment, dimension: QuotaDimension, limit: u64) {
        self.current = self.current.with(dimension, Some(limit));
        self.touched_ms[dimension.index()] =
            (self.configured.get(dimension) != Some(limit)).then_some(now.steady_ms);
    }

    /// Raises each lowered limit whose time has come by a step. `true` if any changed.
    pub(crate) fn probe(&mut self, now: Moment) -> bool {
        let mut moved = false;
        for dimension in QuotaDimension::ALL {
            let (Some(at), Some(limit)) =
                (self.touched_ms[dimension.index()], self.current.get(dimension))
            else {
                continue;
            };
            if now.steady_ms < at + PROBE_MS {
                continue;
            }
            let configured = self.configured.get(dimension);
            let step = (configured.unwrap_or(limit) / 10).max(1);
            let raised = limit.saturating_add(step).min(configured.unwrap_or(u64::MAX));
            self.set(now, dimension, raised);
            moved = true;
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tower_gemini_core::verdict::{Detail, WaitHint, WaitSource};

    use super::*;

    fn at(steady_ms: u64) -> Moment {
        Moment { steady_ms, wall_ms: 0 }
    }

    fn verdict(
        outcome: Outcome,
        id: Option<&str>,
        value: Option<u64>,
        wait_s: Option<u64>,
    ) -> Verdict {
        let mut detail = Detail::default();
        if let Some(id) = id {
            let mut quota = QuotaDetail::default();
            quota.id = Some(id.into());
            quota.value = value;
            detail.quota = Some(quota);
        }
        let wait = wait_s.map(|s| WaitHint::new(Duration::from_secs(s), WaitSource::RetryInfo));
        Verdict::refused_locally(outcome, wait, true, detail)
    }

    #[test]
    fn an_exhausted_day_is_closed_whatever_the_hint_says() {
        let verdict = verdict(
            Outcome::RateLimitedDay,
            Some("GenerateRequestsPerDayPerProjectPerModel"),
            Some(250),
            Some(2),
        );
        assert_eq!(
            lessons(&verdict, Some(429), QuotaAmounts::default(), &Limits::unlimited()),
            [
                Lesson::CloseDay,
                Lesson::Stated { dimension: QuotaDimension::RequestsPerDay, limit: 250 }
            ]
        );
    }

    #[test]
    fn every_spelling_seen_finds_its_dimension() {
        use QuotaDimension::*;
        for (id, dimension) in [
            ("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", Some(RequestsPerMinute)),
            ("GenerateContentInputTokensPerModelPerMinute-FreeTier", Some(TokensPerMinute)),
            ("GenerateContentPaidTierInputTokensPerModelPerMinute", Some(TokensPerMinute)),
            ("GenerateImagesPerMinutePerProjectPerModel-FreeTier", Some(ImagesPerMinute)),
            ("GenerateRequestsPerDayPerProjectPerModel-FreeTier", Some(RequestsPerDay)),
            ("GenerateContentInputTokensPerModelPerDay-FreeTier", None),
            (
                "generativelanguage.googleapis.com/generate_content_paid_tier_2_input_token_count",
                Some(TokensPerMinute),
            ),
            ("generativelanguage.googleapis.com/generate_content_requests", None),
        ] {
            let mut quota = QuotaDetail::default();
            quota.id = Some(id.into());
            assert_eq!(dimension_of(&quota), dimension, "{id}");
        }
    }

    #[test]
    fn far_below_the_limit_a_bare_refusal_rests_the_model_and_lowers_nothing() {
        let limits = Limits::unlimited().rpm(100);
        let bare = verdict(Outcome::RateLimited, None, None, None);
        let far = lessons(&bare, Some(429), QuotaAmounts([10, 0, 0, 10]), &limits);
        assert_eq!(
            far,
            [Lesson::Rest { ms: 10_000, reason: RestReason::Capacity, whole_project: false }]
        );
        let near = lessons(&bare, Some(429), QuotaAmounts([95, 0, 0, 95]), &limits);
        assert!(near.contains(&Lesson::Lower { dimension: QuotaDimension::RequestsPerMinute }));
    }

    #[test]
    fn a_503_rests_nothing_here() {
        let verdict = verdict(Outcome::Overloaded, None, None, None);
        assert!(
            lessons(&verdict, Some(503), QuotaAmounts::default(), &Limits::unlimited()).is_empty()
        );
        assert_eq!(
            lessons(&verdict, Some(429), QuotaAmounts::default(), &Limits::unlimited()).len(),
            1
        );
    }

    #[test]
    fn a_lowered_limit_rises_again_up_to_the_configured_one() {
        let mut learned = Learned::new(Limits::unlimited().rpm(100));
        learned.stated(at(0), QuotaDimension::RequestsPerMinute, 75);
        assert!(!learned.probe(at(PROBE_MS - 1)));
        let mut seen = Vec::new();
        for i in 1..6 {
            learned.probe(at(i * PROBE_MS));
            seen.extend(learned.current().get(QuotaDimension::RequestsPerMinute));
        }
        assert_eq!(seen, [85, 95, 100, 100, 100]);
        learned.stated(at(0), QuotaDimension::RequestsPerMinute, 5_000);
        assert_eq!(learned.current().get(QuotaDimension::RequestsPerMinute), Some(100));
    }

    #[test]
    fn a_burst_of_refusals_lowers_once() {
        let mut learned = Learned::new(Limits::unlimited().rpm(100));
        for ms in 0..50 {
            learned.lower(at(ms), QuotaDimension::RequestsPerMinute);
        }
        assert_eq!(learned.current().get(QuotaDimension::RequestsPerMinute), Some(90));
    }
}
