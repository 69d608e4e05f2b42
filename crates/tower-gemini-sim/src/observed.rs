//! Weather that somebody saw: requests with their outcomes, replayed, and what they say of the
//! weather's parameters.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::error::ScenarioError;
use crate::fault::{Fault, Limit, Refusal};
use crate::model::Size;

/// The first line of a file of observations.
pub const OBSERVATIONS_HEADER: &str = "seconds,model,size,outcome,latency_ms";

/// One request that was seen.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Observation {
    /// When it was sent, counted from the first midnight UTC of the file.
    pub at: Duration,
    /// The model that it named.
    pub model: String,
    /// The size that it asked for.
    pub size: Size,
    /// What became of it: `success`, or a name of what failed.
    pub outcome: String,
    /// How long the response took.
    pub latency: Duration,
}

/// Requests that were seen, in order of time.
///
/// As CSV: [`OBSERVATIONS_HEADER`], then a line a request. `seconds` count from 1970 or from any
/// other midnight UTC, and outcomes are those of `tower_gemini::verdict::Outcome`. The gateway
/// writes such a file (`log.observations`).
///
/// ```
/// use tower_gemini_sim::Observations;
///
/// let csv = "seconds,model,size,outcome,latency_ms\n\
///            0,gemini-3-pro-image,1K,success,31000\n\
///            60,gemini-3-pro-image,1K,overloaded,90\n\
///            120,gemini-3-pro-image,1K,success,45000\n";
/// let seen = Observations::parse(csv)?;
/// assert_eq!(seen.all().len(), 3);
/// # Ok::<(), tower_gemini_sim::ScenarioError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observations(Vec<Observation>);

impl Observations {
    /// Parses a file's text.
    ///
    /// # Errors
    ///
    /// The first line that is none, with its number.
    pub fn parse(csv: &str) -> Result<Self, ScenarioError> {
        let mut all = Vec::new();
        for (index, line) in csv.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line == OBSERVATIONS_HEADER {
                continue;
            }
            let one = Self::line(line).ok_or_else(|| {
                ScenarioError::new(format!(
                    "line {}: \"{line}\" is no observation; write {OBSERVATIONS_HEADER}",
                    index + 1
                ))
            })?;
            all.push(one);
        }
        all.sort_by_key(|one| one.at);
        // From the midnight before the first.
        let first = all.first().map_or(0, |one| one.at.as_secs() / 86_400 * 86_400);
        for one in &mut all {
            one.at = one.at.saturating_sub(Duration::from_secs(first));
        }
        Ok(Self(all))
    }

    fn line(line: &str) -> Option<Observation> {
        let mut fields = line.split(',').map(str::trim);
        let mut next = || fields.next();
        let at = Duration::try_from_secs_f64(next()?.parse().ok()?).ok()?;
        let (model, size) = (next()?.to_owned(), next()?);
        let size = if size.is_empty() { Size::K1 } else { Size::parse(size)? };
        let (outcome, latency) = (next()?.to_owned(), next()?.parse::<f64>().ok()?);
        let latency = Duration::try_from_secs_f64(latency / 1000.0).ok()?;
        let is_whole = !model.is_empty() && !outcome.is_empty() && next().is_none();
        is_whole.then_some(Observation { at, model, size, outcome, latency })
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Observation] {
        &self.0
    }

    /// The last one of such requests until a moment: what a request at that moment would have met.
    pub(crate) fn until(&self, model: &str, size: Size, now: Duration) -> Option<&Observation> {
        let seen = &self.0[..self.0.partition_point(|one| one.at <= now)];
        let of_model =
            || seen.iter().rev().filter(|one| one.model == model && one.fault().is_some());
        of_model().find(|one| one.size == size).or_else(|| of_model().next())
    }

    /// What the requests say of the weather's parameters.
    #[must_use]
    pub fn fit(&self) -> Fit {
        let models: BTreeSet<&str> = self.0.iter().map(|one| one.model.as_str()).collect();
        let models: BTreeMap<String, ModelFit> = models
            .into_iter()
            .filter_map(|model| Some((model.to_owned(), self.fit_of(model)?)))
            .collect();
        let correlation = self.correlation(&models);
        Fit { models, correlation }
    }

    fn fit_of(&self, model: &str) -> Option<ModelFit> {
        let seen: Vec<(f64, bool)> = self
            .0
            .iter()
            .filter(|one| one.model == model)
            .filter_map(|one| Some((one.at.as_secs_f64(), is_outage(&one.outcome)?)))
            .collect();
        let failed = seen.iter().filter(|(_, bad)| *bad).count();
        let share = failed as f64 / seen.len().max(1) as f64;
        let by_hour = std::array::from_fn(|hour| {
            let of_hour = seen.iter().filter(|(at, _)| (*at / 3600.0) as usize % 24 == hour);
            let (all, bad) = of_hour.fold((0_u32, 0_u32), |(all, bad), (_, is_bad)| {
                (all + 1, bad + u32::from(*is_bad))
            });
            // A hundred requests tell a share to within a tenth of it; fewer are the day's.
            if all < 100 { share } else { f64::from(bad) / f64::from(all) }
        });
        // Between a good and a bad request lies the boundary, in the mean in the middle.
        let (mut lengths, mut began) = (Vec::new(), None);
        for pair in seen.windows(2) {
            let [(before, was_bad), (at, is_bad)] = *pair else { continue };
            match (was_bad, is_bad) {
                (false, true) => began = Some((before + at) / 2.0),
                (true, false) => {
                    lengths.extend(began.take().map(|from| (before + at) / 2.0 - from))
                }
                _ => {}
            }
        }
        let count = lengths.len() as f64;
        let mean = lengths.iter().sum::<f64>() / count.max(1.0);
        let variance = lengths.iter().map(|length| (length - mean).powi(2)).sum::<f64>()
            / (count - 1.0).max(1.0);
        // A failure that tells nothing of the next one is no outage.
        let after_bad = seen.windows(2).filter(|pair| pair[0].1);
        let (pairs, again) = after_bad
            .fold((0_u32, 0_u32), |(pairs, again), pair| (pairs + 1, again + u32::from(pair[1].1)));
        let again = f64::from(again) / f64::from(pairs.max(1));
        (!seen.is_empty()).then(|| ModelFit {
            requests: seen.len(),
            share,
            by_hour,
            outages: lengths.len(),
            mean_minutes: mean / 60.0,
            error_minutes: (variance / count.max(1.0)).sqrt() / 60.0,
            independent: failed < 10 || again < share + (1.0 - share) * 0.2,
        })
    }

    /// How much of the bad time is common, in the mean of all pairs of models.
    fn correlation(&self, models: &BTreeMap<String, ModelFit>) -> Option<f64> {
        let names: Vec<&String> = models.keys().collect();
        let mut found = Vec::new();
        for (n, first) in names.iter().enumerate() {
            for second in &names[n + 1..] {
                let (mut all, mut both, mut by_chance, mut last) = (0_u32, 0_u32, 0.0, None);
                for one in &self.0 {
                    let Some(bad) = is_outage(&one.outcome) else { continue };
                    if one.model == **second {
                        last = Some((one.at, bad));
                    } else if one.model == **first {
                        let near = |at: &Duration| one.at - *at <= Duration::from_secs(300);
                        if let Some((_, other)) = last.filter(|(at, _)| near(at)) {
                            all += 1;
                            both += u32::from(bad && other);
                            // The hour that is bad for both is no outage that they share.
                            let hour = (one.at.as_secs() / 3600 % 24) as usize;
                            let share = |model: &str| models[model].by_hour[hour];
                            by_chance += share(first) * share(second);
                        }
                    }
                }
                let (p, q) = (models[*first].share, models[*second].share);
                if all >= 100 && p > 0.0 && q > 0.0 {
                    // both = c + (p - c)(q - c) / (1 - c), solved for the common share c.
                    let (both, all) = (f64::from(both) / f64::from(all), f64::from(all));
                    let common =
                        (both - by_chance / all) / (1.0 + both - p - q).max(f64::MIN_POSITIVE);
                    found.push((common / p.min(q)).clamp(0.0, 1.0));
                }
            }
        }
        let count = found.len() as f64;
        (!found.is_empty()).then(|| found.iter().sum::<f64>() / count)
    }
}

/// Whether an outcome is what an outage looks like. `None` says nothing of it: a limit of the
/// caller's own, or a request that is wrong.
fn is_outage(outcome: &str) -> Option<bool> {
    match outcome {
        "overloaded" | "deadline" | "internal" | "bad_gateway" | "cancelled" => Some(true),
        "success" | "answered" | "no_image" | "content_blocked" => Some(false),
        _ => None,
    }
}

impl Observation {
    /// The fault of the simulator that this was. `None` where it says nothing of the weather: the
    /// request itself was wrong, or its caller's key.
    pub(crate) fn fault(&self) -> Option<Fault> {
        Some(match self.outcome.as_str() {
            "success" | "answered" => Fault::None,
            "no_image" => Fault::NoImage,
            "content_blocked" => Fault::Refused(Refusal::ImageSafety),
            "stream_error" => Fault::StreamErrorTail { charged: false },
            "rate_limit_minute" => Fault::RateLimitMinute {
                retry_after: Duration::from_secs(30),
                limit: Limit::Requests,
            },
            "rate_limit_day" => Fault::RateLimitDay { retry_after: Duration::from_millis(2_500) },
            "rate_limit_unknown" => Fault::ExhaustedBare,
            "spend_rate_limit" => Fault::SpendRate,
            "overloaded" => Fault::HighDemand,
            "deadline" => Fault::DeadlineExpired504,
            "cancelled" => Fault::Cancelled,
            "internal" => Fault::Internal,
            "bad_gateway" => Fault::BadGatewayHtml,
            "not_sent" => Fault::ConnectionRefused,
            "interrupted" => Fault::ResetAfterGeneration,
            _ => return None,
        })
    }
}

/// Parameters of the weather, estimated from [`Observations`]. Its text is a [`Scenario`] with
/// comments that say how well each is known.
///
/// [`Scenario`]: crate::Scenario
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Fit {
    /// By model.
    pub models: BTreeMap<String, ModelFit>,
    /// How much of the bad time models have together; `None` where one cannot tell.
    pub correlation: Option<f64>,
}

/// What is known of one model.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ModelFit {
    /// Requests that say something.
    pub requests: usize,
    /// The share of them that failed.
    pub share: f64,
    /// That share by hour of the UTC day; the day's where an hour has fewer than a hundred requests.
    pub by_hour: [f64; 24],
    /// Outages whose beginning and end were seen.
    pub outages: usize,
    /// Their mean length.
    pub mean_minutes: f64,
    /// The standard error of that mean.
    pub error_minutes: f64,
    /// A failure says nothing of the next request.
    pub independent: bool,
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: usize = self.models.values().map(|model| model.requests).sum();
        writeln!(f, "about = \"Estimated from {all} requests\"")?;
        let correlation = self.correlation.unwrap_or(0.0);
        for (model, fit) in &self.models {
            let mut shares = String::new();
            for (hour, share) in fit.by_hour.iter().enumerate() {
                let comma = if hour == 0 { "" } else { ", " };
                write!(shares, "{comma}{share:.3}")?;
            }
            writeln!(f, "\n[[outages]]\nmodel = \"{model}\"")?;
            // Within two standard errors in 19 of 20 cases.
            let error = 2.0 * (fit.share * (1.0 - fit.share) / fit.requests as f64).sqrt();
            writeln!(f, "# {} requests, {:.3} +- {error:.3} failed", fit.requests, fit.share)?;
            writeln!(f, "by_hour = [{shares}]")?;
            if fit.independent {
                writeln!(f, "# a failure says nothing of the next request\nindependent = true")?;
            } else {
                let (outages, error) = (fit.outages, 2.0 * fit.error_minutes);
                writeln!(f, "# {outages} outages seen from beginning to end, +- {error:.1}")?;
                writeln!(f, "mean_minutes = {:.1}", fit.mean_minutes.max(0.1))?;
            }
            if correlation > 0.05 && !fit.independent {
                writeln!(f, "correlation = {correlation:.2}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outage::{Asked, OutageState, Outages};
    use std::sync::Arc;

    const MODELS: [&str; 2] = ["gemini-3.1-flash-image", "gemini-3-pro-image"];

    /// What a request a minute to each model would see, as CSV.
    fn trace(outages: &Outages, days: u64) -> String {
        let state = &OutageState::of(4, std::slice::from_ref(outages))[0];
        let mut rng = fastrand::Rng::with_seed(1);
        let project: Arc<str> = "p".into();
        let models = MODELS.map(Arc::<str>::from);
        let mut csv = format!("{OBSERVATIONS_HEADER}\n");
        for minute in 0..days * 1440 {
            for model in &models {
                let now = Duration::from_secs(60 * minute);
                let (size, starts_at) = (Size::K1, Duration::ZERO);
                let asked = Asked { project: &project, model, size, now, starts_at };
                let bad = rng.f64() < state.share_failing(outages, &asked);
                let outcome = if bad { "overloaded" } else { "success" };
                writeln!(csv, "{},{model},1K,{outcome},30000", 60 * minute).unwrap();
            }
        }
        csv
    }

    #[test]
    fn a_trace_gives_back_the_parameters_that_made_it() {
        let hours = std::array::from_fn(|hour| if (10..14).contains(&hour) { 0.4 } else { 0.1 });
        let outages = Outages::new(Fault::HighDemand).by_hour(hours);
        for (outages, correlation) in
            [(outages.clone(), None), (outages.correlation(0.6), Some(0.6))]
        {
            let fit = Observations::parse(&trace(&outages, 90)).unwrap().fit();
            for model in fit.models.values() {
                // Some 350 outages: 5 % of standard error. Where a common one and an own one overlap,
                // they are seen as one that is longer.
                let room = if correlation.is_some() { 15.0 } else { 8.0 };
                assert!((model.mean_minutes - 50.0).abs() < room, "{fit}");
                assert!((model.by_hour[12] - 0.4).abs() < 0.08, "{fit}");
                assert!((model.by_hour[4] - 0.1).abs() < 0.05, "{fit}");
                assert!(!model.independent, "{fit}");
            }
            let found = fit.correlation.unwrap_or(0.0);
            assert!((found - correlation.unwrap_or(0.0)).abs() < 0.15, "{fit}");
            // What it prints is a scenario again.
            crate::Scenario::parse(&fit.to_string()).unwrap();
        }
    }

    #[test]
    fn failures_without_memory_are_told_from_outages() {
        let outages = Outages::new(Fault::HighDemand).by_hour([0.3; 24]).independent(true);
        let fit = Observations::parse(&trace(&outages, 10)).unwrap().fit();
        assert!(fit.models.values().all(|model| model.independent), "{fit}");
        assert!(fit.to_string().contains("independent = true"));
    }

    #[test]
    fn what_is_no_observation_is_named_by_its_line() {
        for line in ["x,m,1K,image,1", "1,m,9K,image,1", "1,m,1K,image", "1,,1K,image,2"] {
            let error = Observations::parse(&format!("{OBSERVATIONS_HEADER}\n{line}\n"));
            assert!(error.unwrap_err().to_string().starts_with("line 2:"), "{line}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_seen_is_met_again() {
        use tower_service::Service;
        let csv = "0,gemini-3-pro-image,1K,success,31000\n60,gemini-3-pro-image,1K,overloaded,90\n\
                   120,gemini-3-pro-image,1K,bad_request,10\n180,gemini-3-pro-image,1K,success,9000";
        let scenario = crate::Scenario::replaying(Observations::parse(csv).unwrap());
        let mut sim = scenario.builder().tiny_images(true).build().service();
        let mut seen = Vec::new();
        for minute in 0..4 {
            let at = tokio::time::Instant::now();
            let url = "https://g.example/v1beta/models/gemini-3-pro-image:generateContent";
            let body = r#"{"contents":[{"parts":[{"text":"a cat"}]}]}"#;
            let request = http::Request::post(url)
                .header("x-goog-api-key", "k")
                .body(http_body_util::Full::from(body))
                .unwrap();
            let status = sim.call(request).await.unwrap().status().as_u16();
            seen.push((minute, status, at.elapsed().as_secs()));
            tokio::time::sleep(Duration::from_secs(60) - at.elapsed()).await;
        }
        assert_eq!(seen, [(0, 200, 31), (1, 503, 0), (2, 503, 0), (3, 200, 9)]);
    }
}
