//! The span of a call and those of its attempts, of what an observer of the call sees.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::Uri;
use opentelemetry::trace::{
    Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _,
};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::{SdkTracer, Span};
use tower_gemini::call::{Call, ImageSize, ModelId};
use tower_gemini::catalog::Catalog;
use tower_gemini::cost::Cost;
use tower_gemini::observe::{
    CallEnd, CallInfo, CallObserver, ObservedStep, SendKind, attempts, charge_of, cost_of,
    model_label,
};
use tower_gemini::redact::redact;
use tower_gemini::target::{UpstreamId, UpstreamKind};
use tower_gemini::trail::{Attempt, Step};
use tower_gemini::verdict::Outcome;

use super::pipeline::Pipeline;
use crate::upstream::Upstream;

/// The only operation of the conventions that these calls are.
const OPERATION: &str = "generate_content";

/// The longest model name that is exported: as long as the trail keeps one.
const MAX_MODEL: usize = 120;

/// What a request asks for, in its extensions.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    model: Option<String>,
    /// The model as metrics count it: callers cannot create series.
    label: String,
    wants_image: bool,
    /// Upstreams that are no Gemini API.
    vendors: Arc<[UpstreamId]>,
}

impl Asked {
    pub(super) fn new(call: &Call, catalog: &Catalog, upstreams: &[Upstream]) -> Self {
        let vendors = upstreams.iter().filter(|one| one.images_api().is_some());
        let is_shown = |c: &char| !c.is_control();
        let shown = |model: &ModelId| {
            redact(model.as_str()).chars().filter(is_shown).take(MAX_MODEL).collect()
        };
        Self {
            model: call.model.as_ref().map(shown),
            label: model_label(catalog, call.model.as_ref()).to_owned(),
            wants_image: call.wants_image,
            vendors: vendors.map(|one| one.id().clone()).collect(),
        }
    }

    /// `gen_ai.provider.name` of an upstream.
    fn provider(&self, upstream: &UpstreamId) -> &'static str {
        match upstream.kind {
            _ if self.vendors.contains(upstream) => "openai",
            UpstreamKind::VertexAi | UpstreamKind::VertexExpress => "gcp.vertex_ai",
            _ => "gcp.gemini",
        }
    }
}

/// The span of one call, and those of its attempts.
#[derive(Debug)]
pub(super) struct CallSpan {
    pipeline: Arc<Pipeline>,
    asked: Asked,
    spans: Mutex<Spans>,
}

#[derive(Debug)]
struct Spans {
    call: Span,
    /// Attempts whose ends are not known, in order.
    open: VecDeque<Span>,
    /// The last attempt that began.
    last: Option<SpanContext>,
}

impl CallSpan {
    pub(super) fn start(
        pipeline: Arc<Pipeline>,
        asked: Asked,
        parent: Option<SpanContext>,
    ) -> Self {
        let name = match &asked.model {
            Some(model) => format!("{OPERATION} {model}"),
            None => OPERATION.to_owned(),
        };
        let mut known = vec![KeyValue::new("gen_ai.operation.name", OPERATION)];
        known.extend(asked.model.clone().map(|model| KeyValue::new("gen_ai.request.model", model)));
        if asked.wants_image {
            known.push(KeyValue::new("gen_ai.output.type", "image"));
        }
        let call = child(&pipeline.tracer, name, parent, known);
        let spans = Mutex::new(Spans { call, open: VecDeque::new(), last: None });
        Self { pipeline, asked, spans }
    }

    fn spans(&self) -> MutexGuard<'_, Spans> {
        // What a panic leaves behind is a span without some attributes.
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The span of the last attempt that began.
    pub(super) fn attempt(&self) -> Option<SpanContext> {
        self.spans().last.clone().filter(SpanContext::is_valid)
    }

    /// Where something was sent, and whose it is.
    fn server(&self, attempt: &Attempt) -> Vec<KeyValue> {
        let Some(upstream) = &attempt.upstream else { return Vec::new() };
        let mut server = vec![KeyValue::new("gen_ai.provider.name", self.asked.provider(upstream))];
        let url: Option<Uri> = upstream.base_url.parse().ok();
        if let Some(host) = url.as_ref().and_then(Uri::host) {
            let usual = if upstream.base_url.starts_with("http:") { 80 } else { 443 };
            let port = url.as_ref().and_then(Uri::port_u16).unwrap_or(usual);
            server.push(KeyValue::new("server.address", host.to_owned()));
            server.push(KeyValue::new("server.port", i64::from(port)));
        }
        server
    }
}

/// Begins a span.
fn child(
    tracer: &SdkTracer,
    name: impl Into<Cow<'static, str>>,
    parent: Option<SpanContext>,
    known: Vec<KeyValue>,
) -> Span {
    let parent =
        parent.map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent));
    let builder = tracer.span_builder(name).with_kind(SpanKind::Client).with_attributes(known);
    builder.start_with_context(tracer, &parent)
}

/// Attributes with values that are numbers of ours.
fn number(key: &'static str, value: u64) -> KeyValue {
    KeyValue::new(key, i64::try_from(value).unwrap_or(i64::MAX))
}

fn texts(all: impl IntoIterator<Item = String>) -> Value {
    Value::Array(Array::String(all.into_iter().map(StringValue::from).collect()))
}

fn cost(of: Cost) -> impl Iterator<Item = KeyValue> {
    let at_least = number("tower_gemini.cost_at_least_microusd", of.at_least_microusd);
    let at_most = of.at_most_microusd;
    let at_most = at_most.map(|most| number("tower_gemini.cost_at_most_microusd", most));
    [at_least].into_iter().chain(at_most)
}

/// What a response says of itself, as the conventions name it.
fn response(attempt: &Attempt) -> impl Iterator<Item = KeyValue> {
    let said = attempt.response.as_deref().cloned().unwrap_or_default();
    let reasons = said.finish_reason.map(|reason| texts([reason]));
    [
        said.model.map(|model| KeyValue::new("gen_ai.response.model", model)),
        said.id.map(|id| KeyValue::new("gen_ai.response.id", id)),
        reasons.map(|reasons| KeyValue::new("gen_ai.response.finish_reasons", reasons)),
    ]
    .into_iter()
    .flatten()
}

/// The fields of a step as they are in a trail's JSON, for the event of that name.
fn event(step: &Step) -> Option<(String, Vec<KeyValue>)> {
    let serde_json::Value::Object(mut fields) = serde_json::to_value(step).ok()? else {
        return None;
    };
    let name = format!("tower_gemini.{}", fields.remove("step")?.as_str()?);
    let attribute = |(key, value): (String, serde_json::Value)| {
        let value = match value {
            serde_json::Value::String(text) => Value::from(text),
            serde_json::Value::Number(number) => number.as_i64()?.into(),
            other => other.to_string().into(),
        };
        Some(KeyValue::new(format!("tower_gemini.{key}"), value))
    };
    Some((name, fields.into_iter().filter_map(attribute).collect()))
}

/// What a call gave up, by a decision of ours or since the response names another model.
fn degradation(steps: &[Step]) -> Option<KeyValue> {
    let decided = steps.iter().rev().find_map(|step| match step {
        Step::Degraded { given_up } => Some(given_up.as_slice()),
        _ => None,
    });
    let rerouted = attempts(steps).next_back().and_then(Attempt::rerouting);
    let given_up: Vec<_> =
        decided.unwrap_or_default().iter().chain(&rerouted).map(ToString::to_string).collect();
    (!given_up.is_empty()).then(|| KeyValue::new("tower_gemini.degradation", texts(given_up)))
}

fn fail(span: &mut Span, outcome: &'static str) {
    span.set_attribute(KeyValue::new("error.type", outcome));
    span.set_status(Status::error(outcome));
}

impl CallObserver for CallSpan {
    fn on_start(&self, call: &CallInfo) {
        // As its log lines name it.
        self.spans().call.set_attribute(KeyValue::new("tower_gemini.call", call.id.to_string()));
    }

    fn on_send(&self, _: &CallInfo, kind: SendKind) {
        let kind = match kind {
            SendKind::First => "first",
            SendKind::Retry => "retry",
            SendKind::Fallback => "fallback",
        };
        let mut spans = self.spans();
        let parent = Some(spans.call.span_context().clone());
        let known = vec![KeyValue::new("tower_gemini.attempt_kind", kind)];
        let span = child(&self.pipeline.tracer, "attempt", parent, known);
        spans.last = Some(span.span_context().clone());
        spans.open.push_back(span);
    }

    fn on_step(&self, _: &CallInfo, observed: &ObservedStep<'_>) {
        let Step::Attempt(attempt) = observed.step else {
            if let Some((name, fields)) = event(observed.step) {
                self.spans().call.add_event(name, fields);
            }
            return;
        };
        let Some(mut span) = self.spans().open.pop_front() else { return };
        let outcome = attempt.outcome.unwrap_or(Outcome::Interrupted);
        span.set_attributes(self.server(attempt));
        span.set_attributes(response(attempt));
        span.set_attributes(cost(attempt.cost));
        let model = attempt.model.as_ref().map(|model| model.to_string());
        let upstream = attempt.upstream.as_ref().map(|upstream| upstream.name.clone());
        let text = |key, value: Option<String>| value.map(|value| KeyValue::new(key, value));
        let size = attempt.size.map(|size| ImageSize::as_str(size).to_owned());
        let texts = [
            text("gen_ai.request.model", model),
            text("tower_gemini.upstream", upstream),
            text("tower_gemini.size", size),
            text("tower_gemini.reason", attempt.reason.clone()),
        ];
        span.set_attributes(texts.into_iter().flatten());
        span.set_attribute(KeyValue::new("tower_gemini.outcome", outcome.as_str()));
        span.set_attribute(KeyValue::new("tower_gemini.charge", attempt.charge.as_str()));
        span.set_attribute(KeyValue::new("tower_gemini.quota", attempt.quota.as_str()));
        span.set_attribute(number("tower_gemini.attempt", u64::from(observed.attempt)));
        let status = attempt.status.map(|status| ("http.response.status_code", status.into()));
        let images = attempt.images.map(|images| ("tower_gemini.images", images.into()));
        let numbers = [status, images].into_iter().flatten();
        span.set_attributes(numbers.map(|(key, value)| number(key, value)));
        if !outcome.is_success() {
            fail(&mut span, outcome.as_str());
        }
        span.end();
    }

    fn on_end(&self, _: &CallInfo, end: &CallEnd<'_>) {
        let steps = end.steps();
        let last = attempts(&steps).next_back();
        let server = last.map(|last| self.server(last)).unwrap_or_default();
        let failure = end.outcome.is_failure().then_some(end.outcome.as_str());
        // Of all attempts: each of them is billed.
        let said = || attempts(&steps).filter_map(|attempt| attempt.response.as_deref());
        let sum = |all: &mut dyn Iterator<Item = u64>| all.reduce(u64::saturating_add);
        let input = sum(&mut said().filter_map(|said| said.input_tokens));
        let output = sum(&mut said().filter_map(|said| said.output_tokens));
        let mut labels = vec![
            KeyValue::new("gen_ai.operation.name", OPERATION),
            KeyValue::new("gen_ai.request.model", self.asked.label.clone()),
        ];
        labels.extend(server.iter().cloned());
        for (kind, tokens) in [("input", input), ("output", output)] {
            let Some(tokens) = tokens else { continue };
            labels.push(KeyValue::new("gen_ai.token.type", kind));
            self.pipeline.tokens.record(tokens, &labels);
            labels.pop();
        }
        labels.extend(failure.map(|outcome| KeyValue::new("error.type", outcome)));
        self.pipeline.duration.record(end.took.as_secs_f64(), &labels);

        let mut spans = self.spans();
        let span = &mut spans.call;
        span.set_attributes(server);
        span.set_attributes(last.into_iter().flat_map(response));
        span.set_attributes(input.map(|tokens| number("gen_ai.usage.input_tokens", tokens)));
        span.set_attributes(output.map(|tokens| number("gen_ai.usage.output_tokens", tokens)));
        span.set_attributes(cost(cost_of(&steps)));
        span.set_attributes(degradation(&steps));
        let upstream = last.and_then(|last| last.upstream.as_ref());
        let upstream = upstream.map(|one| KeyValue::new("tower_gemini.upstream", one.name.clone()));
        span.set_attributes(upstream);
        span.set_attribute(KeyValue::new("tower_gemini.charge", charge_of(&steps).as_str()));
        span.set_attribute(KeyValue::new("tower_gemini.outcome", end.outcome.as_str()));
        span.set_attribute(number("tower_gemini.attempts", attempts(&steps).count() as u64));
        if let Some(outcome) = failure {
            fail(span, outcome);
        }
        span.end();
    }
}

#[cfg(test)]
mod tests {
    use tower_gemini::Trail;

    use super::*;

    // An image of another model looked like what was asked for.
    #[test]
    fn a_response_that_names_another_model_is_a_degradation() {
        let trail = Trail::new();
        let attempt = trail.begin_attempt(Some(ModelId::new("gemini-3-pro-image")), None);
        assert_eq!(degradation(&trail.steps()), None);
        attempt.served_by(Some(ModelId::new("gemini-nano-banana-2.1")), None);
        let said = degradation(&trail.steps()).unwrap();
        assert_eq!(
            said.value.to_string(),
            "[\"model gemini-3-pro-image → gemini-nano-banana-2.1\"]"
        );
    }
}
