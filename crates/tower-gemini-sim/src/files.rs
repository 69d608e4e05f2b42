//! Files that were uploaded, and files that batches made.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Uri};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::api_error::ApiError;
use crate::builder::Builder;
use crate::hash::{hash64, letters};
use crate::json::{Json, obj};
use crate::lock;
use crate::reply::{Page, Reply};
use crate::request::field;

/// How long an uploaded file is kept (ai.google.dev "Files API", 2026-07).
const KEPT_FOR: Duration = Duration::from_secs(48 * 3600);

/// The alphabet of the ids of files and batches in recorded responses.
pub(crate) const ID_LETTERS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// A file that is kept.
#[derive(Debug, Clone)]
struct File {
    project: Arc<str>,
    id: String,
    display_name: Option<String>,
    mime: String,
    created: Duration,
    bytes: Bytes,
}

/// A file that is being sent.
#[derive(Debug)]
struct Upload {
    project: Arc<str>,
    id: String,
    display_name: Option<String>,
    mime: String,
    received: BytesMut,
}

/// All files, of all projects.
#[derive(Debug, Default)]
pub(crate) struct Files(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    files: Vec<File>,
    uploads: HashMap<String, Upload>,
    started: u64,
}

fn no_such_file(id: &str) -> ApiError {
    ApiError::named("no_such_file", &[("{id}", id)])
}

impl Files {
    /// Starts the upload of a file, in the resumable protocol or in one request.
    pub(crate) fn start(
        &self,
        project: &Arc<str>,
        settings: &Builder,
        uri: &Uri,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Reply, ApiError> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if text("x-goog-upload-protocol") != Some("resumable") {
            return Err(ApiError::invalid("Only the resumable upload protocol is supported."));
        }
        let asked: Value = serde_json::from_slice(body).unwrap_or_default();
        let file = asked.get("file").unwrap_or(&Value::Null);
        let said = |name| field(file, name).and_then(Value::as_str).map(str::to_owned);
        let mut inner = lock(&self.0);
        inner.started += 1;
        let seed = settings.seed ^ hash64(b"file") ^ inner.started;
        let name = said("name").map(|name| name.trim_start_matches("files/").to_owned());
        let upload = Upload {
            project: project.clone(),
            id: name.unwrap_or_else(|| letters(ID_LETTERS, seed, 12)),
            display_name: said("displayName"),
            mime: text("x-goog-upload-header-content-type")
                .map(str::to_owned)
                .or_else(|| said("mimeType"))
                .unwrap_or_else(|| "application/octet-stream".to_owned()),
            received: BytesMut::new(),
        };
        let session = letters(ID_LETTERS, !seed, 32);
        // SDKs send to this address as it is, so it names the host that they asked.
        let host = uri.authority().map(|host| host.as_str()).or_else(|| text("host"));
        let address = format!(
            "{}://{}{}?upload_id={session}&upload_protocol=resumable",
            uri.scheme_str().unwrap_or("http"),
            host.unwrap_or("localhost"),
            uri.path()
        );
        inner.uploads.insert(session, upload);
        let reply = Reply { body: Vec::new(), ..Reply::empty() };
        Ok(reply
            .header("x-goog-upload-status", "active".to_owned())
            .header("x-goog-upload-url", address)
            .header("x-goog-upload-chunk-granularity", "262144".to_owned()))
    }

    /// Goes on with an upload: `upload`, `finalize`, both, or `query`. Its id is its only credential.
    pub(crate) fn go_on(
        &self,
        session: &str,
        settings: &Builder,
        headers: &HeaderMap,
        body: &Bytes,
        now: Duration,
    ) -> Result<Reply, ApiError> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let has = |command| {
            let commands = text("x-goog-upload-command").unwrap_or_default();
            commands.split(',').any(|word| word.trim() == command)
        };
        let mut inner = lock(&self.0);
        let Some(upload) = inner.uploads.get_mut(session) else {
            return Err(ApiError::named("not_found_entity", &[]));
        };
        if has("upload") {
            let offset = text("x-goog-upload-offset").and_then(|offset| offset.parse().ok());
            if offset != Some(upload.received.len()) {
                return Err(ApiError::invalid(format!(
                    "X-Goog-Upload-Offset is not {}, the size received so far.",
                    upload.received.len()
                )));
            }
            upload.received.extend_from_slice(body);
        }
        if !has("finalize") {
            let received = upload.received.len().to_string();
            let reply = Reply { body: Vec::new(), ..Reply::empty() };
            return Ok(reply
                .header("x-goog-upload-status", "active".to_owned())
                .header("x-goog-upload-size-received", received));
        }
        let Some(upload) = inner.uploads.remove(session) else { return Ok(Reply::empty()) };
        let file = File {
            project: upload.project,
            id: upload.id,
            display_name: upload.display_name,
            mime: upload.mime,
            created: now,
            bytes: upload.received.freeze(),
        };
        let reply = Reply::json(obj! { "file": file.json(settings) });
        inner.files.push(file);
        Ok(reply.header("x-goog-upload-status", "final".to_owned()))
    }

    /// The bytes of a file that was uploaded.
    pub(crate) fn bytes(
        &self,
        project: &Arc<str>,
        id: &str,
        now: Duration,
    ) -> Result<Bytes, ApiError> {
        self.find(project, id, now).map(|file| file.bytes)
    }

    pub(crate) fn get(
        &self,
        project: &Arc<str>,
        id: &str,
        settings: &Builder,
        now: Duration,
    ) -> Result<Reply, ApiError> {
        Ok(Reply::json(self.find(project, id, now)?.json(settings)))
    }

    /// What only generated files allow.
    pub(crate) fn download(
        &self,
        project: &Arc<str>,
        id: &str,
        now: Duration,
    ) -> Result<Reply, ApiError> {
        self.find(project, id, now)?;
        Err(ApiError::named("not_downloadable", &[("{id}", id)]))
    }

    pub(crate) fn list(
        &self,
        project: &Arc<str>,
        settings: &Builder,
        uri: &Uri,
        now: Duration,
    ) -> Result<Reply, ApiError> {
        let inner = lock(&self.0);
        let alive: Vec<_> =
            inner.files.iter().rev().filter(|file| file.is_of(project, now)).collect();
        let page = Page::of(uri, &alive, |file| file.id.as_str())?;
        let files: Vec<Json> = page.items.iter().map(|file| file.json(settings)).collect();
        Ok(Reply::json(obj! { "files": files, "nextPageToken": page.next }))
    }

    pub(crate) fn delete(
        &self,
        project: &Arc<str>,
        id: &str,
        now: Duration,
    ) -> Result<Reply, ApiError> {
        self.find(project, id, now)?;
        lock(&self.0).files.retain(|file| file.id != id || file.project != *project);
        Ok(Reply::empty())
    }

    pub(crate) fn clear(&self) {
        lock(&self.0).files.clear();
    }

    fn find(&self, project: &Arc<str>, id: &str, now: Duration) -> Result<File, ApiError> {
        let inner = lock(&self.0);
        let found = inner.files.iter().find(|file| file.id == id && file.is_of(project, now));
        found.cloned().ok_or_else(|| no_such_file(id))
    }
}

impl File {
    fn is_of(&self, project: &Arc<str>, now: Duration) -> bool {
        self.project == *project && now < self.created + KEPT_FOR
    }

    fn json(&self, settings: &Builder) -> Json {
        let created = settings.timestamp(self.created);
        obj! {
            "name": format!("files/{}", self.id),
            "displayName": self.display_name.clone(),
            "mimeType": self.mime.clone(),
            "sizeBytes": self.bytes.len().to_string(),
            "createTime": created.clone(),
            "updateTime": created,
            "expirationTime": settings.timestamp(self.created + KEPT_FOR),
            "sha256Hash": STANDARD.encode(Sha256::digest(&self.bytes)),
            "uri": file_uri(&self.id),
            "state": "ACTIVE",
            "source": "UPLOADED",
        }
    }
}

fn file_uri(id: &str) -> String {
    format!("https://generativelanguage.googleapis.com/v1beta/files/{id}")
}

/// A file that a batch made, as the Files API describes it.
pub(crate) fn generated(id: &str, size: usize, created: String) -> Json {
    obj! {
        "name": format!("files/{id}"),
        "mimeType": "application/jsonl",
        "sizeBytes": size.to_string(),
        "createTime": created.clone(),
        "updateTime": created,
        "uri": file_uri(id),
        "downloadUri": format!("{}:download?alt=media", file_uri(id)),
        "state": "ACTIVE",
        "source": "GENERATED",
    }
}
