//! Masks the gateway's own keys in what goes to its callers: Google's error texts about a key
//! contain it, within streams too.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, HeaderMap};
use http::{HeaderValue, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use memchr::memmem::{self, Finder};
use serde_json::json;
use tower_gemini::headers;
use tower_gemini::redact::redact;

/// The largest collected error response has 11 KB; pages of front ends are longer.
const LONGEST_ERROR: usize = 1024 * 1024;

/// Masks the keys in a response's head and body. The body of an error is read whole, and other
/// things that look like secrets are masked too; other bodies keep their length and are not
/// buffered, except for what may be the beginning of a key.
pub(crate) async fn mask_keys(response: Response<Body>, keys: &[&HeaderValue]) -> Response<Body> {
    if keys.is_empty() {
        return response;
    }
    let (mut parts, mut body) = response.into_parts();
    for key in keys {
        mask_headers(&mut parts.headers, key.as_bytes());
    }
    if parts.status.is_success() || parts.status.is_informational() {
        for key in keys {
            body = Body::new(MaskedBody::new(body, key.as_bytes()));
        }
    } else {
        let text = match Limited::new(body, LONGEST_ERROR).collect().await {
            Ok(text) => text.to_bytes(),
            Err(error) => {
                tracing::debug!(%error, "an error response cannot be masked");
                Bytes::new()
            }
        };
        let encoding = parts.headers.get(CONTENT_ENCODING).filter(|value| *value != "identity");
        let masked = match encoding {
            // A key in it could not be seen.
            Some(encoding) => unreadable(parts.status, encoding),
            None => keys.iter().fold(text.clone(), |text, key| without(&text, key.as_bytes())),
        };
        match masked == text && !text.is_empty() {
            true => headers::for_rebuilt_body(&mut parts.headers, None),
            false => headers::for_changed_body(&mut parts.headers, None),
        }
        body = Body::from(masked);
    }
    Response::from_parts(parts, body)
}

/// What stands in the place of an error whose encoding was not asked for.
fn unreadable(status: StatusCode, encoding: &HeaderValue) -> Bytes {
    let encoding: String =
        encoding.to_str().unwrap_or("unknown").chars().filter(char::is_ascii).take(40).collect();
    let message = format!(
        "The upstream answered {} with an error in the encoding \"{encoding}\", which was not asked \
         for. It is not passed on: the gateway's own key may be in it.",
        status.as_u16()
    );
    let error = json!({ "code": status.as_u16(), "message": message, "status": "UNKNOWN" });
    json!({ "error": error }).to_string().into()
}

/// A text without this secret, and without anything else that looks like one.
fn without(text: &[u8], secret: &[u8]) -> Bytes {
    let mut clean = Vec::with_capacity(text.len());
    let mut from = 0;
    for at in memmem::find_iter(text, secret) {
        clean.extend_from_slice(&text[from..at]);
        clean.extend_from_slice(b"***");
        from = at + secret.len();
    }
    clean.extend_from_slice(&text[from..]);
    match std::str::from_utf8(&clean).map(redact) {
        Ok(Cow::Owned(masked)) => masked.into(),
        _ => clean.into(),
    }
}

fn mask_headers(headers: &mut HeaderMap, secret: &[u8]) {
    for value in
        headers.values_mut().filter(|value| memmem::find(value.as_bytes(), secret).is_some())
    {
        let mut clean = value.as_bytes().to_vec();
        mask(&mut clean, &Finder::new(secret));
        if let Ok(clean) = HeaderValue::from_bytes(&clean) {
            *value = clean;
        }
    }
}

/// Replaces a secret by stars.
fn mask(bytes: &mut [u8], secret: &Finder<'_>) {
    let mut from = 0;
    while let Some(at) = secret.find(bytes.get(from..).unwrap_or_default()) {
        let end = from + at + secret.needle().len();
        if let Some(place) = bytes.get_mut(from + at..end) {
            place.fill(b'*');
        }
        from = end;
    }
}

struct MaskedBody<B> {
    body: B,
    secret: Finder<'static>,
    /// What may be the secret's beginning.
    held: Bytes,
    /// What goes out before more is read.
    ready: VecDeque<Frame<Bytes>>,
    ended: bool,
}

impl<B> MaskedBody<B> {
    fn new(body: B, secret: &[u8]) -> Self {
        let (secret, held) = (Finder::new(secret).into_owned(), Bytes::new());
        Self { body, secret, held, ready: VecDeque::new(), ended: false }
    }

    /// What may be delivered of a chunk. Copied only where a secret is in it, or may be.
    fn pass(&mut self, chunk: Bytes) -> Bytes {
        let mut chunk = if self.held.is_empty() {
            chunk
        } else {
            Bytes::from([std::mem::take(&mut self.held), chunk].concat())
        };
        if self.secret.find(&chunk).is_some() {
            let mut clean = BytesMut::from(chunk);
            mask(&mut clean, &self.secret);
            chunk = clean.freeze();
        }
        let secret = self.secret.needle();
        let longest = chunk.len().min(secret.len().saturating_sub(1));
        let begun = (1..=longest)
            .rev()
            .find(|&length| chunk.ends_with(secret.get(..length).unwrap_or_default()));
        self.held = chunk.split_off(chunk.len() - begun.unwrap_or(0));
        chunk
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for MaskedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        loop {
            if let Some(frame) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(frame)));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            let frame = ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose()?;
            this.ended = frame.is_none();
            let (chunk, end) = match frame.map(Frame::into_data) {
                Some(Ok(chunk)) => (this.pass(chunk), None),
                Some(Err(trailers)) => (std::mem::take(&mut this.held), Some(trailers)),
                None => (std::mem::take(&mut this.held), None),
            };
            let data = Some(chunk).filter(|chunk| !chunk.is_empty()).map(Frame::data);
            this.ready.extend(data.into_iter().chain(end));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.ready.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Nothing is added or removed: what a response says of its length is still right.
        let held = self.held.len() as u64;
        match self.body.size_hint().exact() {
            Some(length) if self.ready.is_empty() => SizeHint::with_exact(length + held),
            _ => SizeHint::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, StreamBody};
    use proptest::prelude::*;
    use std::convert::Infallible;

    const SECRET: &str = "AIAIza";

    fn delivered(text: &str, cuts: &[usize], trailers: bool) -> (Vec<Bytes>, bool) {
        let mut cuts: Vec<usize> =
            cuts.iter().map(|cut| cut % (text.len() + 1)).chain([0, text.len()]).collect();
        cuts.sort_unstable();
        let chunks = cuts
            .windows(2)
            .map(|pair| Frame::data(Bytes::copy_from_slice(&text.as_bytes()[pair[0]..pair[1]])));
        let mut frames: Vec<_> = chunks.map(Ok::<_, Infallible>).collect();
        frames.extend(trailers.then(|| Ok(Frame::trailers(HeaderMap::new()))));
        let mut body =
            MaskedBody::new(StreamBody::new(futures::stream::iter(frames)), SECRET.as_bytes());
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let (mut out, mut trailed) = (Vec::new(), false);
            while let Some(frame) = body.frame().await {
                match frame.unwrap().into_data() {
                    Ok(data) => {
                        assert!(!trailed, "nothing comes behind the trailers");
                        out.push(data);
                    }
                    Err(_) => trailed = true,
                }
            }
            (out, trailed)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_secret_passes_however_it_is_cut_and_all_else_does(text in "(AIAIza|AI|A|Iza|x){0,12}", cuts in proptest::collection::vec(any::<usize>(), 0..8), trailers in any::<bool>()) {
            let (out, trailed) = delivered(&text, &cuts, trailers);
            prop_assert_eq!(String::from_utf8(out.concat()).unwrap(), text.replace(SECRET, "******"));
            prop_assert_eq!(trailed, trailers);
        }
    }

    #[test]
    fn what_cannot_be_the_secret_is_not_held_and_not_copied() {
        let mut body = MaskedBody::new((), SECRET.as_bytes());
        let chunk = Bytes::from_static(b"data: {}\n\n");
        let passed = body.pass(chunk.clone());
        assert_eq!((passed.as_ptr(), passed.len()), (chunk.as_ptr(), chunk.len()));
        assert_eq!(body.pass(Bytes::from_static(b"..AIA")), "..");
        assert_eq!(body.pass(Bytes::from_static(b"I")), "", "it can still become one");
        assert_eq!(body.pass(Bytes::from_static(b"!")), "AIAI!");
    }

    #[tokio::test]
    async fn a_key_in_a_head_is_masked_too() {
        let secret = HeaderValue::from_static(SECRET);
        let answer = Response::builder()
            .header("location", "https://x/?key=AIAIza&a=b")
            .header("etag", "AIA");
        let answer = mask_keys(answer.body(Body::empty()).unwrap(), &[&secret]).await;
        assert_eq!(answer.headers()["location"], "https://x/?key=******&a=b");
        assert_eq!(answer.headers()["etag"], "AIA");
    }

    // What is rebuilt goes out with headers that fit it, or hyper sends an empty reply.
    #[tokio::test]
    async fn a_masked_error_loses_the_headers_of_the_body_that_it_had() {
        let secret = HeaderValue::from_static(SECRET);
        let error = Response::builder().status(403).header("transfer-encoding", "chunked");
        let error = error.header("content-length", "99").body(Body::from("key AIAIza")).unwrap();
        let masked = mask_keys(error, &[&secret]).await;
        assert!(masked.headers().is_empty(), "{:?}", masked.headers());
        assert_eq!(masked.into_body().collect().await.unwrap().to_bytes(), "key ***");
    }

    // A key in a compressed error went through to callers.
    #[tokio::test]
    async fn an_error_in_an_encoding_that_was_not_asked_for_is_not_passed_on() {
        let secret = HeaderValue::from_static(SECRET);
        let error = Response::builder().status(403).header("content-encoding", "gzip");
        let error = error.body(Body::from("AIAIza, as gzip")).unwrap();
        let masked = mask_keys(error, &[&secret]).await;
        assert!(masked.headers().get("content-encoding").is_none());
        let body = masked.into_body().collect().await.unwrap().to_bytes();
        let said = std::str::from_utf8(&body).unwrap();
        assert!(said.contains("403 with an error in the encoding") && !said.contains(SECRET));
    }
}
