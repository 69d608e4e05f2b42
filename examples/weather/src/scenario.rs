//! The days that are simulated.

use std::time::Duration;

use tower_gemini_sim::{Fault, Latency, Quota, Refusal, Weather};

use crate::client::{FLASH, PRO};
use crate::traffic::Traffic;
use crate::world::{Outage, Stretch, World};
use crate::zoo::secs;

/// A day, or a part of one.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// A short name.
    pub name: &'static str,
    /// What happens, for readers.
    pub what: &'static str,
    /// The weather.
    pub world: World,
    /// Who asks when.
    pub traffic: Traffic,
    /// For what.
    pub asks: (&'static str, &'static str),
    /// How long calls come in.
    pub lasts: Duration,
    /// How long a caller waits for one image.
    pub patience: Duration,
}

const MINUTE: u64 = 60;
const HOUR: u64 = 3600;
/// The share of 503s of Nano Banana 2 from 00, 06, 10, 14 and 18 UTC (APIYI, 503s on Nano Banana 2,
/// 2026-03).
pub const CLAIMED_HOURS: [(u64, f64); 5] =
    [(0, 0.08), (6, 0.15), (10, 0.45), (14, 0.25), (18, 0.10)];
/// The same source gives Pro 10 to 15 % in the hours in which Nano Banana 2 has 45 %.
pub const PRO_SHARE: f64 = 0.12 / 0.45;
/// The server's deadline since 2026-01-21 20:00 Beijing time (APIYI, post-mortem of that day).
const SERVER_DEADLINE: Duration = secs(600);

/// What goes wrong now and then on a good day too. The shares are ours, of the size that status
/// dashboards show.
fn noise() -> Weather {
    Weather::calm()
        .with(0.01, Fault::Internal)
        .with(0.003, Fault::BadGatewayHtml)
        .with(0.002, Fault::ResetAfterReceipt)
        .with(0.002, Fault::ResetAfterGeneration)
        .with(0.005, Fault::Refused(Refusal::ImageSafety))
}

fn stretch(from: Duration, outages: Vec<Outage>, noise: Weather) -> Stretch {
    Stretch { from, outages, noise, server_deadline: SERVER_DEADLINE }
}

fn world(starts_at: u64, stretches: Vec<Stretch>) -> World {
    World { stretches, quota: Quota::UNLIMITED, latency: Latency::default(), starts_at }
}

/// The claimed hours as outages, of which `shared` hit both models at once.
pub fn hours(starts_at: u64, shared: f64) -> World {
    by_hours(starts_at, |rate| {
        let of = |model, rate| (rate > 0.0).then(|| Outage::at_rate(model, rate));
        let own = rate * (1.0 - shared);
        let all = [of(Some(FLASH), own), of(Some(PRO), rate * PRO_SHARE), of(None, rate * shared)];
        all.into_iter().flatten().collect()
    })
}

/// The claimed hours, each request by itself: what the guides' arithmetic assumes.
pub fn independent() -> World {
    by_hours(0, |rate| {
        [(FLASH, rate), (PRO, rate * PRO_SHARE)]
            .map(|(model, rate)| Outage::independent(model, rate))
            .into()
    })
}

fn by_hours(starts_at: u64, outages: impl Fn(f64) -> Vec<Outage>) -> World {
    let ends = CLAIMED_HOURS.iter().skip(1).map(|(hour, _)| *hour).chain([24]);
    let stretches = CLAIMED_HOURS.iter().zip(ends).map(|(&(hour, rate), end)| {
        // A scenario that starts later begins within a stretch, and goes on into the next day.
        let day = if end <= starts_at { 24 } else { 0 };
        let from = secs((hour + day).saturating_sub(starts_at) * HOUR);
        stretch(from, outages(rate), noise())
    });
    let mut stretches: Vec<_> = stretches.collect();
    stretches.sort_by_key(|stretch| stretch.from);
    world(starts_at, stretches)
}

/// One rate all the time, with memory or without.
pub fn steady(flash: f64, pro: f64, outage: fn(&'static str, f64) -> Outage) -> World {
    let outages = [(FLASH, flash), (PRO, pro)].into_iter().filter(|(_, rate)| *rate > 0.0);
    let outages = outages.map(|(model, rate)| outage(model, rate)).collect();
    world(10, vec![stretch(Duration::ZERO, outages, noise())])
}

/// Outages of one model.
pub fn with_memory(model: &'static str, rate: f64) -> Outage {
    Outage::at_rate(Some(model), rate)
}

/// The outage of 2026-01-21 from 10:00 UTC (APIYI, post-mortem): the shares that fail at 1K, 2K and
/// 4K. A failing request runs into the server's deadline, which was raised from 300 s to 600 s
/// after two hours.
pub fn january() -> World {
    let stages = [
        (0, [0.0, 0.0, 0.20]),
        (30, [0.0, 0.05, 0.40]),
        (60, [0.05, 0.30, 0.97]),
        (180, [0.05, 0.30, 0.90]),
        (330, [0.05, 0.30, 0.85]),
    ];
    let stretches = stages.into_iter().map(|(minute, shares)| {
        let outage = Outage {
            fault: Fault::Late { latency: secs(620) },
            model: Some(PRO),
            up: Duration::ZERO,
            down: secs(1_000_000 * HOUR),
            shares,
        };
        let server_deadline = if minute < 120 { secs(300) } else { SERVER_DEADLINE };
        let stage = stretch(secs(minute * MINUTE), vec![outage], noise());
        Stretch { server_deadline, ..stage }
    });
    world(10, stretches.collect())
}

/// Responses that get lost, and charges for nothing.
fn lossy() -> World {
    let weather = Weather::calm()
        .with(0.02, Fault::Internal)
        .with(0.03, Fault::DeadlineExpired504)
        .with(0.03, Fault::ResetAfterGeneration)
        .with(0.02, Fault::CutBody { at: 300 })
        .with(0.01, Fault::TruncatedBody { at: 300 })
        .with(0.01, Fault::NoAnswer { charged: true })
        .with(0.01, Fault::StallBody { at: 300 })
        .with(0.01, Fault::ConnectionRefused)
        .with(0.02, Fault::Refused(Refusal::ImageSafety))
        .with(0.02, Fault::ImageOther { waived: true })
        .with(0.01, Fault::StopWithoutImage)
        .with(0.10, Fault::HighDemand);
    world(12, vec![stretch(Duration::ZERO, Vec::new(), weather)])
}

/// Every scenario.
pub fn all() -> Vec<Scenario> {
    let day = Scenario {
        name: "day",
        what: "A day of Nano Banana 2: 503s come as outages of 50 minutes on average, with the \
               hourly rates of the article on 503s (8 to 45 %); Pro has a quarter of them.",
        world: hours(0, 0.0),
        traffic: Traffic::Poisson { per_hour: 60.0, at_peak: 0.30 },
        asks: (FLASH, "1K"),
        lasts: secs(24 * HOUR),
        patience: secs(15 * MINUTE),
    };
    let part = |name, what, world, hours| Scenario {
        name,
        what,
        world,
        lasts: secs(hours * HOUR),
        ..day.clone()
    };
    vec![
        Scenario {
            name: "calm",
            what: "A good day: 1 % of 500s, 0.3 % of 502s, 0.4 % of resets, 0.5 % of refusals.",
            world: world(0, vec![stretch(Duration::ZERO, Vec::new(), noise())]),
            ..day.clone()
        },
        Scenario {
            name: "independent",
            what: "The same hourly rates, each request drawn by itself. This is what the articles' \
                   arithmetic assumes, and not what their own recovery times describe.",
            world: independent(),
            ..day.clone()
        },
        day.clone(),
        Scenario {
            name: "day-correlated",
            what: "The same day, but half of Nano Banana 2's outages are Pro's too.",
            world: hours(0, 0.5),
            ..day.clone()
        },
        part(
            "peak",
            "Twelve hours of the worst rate: 45 % of the time Nano Banana 2 is in an outage, and \
             12 % of it Pro is.",
            steady(0.45, 0.12, with_memory),
            12,
        ),
        part(
            "release",
            "The first days after a release: 60 % of the time in outages, by the same article.",
            steady(0.60, 0.12, with_memory),
            12,
        ),
        Scenario {
            asks: (PRO, "4K"),
            ..part(
                "january",
                "The outage of 2026-01-21: 4K of Pro runs into the server's deadline for six \
                 hours, 2K fails in 30 % of the cases, 1K in 5 %.",
                january(),
                6,
            )
        },
        Scenario {
            world: World { quota: tier_1(), ..steady(0.05, 0.02, with_memory) },
            traffic: Traffic::Bursts { every: secs(10 * MINUTE), calls: 25 },
            ..part(
                "bursts",
                "A small project (10 requests a minute, 1,000 a day) that wants 25 images at once \
                 every ten minutes.",
                steady(0.05, 0.02, with_memory),
                6,
            )
        },
        part(
            "lossy",
            "Responses get lost: 8 % of the requests are charged and do not arrive, 3 % get a 504, \
             5 % no image, 10 % a 503.",
            lossy(),
            12,
        ),
        Scenario {
            traffic: Traffic::Batch { calls: 1600, workers: 4 },
            patience: secs(6 * HOUR),
            ..part(
                "batch",
                "1,600 images from 10:00 UTC on, four at a time, each with six hours of patience.",
                hours(10, 0.0),
                24,
            )
        },
    ]
}

/// Tier 1 of the troubleshooting guide for Nano Banana 2 (2026-03).
pub fn tier_1() -> Quota {
    Quota { rpm: Some(10), ipm: Some(10), rpd: Some(1_000), ..Quota::UNLIMITED }
}
