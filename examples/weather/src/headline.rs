//! The figures that made the articles worth reading, run again: each under what it assumes, and
//! where it matters under what the same articles say of outages.

use std::time::Duration;

use tokio::time::sleep;
use tower_gemini_sim::Size;

use crate::client::{FLASH, KEY, PRO};
use crate::drive::{run, side_by_side};
use crate::scenario::{Scenario, find as find_scenario};
use crate::score::{Score, share};
use crate::traffic::{Plan, plan};
use crate::zoo::{find, secs};

/// One claim under one assumption.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Its number in the list of claims.
    pub id: &'static str,
    /// What is claimed.
    pub claim: &'static str,
    /// What has to be true, or what is taken to be true here.
    pub assuming: &'static str,
    /// What counts as the same, from and to.
    pub claimed: (f64, f64),
    /// What comes out.
    pub found: f64,
    /// Whether we expect the claim to hold, as a test checks.
    pub should_hold: bool,
}

impl Figure {
    /// Whether the claim holds.
    pub fn holds(&self) -> bool {
        (self.claimed.0..=self.claimed.1).contains(&self.found)
    }
}

/// One small experiment.
struct Trial {
    scenario: Scenario,
    policy: &'static str,
}

impl Trial {
    /// With calls for Nano Banana 2 at 1K that come evenly, in the weather of this text.
    fn new(weather: &str, policy: &'static str) -> Self {
        let text = format!("starts_at_utc = 10\narrivals.per_hour = 30\n{weather}");
        Self { scenario: parsed(&text), policy }
    }

    /// In a scenario of the simulator, with other calls.
    fn of(name: &str, arrivals: &str, policy: &'static str) -> Self {
        let mut scenario = find_scenario(name).unwrap_or_else(|| parsed(""));
        scenario.of.arrivals = parsed(&format!("[arrivals]\n{arrivals}")).of.arrivals;
        Self { scenario, policy }
    }

    /// Over some hours, from `seeds` different skies.
    fn run(mut self, hours: u32, seeds: u64) -> Score {
        self.scenario.of.hours = hours;
        let Some(policy) = find(self.policy) else { return Score::default() };
        let seeds: Vec<u64> = (0..seeds).collect();
        let one = |seed: &u64| run(&self.scenario, policy, *seed, 1.0);
        side_by_side(&seeds, one, |_, _| {}).into_iter().reduce(Score::merge).unwrap_or_default()
    }

    /// The share that gets an image, over 24 skies of six hours.
    fn success(self) -> f64 {
        self.run(6, 24).success()
    }
}

fn parsed(text: &str) -> Scenario {
    // A text of this file that is wrong would fail the test of the figures.
    Scenario::parse("trial", text).unwrap_or_else(|error| unreachable!("{text}: {error}"))
}

/// One rate of each model all the time; each request by itself, or in outages of 50 minutes.
fn steady(flash: f64, pro: f64, memory: &str) -> String {
    let outage = |(model, rate): (&str, f64)| {
        format!("[[outages]]\nmodel = \"{model}\"\nshare = {rate}\n{memory}\n")
    };
    [(FLASH, flash), (PRO, pro)].map(outage).concat()
}

const APART: &str = "independent = true";
const IN_OUTAGES: &str = "mean_minutes = 50";

/// A claim, and what counts as the same figure.
#[derive(Clone, Copy)]
struct Claim(&'static str, &'static str, f64, f64);

impl Claim {
    fn if_so(self, assuming: &'static str, found: f64, should_hold: bool) -> Figure {
        let Self(id, claim, from, to) = self;
        Figure { id, claim, assuming, claimed: (from, to), found, should_hold }
    }
}

/// Every figure. Takes some seconds.
pub fn figures() -> Vec<Figure> {
    [success_at_peak(), prices(), recovery(), january_sizes(), releases(), health(), pacing()]
        .concat()
}

fn success_at_peak() -> Vec<Figure> {
    let alone = |policy| Trial::new(&steady(0.45, 0.12, APART), policy).success();
    let outages = |policy| Trial::new(&steady(0.45, 0.12, IN_OUTAGES), policy).success();
    // Half of what Nano Banana 2 has is Pro's too, as in `day-correlated` from 10 to 14.
    let together = format!(
        "{}[[outages]]\neach = \"project\"\nshare = 0.225\n{IN_OUTAGES}",
        steady(0.225, 0.12, IN_OUTAGES)
    );
    let correlated = Trial::new(&together, "guide-503-chain").run(4, 36);
    let once = Claim("H1", "one attempt at the peak: 55 %", 0.53, 0.57);
    let retries = Claim("H1", "retries alone: over 90 %", 0.90, 1.0);
    // 1 - 0.45 × 0.12 is 94.6 %.
    let chain = Claim("H1", "with the other model: over 95 %", 0.94, 1.0);
    let failing = Claim("H8", "up to 45 % of the calls meet a 503 at the peak", 0.39, 0.51);
    let ladder = Claim("H9", "a ladder of 31 s outlives about 1.4 % of outages", 0.005, 0.025);
    let (in_outage, retried) = (outages("no-retry"), outages("guide-503-loop"));
    let saved = (retried - in_outage) / (1.0 - in_outage);
    vec![
        once.if_so("failures independent", alone("no-retry"), true),
        retries.if_so("failures independent", alone("guide-503-loop"), true),
        retries.if_so("outages of 50 min", retried, false),
        chain.if_so("failures independent", alone("guide-503-chain"), true),
        chain.if_so("outages, models apart", outages("guide-503-chain"), true),
        chain.if_so("half of the outages hit both models", correlated.success(), false),
        failing.if_so("outages of 50 min", 1.0 - in_outage, true),
        ladder.if_so("outages of 50 min", saved, true),
    ]
}

/// What is arithmetic, with the articles' own prices.
fn prices() -> Vec<Figure> {
    let mix = 0.7 * 0.035 + 0.3 * 0.05;
    let mixed = Claim("H2", "70 % Nano Banana 2, 30 % Pro: $0.039 an image", 0.0385, 0.0396);
    let dearer = Claim("H2", "that is 11 % more", 0.105, 0.115);
    let demand = Claim("H3", "30 % of the calls fall into 10 to 14 UTC", 0.27, 0.33);
    let fewer = Claim("H4", "Pro has 3 to 4 times fewer 503s", 3.0, 4.0);
    let hours = Claim("H5", "off-peak hours cost 30 to 40 % less", 0.30, 0.40);
    let together = Claim("H6", "batch, Flash and Pro together save 60 to 70 %", 0.60, 0.70);
    let drafts = Claim("H16", "drafts at 1K and one 4K: about half the cost", 0.45, 0.55);
    let batch = Claim("H18", "batches cost half", 0.49, 0.51);
    let bill = |rate| {
        let weather = steady(rate, 0.0, IN_OUTAGES);
        Trial::new(&weather, "google-genai").run(6, 12).dollars_per_image()
    };
    let all_in = 1.0 - (0.05 * 0.134 + 0.25 * 0.067 + 0.70 * 0.039) / 0.134;
    let drafted = |n: f64| 1.0 - (n * 0.067 + 0.151) / ((n + 1.0) * 0.151);
    vec![
        mixed.if_so("the article's prices", mix, true),
        dearer.if_so("the article's prices", mix / 0.035 - 1.0, false),
        demand.if_so("calls spread evenly", peak_share(1.0 / 6.0), false),
        demand.if_so("a demand that peaks then", peak_share(0.30), true),
        fewer.if_so("12 % against 45 %", 0.45 / 0.12, true),
        fewer.if_so("10 % against 45 %", 0.45 / 0.10, false),
        hours.if_so("a failed attempt costs what an image does", 1.0 - 0.55 / 0.90, true),
        hours.if_so("the ledger: 503s are free", 1.0 - bill(0.10) / bill(0.45), false),
        together.if_so("5 % Pro, 25 % batch, 70 % Flash", all_in, true),
        drafts.if_so("two drafts", drafted(2.0), false),
        drafts.if_so("seven drafts", drafted(7.0), true),
        batch.if_so("$0.067 against $0.134", 0.067 / 0.134, true),
    ]
}

fn recovery() -> Vec<Figure> {
    let lengths = outage_lengths();
    let within =
        |minutes| share(lengths.iter().filter(|of| **of <= minutes).count(), lengths.len());
    let hour = Claim("H9", "70 % are over within 60 min", 0.65, 0.75);
    let two_hours = Claim("H9", "90 % are over within 120 min", 0.87, 0.94);
    let assuming = "lengths are exponential, mean 50 min";
    vec![hour.if_so(assuming, within(60), true), two_hours.if_so(assuming, within(120), true)]
}

fn january_sizes() -> Vec<Figure> {
    let trial = |policy, size, minutes| {
        let arrivals = format!(
            "per_hour = 30\ndeadline_minutes = {minutes}\n\
             mix = [{{ model = \"{PRO}\", size = \"{size}\", share = 1.0 }}]"
        );
        let mut trial = Trial::of("january", &arrivals, policy);
        // From its second hour on it was complete.
        trial.scenario.skip = secs(3600);
        trial.run(6, 6).success()
    };
    let size = |size| trial("no-retry", size, 15);
    let ladder = |minutes| trial("ours-sizes", "4K", minutes);
    let small = Claim("H11", "1K in the outage of January: about 95 %", 0.92, 0.98);
    let middle = Claim("H11", "2K: about 70 %", 0.65, 0.75);
    let large = Claim("H11", "4K: below 20 %", 0.0, 0.20);
    let all = Claim("H12", "4K, 2K, 1K one after the other: over 95 %", 0.94, 1.0);
    vec![
        small.if_so("the article's table", size("1K"), true),
        middle.if_so("the article's table", size("2K"), true),
        large.if_so("the article's table", size("4K"), true),
        all.if_so("callers wait 15 min", ladder(15), false),
        all.if_so("callers wait an hour", ladder(60), true),
    ]
}

fn releases() -> Vec<Figure> {
    let failing =
        |rate| 1.0 - Trial::new(&steady(rate, 0.0, IN_OUTAGES), "no-retry").run(12, 36).success();
    [
        (Claim("H13", "days 1 to 3 after a release: 50 to 70 % of 503s", 0.50, 0.70), 0.60),
        (Claim("H13", "days 4 to 7: 30 to 40 %", 0.28, 0.42), 0.35),
        (Claim("H13", "weeks 1 to 3: 15 to 25 %", 0.15, 0.25), 0.20),
        (Claim("H13", "then 5 to 10 %", 0.05, 0.10), 0.075),
    ]
    .map(|(claim, rate)| claim.if_so("outages of 50 min", failing(rate), true))
    .into()
}

fn health() -> Vec<Figure> {
    let calm = Claim("H14", "healthy: below 5 % of failures off the peak", 0.0, 0.05);
    let peak = Claim("H14", "healthy: below 20 % at the peak", 0.0, 0.20);
    let of = |policy, assuming, should_hold| {
        let day = Trial::of("day", "per_hour = 30", policy).run(24, 12);
        let failed = |at_peak| {
            let hours = day.by_hour.iter().enumerate();
            let hours = hours.filter(|(hour, _)| (10..14).contains(hour) == at_peak);
            let (calls, images) = hours.fold((0, 0), |sum, (_, of)| (sum.0 + of.0, sum.1 + of.1));
            1.0 - share(images, calls)
        };
        [(calm, false), (peak, true)]
            .map(|(claim, at_peak)| claim.if_so(assuming, failed(at_peak), should_hold))
    };
    [of("no-retry", "one attempt", false), of("ours-chain", "after our fallback", true)].concat()
}

fn pacing() -> Vec<Figure> {
    let claim = Claim("H15", "`sleep(1)` between calls ends most 429s", 0.90, 1.0);
    let success = |workers| {
        let loops = format!(
            "arrivals.kind = \"closed\"\narrivals.workers = {workers}\n\
             arrivals.pause_seconds = 1\n[quota]\nrpm = 10\nipm = 10"
        );
        Trial::new(&loops, "no-retry").run(1, 2).success()
    };
    vec![
        claim.if_so("one program, 10 requests a minute", success(1), true),
        claim.if_so("ten programs, 10 requests a minute", success(10), false),
    ]
}

/// Claims that are inputs or not about traffic, and why they are not in the table.
pub const NOT_SIMULATED: &[(&str, &str)] = &[
    (
        "H7",
        "70 % of failures are 429s: what a client meets depends on its own rate and limits; the scenarios `bursts` and `day` are the two ends.",
    ),
    ("H10", "Recovery by error and model: an input. The outages here have one mean, 50 minutes."),
    ("H17", "A tier has three times the requests a minute: a price list, not a behaviour."),
    ("H19", "Better prompts resolve 80 %: not about traffic."),
];

fn peak_share(at_peak: f64) -> f64 {
    let (peak, other) = (at_peak / 4.0, (1.0 - at_peak) / 20.0);
    let by_hour: [f64; 24] =
        std::array::from_fn(|hour| if (10..14).contains(&hour) { peak } else { other });
    let day = parsed(&format!("[arrivals]\nper_hour = 400\nby_hour = {by_hour:?}"));
    let Plan::Open(times) = plan(&day, 1, 1.0) else { return 0.0 };
    let is_peak = |at: &&Duration| (10..14).contains(&(at.as_secs() / 3600));
    times.iter().filter(is_peak).count() as f64 / times.len() as f64
}

/// The lengths of outages in minutes, watched every other minute over 1,200 hours.
fn outage_lengths() -> Vec<u64> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let Ok(runtime) = runtime else { return Vec::new() };
    runtime.block_on(async {
        let sim = parsed(&steady(0.5, 0.0, IN_OUTAGES)).sim(7);
        let (mut lengths, mut down) = (Vec::new(), 0);
        for _ in 0..36_000 {
            sleep(secs(120)).await;
            let up = sim.share_failing(KEY, FLASH, Size::K1) < 0.5;
            if up && down > 0 {
                lengths.push(down);
            }
            down = if up { 0 } else { down + 2 };
        }
        lengths
    })
}
