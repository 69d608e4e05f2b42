//! Reads responses whole where that is asked for, so that a cut upstream never reaches a client
//! that would retry, and transforms them for their callers: removes the drafts of a stream, or
//! translates to OpenAI's format. Says in the head what was given up for them.
//!
//! Stands below `KeepPaid`, so that what counts as delivered, and what is stored, are the bytes
//! that the caller gets.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Extensions, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tower::Layer;
use tower_gemini::CallMemory as _;
use tower_gemini::body::{CallBody, HasVerdict};
use tower_gemini::call::{Call, Framing, ImageSize, ModelId};
use tower_gemini::error::Error;
use tower_gemini::headers;
use tower_gemini::scan::StreamStripper;
use tower_gemini::target::Served;
use tower_gemini::trail::Trail;
use tower_gemini::verdict::Verdict;
use tower_gemini_openai::{ResponseTranslator, StreamTranslator};
use tower_service::Service;

use crate::memory::ResponseMemory;
use crate::report;
use crate::responses::CHARGED;
use crate::wire::now_unix;

/// What to do with a response, in the extensions of its request. Without it, nothing.
#[derive(Debug, Clone)]
pub(crate) enum Transform {
    /// Remove the drafts of a stream.
    StripDrafts,
    /// Translate to OpenAI's format.
    OpenAi(ResponseTranslator),
    /// The same for one of several responses that become one. It has a blank behind its end, which
    /// is read when the client has all of them: until then it does not count as delivered.
    OpenAiPart(ResponseTranslator),
}

impl Transform {
    fn drawn_by(self, model: Option<&ModelId>) -> Self {
        match (self, model) {
            (Self::OpenAi(reply), Some(model)) => Self::OpenAi(reply.drawn_by(model)),
            (Self::OpenAiPart(reply), Some(model)) => Self::OpenAiPart(reply.drawn_by(model)),
            (other, _) => other,
        }
    }
}

/// Buffers whole responses of the inner service where that is asked for, and transforms them.
#[derive(Debug, Clone)]
pub(crate) struct TransformResponses<S> {
    inner: S,
    buffer_up_to: Option<usize>,
}

/// Makes [`TransformResponses`] services.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TransformLayer {
    pub(crate) buffer_up_to: Option<usize>,
}

impl<S> Layer<S> for TransformLayer {
    type Service = TransformResponses<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TransformResponses { inner, buffer_up_to: self.buffer_up_to }
    }
}

impl<S, B> Service<Request<CallBody>> for TransformResponses<S>
where
    S: Service<Request<CallBody>, Response = Response<B>, Error = Error, Future: Send + 'static>,
    B: Body<Data = Bytes, Error = Error> + HasVerdict + Send + Unpin + 'static,
{
    type Response = Response<TransformedBody<B>>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<CallBody>) -> Self::Future {
        let transform = request.extensions_mut().remove::<Transform>();
        let memory = request.extensions_mut().remove::<Arc<ResponseMemory>>();
        let (call, trail) = (request.body().call().clone(), request.body().trail().clone());
        let framing = call.framing;
        // What is to be sent on as it comes is not buffered.
        let limit = self.buffer_up_to.filter(|_| framing == Framing::Whole);
        let response = self.inner.call(request);
        Box::pin(async move {
            let mut response = buffer(response.await?, limit, memory).await?;
            let translates =
                matches!(transform, Some(Transform::OpenAi(_) | Transform::OpenAiPart(_)));
            if translates && !streams(response.status(), framing) {
                // No head is out: a body that breaks can still become an error.
                response.body_mut().read_up_to(usize::MAX, true).await?;
            }
            note_rerouting(response.extensions_mut(), &trail, call.size);
            if let Some(served) = response.extensions().get::<Served>().cloned() {
                report::add_differences(response.headers_mut(), &served);
            }
            match transform {
                None => Ok(response),
                Some(transform) => Ok(transformed(response, transform, &call)),
            }
        })
    }
}

/// Reads a response to its end, or until it is longer than `limit` or than there is memory. Without
/// a limit, reads nothing.
async fn buffer<B>(
    response: Response<B>,
    limit: Option<usize>,
    memory: Option<Arc<ResponseMemory>>,
) -> Result<Response<TransformedBody<B>>, Error>
where
    B: Body<Data = Bytes, Error = Error> + Unpin,
{
    let (mut parts, inner) = response.into_parts();
    let (ready, broken, change) = (VecDeque::new(), None, None);
    let (ended, blank_behind) = (false, false);
    let read = 0;
    let mut body =
        TransformedBody { ready, inner, ended, broken, blank_behind, change, memory, read };
    if let Some(limit) = limit {
        body.read_up_to(limit, false).await?;
    }
    if body.ended {
        // Trailers need chunks, and chunks have no length.
        let length = body.size_hint().exact();
        let is_data = body.ready.iter().all(Frame::is_data);
        headers::for_rebuilt_body(&mut parts.headers, length.filter(|_| is_data));
    }
    Ok(Response::from_parts(parts, body))
}

/// Whether a response goes out as it comes.
fn streams(status: StatusCode, framing: Framing) -> bool {
    status.is_success() && framing != Framing::Whole
}

/// Adds the model that the response itself names, where it is not the one that it was sent to, to
/// what is known of where it came from.
fn note_rerouting(extensions: &mut Extensions, trail: &Trail, size: Option<ImageSize>) {
    let attempts = trail.attempts();
    let Some(last) = attempts.last() else { return };
    let Some(given_up) = last.rerouting() else { return };
    let served = extensions.remove::<Served>();
    let mut served = served.unwrap_or_else(|| Served::new(None, size, Vec::new()));
    served.model.clone_from(&last.served_by);
    served.given_up.push(given_up);
    extensions.insert(served);
}

/// A response that does not [stream](streams) has been read to its end where it is translated.
fn transformed<B>(
    response: Response<TransformedBody<B>>,
    transform: Transform,
    call: &Call,
) -> Response<TransformedBody<B>> {
    let (mut parts, mut body) = response.into_parts();
    let framing = call.framing;
    let streams = streams(parts.status, framing);
    let mut length = None;
    let is_part = matches!(transform, Transform::OpenAiPart(_));
    // A fallback may have changed the model, and so may the upstream.
    let served = parts.extensions.get::<Served>().and_then(|served| served.model.clone());
    match transform.drawn_by(served.as_ref()) {
        Transform::StripDrafts if !streams => return Response::from_parts(parts, body),
        Transform::StripDrafts => {
            let may_be = served.map_or_else(|| call.makes_drafts(), |model| model.makes_drafts());
            let stripper = StreamStripper::new(framing).unmarked_drafts(may_be);
            body.change = Some(Change::Stripping(Box::new(stripper)));
        }
        Transform::OpenAi(reply) | Transform::OpenAiPart(reply) if streams => {
            let events = HeaderValue::from_static("text/event-stream; charset=utf-8");
            parts.headers.insert(CONTENT_TYPE, events);
            let translator = Box::new(reply.stream(now_unix()));
            body.change = Some(Change::Translating(translator));
            body.blank_behind = is_part;
        }
        Transform::OpenAi(reply) | Transform::OpenAiPart(reply) => {
            let frames = body.ready.drain(..);
            let chunks: Vec<Bytes> = frames.filter_map(|frame| frame.into_data().ok()).collect();
            let whole = if let [chunk] = &*chunks { chunk.clone() } else { chunks.concat().into() };
            let (status, translated) = reply.response(parts.status, &whole, now_unix());
            parts.status = status;
            parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            let blank = if is_part { Bytes::from_static(b"\n") } else { Bytes::new() };
            length = Some((translated.len() + blank.len()) as u64);
            let chunks = [translated, blank].into_iter().filter(|chunk| !chunk.is_empty());
            body.ready = chunks.map(Frame::data).collect();
        }
    }
    headers::for_changed_body(&mut parts.headers, length);
    Response::from_parts(parts, body)
}

/// The body of a response on its way to the caller: what was read of it, and what is still to come.
pub(crate) struct TransformedBody<B> {
    /// What goes out before more is read.
    ready: VecDeque<Frame<Bytes>>,
    /// Kept after its end for its verdict.
    inner: B,
    ended: bool,
    /// What comes behind everything else.
    broken: Option<Error>,
    /// Whether a blank line comes behind the end of a stream.
    blank_behind: bool,
    /// Applied to what is read from now on.
    change: Option<Change>,
    /// Accounts for what is read and held.
    memory: Option<Arc<ResponseMemory>>,
    read: usize,
}

/// What a stream may hold back where there is no memory for it: an event with a preview.
const HELD_WITHOUT_ROOM: u64 = 256 * 1024;

enum Change {
    Stripping(Box<StreamStripper>),
    Translating(Box<StreamTranslator>),
}

impl Change {
    fn push(&mut self, chunk: Bytes) -> Vec<Bytes> {
        match self {
            Self::Stripping(stripper) => stripper.push(chunk),
            Self::Translating(translator) => translator.push(&chunk),
        }
    }

    fn finish(&mut self) -> Vec<Bytes> {
        match self {
            Self::Stripping(stripper) => stripper.finish(),
            Self::Translating(translator) => translator.finish(),
        }
    }

    /// The stream broke off: what still goes out, and the error that cuts the connection behind it.
    fn fail(&mut self, error: Error) -> (Vec<Bytes>, Option<Error>) {
        match self {
            Self::Stripping(stripper) => (stripper.fail(), Some(error)),
            // openai's clients raise the text of an error event; a cut would be a connection error,
            // after which they retry.
            Self::Translating(translator) => (translator.fail(CHARGED, &error.to_string()), None),
        }
    }
}

impl<B: Body<Data = Bytes, Error = Error> + Unpin> TransformedBody<B> {
    /// Reads until the end, or until more than `limit` bytes are there or there is no memory for
    /// them. What is needed whole waits for memory and is then read all the same: it is paid for.
    async fn read_up_to(&mut self, limit: usize, is_needed: bool) -> Result<(), Error> {
        while !self.ended && self.read <= limit {
            match self.inner.frame().await.transpose()? {
                Some(frame) => {
                    let bytes = frame.data_ref().map_or(0, Bytes::len);
                    self.read = self.read.saturating_add(bytes);
                    self.ready.push_back(frame);
                }
                None => self.ended = true,
            }
            if let Some(memory) = &self.memory
                && !memory.try_hold(self.read)
                && !memory.clone().hold(self.read).await
                && !is_needed
            {
                break;
            }
        }
        Ok(())
    }

    /// Accounts for a chunk of a stream. Where there is no memory for what is held back of it, it
    /// passes with its drafts.
    fn account(&mut self, bytes: usize) -> Vec<Bytes> {
        self.read = self.read.saturating_add(bytes);
        let has_room = self.memory.as_ref().is_none_or(|memory| memory.try_hold(self.read));
        match &mut self.change {
            Some(Change::Stripping(stripper))
                if !has_room && stripper.held_bytes() > HELD_WITHOUT_ROOM =>
            {
                stripper.pass_all()
            }
            _ => Vec::new(),
        }
    }
}

impl<B: HasVerdict> HasVerdict for TransformedBody<B> {
    fn verdict(&self) -> Option<&Verdict> {
        self.inner.verdict()
    }
}

impl<B: Body<Data = Bytes, Error = Error> + Unpin> Body for TransformedBody<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        loop {
            if let Some(frame) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(frame)));
            }
            if this.ended {
                return Poll::Ready(this.broken.take().map(Err));
            }
            let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
            this.ended = !matches!(frame, Some(Ok(_)));
            let Some(change) = &mut this.change else { return Poll::Ready(frame) };
            let chunks = match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => {
                        let bytes = chunk.len();
                        let mut chunks = change.push(chunk);
                        chunks.extend(this.account(bytes));
                        Ok(chunks)
                    }
                    Err(trailers) => Err(trailers),
                },
                Some(Err(error)) => {
                    let (held, error) = change.fail(error);
                    this.broken = error;
                    Ok(held)
                }
                None => Ok(change.finish()),
            };
            let blank = Bytes::from_static(b"\n");
            let blank = (this.ended && this.blank_behind).then_some(blank);
            let chunks = chunks.unwrap_or_default().into_iter().chain(blank);
            this.ready.extend(chunks.filter(|chunk| !chunk.is_empty()).map(Frame::data));
        }
    }

    fn is_end_stream(&self) -> bool {
        let inner_ended = || self.change.is_none() && self.inner.is_end_stream();
        self.ready.is_empty() && self.broken.is_none() && (self.ended || inner_ended())
    }

    fn size_hint(&self) -> SizeHint {
        let ready = self.ready.iter().filter_map(Frame::data_ref);
        match (self.ended, &self.change) {
            _ if self.broken.is_some() => SizeHint::new(),
            (true, _) => SizeHint::with_exact(ready.map(|chunk| chunk.len() as u64).sum()),
            (false, None) if self.ready.is_empty() => self.inner.size_hint(),
            (false, _) => SizeHint::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::CONTENT_LENGTH;
    use http_body_util::StreamBody;

    fn body(
        chunks: Vec<Result<&'static str, Error>>,
    ) -> impl Body<Data = Bytes, Error = Error> + Unpin {
        StreamBody::new(futures::stream::iter(
            chunks.into_iter().map(|chunk| chunk.map(|text| Frame::data(Bytes::from(text)))),
        ))
    }

    #[tokio::test]
    async fn a_cut_upstream_is_an_error_before_any_head_goes_out() {
        let cut = body(vec![Ok("{"), Err(Error::truncated(Verdict::interrupted()))]);
        let error = buffer(Response::new(cut), Some(100), None).await.err().unwrap();
        assert!(error.is_truncated());
    }

    #[tokio::test]
    async fn a_whole_response_has_its_length_and_a_longer_one_passes_unchanged() {
        let whole =
            buffer(Response::new(body(vec![Ok("12345"), Ok("678")])), Some(8), None).await.unwrap();
        assert_eq!(whole.headers()[CONTENT_LENGTH], "8");
        assert_eq!(whole.into_body().collect().await.unwrap().to_bytes(), "12345678");
        let long =
            buffer(Response::new(body(vec![Ok("12345"), Ok("678"), Ok("9")])), Some(7), None)
                .await
                .unwrap();
        assert!(!long.headers().contains_key(CONTENT_LENGTH));
        assert_eq!(long.into_body().collect().await.unwrap().to_bytes(), "123456789");
    }

    // axum answered with an empty body wherever the upstream used chunked encoding: the body had
    // become exact while `Transfer-Encoding` stayed.
    #[tokio::test]
    async fn a_buffered_body_goes_out_with_headers_that_fit_it() {
        let chunked = Response::builder()
            .header("transfer-encoding", "chunked")
            .header("trailer", "x-checksum")
            .body(body(vec![Ok("12345")]))
            .unwrap();
        let whole = buffer(chunked, Some(8), None).await.unwrap();
        let names: Vec<_> = whole.headers().keys().map(|name| name.as_str()).collect();
        assert_eq!(
            (names, &whole.headers()[CONTENT_LENGTH]),
            (vec!["content-length"], &"5".parse().unwrap())
        );
    }

    const DRAFT: &str = "data: {\"candidates\":[{\"content\":{\"parts\":[{\"inlineData\":{\"mimeType\":\"image/png\",\"data\":\"ZHJhZnQ=\"}}]}}]}\n\n";
    const IMAGE: &str = "data: {\"candidates\":[{\"content\":{\"parts\":[{\"inlineData\":{\"mimeType\":\"image/png\",\"data\":\"ZmluYWw=\"}}]}}]}\n\n";

    async fn stripped(
        chunks: Vec<Result<&'static str, Error>>,
        drawn_by: Option<&str>,
    ) -> (String, Option<Error>) {
        let mut response = buffer(Response::new(body(chunks)), None, None).await.unwrap();
        if let Some(model) = drawn_by {
            let served = Served::new(Some(ModelId::new(model)), None, Vec::new());
            response.extensions_mut().insert(served);
        }
        let path = "/v1beta/models/gemini-3-pro-image:streamGenerateContent?alt=sse";
        let uri = http::Uri::from_static(path);
        let call = Call::parse(&http::Method::POST, &uri, &http::HeaderMap::new(), None);
        let response = transformed(response, Transform::StripDrafts, &call);
        let (mut out, mut error) = (Vec::new(), None);
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => out.extend(frame.into_data().unwrap()),
                Err(broken) => error = Some(broken),
            }
        }
        assert!(body.is_end_stream());
        (String::from_utf8(out).unwrap(), error)
    }

    #[tokio::test]
    async fn an_unmarked_draft_never_passes_and_an_image_that_came_always_does() {
        let (out, error) = stripped(vec![Ok(DRAFT), Ok(IMAGE)], None).await;
        assert!(!out.contains("ZHJhZnQ=") && out.ends_with(IMAGE) && error.is_none(), "{out}");
        // The next image would have made it a draft, but the upstream broke off before: it is paid.
        let cut = || Err(Error::truncated(Verdict::interrupted()));
        for chunks in
            [vec![Ok(DRAFT), Ok(IMAGE), cut()], vec![Ok(DRAFT), Ok(IMAGE), Ok("data: {"), cut()]]
        {
            let (out, error) = stripped(chunks, None).await;
            assert!(!out.contains("ZHJhZnQ=") && out.ends_with(IMAGE), "{out}");
            assert!(error.unwrap().is_truncated());
        }
    }

    #[tokio::test]
    async fn whether_images_may_be_drafts_depends_on_the_model_that_drew_them() {
        let (out, _) = stripped(vec![Ok(DRAFT), Ok(IMAGE)], Some("gemini-2.5-flash-image")).await;
        assert_eq!(out, [DRAFT, IMAGE].concat());
    }
}
