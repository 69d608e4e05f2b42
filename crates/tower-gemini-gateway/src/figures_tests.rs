//! The figures of the status page over restarts and crashes, in paused time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep};
use tower_gemini::clock::{Clock, RuntimeClock, SystemClock};
use tower_gemini_sim::{Fault, Sim};

use crate::config::Config;
use crate::figures::{self, EVERY, Figures, FiguresFile};
use crate::handler::handle;
use crate::snapshot::Snapshot;
use crate::state::tests::Scratch;
use crate::stats::Stats;
use crate::status::Status;

/// A gateway, and the file of a state directory. A store would answer in real time.
fn gateway(scratch: &Scratch, sim: &Sim) -> (Arc<Snapshot>, FiguresFile, RuntimeClock) {
    std::fs::create_dir_all(scratch.path()).unwrap();
    let clock = RuntimeClock::starting_at(SystemClock.now());
    let gateway = Snapshot::over(sim.service(), clock, &Config::default(), None).unwrap();
    (Arc::new(gateway), FiguresFile::open(scratch.path()), clock)
}

fn figures_of(gateway: &Snapshot) -> Figures {
    let stats = &gateway.layers().stats;
    Figures::new(&mut Status::new(stats.report()), stats.kept(), &Figures::default())
}

/// What a process counts that starts now.
fn restarted(scratch: &Scratch, clock: &RuntimeClock) -> Stats {
    let stats = Stats::new().clock(*clock);
    if let Some(kept) = &FiguresFile::open(scratch.path()).earlier().stats {
        stats.restore(kept);
    }
    stats
}

async fn call(gateway: &Arc<Snapshot>, n: usize) {
    let request = Request::post("/v1beta/models/gemini-3-pro-image:generateContent")
        .header("x-goog-api-key", "AIzaSyA-figures-key-0123456789abcdefghi")
        .body(Body::from(format!(r#"{{"contents":[{{"parts":[{{"text":"apple {n}"}}]}}]}}"#)));
    let response = handle(gateway.clone(), Instant::now(), request.unwrap()).await;
    let _ = response.into_body().collect().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_forgets_what_was_counted_in_the_last_interval_at_most() {
    let scratch = Scratch::new("crash-figures");
    let (gateway, file, clock) = gateway(&scratch, &Sim::quick([]));
    let (counted, file) = (gateway.clone(), Arc::new(file));
    tokio::spawn(figures::keep(move || file.save(figures_of(&counted))));
    let mut ended = Vec::new();
    for n in 0..30 {
        call(&gateway, n).await;
        ended.push(Instant::now());
        sleep(Duration::from_millis(700)).await;
        let due = Instant::now().checked_sub(EVERY);
        let due = due.map_or(0, |due| ended.iter().filter(|at| **at < due).count());
        let found = restarted(&scratch, &clock).report().total.calls as usize;
        assert!((due..=ended.len()).contains(&found), "{due} {found} {}", ended.len());
    }
}

#[tokio::test(start_paused = true)]
async fn every_window_with_failures_and_waits_is_the_same_after_a_restart() {
    let scratch = Scratch::new("day-of-figures");
    let faults = [Fault::Overloaded, Fault::None, Fault::Internal, Fault::None, Fault::None];
    let sim = Sim::quick(faults.into_iter().cycle().take(200));
    let (gateway, file, clock) = gateway(&scratch, &sim);
    for n in 0..40 {
        call(&gateway, n).await;
    }
    file.save(figures_of(&gateway));
    let (before, after) = (gateway.layers().stats.report(), restarted(&scratch, &clock).report());
    assert!(before.total.calls == 40 && before.total.waits.len() == 1, "{:?}", before.total);
    assert_eq!(after.since_unix_seconds, before.since_unix_seconds);
    assert_eq!((&after.total, &after.hours), (&before.total, &before.hours));
    assert_eq!(after.days, before.days);
    assert_eq!(after.last_hour.cost, before.last_hour.cost);
}
