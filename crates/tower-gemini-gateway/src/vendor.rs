//! Speaks another vendor's images API in Gemini's name: the layers see a Gemini API.

use bytes::{BufMut as _, Bytes};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::json;
use tower::ServiceExt;
use tower_gemini::body::WireBody;
use tower_gemini::call::{Call, ModelId};
use tower_gemini::error::BoxError;
use tower_gemini::headers;
use tower_gemini::stage::WireClient;
use tower_gemini_openai::vendor::{gemini_response, images_request};

/// The longest response that is read, as `responses.buffer_up_to` is by default; a 4K image has about
/// 25 MB as base64.
const LONGEST: usize = 64 * 1024 * 1024;

/// Asks for what a Gemini request asks for, and returns the response as Gemini's.
///
/// What is no list of images and no refusal stays as it is, so that it is judged as what it is: the
/// words of somebody else's server, of whose charge nothing is known.
pub(crate) async fn ask<C: WireClient>(
    client: C,
    images_api: Uri,
    request: Request<WireBody>,
) -> Result<Response<Full<Bytes>>, C::Error> {
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
    headers::for_rebuilt_body(&mut parts.headers, Some(translated.len() as u64));
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    parts.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    let request = Request::from_parts(parts, WireBody::from(translated));
    let (mut parts, body) = client.oneshot(request).await?.into_parts();
    let body = read(body).await;
    let model = call.model.as_ref().map_or("", ModelId::as_str);
    let Some(response) = gemini_response(model, call.framing, parts.status, &body) else {
        headers::for_rebuilt_body(&mut parts.headers, Some(body.len() as u64));
        return Ok(Response::from_parts(parts, Full::new(body)));
    };
    headers::for_changed_body(&mut parts.headers, Some(response.body.len() as u64));
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static(response.content_type));
    Ok(Response::from_parts(parts, Full::new(response.body)))
}

/// As much of a response as came: one that broke off, or is too long, is read as such.
async fn read<B>(body: B) -> Bytes
where
    B: http_body::Body<Error: Into<BoxError>> + Unpin,
{
    let (mut body, mut read) = (Limited::new(body, LONGEST), Vec::new());
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            read.put(data);
        }
    }
    read.into()
}

/// Nothing was sent.
fn refused(what: &str) -> Response<Full<Bytes>> {
    let error = json!({
        "code": 400,
        "message": format!("Not sent to another vendor: {what}."),
        "status": "INVALID_ARGUMENT",
    });
    let body = Bytes::from(json!({ "error": error }).to_string());
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    let json = HeaderValue::from_static("application/json; charset=UTF-8");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
