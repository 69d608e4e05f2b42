//! The workflows of five published guides, each from its file in `examples/configs`, in paused
//! time.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use http::Response;
use http_body_util::BodyExt;
use tokio::time::Instant;
use tower_gemini::catalog::Catalog;
use tower_gemini::clock::RuntimeClock;
use tower_gemini_sim::{Fault, Latency, Limit, Refusal, Sim};

use crate::config::Config;
use crate::handler::handle;
use crate::in_process_tests::{asked, asking};
use crate::snapshot::Snapshot;

const PRO: &str = "gemini-3-pro-image";
const FLASH: &str = "gemini-3.1-flash-image";

/// A gateway by one of the files, which starts at this hour of a day in November 2026.
fn gateway(sim: &Sim, file: &str, hour: u64) -> Arc<Snapshot> {
    let path = format!("{}/../../examples/configs/{file}.toml", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let config = Config::parse(&text, &path).unwrap_or_else(|error| panic!("{error}"));
    Arc::new(Snapshot::over(sim.service(), clock_at(hour), &config, None).unwrap())
}

/// From this hour of 2026-11-10 on.
fn clock_at(hour: u64) -> RuntimeClock {
    let day = SystemTime::UNIX_EPOCH + Duration::from_secs(1_794_268_800);
    RuntimeClock::starting_at(day + Duration::from_secs(hour * 3600))
}

#[test]
fn every_file_of_the_examples_is_valid() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/configs");
    let mut files = 0;
    for file in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        let (name, text) = (file.display().to_string(), std::fs::read_to_string(&file).unwrap());
        if name.ends_with("-vendor-models.toml") {
            Catalog::from_toml(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        } else {
            Config::parse(&text, &name).unwrap_or_else(|error| panic!("{error}"));
        }
        files += 1;
    }
    assert!(files >= 7, "{files}");
}

fn degraded(answer: &Response<Body>) -> Option<&str> {
    answer.headers().get("x-gemini-degraded").map(|value| value.to_str().unwrap())
}

#[tokio::test(start_paused = true)]
async fn the_ladder_makes_three_attempts_at_each_size_and_says_which_was_made() {
    let sim = Sim::quick([const { Fault::DeadlineExpired504 }; 6]);
    let started = Instant::now();
    let answer =
        handle(gateway(&sim, "resolution-ladder", 10), started, asking(0, PRO, "4K")).await;
    assert_eq!((answer.status().as_u16(), sim.requests()), (200, 7));
    assert_eq!(degraded(&answer), Some("size 4K -> 1K"));
    assert_eq!(answer.headers()["x-gemini-size"], "1K");
    // 30 and 60 s at each of the two sizes that failed.
    let waited = started.elapsed().as_secs();
    assert!((180..=185).contains(&waited), "{waited} s");
}

// The source's queue: two workers, and everybody else waits.
#[tokio::test(start_paused = true)]
async fn two_calls_at_once_are_sent_and_the_others_wait_in_the_queue_until_all_have_their_image() {
    let latency = Latency::fixed(Duration::from_secs(30));
    let sim = Sim::builder().latency(latency).tiny_images(true).build();
    let (gateway, started) = (gateway(&sim, "resolution-ladder", 10), Instant::now());
    let calls = (0..8).map(|n| {
        let gateway = gateway.clone();
        async move {
            let answer = handle(gateway, started, asking(n, PRO, "4K")).await;
            let status = answer.status().as_u16();
            // A place is taken until the last byte is out.
            answer.into_body().collect().await.unwrap();
            status
        }
    });
    assert_eq!(futures::future::join_all(calls).await, [200; 8]);
    let ledger = sim.ledger();
    let at: Vec<_> = ledger.requests().iter().map(|sent| sent.received_at.as_secs()).collect();
    assert_eq!(at, [0, 0, 30, 30, 60, 60, 90, 90]);
}

#[tokio::test(start_paused = true)]
async fn in_the_layered_fallback_an_overload_goes_on_at_once_and_a_limit_is_waited_out() {
    let started = Instant::now();
    let sim = Sim::quick([Fault::Overloaded]);
    let answer = handle(gateway(&sim, "layered-fallback", 10), started, asking(0, PRO, "1K")).await;
    assert_eq!(asked(&sim), [PRO, FLASH], "2.5 Flash is retired");
    assert_eq!(degraded(&answer), Some("model gemini-3-pro-image -> gemini-3.1-flash-image"));
    assert!(started.elapsed() < Duration::from_secs(1));
    let limit =
        Fault::RateLimitMinute { limit: Limit::Requests, retry_after: Duration::from_secs(7) };
    let sim = Sim::quick([limit.clone(), limit]);
    let answer = handle(gateway(&sim, "layered-fallback", 10), started, asking(0, PRO, "1K")).await;
    assert_eq!(asked(&sim), [PRO; 3]);
    assert_eq!(degraded(&answer), None);
}

#[tokio::test(start_paused = true)]
async fn off_peak_the_fast_model_leads_and_in_peak_hours_the_other() {
    for (hour, faults, expected) in [
        (2, 0, vec![FLASH]),
        (2, 3, vec![FLASH, FLASH, FLASH, PRO]),
        (12, 0, vec![PRO]),
        (12, 2, vec![PRO, PRO, FLASH]),
    ] {
        let sim = Sim::quick((0..faults).map(|_| Fault::Overloaded));
        let gateway = gateway(&sim, "off-peak-and-peak", hour);
        let answer = handle(gateway, Instant::now(), asking(0, FLASH, "1K")).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(asked(&sim), expected, "at {hour}:00 UTC after {faults} overloads");
        assert_eq!(degraded(&answer).is_some(), expected.last() == Some(&PRO));
    }
}

#[tokio::test(start_paused = true)]
async fn the_decision_flow_waits_where_that_helps_and_sends_once_what_costs_or_cannot_work() {
    let day = Fault::RateLimitDay { retry_after: Duration::from_secs(21) };
    let refused = Fault::Refused(Refusal::ALL[0]);
    for (fault, status, sends) in [
        (Fault::HighDemand, 200, 2),
        (day, 429, 1),
        (refused, 200, 1),
        (Fault::Forbidden(tower_gemini_sim::Forbidden::ALL[0]), 403, 1),
    ] {
        let sim = Sim::quick([fault.clone()]);
        let answer =
            handle(gateway(&sim, "decision-flow", 10), Instant::now(), asking(0, FLASH, "1K"))
                .await;
        let got = (answer.status().as_u16(), sim.requests());
        assert_eq!(got, (status, sends), "{fault:?}");
        assert_eq!(answer.headers()["x-gemini-attempts"], sends.to_string().as_str());
    }
}

#[tokio::test(start_paused = true)]
async fn the_chain_of_three_models_makes_two_attempts_each_and_keeps_its_distance() {
    let sim = Sim::quick([const { Fault::Overloaded }; 2]);
    let started = Instant::now();
    let gateway = gateway(&sim, "model-chain", 10);
    let answer = handle(gateway.clone(), started, asking(0, PRO, "1K")).await;
    assert_eq!(asked(&sim), [PRO, PRO, FLASH]);
    assert_eq!(answer.headers()["x-gemini-model"], FLASH);
    let calls = (1..=4).map(|n| handle(gateway.clone(), started, asking(n, PRO, "1K")));
    futures::future::join_all(calls).await;
    let ledger = sim.ledger();
    let at: Vec<_> = ledger.requests().iter().map(|sent| sent.received_at).collect();
    assert!(at.windows(2).all(|pair| pair[1] - pair[0] >= Duration::from_secs(1)), "{at:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_wait_is_made_when_the_peak_is_over_and_one_that_may_not_at_once() {
    for (patience, waits) in [(None, false), (Some("1h"), false), (Some("3h"), true)] {
        let (sim, started) = (Sim::quick([]), Instant::now());
        let mut request = asking(0, FLASH, "1K");
        if let Some(patience) = patience {
            request.headers_mut().insert("x-gemini-deferrable-for", patience.parse().unwrap());
        }
        let answer = handle(gateway(&sim, "off-peak-and-peak", 12), started, request).await;
        assert_eq!(answer.status(), 200);
        let hours = Duration::from_secs(2 * 3600);
        assert_eq!(started.elapsed() >= hours, waits, "{patience:?}: {:?}", started.elapsed());
        assert_eq!(asked(&sim), [if waits { FLASH } else { PRO }]);
    }
    let mut request = asking(0, FLASH, "1K");
    request.headers_mut().insert("x-gemini-deferrable-for", "later".parse().unwrap());
    let sim = Sim::quick([]);
    let answer = handle(gateway(&sim, "off-peak-and-peak", 12), Instant::now(), request).await;
    assert_eq!((answer.status().as_u16(), sim.requests()), (400, 0));
}

// Both targets were shown whatever hours the file stated.
#[tokio::test(start_paused = true)]
async fn the_hours_of_the_file_say_which_target_of_failures_holds_and_defer_calls_by_themselves() {
    let hours = "[peak]\nwindows = [\"10:00-14:00\"]\n";
    let config = |toml: &str| Config::parse(toml, "gateway.toml").unwrap();
    let sim = Sim::quick([]);
    let clock = clock_at(12);
    let at_peak = Snapshot::over(sim.service(), clock, &config(hours), None).unwrap();
    let at_peak = Arc::new(at_peak);
    let answer = handle(at_peak.clone(), Instant::now(), asking(0, PRO, "1K")).await;
    assert_eq!(answer.status(), 200);
    let is_peak = |gateway: &Snapshot| {
        let report = gateway.layers().stats.report();
        let of_hour = report.hours[0].is_peak;
        assert_eq!(report.failure_rate_targets.peak_hours_known, of_hour.is_some());
        of_hour
    };
    assert_eq!(is_peak(&at_peak), Some(true));
    let later = hours.replace("10:00-14:00", "14:00-16:00");
    for (toml, expected) in [("", None), (later.as_str(), Some(false))] {
        let reloaded = Snapshot::over(sim.service(), clock, &config(toml), Some(&at_peak)).unwrap();
        assert_eq!(is_peak(&reloaded), expected, "{toml}");
    }
    let (mut request, started) = (asking(1, PRO, "1K"), Instant::now());
    request.headers_mut().insert("x-gemini-deferrable-for", "3h".parse().unwrap());
    let answer = handle(at_peak, started, request).await;
    assert_eq!((answer.status().as_u16(), asked(&sim)), (200, vec![PRO.to_owned(); 2]));
    assert!(started.elapsed() >= Duration::from_secs(2 * 3600), "{:?}", started.elapsed());
}
