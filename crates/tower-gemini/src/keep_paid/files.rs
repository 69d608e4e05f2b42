//! Calls as files: what outlives the process.
//!
//! A line of JSON about the call, then the bytes of its response.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::fingerprint::Fingerprint;
use super::stored::{self, CallId, ResponseHead, StoredResponse};
use crate::store::{JournalRecord, JournalResponse};

/// A call that is or was written to a file.
#[derive(Debug)]
pub(super) struct SavedCall {
    pub(super) id: CallId,
    /// The request that an `Idempotency-Key` was used for.
    pub(super) keyed_request: Option<Fingerprint>,
    pub(super) since: Instant,
    /// `None`: it is lost. Whoever asks for it is told, and does not pay a second time.
    pub(super) response: Option<Arc<StoredResponse>>,
    pub(super) file: Option<CallFile>,
}

impl SavedCall {
    /// A call of a journal that this process took over.
    pub(super) fn taken_over(
        record: &JournalRecord,
        response: Option<JournalResponse>,
        now_ms: i64,
        steady: Instant,
    ) -> Self {
        let age = u64::try_from(now_ms).unwrap_or(0).saturating_sub(record.since_ms);
        let since = steady.checked_sub(Duration::from_millis(age)).unwrap_or(steady);
        Self {
            id: CallId { fingerprint: Fingerprint(record.fingerprint), number: record.call },
            keyed_request: record.keyed_request.map(Fingerprint),
            since,
            response: response.and_then(|response| stored::decode(response, since)),
            file: None,
        }
    }
}

/// Where a call is written down.
#[derive(Debug, Clone)]
pub(super) struct CallFile {
    pub(super) path: PathBuf,
    /// The file holds the response, and not only that there is none.
    pub(super) has_response: bool,
    /// When, by the file, the response was stored.
    pub(super) since: Instant,
}

/// The extension of a call's file, and that of the versions before 3.
const EXTENSIONS: [&str; 2] = ["response", "answer"];

#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    /// The call's number and fingerprint, in hexadecimal digits.
    call: String,
    fingerprint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keyed_request: Option<String>,
    /// Milliseconds since 1970.
    since: u64,
    /// `None`: the call is lost.
    response: Option<ResponseHead>,
}

#[derive(Deserialize)]
struct Stamp {
    version: u32,
}

/// Raised with every change of the format, and of what a fingerprint is made of.
const VERSION: u32 = 3;

/// Runs what would block the runtime.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Writes a call to `dir`, unless its file there is up to date.
pub(super) fn save(dir: &Path, call: &SavedCall, now: SystemTime) -> io::Result<CallFile> {
    let path = dir.join(format!("{:032x}.{}", call.id.number, EXTENSIONS[0]));
    let before = call.file.as_ref();
    let is_current = |file: &&CallFile| {
        file.path == path
            && (call.response.is_none() || (file.has_response && file.since == call.since))
    };
    if let Some(current) = before.filter(is_current) {
        return Ok(current.clone());
    }
    fs::create_dir_all(dir)?;
    // The response had to make room in memory, and is still in a file elsewhere.
    let copied = before.filter(|file| call.response.is_none() && file.has_response);
    let unfinished = path.with_extension("unfinished");
    let written = match copied {
        Some(file) => fs::copy(&file.path, &unfinished)
            .and_then(|_| File::open(&unfinished))
            .and_then(|copy| copy.sync_all()),
        None => write(&unfinished, call, now),
    };
    if let Err(error) = written.and_then(|()| fs::rename(&unfinished, &path)) {
        let _ = fs::remove_file(unfinished);
        return Err(error);
    }
    let has_response = copied.is_some() || call.response.is_some();
    Ok(CallFile { path, has_response, since: call.since })
}

fn write(path: &Path, call: &SavedCall, now: SystemTime) -> io::Result<()> {
    let since = now.checked_sub(call.since.elapsed()).unwrap_or(now);
    let millis = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let head = Head {
        version: VERSION,
        call: format!("{:032x}", call.id.number),
        fingerprint: call.id.fingerprint.to_hex(),
        keyed_request: call.keyed_request.map(Fingerprint::to_hex),
        since: u64::try_from(millis).unwrap_or(u64::MAX),
        response: call.response.as_deref().map(ResponseHead::of),
    };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = BufWriter::new(options.open(path)?);
    serde_json::to_writer(&mut file, &head)?;
    file.write_all(b"\n")?;
    for chunk in call.response.iter().flat_map(|response| &response.chunks) {
        file.write_all(chunk)?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// All whole calls that are not too old, the oldest first.
pub(super) fn load(
    dir: &Path,
    retention: Duration,
    now: SystemTime,
    steady: Instant,
) -> io::Result<Vec<SavedCall>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if !extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) {
            continue;
        }
        let mut age = Duration::ZERO;
        let since = |since| {
            age = now.duration_since(since).unwrap_or_default();
            steady.checked_sub(age).unwrap_or(steady)
        };
        match read(&path, since) {
            Ok(_) if age >= retention => delete(&path),
            Ok(call) => found.push(call),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                tracing::warn!(file = %path.display(), %error, "the file of a stored response is damaged");
                // One look is enough; a person may still want to see it.
                let _ = fs::rename(&path, path.with_extension("damaged"));
            }
            // It may be readable another time, or by another version.
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "the file of a stored response was left unread");
            }
        }
    }
    found.sort_by_key(|call| call.since);
    Ok(found)
}

/// Reads a call; `since` turns the date in the file into an instant of this process.
fn read(path: &Path, since: impl FnOnce(SystemTime) -> Instant) -> io::Result<SavedCall> {
    let damaged = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut file = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    // A head is far below this; a file without a line is read no further.
    (&mut file).take(1024 * 1024).read_until(b'\n', &mut line)?;
    // The version first: another version's head may have another form.
    let version = serde_json::from_slice::<Stamp>(&line)?.version;
    if version != VERSION {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("it has format version {version}, and this is version {VERSION}"),
        ));
    }
    let head: Head = serde_json::from_slice(&line)?;
    let mut body = Vec::new();
    file.read_to_end(&mut body)?;
    if body.len() != head.response.as_ref().map_or(0, |response| response.bytes) {
        return Err(damaged("it is not whole"));
    }
    let since = since(SystemTime::UNIX_EPOCH + Duration::from_millis(head.since));
    decode(head, body, path.to_owned(), since).ok_or_else(|| damaged("it does not say whose it is"))
}

fn decode(head: Head, body: Vec<u8>, path: PathBuf, since: Instant) -> Option<SavedCall> {
    let number = u128::from_str_radix(&head.call, 16).ok()?;
    let id = CallId { fingerprint: Fingerprint::from_hex(&head.fingerprint)?, number };
    let keyed_request = match &head.keyed_request {
        Some(hex) => Some(Fingerprint::from_hex(hex)?),
        None => None,
    };
    let file = CallFile { path, has_response: head.response.is_some(), since };
    let response = head.response.map(|head| Arc::new(head.with_body(Bytes::from(body), since)));
    Some(SavedCall { id, keyed_request, since, response, file: Some(file) })
}

/// Reads the response of a call that had to make room in memory.
pub(super) async fn read_response(file: CallFile) -> io::Result<Arc<StoredResponse>> {
    blocking(move || {
        let call = read(&file.path, |_| file.since)?;
        call.response.ok_or_else(|| io::ErrorKind::NotFound.into())
    })
    .await
}

/// Deletes files without blocking the runtime.
pub(super) fn delete_all(files: Vec<PathBuf>) {
    if files.is_empty() {
        return;
    }
    let delete_all = move || files.iter().for_each(|file| delete(file));
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(delete_all)),
        Err(_) => delete_all(),
    }
}

fn delete(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!(file = %path.display(), %error, "the file of a stored response could not be deleted");
        }
    }
}
