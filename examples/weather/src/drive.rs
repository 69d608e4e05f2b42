//! Runs one policy through one scenario in virtual time, and many of them side by side.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::client::{Ask, Client};
use crate::scenario::{Scenario, Wanted};
use crate::score::{Call, Score, Scorer};
use crate::traffic::{Plan, plan};
use crate::zoo::Policy;

/// Runs `policy` through `scenario` with `scale` of its calls.
///
/// The same arguments give the same score, to the last bit: time is the runtime's own, and every
/// random number has a seed.
pub fn run(scenario: &Scenario, policy: &Policy, seed: u64, scale: f64) -> Score {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    match runtime {
        Ok(runtime) => runtime.block_on(day(scenario, policy, seed, scale)),
        // Without a runtime there is no score; the operating system had no resources left.
        Err(_) => Score::default(),
    }
}

async fn day(scenario: &Scenario, policy: &Policy, seed: u64, scale: f64) -> Score {
    let sim = scenario.sim(seed);
    let client = policy.client(scenario, &sim, seed);
    sleep(scenario.skip).await;
    let (start, patience) = (Instant::now(), scenario.patience());
    let wish = |number| Wish { number, asks: scenario.asks(seed, number), patience };
    let mut scorer = Scorer::new(scenario, policy, &sim);
    match plan(scenario, seed, scale) {
        Plan::Open(times) => {
            let mut calls = JoinSet::new();
            for (number, at) in times.into_iter().enumerate() {
                sleep_until(start + at).await;
                let (client, wish) = (client.clone(), wish(number));
                calls.spawn(async move { one(&*client, wish, start).await });
                while let Some(ended) = calls.try_join_next() {
                    ended.into_iter().for_each(|call| scorer.add(call));
                }
            }
            while let Some(ended) = calls.join_next().await {
                ended.into_iter().for_each(|call| scorer.add(call));
            }
        }
        Plan::Closed { workers, pause, calls } => {
            let (next, shared) = (AtomicUsize::new(0), Mutex::new(&mut scorer));
            join_all((0..workers).map(|_| async {
                while start.elapsed() < scenario.lasts() {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= calls {
                        break;
                    }
                    let call = one(&*client, wish(number), start).await;
                    shared.lock().unwrap_or_else(PoisonError::into_inner).add(call);
                    sleep(pause).await;
                }
            }))
            .await;
        }
    }
    scorer.finish()
}

/// What one call of a scenario wants.
#[derive(Clone, Copy)]
struct Wish {
    number: usize,
    asks: Wanted,
    patience: Duration,
}

async fn one(client: &dyn Client, wish: Wish, start: Instant) -> Call {
    let Wish { number, asks: Wanted { model, size, flex }, patience } = wish;
    let ask = Ask { number, model, size, flex, patience, trails: Arc::default() };
    let trails = ask.trails.clone();
    let asked_at = start.elapsed();
    // A moment longer than the deadline of those who keep one.
    let patience = patience + Duration::from_secs(1);
    let reply = timeout(patience, client.call(ask)).await;
    let trails = std::mem::take(&mut *trails.lock().unwrap_or_else(PoisonError::into_inner));
    Call {
        number,
        asks: wish.asks,
        asked_at,
        took: start.elapsed() - asked_at,
        out_of_time: reply.as_ref().map_or(true, |reply| reply.out_of_time),
        got_image: reply.is_ok_and(|reply| reply.result.is_ok()),
        cost: trails.iter().map(tower_gemini::Trail::cost).sum(),
    }
}

/// Runs every job on all cores and reports each as it ends. The results are in the order of the
/// jobs.
pub fn side_by_side<J: Sync, T: Send>(
    jobs: &[J],
    work: impl Fn(&J) -> T + Sync,
    report: impl Fn(usize, &J) + Sync,
) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    let (next, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((at, job)) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    jobs.get(at).map(|job| (at, job))
                } {
                    let result = work(job);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
                    report(ended.fetch_add(1, Ordering::Relaxed) + 1, job);
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}
