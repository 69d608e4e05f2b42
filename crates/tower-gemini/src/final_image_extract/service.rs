use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::body::JudgedBody;
use crate::error::{BoxError, Error};
use bytes::BytesMut;
use http::response::Parts;
use http::{Request, Response};
use http_body::Body;
use tower_gemini_core::scan::{Answer, Scanner};
use tower_gemini_core::verdict::{Outcome, Verdict};
use tower_service::Service;

use super::{FinalImage, FinalImageExtractLayer};
use crate::body::CallBody;
use crate::stage::CallService;

/// Gives the final image of each response. See the [module](super).
#[derive(Debug, Clone)]
pub struct FinalImageExtract<S> {
    inner: S,
    settings: FinalImageExtractLayer,
}

crate::access::inner_access!(FinalImageExtract);

impl<S> FinalImageExtract<S> {
    pub(super) fn new(inner: S, settings: FinalImageExtractLayer) -> Self {
        Self { inner, settings }
    }
}

impl<S: CallService> Service<Request<CallBody>> for FinalImageExtract<S> {
    type Response = Response<FinalImage>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<CallBody>) -> Self::Future {
        let future = self.inner.call(request);
        let settings = self.settings;
        Box::pin(async move { extract(future.await?, settings).await })
    }
}

/// Responses up to this length are read into a buffer of their size: 1K and 2K images, as a rule.
const LENGTH_HELPS_UP_TO: u64 = 8 * 1024 * 1024;

/// Takes the final image out of a judged response, for pipelines that do so by hand.
///
/// The response's trail goes into the response's extensions.
///
/// # Errors
///
/// As [`FinalImageExtract`].
///
/// # Cancel safety
///
/// Dropping the future drops the response.
pub async fn extract<B>(
    response: Response<JudgedBody<B>>,
    settings: FinalImageExtractLayer,
) -> Result<Response<FinalImage>, Error>
where
    B: Body<Error: Into<BoxError>> + Unpin,
{
    let (mut parts, mut body) = response.into_parts();
    let trail = body.trail().clone();
    let mut scanner = Scanner::decoding(body.call().framing)
        .unmarked_drafts(body.call().makes_drafts())
        .max_image_bytes(settings.max_image_bytes)
        .keep_signature(settings.keep_signature);
    // Known lengths spare small responses the buffer's growth (a third of the time at 1K, measured
    // 2026-11). A large one with drafts would reserve twice its image for it and touch more memory
    // than growing does.
    if let Some(len) = body.size_hint().exact().filter(|&len| len <= LENGTH_HELPS_UP_TO) {
        scanner = scanner.expect_len(len);
    }
    match read(&parts, &mut body, scanner).await {
        Ok(answer) => match FinalImage::from_answer(answer) {
            Some(image) => {
                parts.extensions.insert(trail);
                Ok(Response::from_parts(parts, image))
            }
            None => Err(Error::no_image(body.verdict().clone()).with_trail(trail)),
        },
        Err(error) => Err(error.with_trail(trail)),
    }
}

/// Reads a response to its end with `scanner`, and says what there is instead of an image.
async fn read<B>(parts: &Parts, body: &mut JudgedBody<B>, scanner: Scanner) -> Result<Answer, Error>
where
    B: Body<Error: Into<BoxError>> + Unpin,
{
    if let Some(error) = upstream_error(parts, body).await {
        return Err(error);
    }
    refused(body.verdict())?;
    body.scan_with(scanner);
    let mut answer = None;
    while let Some(frame) = poll_fn(|cx| body.poll_answer(cx, &mut answer)).await {
        frame?;
    }
    // Of a stream the verdict is known only now.
    refused(body.verdict())?;
    answer.ok_or_else(|| Error::no_image(body.verdict().clone()))
}

/// Responses that are judged and hold no image are errors; there is nothing in them to read.
pub(super) fn refused(verdict: &Verdict) -> Result<(), Error> {
    match verdict.outcome() {
        // A call of an unknown kind may still have an image in its response.
        Outcome::Image | Outcome::Answered => Ok(()),
        Outcome::Interrupted => Err(Error::truncated(verdict.clone())),
        Outcome::StreamError => Err(Error::mid_stream(verdict.clone())),
        _ => Err(Error::no_image(verdict.clone())),
    }
}

/// The error of a response with an error status, with its body for [`Error::upstream_body`]. Of a
/// body that fails or is too long the rest is left out: the verdict is known already.
pub(super) async fn upstream_error<B>(parts: &Parts, body: &mut JudgedBody<B>) -> Option<Error>
where
    B: Body<Error: Into<BoxError>> + Unpin,
{
    /// The bound that `ClassifyGeminiError` reads to by default.
    const MAX_BYTES: usize = 256 * 1024;
    if parts.status.is_success() {
        return None;
    }
    let verdict = body.verdict().clone();
    let mut all = BytesMut::new();
    while all.len() < MAX_BYTES {
        match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    all.extend_from_slice(&data);
                }
            }
            Some(Err(_)) | None => break,
        }
    }
    Some(Error::upstream(parts.status, all.freeze(), verdict))
}
