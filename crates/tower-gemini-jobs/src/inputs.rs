//! Where the input images of items come from.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use crate::request::Picture;

/// The most that the images of one item may have together, in bytes: with base64, below the 100 MB
/// that a request may have (Google, 2026-01-12).
pub(crate) const MOST_BYTES: u64 = 70_000_000;

/// The future of [`Inputs`].
pub type Loading = Pin<Box<dyn Future<Output = Result<Bytes, String>> + Send>>;

type Fetch = Arc<dyn Fn(String) -> Loading + Send + Sync>;

/// Loads input images: files below a directory, and URLs where the program can fetch them.
#[derive(Clone)]
pub struct Inputs {
    dir: PathBuf,
    fetch: Option<Fetch>,
}

impl std::fmt::Debug for Inputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inputs").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Inputs {
    /// Relative paths are below this directory.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), fetch: None }
    }

    /// Fetches URLs with this. Default: URLs are refused.
    #[must_use]
    pub fn fetch(mut self, fetch: impl Fn(String) -> Loading + Send + Sync + 'static) -> Self {
        self.fetch = Some(Arc::new(fetch));
        self
    }

    /// The image at a path or URL, or why there is none.
    pub(crate) async fn load(&self, input: &str) -> Result<Picture, String> {
        let is_url = input.starts_with("https://") || input.starts_with("http://");
        let bytes = if is_url {
            let fetch = self.fetch.as_ref().ok_or("URLs cannot be fetched here")?;
            fetch(input.to_owned()).await
        } else {
            let path = self.dir.join(input);
            let length = tokio::fs::metadata(&path).await.map(|file| file.len());
            match length {
                Ok(length) if length > MOST_BYTES => Err("it is too large".to_owned()),
                Ok(_) => tokio::fs::read(&path).await.map(Bytes::from).map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            }
        };
        let bytes = bytes.map_err(|error| format!("input `{input}`: {error}"))?;
        Picture::new(bytes).ok_or_else(|| {
            format!("input `{input}` is no image that Gemini takes: PNG, JPEG, WebP or HEIC")
        })
    }
}
