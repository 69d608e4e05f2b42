//! Uploads in several requests: who began one may go on with it.
//!
//! Google answers the first request with an address of its own, at which clients go on without a
//! credential. Led past the gateway, what they create would be nobody's. So the address becomes the
//! gateway's, and the id in it stands for the token that began.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Response, Uri};
use sha2::{Digest, Sha256};

/// Where a client goes on, and where it asks how far it is.
const ADDRESSES: [HeaderName; 2] = [
    HeaderName::from_static("x-goog-upload-url"),
    HeaderName::from_static("x-goog-upload-control-url"),
];
/// Uploads remembered, the latest: about 100 bytes each.
const MAX_UPLOADS: usize = 8192;

/// Uploads that have begun, by digests of their ids. In two generations, of which the older one is
/// dropped whole.
#[derive(Debug, Default)]
pub(crate) struct Uploads(Mutex<[HashMap<[u8; 32], String>; 2]>);

impl Uploads {
    /// The token that began the upload that this address goes on with.
    pub(crate) fn owner(&self, uri: &Uri) -> Option<String> {
        let digest = id_in(uri.path_and_query()?)?;
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find_map(|uploads| uploads.get(&digest)).cloned()
    }

    fn begin(&self, digest: [u8; 32], token: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [recent, older] = &mut *known;
        if recent.len() >= MAX_UPLOADS / 2 {
            *older = std::mem::take(recent);
        }
        recent.insert(digest, token.to_owned());
    }

    /// Makes the addresses in a response the gateway's own, as the client calls it.
    pub(crate) fn lead_back<B>(&self, response: &mut Response<B>, token: &str, here: &Here) {
        for name in ADDRESSES {
            let Some(value) = response.headers_mut().remove(&name) else { continue };
            let address = value.to_str().ok().and_then(|text| text.parse::<Uri>().ok());
            let path = address.as_ref().and_then(Uri::path_and_query);
            // An address that is not understood is not passed on: it leads past the gateway.
            let Some((path, digest)) = path.and_then(|path| Some((path, id_in(path)?))) else {
                continue;
            };
            self.begin(digest, token);
            if let Ok(value) = HeaderValue::try_from(format!("{}{path}", here.0)) {
                response.headers_mut().insert(name, value);
            }
        }
    }
}

/// A digest of `upload_id`.
fn id_in(path: &PathAndQuery) -> Option<[u8; 32]> {
    let mut pairs = path.query()?.split('&');
    let id = pairs.find_map(|pair| pair.strip_prefix("upload_id="))?;
    (!id.is_empty()).then(|| Sha256::digest(id).into())
}

/// How a client calls the gateway: scheme and host.
#[derive(Debug, Clone)]
pub(crate) struct Here(String);

impl Here {
    /// As a request says it. A client that says something else misleads itself.
    pub(crate) fn new(uri: &Uri, headers: &HeaderMap, is_tls: bool) -> Self {
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let forwarded = text(&HeaderName::from_static("x-forwarded-proto"));
        let scheme = if is_tls || forwarded == Some("https") { "https" } else { "http" };
        let host = uri.authority().map(Authority::as_str).or_else(|| text(&HOST));
        Self(format!("{scheme}://{}", host.unwrap_or("localhost")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_goes_on_through_the_gateway_and_is_of_the_token_that_began_it() {
        let uploads = Uploads::default();
        let google = "https://generativelanguage.googleapis.com";
        let path = "/upload/v1beta/files?upload_id=abc&upload_protocol=resumable";
        let mut response = Response::builder()
            .header("x-goog-upload-url", format!("{google}{path}"))
            .header("x-goog-upload-control-url", format!("{google}/elsewhere"))
            .body(())
            .unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("gw.example:8787"));
        let here = Here::new(&Uri::from_static("/upload/v1beta/files"), &headers, true);
        uploads.lead_back(&mut response, "ann", &here);
        let headers = response.headers();
        assert_eq!(headers["x-goog-upload-url"], format!("https://gw.example:8787{path}"));
        assert!(!headers.contains_key("x-goog-upload-control-url"));
        let owner = |path: &str| uploads.owner(&path.parse().unwrap());
        assert_eq!(owner(path).as_deref(), Some("ann"));
        assert_eq!(owner("/upload/v1beta/files?upload_id=abd"), None);
        assert_eq!(owner("/upload/v1beta/files?upload_id="), None);
    }

    #[test]
    fn uploads_that_are_remembered_are_bounded() {
        let uploads = Uploads::default();
        for n in 0..MAX_UPLOADS * 3 {
            uploads.begin(Sha256::digest(n.to_string()).into(), "ann");
        }
        let known = uploads.0.lock().unwrap();
        assert!(known.iter().map(HashMap::len).sum::<usize>() <= MAX_UPLOADS);
    }
}
