//! Calls whose targets have all failed: they wait for the first that is back, and find out together.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use tokio::time::{Instant, sleep};
use tower::{ServiceExt, service_fn};
use tower_gemini::jittered_retry::{RetryBudget, RetryPolicy};
use tower_gemini::model_fallback::{Chain, FallbackPolicy};
use tower_gemini::target::Target;
use tower_gemini::trail::{Step, StopReason, WaitReason};
use tower_gemini::{
    CallOptions, GeminiStack, JitteredRetryLayer, ModelFallbackLayer, Trail, WireBody,
};

use crate::harness::{Ask, Scenario, cases, in_paused_time};

const MINUTE: Duration = Duration::from_secs(60);
const PRO: &str = "gemini-3-pro-image";
const FLASH: &str = "gemini-3.1-flash-image";

const OVERLOADED: &str =
    r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
const IMAGE: &str = r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"b25l"}}]},"finishReason":"STOP"}]}"#;
const REFUSED: &str = r#"{"error":{"code":400,"message":"Request contains an invalid argument.","status":"INVALID_ARGUMENT"}}"#;

/// What a model answers from a moment on: a status.
type Weather = Vec<(Duration, u16)>;

/// Two models, and what was sent to them.
#[derive(Clone)]
struct Models {
    began: Instant,
    pro: Weather,
    flash: Weather,
    sent: Arc<Mutex<Vec<(&'static str, u16)>>>,
}

impl Models {
    fn new(pro: Weather, flash: Weather) -> Self {
        Self { began: Instant::now(), pro, flash, sent: Arc::default() }
    }

    /// Overloaded for so long.
    fn down(pro: Duration, flash: Duration) -> Self {
        let until = |end| vec![(Duration::ZERO, 503), (end, 200)];
        Self::new(until(pro), until(flash))
    }

    async fn answer(
        self,
        request: Request<WireBody>,
    ) -> Result<Response<Full<bytes::Bytes>>, std::io::Error> {
        let is_pro = request.uri().path().contains(PRO);
        let (name, weather) = if is_pro { (PRO, &self.pro) } else { (FLASH, &self.flash) };
        let now = self.began.elapsed();
        let status = weather.iter().rev().find(|(from, _)| *from <= now).map_or(200, |one| one.1);
        self.sent.lock().unwrap().push((name, status));
        let body = match status {
            200 => IMAGE,
            503 => OVERLOADED,
            _ => REFUSED,
        };
        if status == 200 {
            sleep(Duration::from_secs(10)).await;
        }
        let response =
            Response::builder().status(status).header("content-type", "application/json");
        Ok(response.body(Full::from(body)).unwrap())
    }

    /// A call by a clone of the stack: its status, its text and its trail.
    async fn call(&self, stack: &GeminiStack, options: CallOptions) -> (u16, String, Trail) {
        let models = self.clone();
        let client = service_fn(move |request| models.clone().answer(request));
        let trail = Trail::new();
        let mut request = Scenario { ask: Ask::Whole, ..Scenario::new([]) }.request("call");
        request.extensions_mut().insert(options.trail(trail.clone()));
        let response = match stack.clone().raw(client).oneshot(request).await {
            Ok(response) => response,
            // It was sent, and its time was over before the image was there.
            Err(error) => return (504, error.to_string(), trail),
        };
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap(), trail)
    }

    /// How many requests a model was sent that ended in this.
    fn sent(&self, model: &str, status: u16) -> usize {
        self.sent.lock().unwrap().iter().filter(|sent| **sent == (model, status)).count()
    }
}

fn within(time: Duration) -> CallOptions {
    CallOptions::new().deadline(time)
}

fn retry() -> JitteredRetryLayer {
    JitteredRetryLayer::recommended().seed(7)
}

fn stack() -> GeminiStack {
    let fallback = ModelFallbackLayer::new(Chain::new([PRO, FLASH]));
    GeminiStack::new().retry(retry()).fallback(fallback)
}

fn waits(trail: &Trail) -> Vec<WaitReason> {
    let wait = |step: Step| match step {
        Step::Waited { why, .. } => Some(why),
        _ => None,
    };
    trail.steps().into_iter().filter_map(wait).collect()
}

// It failed after three minutes, with twelve to spare.
#[test]
fn a_call_whose_targets_have_all_failed_waits_for_the_first_that_is_back() {
    for (pro, flash, back) in [(30, 8, FLASH), (8, 30, PRO), (8, 8, PRO)] {
        in_paused_time(async {
            let models = Models::down(pro * MINUTE, flash * MINUTE);
            let (status, _, trail) = models.call(&stack(), within(15 * MINUTE)).await;
            assert_eq!((status, models.sent(back, 200)), (200, 1), "{trail}");
            // As many attempts at each as the retry's policy makes of one call.
            assert!(models.sent(PRO, 503) <= 5 && models.sent(FLASH, 503) <= 5, "{trail}");
            assert!(waits(&trail).contains(&WaitReason::Backoff), "{trail}");
            assert!(waits(&trail).contains(&WaitReason::Cooldown), "{trail}");
        });
    }
}

#[test]
fn in_an_outage_of_all_targets_one_call_probes_each_and_the_others_wait() {
    in_paused_time(async {
        let (models, stack) = (Models::down(10 * MINUTE, 10 * MINUTE), stack());
        let call = |n| {
            let (models, stack) = (&models, &stack);
            async move {
                sleep(Duration::from_secs(10) * n).await;
                models.call(stack, within(15 * MINUTE)).await
            }
        };
        let all = join_all((0..60).map(call)).await;
        assert!(all.iter().all(|(status, ..)| *status == 200));
        for model in [PRO, FLASH] {
            // Three open the circuit, and then there is one a minute, and one more at first.
            assert!(models.sent(model, 503) <= 3 + 11, "{}", models.sent(model, 503));
        }
        // Those who waited got the model that they ask for.
        assert!(models.sent(PRO, 200) >= 58, "{}", models.sent(PRO, 200));
    });
}

#[test]
fn a_target_that_comes_back_while_another_is_waited_for_is_used() {
    in_paused_time(async {
        let flash = Duration::from_secs(40);
        let (models, stack) = (Models::down(30 * MINUTE, flash), stack());
        let began = Instant::now();
        let (status, ..) = models.call(&stack, within(15 * MINUTE)).await;
        assert_eq!((status, models.sent(FLASH, 200)), (200, 1));
        assert!(began.elapsed() < 2 * MINUTE, "{:?}", began.elapsed());
    });
}

#[test]
fn a_call_without_time_to_wait_gets_the_last_response_at_once() {
    in_paused_time(async {
        let models = Models::down(10 * MINUTE, 10 * MINUTE);
        let began = Instant::now();
        let (status, text, trail) = models.call(&stack(), within(Duration::from_secs(4))).await;
        assert_eq!((status, text.as_str()), (503, OVERLOADED), "{trail}");
        assert_eq!((began.elapsed(), models.sent(PRO, 503)), (Duration::ZERO, 1));
        assert_eq!(models.sent(FLASH, 503), 1);
        let stopped = Step::Stopped { why: StopReason::DeadlineTooNear };
        assert!(trail.steps().contains(&stopped), "{trail}");
    });
}

#[test]
fn a_call_that_waited_in_vain_is_told_when_to_come_back() {
    in_paused_time(async {
        let models = Models::down(60 * MINUTE, 60 * MINUTE);
        let stack = stack();
        // It opens the circuits.
        assert_eq!(models.call(&stack, within(5 * MINUTE)).await.0, 503);
        let began = Instant::now();
        let time = Duration::from_secs(70);
        let all = join_all((0..3).map(|_| models.call(&stack, within(time)))).await;
        assert!(began.elapsed() < time);
        assert!(all.iter().all(|(status, ..)| *status == 503));
        // One found out a minute later, and the others have no time for the next probe.
        let told = all.iter().filter(|(_, text, trail)| {
            let stopped = Step::Stopped { why: StopReason::DeadlineTooNear };
            text.contains("Please retry in ") && trail.steps().contains(&stopped)
        });
        assert_eq!(told.count(), 2);
    });
}

#[test]
fn what_no_target_can_cure_is_not_waited_for() {
    in_paused_time(async {
        let always = |status| vec![(Duration::ZERO, status)];
        let models = Models::new(always(503), always(400));
        let began = Instant::now();
        let (status, ..) = models.call(&stack(), within(15 * MINUTE)).await;
        assert_eq!((status, began.elapsed()), (400, Duration::ZERO));
        assert_eq!((models.sent(PRO, 503), models.sent(FLASH, 400)), (1, 1));
    });
}

#[test]
fn a_target_with_a_number_of_attempts_has_no_more_of_them() {
    in_paused_time(async {
        let models = Models::down(10 * MINUTE, 10 * MINUTE);
        let target = |model| Target::new(model).attempts(2);
        let chain = Chain::default().then(target(PRO)).then(target(FLASH));
        let stack = GeminiStack::new().retry(retry()).fallback(ModelFallbackLayer::new(chain));
        let (status, text, trail) = models.call(&stack, within(15 * MINUTE)).await;
        assert_eq!((status, text.as_str()), (503, OVERLOADED), "{trail}");
        assert_eq!((models.sent(PRO, 503), models.sent(FLASH, 503)), (2, 2));
    });
}

#[test]
fn who_does_not_wait_gets_the_last_response_after_one_round() {
    in_paused_time(async {
        let models = Models::down(10 * MINUTE, 10 * MINUTE);
        let fallback = ModelFallbackLayer::new(Chain::new([PRO, FLASH]))
            .policy(FallbackPolicy::recommended().refuse_when_all_open());
        let stack = GeminiStack::new().retry(retry()).fallback(fallback);
        let (status, ..) = models.call(&stack, within(15 * MINUTE)).await;
        assert_eq!((status, models.sent(PRO, 503), models.sent(FLASH, 503)), (503, 1, 5));
    });
}

#[test]
fn no_more_calls_wait_for_a_target_than_may() {
    in_paused_time(async {
        let models = Models::down(10 * MINUTE, 10 * MINUTE);
        let fallback = ModelFallbackLayer::new(Chain::new([PRO, FLASH]))
            .policy(FallbackPolicy::recommended().most_waiting(4));
        let stack = GeminiStack::new().retry(retry()).fallback(fallback);
        let calls = (0..10).map(|_| models.call(&stack, within(15 * MINUTE)));
        let all = join_all(calls).await;
        let stopped = Step::Stopped { why: StopReason::TooManyWait };
        let full = all.iter().filter(|(_, _, trail)| trail.steps().contains(&stopped));
        assert_eq!(full.count(), 6);
        assert!(all.iter().filter(|(status, ..)| *status == 200).count() >= 3);
        // Their places are free again.
        assert_eq!(models.call(&stack, within(MINUTE)).await.0, 200);
    });
}

// A resend that is not made costs no tokens.
#[test]
fn a_call_that_another_model_answers_costs_no_tokens_of_the_retry_budget() {
    in_paused_time(async {
        let models = Models::down(10 * MINUTE, Duration::ZERO);
        let budget = RetryBudget::new(100, 10, 0);
        let policy = RetryPolicy::recommended().budget(budget.clone());
        let fallback = ModelFallbackLayer::new(Chain::new([PRO, FLASH]));
        let retry = JitteredRetryLayer::new(policy).seed(7);
        let stack = GeminiStack::new().retry(retry).fallback(fallback);
        assert_eq!(models.call(&stack, within(15 * MINUTE)).await.0, 200);
        assert_eq!(budget.tokens(), 100);
        let models = Models::down(MINUTE, MINUTE);
        assert_eq!(models.call(&stack, within(15 * MINUTE)).await.0, 200);
        let resends = models.sent(PRO, 503) + models.sent(FLASH, 503) - 1;
        assert_eq!(budget.tokens(), 100 - 10 * resends as u32);
    });
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn in_any_outages_probes_keep_their_distance_and_no_call_outlives_its_time_or_its_attempts(
        pro in 0..1800u64,
        flash in 0..1800u64,
        count in 1..40u32,
        every in 0..90u64,
        time in 20..1200u64,
    ) {
        in_paused_time(async {
            let seconds = Duration::from_secs;
            let models = Models::down(seconds(pro), seconds(flash));
            let (stack, time) = (stack(), seconds(time));
            let call = |n| {
                let (models, stack) = (&models, &stack);
                async move {
                    sleep(seconds(every) * n).await;
                    let began = Instant::now();
                    let outcome = models.call(stack, within(time)).await;
                    (outcome, began.elapsed())
                }
            };
            let all = join_all((0..count).map(call)).await;
            for ((status, text, trail), took) in &all {
                prop_assert!(*took <= time, "{took:?} of {time:?}: {trail}");
                prop_assert!([200, 503, 504].contains(status), "{text}");
                for model in [PRO, FLASH] {
                    let attempts = trail.attempts();
                    let of_model = attempts
                        .iter()
                        .filter(|one| one.model.as_ref().is_some_and(|name| name.as_str() == model));
                    prop_assert!(of_model.count() <= 5, "{trail}");
                }
            }
            for (model, outage) in [(PRO, pro), (FLASH, flash)] {
                // Those that open the circuit, one at once, and one a minute after that.
                let most = 3 + 2 + (outage / 60) as usize + 1;
                let sent = models.sent(model, 503);
                prop_assert!(sent <= most, "{sent} of {most} to {model}");
            }
            Ok(())
        })?;
    }
}
