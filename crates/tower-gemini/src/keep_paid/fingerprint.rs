//! Whether two requests are the same one, from the same caller: pure.

use std::fmt;

use super::shares::Caller;
use crate::body::CallBody;
use crate::identity::{self, ResponseFormat};
use bytes::Bytes;
use http::Request;
use http::header::CONTENT_TYPE;
use sha2::{Digest, Sha256};

/// A hash of a request and its caller. The caller's credential cannot be read out of it.
///
/// What goes into it is part of the file format: a change of it raises the version of both.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Fingerprint(pub(super) [u8; 32]);

impl Fingerprint {
    /// Of a request whose body is held whole.
    pub(super) fn of_request(request: &Request<CallBody>) -> Option<Self> {
        let chunks = request.body().chunks()?;
        let mut hash = Fields::new(b"keep-paid 3 request");
        hash.caller(request);
        identity::head(request.method(), request.uri(), |bytes| hash.field(bytes));
        hash.field(ResponseFormat::of(request.extensions()));
        hash.field(request.headers().get(CONTENT_TYPE).map_or(b"", |value| value.as_bytes()));
        // As one field, however it was cut.
        hash.length(chunks.iter().map(Bytes::len).sum());
        chunks.iter().for_each(|chunk| hash.0.update(chunk));
        Some(hash.done())
    }

    /// Of an `Idempotency-Key` and its caller.
    pub(super) fn of_key<B>(request: &Request<B>, key: &[u8]) -> Self {
        let mut hash = Fields::new(b"keep-paid 3 key");
        hash.caller(request);
        hash.field(key);
        hash.done()
    }

    /// Of who sends a request.
    pub(super) fn of_caller<B>(request: &Request<B>) -> Self {
        let mut hash = Fields::new(b"keep-paid 3 caller");
        hash.caller(request);
        hash.done()
    }

    /// A digest of it, for this process.
    pub(super) fn short(self) -> Caller {
        self.0.iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    pub(super) fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(super) fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to tell two apart in a log.
        f.write_str(self.to_hex().get(..8).unwrap_or_default())
    }
}

/// Fields one after another, each with its length, so that none can pass for a part of its
/// neighbour.
struct Fields(Sha256);

impl Fields {
    fn new(kind: &[u8]) -> Self {
        let mut fields = Self(Sha256::new());
        fields.field(kind);
        fields
    }

    fn length(&mut self, length: usize) {
        self.0.update((length as u64).to_le_bytes());
    }

    fn field(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.0.update(bytes);
    }

    fn caller<B>(&mut self, request: &Request<B>) {
        let head = (request.uri(), request.headers(), request.extensions());
        identity::caller(head, |bytes| self.field(bytes));
    }

    fn done(self) -> Fingerprint {
        Fingerprint(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CallOptions;
    use crate::call_state::CallState;
    use crate::identity::CallerId;
    use proptest::prelude::*;
    use std::sync::Arc;
    use tower_gemini_core::call::Call;

    fn request(
        method: &str,
        uri: &str,
        headers: &[(&str, &str)],
        body: Vec<Bytes>,
    ) -> Request<CallBody> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request
            .body(CallBody::whole(
                body,
                None,
                Arc::new(Call::unrecognised()),
                CallState::new(CallOptions::new()),
            ))
            .unwrap()
    }

    fn cut(body: &[u8], at: usize) -> Vec<Bytes> {
        let at = at % (body.len() + 1);
        vec![Bytes::copy_from_slice(&body[..at]), Bytes::copy_from_slice(&body[at..])]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn how_a_body_is_cut_does_not_matter_and_every_byte_does(body in proptest::collection::vec(any::<u8>(), 1..200), at in any::<usize>(), change in any::<usize>(), other in any::<usize>()) {
            let of = |body: &[u8], at| Fingerprint::of_request(&request("POST", "/v1/x", &[], cut(body, at))).unwrap();
            prop_assert_eq!(of(&body, at), of(&body, other));
            let mut changed = body.clone();
            let len = changed.len();
            changed[change % len] ^= 1;
            prop_assert_ne!(of(&body, at), of(&changed, at));
            prop_assert_ne!(of(&body, at), of(&body[..len - 1], at));
        }
    }

    #[test]
    fn everything_that_makes_another_request_or_another_caller_counts() {
        let of = |method: &str, uri: &str, headers: &[(&str, &str)]| {
            Fingerprint::of_request(&request(method, uri, headers, vec!["{}".into()])).unwrap()
        };
        let base = of("POST", "/v1/x?alt=sse", &[("x-goog-api-key", "a")]);
        for other in [
            of("PUT", "/v1/x?alt=sse", &[("x-goog-api-key", "a")]),
            of("POST", "/v1/y?alt=sse", &[("x-goog-api-key", "a")]),
            of("POST", "/v1/x", &[("x-goog-api-key", "a")]),
            of("POST", "/v1/x?alt=sse", &[("x-goog-api-key", "b")]),
            of("POST", "/v1/x?alt=sse", &[("authorization", "a")]),
            of("POST", "/v1/x?alt=sse&key=a", &[]),
            of("POST", "/v1/x?alt=sse", &[]),
            of("POST", "/v1/x?alt=sse", &[("x-goog-api-key", "a"), ("content-type", "text/plain")]),
        ] {
            assert_ne!(base, other);
        }
        // What changes from one resend to the next does not.
        assert_eq!(
            base,
            of(
                "POST",
                "/v1/x?alt=sse",
                &[("x-goog-api-key", "a"), ("x-stainless-retry-count", "1"), ("user-agent", "b")]
            )
        );
        assert_eq!(of("POST", "/v1/x?key=k&alt=sse", &[]), of("POST", "/v1/x?alt=sse&key=k", &[]));
    }

    // Behind a gateway with a key of its own every caller sends the same one: the response of one was
    // given to another.
    #[test]
    fn callers_with_one_credential_are_told_apart_by_their_ids() {
        let named = |name: Option<&str>| {
            let mut request =
                request("POST", "/v1/x", &[("x-goog-api-key", "the gateway's")], vec!["{}".into()]);
            if let Some(name) = name {
                request.extensions_mut().insert(CallerId::new(name));
            }
            (Fingerprint::of_request(&request).unwrap(), Fingerprint::of_key(&request, b"key"))
        };
        let all = [named(None), named(Some("ann")), named(Some("ben"))];
        for (n, one) in all.iter().enumerate() {
            assert_eq!(
                all.iter().filter(|other| other.0 == one.0 || other.1 == one.1).count(),
                1,
                "{n}"
            );
        }
        assert_eq!(named(Some("ann")), all[1]);
        // And each stays the same when the server's own key changes.
        let rotated = |name: &str| {
            let mut request =
                request("POST", "/v1/x", &[("x-goog-api-key", "another")], vec!["{}".into()]);
            request.extensions_mut().insert(CallerId::new(name));
            Fingerprint::of_request(&request).unwrap()
        };
        assert_eq!(rotated("ann"), all[1].0);
    }

    // Hashed into the caller, it made another caller: a key that was used again for another format
    // was sent again, and paid for.
    #[test]
    fn another_response_format_is_another_request_of_the_same_caller() {
        let formatted = |format: Option<&str>| {
            let mut request = request("POST", "/v1/x", &[], vec!["{}".into()]);
            request.extensions_mut().insert(CallerId::new("ann"));
            if let Some(format) = format {
                request.extensions_mut().insert(ResponseFormat::new(format));
            }
            (Fingerprint::of_request(&request).unwrap(), Fingerprint::of_key(&request, b"key"))
        };
        let (none, chat, images) =
            (formatted(None), formatted(Some("chat")), formatted(Some("images")));
        assert!(none.0 != chat.0 && chat.0 != images.0);
        assert!(none.1 == chat.1 && chat.1 == images.1);
        assert_eq!(formatted(Some("chat")), chat);
    }

    // Stored responses were found by a `Debug` text, which the next version may print otherwise. If
    // this test fails, raise the version of the file format.
    #[test]
    fn a_request_has_the_same_fingerprint_in_every_process() {
        let mut request = request(
            "POST",
            "/v1beta/models/m:generateContent?alt=sse&key=k",
            &[("content-type", "application/json")],
            vec!["{}".into()],
        );
        request.extensions_mut().insert(ResponseFormat::new("openai.chat"));
        let of_request = Fingerprint::of_request(&request).unwrap().to_hex();
        assert_eq!(of_request, "77fd0c236059ee81ac34b23de88fc808a59664a8625e7dea5a5c5edd7f01afbd");
        assert_eq!(
            Fingerprint::of_key(&request, b"one").to_hex(),
            "61e326af4784cb0cd48b52773a15f362535a4dfd4084991303b1db45a25cf58c"
        );
    }

    #[test]
    fn a_fingerprint_survives_being_written_down_and_reveals_nothing() {
        let fingerprint =
            Fingerprint::of_key(&Request::get("/x?key=sentinel").body(()).unwrap(), b"k");
        assert_eq!(Fingerprint::from_hex(&fingerprint.to_hex()), Some(fingerprint));
        assert_eq!(Fingerprint::from_hex("zz"), None);
        assert!(!format!("{fingerprint:?} {}", fingerprint.to_hex()).contains("sentinel"));
    }
}
