//! Events, metrics and statistics of calls, compared with the trail and with the simulator's ledger.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use proptest::prelude::*;
use tower::{Layer, Service, ServiceExt};
use tower_gemini::CallOptions;
use tower_gemini::ResolutionFallbackLayer;
use tower_gemini::call::ModelId;
use tower_gemini::clock::RuntimeClock;
use tower_gemini::cost::Cost;
use tower_gemini::model_fallback::Chain;
use tower_gemini::observe::{CallId, CallOutcome, ObserveLayer, record_quota};
use tower_gemini::peak_hour_router::{Schedule, Window, Zone};
use tower_gemini::quota_guard::{Limits, QuotaGuardLayer};
use tower_gemini::trail::{AttemptId, Step, Trail};
use tower_gemini::verdict::{Charge, Outcome, Verdict};
use tower_gemini::{GeminiStack, ModelFallbackLayer};
use tower_gemini_gateway::stats::{Health, HealthTargets, Stats};
use tower_gemini_sim::{Delivered, Fault, Shape, Sim};

use crate::harness::{Ask, Scenario, TAG, Wire, cases, faults, in_paused_time, run_on};

// -- what the facades receive

/// An event's fields as text, its message under `message`.
type Event = BTreeMap<&'static str, String>;

/// Collects the events of the layer, of all levels.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<Event>>>);

impl Events {
    /// Runs with this as the thread's subscriber.
    fn during<T>(&self, run: impl FnOnce() -> T) -> T {
        tracing::subscriber::with_default(self.clone(), run)
    }

    fn all(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    fn of(&self, step: &str) -> Vec<Event> {
        self.all()
            .into_iter()
            .filter(|event| event.get("step").is_some_and(|one| one == step))
            .collect()
    }
}

impl tracing::Subscriber for Events {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("tower_gemini")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Fields(Event);
        impl tracing::field::Visit for Fields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.insert(field.name(), format!("{value:?}"));
            }
            fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
                self.0.insert(field.name(), value.to_owned());
            }
        }
        let mut fields = Fields(Event::from([
            ("target", event.metadata().target().to_owned()),
            ("level", event.metadata().level().to_string()),
        ]));
        event.record(&mut fields);
        self.0.lock().unwrap().push(fields.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// Holds what metrics came to, by name and labels.
#[derive(Clone, Default)]
struct Metrics(Arc<Mutex<BTreeMap<String, Arc<Value>>>>);

#[derive(Default)]
struct Value {
    count: AtomicU64,
    sum: Mutex<f64>,
}

impl CounterFn for Value {
    fn increment(&self, value: u64) {
        self.count.fetch_add(value, Ordering::Relaxed);
    }
    fn absolute(&self, value: u64) {
        self.count.store(value, Ordering::Relaxed);
    }
}

impl GaugeFn for Value {
    fn increment(&self, value: f64) {
        *self.sum.lock().unwrap() += value;
    }
    fn decrement(&self, value: f64) {
        *self.sum.lock().unwrap() -= value;
    }
    fn set(&self, value: f64) {
        *self.sum.lock().unwrap() = value;
    }
}

impl HistogramFn for Value {
    fn record(&self, value: f64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        *self.sum.lock().unwrap() += value;
    }
}

impl Metrics {
    fn value(&self, key: &Key) -> Arc<Value> {
        let labels: Vec<_> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = format!("{} {}", key.name(), labels.join(" "));
        self.0.lock().unwrap().entry(name).or_default().clone()
    }

    /// The sum of all series of this name whose labels hold all of these.
    fn sum(&self, name: &str, labels: &[&str]) -> u64 {
        self.series(name, labels).map(|value| value.count.load(Ordering::Relaxed)).sum()
    }

    fn total(&self, name: &str, labels: &[&str]) -> f64 {
        self.series(name, labels).map(|value| *value.sum.lock().unwrap()).sum()
    }

    fn series(&self, name: &str, labels: &[&str]) -> impl Iterator<Item = Arc<Value>> {
        let all = self.0.lock().unwrap();
        let found: Vec<_> = all
            .iter()
            .filter(|(key, _)| {
                let mut words = key.split(' ');
                words.next() == Some(name)
                    && labels.iter().all(|label| key.split(' ').any(|word| word == *label))
            })
            .map(|(_, value)| value.clone())
            .collect();
        found.into_iter()
    }

    fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().keys().cloned().collect()
    }
}

impl Recorder for Metrics {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.value(key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.value(key))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.value(key))
    }
}

/// Runs a case in paused time and returns its events and metrics.
fn told<F: Future>(case: impl FnOnce() -> F) -> (F::Output, Events, Metrics) {
    let (events, metrics) = (Events::default(), Metrics::default());
    let output = events.during(|| {
        metrics::with_local_recorder(&metrics, || in_paused_time(async { case().await }))
    });
    (output, events, metrics)
}

// -- stacks

/// All layers that decide anything, over the scenario's retries.
fn full_stack(scenario: &Scenario) -> GeminiStack {
    scenario
        .stack()
        .fallback(ModelFallbackLayer::new(Chain::new([
            "gemini-3-pro-image",
            "gemini-3.1-flash-image",
        ])))
        .resolution(ResolutionFallbackLayer::new())
        .quota(QuotaGuardLayer::new(Limits::unlimited().rpm(3).rpd(40)))
}

/// Reads a call to its end, whatever that is.
async fn read<B: Body<Error: std::fmt::Debug>, E>(
    answer: Result<Response<B>, E>,
) -> Option<http::StatusCode> {
    let response = answer.ok()?;
    let status = response.status();
    response.into_body().collect().await.ok().map(|_| status)
}

/// A request with a trail that the test keeps.
fn request(scenario: &Scenario, tag: &str) -> (Request<Full<Bytes>>, Trail) {
    let trail = Trail::new();
    let mut request = scenario.request(tag);
    let mut options =
        CallOptions::new().maybe_charged_resends(scenario.allowance).trail(trail.clone());
    if let Some(deadline) = scenario.deadline {
        options = options.deadline(deadline);
    }
    request.extensions_mut().insert(options);
    (request, trail)
}

fn step_name(step: &Step) -> String {
    serde_json::to_value(step).unwrap()["step"].as_str().unwrap().to_owned()
}

/// All fields that there are.
const FIELDS: [&str; 23] = [
    "asked",
    "tier",
    "target",
    "level",
    "message",
    "call",
    "step",
    "attempt",
    "model",
    "size",
    "status",
    "outcome",
    "charge",
    "quota",
    "reason",
    "delay_ms",
    "why",
    "from",
    "to",
    "cost_at_least_microusd",
    "cost_at_most_microusd",
    "took_ms",
    "error",
];

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn every_step_of_a_trail_is_exactly_one_event(
        weather in proptest::collection::vec(faults(), 1..7), size in prop::sample::select(vec!["1K", "4K"]), allowance in 0_u32..2,
    ) {
        let scenario = Scenario { size, allowance, ..Scenario::new(weather) };
        let ((trail, _), events, _) = told(async || {
            let layer = ObserveLayer::new();
            let service = layer.layer(full_stack(&scenario).raw(scenario.sim().service()));
            let (request, trail) = request(&scenario, TAG);
            let status = read(service.oneshot(request).await).await;
            (trail, status)
        });
        let told: Vec<_> = events.all().into_iter().filter(|event| event["target"] == "tower_gemini::observe").collect();
        // One for each step, in order but for attempts, which are told when they have ended; and
        // one for the call, at last.
        let sorted = |mut names: Vec<String>| { names.sort(); names };
        let mut expected: Vec<_> = trail.steps().iter().map(step_name).collect();
        expected.push("call".to_owned());
        prop_assert_eq!(sorted(told.iter().map(|event| event["step"].clone()).collect()), sorted(expected), "{}", trail);
        prop_assert_eq!(&told.last().unwrap()["step"], "call");
        prop_assert!(told.iter().all(|event| event["call"] == told[0]["call"]));
        for event in events.all() {
            prop_assert!(event.keys().all(|field| FIELDS.contains(field) || event["target"] != "tower_gemini::observe"), "{:?}", event);
        }
        // What an attempt's event says is what the trail says.
        for (number, (attempt, event)) in trail.attempts().iter().zip(events.of("attempt")).enumerate() {
            prop_assert_eq!(&event["attempt"], &(number + 1).to_string());
            prop_assert_eq!(&event["model"], attempt.model.as_ref().unwrap().as_str());
            prop_assert_eq!(&event["outcome"], attempt.outcome.unwrap().as_str());
            prop_assert_eq!(&event["charge"], attempt.charge.as_str());
            prop_assert_eq!(&event["quota"], attempt.quota.as_str());
            prop_assert_eq!(&event["took_ms"], &attempt.took.as_millis().to_string());
            prop_assert_eq!(&event["cost_at_least_microusd"], &attempt.cost.at_least_microusd.to_string());
            prop_assert_eq!(event.get("cost_at_most_microusd").cloned(), attempt.cost.at_most_microusd.map(|most| most.to_string()));
            prop_assert_eq!(event.contains_key("reason"), attempt.reason.is_some());
        }
        for (wait, event) in trail.steps().iter().filter_map(|step| match step { Step::Waited { delay, .. } => Some(*delay), _ => None }).zip(events.of("waited")) {
            prop_assert_eq!(&event["delay_ms"], &wait.as_millis().to_string());
        }
    }

    #[test]
    fn metrics_and_statistics_agree_with_the_ledger_of_the_server(
        calls in proptest::collection::vec(proptest::collection::vec(faults(), 1..4), 1..6), seed in 0_u64..1000,
    ) {
        let scenario = Scenario { seed, ..Scenario::new([]) };
        let ((sim, report), _, metrics) = told(async || {
            let sim = Sim::builder().seed(seed).latency(tower_gemini_sim::Latency::fixed(Duration::from_secs(20))).tiny_images(true).build();
            let stats = Stats::new().clock(RuntimeClock::starting_at(SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)));
            let layer = ObserveLayer::new().observer(stats.observer());
            // Without a quota: what it refuses never reaches the server.
            let service = layer.layer(full_stack(&scenario).quota(QuotaGuardLayer::off()).raw(sim.service()));
            for (number, faults) in calls.iter().enumerate() {
                sim.push_script(faults.clone());
                let (request, _) = request(&scenario, &format!("call-{number}"));
                read(service.clone().oneshot(request).await).await;
                // What a call leaves of its script is not the next one's.
                while sim.requests() < calls[..=number].iter().map(Vec::len).sum() {
                    let rest = sim.service().oneshot(Scenario::new([]).request("not a call of ours"));
                    let _ = tokio::time::timeout(Duration::from_secs(3600), rest).await;
                }
            }
            (sim, stats.report())
        });
        let ledger = sim.ledger();
        let ours: Vec<_> = ledger.requests().iter().filter(|record| record.call.as_deref().is_some_and(|tag| tag.starts_with("call-"))).collect();
        let total = &report.total;

        prop_assert_eq!(metrics.sum("gemini_calls_total", &["kind=generate"]), calls.len() as u64);
        prop_assert_eq!(metrics.total("gemini_calls_in_flight", &[]), 0.0);
        prop_assert_eq!(metrics.sum("gemini_attempts_total", &[]), ours.len() as u64, "one attempt for each request");
        for (model, name) in [("gemini-3-pro-image", "model=gemini-3-pro-image"), ("gemini-3.1-flash-image", "model=gemini-3.1-flash-image")] {
            let sent = ours.iter().filter(|record| &*record.model == model).count() as u64;
            prop_assert_eq!(metrics.sum("gemini_attempts_total", &[name]), sent, "{}", model);
        }
        let paid: u64 = ours.iter().map(|record| record.cost_microusd).sum();
        let least = metrics.sum("gemini_cost_at_least_microusd_total", &[]);
        let most = metrics.sum("gemini_cost_at_most_microusd_total", &[]);
        prop_assert!(least <= paid && paid <= most, "{least} <= {paid} <= {most}");
        prop_assert!(total.cost.contains(paid), "{} in {}", paid, total.cost);
        let counted = ours.iter().filter(|record| record.request_counted).count() as u64;
        prop_assert!(metrics.sum("gemini_quota_requests_at_most_total", &[]) >= counted);
        prop_assert!(total.quota_requests_at_most >= counted);
        let delivered = metrics.sum("gemini_images_delivered_total", &[]);
        let whole = ours.iter().filter(|record| record.delivered == Delivered::Full && record.outcome == "image").count() as u64;
        // A body that ends too early, but after its image, is as good as whole.
        let most = ours.iter().filter(|record| record.delivered != Delivered::NotDelivered && record.image_hash.is_some()).count() as u64;
        prop_assert!(whole <= delivered && delivered <= most, "{whole} <= {delivered} <= {most}");
        prop_assert_eq!((total.images, total.successes), (delivered, delivered));
        // No charge is missed. Tokens that an answer counts are taken for charged, and what they
        // cost for nothing at least.
        let charged = ours.iter().filter(|record| record.charged).count() as u64;
        let certain = metrics.sum("gemini_attempts_total", &["charge=charged"]);
        let possible = metrics.sum("gemini_attempts_total", &["charge=maybe"]);
        prop_assert!(charged <= certain + possible, "{charged} <= {certain} + {possible}");

        // The figures are the metrics, and their parts their wholes.
        prop_assert_eq!(total.calls, calls.len() as u64);
        prop_assert_eq!(total.successes + total.failures + total.client_disconnects, total.calls);
        prop_assert_eq!(total.attempts, ours.len() as u64);
        // A call whose every target rests sends nothing.
        let sent = report.recent_calls.iter().filter(|call| call.steps.iter().any(|step| matches!(step, Step::Attempt(_)))).count() as u64;
        prop_assert_eq!(total.attempts, sent + total.retries + total.fallback_attempts);
        prop_assert_eq!(metrics.sum("gemini_retries_total", &[]), total.retries);
        prop_assert_eq!(metrics.sum("gemini_fallback_attempts_total", &[]), total.fallback_attempts);
        prop_assert_eq!(total.failure_kinds.values().sum::<u64>(), total.failed_attempts);
        prop_assert_eq!(metrics.sum("gemini_call_duration_seconds", &[]), total.calls);
        prop_assert_eq!(report.recent_calls.len() as u64, total.calls);
        let waited: f64 = total.waits.values().map(|wait| wait.seconds).sum();
        prop_assert!((waited - metrics.total("gemini_wait_seconds", &[])).abs() < 0.1);
    }

    /// Whenever a caller goes away, its call is counted once, and what it may have paid for is in
    /// the figures.
    #[test]
    fn a_dropped_call_is_counted_once_as_such(
        weather in proptest::collection::vec(faults(), 1..4), after_ms in 0_u64..120_000, drops_body in any::<bool>(),
    ) {
        let scenario = Scenario::new(weather);
        let ((report, outcome, paid), events, metrics) = told(async || {
            let sim = scenario.sim();
            let stats = Stats::new();
            let layer = ObserveLayer::new().observer(stats.observer());
            let service = layer.layer(scenario.stack().raw(sim.service()));
            let (request, _) = request(&scenario, TAG);
            let call = async {
                let response = service.oneshot(request).await;
                match response {
                    Ok(response) if drops_body => Some(response.status().is_success()),
                    answer => read(answer).await.map(|_| false),
                }
            };
            let outcome = tokio::time::timeout(Duration::from_millis(after_ms), call).await;
            (stats.report(), outcome, sim.ledger().cost_microusd(TAG))
        });
        prop_assert_eq!(report.calls_in_flight, 0);
        prop_assert_eq!(metrics.total("gemini_calls_in_flight", &[]), 0.0);
        prop_assert_eq!(report.total.calls, 1);
        prop_assert_eq!(events.of("call").len(), 1);
        prop_assert_eq!(metrics.sum("gemini_calls_total", &[]), 1);
        prop_assert_eq!(report.total.attempts, events.of("attempt").len() as u64);
        prop_assert!(report.total.cost.contains(paid), "{} in {}", paid, report.total.cost);
        prop_assert!(!report.recent_calls[0].under_way, "{:?}", report.recent_calls[0].trail);
        match outcome {
            Err(_) => prop_assert_eq!(report.total.client_disconnects, 1),
            // Only the body of a success was worth waiting for: a refusal is known with the head.
            Ok(Some(true)) => {
                let is_success = report.total.attempts_with(Outcome::Image) > 0;
                prop_assert_eq!(report.total.client_disconnects, u64::from(is_success), "{:?}", report.recent_calls[0]);
            }
            Ok(_) => prop_assert_eq!(report.total.client_disconnects, 0, "{:?}", report.recent_calls[0]),
        }
    }

    /// Among the faults are bodies that quote the caller's key. Callers put keys even where models
    /// belong.
    #[test]
    fn a_key_is_in_no_event_metric_or_report(weather in proptest::collection::vec(faults(), 1..4), in_path in any::<bool>()) {
        let scenario = Scenario::new(weather);
        let (report, events, metrics) = told(async || {
            let stats = Stats::new();
            let layer = ObserveLayer::new().observer(stats.observer());
            let service = layer.layer(full_stack(&scenario).raw(scenario.sim().service()));
            let (mut request, _) = request(&scenario, TAG);
            if in_path {
                *request.uri_mut() = "/v1beta/models/AIzaSyA-sentinel-key-0123456789abcdefghij:generateContent?key=AIzaSyA-sentinel-key-0123456789abcdefghij".parse().unwrap();
            }
            read(service.oneshot(request).await).await;
            stats.report()
        });
        let printed = format!("{report:?} {} {:?} {:?}", serde_json::to_string(&report).unwrap(), events.all(), metrics.names());
        prop_assert!(!printed.contains("sentinel"), "{}", printed);
    }

    /// A caller can name any model, and a server say anything: neither series nor memory grow with
    /// it.
    #[test]
    fn memory_and_series_are_bounded_whatever_callers_name(
        names in proptest::collection::vec("[a-zA-Z0-9._-]{1,40}", 4..9), repeat in 1_usize..200,
    ) {
        let (report, _, metrics) = told(async || {
            let stats = Stats::new().keep_calls(3);
            let layer = ObserveLayer::new().observer(stats.observer());
            let inner = AnswerHeads(|request: Parts| async move {
                let trail = request.extensions.get::<CallOptions>().unwrap().clone().trail_mut().clone();
                let model = request.uri.path().to_owned();
                let id = trail.begin_attempt(Some(ModelId::new(&model)), None);
                id.end(Some(503), &Verdict::interrupted(), Cost::UNKNOWN, Duration::from_millis(1));
                id.close();
                Ok::<_, Infallible>(Response::builder().status(503).body(Full::new(Bytes::new())).unwrap())
            });
            let service = layer.layer(inner);
            for name in &names {
                let path = format!("/v1beta/models/{}:generateContent", name.repeat(repeat));
                read(service.clone().oneshot(Request::post(path).body(Full::new(Bytes::new())).unwrap()).await).await;
            }
            stats.report()
        });
        prop_assert_eq!(report.total.calls, names.len() as u64);
        prop_assert_eq!(report.recent_calls.len(), 3);
        let json = serde_json::to_string(&report).unwrap();
        prop_assert!(json.len() < 20_000, "{} bytes", json.len());
        prop_assert_eq!(report.total.models.keys().collect::<Vec<_>>(), ["other"]);
        prop_assert!(metrics.names().len() < 20, "{:?}", metrics.names());
    }
}

#[test]
fn common_cases_are_reported_in_one_sentence_each() {
    let told_of = |faults: Vec<Fault>, fallback: bool| {
        let scenario = Scenario::new(faults);
        let (_, events, _) = told(async || {
            let mut stack = scenario.stack();
            if fallback {
                stack =
                    stack.fallback_to(Chain::new(["gemini-3-pro-image", "gemini-3.1-flash-image"]));
            }
            let service =
                ObserveLayer::new().whole_responses().layer(stack.images(scenario.sim().service()));
            let _ = service.oneshot(request(&scenario, TAG).0).await;
        });
        let calls = events.of("call");
        assert_eq!(calls.len(), 1);
        (calls[0]["level"].clone(), calls[0]["message"].clone())
    };
    let info = |(level, message): (String, String), says: &str| {
        assert_eq!(level, "INFO");
        assert!(message.starts_with(says), "{message}");
    };
    info(
        told_of(vec![Fault::Shaped(Shape::with_drafts(2))], false),
        "3 images (2 drafts), using the final one: gemini-3-pro-image 1K, 20 s; charged $0.134",
    );
    let minute = Fault::RateLimitMinute {
        retry_after: Duration::from_secs(9),
        limit: tower_gemini_sim::Limit::Requests,
    };
    info(told_of(vec![minute, Fault::None], false), "429 (minute limit), then success after ");
    info(
        told_of(vec![Fault::Overloaded, Fault::None], true),
        "503 (overloaded) on gemini-3-pro-image, then gemini-3.1-flash-image 1K responded after ",
    );
    let (level, message) = told_of(vec![Fault::Internal; 20], true);
    assert_eq!(level, "WARN");
    assert!(
        message.contains("the fallback failed too") && message.contains("systemic outage"),
        "{message}"
    );
    assert!(message.ends_with("nothing was charged"), "{message}");
}

#[test]
fn a_call_has_the_same_name_in_its_response_and_its_events() {
    let scenario = Scenario::new([]);
    let ((id, attempts), events, _) = told(async || {
        let service = ObserveLayer::new().layer(scenario.stack().raw(scenario.sim().service()));
        let response = service.oneshot(scenario.request(TAG)).await.unwrap();
        let id = response.extensions().get::<CallId>().unwrap().to_string();
        let trail = response.extensions().get::<Trail>().unwrap().clone();
        read(Ok::<_, Infallible>(response)).await;
        (id, trail.attempts().len())
    });
    assert_eq!(attempts, 1);
    assert!(events.of("call")[0]["call"] == id && events.of("attempt")[0]["call"] == id);
}

#[test]
fn of_two_observing_layers_the_outer_one_reports() {
    let scenario = Scenario::new([]);
    let ((outer, inner), events, metrics) = told(async || {
        let (outer_stats, inner_stats) = (Stats::new(), Stats::new());
        let outer = ObserveLayer::new().observer(outer_stats.observer());
        let inner = ObserveLayer::new().observer(inner_stats.observer());
        let service = outer.layer(inner.layer(scenario.stack().raw(scenario.sim().service())));
        read(service.oneshot(scenario.request(TAG)).await).await.unwrap();
        (outer_stats.report(), inner_stats.report())
    });
    assert_eq!((outer.total.calls, inner.total.calls), (1, 0));
    assert_eq!((events.of("call").len(), metrics.sum("gemini_calls_total", &[])), (1, 1));
}

#[test]
fn calls_that_generate_nothing_are_in_no_rate() {
    let (report, events, metrics) = told(async || {
        let stats = Stats::new();
        let layer = ObserveLayer::new().observer(stats.observer());
        let inner = AnswerHeads(|_| async {
            Ok::<_, Infallible>(
                Response::builder().status(500).body(Full::new(Bytes::new())).unwrap(),
            )
        });
        for path in ["/v1beta/models/gemini-3-pro-image:countTokens", "/v1beta/models", "/healthz"]
        {
            let request = Request::post(path).body(Full::new(Bytes::new())).unwrap();
            read(layer.layer(inner.clone()).oneshot(request).await).await;
        }
        stats.report()
    });
    assert_eq!(
        (report.total.calls, report.total.other_calls, report.total.failure_rate),
        (0, 3, None)
    );
    assert_eq!(events.of("call").len(), 3);
    assert_eq!(metrics.sum("gemini_calls_total", &["kind=other"]), 3);
}

/// Answers requests with any body by their heads.
#[derive(Clone)]
struct AnswerHeads<F>(F);

impl<F, Answer, T, B> Service<Request<B>> for AnswerHeads<F>
where
    F: FnMut(Parts) -> Answer,
    Answer: Future<Output = Result<T, Infallible>>,
{
    type Response = T;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Answer {
        (self.0)(request.into_parts().0)
    }
}

/// A body that counts how often it is asked, ends when it is asked once more than it has chunks,
/// and says its exact length.
struct Announced {
    chunks: u32,
    asked: Arc<AtomicU64>,
}

impl Body for Announced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(self.chunks.checked_sub(1).map(|left| {
            self.chunks = left;
            Ok(Frame::data(Bytes::from_static(b"12345678")))
        }))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::from(self.chunks) * 8)
    }
}

#[test]
fn a_response_read_to_its_announced_length_is_delivered() {
    // Servers that send a length drop the body after its last byte, and never see it end: its usage
    // would stay unread.
    for (read, outcome) in [
        (3, CallOutcome::Ended(Outcome::Answered)),
        (2, CallOutcome::ClientDisconnected),
        (0, CallOutcome::ClientDisconnected),
    ] {
        let (report, _, _) = told(async || {
            let stats = Stats::new();
            let layer = ObserveLayer::new().observer(stats.observer());
            let asked = Arc::new(AtomicU64::new(0));
            let inner = {
                let asked = asked.clone();
                AnswerHeads(move |_| {
                    ready(Ok::<_, Infallible>(Response::new(Announced {
                        chunks: 3,
                        asked: asked.clone(),
                    })))
                })
            };
            let request = Request::post("/v1beta/models/gemini-3-pro-image:generateContent")
                .body(())
                .unwrap();
            let mut body = layer.layer(inner).oneshot(request).await.unwrap().into_body();
            for _ in 0..read {
                body.frame().await.unwrap().unwrap();
            }
            assert_eq!(body.is_end_stream(), read == 3);
            drop(body);
            assert_eq!(
                asked.load(Ordering::Relaxed),
                if read == 3 { 4 } else { read },
                "the end is asked for with the last byte"
            );
            stats.report()
        });
        assert_eq!(report.total.calls_with(outcome), 1, "{read}: {:?}", report.recent_calls);
    }
}

/// Stands for a layer that finishes what its caller left: it goes on in a task of its own.
fn goes_on(request: &Parts) -> (Trail, AttemptId) {
    let trail = request.extensions.get::<CallOptions>().unwrap().clone().trail_mut().clone();
    let id = trail.begin_attempt(Some(ModelId::new("gemini-3-pro-image")), None);
    (trail, id)
}

#[test]
fn an_attempt_without_its_client_is_reported_when_it_has_ended() {
    let ((before, after), events, metrics) = told(async || {
        let stats = Stats::new();
        let layer = ObserveLayer::new().observer(stats.observer());
        let inner = AnswerHeads(|request: Parts| async move {
            let (trail, id) = goes_on(&request);
            let left = Left(trail.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(30)).await;
                id.end(
                    Some(200),
                    &Verdict::delivering(),
                    Cost::exactly(134_000),
                    Duration::from_secs(30),
                );
                id.close();
                trail.push(Step::Stored { bytes: 1_000_000 });
            });
            std::future::pending::<()>().await;
            drop(left);
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
        });
        let request =
            Request::post("/v1beta/models/gemini-3-pro-image:generateContent").body(()).unwrap();
        let _ = tokio::time::timeout(Duration::from_secs(12), layer.layer(inner).oneshot(request))
            .await;
        let before = stats.report();
        tokio::time::sleep(Duration::from_secs(60)).await;
        (before, stats.report())
    });
    let call = &before.recent_calls[0];
    assert!(call.under_way);
    assert_eq!(
        (call.outcome, call.cost, before.total.attempts),
        (CallOutcome::ClientDisconnected, Cost::UNKNOWN, 0)
    );
    assert_eq!(
        call.sentence,
        "the client disconnected after 12 s; the attempt is completed without it"
    );
    let call = &after.recent_calls[0];
    assert!(!call.under_way);
    assert_eq!(
        (call.cost, after.total.cost, after.total.attempts),
        (Cost::exactly(134_000), Cost::exactly(134_000), 1)
    );
    assert_eq!(
        (after.total.calls, after.total.stored_responses, after.total.completed_without_client),
        (1, 1, 1)
    );
    let names: Vec<_> =
        events.all().iter().filter_map(|event| event.get("step").cloned()).collect();
    assert_eq!(names, ["client_disconnected", "call", "attempt", "stored"]);
    assert_eq!(metrics.sum("gemini_stored_responses_total", &[]), 1);

    /// Says so when it is dropped.
    struct Left(Trail);
    impl Drop for Left {
        fn drop(&mut self) {
            self.0.push(Step::ClientDisconnected);
        }
    }
}

#[test]
fn a_day_of_calls_is_reported_by_the_hour_against_its_targets() {
    let (report, _, _) = told(async || {
        // 2026-09-21T14:13:20Z; the peak is from 16:00 to 18:00.
        let clock =
            RuntimeClock::starting_at(SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000));
        let peak = Schedule::new(Zone::utc(), [Window::daily("16:00", "18:00")]).unwrap();
        let stats =
            Stats::new().clock(clock).targets(HealthTargets::recommended().peak_hours(peak));
        let layer = ObserveLayer::new().observer(stats.observer());
        let sim = Sim::builder()
            .tiny_images(true)
            .latency(tower_gemini_sim::Latency::fixed(Duration::from_secs(20)))
            .build();
        let stack =
            GeminiStack::new().retry_policy(tower_gemini::jittered_retry::RetryPolicy::uniform(
                1,
                tower_gemini::jittered_retry::Backoff::constant(Duration::from_secs(1)),
            ));
        let service = layer.layer(stack.raw(sim.service()));
        for call in 0..300_u32 {
            // Every tenth call fails.
            sim.push_script([if call % 10 == 0 { Fault::Overloaded } else { Fault::None }]);
            read(service.clone().oneshot(Scenario::new([]).request(TAG)).await).await;
            tokio::time::sleep(Duration::from_secs(580)).await;
        }
        stats.report()
    });
    assert_eq!((report.total.calls, report.total.failures), (300, 30));
    assert_eq!(report.recent_calls.len(), 50, "the last calls, and no more");
    assert_eq!(report.hours.len(), 48, "fifty hours have passed");
    assert_eq!(
        report.last_day.calls,
        report.hours.iter().rev().take(24).map(|hour| hour.window.calls).sum::<u64>()
    );
    assert_eq!(report.days.iter().map(|day| day.calls).sum::<u64>(), 300);
    for hour in &report.hours {
        let of_day = hour.window.start_unix_seconds / 3600 % 24;
        assert_eq!(hour.is_peak, Some((16..18).contains(&of_day)), "{of_day}");
        let health = hour.health;
        let failures = hour.window.failures;
        let expected = match (failures, hour.is_peak) {
            (0, _) => Health::Good,
            (_, Some(true)) => Health::Good,
            _ => Health::Strained,
        };
        assert_eq!(health, expected, "{failures} of {} failed at {of_day}", hour.window.calls);
    }
    // Half of the calls took 20 s: shown as at most a fifth more.
    let p50 = report.total.call_seconds_p50.unwrap();
    assert!((20.0..24.0).contains(&p50), "{p50}");
    assert_eq!(report.total.failure_rate, Some(0.1));
    assert_eq!(report.diagnosis.day.title, "no capacity");
}

#[test]
fn quotas_are_gauges_by_model_and_dimension() {
    let (_, _, metrics) = told(async || {
        let quota = QuotaGuardLayer::new(Limits::unlimited().rpm(4).rpd(10));
        let scenario = Scenario::new([]);
        let service = GeminiStack::new().quota(quota.clone()).raw(scenario.sim().service());
        for _ in 0..3 {
            read(service.clone().oneshot(scenario.request(TAG)).await).await.unwrap();
        }
        record_quota(tower_gemini::catalog::Catalog::builtin(), &quota.usages());
    });
    let used = |dimension: &str| {
        metrics.total("gemini_quota_used_ratio", &["model=gemini-3-pro-image", dimension])
    };
    assert_eq!(
        (used("dimension=rpm"), used("dimension=rpd"), used("dimension=tpm")),
        (0.75, 0.3, 0.0)
    );
}

/// Panics when it is called without having been asked whether it is ready, and each clone starts
/// unready.
#[derive(Default)]
struct Probe {
    ready: bool,
}

impl Clone for Probe {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl<B> Service<Request<B>> for Probe {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without having been made ready");
        ready(Ok(Response::new(Full::new(Bytes::new()))))
    }
}

async fn call<S: Service<Request<()>, Error: std::fmt::Debug>>(service: &mut S) {
    service.ready().await.unwrap().call(Request::new(())).await.unwrap();
}

#[test]
fn observe_calls_no_unready_service() {
    in_paused_time(async {
        let mut service = ObserveLayer::new().layer(Probe::default());
        let mut whole = ObserveLayer::new().whole_responses().layer(Probe::default());
        for _ in 0..2 {
            call(&mut service).await;
            call(&mut whole).await;
            call(&mut service.clone()).await;
        }
    });
}

#[test]
fn a_charge_of_a_call_is_the_worst_of_its_attempts() {
    let scenario = Scenario {
        allowance: 1,
        ..Scenario::new([Fault::ResetAfterGeneration, Fault::Overloaded, Fault::None])
    };
    let (_, events, _) = told(async || {
        let service = ObserveLayer::new().layer(scenario.stack().raw(scenario.sim().service()));
        read(service.oneshot(request(&scenario, TAG).0).await).await
    });
    assert_eq!(events.of("attempt")[0]["charge"], Charge::Maybe.as_str());
    assert_eq!(events.of("call")[0]["charge"], Charge::Charged.as_str());
    assert_eq!(events.of("call")[0]["attempt"], "3");
}

#[test]
fn errors_and_responses_pass_observe_unchanged() {
    let mut broken_bodies = 0;
    let asks = |fault| [Ask::Whole, Ask::Sse].map(|ask| (fault, ask));
    for (fault, ask) in Fault::all().iter().flat_map(asks) {
        let scenario = Scenario { ask, ..Scenario::new([fault.clone()]) };
        let run = |is_observed: bool| {
            in_paused_time(async {
                let sim = scenario.sim();
                let wire = Wire::new(sim.service());
                let stack = scenario.stack().raw(wire.clone());
                let report = match is_observed {
                    true => run_on(&scenario, &sim, &wire, ObserveLayer::new().layer(stack)).await,
                    false => run_on(&scenario, &sim, &wire, stack).await,
                };
                let told =
                    |error: &tower_gemini::Error| (error.to_string(), error.verdict().clone());
                match report.answer {
                    Ok((status, bytes, broken)) => Ok((status, bytes, broken.as_ref().map(told))),
                    Err(error) => Err(told(&error)),
                }
            })
        };
        let observed = run(true);
        assert_eq!(observed, run(false), "{fault:?} {ask:?}");
        broken_bodies += usize::from(observed.is_ok_and(|(_, _, broken)| broken.is_some()));
    }
    assert!(broken_bodies > 0, "no body broke off");
}
