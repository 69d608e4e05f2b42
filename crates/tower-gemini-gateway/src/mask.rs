//! Cleans what upstreams send before anything else reads it: the gateway's own keys are masked, and
//! an encoding that was not asked for is undone.
//!
//! Google's error texts about a key contain it, within streams too. What is masked at the client is
//! in nothing that is made of a response: no log, trail, metric, journal, stored response or
//! answer.
//!
//! A key is looked for as it is, as a JSON string spells it, and percent-encoded. An upstream that
//! spells its key in another way (base64, `\u0041`) does so on purpose, and could give it away
//! elsewhere.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::{Buf, Bytes, BytesMut};
use flate2::write::MultiGzDecoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use http::{HeaderValue, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::ext::ReasonPhrase;
use memchr::memmem::Finder;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use tower::ServiceExt;
use tower_gemini::error::BoxError;
use tower_gemini::headers;
use tower_gemini::redact::redact;
use tower_gemini::stage::{UpstreamBody, WireClient};

/// The largest collected error response has 11 KB; pages of front ends are longer.
const LONGEST_ERROR: usize = 1024 * 1024;

/// Encoded bytes that are decoded at a time. At most a thousand times as many come out.
const DECODED_AT_ONCE: usize = 1024;

/// All but what a URL may hold as it is (RFC 3986, 2.3).
const ENCODED_IN_URLS: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What no response may hold, in each of its spellings.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secrets(Arc<[Finder<'static>]>);

impl Secrets {
    pub(crate) fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let secrets = secrets.into_iter().filter(|secret| !secret.is_empty());
        let mut spellings: Vec<String> = secrets.flat_map(spellings).collect();
        // Where one begins with another, the longer one is masked whole.
        spellings.sort_unstable_by_key(|spelling| Reverse((spelling.len(), spelling.clone())));
        spellings.dedup();
        Self(spellings.iter().map(|spelling| Finder::new(spelling).into_owned()).collect())
    }

    fn are_in(&self, bytes: &[u8]) -> bool {
        self.0.iter().any(|secret| secret.find(bytes).is_some())
    }

    /// Replaces every secret by as many stars.
    pub(crate) fn mask(&self, bytes: &mut [u8]) {
        for secret in self.0.iter() {
            let mut from = 0;
            while let Some(at) = secret.find(bytes.get(from..).unwrap_or_default()) {
                let end = from + at + secret.needle().len();
                if let Some(place) = bytes.get_mut(from + at..end) {
                    place.fill(b'*');
                }
                from = end;
            }
        }
    }

    fn mask_headers(&self, headers: &mut HeaderMap) {
        for value in headers.values_mut().filter(|value| self.are_in(value.as_bytes())) {
            let mut clean = value.as_bytes().to_vec();
            self.mask(&mut clean);
            *value = HeaderValue::from_bytes(&clean).unwrap_or(HeaderValue::from_static("***"));
        }
    }

    /// How many bytes at the end of a text may be the beginning of a secret.
    fn begun_in(&self, text: &[u8]) -> usize {
        let begun = |secret: &Finder<'_>| {
            let secret = secret.needle();
            let longest = text.len().min(secret.len().saturating_sub(1));
            let is_begun =
                |&length: &usize| secret.get(..length).is_some_and(|s| text.ends_with(s));
            (1..=longest).rev().find(is_begun)
        };
        self.0.iter().filter_map(begun).max().unwrap_or(0)
    }
}

/// A secret as it is, in JSON with and without escaped slashes, and in a URL.
fn spellings(secret: &str) -> Vec<String> {
    let in_json = serde_json::Value::from(secret).to_string();
    let in_json = in_json.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    let in_json = in_json.unwrap_or(secret).to_owned();
    let in_url = utf8_percent_encode(secret, ENCODED_IN_URLS).to_string();
    let mut in_lower_case = in_url.clone().into_bytes();
    for at in memchr::memchr_iter(b'%', in_url.as_bytes()) {
        in_lower_case.get_mut(at..at + 3).unwrap_or_default().make_ascii_lowercase();
    }
    let in_lower_case = String::from_utf8_lossy(&in_lower_case).into_owned();
    vec![secret.to_owned(), in_json.replace('/', "\\/"), in_json, in_url, in_lower_case]
}

/// The client, with clean responses.
pub(crate) fn cleaned<C>(
    client: C,
    secrets: Secrets,
) -> impl WireClient<ResponseBody: HttpBody<Data = Bytes>, Future: 'static> + Sync
where
    C: WireClient<Future: 'static> + Sync,
{
    client.map_response(move |response| clean(response, &secrets))
}

/// A response without secrets, and in no encoding that was undone.
fn clean<B: UpstreamBody>(response: Response<B>, secrets: &Secrets) -> Response<CleanBody<B>> {
    let (mut parts, body) = response.into_parts();
    // Clients read the status. What a reason phrase says beside it is for people, and may be a key.
    parts.extensions.remove::<ReasonPhrase>();
    secrets.mask_headers(&mut parts.headers);
    let mut body = CleanBody::new(body, secrets.clone());
    let encoding = parts.headers.get(CONTENT_ENCODING);
    match encoding.map(|value| value.as_bytes().to_ascii_lowercase()).as_deref() {
        None | Some(b"identity") => {}
        // The response to a HEAD.
        Some(_) if HttpBody::is_end_stream(&body) => {}
        Some(b"gzip" | b"x-gzip") => {
            headers::for_changed_body(&mut parts.headers, None);
            body.decoder = Some(MultiGzDecoder::new(Vec::new()));
        }
        // A key that may be in it is the caller's own.
        Some(_) if secrets.0.is_empty() => {}
        Some(encoding) => {
            let encoding: String = String::from_utf8_lossy(encoding).chars().take(40).collect();
            let what = format!(
                "the upstream answered in the encoding {encoding:?}, which was not asked for. It is \
                 not passed on: the gateway's own key may be in it"
            );
            headers::for_changed_body(&mut parts.headers, None);
            if parts.status.is_success() {
                // Paid for, and lost: it counts as a response that broke off.
                body.end(Err(what.into()));
            } else {
                let json = HeaderValue::from_static("application/json; charset=UTF-8");
                parts.headers.insert(CONTENT_TYPE, json);
                let error = json!({ "code": parts.status.as_u16(), "message": what });
                body.replace(json!({ "error": error }).to_string().into());
            }
        }
    }
    Response::from_parts(parts, body)
}

/// A body without these secrets.
#[cfg(test)]
pub(crate) fn masked<B>(body: B, secrets: Secrets) -> CleanBody<B> {
    CleanBody::new(body, secrets)
}

/// An error without anything that looks like a secret, read whole. Other responses pass.
pub(crate) async fn redacted(response: Response<Body>) -> Response<Body> {
    if response.status().is_success() || response.status().is_informational() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let text = match Limited::new(body, LONGEST_ERROR).collect().await {
        Ok(text) => text.to_bytes(),
        Err(error) => {
            tracing::debug!(%error, "an error response cannot be read");
            Bytes::new()
        }
    };
    let changed = match std::str::from_utf8(&text).map(redact) {
        Ok(Cow::Owned(changed)) => Some(changed.into()),
        _ => text.is_empty().then(Bytes::new),
    };
    match changed {
        None => headers::for_rebuilt_body(&mut parts.headers, None),
        Some(_) => headers::for_changed_body(&mut parts.headers, None),
    }
    Response::from_parts(parts, Body::from(changed.unwrap_or(text)))
}

/// A body without secrets, and in no encoding that was undone.
pub(crate) struct CleanBody<B> {
    /// `None` once it ended.
    body: Option<B>,
    secrets: Secrets,
    decoder: Option<MultiGzDecoder<Vec<u8>>>,
    /// What is still to be decoded.
    encoded: Bytes,
    /// What may be a secret's beginning.
    held: Bytes,
    /// What goes out before more is read.
    ready: VecDeque<Frame<Bytes>>,
    /// What comes behind everything else.
    broken: Option<BoxError>,
}

impl<B> CleanBody<B> {
    fn new(body: B, secrets: Secrets) -> Self {
        let (body, encoded, held) = (Some(body), Bytes::new(), Bytes::new());
        let (ready, broken) = (VecDeque::new(), None);
        Self { body, secrets, decoder: None, encoded, held, ready, broken }
    }

    /// Puts another text in its place.
    fn replace(&mut self, text: Bytes) {
        self.body = None;
        self.ready.push_back(Frame::data(text));
    }

    /// Nothing more comes from the upstream.
    fn end(&mut self, how: Result<Option<HeaderMap>, BoxError>) {
        self.body = None;
        let decoded = self.decoder.take().map_or(Ok(Bytes::new()), |mut decoder| {
            decoder.try_finish()?;
            Ok::<_, BoxError>(std::mem::take(decoder.get_mut()).into())
        });
        match how.and_then(|trailers| Ok((decoded?, trailers))) {
            Ok((decoded, trailers)) => {
                self.pass(decoded);
                let held = std::mem::take(&mut self.held);
                self.ready.extend((!held.is_empty()).then(|| Frame::data(held)));
                self.ready.extend(trailers.map(|mut trailers| {
                    self.secrets.mask_headers(&mut trailers);
                    Frame::trailers(trailers)
                }));
            }
            Err(error) => {
                self.encoded = Bytes::new();
                self.broken = Some(error);
            }
        }
    }

    /// Takes a chunk of the upstream's, or the next piece of one that is encoded.
    fn take(&mut self, chunk: Bytes) -> Result<(), BoxError> {
        let Some(decoder) = &mut self.decoder else {
            self.pass(chunk);
            return Ok(());
        };
        self.encoded = chunk;
        decoder.write_all(&self.encoded.split_to(self.encoded.len().min(DECODED_AT_ONCE)))?;
        let decoded = std::mem::take(decoder.get_mut()).into();
        self.pass(decoded);
        Ok(())
    }

    /// Delivers what may be delivered of a chunk. Copied only where a secret is in it, or may be.
    fn pass(&mut self, chunk: Bytes) {
        let mut chunk = match self.held.is_empty() {
            true => chunk,
            false => Bytes::from([std::mem::take(&mut self.held), chunk].concat()),
        };
        if self.secrets.are_in(&chunk) {
            let mut clean = BytesMut::from(chunk);
            self.secrets.mask(&mut clean);
            chunk = clean.freeze();
        }
        self.held = chunk.split_off(chunk.len() - self.secrets.begun_in(&chunk));
        self.ready.extend((!chunk.is_empty()).then(|| Frame::data(chunk)));
    }
}

impl<B: UpstreamBody> HttpBody for CleanBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        loop {
            if let Some(frame) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(frame)));
            }
            let chunk = std::mem::take(&mut this.encoded);
            let taken = if chunk.is_empty() {
                let Some(body) = &mut this.body else {
                    return Poll::Ready(this.broken.take().map(Err));
                };
                match ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map(Frame::into_data))
                {
                    Some(Ok(Ok(mut data))) => this.take(data.copy_to_bytes(data.remaining())),
                    Some(Ok(Err(frame))) => {
                        this.end(Ok(frame.into_trailers().ok()));
                        Ok(())
                    }
                    Some(Err(error)) => Err(error.into()),
                    None => {
                        this.end(Ok(None));
                        Ok(())
                    }
                }
            } else {
                this.take(chunk)
            };
            if let Err(error) = taken {
                this.end(Err(error));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let has_more = !(self.held.is_empty() && self.encoded.is_empty() && self.ready.is_empty());
        let has_end = self.decoder.is_some() || self.broken.is_some();
        !has_more && !has_end && self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        // Nothing is added or removed: what a response says of its length is still right.
        let ready = self.ready.iter().filter_map(Frame::data_ref);
        let here = (ready.map(Bytes::len).sum::<usize>() + self.held.len()) as u64;
        match &self.body {
            _ if self.decoder.is_some() || self.broken.is_some() => SizeHint::new(),
            None => SizeHint::with_exact(here),
            Some(body) => match body.size_hint().exact() {
                Some(rest) => SizeHint::with_exact(rest.saturating_add(here)),
                None => SizeHint::new(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{Full, StreamBody};
    use proptest::prelude::*;
    use std::convert::Infallible;
    use tower_gemini::body::WireBody;

    const SECRET: &str = "AIAIza";

    fn secrets() -> Secrets {
        Secrets::new([SECRET, "Iz/z"])
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    /// Its bytes in chunks, and whether trailers came.
    fn delivered(
        text: &[u8],
        cuts: &[usize],
        trailers: bool,
        is_encoded: bool,
    ) -> Result<(Vec<Bytes>, bool), BoxError> {
        let mut cuts: Vec<usize> =
            cuts.iter().map(|cut| cut % (text.len() + 1)).chain([0, text.len()]).collect();
        cuts.sort_unstable();
        let chunks = cuts
            .windows(2)
            .map(|pair| Frame::data(Bytes::copy_from_slice(&text[pair[0]..pair[1]])));
        let mut frames: Vec<_> = chunks.map(Ok::<_, Infallible>).collect();
        frames.extend(trailers.then(|| Ok(Frame::trailers(HeaderMap::new()))));
        let body = StreamBody::new(futures::stream::iter(frames));
        let mut body = CleanBody::new(body, secrets());
        body.decoder = is_encoded.then(|| MultiGzDecoder::new(Vec::new()));
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let (mut out, mut trailed) = (Vec::new(), false);
            while let Some(frame) = body.frame().await {
                match frame?.into_data() {
                    Ok(data) => {
                        assert!(!trailed, "nothing comes behind the trailers");
                        out.push(data);
                    }
                    Err(_) => trailed = true,
                }
            }
            assert!(body.is_end_stream());
            Ok((out, trailed))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_secret_passes_however_it_is_cut_and_all_else_does(text in "(AIAIza|AI|A|Iza|Iz/z|Iz%2fz|x){0,12}", cuts in proptest::collection::vec(any::<usize>(), 0..8), trailers in any::<bool>(), is_encoded in any::<bool>()) {
            let sent = if is_encoded { gzip(text.as_bytes()) } else { text.clone().into_bytes() };
            let (out, trailed) = delivered(&sent, &cuts, trailers, is_encoded).unwrap();
            let mut clean = text.into_bytes();
            secrets().mask(&mut clean);
            prop_assert_eq!(out.concat(), clean);
            prop_assert_eq!(trailed, trailers);
        }
    }

    #[test]
    fn a_secret_is_masked_in_each_of_its_spellings_and_longer_ones_first() {
        let masked = |secrets: &[&str], text: &str| {
            let mut text = text.as_bytes().to_vec();
            Secrets::new(secrets.iter().copied()).mask(&mut text);
            String::from_utf8(text).unwrap()
        };
        for text in ["k/+\"", r#"k/+\""#, r#"k\/+\""#, "k%2F%2B%22", "k%2f%2b%22"] {
            assert_eq!(masked(&["k/+\""], text), "*".repeat(text.len()), "{text}");
        }
        assert_eq!(
            masked(&["key-1", "key-1-of-two", ""], "key-1-of-two key-1"),
            "************ *****"
        );
        assert_eq!(masked(&[], "key"), "key");
    }

    #[test]
    fn what_cannot_be_the_secret_is_not_held_and_not_copied() {
        let mut body = CleanBody::new((), secrets());
        let mut pass = |chunk: Bytes| {
            body.pass(chunk);
            body.ready.pop_front().map(|frame| frame.into_data().unwrap()).unwrap_or_default()
        };
        let chunk = Bytes::from_static(b"data: {}\n\n");
        let passed = pass(chunk.clone());
        assert_eq!((passed.as_ptr(), passed.len()), (chunk.as_ptr(), chunk.len()));
        assert_eq!(pass(Bytes::from_static(b"..AIA")), "..");
        assert_eq!(pass(Bytes::from_static(b"I")), "", "it can still become one");
        assert_eq!(pass(Bytes::from_static(b"!")), "AIAI!");
    }

    // A megabyte of zeroes is a kilobyte of gzip: however long the chunks are, little comes out at
    // a time.
    #[test]
    fn a_body_that_is_decoded_is_delivered_in_bounded_pieces_and_must_be_whole() {
        let text = vec![b'x'; 32 * 1024 * 1024];
        let encoded = gzip(&text);
        let (out, _) = delivered(&encoded, &[], false, true).unwrap();
        assert_eq!(out.iter().map(Bytes::len).sum::<usize>(), text.len());
        assert!(out.iter().all(|chunk| chunk.len() <= 1100 * DECODED_AT_ONCE));
        assert!(delivered(&encoded[..encoded.len() - 9], &[], false, true).is_err());
        assert!(delivered(b"no gzip", &[], false, true).is_err());
        assert_eq!(
            delivered(&[gzip(b"a"), gzip(b"b")].concat(), &[], false, true).unwrap().0.concat(),
            b"ab"
        );
    }

    async fn through(
        head: http::response::Builder,
        body: impl Into<Bytes>,
        secrets: &Secrets,
    ) -> (HeaderMap, Result<Bytes, String>) {
        let response = head.body(Full::new(body.into())).unwrap();
        let (parts, body) = clean(response, secrets).into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes);
        (parts.headers, body.map_err(|error| error.to_string()))
    }

    #[tokio::test]
    async fn a_key_in_a_head_is_masked_too() {
        let phrase = ReasonPhrase::from_static(b"AIAIza is no key");
        let head = Response::builder()
            .header("location", "https://x/?key=AIAIza&a=b")
            .header("etag", "AIA")
            .extension(phrase);
        let client = tower::service_fn(move |_: http::Request<WireBody>| {
            let mut response = Response::new(Full::<Bytes>::default());
            response.extensions_mut().insert(ReasonPhrase::from_static(b"AIAIza"));
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let request = http::Request::new(WireBody::from(Bytes::new()));
        let answer = cleaned(client, secrets()).oneshot(request).await.ok().unwrap();
        assert!(answer.extensions().get::<ReasonPhrase>().is_none());
        let (headers, _) = through(head, "", &secrets()).await;
        assert_eq!(headers["location"], "https://x/?key=******&a=b");
        assert_eq!(headers["etag"], "AIA");
    }

    // A key in a compressed error went through to callers.
    #[tokio::test]
    async fn gzip_that_was_not_asked_for_is_undone_and_masked() {
        for status in [200, 403] {
            let head = || {
                Response::builder()
                    .status(status)
                    .header("content-encoding", "gzip")
                    .header("etag", "1")
            };
            let (headers, body) = through(head(), gzip(b"the key AIAIza"), &secrets()).await;
            assert!(headers.is_empty(), "{headers:?}");
            assert_eq!(body.unwrap(), "the key ******");
            let (_, body) = through(head(), gzip(b"the key AIAIza"), &Secrets::default()).await;
            assert_eq!(body.unwrap(), "the key AIAIza");
        }
    }

    #[tokio::test]
    async fn an_encoding_without_a_body_is_no_error() {
        let head = Response::builder().header("content-encoding", "gzip");
        let (headers, body) = through(head, "", &secrets()).await;
        assert_eq!((headers.len(), body.unwrap().len()), (1, 0));
    }

    #[tokio::test]
    async fn what_cannot_be_decoded_is_not_passed_on_where_the_gateways_key_may_be_in_it() {
        let head =
            |status: u16| Response::builder().status(status).header("content-encoding", "br");
        let (headers, body) = through(head(403), "AIAIza in br", &secrets()).await;
        assert!(!headers.contains_key("content-encoding"));
        let said = String::from_utf8(body.unwrap().to_vec()).unwrap();
        assert!(said.contains("in the encoding") && !said.contains(SECRET), "{said}");
        let (_, body) = through(head(200), "AIAIza in br", &secrets()).await;
        assert!(body.unwrap_err().contains("which was not asked for"));
        let (headers, body) = through(head(200), "AIAIza in br", &Secrets::default()).await;
        assert_eq!(
            (&headers["content-encoding"], body.unwrap()),
            (&HeaderValue::from_static("br"), "AIAIza in br".into())
        );
    }

    // What is rebuilt goes out with headers that fit it, or hyper sends an empty reply.
    #[tokio::test]
    async fn a_redacted_error_loses_the_headers_of_the_body_that_it_had() {
        let error = Response::builder().status(403).header("transfer-encoding", "chunked");
        let error = error.header("content-length", "99").body(Body::from("?key=abc")).unwrap();
        let clean = redacted(error).await;
        assert!(clean.headers().is_empty(), "{:?}", clean.headers());
        assert_eq!(clean.into_body().collect().await.unwrap().to_bytes(), "?key=***");
    }
}
