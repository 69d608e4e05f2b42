//! Remembered signatures in a file, so that conversations survive a restart.
//!
//! Text: a line with the version and the seeds of the keys, then a line for each signature, the
//! oldest first.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use bytes::Bytes;
use tower_gemini_core::scan::{PartKey, PartKeyer};

use super::store::{Backend, Store};

const VERSION: &str = "tower-gemini-signatures-1";

/// Writes a file beside `path` and renames it, so that a crash leaves the old one whole.
pub(super) fn save(path: &Path, keyer: &PartKeyer, store: &Store) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    // Signatures hold other people's conversations.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = BufWriter::new(options.open(&new)?);
    let [a, b] = keyer.seeds();
    writeln!(file, "{VERSION} {a:016x} {b:016x}")?;
    for (backend, key, signature) in store.iter() {
        let backend = match backend {
            Backend::GeminiApi => "gemini",
            Backend::VertexAi => "vertex",
        };
        write!(file, "{backend} {:032x} ", u128::from(key))?;
        file.write_all(signature)?;
        file.write_all(b"\n")?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(new, path)
}

/// Reads a file into `store`, and gives the keyer that its keys were made by; `None` where there is
/// no file yet.
pub(super) fn load(path: &Path, store: &mut Store) -> io::Result<Option<PartKeyer>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut lines = BufReader::new(file).lines();
    let head = lines.next().transpose()?.unwrap_or_default();
    let keyer = head.strip_prefix(VERSION).and_then(|seeds| {
        let (a, b) = seeds.trim().split_once(' ')?;
        let seed = |text| u64::from_str_radix(text, 16).ok();
        Some(PartKeyer::new([seed(a)?, seed(b)?]))
    });
    let keyer =
        keyer.ok_or_else(|| damaged(1, "it does not begin as a file of signatures does"))?;
    for (number, line) in (2..).zip(lines) {
        let line = line?;
        let mut fields = line.split(' ');
        let backend = match fields.next() {
            Some("gemini") => Some(Backend::GeminiApi),
            Some("vertex") => Some(Backend::VertexAi),
            _ => None,
        };
        let key = fields.next().and_then(|key| u128::from_str_radix(key, 16).ok());
        let (Some(backend), Some(key), Some(signature)) = (backend, key, fields.next()) else {
            return Err(damaged(number, "it is not a signature"));
        };
        store.put(backend, PartKey::from(key), Bytes::copy_from_slice(signature.as_bytes()));
    }
    Ok(Some(keyer))
}

fn damaged(line: u64, why: &str) -> io::Error {
    let message = format!("line {line} of the signatures file cannot be read: {why}");
    io::Error::new(io::ErrorKind::InvalidData, message)
}
