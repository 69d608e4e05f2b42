//! Reads and writes W3C trace context (`traceparent`, `tracestate`). Pure.

use std::str::FromStr;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use tower_gemini::redact::redact;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The longest state that is kept: what the standard asks everybody to pass on.
const MAX_STATE: usize = 512;

/// The caller's span; none where its header is missing, there twice, or not valid.
pub(super) fn parent(headers: &HeaderMap) -> Option<SpanContext> {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let (Some(parent), None) = (parents.next(), parents.next()) else { return None };
    let parent = parent.to_str().ok()?;
    let (known, more) = parent.split_at_checked(55)?;
    let [version, trace, span, flags] = known.split('-').collect::<Vec<_>>()[..] else {
        return None;
    };
    let is_hex = |field: &str, length: usize| {
        field.len() == length && field.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let fields = [(version, 2), (trace, 32), (span, 16), (flags, 2)];
    // A later version may have more fields.
    let is_whole = more.is_empty() || (version != "00" && more.starts_with('-'));
    if version == "ff" || !is_whole || !fields.iter().all(|(field, length)| is_hex(field, *length))
    {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let context = SpanContext::new(trace, span, flags, true, state(headers).unwrap_or_default());
    context.is_valid().then_some(context)
}

/// What other systems say of the trace. It is exported, so nothing that looks like a key is kept.
fn state(headers: &HeaderMap) -> Option<TraceState> {
    let states = headers.get_all(TRACESTATE).iter().map(|state| state.to_str());
    let state = states.collect::<Result<Vec<_>, _>>().ok()?.join(",");
    let is_kept = state.len() <= MAX_STATE && redact(&state) == state;
    is_kept.then(|| TraceState::from_str(&state).ok()).flatten()
}

/// Writes a span in place of the caller's.
pub(super) fn inject(headers: &mut HeaderMap, context: &SpanContext) {
    let flags = context.trace_flags() & TraceFlags::SAMPLED;
    let parent = format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id());
    let Ok(parent) = HeaderValue::from_str(&parent) else { return };
    headers.insert(TRACEPARENT, parent);
    headers.remove(TRACESTATE);
    let state = context.trace_state().header();
    if let Some(state) = HeaderValue::from_str(&state).ok().filter(|state| !state.is_empty()) {
        headers.insert(TRACESTATE, state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        let mut headers = HeaderMap::new();
        for (name, value) in all.iter().map(pair) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn a_context_that_is_read_is_written_as_it_was() {
        for (flags, states) in [("01", vec!["a=1", "b=2"]), ("00", vec![]), ("03", vec!["a=1"])] {
            let parent = format!("00-{TRACE}-{SPAN}-{flags}");
            let mut all = vec![("traceparent", parent.as_str())];
            all.extend(states.iter().map(|state| ("tracestate", *state)));
            let mut headers = headers(&all);
            let context = super::parent(&headers).unwrap();
            assert_eq!(context.is_sampled(), flags != "00");
            inject(&mut headers, &context);
            let sampled = if flags == "00" { "00" } else { "01" };
            assert_eq!(headers["traceparent"], format!("00-{TRACE}-{SPAN}-{sampled}"));
            let written: Vec<_> = headers.get_all("tracestate").iter().collect();
            let expected = Some(states.join(",")).filter(|state| !state.is_empty());
            assert_eq!(written, expected.iter().collect::<Vec<_>>());
        }
        // A version to come.
        let later = format!("01-{TRACE}-{SPAN}-01-more");
        assert!(super::parent(&headers(&[("traceparent", &later)])).is_some());
    }

    #[test]
    fn a_context_that_is_not_valid_is_none() {
        let valid = format!("00-{TRACE}-{SPAN}-01");
        let upper = TRACE.to_uppercase();
        for wrong in [
            "",
            "00",
            &format!("ff-{TRACE}-{SPAN}-01"),
            &format!("+0-{TRACE}-{SPAN}-01"),
            &format!("00-{upper}-{SPAN}-01"),
            &format!("00-{}-{SPAN}-01", "0".repeat(32)),
            &format!("00-{TRACE}-{}-01", "0".repeat(16)),
            &format!("00-{TRACE}-{SPAN}-1"),
            &format!("00-{TRACE}-{SPAN}-0g"),
            &format!("00-{TRACE}{SPAN}--01"),
            &format!("{valid}-"),
            &format!("{valid}-more"),
            &format!("01-{TRACE}-{SPAN}-01more"),
        ] {
            assert!(parent(&headers(&[("traceparent", wrong)])).is_none(), "{wrong:?}");
        }
        let twice = [("traceparent", valid.as_str()), ("traceparent", valid.as_str())];
        assert!(parent(&headers(&twice)).is_none());
        assert!(parent(&headers(&[("tracestate", "a=1")])).is_none());
    }

    #[test]
    fn a_state_that_is_too_long_or_shows_a_key_is_dropped_and_its_parent_kept() {
        let valid = format!("00-{TRACE}-{SPAN}-01");
        let long = format!("a={}", "x".repeat(MAX_STATE));
        let key = "a=AIzaSyA-sentinel-key-0123456789abcdefghij";
        for state in [&long, key, "no pairs"] {
            let context = parent(&headers(&[("traceparent", &valid), ("tracestate", state)]));
            assert_eq!(context.unwrap().trace_state().header(), "", "{state}");
        }
    }
}
