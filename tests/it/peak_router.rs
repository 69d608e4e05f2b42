//! Peak hours over whole stacks, in simulated days.

use std::convert::Infallible;
use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use proptest::prelude::*;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_gemini::body::WireBody;
use tower_gemini::call::ModelId;
use tower_gemini::clock::RuntimeClock;
use tower_gemini::error::TimeLimit;
use tower_gemini::jittered_retry::RetryPolicy;
use tower_gemini::model_fallback::{Chain, FallbackPolicy, Reaction};
use tower_gemini::peak_hour_router::presets;
use tower_gemini::stage::WireClient;
use tower_gemini::target::Target;
use tower_gemini::trail::{PreferReason, Step, Trail, WaitReason};
use tower_gemini::verdict::Outcome;
use tower_gemini::{
    CallOptions, ClassifyGeminiErrorLayer, CollectRequestLayer, Error, GeminiStack,
    JitteredRetryLayer, ModelFallbackLayer, PeakHourRouterLayer,
};
use tower_gemini_sim::Fault;

use crate::harness::{Scenario, TAG, cases, in_paused_time};

const FLASH: &str = "gemini-3.1-flash-image";
const PRO: &str = "gemini-3-pro-image";

/// 2026-01-06T12:30:00Z, a Tuesday, within the preset's peak.
const HALF_PAST_NOON: u64 = 1_767_702_600;

fn clock() -> RuntimeClock {
    RuntimeClock::starting_at(SystemTime::UNIX_EPOCH + Duration::from_secs(HALF_PAST_NOON))
}

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

fn ask(model: &str, options: CallOptions) -> Request<Full<Bytes>> {
    let mut request = Scenario::new([]).request(TAG);
    *request.uri_mut() = format!("/v1beta/models/{model}:generateContent").parse().unwrap();
    request.extensions_mut().insert(options);
    request
}

/// The models that the innermost client was asked for, attempt by attempt.
type Seen = Arc<Mutex<Vec<String>>>;

const IMAGE: &str = r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AQID"}}]},"finishReason":"STOP"}]}"#;
const OVERLOADED: &str =
    r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;

/// A client that responds with these statuses, the last first, and then with images.
fn client(statuses: &[u16]) -> (impl WireClient + use<>, Seen) {
    let seen = Seen::default();
    let (log, statuses) = (seen.clone(), Arc::new(Mutex::new(statuses.to_vec())));
    let client = service_fn(move |request: Request<WireBody>| {
        let path = request.uri().path();
        let model = path.rsplit('/').next().unwrap().split(':').next().unwrap();
        log.lock().unwrap().push(model.to_owned());
        let status = statuses.lock().unwrap().pop().unwrap_or(200);
        let body = if status == 200 { IMAGE } else { OVERLOADED };
        let body = Full::<Bytes>::from(body);
        ready(Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap()))
    });
    (client, seen)
}

fn stack<S: WireClient>(
    router: &PeakHourRouterLayer,
    client: S,
) -> impl Service<Request<Full<Bytes>>, Response: Send, Error = Error> + Clone + use<S> {
    let retry = JitteredRetryLayer::new(RetryPolicy::recommended());
    // The least that reads the preference: a chain that never falls back.
    let policy = FallbackPolicy::recommended().on(Outcome::Overloaded, Reaction::Stop);
    let chain = [FLASH, PRO]
        .into_iter()
        .fold(Chain::default(), |chain, model| chain.then(Target::new(model).attempts(5)));
    let fallback = ModelFallbackLayer::new(chain).policy(policy);
    CollectRequestLayer::new().layer(
        router.layer(fallback.layer(retry.layer(ClassifyGeminiErrorLayer::new().layer(client)))),
    )
}

fn router() -> PeakHourRouterLayer {
    PeakHourRouterLayer::new(presets::TEN_TO_FOURTEEN_UTC.schedule())
        .in_peak("nano-banana-2", PRO)
        .clock(clock())
}

#[test]
fn in_peak_hours_every_attempt_of_a_call_carries_the_preference() {
    in_paused_time(async {
        let (client, seen) = client(&[200, 503]);
        let trail = Trail::new();
        stack(&router(), client)
            .oneshot(ask(FLASH, CallOptions::new().trail(trail.clone())))
            .await
            .unwrap();
        assert_eq!(*seen.lock().unwrap(), [PRO, PRO]);
        let preferred = Step::Preferred {
            asked: ModelId::new(FLASH),
            model: ModelId::new(PRO),
            why: PreferReason::PeakHours,
        };
        assert_eq!(trail.steps()[0], preferred, "{trail}");
        assert!(
            trail
                .to_string()
                .starts_with("prefers gemini-3-pro-image to gemini-3.1-flash-image (peak hours)")
        );
    });
}

#[test]
fn other_models_other_hours_and_callers_who_prefer_one_are_left_alone() {
    in_paused_time(async {
        let (client, seen) = client(&[]);
        let gemini = stack(&router(), client);
        gemini.clone().oneshot(ask(PRO, CallOptions::new())).await.unwrap();
        let mine = CallOptions::new().prefer_model(ModelId::new("mine"));
        gemini.clone().oneshot(ask(FLASH, mine)).await.unwrap();
        tokio::time::advance(minutes(90)).await;
        gemini.oneshot(ask(FLASH, CallOptions::new())).await.unwrap();
        assert_eq!(*seen.lock().unwrap(), [PRO, "mine", FLASH]);
    });
}

#[test]
fn a_call_that_can_wait_is_sent_when_the_peak_ends() {
    in_paused_time(async {
        let (client, seen) = client(&[]);
        let trail = Trail::new();
        let options = CallOptions::new().trail(trail.clone()).deferrable_for(minutes(600));
        let request = ask(FLASH, options);
        let began = tokio::time::Instant::now();
        stack(&router(), client).oneshot(request).await.unwrap();
        assert_eq!(began.elapsed(), minutes(90), "14:00 is quiet");
        assert_eq!(*seen.lock().unwrap(), [FLASH], "and by then the model asked for leads");
        assert_eq!(
            trail.steps()[0],
            Step::Waited { delay: minutes(90), why: WaitReason::QuietHours }
        );
    });
}

#[test]
fn a_call_waits_only_as_long_as_its_patience_and_its_deadline_allow() {
    in_paused_time(async {
        for (patience, deadline, waits) in
            [(89, None, false), (90, None, true), (600, Some(104), false), (600, Some(105), true)]
        {
            let (client, seen) = client(&[]);
            let options = CallOptions::new().deferrable_for(minutes(patience));
            let options = match deadline {
                Some(deadline) => options.deadline(minutes(deadline)),
                None => options,
            };
            let request = ask(FLASH, options);
            let began = tokio::time::Instant::now();
            stack(&router(), client).oneshot(request).await.unwrap();
            assert_eq!(
                began.elapsed(),
                if waits { minutes(90) } else { Duration::ZERO },
                "{patience} {deadline:?}"
            );
            assert_eq!(seen.lock().unwrap().len(), 1);
        }
    });
}

#[test]
fn a_wait_comes_off_the_deadline_of_the_call() {
    in_paused_time(async {
        let hangs = service_fn(|_: Request<WireBody>| {
            std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>()
        });
        let options = CallOptions::new().deadline(minutes(120)).deferrable_for(minutes(600));
        let began = tokio::time::Instant::now();
        let error = stack(&router(), hangs).oneshot(ask(FLASH, options)).await.err().unwrap();
        assert_eq!(error.time_limit(), Some(TimeLimit::Deadline));
        assert_eq!(began.elapsed(), minutes(120));
    });
}

#[test]
fn a_deferred_call_that_is_dropped_was_never_sent() {
    in_paused_time(async {
        let (client, seen) = client(&[]);
        let request = ask(FLASH, CallOptions::new().deferrable_for(minutes(600)));
        let call = stack(&router(), client).oneshot(request);
        assert!(tokio::time::timeout(minutes(60), call).await.is_err());
        tokio::time::advance(minutes(600)).await;
        assert!(seen.lock().unwrap().is_empty());
    });
}

proptest! {
    #![proptest_config(cases(1000))]

    /// Whatever the hour and the patience: a deferrable call is sent in a quiet moment, or at once.
    #[test]
    fn a_deferrable_call_is_sent_at_once_or_in_the_first_quiet_moment(
        start in 0_u64..7 * 86_400, patience in 0_u64..48 * 3600, preset in 0_usize..3,
    ) {
        let schedule = presets::ALL[preset].schedule();
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(HALF_PAST_NOON + start);
        let waited = in_paused_time(async {
            let router = PeakHourRouterLayer::new(schedule.clone()).clock(RuntimeClock::starting_at(at));
            let options = CallOptions::new().deferrable_for(Duration::from_secs(patience));
            let request = ask(FLASH, options);
            let began = tokio::time::Instant::now();
            stack(&router, client(&[]).0).oneshot(request).await.unwrap();
            began.elapsed()
        });
        let quiet = schedule.quiet_from(at).unwrap().duration_since(at).unwrap();
        prop_assert_eq!(waited, if quiet <= Duration::from_secs(patience) { quiet } else { Duration::ZERO });
    }
}

// The rule of APIYI, 503s on Nano Banana 2, 2026-03: in peak hours Pro leads, and Nano Banana 2,
// which was asked for, is what is fallen back to.
#[test]
fn in_peak_hours_the_chain_begins_with_the_preferred_model_and_goes_on_with_the_one_asked_for() {
    in_paused_time(async {
        let sim = tower_gemini_sim::Sim::quick([Fault::HighDemand]);
        let trail = Trail::new();
        let gemini = GeminiStack::new()
            .peak_hours(router())
            .fallback_to(Chain::new([FLASH, PRO]))
            .raw(sim.service());
        let options = CallOptions::new().trail(trail.clone());
        let answer = gemini.oneshot(ask(FLASH, options)).await.unwrap();
        assert_eq!(answer.status(), 200);
        let asked: Vec<_> =
            sim.ledger().requests().iter().map(|record| record.model.to_string()).collect();
        assert_eq!(asked, [PRO, FLASH], "{trail}");
        assert_eq!(sim.ledger().charges(TAG), 1);
        // The report said "degraded" although the call had come back to the model it asked for.
        let steps = trail.steps();
        let given_up: Vec<_> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Degraded { given_up } => Some(given_up.len()),
                _ => None,
            })
            .collect();
        assert_eq!(given_up, [1, 0], "{trail}");
        let served = answer.extensions().get::<tower_gemini::target::Served>().unwrap();
        assert!(!served.is_degraded());
    });
}
