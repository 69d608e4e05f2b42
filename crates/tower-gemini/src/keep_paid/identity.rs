//! Whether two requests are the same one, from the same caller: pure.

use std::fmt;
use std::sync::Arc;

use crate::body::CallBody;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderName, Request};
use sha2::{Digest, Sha256};

/// Who asks, in a request's extensions, where the credential does not tell: behind a server that
/// asks with a key of its own, all callers have the same one. It stands for the credential, which
/// may change then.
///
/// ```
/// use tower_gemini::keep_paid::CallerName;
///
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(CallerName::new("alice"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerName(Arc<str>);

impl CallerName {
    /// A name that no other caller has.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }
}

/// How the answer to a request is to be told, in the request's extensions, where neither its path
/// nor its bytes say so: requests that are alike but for this are two requests, of the same caller.
///
/// ```
/// use tower_gemini::keep_paid::AnswerShape;
///
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(AnswerShape::new("openai chat"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerShape(Arc<str>);

impl AnswerShape {
    /// A name that no other shape has.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }
}

const API_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");

/// A fingerprint of a request and its caller. The caller's credential goes into it and cannot be
/// read out of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity(pub(super) [u8; 32]);

impl Identity {
    /// Of a request whose body is held whole.
    pub(super) fn of(request: &Request<CallBody>) -> Option<Self> {
        let slices = request.body().chunks()?.iter().map(|chunk| &chunk[..]);
        let mut hash = Fields::new(b"request");
        hash.caller(request);
        hash.field(request.method().as_str().as_bytes());
        hash.field(request.uri().path().as_bytes());
        for pair in request
            .uri()
            .query()
            .into_iter()
            .flat_map(|query| query.split('&'))
            .filter(|pair| !is_credential(pair))
        {
            hash.field(pair.as_bytes());
        }
        hash.field(
            request.extensions().get::<AnswerShape>().map_or(b"", |shape| shape.0.as_bytes()),
        );
        hash.field(request.headers().get(CONTENT_TYPE).map_or(b"", |value| value.as_bytes()));
        // As one field, however it was cut.
        let length: usize = slices.clone().map(<[u8]>::len).sum();
        hash.length(length);
        for slice in slices {
            hash.0.update(slice);
        }
        Some(hash.done())
    }

    /// Of a name that a caller gave to a request.
    pub(super) fn of_key<B>(request: &Request<B>, key: &[u8]) -> Self {
        let mut hash = Fields::new(b"key");
        hash.caller(request);
        hash.field(key);
        hash.done()
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

impl fmt::Debug for Identity {
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

    /// By name, or wherever clients put their credential: the same key in another place is another
    /// caller, which costs a hit and gives nothing away.
    fn caller<B>(&mut self, request: &Request<B>) {
        if let Some(name) = request.extensions().get::<CallerName>() {
            self.field(b"named");
            self.field(name.0.as_bytes());
            return;
        }
        let (headers, uri) = (request.headers(), request.uri());
        self.field(b"by credential");
        for name in [API_KEY, AUTHORIZATION] {
            for value in headers.get_all(&name) {
                self.field(value.as_bytes());
            }
            self.field(b"");
        }
        for pair in uri
            .query()
            .into_iter()
            .flat_map(|query| query.split('&'))
            .filter(|pair| is_credential(pair))
        {
            self.field(pair.as_bytes());
        }
    }

    fn done(self) -> Identity {
        Identity(self.0.finalize().into())
    }
}

fn is_credential(pair: &str) -> bool {
    ["key=", "access_token=", "oauth_token="].iter().any(|name| pair.starts_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call_state::CallState;
    use bytes::Bytes;
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
            .body(CallBody::whole(body, None, Arc::new(Call::unrecognised()), CallState::new()))
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
            let of = |body: &[u8], at| Identity::of(&request("POST", "/v1/x", &[], cut(body, at))).unwrap();
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
            Identity::of(&request(method, uri, headers, vec!["{}".into()])).unwrap()
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

    // Behind a gateway with a key of its own every caller sends the same one: the answer of one was
    // given to another.
    #[test]
    fn callers_with_one_credential_are_told_apart_by_their_names() {
        let named = |name: Option<&str>| {
            let mut request =
                request("POST", "/v1/x", &[("x-goog-api-key", "the gateway's")], vec!["{}".into()]);
            if let Some(name) = name {
                request.extensions_mut().insert(CallerName::new(name));
            }
            (Identity::of(&request).unwrap(), Identity::of_key(&request, b"key"))
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
            request.extensions_mut().insert(CallerName::new(name));
            Identity::of(&request).unwrap()
        };
        assert_eq!(rotated("ann"), all[1].0);
    }

    // Hashed into the caller, it made another caller: a key that was used again for another shape
    // was sent again, and paid for.
    #[test]
    fn another_shape_is_another_request_of_the_same_caller() {
        let shaped = |shape: Option<&str>| {
            let mut request = request("POST", "/v1/x", &[], vec!["{}".into()]);
            request.extensions_mut().insert(CallerName::new("ann"));
            if let Some(shape) = shape {
                request.extensions_mut().insert(AnswerShape::new(shape));
            }
            (Identity::of(&request).unwrap(), Identity::of_key(&request, b"key"))
        };
        let (none, chat, images) = (shaped(None), shaped(Some("chat")), shaped(Some("images")));
        assert!(none.0 != chat.0 && chat.0 != images.0);
        assert!(none.1 == chat.1 && chat.1 == images.1);
        assert_eq!(shaped(Some("chat")), chat);
    }

    #[test]
    fn an_identity_survives_being_written_down_and_tells_nothing() {
        let identity = Identity::of_key(&Request::get("/x?key=sentinel").body(()).unwrap(), b"k");
        assert_eq!(Identity::from_hex(&identity.to_hex()), Some(identity));
        assert_eq!(Identity::from_hex("zz"), None);
        assert!(!format!("{identity:?} {}", identity.to_hex()).contains("sentinel"));
    }
}
