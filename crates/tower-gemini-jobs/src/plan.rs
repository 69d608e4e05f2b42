//! What a job will cost and how long it will take, before anything is sent. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tower_gemini::call::Call;
use tower_gemini::catalog::{Catalog, Platform};
use tower_gemini::cost::{Cost, expected_on, worst_case_on};

use crate::item::Item;
use crate::job::JobOptions;
use crate::lane::{Lane, Situation, choose};
use crate::request::single;
use crate::store::NewItem;

/// How many calls a model takes, as far as its limits are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Limits {
    /// Requests a minute.
    pub per_minute: Option<u32>,
    /// Requests a day.
    pub per_day: Option<u32>,
}

impl Limits {
    /// These limits.
    #[must_use]
    pub fn new(per_minute: Option<u32>, per_day: Option<u32>) -> Self {
        Self { per_minute, per_day }
    }
}

/// Plans items: model, lane, worst case. Clones share the catalogue.
///
/// ```
/// use tower_gemini_jobs::{Item, JobOptions, Planner};
///
/// let planner = Planner::new("gemini-3-pro-image", JobOptions::default(), 0);
/// let mut plan = planner.plan();
/// for _ in 0..100 {
///     plan.add(&planner.item(Item::new("a red apple"))?);
/// }
/// let plan = plan.finish();
/// assert_eq!(plan.items, 100);
/// assert!(plan.at_least_usd > 13.0 && plan.at_most_usd > plan.at_least_usd);
/// # Ok::<_, String>(())
/// ```
#[derive(Debug, Clone)]
pub struct Planner {
    catalog: Arc<Catalog>,
    platform: Platform,
    drafts: Option<u32>,
    default_model: String,
    fallbacks: Vec<String>,
    options: JobOptions,
    now_ms: i64,
    off_peak_in: Option<Duration>,
    limits: BTreeMap<String, Limits>,
}

impl Planner {
    /// A planner for a job with these settings that is submitted at `now_ms`, in milliseconds since
    /// 1970. `default_model` draws what names no model, unless the job names one.
    #[must_use]
    pub fn new(default_model: impl Into<String>, options: JobOptions, now_ms: i64) -> Self {
        let default_model = options.model.clone().unwrap_or_else(|| default_model.into());
        Self {
            catalog: Arc::new(Catalog::builtin().clone()),
            platform: Platform::GeminiApi,
            drafts: None,
            default_model,
            fallbacks: Vec::new(),
            options,
            now_ms,
            off_peak_in: None,
            limits: BTreeMap::new(),
        }
    }

    /// The models and prices. Default: the built-in catalogue.
    #[must_use]
    pub fn catalog(mut self, catalog: Arc<Catalog>) -> Self {
        self.catalog = catalog;
        self
    }

    /// Whose prices. Default: the Gemini API's.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = platform;
        self
    }

    /// How many drafts beside each image are assumed to be paid for. Default: what the catalogue
    /// knows of each model.
    #[must_use]
    pub fn drafts(mut self, drafts: Option<u32>) -> Self {
        self.drafts = drafts;
        self
    }

    /// The models that a fallback may reach: the dearest of them counts in the worst case.
    #[must_use]
    pub fn fallbacks(mut self, models: impl IntoIterator<Item = String>) -> Self {
        self.fallbacks = models.into_iter().collect();
        self
    }

    /// How long until the off-peak hours begin; `None` where they have, or are not known.
    #[must_use]
    pub fn off_peak_in(mut self, wait: Option<Duration>) -> Self {
        self.off_peak_in = wait;
        self
    }

    /// The limits of a model, for how long the job takes.
    #[must_use]
    pub fn limits(mut self, model: impl Into<String>, limits: Limits) -> Self {
        self.limits.insert(model.into(), limits);
        self
    }

    /// When the job is submitted, in milliseconds since 1970.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        self.now_ms
    }

    /// Checks an item, chooses its lane, and finds the most that a call for it can cost.
    ///
    /// # Errors
    ///
    /// What is wrong with the item, in words: see [`Item::check`]; its worst case above its own
    /// `max_usd` or the job's cap; a deadline that has passed; a model without a price under a cap.
    pub fn item(&self, item: Item) -> Result<NewItem, String> {
        item.check(&self.catalog, &self.default_model)?;
        let named = item.model.as_deref().unwrap_or(&self.default_model);
        let model = self.catalog.lookup(named).map_or(named, |model| &model.id).to_owned();
        let deadline = item.deadline.map(|deadline| deadline.unix_ms(self.now_ms));
        if deadline.is_some_and(|at| at <= self.now_ms) {
            return Err("its `deadline` has passed".to_owned());
        }
        let left = deadline.map(|at| crate::until(self.now_ms, at));
        let lane = item.lane.unwrap_or_else(|| {
            choose(&Situation {
                left,
                allowed: self.options.lanes.clone(),
                off_peak_in: self.off_peak_in,
            })
        });
        if lane == Lane::Batch && item.waits_for().next().is_some() {
            return Err("what waits for another item cannot be in lane `batch`".to_owned());
        }
        let worst = self.worst(&item, &model, lane);
        let caps = [("max_usd", item.max_usd), ("the job's max_usd", self.options.max_usd)];
        for (name, usd) in caps {
            let Some(usd) = usd else { continue };
            #[allow(clippy::cast_precision_loss, reason = "compared with an amount in dollars")]
            let worst_usd = worst.map(|worst| worst as f64 / 1e6);
            match worst_usd {
                Some(worst) if worst <= usd => {}
                Some(worst) => {
                    return Err(format!(
                        "one call for it can cost ${worst:.2}, above {name} = {usd}: raise it, or \
                         ask for a smaller size"
                    ));
                }
                None => return Err(format!("{model} has no price, so {name} cannot hold")),
            }
        }
        let mut new = NewItem::new(item, model, lane, worst.unwrap_or(0));
        if let (Lane::Deferred, Some(wait)) = (lane, self.off_peak_in) {
            new.not_before_ms = self.now_ms.saturating_add(crate::millis(wait));
        }
        Ok(new)
    }

    /// What one delivered call costs.
    fn expected(&self, item: &Item, model: &str, lane: Lane) -> Cost {
        let call = call(item, model, lane);
        of_lane(expected_on(&self.platform, &self.catalog, &call), lane)
    }

    /// What a delivered image costs at least: its tokens, or its list price, which is rounded. Text and
    /// thoughts come on top, and a priority call may be served as a standard one.
    fn least(&self, item: &Item, model: &str, lane: Lane) -> Option<u64> {
        let model = self.catalog.lookup(model)?;
        let size = model.drawn_size(item.size)?;
        let price = model.price(&self.platform)?;
        let listed = price.per_image_microusd.get(&size).copied();
        let by_tokens = model
            .tokens_per_image
            .get(&size)
            .zip(price.image_output_microusd_per_mtok)
            .map(|(tokens, per_mtok)| tokens.saturating_mul(per_mtok) / 1_000_000);
        let least = listed.into_iter().chain(by_tokens).min()?;
        Some(if lane.is_half_price() { least / 2 } else { least })
    }

    fn worst(&self, item: &Item, model: &str, lane: Lane) -> Option<u64> {
        let models = std::iter::once(model).chain(self.fallbacks.iter().map(String::as_str));
        let worst = models.map(|model| {
            let call = call(item, model, lane);
            let worst = worst_case_on(&self.platform, &self.catalog, &call, self.drafts);
            of_lane(worst, lane).at_most_microusd
        });
        worst.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// An empty plan, to add items to.
    #[must_use]
    pub fn plan(&self) -> Planning<'_> {
        Planning { planner: self, plan: Plan::default(), by_model: BTreeMap::new() }
    }
}

fn call(item: &Item, model: &str, lane: Lane) -> Call {
    let (parts, body) = single(item, model, lane, &[]).into_parts();
    Call::parse(&parts.method, &parts.uri, &parts.headers, Some(&body))
}

/// What a call of this cost costs in a lane. Its tier is in the call itself; a batch is not.
pub(crate) fn of_lane(cost: Cost, lane: Lane) -> Cost {
    if lane != Lane::Batch {
        return cost;
    }
    let at_most_microusd = cost.at_most_microusd.map(|most| most.div_ceil(2));
    Cost { at_least_microusd: cost.at_least_microusd / 2, at_most_microusd }
}

/// What a job will come to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Plan {
    /// How many items.
    pub items: u64,
    /// What it costs at least if every image is delivered, in US dollars. Refused items cost less.
    pub at_least_usd: f64,
    /// What it costs at most, whatever happens: each item is paid for once, in the dearest lane that
    /// it can come to, and once more for each resend that the job bought.
    pub at_most_usd: f64,
    /// What it usually costs at most: without more drafts than the documentation says.
    pub usually_at_most_usd: f64,
    /// Items whose price is not known; they are in none of the sums.
    pub unpriced: u64,
    /// How many take which lane.
    pub lanes: BTreeMap<Lane, u64>,
    /// How many are drawn by which model at which size.
    pub draws: BTreeMap<String, u64>,
    /// How long it takes at least, in seconds: by concurrency, typical times and known limits.
    pub seconds: u64,
    /// What bounds that time, in words.
    pub bound_by: String,
    /// Days of quota that it needs, where a limit a day is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota_days: Option<u64>,
}

/// A plan that is being made.
#[derive(Debug)]
pub struct Planning<'p> {
    planner: &'p Planner,
    plan: Plan,
    by_model: BTreeMap<String, Load>,
}

#[derive(Debug, Default)]
struct Load {
    calls: u64,
    /// Seconds of drawing, all calls after each other.
    seconds: u64,
}

/// What a 1K image takes where the catalogue says nothing: between the 15 and 30 s of article 000.
const USUAL_SECONDS: u32 = 20;

impl Planning<'_> {
    /// Adds an item.
    #[allow(clippy::cast_precision_loss, reason = "sums of money for people")]
    pub fn add(&mut self, new: &NewItem) {
        let planner = self.planner;
        let plan = &mut self.plan;
        plan.items += 1;
        *plan.lanes.entry(new.lane).or_default() += 1;
        let size = new.item.size.map_or("default size", |size| size.as_str());
        *plan.draws.entry(format!("{} {size}", new.model)).or_default() += 1;
        let expected = planner.expected(&new.item, &new.model, new.lane);
        let least = planner.least(&new.item, &new.model, new.lane);
        match (expected.at_most_microusd, least, new.worst_microusd) {
            (Some(usual), Some(least), worst) if worst > 0 => {
                let times = f64::from(1 + planner.options.unknown_resends);
                plan.at_least_usd += least as f64 / 1e6;
                plan.usually_at_most_usd += usual as f64 / 1e6;
                // What fails for free in a lane that was chosen may end in the list price.
                let worst = match new.item.lane {
                    None => new.lane.worst_in(Lane::Standard, worst),
                    Some(_) => worst,
                };
                plan.at_most_usd += worst.max(usual) as f64 / 1e6 * times;
            }
            _ => plan.unpriced += 1,
        }
        if new.lane == Lane::Batch {
            return;
        }
        let model = planner.catalog.lookup(&new.model);
        let seconds = model.and_then(|model| {
            let size = model.drawn_size(new.item.size)?;
            model.typical_seconds.get(&size).map(|(from, to)| u32::midpoint(*from, *to))
        });
        let load = self.by_model.entry(new.model.clone()).or_default();
        load.calls += 1;
        load.seconds += u64::from(seconds.unwrap_or(USUAL_SECONDS));
    }

    /// The plan.
    #[must_use]
    pub fn finish(self) -> Plan {
        let Self { planner, mut plan, by_model } = self;
        let drawing: u64 = by_model.values().map(|load| load.seconds).sum();
        let concurrent = u64::from(planner.options.max_concurrent.max(1));
        let mut bounds = vec![(
            drawing.div_ceil(concurrent),
            format!("{concurrent} at a time (max_concurrent)"),
        )];
        for (model, load) in &by_model {
            let limits = planner.limits.get(model).copied().unwrap_or_default();
            if let Some(per_minute) = limits.per_minute.filter(|limit| *limit > 0) {
                let seconds = (load.calls * 60).div_ceil(u64::from(per_minute));
                bounds.push((seconds, format!("{per_minute} requests a minute of {model}")));
            }
            if let Some(per_day) = limits.per_day.filter(|limit| *limit > 0) {
                let days = load.calls.div_ceil(u64::from(per_day));
                plan.quota_days = Some(plan.quota_days.unwrap_or(0).max(days));
                // The first day's share can be sent at once.
                bounds.push(((days - 1) * 86_400, format!("{per_day} requests a day of {model}")));
            }
        }
        if plan.lanes.contains_key(&Lane::Batch) {
            bounds.push((24 * 3600, "the Batch API: within 24 hours".to_owned()));
        }
        if let (Some(wait), true) = (planner.off_peak_in, plan.lanes.contains_key(&Lane::Deferred))
        {
            bounds.push((wait.as_secs(), "the off-peak hours, which are to come".to_owned()));
        }
        if let Some((seconds, by)) = bounds.into_iter().max_by_key(|(seconds, _)| *seconds) {
            (plan.seconds, plan.bound_by) = (seconds, by);
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower_gemini::call::ImageSize;

    fn plan(options: JobOptions, lane: Lane) -> Plan {
        let planner = Planner::new("gemini-3-pro-image", options, 0)
            .limits("gemini-3-pro-image", Limits::new(Some(10), Some(40)));
        let mut plan = planner.plan();
        for _ in 0..100 {
            let mut item = Item::new("a red apple");
            item.lane = Some(lane);
            plan.add(&planner.item(item).unwrap());
        }
        plan.finish()
    }

    #[test]
    fn half_price_lanes_cost_half_and_a_limit_a_day_takes_days() {
        let standard = plan(JobOptions::default(), Lane::Standard);
        let batch = plan(JobOptions::default(), Lane::Batch);
        let flex = plan(JobOptions::default(), Lane::Flex);
        assert!((batch.at_least_usd * 2.0 - standard.at_least_usd).abs() < 1e-3);
        assert!((flex.at_least_usd * 2.0 - standard.at_least_usd).abs() < 1e-3);
        assert_eq!(standard.quota_days, Some(3));
        assert_eq!((standard.seconds, batch.seconds), (2 * 86_400, 86_400));
        assert!(standard.bound_by.contains("40 requests a day"), "{}", standard.bound_by);
    }

    // An item that left a half-price lane was sent with half of what it could cost reserved.
    #[test]
    fn what_is_reserved_after_a_change_of_lane_is_what_a_call_can_cost_there() {
        let planner = Planner::new("gemini-3-pro-image", JobOptions::default(), 0);
        let lanes = [Lane::Standard, Lane::Deferred, Lane::Flex, Lane::Batch];
        for size in [None, Some(ImageSize::K1), Some(ImageSize::K2), Some(ImageSize::K4)] {
            let mut item = Item::new("a red apple");
            item.size = size;
            let worst = |lane| planner.worst(&item, "gemini-3-pro-image", lane).unwrap();
            for (from, to) in lanes.into_iter().flat_map(|from| lanes.map(|to| (from, to))) {
                assert!(from.worst_in(to, worst(from)) >= worst(to), "{from} to {to} at {size:?}");
            }
            assert!(worst(Lane::Batch) < worst(Lane::Standard));
        }
    }

    #[test]
    fn an_item_that_cannot_be_paid_for_is_refused_before_anything_is_sent() {
        let options = JobOptions { max_usd: Some(0.05), ..JobOptions::default() };
        let planner = Planner::new("gemini-3-pro-image", options, 1_000);
        let error = planner.item(Item::new("a")).unwrap_err();
        assert!(error.contains("above the job's max_usd = 0.05"), "{error}");
        let mut late = Item::new("a");
        late.deadline = Some(crate::Deadline::At(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(planner.item(late).unwrap_err(), "its `deadline` has passed");
    }
}
