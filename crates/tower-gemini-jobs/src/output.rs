//! Images and their records on disk: written whole, or not at all.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tower_gemini::FinalImage;
use tower_gemini::trail::Trail;

use crate::job::{ItemState, Spent};
use crate::store::{JobStore, StoreError, StoredItem};

/// One line of a job's manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Record {
    /// The number of the item in its job.
    pub number: i64,
    /// What was asked for.
    pub prompt: String,
    /// The model that drew it, as its response says.
    pub model: String,
    /// The id of the response that brought it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_id: Option<String>,
    /// The requested size, where one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// The lane it came by.
    pub lane: String,
    /// Its image files, below the directory of the job.
    pub images: Vec<ImageFile>,
    /// What it cost, in millionths of a US dollar: all calls for it.
    pub at_least_microusd: u64,
    /// At most.
    pub at_most_microusd: u64,
    /// What the last call itself cost. The store adds it to the calls before.
    pub last_call: (u64, u64),
    /// Requests sent in the last call.
    pub requests: u32,
    /// In what it differs from what was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub degraded: Vec<String>,
    /// The steps of the last call.
    pub trail: serde_json::Value,
}

/// An image file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ImageFile {
    /// Its path below the directory of the job.
    pub file: String,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Width in pixels, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// Height in pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
}

/// What is known of a delivered call beside its images.
#[derive(Debug)]
pub(crate) struct Delivered {
    pub(crate) spent: Spent,
    pub(crate) requests: u32,
    pub(crate) degraded: Vec<String>,
    pub(crate) trail: Trail,
}

/// Where a job's files are.
pub(crate) fn dir_of(root: &Path, job: &str) -> PathBuf {
    root.join(job)
}

/// Where an item's record is, by which a worker sees after a crash that its images are there.
fn record_path(root: &Path, item: &StoredItem) -> PathBuf {
    dir_of(root, &item.job).join(".items").join(format!("{}.json", item.number))
}

/// Writes the images of an item, then its record. The record comes last: where it is, all is there.
///
/// # Errors
///
/// A disk that is full or cannot be written. Nothing half-written has the name of an image.
pub(crate) fn write(
    root: &Path,
    item: &StoredItem,
    image: &FinalImage,
    delivered: &Delivered,
) -> io::Result<Record> {
    let dir = dir_of(root, &item.job);
    let mut images = Vec::new();
    let sizes = std::iter::once((image.width, image.height))
        .chain(image.others.iter().map(|other| (other.width, other.height)));
    for ((file, bytes), (width, height)) in image.files(&item.output).zip(sizes) {
        write_whole(&dir.join(&file), bytes)?;
        images.push(ImageFile {
            sha256: sha256(bytes),
            bytes: bytes.len() as u64,
            file,
            width,
            height,
        });
    }
    let spent = Spent {
        at_least_microusd: item.spent.at_least_microusd + delivered.spent.at_least_microusd,
        at_most_microusd: item.spent.at_most_microusd + delivered.spent.at_most_microusd,
    };
    let record = Record {
        number: item.number,
        prompt: item.item.prompt.clone(),
        model: image.model_version.clone().unwrap_or_else(|| item.model.clone()),
        response_id: image.response_id.clone(),
        size: item.item.size.map(|size| size.to_string()),
        lane: item.lane.to_string(),
        images,
        at_least_microusd: spent.at_least_microusd,
        at_most_microusd: spent.at_most_microusd,
        last_call: (delivered.spent.at_least_microusd, delivered.spent.at_most_microusd),
        requests: delivered.requests,
        degraded: delivered.degraded.clone(),
        trail: serde_json::to_value(delivered.trail.steps()).unwrap_or_default(),
    };
    let json = serde_json::to_vec(&record).map_err(io::Error::other)?;
    write_whole(&record_path(root, item), &json)?;
    Ok(record)
}

/// The record that an earlier worker left of this claim of the item.
pub(crate) fn read_record(root: &Path, item: &StoredItem) -> Option<Record> {
    let text = std::fs::read(record_path(root, item)).ok()?;
    let record: Record = serde_json::from_slice(&text).ok()?;
    let dir = dir_of(root, &item.job);
    let whole = record.images.iter().all(|image| {
        std::fs::metadata(dir.join(&image.file)).is_ok_and(|file| file.len() == image.bytes)
    });
    (whole && record.number == item.number).then_some(record)
}

/// Removes the record of an item that is drawn anew.
pub(crate) fn forget(root: &Path, item: &StoredItem) {
    let _ = std::fs::remove_file(record_path(root, item));
}

/// The first image of an item that is done.
pub(crate) fn first_image(root: &Path, job: &str, record: &Record) -> io::Result<Bytes> {
    let file = record.images.first().ok_or_else(|| io::Error::other("it has no image"))?;
    std::fs::read(dir_of(root, job).join(&file.file)).map(Bytes::from)
}

/// Writes a file under another name, makes it durable, and gives it its name.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.{:08x}.tmp", fastrand::u32(..)));
    let written = std::fs::File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Copies the images of a job into a directory, with `manifest.jsonl`. The number of images.
///
/// # Errors
///
/// The store failed, or a file cannot be read or written; what was copied before is whole.
pub async fn copy_images(
    store: &JobStore,
    job: &str,
    root: &Path,
    out: &Path,
) -> Result<u64, StoreError> {
    let (mut manifest, mut copied) = (String::new(), 0);
    for_each_record(store, job, |record, line| {
        for image in &record.images {
            let from = dir_of(root, job).join(&image.file);
            let copy =
                std::fs::read(&from).and_then(|bytes| write_whole(&out.join(&image.file), &bytes));
            copy.map_err(|error| StoreError::new(format_args!("{}: {error}", image.file)))?;
            copied += 1;
        }
        manifest.push_str(line);
        manifest.push('\n');
        Ok(())
    })
    .await?;
    write_whole(&out.join("manifest.jsonl"), manifest.as_bytes())
        .map_err(|error| StoreError::new(format_args!("manifest.jsonl: {error}")))?;
    Ok(copied)
}

/// Removes a job that has ended, with its images. `false` where it has not, or something of it is
/// still in flight.
///
/// # Errors
///
/// The store failed, or a file cannot be removed: the job stays, and can be removed again.
pub async fn delete_job(store: &JobStore, job: &str, root: &Path) -> Result<bool, StoreError> {
    let dir = dir_of(root, job);
    let files = || match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    store.delete(job, files).await
}

/// The manifest of a job as CSV: a row an image.
///
/// # Errors
///
/// The store failed.
pub async fn manifest_csv(store: &JobStore, job: &str) -> Result<String, StoreError> {
    let mut rows = csv::Writer::from_writer(Vec::new());
    let header = [
        "number",
        "file",
        "prompt",
        "model",
        "size",
        "lane",
        "width",
        "height",
        "bytes",
        "sha256",
        "at_least_usd",
        "at_most_usd",
        "requests",
    ];
    rows.write_record(header).map_err(StoreError::new)?;
    for_each_record(store, job, |record, _| {
        for (at, image) in record.images.iter().enumerate() {
            let of_first = |text: String| if at == 0 { text } else { String::new() };
            let pixels = |pixels: Option<u32>| pixels.map(|n| n.to_string()).unwrap_or_default();
            let row = [
                record.number.to_string(),
                image.file.clone(),
                record.prompt.clone(),
                record.model.clone(),
                record.size.clone().unwrap_or_default(),
                record.lane.clone(),
                pixels(image.width),
                pixels(image.height),
                image.bytes.to_string(),
                image.sha256.clone(),
                of_first(dollars(record.at_least_microusd)),
                of_first(dollars(record.at_most_microusd)),
                of_first(record.requests.to_string()),
            ];
            rows.write_record(row).map_err(StoreError::new)?;
        }
        Ok(())
    })
    .await?;
    let bytes = rows.into_inner().map_err(|error| StoreError::new(error.error()))?;
    String::from_utf8(bytes).map_err(StoreError::new)
}

#[allow(clippy::cast_precision_loss, reason = "a price with six digits")]
fn dollars(microusd: u64) -> String {
    format!("{:.6}", microusd as f64 / 1e6)
}

/// Every line of a job's manifest, in order.
async fn for_each_record(
    store: &JobStore,
    job: &str,
    mut with: impl FnMut(&Record, &str) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut after = 0;
    loop {
        let page = store.items(job, Some(ItemState::Done), after, 500).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.number;
        for line in page.iter().filter_map(|item| item.result.as_deref()) {
            let record: Record = serde_json::from_str(line).map_err(StoreError::new)?;
            with(&record, line)?;
        }
    }
}
