//! A day behind the gateway, in paused time, by a real stack over the simulator: what the tests of
//! the page show.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, sleep, timeout};
use tower::{Layer, ServiceExt, service_fn};
use tower_gemini::CallOptions;
use tower_gemini::ObserveLayer;
use tower_gemini::clock::RuntimeClock;
use tower_gemini::cost::Cost;
use tower_gemini::model_fallback::Chain;
use tower_gemini::peak_hour_router::{Schedule, Window, Zone};
use tower_gemini::quota_guard::{Limits, ProjectId, QuotaGuardLayer};
use tower_gemini::trail::Step;
use tower_gemini::verdict::Outcome;
use tower_gemini::{GeminiStack, ModelFallbackLayer};
use tower_gemini_sim::{Fault, Latency, Refusal, Shape, Sim};

use super::super::{Alerts, Budget, Caller, Circuit, Load, Quota, Spending, Status, Stored};
use crate::stats::{HealthTargets, Stats};

/// 2026-11-24T08:20:00Z, twenty minutes into the quota's day; the last call is before it ends.
const START: u64 = 1_795_508_400;
/// One about every 220 seconds: a bit more than a day of them.
const CALLS: u64 = 420;

pub(super) fn in_paused_time<F: Future>(of: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(of)
}

pub(super) fn request(call: u64, size: &str) -> Request<Full<Bytes>> {
    let body = format!(
        r#"{{"contents":[{{"parts":[{{"text":"a red apple"}}]}}],"generationConfig":{{"imageConfig":{{"imageSize":"{size}"}}}}}}"#
    );
    Request::post("https://gemini.example/v1beta/models/gemini-3-pro-image:generateContent")
        .header("x-sim-call", format!("call-{call}"))
        .header("x-goog-api-key", "AIzaSyA-sentinel-key-0123456789abcdefghij")
        .header("content-type", "application/json")
        .body(Full::from(body))
        .unwrap()
}

/// The faults of a call at this hour of the day: peak hours are bad, the night is good.
fn weather(hour: u64, call: u64) -> Vec<Fault> {
    let minute = Fault::RateLimitMinute {
        retry_after: Duration::from_secs(7),
        limit: tower_gemini_sim::Limit::Requests,
    };
    let busy = match hour {
        10..14 => 4,
        14..18 => 7,
        _ => 23,
    };
    match call {
        n if n % 29 == 0 || n % 31 == 0 => vec![Fault::Refused(Refusal::ImageSafety)],
        n if n % 17 == 0 => vec![minute, Fault::None],
        // An hour in which everything fails.
        n if hour == 12 && n % 2 == 0 => vec![Fault::Internal; 12],
        n if n % busy == 0 => vec![Fault::Overloaded, Fault::Overloaded, Fault::None],
        n if n % 5 == 0 => vec![Fault::Shaped(Shape::with_drafts(2))],
        _ => vec![Fault::None],
    }
}

/// A day and a bit of calls.
pub(super) fn status() -> Status {
    in_paused_time(async {
        let clock = RuntimeClock::starting_at(SystemTime::UNIX_EPOCH + Duration::from_secs(START));
        let peak = Schedule::new(Zone::utc(), [Window::daily("10:00", "14:00")]).unwrap();
        let stats =
            Stats::new().clock(clock).targets(HealthTargets::recommended().peak_hours(peak));
        let observe = ObserveLayer::new().observer(stats.observer());
        let quota = QuotaGuardLayer::new(Limits::unlimited().rpm(12).ipm(10).rpd(400))
            .limits_for(
                "gemini-3.1-flash-image",
                Limits::unlimited().rpm(60).tpm(1_000_000).rpd(2_000),
            )
            .project(ProjectId::new("pictures-eu"))
            .clock(clock);
        let fallback =
            ModelFallbackLayer::new(Chain::new(["gemini-3-pro-image", "gemini-3.1-flash-image"]))
                .clock(clock);
        let hour_of = |call: u64| (START + call * 220) / 3600 % 24;
        let latency = Latency::fixed(Duration::from_secs(23));
        // Each call has a weather of its own: what one leaves of it is not the next one's.
        let sim = (1..=CALLS)
            .fold(Sim::builder().seed(7).tiny_images(true).latency(latency), |sim, call| {
                sim.script_of(format!("call-{call}"), weather(hour_of(call), call))
            });
        let sim = sim.build();
        let stack = GeminiStack::new().fallback(fallback.clone()).quota(quota.clone());
        let service = observe.layer(stack.raw(sim.service()));
        for call in 1..=CALLS {
            let began = Instant::now();
            // Now and then somebody does not wait.
            let patience = if call % 37 == 0 { 9 } else { 3600 };
            let size = ["1K", "2K", "4K"][(call % 3) as usize];
            let answer = timeout(Duration::from_secs(patience), async {
                let response = service.clone().oneshot(request(call, size)).await?;
                response.into_body().collect().await
            });
            let _ = answer.await;
            sleep(Duration::from_secs(200).saturating_sub(began.elapsed())).await;
        }
        redeemed(&observe).await;

        let mut status = Status::new(stats.report());
        status.upstream = "generativelanguage.googleapis.com".to_owned();
        status.quotas = quota.usages().iter().map(Quota::from).collect();
        let now = Instant::now();
        let circuits = fallback.circuits().snapshot();
        status.circuits = circuits.iter().map(|circuit| Circuit::new(circuit, now)).collect();
        status.spending = vec![Spending {
            period: "day".to_owned(),
            began_unix_seconds: 1_795_507_200,
            spent: status.report.last_day.cost,
            reserved_at_most_microusd: Some(720_000),
            cap_microusd: Some(120_000_000),
            images: status.report.last_day.images,
            rejected_attempts: 0,
        }];
        // The first is used up but for a part of an image.
        let budget = |upstream: &str, part: u64, left: u64| {
            let Cost { at_least_microusd, at_most_microusd } = status.report.last_day.cost;
            let spent = Cost {
                at_least_microusd: at_least_microusd * part / 10,
                at_most_microusd: at_most_microusd.map(|most| most * part / 10),
            };
            let spending = Spending {
                spent,
                reserved_at_most_microusd: Some(0),
                cap_microusd: spent.at_most_microusd.map(|most| most + left),
                images: status.report.last_day.images * part / 10,
                rejected_attempts: if part < 5 { 17 } else { 0 },
                ..status.spending[0].clone()
            };
            Budget { upstream: upstream.to_owned(), spending: vec![spending] }
        };
        status.budgets = vec![budget("studio-a", 3, 120_000), budget("studio-b", 7, 45_000_000)];
        status.callers = vec![Caller {
            name: "design-team".to_owned(),
            requests_in_flight: 3,
            limits: status.quotas.first().map(|quota| quota.limits.clone()).unwrap_or_default(),
            spending: status.spending.clone(),
        }];
        status.load = Load {
            requests: 212,
            requests_limit: 256,
            calls: 230,
            callers: 9,
            memory_bytes: 480_000_000,
            memory_limit_bytes: 805_306_368,
            waiting_for_place: 0,
            waiting_for_memory: 3,
            waiting_limit: 1024,
            responses_waiting_for_memory: 1,
        };
        status.alerts = Some(Alerts { sent: 2, failed: 1, problem: None });
        status.stored = Some(Stored {
            in_progress: 1,
            stored: 3,
            stored_bytes: 5_430_000,
            replayed: 9,
            free: 4,
            lost: 1,
        });
        status
    })
}

/// A call whose stored response is replayed.
async fn redeemed(observe: &ObserveLayer) {
    let inner = service_fn(|request: Request<Full<Bytes>>| async move {
        if let Some(options) = request.extensions().get::<CallOptions>() {
            let trail = options.clone().trail_mut().clone();
            trail.push(Step::Replayed {
                age: Duration::from_secs(14),
                cost: Cost::exactly(134_400),
                outcome: Outcome::Image,
            });
        }
        Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from_static(b"{}"))))
    });
    let response = observe.whole_responses().layer(inner).oneshot(request(0, "2K")).await.unwrap();
    let _ = response.into_body().collect().await;
}
