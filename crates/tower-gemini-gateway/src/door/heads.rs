//! Which headers and parameters pass. Pure.

use http::request::Parts;
use http::{HeaderMap, HeaderName};

/// Headers that make another method of a request, for servers that heed them.
const METHOD_OVERRIDES: [&str; 3] =
    ["x-http-method-override", "x-http-method", "x-method-override"];
/// The same as parameters: Google's own and those of common frameworks.
const OVERRIDE_PARAMETERS: [&str; 4] = ["$httpmethod", "httpmethod", "_method", "x-http-method"];
/// Parameters that bill another project.
const BILLING_PARAMETERS: [&str; 2] = ["$userproject", "userproject"];

/// What is passed on behind a key of the gateway's own: what describes the body, what the API reads
/// besides the credential, and what the gateway itself reads. Everything else may name another
/// project, another user or another route.
const PASSED: [&str; 22] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "api-revision",
    "content-disposition",
    "content-length",
    "content-type",
    "idempotency-key",
    "if-match",
    "if-none-match",
    "if-range",
    "last-event-id",
    "range",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-gemini-deferrable-for",
    "x-gemini-maybe-charged-resends",
    "x-goog-api-client",
    "x-server-timeout",
    "x-sim-call",
    "x-goog-api-version",
];
/// Of uploads, of what OpenAI's clients state, and of the service tier on Vertex AI.
const PASSED_BEGINNINGS: [&str; 3] = ["x-goog-upload-", "x-stainless-", "x-vertex-ai-llm-"];

/// What makes another method of the request, where something does.
pub(crate) fn method_override(parts: &Parts) -> Option<&'static str> {
    let header = METHOD_OVERRIDES.into_iter().find(|name| parts.headers.contains_key(*name));
    header.or_else(|| has_parameter(parts, &OVERRIDE_PARAMETERS))
}

/// What names another project to bill, where something does.
pub(crate) fn billing_parameter(parts: &Parts) -> Option<&'static str> {
    has_parameter(parts, &BILLING_PARAMETERS)
}

fn has_parameter(parts: &Parts, names: &[&'static str]) -> Option<&'static str> {
    parts.uri.query()?.split('&').find_map(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
        names.iter().copied().find(|known| name.eq_ignore_ascii_case(known))
    })
}

/// Leaves the headers that pass.
pub(crate) fn keep_allowed(headers: &mut HeaderMap) {
    let passes = |name: &HeaderName| {
        let name = name.as_str();
        PASSED.contains(&name) || PASSED_BEGINNINGS.iter().any(|begin| name.starts_with(begin))
    };
    let dropped: Vec<_> = headers.keys().filter(|name| !passes(name)).cloned().collect();
    for name in dropped {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    #[test]
    fn a_method_override_is_found_in_headers_and_parameters() {
        let found = |uri: &str, header: Option<&str>| {
            let mut request = Request::post(uri);
            if let Some(name) = header {
                request = request.header(name, "DELETE");
            }
            method_override(&request.body(()).unwrap().into_parts().0).is_some()
        };
        for (uri, header) in [
            ("/v1/files/x", Some("X-HTTP-Method-Override")),
            ("/v1/files/x", Some("x-http-method")),
            ("/v1/files/x", Some("X-Method-Override")),
            ("/v1/files/x?alt=sse&$httpMethod=DELETE", None),
            ("/v1/files/x?%24httpMethod=DELETE", None),
            ("/v1/files/x?_METHOD=DELETE", None),
        ] {
            assert!(found(uri, header), "{uri} {header:?}");
        }
        assert!(!found("/v1/files/x?method=1&alt=sse", Some("x-goog-api-client")));
    }

    #[test]
    fn headers_that_are_not_known_do_not_pass() {
        let mut headers = HeaderMap::new();
        for name in [
            "content-type",
            "x-goog-api-client",
            "x-goog-upload-command",
            "x-stainless-retry-count",
            "x-goog-user-project",
            "x-goog-authenticated-user-email",
            "x-goog-iam-authorization-token",
            "authorization-extra",
            "x-original-url",
        ] {
            headers.insert(HeaderName::from_static(name), http::HeaderValue::from_static("x"));
        }
        keep_allowed(&mut headers);
        let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(
            left,
            [
                "content-type",
                "x-goog-api-client",
                "x-goog-upload-command",
                "x-stainless-retry-count"
            ]
        );
    }
}
