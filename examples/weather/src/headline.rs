//! The figures that made the articles worth reading, run again: each under what it assumes, and
//! where it matters under what the same articles say of outages.

use std::time::Duration;

use futures::FutureExt;
use tokio::time::sleep;
use tower::ServiceExt;
use tower_gemini_sim::Quota;

use crate::client::{Ask, FLASH, PRO};
use crate::drive::{run, side_by_side};
use crate::scenario::{Scenario, all, hours, january, steady, tier_1, with_memory};
use crate::score::Score;
use crate::traffic::{Plan, Traffic};
use crate::world::{Outage, WARM_UP, World};
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
    world: World,
    policy: &'static str,
    asks: (&'static str, &'static str),
    patience: u64,
    traffic: Traffic,
}

impl Trial {
    fn new(world: World, policy: &'static str) -> Self {
        let traffic = Traffic::Poisson { per_hour: 30.0, at_peak: 1.0 / 6.0 };
        Self { world, policy, asks: (FLASH, "1K"), patience: 900, traffic }
    }

    /// Over some hours, from `seeds` different skies.
    fn run(&self, hours: u64, seeds: u64) -> Score {
        let scenario = Scenario {
            name: "trial",
            what: "",
            world: self.world.clone(),
            traffic: self.traffic,
            asks: self.asks,
            lasts: secs(hours * 3600),
            patience: secs(self.patience),
        };
        let Some(policy) = find(self.policy) else { return Score::default() };
        let seeds: Vec<u64> = (0..seeds).collect();
        let scores = side_by_side(&seeds, |seed| run(&scenario, policy, *seed, 1.0), |_, _| {});
        scores.into_iter().reduce(Score::merge).unwrap_or_default()
    }

    /// The share that gets an image, over 24 skies of six hours.
    fn success(&self) -> f64 {
        self.run(6, 24).success()
    }
}

/// Every figure. Takes some seconds.
pub fn figures() -> Vec<Figure> {
    let mut found = Vec::new();
    let mut add = |id, claim, assuming, claimed, value, should_hold| {
        found.push(Figure { id, claim, assuming, claimed, found: value, should_hold });
    };
    let peak = |outage| steady(0.45, 0.12, outage).without_noise();
    let alone = || peak(Outage::independent);
    let outages = || peak(with_memory);
    let success = |world, policy| Trial::new(world, policy).success();

    let (once, in_outage) = (success(alone(), "no-retry"), success(outages(), "no-retry"));
    add("H1", "one attempt at the peak: 55 %", "failures independent", (0.53, 0.57), once, true);
    let retry_alone = success(alone(), "guide-503-loop");
    let retry_outage = success(outages(), "guide-503-loop");
    let over_90 = (0.90, 1.0);
    add("H1", "retries alone: over 90 %", "failures independent", over_90, retry_alone, true);
    add("H1", "retries alone: over 90 %", "outages of 50 min", over_90, retry_outage, false);
    // 1 - 0.45 × 0.12 is 94.6 %.
    let over_95 = (0.94, 1.0);
    let chain = |world| success(world, "guide-503-chain");
    add(
        "H1",
        "with the other model: over 95 %",
        "failures independent",
        over_95,
        chain(alone()),
        true,
    );
    add(
        "H1",
        "with the other model: over 95 %",
        "outages, models apart",
        over_95,
        chain(outages()),
        true,
    );
    let both = World { starts_at: 10, ..hours(10, 0.5) }.without_noise();
    let correlated = Trial::new(both, "guide-503-chain").run(4, 36).success();
    add(
        "H1",
        "with the other model: over 95 %",
        "half of the outages hit both models",
        over_95,
        correlated,
        false,
    );

    let mix = 0.7 * 0.035 + 0.3 * 0.05;
    add(
        "H2",
        "70 % Nano Banana 2 and 30 % Pro: $0.039 an image",
        "the article's prices",
        (0.0385, 0.0396),
        mix,
        true,
    );
    add(
        "H2",
        "that is 11 % more",
        "the article's prices",
        (0.105, 0.115),
        mix / 0.035 - 1.0,
        false,
    );
    add(
        "H3",
        "30 % of the calls fall into 10 to 14 UTC",
        "calls spread evenly",
        (0.27, 0.33),
        peak_share(1.0 / 6.0),
        false,
    );
    add(
        "H3",
        "30 % of the calls fall into 10 to 14 UTC",
        "a demand that peaks then",
        (0.27, 0.33),
        peak_share(0.30),
        true,
    );
    add(
        "H4",
        "Pro has 3 to 4 times fewer 503s",
        "12 % against 45 %",
        (3.0, 4.0),
        0.45 / 0.12,
        true,
    );
    add(
        "H4",
        "Pro has 3 to 4 times fewer 503s",
        "10 % against 45 %",
        (3.0, 4.0),
        0.45 / 0.10,
        false,
    );

    let cheaper = (0.30, 0.40);
    add(
        "H5",
        "off-peak hours cost 30 to 40 % less",
        "a failed attempt costs what an image does",
        cheaper,
        1.0 - 0.55 / 0.90,
        true,
    );
    let bill = |rate| {
        Trial::new(steady(rate, 0.0, with_memory).without_noise(), "google-genai")
            .run(6, 12)
            .dollars_per_image()
    };
    add(
        "H5",
        "off-peak hours cost 30 to 40 % less",
        "the ledger: 503s are free",
        cheaper,
        1.0 - bill(0.10) / bill(0.45),
        false,
    );
    let saved = 1.0 - (0.05 * 0.134 + 0.25 * 0.067 + 0.70 * 0.039) / 0.134;
    add(
        "H6",
        "batch, Flash and Pro together save 60 to 70 %",
        "5 % Pro, 25 % batch, 70 % Flash",
        (0.60, 0.70),
        saved,
        true,
    );
    add(
        "H8",
        "up to 45 % of the calls meet a 503 at the peak",
        "outages of 50 min",
        (0.39, 0.51),
        1.0 - in_outage,
        true,
    );

    let lengths = outage_lengths();
    let within = |minutes| {
        lengths.iter().filter(|length| **length <= minutes).count() as f64 / lengths.len() as f64
    };
    add(
        "H9",
        "70 % are over within 60 min",
        "lengths are exponential, mean 50 min",
        (0.65, 0.75),
        within(60),
        true,
    );
    add(
        "H9",
        "90 % are over within 120 min",
        "lengths are exponential, mean 50 min",
        (0.87, 0.94),
        within(120),
        true,
    );
    let saved = (retry_outage - in_outage) / (1.0 - in_outage);
    add(
        "H9",
        "a ladder of 31 s outlives about 1.4 % of them",
        "the same",
        (0.005, 0.025),
        saved,
        true,
    );

    let size = |size| {
        Trial { asks: (PRO, size), ..Trial::new(late_january(), "no-retry") }.run(5, 6).success()
    };
    add(
        "H11",
        "1K in the outage of January: about 95 %",
        "the article's table",
        (0.92, 0.98),
        size("1K"),
        true,
    );
    add("H11", "2K: about 70 %", "the article's table", (0.65, 0.75), size("2K"), true);
    add("H11", "4K: below 20 %", "the article's table", (0.0, 0.20), size("4K"), true);
    let ladder = |patience| {
        Trial { asks: (PRO, "4K"), patience, ..Trial::new(late_january(), "ours-sizes") }
            .run(5, 6)
            .success()
    };
    add(
        "H12",
        "4K, 2K, 1K one after the other: over 95 %",
        "callers wait 15 min",
        over_95,
        ladder(900),
        false,
    );
    add(
        "H12",
        "4K, 2K, 1K one after the other: over 95 %",
        "callers wait an hour",
        over_95,
        ladder(3600),
        true,
    );

    for (claim, range, rate) in [
        ("days 1 to 3 after a release: 50 to 70 % of 503s", (0.50, 0.70), 0.60),
        ("days 4 to 7: 30 to 40 %", (0.28, 0.42), 0.35),
        ("weeks 1 to 3: 15 to 25 %", (0.15, 0.25), 0.20),
        ("then 5 to 10 %", (0.05, 0.10), 0.075),
    ] {
        let world = steady(rate, 0.0, with_memory).without_noise();
        add(
            "H13",
            claim,
            "outages of 50 min",
            range,
            1.0 - Trial::new(world, "no-retry").run(12, 36).success(),
            true,
        );
    }
    for (policy, should_hold) in [("no-retry", false), ("ours-quick-chain", true)] {
        let day = Trial::new(hours(0, 0.0), policy).run(24, 12);
        let (peak, calm): (Vec<_>, Vec<_>) = (0..24).partition(|hour| (10..14).contains(hour));
        let failed = |hours: Vec<usize>| {
            let sum = |of: fn((usize, usize)) -> usize| {
                hours.iter().map(|hour| of(day.by_hour[*hour])).sum::<usize>() as f64
            };
            1.0 - sum(|(_, images)| images) / sum(|(calls, _)| calls)
        };
        let assuming = if should_hold { "after our fallback" } else { "one attempt" };
        add(
            "H14",
            "healthy: below 5 % of failures off the peak",
            assuming,
            (0.0, 0.05),
            failed(calm),
            should_hold,
        );
        add(
            "H14",
            "healthy: below 20 % at the peak",
            assuming,
            (0.0, 0.20),
            failed(peak),
            should_hold,
        );
    }
    for (workers, assuming, should_hold) in [
        (1, "one program, 10 requests a minute", true),
        (10, "ten programs, 10 requests a minute", false),
    ] {
        let world =
            World { quota: Quota { rpd: None, ..tier_1() }, ..steady(0.0, 0.0, with_memory) };
        let traffic = Traffic::Loop { workers, pause: secs(1) };
        let paced = Trial { traffic, ..Trial::new(world.without_noise(), "no-retry") };
        add(
            "H15",
            "`sleep(1)` between calls ends most 429s",
            assuming,
            (0.90, 1.0),
            paced.run(1, 2).success(),
            should_hold,
        );
    }
    for (drafts, should_hold) in [(2, false), (7, true)] {
        let n = f64::from(drafts);
        let saved = 1.0 - (n * 0.067 + 0.151) / ((n + 1.0) * 0.151);
        let assuming = if should_hold { "seven drafts" } else { "two drafts" };
        add(
            "H16",
            "drafts at 1K and one 4K: about half the cost",
            assuming,
            (0.45, 0.55),
            saved,
            should_hold,
        );
    }
    add("H18", "batches cost half", "$0.067 against $0.134", (0.49, 0.51), 0.067 / 0.134, true);
    found
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

/// The outage of January from its second hour, when it was complete.
fn late_january() -> World {
    let mut world = january();
    let first = world.stretches.iter().position(|stretch| stretch.from >= secs(3600));
    world.stretches.drain(..first.unwrap_or(0));
    for stretch in &mut world.stretches {
        stretch.from -= secs(3600);
    }
    world
}

fn peak_share(at_peak: f64) -> f64 {
    let traffic = Traffic::Poisson { per_hour: 400.0, at_peak };
    let Plan::Open(times) = traffic.plan(0, secs(24 * 3600), 1) else { return 0.0 };
    let is_peak = |at: &&Duration| (10..14).contains(&(at.as_secs() / 3600));
    times.iter().filter(is_peak).count() as f64 / times.len() as f64
}

/// The lengths of outages in minutes, watched every other minute over 1,200 hours.
fn outage_lengths() -> Vec<u64> {
    let world = steady(0.5, 0.0, with_memory);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let Ok(runtime) = runtime else { return Vec::new() };
    runtime.block_on(async {
        let gemini = world.outages_only(7).service();
        let ask = Ask {
            number: 0,
            model: FLASH,
            size: "1K",
            patience: WARM_UP,
            trails: Default::default(),
        };
        let (mut lengths, mut down) = (Vec::new(), 0);
        for _ in 0..36_000 {
            sleep(secs(120)).await;
            let up = gemini
                .clone()
                .oneshot(ask.request())
                .map(|answer| answer.is_ok_and(|answer| answer.status().is_success()))
                .await;
            if up && down > 0 {
                lengths.push(down);
            }
            down = if up { 0 } else { down + 2 };
        }
        lengths
    })
}

/// The scenarios by name.
pub fn scenario(name: &str) -> Option<Scenario> {
    all().into_iter().find(|scenario| scenario.name == name)
}
