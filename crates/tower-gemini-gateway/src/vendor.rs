//! Speaks another vendor's images API in Gemini's name: the layers see a Gemini API.

use std::vec::IntoIter;

use bytes::{BufMut as _, Bytes};
use futures::stream::{Iter, iter};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName,
    HeaderValue, RETRY_AFTER,
};
use http::{Request, Response, StatusCode, Uri};
use http_body::Frame;
use http_body_util::{BodyExt, Either, Full, Limited, StreamBody};
use serde_json::json;
use tower::ServiceExt;
use tower_gemini::body::WireBody;
use tower_gemini::call::{Call, ModelId};
use tower_gemini::error::BoxError;
use tower_gemini::headers;
use tower_gemini::stage::WireClient;
use tower_gemini_openai::vendor::{gemini_response, images_request};

use crate::mask::{self, Secrets};

/// The longest response that is read, as `responses.buffer_up_to` is by default; a 4K image has about
/// 25 MB as base64.
const LONGEST: usize = 64 * 1024 * 1024;

/// What a vendor's response says in its head that concerns a caller: nothing of the account or of
/// other addresses.
const PASSED: [HeaderName; 4] =
    [CONTENT_TYPE, CONTENT_ENCODING, RETRY_AFTER, HeaderName::from_static("x-request-id")];

/// A response that was read, or as much of one as came before it broke off.
pub(crate) type VendorBody = Either<Full<Bytes>, StreamBody<Iter<IntoIter<Frames>>>>;
type Frames = Result<Frame<Bytes>, BoxError>;

/// Asks for what a Gemini request asks for, and returns the response as Gemini's.
///
/// What is no list of images and no refusal stays as it is, so that it is judged as what it is: the
/// words of somebody else's server, of whose charge nothing is known.
pub(crate) async fn ask<C: WireClient>(
    client: C,
    images_api: Uri,
    request: Request<WireBody>,
) -> Result<Response<VendorBody>, C::Error> {
    let (mut parts, body) = request.into_parts();
    let Ok(body) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
        return Ok(refused("the request broke off"));
    };
    let call = Call::parse(&parts.method, &parts.uri, &parts.headers, Some(&body));
    let translated = match images_request(&call, &body) {
        Ok(translated) => translated,
        Err(what) => return Ok(refused(what)),
    };
    parts.uri = images_api;
    parts.headers = head(&parts.headers, &[AUTHORIZATION, ACCEPT_ENCODING]);
    headers::for_rebuilt_body(&mut parts.headers, Some(translated.len() as u64));
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    parts.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    let request = Request::from_parts(parts, WireBody::from(translated));
    // An encoding that was not asked for is undone before it is read; keys are masked further out.
    let response = mask::clean(client.oneshot(request).await?, &Secrets::default());
    let (mut parts, body) = response.into_parts();
    parts.headers = head(&parts.headers, &PASSED);
    let (body, broken) = read(body).await;
    let model = call.model.as_ref().map_or("", ModelId::as_str);
    let Some(response) = gemini_response(model, call.framing, parts.status, &body) else {
        let body = match broken {
            None => Either::Left(Full::new(body)),
            Some(error) => {
                let frames = vec![Ok(Frame::data(body)), Err(error)];
                Either::Right(StreamBody::new(iter(frames)))
            }
        };
        return Ok(Response::from_parts(parts, body));
    };
    headers::for_changed_body(&mut parts.headers, Some(response.body.len() as u64));
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static(response.content_type));
    Ok(Response::from_parts(parts, Either::Left(Full::new(response.body))))
}

/// These headers only.
fn head(all: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    names.iter().filter_map(|name| Some((name.clone(), all.get(name)?.clone()))).collect()
}

/// As much of a response as came, and why no more did. One that is too long counts as broken off.
async fn read<B>(body: B) -> (Bytes, Option<BoxError>)
where
    B: http_body::Body<Error: Into<BoxError>> + Unpin,
{
    let (mut body, mut read) = (Limited::new(body, LONGEST), Vec::new());
    loop {
        match body.frame().await {
            None => return (read.into(), None),
            Some(Err(error)) => return (read.into(), Some(error)),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    read.put(data);
                }
            }
        }
    }
}

/// Nothing was sent.
fn refused(what: &str) -> Response<VendorBody> {
    let error = json!({
        "code": 400,
        "message": format!("Not sent to another vendor: {what}."),
        "status": "INVALID_ARGUMENT",
    });
    let body = Bytes::from(json!({ "error": error }).to_string());
    let mut response = Response::new(Either::Left(Full::new(body)));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    let json = HeaderValue::from_static("application/json; charset=UTF-8");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
