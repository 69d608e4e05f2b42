//! Calls through the gateway, as a collector sees them.

#![cfg(feature = "otel")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test that cannot go on says where"
)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tower::ServiceExt;
use tower_gemini_gateway::{Config, Gateway};
use tower_gemini_sim::{Fault, Sim, serve};

const KEY: &str = "AIzaSyA-sentinel-key-0123456789abcdefghij";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

type Requests = Arc<Mutex<Vec<(String, HeaderMap, Bytes)>>>;

/// A server that records requests and answers them with `answer`.
async fn recorded(
    answer: impl Fn(usize) -> Response<Body> + Clone + Send + Sync + 'static,
) -> (String, Requests) {
    let requests = Requests::default();
    let seen = requests.clone();
    let app = Router::new().fallback(move |request: Request<Body>| {
        let (seen, answer) = (seen.clone(), answer.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let mut seen = seen.lock().unwrap();
            seen.push((parts.uri.path().to_owned(), parts.headers, body));
            answer(seen.len())
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, requests)
}

/// An upstream without capacity at first.
fn image_after_503(n: usize) -> Response<Body> {
    image_with_id(n, "resp-1")
}

fn image_with_id(n: usize, id: &str) -> Response<Body> {
    if n == 1 {
        let body =
            r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
        return Response::builder()
            .status(503)
            .header("retry-after", "0")
            .body(Body::from(body))
            .unwrap();
    }
    let body = r#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png",
        "data":"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="}}]},
        "finishReason":"STOP"}],"modelVersion":"gemini-3-pro-image-001","responseId":"resp-1",
        "usageMetadata":{"promptTokenCount":12,"candidatesTokenCount":1120,"thoughtsTokenCount":80,"totalTokenCount":1212}}"#;
    let body = body.replace("resp-1", id);
    Response::builder().header("content-type", "application/json").body(Body::from(body)).unwrap()
}

async fn gateway(upstream: &str, otel: &str) -> Gateway {
    let config = format!(
        "[[upstream]]\nname = \"relay\"\nkind = \"gemini\"\nbase_url = \"{upstream}\"\n[retry]\n\
         policy = \"openai_python\"\n[otel]\n{otel}"
    );
    Gateway::new(&Config::parse(&config, "gateway.toml").unwrap()).await.unwrap()
}

async fn post(gateway: &Gateway, path: &str, headers: &[(&str, &str)]) -> StatusCode {
    let request = Request::post(path).header("x-goog-api-key", KEY);
    let request =
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let body = match path.contains("openai") {
        true => {
            r#"{"model":"gemini-3-pro-image","messages":[{"role":"user","content":"a SECRET apple"}]}"#
        }
        false => r#"{"contents":[{"parts":[{"text":"a SECRET apple"}]}]}"#,
    };
    let response = gateway.router().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
    let status = response.status();
    response.into_body().collect().await.unwrap();
    status
}

const GENERATE: &str = "/v1beta/models/gemini-3-pro-image:generateContent";

/// A span with its attributes as text.
struct Seen {
    span: Span,
    attributes: BTreeMap<String, String>,
}

fn text(value: &AnyValue) -> String {
    match value.value.as_ref().unwrap() {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::ArrayValue(all) => all.values.iter().map(text).collect::<Vec<_>>().join("+"),
        other => panic!("{other:?}"),
    }
}

fn attributes(of: &[KeyValue]) -> BTreeMap<String, String> {
    of.iter().map(|one| (one.key.clone(), text(one.value.as_ref().unwrap()))).collect()
}

/// The spans that a collector got, in the order of their beginnings.
fn spans(exported: &Requests) -> Vec<Seen> {
    let exported = exported.lock().unwrap();
    let traces = exported.iter().filter(|(path, ..)| path == "/v1/traces");
    let mut spans: Vec<_> = traces
        .flat_map(|(_, headers, body)| {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            ExportTraceServiceRequest::decode(body.clone()).unwrap().resource_spans
        })
        .flat_map(|resource| {
            let named = attributes(&resource.resource.unwrap().attributes);
            assert_eq!(named["service.name"], "gemini-gateway");
            resource.scope_spans
        })
        .flat_map(|scope| scope.spans)
        .map(|span| Seen { attributes: attributes(&span.attributes), span })
        .collect();
    spans.sort_by_key(|seen| seen.span.start_time_unix_nano);
    spans
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[track_caller]
fn has(seen: &Seen, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        let found = seen.attributes.get(*key).map(String::as_str);
        assert_eq!(found, Some(*value), "{key} of {:?}", seen.attributes);
    }
}

fn accept(_: usize) -> Response<Body> {
    Response::default()
}

#[tokio::test]
async fn a_call_with_a_retry_is_a_span_with_two_attempts_below_its_callers() {
    let (upstream, sent) = recorded(image_after_503).await;
    let (collector, exported) = recorded(accept).await;
    let gateway = gateway(&upstream, &format!("endpoint = \"{collector}/\"\n")).await;
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let headers = [("traceparent", parent.as_str()), ("tracestate", "a=1")];
    assert_eq!(post(&gateway, GENERATE, &headers).await, 200);
    assert!(gateway.finish(std::time::Duration::ZERO).await);

    let spans = spans(&exported);
    let [call, first, second] = &spans[..] else { panic!("{} spans", spans.len()) };
    assert_eq!(call.span.name, "generate_content gemini-3-pro-image");
    assert_eq!(
        (hex(&call.span.trace_id), hex(&call.span.parent_span_id)),
        (TRACE.into(), CALLER.into())
    );
    let port = upstream.rsplit(':').next().unwrap();
    has(
        call,
        &[
            ("gen_ai.operation.name", "generate_content"),
            ("gen_ai.provider.name", "gcp.gemini"),
            ("gen_ai.request.model", "gemini-3-pro-image"),
            ("gen_ai.response.model", "gemini-3-pro-image-001"),
            ("gen_ai.response.id", "resp-1"),
            ("gen_ai.response.finish_reasons", "STOP"),
            ("gen_ai.output.type", "image"),
            ("gen_ai.usage.input_tokens", "12"),
            ("gen_ai.usage.output_tokens", "1200"),
            ("server.address", "127.0.0.1"),
            ("server.port", port),
            ("tower_gemini.attempts", "2"),
            ("tower_gemini.charge", "charged"),
            ("tower_gemini.outcome", "success"),
            ("tower_gemini.upstream", "127.0.0.1"),
        ],
    );
    let cost =
        |bound: &str| call.attributes[&format!("tower_gemini.cost_{bound}_microusd")].clone();
    assert!(cost("at_least").parse::<u64>().unwrap() > 100_000);
    assert!(cost("at_most").parse::<u64>().unwrap() >= cost("at_least").parse().unwrap());
    assert!(!call.attributes.contains_key("error.type"));
    let events: Vec<_> = call.span.events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(events, ["tower_gemini.waited"]);

    for (n, attempt) in [first, second].into_iter().enumerate() {
        assert_eq!(attempt.span.name, "attempt");
        assert_eq!(attempt.span.trace_id, call.span.trace_id);
        assert_eq!(attempt.span.parent_span_id, call.span.span_id);
        has(
            attempt,
            &[
                ("tower_gemini.attempt", &(n + 1).to_string()),
                ("gen_ai.request.model", "gemini-3-pro-image"),
                ("gen_ai.provider.name", "gcp.gemini"),
                ("server.port", port),
            ],
        );
        // The upstream's parent is the attempt.
        let (_, headers, _) = &sent.lock().unwrap()[n];
        let parent = format!("00-{TRACE}-{}-01", hex(&attempt.span.span_id));
        assert_eq!(headers["traceparent"], parent);
        assert_eq!(headers["tracestate"], "a=1");
    }
    has(
        first,
        &[
            ("tower_gemini.attempt_kind", "first"),
            ("http.response.status_code", "503"),
            ("error.type", "overloaded"),
            ("tower_gemini.charge", "none"),
        ],
    );
    has(
        second,
        &[
            ("tower_gemini.attempt_kind", "retry"),
            ("http.response.status_code", "200"),
            ("tower_gemini.charge", "charged"),
            ("gen_ai.response.id", "resp-1"),
        ],
    );
    assert!(!second.attributes.contains_key("error.type"));

    let exported = exported.lock().unwrap();
    let metrics = exported.iter().find(|(path, ..)| path == "/v1/metrics").unwrap();
    let metrics = ExportMetricsServiceRequest::decode(metrics.2.clone()).unwrap();
    let scopes = metrics.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
    let mut counted = BTreeMap::new();
    for metric in scopes.flat_map(|scope| &scope.metrics) {
        let Some(Data::Histogram(histogram)) = &metric.data else { panic!("{metric:?}") };
        for point in &histogram.data_points {
            let labels = attributes(&point.attributes);
            assert_eq!(labels["gen_ai.request.model"], "gemini-3-pro-image");
            assert_eq!(labels["gen_ai.provider.name"], "gcp.gemini");
            let kind = labels.get("gen_ai.token.type").cloned().unwrap_or_default();
            counted.insert((metric.name.clone(), kind), (point.count, point.sum.unwrap()));
        }
    }
    let tokens = |kind: &str| counted[&("gen_ai.client.token.usage".to_owned(), kind.to_owned())];
    assert_eq!((tokens("input"), tokens("output")), ((1, 12.0), (1, 1200.0)));
    assert_eq!(counted[&("gen_ai.client.operation.duration".to_owned(), String::new())].0, 1);
}

#[tokio::test]
async fn no_prompt_and_no_secret_is_exported_and_the_collector_gets_its_headers() {
    let (upstream, _) = recorded(|n| image_with_id(n, KEY)).await;
    let (collector, exported) = recorded(accept).await;
    let file = std::env::temp_dir().join(format!("otel-headers-{}", std::process::id()));
    std::fs::write(&file, "authorization=Bearer%20collector-token,x-team=a\n").unwrap();
    let otel = format!("endpoint = \"{collector}\"\nheaders_file = '{}'\n", file.display());
    let gateway = gateway(&upstream, &otel).await;
    // A key where a model stands, and one in what other systems say of the trace.
    let path = format!("/v1beta/models/{KEY}:generateContent");
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let state = format!("a={KEY}");
    let headers = [("traceparent", parent.as_str()), ("tracestate", state.as_str())];
    post(&gateway, &path, &headers).await;
    post(&gateway, &format!("{GENERATE}?key={KEY}"), &[]).await;
    post(&gateway, "/v1beta/openai/chat/completions", &[]).await;
    gateway.finish(std::time::Duration::ZERO).await;
    assert!(spans(&exported).len() >= 6, "{}", spans(&exported).len());
    for (_, headers, body) in exported.lock().unwrap().iter() {
        assert_eq!(
            (&headers["authorization"], &headers["x-team"]),
            (&"Bearer collector-token".parse().unwrap(), &"a".parse().unwrap())
        );
        let body = String::from_utf8_lossy(body);
        for secret in ["SECRET", "sentinel", "collector-token", "iVBOR"] {
            assert!(!body.contains(secret), "{secret} in {body}");
        }
    }
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn a_call_that_its_caller_does_not_trace_is_not_exported_and_stays_in_its_trace() {
    let (upstream, sent) = recorded(image_after_503).await;
    let (collector, exported) = recorded(accept).await;
    let gateway = gateway(&upstream, &format!("endpoint = \"{collector}\"\n")).await;
    let parent = format!("00-{TRACE}-{CALLER}-00");
    assert_eq!(post(&gateway, GENERATE, &[("traceparent", &parent)]).await, 200);
    gateway.finish(std::time::Duration::ZERO).await;
    assert!(spans(&exported).is_empty());
    let sent = sent.lock().unwrap();
    let parents: Vec<_> = sent.iter().map(|one| one.1["traceparent"].to_str().unwrap()).collect();
    let is_own = |parent: &&str| {
        parent.starts_with(&format!("00-{TRACE}-"))
            && parent.ends_with("-00")
            && !parent.contains(CALLER)
    };
    assert_eq!(parents.iter().filter(|parent| is_own(parent)).count(), 2, "{parents:?}");
}

#[tokio::test]
async fn an_invalid_traceparent_is_ignored_and_replaced() {
    let (upstream, sent) = recorded(image_after_503).await;
    let (collector, exported) = recorded(accept).await;
    let gateway = gateway(&upstream, &format!("endpoint = \"{collector}\"\n")).await;
    let invalid = [("traceparent", "00-zz-1-01"), ("tracestate", "a=1")];
    assert_eq!(post(&gateway, GENERATE, &invalid).await, 200);
    gateway.finish(std::time::Duration::ZERO).await;
    let spans = spans(&exported);
    assert!(spans[0].span.parent_span_id.is_empty());
    let sent = sent.lock().unwrap();
    for ((_, headers, _), attempt) in sent.iter().zip(&spans[1..]) {
        let (trace, span) = (hex(&attempt.span.trace_id), hex(&attempt.span.span_id));
        assert_eq!(headers["traceparent"], format!("00-{trace}-{span}-01"));
        assert!(!headers.contains_key("tracestate"));
    }
}

#[tokio::test]
async fn without_an_endpoint_trace_context_passes_unchanged_through_every_door() {
    let (upstream, sent) = recorded(image_after_503).await;
    let gateway = gateway(&upstream, "").await;
    let headers = [("traceparent", "00-any-thing"), ("tracestate", "a=1")];
    for path in [
        GENERATE,
        "/v1beta/openai/chat/completions",
        "/v1beta/models/gemini-3-pro-image:countTokens",
    ] {
        post(&gateway, path, &headers).await;
    }
    let sent = sent.lock().unwrap();
    assert!(sent.len() >= 4);
    for (path, headers, _) in sent.iter() {
        assert_eq!(headers["traceparent"], "00-any-thing", "{path}");
        assert_eq!(headers["tracestate"], "a=1", "{path}");
    }
}

#[tokio::test]
async fn a_collector_that_refuses_or_is_gone_costs_spans_and_no_call() {
    let refusing = |_| Response::builder().status(403).body(Body::empty()).unwrap();
    let (refusing, _) = recorded(refusing).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for collector in [refusing, format!("http://{free}")] {
        let (upstream, _) = recorded(image_after_503).await;
        let gateway = gateway(&upstream, &format!("endpoint = \"{collector}\"\n")).await;
        assert_eq!(post(&gateway, GENERATE, &[]).await, 200);
        assert!(gateway.finish(std::time::Duration::ZERO).await, "nothing paid for is lost");
    }
}

#[tokio::test]
async fn each_of_several_images_is_a_call_of_its_own_below_one_parent() {
    let sim = Sim::quick([Fault::Overloaded]);
    let upstream = serve(sim, ([127, 0, 0, 1], 0).into()).await.unwrap();
    let (collector, exported) = recorded(accept).await;
    let gateway = gateway(&upstream.url(), &format!("endpoint = \"{collector}\"\n")).await;
    let request = Request::post("/v1beta/openai/images/generations")
        .header("x-goog-api-key", KEY)
        .header("traceparent", format!("00-{TRACE}-{CALLER}-01"))
        .body(Body::from(r#"{"model":"gemini-3-pro-image","prompt":"a SECRET apple","n":2}"#))
        .unwrap();
    let response = gateway.router().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap();
    gateway.finish(std::time::Duration::ZERO).await;
    let spans = spans(&exported);
    let calls: Vec<_> =
        spans.iter().filter(|seen| hex(&seen.span.parent_span_id) == CALLER).collect();
    assert_eq!((calls.len(), spans.len()), (2, 5));
}
