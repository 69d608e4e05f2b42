//! Headers that fit a body.
//!
//! A body that was read into memory, replayed or replaced is framed anew. Headers that describe the
//! old framing contradict it: hyper sends an empty reply for a body of exact length under a stale
//! `Transfer-Encoding: chunked`, and a stale `Content-Length` cuts the body short or makes the
//! client wait for bytes that never come.

use http::header::{
    ACCEPT_RANGES, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap,
    HeaderName, HeaderValue, LAST_MODIFIED, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

/// Makes headers fit a body whose frames are passed on.
///
/// Only `Transfer-Encoding` is removed: whoever sends the body decides on its framing. A body that
/// ended while it was peeked has an exact length, whatever framing the upstream used.
pub fn for_passed_body(headers: &mut HeaderMap) {
    headers.remove(TRANSFER_ENCODING);
}

/// Makes headers fit a body that has the same bytes and is framed anew.
///
/// `length` is the length of the body, if it is known: it becomes the `Content-Length`.
/// `Transfer-Encoding`, `Trailer` and the headers of the first connection are removed.
/// `Content-Encoding` stays, since the bytes are the same.
///
/// ```
/// use http::header::{CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};
///
/// let mut headers = HeaderMap::new();
/// headers.insert(TRANSFER_ENCODING, "chunked".parse().unwrap());
/// tower_gemini::headers::for_rebuilt_body(&mut headers, Some(3));
/// assert_eq!(headers[CONTENT_LENGTH], "3");
/// assert!(!headers.contains_key(TRANSFER_ENCODING));
/// ```
pub fn for_rebuilt_body(headers: &mut HeaderMap, length: Option<u64>) {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    for name in [TRANSFER_ENCODING, TRAILER, CONNECTION, KEEP_ALIVE, TE, UPGRADE, CONTENT_LENGTH] {
        headers.remove(name);
    }
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// Makes headers fit a body whose bytes are others than those that the upstream sent.
///
/// As [`for_rebuilt_body`]; what describes the old bytes (`Content-Encoding`, `ETag`, ranges,
/// digests) is removed too. The caller sets the `Content-Type`.
pub fn for_changed_body(headers: &mut HeaderMap, length: Option<u64>) {
    // As constants, they are not parsed for each response.
    const DIGESTS: [HeaderName; 5] = [
        HeaderName::from_static("content-md5"),
        HeaderName::from_static("digest"),
        HeaderName::from_static("content-digest"),
        HeaderName::from_static("repr-digest"),
        HeaderName::from_static("x-goog-hash"),
    ];
    for_rebuilt_body(headers, length);
    for name in [CONTENT_ENCODING, ETAG, LAST_MODIFIED, ACCEPT_RANGES, CONTENT_RANGE] {
        headers.remove(name);
    }
    for name in DIGESTS {
        headers.remove(name);
    }
}

/// Whether a body is compressed, so that its bytes say nothing to us.
pub(crate) fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_ENCODING).is_some_and(|value| value != "identity")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream() -> HeaderMap {
        let pairs = [
            ("transfer-encoding", "chunked"),
            ("content-length", "7"),
            ("trailer", "x-late"),
            ("connection", "keep-alive"),
            ("content-encoding", "gzip"),
            ("etag", "\"1\""),
            ("content-type", "application/json"),
        ];
        pairs
            .into_iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn the_same_bytes_keep_their_encoding_and_lose_their_framing() {
        let mut headers = upstream();
        for_rebuilt_body(&mut headers, None);
        assert_eq!(names(&headers), ["content-encoding", "content-type", "etag"]);
        for_rebuilt_body(&mut headers, Some(12));
        assert_eq!(headers[CONTENT_LENGTH], "12");
    }

    #[test]
    fn other_bytes_lose_what_described_the_first() {
        let mut headers = upstream();
        for_changed_body(&mut headers, Some(12));
        assert_eq!(names(&headers), ["content-length", "content-type"]);
        assert_eq!(headers[CONTENT_LENGTH], "12");
    }
}
