//! Kept answers as files: what outlives the process.
//!
//! A line of JSON about the answer, then the answer's own bytes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tower_gemini_core::cost::Cost;
use tower_gemini_core::verdict::Outcome;

use super::identity::Identity;
use super::store::Answer;

/// An answer, and for whom it is written down.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) identity: Identity,
    /// The identity is that of a name which a caller gave to this request.
    pub(super) named: Option<Identity>,
    /// Or what [stands in its place](Answer::is_lost): whoever asks is told so, and pays no second
    /// time.
    pub(super) answer: Arc<Answer>,
}

/// Where an answer is written down, if it is. What stands in its place before it is there has the
/// same, so that one file becomes the other.
#[derive(Debug, Default)]
pub(super) struct Record(Mutex<Place>);

#[derive(Debug, Default)]
enum Place {
    #[default]
    Nowhere,
    /// `whole` where the file holds the answer, and not only that there is none; `outdated` where
    /// the answer waits anew since.
    At { path: PathBuf, whole: bool, outdated: bool },
    /// It was given, or nobody may have it any more.
    Gone,
}

/// What is to be done with an answer that is to be written down.
enum Plan {
    /// It is.
    Done,
    /// It was given meanwhile.
    Nothing,
    /// Here, or under a name of its own.
    Write(Option<PathBuf>),
    /// From elsewhere.
    Copy(PathBuf),
}

impl Record {
    fn at(path: PathBuf, whole: bool) -> Self {
        Self(Mutex::new(Place::At { path, whole, outdated: false }))
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        // Each write is one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether both are the same file.
    pub(super) fn is_at_the_place_of(&self, other: &Self) -> bool {
        if std::ptr::eq(self, other) {
            return true;
        }
        let path = match &*self.place() {
            Place::At { path, .. } => path.clone(),
            _ => return false,
        };
        matches!(&*other.place(), Place::At { path: other, .. } if *other == path)
    }

    /// It was given, or nobody may have it any more. Gives the file that has to go.
    pub(super) fn forget(&self) -> Option<PathBuf> {
        match std::mem::replace(&mut *self.place(), Place::Gone) {
            Place::At { path, .. } => Some(path),
            _ => None,
        }
    }

    /// The file that only says that there is no answer has to go. One that holds an answer stays.
    fn forget_word(&self) -> Option<PathBuf> {
        let mut place = self.place();
        match &*place {
            Place::At { whole: false, .. } => match std::mem::replace(&mut *place, Place::Gone) {
                Place::At { path, .. } => Some(path),
                _ => None,
            },
            _ => None,
        }
    }

    /// The file that holds an answer.
    fn whole(&self) -> Option<PathBuf> {
        match &*self.place() {
            Place::At { path, whole: true, .. } => Some(path.clone()),
            _ => None,
        }
    }

    /// Whether a file holds the answer.
    pub(super) fn is_whole(&self) -> bool {
        self.whole().is_some()
    }

    /// The answer waits anew, and not since when its file says.
    pub(super) fn outdate(&self) {
        if let Place::At { outdated, .. } = &mut *self.place() {
            *outdated = true;
        }
    }

    fn plan(&self, dir: &Path, lost: bool) -> Plan {
        match &*self.place() {
            Place::Gone => Plan::Nothing,
            Place::Nowhere => Plan::Write(None),
            Place::At { path, whole, outdated } if path.parent() == Some(dir) => {
                if lost || (*whole && !outdated) {
                    Plan::Done
                } else {
                    Plan::Write(Some(path.clone()))
                }
            }
            // It had to go from memory, and is still there.
            Place::At { path, whole: true, .. } if lost => Plan::Copy(path.clone()),
            Place::At { .. } => Plan::Write(None),
        }
    }

    /// It is written down now. `false` where it was given meanwhile.
    fn settle(&self, path: PathBuf, whole: bool) -> bool {
        let mut place = self.place();
        match &*place {
            Place::Gone => {
                forget(&path);
                return false;
            }
            Place::At { path: before, .. } if *before != path => forget(before),
            _ => {}
        }
        *place = Place::At { path, whole, outdated: false };
        true
    }
}

/// Behind the identity's digits.
const ENDING: &str = "answer";

#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    identity: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    named: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    lost: bool,
    status: u16,
    headers: Vec<(String, String)>,
    /// Milliseconds since 1970.
    at: u64,
    at_least_microusd: u64,
    at_most_microusd: Option<u64>,
    outcome: String,
    bytes: usize,
}

#[derive(Deserialize)]
struct Stamp {
    version: u32,
}

/// Raised with every change of the form, and of what an identity is made of.
const VERSION: u32 = 2;

/// Runs what would block the runtime.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Writes down what is not yet. One that cannot be written keeps none of the others from it; the
/// first error comes at the end.
pub(super) fn save(dir: &Path, all: &[Written], now: SystemTime) -> io::Result<usize> {
    if all.is_empty() {
        return Ok(0);
    }
    fs::create_dir_all(dir)?;
    let (mut saved, mut failed) = (0, None);
    for written in all {
        match save_one(dir, written, now) {
            Ok(is_there) => saved += usize::from(is_there),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(saved), Err)
}

/// `false` where it was given meanwhile.
fn save_one(dir: &Path, written: &Written, now: SystemTime) -> io::Result<bool> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let Written { identity, answer, .. } = written;
    let plan = answer.record.plan(dir, answer.is_lost());
    let path = match &plan {
        Plan::Done => return Ok(true),
        Plan::Nothing => return Ok(false),
        Plan::Write(Some(path)) => path.clone(),
        Plan::Write(None) | Plan::Copy(_) => {
            // The process and the moment are in the name: an earlier process's file of the same
            // request is another answer.
            let (at, number) = (millis(now), NUMBER.fetch_add(1, Ordering::Relaxed));
            dir.join(format!("{}-{at}-{}-{number}.{ENDING}", identity.to_hex(), std::process::id()))
        }
    };
    let unfinished = path.with_extension("unfinished");
    let done = match &plan {
        Plan::Copy(from) => fs::copy(from, &unfinished)
            .and_then(|_| File::open(&unfinished))
            .and_then(|copy| copy.sync_all())
            .map(|()| true),
        _ => write(&unfinished, written, now).map(|()| !answer.is_lost()),
    };
    let done = done.and_then(|whole| fs::rename(&unfinished, &path).map(|()| whole));
    match done {
        Ok(whole) => Ok(answer.record.settle(path, whole)),
        Err(error) => {
            let _ = fs::remove_file(unfinished);
            Err(error)
        }
    }
}

fn write(path: &Path, written: &Written, now: SystemTime) -> io::Result<()> {
    let Written { identity, named, answer } = written;
    let at = now.checked_sub(answer.at.elapsed()).unwrap_or(now);
    let head = Head {
        version: VERSION,
        identity: identity.to_hex(),
        named: named.map(Identity::to_hex),
        lost: answer.is_lost(),
        status: answer.status.as_u16(),
        headers: answer
            .headers
            .iter()
            .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())))
            .collect(),
        at: millis(at),
        at_least_microusd: answer.cost.at_least_microusd,
        at_most_microusd: answer.cost.at_most_microusd,
        outcome: answer.outcome.as_str().to_owned(),
        bytes: answer.chunks.iter().map(Bytes::len).sum(),
    };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = BufWriter::new(options.open(path)?);
    serde_json::to_writer(&mut file, &head)?;
    file.write_all(b"\n")?;
    for chunk in &answer.chunks {
        file.write_all(chunk)?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// All whole answers that are not too old, the oldest first.
pub(super) fn load(
    dir: &Path,
    retention: Duration,
    now: SystemTime,
    steady: Instant,
) -> io::Result<Vec<Written>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|ending| ending != ENDING) {
            continue;
        }
        match load_one(&path) {
            Ok((identity, named, head, body)) => {
                let age = now
                    .duration_since(SystemTime::UNIX_EPOCH + Duration::from_millis(head.at))
                    .unwrap_or_default();
                if age >= retention {
                    forget(&path);
                    continue;
                }
                let at = head.at;
                let answer =
                    Arc::new(answer(head, body, path, steady.checked_sub(age).unwrap_or(steady)));
                found.push((at, Written { identity, named, answer }));
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                tracing::warn!(file = %path.display(), %error, "a kept answer is damaged and cannot be given");
                // Looked at once is enough; a person may still want to see it.
                let _ = fs::rename(&path, path.with_extension("damaged"));
            }
            // Another time it may be read, or by another version.
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "a kept answer cannot be read, and stays where it is")
            }
        }
    }
    found.sort_by_key(|(at, ..)| *at);
    Ok(found.into_iter().map(|(_, written)| written).collect())
}

fn load_one(path: &Path) -> io::Result<(Identity, Option<Identity>, Head, Vec<u8>)> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut file = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    // A head is far below this; a file without a line is read no further.
    (&mut file).take(1024 * 1024).read_until(b'\n', &mut line)?;
    // First, as another version's head may be another one.
    if serde_json::from_slice::<Stamp>(&line)?.version != VERSION {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "it was written by another version",
        ));
    }
    let head: Head = serde_json::from_slice(&line)?;
    let of =
        |hex: &str| Identity::from_hex(hex).ok_or_else(|| wrong("it does not say whose it is"));
    let (identity, named) = (of(&head.identity)?, head.named.as_deref().map(of).transpose()?);
    let mut body = Vec::new();
    file.read_to_end(&mut body)?;
    if body.len() != head.bytes {
        return Err(wrong("it is not whole"));
    }
    Ok((identity, named, head, body))
}

fn answer(head: Head, body: Vec<u8>, file: PathBuf, at: Instant) -> Answer {
    let mut headers = HeaderMap::new();
    for (name, value) in head.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.append(name, value);
        }
    }
    let record = Arc::new(Record::at(file, !head.lost));
    if head.lost {
        return Answer { record, ..Answer::lost(at) };
    }
    Answer {
        status: StatusCode::from_u16(head.status).unwrap_or(StatusCode::OK),
        headers,
        bytes: body.len(),
        chunks: vec![Bytes::from(body)],
        at,
        cost: Cost {
            at_least_microusd: head.at_least_microusd,
            at_most_microusd: head.at_most_microusd,
        },
        verdict: None,
        outcome: Outcome::ALL
            .iter()
            .copied()
            .find(|outcome| outcome.as_str() == head.outcome)
            .unwrap_or(Outcome::Other),
        record,
    }
}

/// Reads the answer in whose place a loss stands.
pub(super) async fn read(loss: &Answer) -> io::Result<Answer> {
    let path = loss.record.whole().ok_or(io::ErrorKind::NotFound)?;
    let (record, at) = (loss.record.clone(), loss.at);
    blocking(move || {
        let (_, _, head, body) = load_one(&path)?;
        Ok(Answer { record, ..answer(head, body, path, at) })
    })
    .await
}

/// It was given, or nobody may have it any more: where it is written down it goes.
pub(super) fn remove_file(record: &Record) {
    remove(record.forget());
}

/// Its loss was told, or cannot be remembered. What holds an answer stays, for the next process.
pub(super) fn remove_word(record: &Record) {
    remove(record.forget_word());
}

fn remove(file: Option<PathBuf>) {
    let Some(file) = file else { return };
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(move || forget(&file))),
        Err(_) => forget(&file),
    }
}

fn forget(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!(file = %path.display(), %error, "the file of a kept answer that was given could not be removed");
        }
    }
}

fn millis(at: SystemTime) -> u64 {
    u64::try_from(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis())
        .unwrap_or(u64::MAX)
}
