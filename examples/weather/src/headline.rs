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
use crate::score::{Score, share};
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
    let success = |world: World, policy| Trial::new(world.without_noise(), policy).success();
    let alone = |policy| success(steady(0.45, 0.12, Outage::independent), policy);
    let outages = |policy| success(steady(0.45, 0.12, with_memory), policy);
    let correlated = Trial::new(hours(10, 0.5).without_noise(), "guide-503-chain").run(4, 36);
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
        let world = steady(rate, 0.0, with_memory).without_noise();
        Trial::new(world, "google-genai").run(6, 12).dollars_per_image()
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
    let trial = |policy, size, patience| {
        let trial = Trial { asks: (PRO, size), patience, ..Trial::new(late_january(), policy) };
        trial.run(5, 6).success()
    };
    let size = |size| trial("no-retry", size, 900);
    let ladder = |patience| trial("ours-sizes", "4K", patience);
    let small = Claim("H11", "1K in the outage of January: about 95 %", 0.92, 0.98);
    let middle = Claim("H11", "2K: about 70 %", 0.65, 0.75);
    let large = Claim("H11", "4K: below 20 %", 0.0, 0.20);
    let all = Claim("H12", "4K, 2K, 1K one after the other: over 95 %", 0.94, 1.0);
    vec![
        small.if_so("the article's table", size("1K"), true),
        middle.if_so("the article's table", size("2K"), true),
        large.if_so("the article's table", size("4K"), true),
        all.if_so("callers wait 15 min", ladder(900), false),
        all.if_so("callers wait an hour", ladder(3600), true),
    ]
}

fn releases() -> Vec<Figure> {
    let failing = |rate| {
        let world = steady(rate, 0.0, with_memory).without_noise();
        1.0 - Trial::new(world, "no-retry").run(12, 36).success()
    };
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
        let day = Trial::new(hours(0, 0.0), policy).run(24, 12);
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
        let quota = Quota { rpd: None, ..tier_1() };
        let world = World { quota, ..steady(0.0, 0.0, with_memory) }.without_noise();
        let traffic = Traffic::Loop { workers, pause: secs(1) };
        Trial { traffic, ..Trial::new(world, "no-retry") }.run(1, 2).success()
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
