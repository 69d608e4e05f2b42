//! What our layers promise, in every scenario.

use tower_gemini::spending::Caps;
use tower_gemini::{AnswerErrorsLayer, GeminiStack, SpendingLayer};
use weather::drive::{run, side_by_side};
use weather::score::Score;
use weather::zoo::ours::{self, Setting};
use weather::zoo::{ALL, Kind, Policy, find};
use weather::{headline, scenario};

/// A few skies are enough in a debug build. `WEATHER_SEEDS=100` takes a quarter of an hour of one core
/// in a release build.
fn seeds() -> u64 {
    let wanted = std::env::var("WEATHER_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    wanted.unwrap_or(if cfg!(debug_assertions) { 2 } else { 8 })
}

const SCALE: f64 = if cfg!(debug_assertions) { 0.1 } else { 0.5 };

#[test]
fn ours_is_never_charged_twice_and_states_the_cost() {
    let scenarios = scenario::all();
    let ours = || ALL.iter().filter(|policy| policy.is_ours());
    let jobs: Vec<_> = scenarios
        .iter()
        .flat_map(|scenario| {
            ours().flat_map(move |policy| (0..seeds()).map(move |s| (scenario, policy, s)))
        })
        .collect();
    let scores = side_by_side(
        &jobs,
        |(scenario, policy, seed)| run(scenario, policy, *seed, SCALE),
        |_, _| {},
    );
    for ((scenario, policy, seed), score) in jobs.iter().zip(scores) {
        let name = format!("{} in {}, seed {seed}", policy.name, scenario.name);
        assert!(score.calls > 0, "{name}");
        assert_eq!(score.duplicates, 0, "{name} is charged twice");
        assert_eq!(score.stated, (score.calls, score.calls), "{name} states a wrong cost");
        assert_eq!(score.at_most.1, 0, "{name} states no upper end");
        // An interval that holds everything would be true too.
        if scenario.name == "calm" {
            assert!(score.at_most.0 as f64 <= 1.5 * score.cost as f64, "{name}: {score:?}");
        }
    }
}

/// Enough for about 29 images of Nano Banana 2.
const CAP: u64 = 2_000_000;

fn capped(setting: Setting) -> GeminiStack<AnswerErrorsLayer> {
    let caps = Caps::none().at_most_microusd(CAP);
    ours::chain(setting).spending(SpendingLayer::new().total(caps).clock(setting.clock))
}

#[test]
fn a_hard_cap_is_never_exceeded() {
    let policy = Policy { name: "capped", what: "", kind: Kind::Ours(capped) };
    let mut most = 0;
    for scenario in scenario::all() {
        for seed in 0..seeds() {
            let score = run(&scenario, &policy, seed, SCALE);
            assert!(score.cost <= CAP, "{} µ$ in {}, seed {seed}", score.cost, scenario.name);
            most = most.max(score.cost);
        }
    }
    assert!(most > CAP / 2, "the cap was tried: {most}");
}

#[test]
fn blind_clients_are_charged_twice_in_the_same_weather() {
    let lossy = scenario::find("lossy").unwrap();
    for name in ["openai", "litellm", "sdk-on-proxy", "guide-ladder"] {
        let score = run(&lossy, find(name).unwrap(), 1, 0.5);
        assert!(score.duplicates > 0, "{name}");
    }
}

#[test]
fn the_same_seed_gives_the_same_day() {
    for scenario in scenario::all() {
        for name in ["ours-all", "sdk-on-ours", "litellm", "aws", "oracle-chain"] {
            let policy = find(name).unwrap();
            let once = run(&scenario, policy, 3, 0.1);
            assert_eq!(once, run(&scenario, policy, 3, 0.1), "{name} in {}", scenario.name);
            assert_ne!(once, Score::default());
        }
    }
}

#[test]
fn another_seed_gives_another_day() {
    let day = scenario::find("day").unwrap();
    let ours = find("ours").unwrap();
    assert_ne!(run(&day, ours, 1, 0.2), run(&day, ours, 2, 0.2));
}

#[test]
fn the_figures_of_the_articles_hold_and_fall_where_we_say() {
    for figure in headline::figures() {
        assert_eq!(figure.holds(), figure.should_hold, "{figure:?}");
    }
}
