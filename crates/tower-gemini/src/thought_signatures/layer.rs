use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tower_gemini_core::scan::PartKeyer;

use super::Missing;
use super::file;
use super::store::Store;

/// Makes [`ThoughtSignatures`](super::ThoughtSignatures) services that share what they have seen.
#[derive(Clone)]
pub struct ThoughtSignaturesLayer {
    pub(super) missing: Missing,
    pub(super) strict_on_vertex: bool,
    pub(super) keyer: PartKeyer,
    /// `None` where nothing is remembered.
    pub(super) store: Option<Arc<Mutex<Store>>>,
    pub(super) is_off: bool,
}

impl ThoughtSignaturesLayer {
    /// The defaults of the [module](super).
    #[must_use]
    pub fn new() -> Self {
        // The operating system's randomness, without a dependency: nobody outside may know which
        // parts share a key.
        let seed = || RandomState::new().hash_one(0_u8);
        Self {
            missing: Missing::default(),
            strict_on_vertex: false,
            keyer: PartKeyer::new([seed(), seed()]),
            store: Some(Arc::new(Mutex::new(Store::new(1024, 64 << 20)))),
            is_off: false,
        }
    }

    /// Switched off: requests and responses pass unread.
    #[must_use]
    pub fn off() -> Self {
        Self { is_off: true, ..Self::new().remember_nothing() }
    }

    /// What is done about a part whose signature is missing and was never seen here.
    #[must_use]
    pub fn missing(mut self, missing: Missing) -> Self {
        self.missing = missing;
        self
    }

    /// Remembers up to so many signatures, of up to so many bytes in all; those asked for last
    /// stay. Begins empty.
    #[must_use]
    pub fn remember(mut self, max_entries: usize, max_bytes: usize) -> Self {
        self.store = Some(Arc::new(Mutex::new(Store::new(max_entries, max_bytes))));
        self
    }

    /// Remembers nothing: requests are checked, and answers are not read along.
    #[must_use]
    pub fn remember_nothing(mut self) -> Self {
        self.store = None;
        self
    }

    /// Writes what is remembered to a file, for [`load_from`](Self::load_from) after a restart. The
    /// file is replaced whole, and readable by its owner alone. This blocks while it writes up to
    /// the bytes that are remembered.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn save_to(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.with_store(|store| file::save(path.as_ref(), &self.keyer, store)).unwrap_or(Ok(()))
    }

    /// Remembers what [`save_to`](Self::save_to) wrote, within the bounds of
    /// [`remember`](Self::remember). A file that does not exist yet is an empty one. This blocks
    /// while it reads.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is none of signatures: the error says which line.
    pub fn load_from(mut self, path: impl AsRef<Path>) -> io::Result<Self> {
        if let Some(keyer) =
            self.with_store(|store| file::load(path.as_ref(), store)).transpose()?.flatten()
        {
            self.keyer = keyer;
        }
        Ok(self)
    }

    /// Whether Pro models are checked on Vertex AI too, which does not enforce their signatures.
    /// Default `false`.
    #[must_use]
    pub fn strict_on_vertex(mut self, strict: bool) -> Self {
        self.strict_on_vertex = strict;
        self
    }

    /// How many signatures are remembered, and how many bytes they have.
    #[must_use]
    pub fn remembered(&self) -> (usize, usize) {
        self.with_store(|store| (store.len(), store.bytes())).unwrap_or_default()
    }

    pub(super) fn with_store<T>(&self, of: impl FnOnce(&mut Store) -> T) -> Option<T> {
        // Every change to it is whole: none of its calls panics half-way.
        self.store
            .as_ref()
            .map(|store| of(&mut store.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Default for ThoughtSignaturesLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ThoughtSignaturesLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Of what is remembered only how much: signatures have megabytes and are other people's.
        f.debug_struct("ThoughtSignaturesLayer")
            .field("missing", &self.missing)
            .field("strict_on_vertex", &self.strict_on_vertex)
            .field("remembered", &self.remembered())
            .finish_non_exhaustive()
    }
}
