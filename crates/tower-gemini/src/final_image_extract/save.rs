use std::future::poll_fn;
use std::io::SeekFrom;

use crate::body::JudgedBody;
use crate::error::{BoxError, Error};
use http::Response;
use http_body::Body;
use tokio::io::{AsyncSeek, AsyncSeekExt, AsyncWrite, AsyncWriteExt};
use tower_gemini_core::scan::Scanner;

use super::FinalImage;
use super::service::{refused, upstream_error};

/// Writes the final image of a judged response to `writer` while it arrives, in less than a megabyte
/// of memory whatever its size.
///
/// A draft that came first is overwritten: the writer goes back to where it stood, so it must be
/// able to seek. Of several final images the last is written: read those with
/// [`extract`](super::extract), and [`FinalImage::files`] names them. Cut the file to
/// [`FinalImage::len`] afterwards, since a draft may have been longer (`file.set_len(image.len)`).
/// The returned image's `bytes` are empty.
///
/// ```
/// use std::io::Cursor;
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::Full;
/// use tower::{ServiceExt, service_fn};
/// use tower_gemini::{GeminiStack, final_image_extract::save_image};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let client = service_fn(|_| async {
///     let body = br#"{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AQID"}}]},"finishReason":"STOP"}]}"#;
///     Ok::<_, std::io::Error>(Response::new(Full::new(Bytes::from_static(body))))
/// });
/// let request = Request::post("/v1beta/models/gemini-3-pro-image:generateContent").body(Full::new(Bytes::new())).unwrap();
/// let response = GeminiStack::new().raw(client).oneshot(request).await.unwrap();
/// let mut file = Cursor::new(Vec::new());
/// let image = save_image(response, &mut file).await.unwrap();
/// assert_eq!((image.len, file.into_inner()), (3, vec![1, 2, 3]));
/// # }
/// ```
///
/// # Errors
///
/// As [`FinalImageExtract`](crate::FinalImageExtract), and where the writer fails. What has been
/// written then is not an image.
///
/// # Cancel safety
///
/// Dropping the future leaves a part of an image in the writer.
pub async fn save_image<B, W>(
    response: Response<JudgedBody<B>>,
    writer: &mut W,
) -> Result<FinalImage, Error>
where
    B: Body<Error: Into<BoxError>> + Unpin,
    W: AsyncWrite + AsyncSeek + Unpin,
{
    let (parts, mut body) = response.into_parts();
    let trail = body.trail().clone();
    let saved = async {
        if let Some(error) = upstream_error(&parts, &mut body).await {
            return Err(error);
        }
        refused(body.verdict())?;
        let sink = |error: std::io::Error, body: &JudgedBody<B>| {
            Error::sink(error.into(), body.verdict().clone())
        };
        let start = writer.stream_position().await.map_err(|error| sink(error, &body))?;
        body.scan_with(Scanner::draining(body.call().framing));
        let mut answer = None;
        loop {
            if let Some(scanner) = body.scanner_mut() {
                let decoded = scanner.take_decoded();
                let written = async {
                    if decoded.restart {
                        writer.seek(SeekFrom::Start(start)).await?;
                    }
                    writer.write_all(&decoded.bytes).await
                };
                written.await.map_err(|error| sink(error, &body))?;
            }
            match poll_fn(|cx| body.poll_answer(cx, &mut answer)).await {
                Some(frame) => drop(frame?),
                None => break,
            }
        }
        writer.flush().await.map_err(|error| sink(error, &body))?;
        refused(body.verdict())?;
        answer
            .and_then(FinalImage::from_answer)
            .ok_or_else(|| Error::no_image(body.verdict().clone()))
    };
    saved.await.map_err(|error| error.with_trail(trail))
}
