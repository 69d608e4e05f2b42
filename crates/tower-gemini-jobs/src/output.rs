//! Images and their records on disk: written whole, or not at all.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tower_gemini::FinalImage;
use tower_gemini::trail::Trail;

use crate::job::Spent;
use crate::store::StoredItem;

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
