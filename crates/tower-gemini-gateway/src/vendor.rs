//! Speaks another vendor's images API in Gemini's name: the layers see a Gemini API.

use std::sync::Arc;
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
use serde_json::{Value, json};
use tower::ServiceExt;
use tower_gemini::CallMemory;
use tower_gemini::body::WireBody;
use tower_gemini::call::{Call, ModelId};
use tower_gemini::error::BoxError;
use tower_gemini::headers;
use tower_gemini::redact::redact;
use tower_gemini::stage::WireClient;
use tower_gemini_openai::vendor::{gemini_response, images_request};

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
/// What is no list of images and no refusal is a failure of somebody else's server, of whose charge
/// nothing is known: in whatever words it says so, they are never taken for Google's, whose errors
/// are free. What broke off is judged by what came of it.
pub(crate) async fn ask<C: WireClient>(
    client: C,
    images_api: Uri,
    request: Request<WireBody>,
) -> Result<Response<VendorBody>, C::Error> {
    let (mut parts, body) = request.into_parts();
    let memory = body.memory();
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
    let (mut parts, body) = client.oneshot(request).await?.into_parts();
    parts.headers = head(&parts.headers, &PASSED);
    let (body, broken) = read(body, memory).await;
    let model = call.model.as_ref().map_or("", ModelId::as_str);
    let Some(response) = gemini_response(model, call.framing, parts.status, &body) else {
        let body = match broken {
            None if !parts.status.is_success() || says_error(&body) => {
                let body = failure(parts.status, &body);
                headers::for_changed_body(&mut parts.headers, Some(body.len() as u64));
                let json = HeaderValue::from_static("application/json");
                parts.headers.insert(CONTENT_TYPE, json);
                Either::Left(Full::new(body))
            }
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

/// An error that a server states is short. What is longer is not looked into.
const LONGEST_ERROR: usize = 64 * 1024;

/// What a vendor's error says, where it says anything.
fn error_of(body: &[u8]) -> Option<Value> {
    let body: Value = serde_json::from_slice(body.get(..LONGEST_ERROR).unwrap_or(body)).ok()?;
    // Google's OpenAI-style API puts it into a list.
    let body = body.get(0).unwrap_or(&body);
    body.get("error").cloned()
}

fn says_error(body: &[u8]) -> bool {
    error_of(body).is_some()
}

/// A failure of the vendor's server, in words of ours. Its own go to the log: "the model is
/// overloaded" reads like Google's.
fn failure(status: StatusCode, body: &[u8]) -> Bytes {
    let error = error_of(body).unwrap_or_default();
    let said = error.get("message").and_then(Value::as_str).unwrap_or_default();
    let status = status.as_u16();
    tracing::warn!(status, said = %redact(said), "another vendor's server failed");
    let message = format!(
        "Another vendor's server answered {status}. What it made before that, and what it charged \
         for it, is not known."
    );
    let error = json!({ "message": message, "type": "vendor_error" });
    json!({ "error": error }).to_string().into()
}

/// These headers only.
fn head(all: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    names.iter().filter_map(|name| Some((name.clone(), all.get(name)?.clone()))).collect()
}

/// Memory is asked for in such steps.
const STEP: usize = 1024 * 1024;

/// As much of a response as came, and why no more did. One that is too long, or for which there is no
/// memory, counts as broken off. It is there twice while it is translated.
async fn read<B>(body: B, memory: Option<Arc<dyn CallMemory>>) -> (Bytes, Option<BoxError>)
where
    B: http_body::Body<Error: Into<BoxError>> + Unpin,
{
    let (mut body, mut read) = (Limited::new(body, LONGEST), Vec::new());
    let mut accounted = 0;
    loop {
        match body.frame().await {
            None => return (read.into(), None),
            Some(Err(error)) => return (read.into(), Some(error)),
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                read.put(data);
                let Some(memory) = memory.as_ref().filter(|_| 2 * read.len() > accounted) else {
                    continue;
                };
                accounted = (2 * read.len()).next_multiple_of(STEP);
                if !memory.try_hold(accounted) && !memory.clone().hold(accounted).await {
                    return (read.into(), Some("there is no memory for the rest of it".into()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::sync::Mutex;

    /// Room for so many bytes, and what was asked for.
    #[derive(Debug)]
    struct Room(usize, Mutex<Vec<usize>>);

    impl CallMemory for Room {
        fn try_hold(&self, bytes: usize) -> bool {
            self.1.lock().unwrap().push(bytes);
            bytes <= self.0
        }

        fn hold(self: Arc<Self>, _: usize) -> Pin<Box<dyn Future<Output = bool> + Send>> {
            Box::pin(std::future::ready(false))
        }
    }

    // A vendor's response was held whole, beside all memory.
    #[tokio::test]
    async fn what_is_read_of_a_vendor_is_accounted_for_and_no_more_than_there_is_room_for() {
        let chunks = |count: usize| {
            let chunk = Bytes::from(vec![b'x'; 300_000]);
            StreamBody::new(iter(
                (0..count).map(move |_| Ok::<_, std::io::Error>(Frame::data(chunk.clone()))),
            ))
        };
        for (count, room, whole) in [(10, 8 * STEP, true), (40, 8 * STEP, false)] {
            let room = Arc::new(Room(room, Mutex::default()));
            let (body, broken) = read(chunks(count), Some(room.clone())).await;
            assert_eq!((body.len() == count * 300_000, broken.is_none()), (whole, whole));
            assert!(body.len() <= 5 * STEP, "{}", body.len());
            let asked = room.1.lock().unwrap();
            assert!(asked.is_sorted() && asked.len() > 2, "{asked:?}");
        }
        let (body, broken) = read(chunks(40), None).await;
        assert_eq!((body.len(), broken.is_none()), (12_000_000, true));
    }
}
