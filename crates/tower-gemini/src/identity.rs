//! Who sent a request: what tells callers apart, for layers that remember requests.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap, HeaderName, Method, Uri};

/// Tells callers apart that share one credential, in the extensions of a request.
///
/// Behind a server that sends a key of its own, all callers have the same credential. The id stands
/// for the credential, which may then change.
///
/// ```
/// use tower_gemini::keep_paid::CallerId;
///
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(CallerId::new("alice"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerId(Arc<str>);

impl CallerId {
    /// An id that no other caller has.
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self(Arc::from(id))
    }
}

/// Names the format that the response is translated into, in the extensions of a request.
///
/// Needed where neither the path nor the body says which format that is: requests that differ only
/// in it are two requests of the same caller. The name must be stable: it is part of what stored
/// responses are found by, in later processes too. Never build it from a `Debug` text.
///
/// ```
/// use tower_gemini::keep_paid::ResponseFormat;
///
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(ResponseFormat::new("openai.chat"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseFormat(Arc<str>);

impl ResponseFormat {
    /// A name that no other format has.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// The name in a request's extensions, or nothing.
    pub(crate) fn of(extensions: &Extensions) -> &[u8] {
        extensions.get().map_or(b"", |format: &Self| format.0.as_bytes())
    }
}

const API_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");

/// Hands over what tells the caller of a request from others, field by field: an id, or the
/// credential wherever clients put it. The same key in another place makes another caller: that
/// costs a hit and gives nothing away.
pub(crate) fn caller(
    (uri, headers, extensions): (&Uri, &HeaderMap, &Extensions),
    mut field: impl FnMut(&[u8]),
) {
    if let Some(id) = extensions.get::<CallerId>() {
        field(b"id");
        field(id.0.as_bytes());
        return;
    }
    field(b"credential");
    for name in [API_KEY, AUTHORIZATION] {
        for value in headers.get_all(&name) {
            field(value.as_bytes());
        }
        field(b"");
    }
    for pair in query(uri).filter(|pair| is_credential(pair)) {
        field(pair.as_bytes());
    }
}

/// Hands over what a request asks for, without its body and credential, field by field.
pub(crate) fn head(method: &Method, uri: &Uri, mut field: impl FnMut(&[u8])) {
    field(method.as_str().as_bytes());
    field(uri.path().as_bytes());
    for pair in query(uri).filter(|pair| !is_credential(pair)) {
        field(pair.as_bytes());
    }
}

fn query(uri: &Uri) -> impl Iterator<Item = &str> {
    uri.query().into_iter().flat_map(|query| query.split('&'))
}

fn is_credential(pair: &str) -> bool {
    ["key=", "access_token=", "oauth_token="].iter().any(|name| pair.starts_with(name))
}
