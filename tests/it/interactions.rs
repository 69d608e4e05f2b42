//! Interactions whose responses are cut: what has an id is fetched and paid for once.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use serde_json::Value;
use tokio::time::Instant;
use tower::{ServiceExt, service_fn};
use tower_gemini::model_fallback::Chain;
use tower_gemini::trail::{FetchKind, Step};
use tower_gemini::verdict::{Charge, Outcome};
use tower_gemini::{
    AttemptTimeoutLayer, CallOptions, Error, GeminiStack, ResumeInteractionsLayer, Trail, WireBody,
};
use tower_gemini_sim::{Fault, Sim};

use crate::harness::{TAG, cases, in_paused_time};

const URL: &str = "https://gemini.example/v1beta/interactions";

fn ask(more: &str, trail: &Trail, allowance: u32) -> Request<Full<Bytes>> {
    let options = CallOptions::new().trail(trail.clone()).maybe_charged_resends(allowance);
    Request::post(URL)
        .header("x-goog-api-key", "AIzaSyA-sentinel-key-0123456789abcdefghij")
        .header("content-type", "application/json")
        .header("x-sim-call", TAG)
        .extension(options)
        .body(Full::from(format!(
            r#"{{"model":"gemini-3.1-flash-image","input":"a red apple"{more}}}"#
        )))
        .unwrap()
}

/// What came of one call.
#[derive(Debug)]
struct Story {
    body: Vec<u8>,
    error: Option<Error>,
    trail: Trail,
    sim: Sim,
}

impl Story {
    /// The error, or the events of a stream, or the only document, without their framing.
    fn content(&self) -> Vec<Value> {
        assert!(self.error.is_none(), "{:?}\n{}", self.error, self.trail);
        let text = std::str::from_utf8(&self.body).unwrap();
        if !text.starts_with("event:") {
            return vec![serde_json::from_str(text).unwrap()];
        }
        // A blank line ends the last event; the second half of its own end may be cut.
        assert!(["\n\r\n", "\n\r", "\n\n"].iter().any(|end| text.ends_with(end)), "{text}");
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    fn charge(&self) -> Charge {
        self.trail.attempts().last().unwrap().charge
    }
}

fn story_of(stack: GeminiStack, faults: Vec<Fault>, more: &str, allowance: u32) -> Story {
    in_paused_time(async {
        let sim = Sim::quick(faults);
        let trail = Trail::new();
        let (mut body, mut error) = (Vec::new(), None);
        match stack.raw(sim.service()).oneshot(ask(more, &trail, allowance)).await {
            Ok(response) => {
                let mut rest = response.into_body();
                while let Some(frame) = rest.frame().await {
                    match frame {
                        Ok(frame) => body.extend_from_slice(&frame.into_data().unwrap_or_default()),
                        Err(broken) => error = Some(broken),
                    }
                }
            }
            Err(failed) => error = Some(failed),
        }
        Story { body, error, trail, sim }
    })
}

fn story(faults: Vec<Fault>, more: &str) -> Story {
    story_of(GeminiStack::new(), faults, more, 0)
}

const FORMS: [&str; 2] = ["", r#","stream":true"#];

/// With an error, and without one.
fn cuts(at: usize) -> [Fault; 2] {
    [Fault::CutBody { at }, Fault::TruncatedBody { at }]
}

/// One past the closing quote of the id.
fn id_ends(body: &[u8]) -> usize {
    let text = std::str::from_utf8(body).unwrap();
    let begins = text.find("\"v1_").unwrap() + 1;
    begins + text[begins..].find('"').unwrap() + 1
}

#[test]
fn interactions_cut_at_every_byte_after_the_id_are_delivered_and_charged_once() {
    for form in FORMS {
        let uncut = story(vec![], form);
        let (content, id) = (uncut.content(), uncut.trail.interaction_id());
        assert!(id.as_deref().is_some_and(|id| id.starts_with("v1_")), "{}", uncut.trail);
        for at in id_ends(&uncut.body)..uncut.body.len() {
            for fault in cuts(at) {
                let story = story(vec![fault.clone()], form);
                assert_eq!(story.content(), content, "{form} {fault:?}\n{}", story.trail);
                assert_eq!(story.trail.interaction_id(), id, "{form} {fault:?}");
                let attempts = story.trail.attempts();
                assert_eq!(attempts.len(), 1, "{form} {fault:?}");
                assert_eq!(attempts[0].outcome, Some(Outcome::Image), "{form} {fault:?}");
                let ledger = story.sim.ledger();
                assert_eq!((ledger.sends(TAG), ledger.charges(TAG)), (1, 1), "{form} {fault:?}");
                assert_eq!(ledger.totals().charged, 1, "{form} {fault:?}");
            }
        }
    }
}

#[test]
fn an_interaction_cut_before_its_id_may_have_been_charged_and_is_not_sent_again() {
    for form in FORMS {
        let uncut = story(vec![], form);
        for at in 0..id_ends(&uncut.body) {
            for fault in cuts(at) {
                let story = story(vec![fault.clone()], form);
                assert_eq!(story.trail.interaction_id(), None, "{form} {fault:?}");
                assert_eq!(story.charge(), Charge::Maybe, "{form} {fault:?}\n{}", story.trail);
                assert_eq!(story.sim.requests(), 1, "{form} {fault:?}");
            }
        }
    }
}

#[test]
fn an_interaction_that_cannot_be_fetched_is_not_sent_again_whatever_is_allowed() {
    for form in FORMS {
        let at = id_ends(&story(vec![], form).body) + 200;
        let chain = || Chain::new(["gemini-3.1-flash-image", "gemini-3-pro-image"]);
        let stacks = [GeminiStack::new(), GeminiStack::new().fallback_to(chain())];
        for (fault, stack) in cuts(at)
            .into_iter()
            .flat_map(|fault| stacks.clone().map(|stack| (fault.clone(), stack)))
        {
            let faults = std::iter::once(fault.clone()).chain(vec![Fault::HighDemand; 9]).collect();
            let story = story_of(stack, faults, form, 5);
            let ledger = story.sim.ledger();
            assert_eq!((ledger.sends(TAG), ledger.charges(TAG)), (1, 1), "{form} {fault:?}");
            assert!(!story.charge().is_surely_free(), "{form} {fault:?}");
            // A truncated body that is short is judged before its head is released.
            let error = story.error.as_ref();
            let id = error.map_or(story.trail.interaction_id(), Error::interaction_id).unwrap();
            if let Some(error) = error {
                assert!(
                    error.to_string().ends_with(&format!("; it is interaction {id}")),
                    "{error}"
                );
            }
            let failed =
                |step: &&Step| matches!(step, Step::Fetched { status: Some(503), said: None, .. });
            assert_eq!(story.trail.steps().iter().filter(failed).count(), 5, "{}", story.trail);
        }
    }
}

#[test]
fn a_time_limit_ends_the_fetches_and_nothing_is_sent_again() {
    for form in FORMS {
        let at = id_ends(&story(vec![], form).body) + 200;
        let stack =
            GeminiStack::new().timeout(AttemptTimeoutLayer::new().limit(Duration::from_secs(60)));
        let faults = vec![Fault::CutBody { at }, Fault::NoAnswer { charged: false }];
        let story = story_of(stack, faults, form, 5);
        let error = story.error.as_ref().unwrap();
        assert!(error.is_timeout() && error.interaction_id().is_some(), "{form} {error}");
        assert!(!error.charge().is_surely_free(), "{form} {error}");
        assert_eq!(story.sim.ledger().sends(TAG), 1, "{form}");
    }
}

#[test]
fn a_client_that_leaves_ends_the_fetches_of_its_interaction() {
    for (form, half_seconds) in FORMS.into_iter().flat_map(|form| (1..28).map(move |n| (form, n))) {
        let at = id_ends(&story(vec![], form).body) + 200;
        in_paused_time(async {
            let faults = std::iter::once(Fault::CutBody { at }).chain(vec![Fault::HighDemand; 9]);
            let (sim, trail) = (Sim::quick(faults), Trail::new());
            let call = GeminiStack::new().raw(sim.service()).oneshot(ask(form, &trail, 5));
            let call = async { call.await?.into_body().collect().await };
            let time = Duration::from_millis(500) * half_seconds + Duration::from_millis(1);
            assert!(tokio::time::timeout(time, call).await.is_err(), "{form} {time:?}");
            let requests = sim.requests();
            // They come at once and after 1, 3, 7 and 15 seconds.
            let fetches = [0, 1, 3, 7].into_iter().filter(|second| 2 * second <= half_seconds);
            assert_eq!(requests, 1 + fetches.count(), "{form} {time:?}");
            tokio::time::sleep(Duration::from_secs(3600)).await;
            assert_eq!(sim.requests(), requests, "{form} {time:?}");
            assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
            // What was started goes on at the server, and can be fetched by hand.
            assert!(!trail.attempts()[0].charge.is_surely_free(), "{trail}");
            assert!(trail.interaction_id().is_some(), "{trail}");
        });
    }
}

#[test]
fn a_layer_that_is_off_fetches_nothing() {
    for form in FORMS {
        let at = id_ends(&story(vec![], form).body) + 200;
        let stack = GeminiStack::new().resume(ResumeInteractionsLayer::off());
        let story = story_of(stack, vec![Fault::CutBody { at }], form, 0);
        assert!(story.error.is_some() && story.sim.requests() == 1, "{form}");
    }
}

#[test]
fn what_is_larger_than_may_be_held_is_passed_on_as_it_comes() {
    for form in FORMS {
        let uncut = story(vec![], form);
        let stack = GeminiStack::new().resume(ResumeInteractionsLayer::new().max_held_bytes(100));
        let story = story_of(stack, vec![], form, 0);
        assert_eq!(story.body, uncut.body, "{form}");
    }
}

#[test]
fn a_background_interaction_is_passed_on_as_it_is_and_fetched_for_nothing() {
    let started = story_of(GeminiStack::new(), vec![], r#","background":true"#, 5);
    assert_eq!(started.sim.requests(), 1);
    let attempts = started.trail.attempts();
    assert_eq!((attempts[0].outcome, attempts[0].charge), (Some(Outcome::Answered), Charge::Maybe));
    assert_eq!(attempts[0].reason.as_deref(), Some("in_progress"));
    let id = started.trail.interaction_id().unwrap();
    in_paused_time(async {
        let trail = Trail::new();
        let mut request = ask("", &trail, 0);
        *request.method_mut() = http::Method::GET;
        *request.uri_mut() = format!("{URL}/{id}").parse().unwrap();
        let gemini = GeminiStack::new().raw(started.sim.service());
        let response = gemini.oneshot(request).await.unwrap();
        assert_eq!(response.body().verdict().outcome(), Outcome::Image);
        assert_eq!(trail.attempts()[0].charge, Charge::None);
    });
    assert_eq!(started.sim.totals().charged, 1);
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn an_interaction_whose_fetches_are_cut_too_is_delivered_and_charged_once(
        is_stream in any::<bool>(),
        cuts in proptest::collection::vec((0.0..1.0f64, any::<bool>()), 1..5),
    ) {
        let form = FORMS[usize::from(is_stream)];
        let uncut = story(vec![], form);
        let id = id_ends(&uncut.body);
        let faults = cuts.iter().enumerate().map(|(i, &(at, breaks))| {
            let least = if i == 0 { id } else { 0 };
            let at = least + ((uncut.body.len() - least) as f64 * at) as usize;
            if breaks { Fault::CutBody { at } } else { Fault::TruncatedBody { at } }
        });
        let story = story(faults.collect(), form);
        prop_assert_eq!(story.content(), uncut.content(), "{}", story.trail);
        let ledger = story.sim.ledger();
        prop_assert_eq!((ledger.sends(TAG), ledger.charges(TAG)), (1, 1));
    }
}

/// A server that gives these responses in order, each with its status and its type.
fn server(
    responses: &[(u16, &'static str, &str)],
) -> (impl tower_gemini::stage::WireClient, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let left: VecDeque<_> =
        responses.iter().map(|&(status, kind, body)| (status, kind, body.to_owned())).collect();
    let (left, seen) = (Arc::new(Mutex::new(left)), asked.clone());
    let client = service_fn(move |request: Request<WireBody>| {
        let length = request.headers().contains_key("content-type");
        seen.lock().unwrap().push(format!("{} {} {length}", request.method(), request.uri()));
        let (status, kind, body) = left.lock().unwrap().pop_front().unwrap();
        let response = Response::builder().status(status).header("content-type", kind);
        let response = response.body(Full::new(Bytes::from(body))).unwrap();
        std::future::ready(Ok::<_, io::Error>(response))
    });
    (client, asked)
}

async fn read(
    client: impl tower_gemini::stage::WireClient,
    more: &str,
) -> (String, Trail, Duration) {
    let (trail, started) = (Trail::new(), Instant::now());
    let response = GeminiStack::new().raw(client).oneshot(ask(more, &trail, 0)).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (String::from_utf8(body.to_vec()).unwrap(), trail, started.elapsed())
}

const JSON: &str = "application/json";
const SSE: &str = "text/event-stream";
const DONE: &str = r#"{"id":"v1_a","status":"completed","steps":[{"type":"model_output","content":[{"type":"image","mime_type":"image/png","data":"AQID"}]}]}"#;
const CREATED: &str = "data: {\"event_type\":\"interaction.created\",\"event_id\":\"e0\",\"interaction\":{\"id\":\"v1_a\",\"status\":\"in_progress\"}}\n\n";
const DELTA: &str = "data: {\"event_type\":\"step.delta\",\"event_id\":\"e1\",\"delta\":{\"type\":\"image\",\"mime_type\":\"image/png\",\"data\":\"AQID\"}}\n\n";
const COMPLETED: &str = "data: {\"event_type\":\"interaction.completed\",\"event_id\":\"e2\",\"interaction\":{\"id\":\"v1_a\",\"status\":\"completed\"}}\n\n";

#[tokio::test(start_paused = true)]
async fn an_interaction_that_goes_on_is_polled_with_growing_waits_until_it_has_ended() {
    for running in [r#"{"id":"v1_a","status":"queued"}"#, r#"{"id":"v1_a","status":"in_progress"}"#]
    {
        let mut responses = vec![(200, JSON, r#"{"id":"v1_a","sta"#)];
        responses.extend([(200, JSON, running); 6]);
        responses.push((200, JSON, DONE));
        let (client, asked) = server(&responses);
        let (body, trail, took) = read(client, "").await;
        assert_eq!(body, DONE);
        assert_eq!(took.as_secs(), 1 + 2 + 4 + 8 + 10 + 10);
        let asked = asked.lock().unwrap();
        assert_eq!(asked[1], format!("GET {URL}/v1_a false"));
        let polls = trail.steps().into_iter().filter(|step| {
            matches!(step, Step::Fetched { how: FetchKind::Poll, status: Some(200), .. })
        });
        assert_eq!(polls.count(), 7);
        assert!(trail.to_string().contains("polled the interaction: 200, completed"), "{trail}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_cannot_be_resumed_ends_with_the_whole_interaction() {
    for status in [400, 404] {
        let begun = format!("{CREATED}data: {{\"event_ty");
        let (client, asked) =
            server(&[(200, SSE, &begun), (status, JSON, "{}"), (200, JSON, DONE)]);
        let (body, _, _) = read(client, FORMS[1]).await;
        let end = format!(
            "event: interaction.completed\ndata: {{\"event_type\":\"interaction.completed\",\"interaction\":{DONE}}}\n\n"
        );
        assert_eq!(body, format!("{CREATED}{end}"));
        let asked = asked.lock().unwrap();
        assert_eq!(asked[1], format!("GET {URL}/v1_a?stream=true&last_event_id=e0 false"));
        assert_eq!(asked[2], format!("GET {URL}/v1_a false"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_begins_its_stream_again_makes_no_event_come_twice() {
    let all = format!("{CREATED}{DELTA}{COMPLETED}");
    let (client, _) = server(&[(200, SSE, &format!("{CREATED}{DELTA}")), (200, SSE, &all)]);
    assert_eq!(read(client, FORMS[1]).await.0, all);
}

#[tokio::test(start_paused = true)]
async fn an_error_that_ends_a_stream_is_passed_on_and_nothing_is_fetched() {
    let errors = [
        "{\n  \"error\": {\n    \"code\": 503\n  }\n}\n",
        "data: {\"event_type\":\"error\",\"error\":{\"code\":\"service_unavailable\"}}\n\n",
    ];
    for error in errors {
        let (client, asked) = server(&[(200, SSE, &format!("{CREATED}{DELTA}{error}"))]);
        let trail = Trail::new();
        let request = ask(FORMS[1], &trail, 5);
        let response = GeminiStack::new().raw(client).oneshot(request).await.unwrap();
        let broken = response.into_body().collect().await.unwrap_err();
        assert!(broken.is_mid_stream() && !broken.charge().is_surely_free(), "{broken}");
        assert_eq!(asked.lock().unwrap().len(), 1);
    }
}
