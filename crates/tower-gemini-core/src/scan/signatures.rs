//! The thought signatures of an answer's parts, each with a key that finds its part again in a later request.
//!
//! Clients send a model's turn back re-encoded: base64 in the other alphabet (google-genai in Python, measured 2026-11), JSON in
//! other spellings. So a part is known by a keyed hash of what it decodes to.

use std::fmt;
use std::hash::Hasher;

use bytes::Bytes;
use siphasher::sip128::{Hasher128, SipHasher13};

use super::base64::{Decoder, Output};

/// A text is known by its first 8 KiB, the same bound that [`Answer::text`](super::Answer::text) has.
pub(crate) const MAX_TEXT: usize = 8 << 10;
/// Parts with a signature that are listed; no model makes more than a dozen.
const MAX_PARTS: usize = 64;
/// All signatures of one answer together: the largest recorded has 2.91 MB, and ten drafts with one each have been seen.
const MAX_BYTES: usize = 64 << 20;

/// The secret of a set of [`PartKey`]s: without it nobody can make a part that is taken for another.
///
/// Two sets are as different as their seeds.
#[derive(Clone, Copy)]
pub struct PartKeyer(u64, u64);

impl fmt::Debug for PartKeyer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The seeds are the secret.
        f.write_str("PartKeyer")
    }
}

/// What a part of a conversation is known by: a keyed hash of the decoded image or of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartKey(u128);

impl PartKeyer {
    /// A set of keys by two seeds, which should be random.
    #[must_use]
    pub fn new(seeds: [u64; 2]) -> Self {
        Self(seeds[0], seeds[1])
    }

    /// The key of an image by its base64, in either alphabet, padded or not. `None` where it is not base64.
    ///
    /// ```
    /// use tower_gemini_core::scan::PartKeyer;
    ///
    /// let keyer = PartKeyer::new([1, 2]);
    /// assert_eq!(keyer.image_base64(b"++//AA=="), keyer.image_base64(b"--__AA"));
    /// assert_ne!(keyer.image_base64(b"++//AA=="), keyer.image_base64(b"++//AQ=="));
    /// assert_eq!(keyer.image_base64(b"?"), None);
    /// ```
    #[must_use]
    pub fn image_base64(&self, base64: &[u8]) -> Option<PartKey> {
        let mut data = DataHash::new(self);
        data.push(base64);
        data.finish()
    }

    /// The key of a text.
    #[must_use]
    pub fn text(&self, text: &str) -> PartKey {
        let mut end = text.len().min(MAX_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut hasher = self.hasher(b't');
        hasher.write(text.get(..end).unwrap_or_default().as_bytes());
        PartKey(hasher.finish128().as_u128())
    }

    fn hasher(&self, kind: u8) -> SipHasher13 {
        let mut hasher = SipHasher13::new_with_keys(self.0, self.1);
        // An image that spells a text is another part than the text.
        hasher.write_u8(kind);
        hasher
    }
}

/// One part of an answer that came with a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartSignature {
    /// What the part is known by.
    pub part: PartKey,
    /// Its signature, as spelled (base64).
    pub signature: Bytes,
}

/// Base64 in pieces on its way to a hash of what it decodes to.
struct DataHash {
    decoder: Decoder,
    hash: HashOutput,
}

struct HashOutput {
    hasher: SipHasher13,
    room: Vec<u8>,
    len: u64,
}

impl Output for HashOutput {
    type Error = std::convert::Infallible;

    fn room(&mut self, n: usize) -> Result<&mut [u8], Self::Error> {
        if self.room.len() < n {
            self.room.resize(n, 0);
        }
        Ok(self.room.get_mut(..n).unwrap_or_default())
    }

    fn written(&mut self, n: usize) -> Result<(), Self::Error> {
        self.hasher.write(self.room.get(..n).unwrap_or_default());
        self.len += n as u64;
        Ok(())
    }
}

impl DataHash {
    fn new(keyer: &PartKeyer) -> Self {
        Self { decoder: Decoder::default(), hash: HashOutput { hasher: keyer.hasher(b'i'), room: Vec::new(), len: 0 } }
    }

    fn push(&mut self, piece: &[u8]) {
        let Ok(_) = self.decoder.push(piece, &mut self.hash);
    }

    fn finish(mut self) -> Option<PartKey> {
        let Ok(good) = self.decoder.finish(&mut self.hash);
        (good && self.hash.len > 0).then(|| PartKey(self.hash.hasher.finish128().as_u128()))
    }
}

/// Gathers the signatures of an answer's parts while the reader passes them.
pub(super) struct Collector {
    keyer: PartKeyer,
    data: Option<DataHash>,
    /// Of the part at hand.
    image: Option<PartKey>,
    bytes: usize,
    found: Vec<PartSignature>,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").field("found", &self.found.len()).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Collector {
    pub(super) fn new(keyer: PartKeyer) -> Self {
        Self { keyer, data: None, image: None, bytes: 0, found: Vec::new() }
    }

    pub(super) fn begin_part(&mut self) {
        self.data = None;
        self.image = None;
    }

    pub(super) fn begin_data(&mut self) {
        self.data = Some(DataHash::new(&self.keyer));
    }

    pub(super) fn data(&mut self, piece: &[u8]) {
        if let Some(data) = &mut self.data {
            data.push(piece);
        }
    }

    pub(super) fn end_data(&mut self) {
        self.image = self.data.take().and_then(DataHash::finish);
    }

    pub(super) fn end_part(&mut self, text: &[u8], signature: Option<&Vec<u8>>) {
        let image = self.image.take();
        let Some(signature) = signature.filter(|signature| !signature.is_empty()) else { return };
        let text = || std::str::from_utf8(text).ok().filter(|text| !text.is_empty()).map(|text| self.keyer.text(text));
        let Some(part) = image.or_else(text) else { return };
        if self.found.len() < MAX_PARTS && self.bytes.saturating_add(signature.len()) <= MAX_BYTES {
            self.bytes += signature.len();
            self.found.push(PartSignature { part, signature: Bytes::copy_from_slice(signature) });
        }
    }

    pub(super) fn finish(self) -> Vec<PartSignature> {
        self.found
    }
}
