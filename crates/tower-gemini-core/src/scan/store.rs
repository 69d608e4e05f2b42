//! Which image's bytes are kept, and where they are decoded to.
//!
//! One buffer serves for all candidates: each later one is decoded over the one before, so that
//! drafts cost no memory and no page is touched for the first time twice. There is one case where
//! that could lose the image: when the current one may be final and the next turns out to be a
//! draft, or no image at all, only after its bytes. Then the next goes to a second buffer, and the
//! two change places if it wins.

use super::base64::{Decoder, Output};
use super::dimensions::Sniffer;
use super::error::{ErrorKind, ScanError};

/// Growth by this part of the length, and at least [`MIN_GROWTH`]: peak memory stays within a few
/// hundredths of the image, and large blocks grow in place or by moving pages.
const GROWTH_PART: usize = 32;
const MIN_GROWTH: usize = 64 * 1024;
/// No more than this is reserved on the strength of a length that somebody else stated: three
/// images of 4K (20 MB).
const MAX_RESERVED: u64 = 64 << 20;
/// How much of a doubtful candidate a draining scanner holds back before it lets it overwrite the
/// image that is written. Half of the megabyte that draining may take.
const MAX_HELD: usize = 512 << 10;
/// Room for one block of the decoder.
const SCRATCH: usize = 16 * 1024;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    #[default]
    Judge,
    Decode,
    Drain,
}

/// What is known of a candidate besides its bytes.
#[derive(Debug, Default)]
pub(super) struct Meta {
    pub(super) mime: String,
    pub(super) signature: Option<Vec<u8>>,
    /// Index of its span.
    pub(super) part: Option<usize>,
}

/// The candidate chosen so far.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) meta: Meta,
    pub(super) is_thought: bool,
    pub(super) len: u64,
    pub(super) size: Option<(u32, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destination {
    Main,
    Spare,
    Out,
    Held,
    Nowhere,
}

/// The candidate being decoded, or decoded and not yet judged.
#[derive(Debug)]
struct Candidate {
    target: Destination,
    base64: Decoder,
    len: u64,
    sniffer: Sniffer,
    /// Its bytes went over those of the kept image.
    overwrote: bool,
    /// Its bytes are not kept, since it is marked as a draft behind a final image.
    dropped: bool,
    /// It was held back until there was too much of it.
    released: bool,
    at: u64,
}

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    used: usize,
}

/// Decoded bytes on their way to a writer.
#[derive(Debug, Default)]
struct Outlet {
    bytes: Vec<u8>,
    held: Vec<u8>,
    restart: bool,
    /// Whether anything has been put out since the writer's start.
    dirty: bool,
}

#[derive(Debug, Default)]
pub(super) struct Store {
    mode: Mode,
    pub(super) max: Option<u64>,
    /// Bytes of the whole response, where it is known.
    pub(super) expected: Option<u64>,
    pub(super) kept: Option<Kept>,
    main: Buffer,
    spare: Buffer,
    outlet: Outlet,
    scratch: Vec<u8>,
    candidate: Option<Box<Candidate>>,
}

impl Store {
    pub(super) fn new(mode: Mode) -> Self {
        Self { mode, ..Self::default() }
    }

    /// A candidate begins at byte `at` of the response. `is_image` says whether its type is known;
    /// `is_thought`, whether it is known to be a draft or known not to be.
    pub(super) fn begin(
        &mut self,
        at: u64,
        is_image: bool,
        is_thought: Option<bool>,
    ) -> Result<(), ScanError> {
        let before = self.candidate.take();
        let (target, overwrote, dropped) = match (before, &self.kept) {
            // An earlier candidate of the same element or step: this one stands in its place.
            (Some(before), _) => (before.target, before.overwrote, before.dropped),
            (None, None) => (Destination::Main, false, false),
            (None, Some(kept)) if !kept.is_thought && is_thought == Some(true) => {
                (Destination::Nowhere, false, true)
            }
            (None, Some(kept)) if is_image && (kept.is_thought || is_thought == Some(false)) => {
                (Destination::Main, true, false)
            }
            (None, Some(_)) => (Destination::Spare, false, false),
        };
        let target = match (self.mode, target) {
            (Mode::Judge, _) => Destination::Nowhere,
            (Mode::Drain, Destination::Main) => Destination::Out,
            (Mode::Drain, Destination::Spare) => Destination::Held,
            _ => target,
        };
        match target {
            Destination::Main => {
                self.main.used = 0;
                self.reserve(at);
            }
            Destination::Spare => self.spare.used = 0,
            Destination::Out => self.outlet.restart(),
            Destination::Held => self.outlet.held.clear(),
            Destination::Nowhere => {}
        }
        self.candidate = Some(Box::new(Candidate {
            target,
            base64: Decoder::default(),
            len: 0,
            sniffer: Sniffer::default(),
            overwrote,
            dropped,
            released: false,
            at,
        }));
        Ok(())
    }

    /// Makes the first allocation the last where the response's length is known. Pages are only
    /// touched as bytes arrive.
    fn reserve(&mut self, at: u64) {
        if let (0, Some(expected)) = (self.main.bytes.capacity(), self.expected) {
            let decoded = (expected.saturating_sub(at) / 4 * 3 + 3)
                .min(MAX_RESERVED)
                .min(self.max.unwrap_or(u64::MAX));
            // A refusal only means growing step by step.
            let _ = self.main.bytes.try_reserve_exact(usize::try_from(decoded).unwrap_or(0));
        }
    }

    /// The next run of the candidate's base64. `Ok(true)` when all of it was printable ASCII.
    pub(super) fn piece(&mut self, piece: &[u8]) -> Result<bool, ScanError> {
        self.decode(|base64, out| base64.push(piece, out)).map(|plain| plain.unwrap_or(false))
    }

    /// As much of the candidate's base64 as `input` begins with, and how much that is.
    pub(super) fn run(&mut self, input: &[u8]) -> Result<usize, ScanError> {
        self.decode(|base64, out| base64.run(input, out)).map(|taken| taken.unwrap_or(0))
    }

    pub(super) fn escape(&mut self, c: char) -> Result<(), ScanError> {
        self.decode(|base64, out| base64.push_char(c, out)).map(|_| ())
    }

    /// The end of the candidate's base64: `Some(false)` when it is corrupt, `None` when it is
    /// empty.
    pub(super) fn end(&mut self) -> Result<Option<bool>, ScanError> {
        let good = self.decode(|base64, out| base64.finish(out))?.unwrap_or(false);
        let empty = self.candidate.as_ref().is_none_or(|candidate| candidate.len == 0);
        Ok(if empty && good { None } else { Some(good) })
    }

    fn decode<T>(
        &mut self,
        step: impl FnOnce(&mut Decoder, &mut Sluice<'_>) -> Result<T, ErrorKind>,
    ) -> Result<Option<T>, ScanError> {
        let Some(candidate) = self.candidate.as_deref_mut() else { return Ok(None) };
        let (bytes, used) = match candidate.target {
            Destination::Main => (&mut self.main.bytes, Some(&mut self.main.used)),
            Destination::Spare => (&mut self.spare.bytes, Some(&mut self.spare.used)),
            Destination::Out => (&mut self.outlet.bytes, None),
            Destination::Held => (&mut self.outlet.held, None),
            Destination::Nowhere => (&mut self.scratch, None),
        };
        let mut scratch_used = 0;
        let appends = matches!(candidate.target, Destination::Out | Destination::Held);
        if appends {
            scratch_used = bytes.len();
        }
        let mut sluice = Sluice {
            rewinds: candidate.target == Destination::Nowhere,
            bytes,
            used: used.unwrap_or(&mut scratch_used),
            len: &mut candidate.len,
            max: self.max.unwrap_or(u64::MAX),
            sniffer: &mut candidate.sniffer,
        };
        let result = step(&mut candidate.base64, &mut sluice);
        if appends {
            sluice.bytes.truncate(*sluice.used);
        }
        let value = result.map_err(|kind| ScanError::new(kind, candidate.at))?;
        if candidate.target == Destination::Held && self.outlet.held.len() > MAX_HELD {
            candidate.target = Destination::Out;
            candidate.overwrote = true;
            candidate.released = true;
            self.outlet.release();
        }
        Ok(Some(value))
    }

    /// The candidate is no image after all.
    pub(super) fn cancel(&mut self, at: u64) -> Result<(), ScanError> {
        self.outlet.held.clear();
        match self.candidate.take() {
            Some(candidate) if candidate.overwrote => Err(candidate.lost(at)),
            _ => Ok(()),
        }
    }

    /// The candidate is an image that cannot be read.
    pub(super) fn discard(&mut self) {
        self.outlet.held.clear();
        if self.candidate.take().is_some_and(|candidate| candidate.overwrote) {
            self.kept = None;
        }
    }

    /// The candidate is an image: keeps it or the one before.
    pub(super) fn commit(
        &mut self,
        meta: Meta,
        is_thought: bool,
        at: u64,
    ) -> Result<(), ScanError> {
        let Some(candidate) = self.candidate.take() else { return Ok(()) };
        if is_thought && self.kept.as_ref().is_some_and(|kept| !kept.is_thought) {
            self.outlet.held.clear();
            return if candidate.overwrote { Err(candidate.lost(at)) } else { Ok(()) };
        }
        // Marked as a draft before its bytes and as none behind them: the bytes are gone.
        if candidate.dropped && !is_thought {
            return Err(candidate.lost(at));
        }
        match candidate.target {
            Destination::Spare => std::mem::swap(&mut self.main, &mut self.spare),
            Destination::Held => self.outlet.release(),
            _ => {}
        }
        self.kept =
            Some(Kept { meta, is_thought, len: candidate.len, size: candidate.sniffer.size() });
        Ok(())
    }

    /// Returns whether a candidate has begun that was neither kept nor dropped.
    pub(super) fn is_open(&self) -> bool {
        self.candidate.is_some()
    }

    /// The kept image's bytes.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        if self.mode != Mode::Decode {
            return Vec::new();
        }
        self.main.bytes.truncate(self.main.used);
        self.main.bytes
    }

    /// Returns whether the kept image's bytes are still whole: not so while a later candidate is
    /// written over them.
    pub(super) fn is_intact(&self) -> bool {
        self.candidate.as_ref().is_none_or(|candidate| !candidate.overwrote)
    }

    /// Takes what has been decoded since the last call.
    pub(super) fn take(&mut self) -> (bool, Vec<u8>) {
        let bytes = std::mem::take(&mut self.outlet.bytes);
        self.outlet.dirty |= !bytes.is_empty();
        (std::mem::take(&mut self.outlet.restart), bytes)
    }
}

impl Candidate {
    /// An image was overwritten by something that turned out to be a draft or no image.
    fn lost(&self, at: u64) -> ScanError {
        ScanError::new(
            if self.released { ErrorKind::Overwritten } else { ErrorKind::Duplicate },
            at,
        )
    }
}

impl Outlet {
    fn restart(&mut self) {
        self.bytes.clear();
        self.restart |= self.dirty;
        self.dirty = false;
    }

    fn release(&mut self) {
        self.restart();
        self.bytes = std::mem::take(&mut self.held);
    }
}

/// The decoder's output: a buffer; the image's header is read and the length checked on the way.
struct Sluice<'a> {
    bytes: &'a mut Vec<u8>,
    used: &'a mut usize,
    len: &'a mut u64,
    max: u64,
    sniffer: &'a mut Sniffer,
    /// Nothing is kept: every block goes to the same place.
    rewinds: bool,
}

impl Output for Sluice<'_> {
    type Error = ErrorKind;

    fn room(&mut self, n: usize) -> Result<&mut [u8], ErrorKind> {
        if self.rewinds {
            *self.used = 0;
            if self.bytes.len() < n {
                self.bytes.resize(SCRATCH.max(n), 0);
            }
        }
        let end = *self.used + n;
        if self.bytes.len() < end {
            if self.bytes.capacity() < end {
                let len = self.bytes.len();
                let grow = (end - len).max((len / GROWTH_PART).max(MIN_GROWTH));
                self.bytes.try_reserve_exact(grow).map_err(|_| ErrorKind::TooLarge)?;
            }
            self.bytes.resize(end, 0);
        }
        Ok(&mut self.bytes[*self.used..end])
    }

    fn written(&mut self, n: usize) -> Result<(), ErrorKind> {
        let from = *self.used;
        self.sniffer.push(&self.bytes[from..from + n]);
        *self.used = from + n;
        *self.len += n as u64;
        if *self.len > self.max { Err(ErrorKind::TooLarge) } else { Ok(()) }
    }
}
