//! Rewrites heads and URIs on their way through.

use std::borrow::Cow;
use std::time::{Duration, UNIX_EPOCH};

use http::header::{
    CONNECTION, EXPECT, HOST, HeaderMap, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::PathAndQuery;
use http::{HeaderValue, Uri};
use tower_gemini::clock::{Clock, SystemClock};

/// RFC 9110, 7.6.1: what belongs to one connection and not to the message.
const HOP_BY_HOP: [HeaderName; 7] =
    [CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];

/// How long openai's clients wait between two bytes, in seconds.
pub(crate) const READ_TIMEOUT: HeaderName = HeaderName::from_static("x-stainless-read-timeout");
/// How long Google's SDKs wait for the whole response, in whole seconds.
pub(crate) const SERVER_TIMEOUT: HeaderName = HeaderName::from_static("x-server-timeout");
/// How many retries openai's clients have made.
pub(crate) const RETRY_COUNT: HeaderName = HeaderName::from_static("x-stainless-retry-count");
/// How long a call may wait for quiet hours of `[peak]`: `2h`.
pub(crate) const DEFERRABLE_FOR: HeaderName = HeaderName::from_static("x-gemini-deferrable-for");
/// How many resends this request may have after an attempt that may have been paid for, in place
/// of `retry.maybe_charged_resends`. One of them pays for an earlier request that was lost.
pub(crate) const MAYBE_CHARGED_RESENDS: HeaderName =
    HeaderName::from_static("x-gemini-maybe-charged-resends");
/// Two requests with the same value are one.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Collapses doubled slashes: clients double them when the base URL ends in one. Borrowed where
/// there are none.
pub(crate) fn collapse_slashes(path: &str) -> Cow<'_, str> {
    if !path.contains("//") {
        return Cow::Borrowed(path);
    }
    let mut collapsed = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !collapsed.ends_with('/') {
            collapsed.push(c);
        }
    }
    Cow::Owned(collapsed)
}

/// Replaces a URI's path and query.
pub(crate) fn with_path(uri: &Uri, path: &str, query: Option<&str>) -> Option<Uri> {
    let mut parts = uri.clone().into_parts();
    let text = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    parts.path_and_query = Some(PathAndQuery::try_from(text).ok()?);
    Uri::from_parts(parts).ok()
}

/// Puts a path and query under an upstream's base, which may have a path of its own.
pub(crate) fn upstream_uri(base: &Uri, path_and_query: &str) -> Option<Uri> {
    let prefix = base.path().trim_end_matches('/');
    with_path(base, &format!("{prefix}{path_and_query}"), None)
}

/// Whether a path belongs to Vertex AI's hosts and not to the Developer API's.
pub(crate) fn is_vertex(path: &str) -> bool {
    let mut segments = path.trim_start_matches('/').split('/');
    let version = segments.next().unwrap_or_default();
    version.starts_with('v') && matches!(segments.next(), Some("publishers" | "projects"))
}

/// Removes what concerns the caller's connection only and what names this host.
pub(crate) fn clean_request(headers: &mut HeaderMap) {
    drop_named_by_connection(headers);
    for name in HOP_BY_HOP.into_iter().chain([HOST, EXPECT]) {
        headers.remove(name);
    }
    // `@google/genai` sends an empty one; none of them is for Google.
    headers.remove(http::header::COOKIE);
    for name in
        ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"]
    {
        headers.remove(name);
    }
}

/// Removes what concerns the connection to the upstream only, or would lead the caller past this
/// gateway.
pub(crate) fn clean_response(headers: &mut HeaderMap) {
    drop_named_by_connection(headers);
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    // Says that this host speaks HTTP/3 on port 443: Google does, this gateway does not.
    headers.remove("alt-svc");
    headers.remove(http::header::SET_COOKIE);
}

fn drop_named_by_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// Seconds since 1970.
pub(crate) fn now_unix() -> u64 {
    SystemClock.now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// How long the caller says that it waits, less a twentieth (two seconds at most) in which the
/// response has to reach it. A response after that is paid for and lost.
///
/// The timeout of openai's clients runs between two bytes: it counts where nothing is sent before
/// the end (`silent`).
pub(crate) fn stated_deadline(headers: &HeaderMap, silent: bool) -> Option<Duration> {
    [Some(SERVER_TIMEOUT), silent.then_some(READ_TIMEOUT)]
        .into_iter()
        .flatten()
        .filter_map(|name| seconds(headers.get(name)?))
        .min()
        .map(|stated| stated - (stated / 20).min(Duration::from_secs(2)))
}

fn seconds(value: &HeaderValue) -> Option<Duration> {
    let seconds: f64 = value.to_str().ok()?.trim().parse().ok()?;
    (seconds > 0.0).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubled_slashes_collapse_and_nothing_else_changes() {
        assert_eq!(
            collapse_slashes("//v1beta//models/m:generateContent"),
            "/v1beta/models/m:generateContent"
        );
        assert!(matches!(collapse_slashes("/v1/models/a%2Fb:generateContent"), Cow::Borrowed(_)));
        let uri = Uri::from_static("http://gw//v1/x?alt=sse&b=//");
        assert_eq!(
            with_path(&uri, &collapse_slashes(uri.path()), uri.query()).unwrap(),
            "http://gw/v1/x?alt=sse&b=//"
        );
    }

    #[test]
    fn the_upstream_may_live_under_a_path_of_its_own() {
        let base = Uri::from_static("https://relay.example/google/");
        assert_eq!(
            upstream_uri(&base, "/v1beta/models/m:x?alt=sse").unwrap(),
            "https://relay.example/google/v1beta/models/m:x?alt=sse"
        );
        let base = Uri::from_static("https://generativelanguage.googleapis.com");
        assert_eq!(
            upstream_uri(&base, "/v1/models").unwrap(),
            "https://generativelanguage.googleapis.com/v1/models"
        );
    }

    #[test]
    fn vertex_paths_are_recognised() {
        for path in [
            "/v1beta1/publishers/google/models/m:generateContent",
            "/v1/projects/p/locations/l/publishers/google/models/m:x",
        ] {
            assert!(is_vertex(path), "{path}");
        }
        for path in ["/v1beta/models/m:generateContent", "/v1/interactions", "/projects/x", "/"] {
            assert!(!is_vertex(path), "{path}");
        }
    }

    #[test]
    fn what_belongs_to_one_connection_is_not_passed_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Mine"),
            ("x-mine", "1"),
            ("te", "trailers"),
            ("host", "gw"),
            ("cookie", ""),
            ("x-goog-api-client", "kept"),
            ("transfer-encoding", "chunked"),
            ("x-forwarded-for", "10.0.0.1"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        clean_request(&mut headers);
        assert_eq!(
            headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
            ["x-goog-api-client"]
        );
        let mut headers = HeaderMap::new();
        headers.insert("alt-svc", HeaderValue::from_static("h3=\":443\""));
        headers.insert("server-timing", HeaderValue::from_static("gfet4t7; dur=40"));
        clean_response(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["server-timing"]);
    }

    #[test]
    fn the_shorter_stated_timeout_counts_less_the_way_back() {
        let mut headers = HeaderMap::new();
        assert_eq!(stated_deadline(&headers, true), None);
        headers.insert(READ_TIMEOUT, HeaderValue::from_static("600"));
        assert_eq!(stated_deadline(&headers, true), Some(Duration::from_secs(598)));
        assert_eq!(
            stated_deadline(&headers, false),
            None,
            "it runs between two bytes, and some come"
        );
        headers.insert(SERVER_TIMEOUT, HeaderValue::from_static("10"));
        assert_eq!(stated_deadline(&headers, true), Some(Duration::from_millis(9500)));
        for nonsense in ["-3", "soon", "NaN", "0", "inf"] {
            headers.insert(SERVER_TIMEOUT, HeaderValue::from_static(nonsense));
            assert_eq!(
                stated_deadline(&headers, true),
                Some(Duration::from_secs(598)),
                "{nonsense}"
            );
        }
    }
}
