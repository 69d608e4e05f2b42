//! Outages: the calls of one stack find out together when a model is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use tokio::time::{Instant, sleep};
use tower::{ServiceExt, service_fn};
use tower_gemini::jittered_retry::{OutagePolicy, RetryPolicy};
use tower_gemini::model_fallback::Chain;
use tower_gemini::trail::{Step, StopReason, WaitReason};
use tower_gemini::{
    CallOptions, GeminiStack, JitteredRetryLayer, ModelFallbackLayer, ResolutionFallbackLayer,
    Trail, WireBody,
};

use tower_gemini_sim::Fault;

use crate::harness::{Ask, Scenario, cases, in_paused_time, run, violations};

const MINUTE: Duration = Duration::from_secs(60);

const OVERLOADED: &str =
    r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
const IMAGE: &str = r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"b25l"}}]},"finishReason":"STOP"}]}"#;

/// A model that is overloaded until some time after its start.
#[derive(Clone)]
struct Model {
    back_at: Instant,
    takes: Duration,
    /// Which of its sends is answered all the same, counted from 0.
    exception: Option<usize>,
    sends: Arc<AtomicUsize>,
    overloads: Arc<AtomicUsize>,
}

impl Model {
    fn back_after(outage: Duration) -> Self {
        let back_at = Instant::now() + outage;
        Self {
            back_at,
            takes: Duration::from_secs(10),
            exception: None,
            sends: Arc::default(),
            overloads: Arc::default(),
        }
    }

    async fn answer(self) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let number = self.sends.fetch_add(1, Ordering::Relaxed);
        let is_back = Instant::now() >= self.back_at || self.exception == Some(number);
        let (status, body) = if is_back { (200, IMAGE) } else { (503, OVERLOADED) };
        if is_back {
            sleep(self.takes).await;
        } else {
            self.overloads.fetch_add(1, Ordering::Relaxed);
        }
        let response =
            Response::builder().status(status).header("content-type", "application/json");
        Ok(response.body(Full::from(body)).unwrap())
    }

    /// A call by a clone of the stack: its status, its text and its trail.
    async fn call(&self, stack: &GeminiStack, within: Duration) -> (u16, String, Trail) {
        let model = self.clone();
        let client = service_fn(move |_: Request<WireBody>| model.clone().answer());
        let trail = Trail::new();
        let mut request = Scenario { ask: Ask::Whole, ..Scenario::new([]) }.request("call");
        request.extensions_mut().insert(CallOptions::new().trail(trail.clone()).deadline(within));
        let response = match stack.clone().raw(client).oneshot(request).await {
            Ok(response) => response,
            // It was sent, and its time was over before the image was there.
            Err(error) => return (504, error.to_string(), trail),
        };
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap(), trail)
    }

    fn sends(&self) -> usize {
        self.sends.load(Ordering::Relaxed)
    }

    fn overloads(&self) -> usize {
        self.overloads.load(Ordering::Relaxed)
    }
}

fn stack(policy: OutagePolicy) -> GeminiStack {
    let policy = RetryPolicy::recommended().outages(Some(policy));
    GeminiStack::new().retry(JitteredRetryLayer::new(policy).seed(7))
}

fn waited_for_outage(trail: &Trail) -> bool {
    let is_wait = |step: &Step| matches!(step, Step::Waited { why: WaitReason::Outage, .. });
    trail.steps().iter().any(is_wait)
}

/// Calls that begin one after the other, and what came of them.
async fn calls(
    model: &Model,
    stack: &GeminiStack,
    count: u32,
    every: Duration,
    within: Duration,
) -> Vec<(u16, String, Trail)> {
    let call = |n| async move {
        sleep(every * n).await;
        model.call(stack, within).await
    };
    join_all((0..count).map(call)).await
}

#[test]
fn in_an_outage_one_call_probes_a_minute_and_all_are_answered_when_it_is_over() {
    in_paused_time(async {
        let model = Model::back_after(10 * MINUTE);
        let stack = stack(OutagePolicy::recommended());
        let all = calls(&model, &stack, 60, Duration::from_secs(10), 15 * MINUTE).await;
        assert!(all.iter().all(|(status, ..)| *status == 200));
        // Three make it known, and then there is one a minute. Each by itself made 219.
        assert!(model.overloads() <= 3 + 10, "{}", model.overloads());
        let longest = all.iter().map(|(.., trail)| trail.attempts().len()).max();
        assert!(longest <= Some(5), "{longest:?}");
        assert!(all.iter().filter(|(.., trail)| waited_for_outage(trail)).count() > 50);
    });
}

#[test]
fn each_call_finds_out_by_itself_where_that_is_asked_for() {
    in_paused_time(async {
        let model = Model::back_after(10 * MINUTE);
        let policy = RetryPolicy::recommended().outages(None);
        let stack = GeminiStack::new().retry(JitteredRetryLayer::new(policy).seed(7));
        let all = calls(&model, &stack, 60, Duration::from_secs(10), 15 * MINUTE).await;
        assert!(!all.iter().any(|(.., trail)| waited_for_outage(trail)));
        assert!(model.overloads() > 150 && all.iter().any(|(status, ..)| *status == 503));
    });
}

// All who waited were sent after one answer. A refusal of content among a thousand was enough for a
// thousand more, so a busy stack sent seven requests a call into an outage of two hours.
#[test]
fn one_answer_in_an_outage_sends_no_more_calls_than_find_out_that_it_goes_on() {
    in_paused_time(async {
        // The three that make it known, two probes, and one that is answered.
        let model = Model { exception: Some(5), ..Model::back_after(10 * MINUTE) };
        let stack = stack(OutagePolicy::recommended());
        let all = calls(&model, &stack, 600, Duration::from_millis(100), 20 * MINUTE).await;
        assert!(all.iter().all(|(status, ..)| *status == 200));
        assert!(model.overloads() <= 3 + 10 + 3, "{}", model.overloads());
    });
}

// Five attempts were over after three minutes, and the call failed with twelve to spare.
#[test]
fn a_call_alone_keeps_its_last_attempt_for_later() {
    in_paused_time(async {
        let model = Model::back_after(7 * MINUTE);
        let began = Instant::now();
        let (status, _, trail) = model.call(&stack(OutagePolicy::recommended()), 15 * MINUTE).await;
        assert_eq!((status, trail.attempts().len()), (200, 5), "{trail}");
        assert!(began.elapsed() < 15 * MINUTE);
    });
}

#[test]
fn a_call_that_cannot_wait_is_refused_unsent_and_told_when_to_come_back() {
    in_paused_time(async {
        let model = Model::back_after(10 * MINUTE);
        let stack = stack(OutagePolicy::recommended());
        calls(&model, &stack, 1, MINUTE, Duration::from_secs(45)).await;
        let before = model.sends();
        assert_eq!(before, 3);
        let (status, text, trail) = model.call(&stack, Duration::from_secs(10)).await;
        assert_eq!((status, model.sends()), (503, before), "{text}");
        assert!(trail.attempts().is_empty(), "{trail}");
        let expected = "Not sent: gemini-3-pro-image at 1K is overloaded, and this call has no time to \
                        wait for its recovery. Please retry in ";
        assert!(text.contains(expected) && text.contains("MODEL_IN_OUTAGE"), "{text}");
        let stopped = Step::Stopped { why: StopReason::DeadlineTooNear };
        assert!(trail.steps().contains(&stopped), "{trail}");
    });
}

#[test]
fn a_probe_whose_caller_leaves_is_left_to_the_next() {
    in_paused_time(async {
        let model = Model::back_after(3 * MINUTE);
        let stack = stack(OutagePolicy::recommended());
        calls(&model, &stack, 1, MINUTE, Duration::from_secs(45)).await;
        sleep(3 * MINUTE).await;
        let left = tokio::time::timeout(Duration::from_secs(1), model.call(&stack, 15 * MINUTE));
        assert!(left.await.is_err());
        let began = Instant::now();
        let (status, ..) = model.call(&stack, 15 * MINUTE).await;
        assert_eq!((status, began.elapsed()), (200, model.takes), "at once");
    });
}

// It may be drawing a large image, or hang.
#[test]
fn a_probe_that_takes_long_keeps_nobody_from_the_next() {
    in_paused_time(async {
        let mut model = Model::back_after(Duration::from_secs(50));
        model.takes = 4 * MINUTE;
        let stack = stack(OutagePolicy::recommended());
        calls(&model, &stack, 1, MINUTE, Duration::from_secs(45)).await;
        let began = Instant::now();
        let all = calls(&model, &stack, 3, Duration::ZERO, 15 * MINUTE).await;
        assert!(all.iter().all(|(status, ..)| *status == 200));
        assert!(began.elapsed() < 8 * MINUTE, "{:?}", began.elapsed());
    });
}

#[test]
fn no_more_calls_wait_than_may() {
    in_paused_time(async {
        let model = Model::back_after(5 * MINUTE);
        let stack = stack(OutagePolicy::recommended().most_waiting(4));
        calls(&model, &stack, 1, MINUTE, Duration::from_secs(45)).await;
        let all = calls(&model, &stack, 10, Duration::from_millis(1), 15 * MINUTE).await;
        let refused = all.iter().filter(|(status, ..)| *status == 503).count();
        assert_eq!(refused, 6);
        let stopped = Step::Stopped { why: StopReason::TooManyWait };
        let told = all.iter().filter(|(_, text, trail)| {
            text.contains("too many calls wait for its recovery")
                && trail.steps().contains(&stopped)
        });
        assert_eq!(told.count(), 6);
        // Their places are free again.
        assert_eq!(model.call(&stack, MINUTE).await.0, 200);
    });
}

#[test]
fn a_call_with_another_model_to_go_to_does_not_wait_for_an_outage() {
    in_paused_time(async {
        let model = Model::back_after(5 * MINUTE);
        let fallback = ModelFallbackLayer::new(Chain::new(["gemini-3.1-flash-image"]));
        let stack = stack(OutagePolicy::recommended()).fallback(fallback);
        let all = calls(&model, &stack, 6, MINUTE, 15 * MINUTE).await;
        assert!(!all.iter().any(|(.., trail)| waited_for_outage(trail)));
    });
}

// At the smallest size there is nowhere else to go. One key of the gateway's file, `sizes = true`,
// made every call find out by itself.
#[test]
fn a_call_that_can_only_shrink_waits_at_its_smallest_size() {
    in_paused_time(async {
        let model = Model::back_after(5 * MINUTE);
        let sizes = ResolutionFallbackLayer::new();
        let stack = stack(OutagePolicy::recommended()).resolution(sizes);
        let all = calls(&model, &stack, 20, Duration::from_secs(10), 15 * MINUTE).await;
        assert!(all.iter().all(|(status, ..)| *status == 200));
        assert!(model.overloads() <= 3 + 5, "{}", model.overloads());
    });
}

// Each call of a real clock recorded a wait of some nanoseconds.
#[tokio::test]
async fn a_call_that_need_not_wait_records_no_wait() {
    let policy = RetryPolicy::recommended().attempts(1);
    let stack = GeminiStack::new().retry(JitteredRetryLayer::new(policy));
    let down = Model::back_after(MINUTE);
    assert_eq!(down.call(&stack, MINUTE).await.0, 503);
    let up = Model { takes: Duration::ZERO, ..Model::back_after(Duration::ZERO) };
    let (status, _, trail) = up.call(&stack, MINUTE).await;
    assert_eq!((status, waited_for_outage(&trail)), (200, false), "{trail}");
}

// The deadline ends around the time of the first probe.
#[test]
fn a_call_that_an_outage_leaves_no_time_for_breaks_no_invariant() {
    for seconds in 50..90 {
        let mut scenario = Scenario::new(vec![Fault::Overloaded; 5]);
        scenario.deadline = Some(Duration::from_secs(seconds));
        let report = in_paused_time(run(&scenario));
        let found = violations(&scenario, &report);
        assert!(found.is_empty(), "{seconds} s: {found:?}\n{report}");
    }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn in_any_outage_probes_keep_their_distance_and_no_call_outlives_its_time_or_its_attempts(
        outage in 0..1800u64,
        count in 1..40u32,
        every in 0..90u64,
        within in 20..1200u64,
        failures in 1..5u32,
        probe in 1..180u64,
    ) {
        in_paused_time(async {
            let model = Model::back_after(Duration::from_secs(outage));
            let policy = OutagePolicy::recommended()
                .after_failures(failures)
                .probe_every(Duration::from_secs(probe));
            let within = Duration::from_secs(within);
            let stack = stack(policy);
            let call = |n| {
                let (model, stack) = (&model, &stack);
                async move {
                    sleep(Duration::from_secs(every) * n).await;
                    let began = Instant::now();
                    let outcome = model.call(stack, within).await;
                    (outcome, began.elapsed())
                }
            };
            let all = join_all((0..count).map(call)).await;
            for ((status, text, trail), took) in &all {
                prop_assert!(*took <= within, "{took:?} of {within:?}: {trail}");
                prop_assert!(trail.attempts().len() <= 5, "{trail}");
                prop_assert!([200, 503, 504].contains(status), "{text}");
            }
            // Those that make it known, and one each time after that.
            let most = failures as usize + (outage / probe) as usize + 1;
            prop_assert!(model.overloads() <= most, "{} of {most}", model.overloads());
            Ok(())
        })?;
    }
}
