//! Which images' bytes are kept, and where they are decoded to.
//!
//! One buffer serves for all candidates that may replace each other: each later one is decoded over
//! the one before, so that drafts cost no memory and no page is touched for the first time twice. An
//! image that nothing can replace any more (text follows it, or it stands in a list of results) is
//! *settled*: it keeps its buffer, and the next image gets a new one.
//! There is one case where
//! that could lose the image: when the current one may be final and the next turns out to be a
//! draft, or no image at all, only after its bytes. Then the next goes to a second buffer, and the
//! two change places if it wins.

use super::answer::Image;
use super::base64::{Decoder, Out};
use super::dimensions::Sniffer;
use super::error::{ErrorKind, ScanError};
use super::finals::Finals;
use super::signatures::{ImageHash, PartKey, PartKeyer};

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

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    #[default]
    Judge,
    Decode,
    Drain,
}

/// An image of the response, its bytes apart.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) image: Image,
    /// Index of its span.
    pub(super) part: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destination {
    Main,
    Spare,
    Nowhere,
}

/// The candidate being decoded, or decoded and not yet judged.
#[derive(Debug)]
struct Candidate {
    target: Destination,
    base64: Decoder,
    len: u64,
    sniffer: Sniffer,
    hash: Option<ImageHash>,
    /// Its bytes went over those of the kept image.
    overwrote: bool,
    /// Its bytes are not kept, since it is marked as a draft behind a final image.
    dropped: bool,
    /// It was held back until there was too much of it.
    released: bool,
    at: u64,
}

#[derive(Debug, Default)]
pub(super) struct Store {
    mode: Mode,
    pub(super) max: Option<u64>,
    /// Bytes of the whole response, where it is known.
    pub(super) expected: Option<u64>,
    /// Makes a key of every image.
    pub(super) keyer: Option<PartKeyer>,
    /// Holds the kept image, which the next may replace.
    finals: Finals<Found>,
    /// Final images that nothing replaces any more, in order, with their bytes.
    settled: Vec<Found>,
    /// The kept image's bytes; while draining, those that are to be taken.
    main: Vec<u8>,
    /// A doubtful candidate's bytes.
    spare: Vec<u8>,
    candidate: Option<Box<Candidate>>,
    /// What was taken so far is overwritten by what comes.
    restart: bool,
    /// Whether anything has been taken since the writer's start.
    dirty: bool,
    settled_bytes: u64,
}

impl Store {
    pub(super) fn new(mode: Mode) -> Self {
        Self { mode, ..Self::default() }
    }

    /// Whether images without a mark may be drafts. A draining store has one writer, for which the
    /// last image wins.
    pub(super) fn set_unmarked_drafts(&mut self, may_be: bool) {
        self.finals = Finals::new(may_be || self.mode == Mode::Drain);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.finals.is_empty()
    }

    /// Forgets every image.
    pub(super) fn clear(&mut self) {
        self.finals.clear();
        self.settled.clear();
    }

    /// A candidate begins at byte `at` of the response. `is_image` says whether its type is known;
    /// `is_thought`, whether it is known to be a draft or known not to be.
    pub(super) fn begin(&mut self, at: u64, is_image: bool, is_thought: Option<bool>) {
        let before = self.candidate.take();
        let (target, overwrote, dropped) = match (before, self.finals.open()) {
            // An earlier candidate of the same element or step: this one stands in its place.
            (Some(before), _) => (before.target, before.overwrote, before.dropped),
            (None, None) => (Destination::Main, false, false),
            (None, Some(_)) if is_thought.is_some_and(|mark| !self.finals.takes(mark)) => {
                (Destination::Nowhere, false, true)
            }
            (None, Some(kept))
                if is_image && (kept.image.is_thought || is_thought == Some(false)) =>
            {
                (Destination::Main, true, false)
            }
            (None, Some(_)) => (Destination::Spare, false, false),
        };
        let target = if self.mode == Mode::Judge { Destination::Nowhere } else { target };
        match target {
            Destination::Main => {
                self.restart();
                self.reserve(at);
            }
            Destination::Spare => self.spare.clear(),
            Destination::Nowhere => {}
        }
        self.candidate = Some(Box::new(Candidate {
            target,
            base64: Decoder::default(),
            len: 0,
            sniffer: Sniffer::default(),
            hash: self.keyer.as_ref().map(PartKeyer::image),
            overwrote,
            dropped,
            released: false,
            at,
        }));
    }

    /// A text follows, or another candidate: the kept image, if it is no draft, is final.
    pub(super) fn settle(&mut self) {
        // A draining store has one writer, for which the last image wins.
        if self.candidate.is_none() && self.mode != Mode::Drain {
            let settled = self.finals.text();
            self.push_settled(settled);
        }
    }

    fn push_settled(&mut self, settled: Option<Found>) {
        if let Some(mut found) = settled {
            found.image.bytes = std::mem::take(&mut self.main).into();
            self.settled_bytes += found.image.len;
            self.settled.push(found);
        }
    }

    /// Makes the first allocation the last where the response's length is known. Pages are only
    /// touched as bytes arrive.
    fn reserve(&mut self, at: u64) {
        if let (Mode::Decode, 0, Some(expected)) = (self.mode, self.main.capacity(), self.expected)
        {
            let decoded = (expected.saturating_sub(at) / 4 * 3 + 3)
                .min(MAX_RESERVED)
                .min(self.max.unwrap_or(u64::MAX));
            // A refusal only means growing step by step.
            let _ = self.main.try_reserve_exact(usize::try_from(decoded).unwrap_or(0));
        }
    }

    /// The next run of the candidate's base64.
    pub(super) fn piece(&mut self, piece: &[u8]) -> Result<(), ScanError> {
        self.decode(|base64, out| base64.push(piece, out)).map(|_| ())
    }

    /// As much of the candidate's base64 as `input` begins with, and how much that is.
    pub(super) fn run(&mut self, input: &[u8]) -> Result<usize, ScanError> {
        self.decode(|base64, out| base64.run(input, out)).map(Option::unwrap_or_default)
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
        step: impl FnOnce(&mut Decoder, &mut Out<'_, ErrorKind>) -> Result<T, ErrorKind>,
    ) -> Result<Option<T>, ScanError> {
        let Some(candidate) = self.candidate.as_deref_mut() else { return Ok(None) };
        let mut bytes = match candidate.target {
            Destination::Main => Some(&mut self.main),
            Destination::Spare => Some(&mut self.spare),
            Destination::Nowhere => None,
        };
        let max = self.max.unwrap_or(u64::MAX).saturating_sub(self.settled_bytes);
        let value = step(&mut candidate.base64, &mut |decoded| {
            candidate.sniffer.push(decoded);
            if let Some(hash) = &mut candidate.hash {
                hash.push(decoded);
            }
            if let Some(bytes) = &mut bytes {
                append(bytes, decoded)?;
            }
            candidate.len += decoded.len() as u64;
            if candidate.len > max { Err(ErrorKind::TooLarge) } else { Ok(()) }
        })
        .map_err(|kind| ScanError::new(kind, candidate.at))?;
        let is_held = self.mode == Mode::Drain && candidate.target == Destination::Spare;
        if is_held && self.spare.len() > MAX_HELD {
            candidate.target = Destination::Main;
            candidate.overwrote = true;
            candidate.released = true;
            self.promote();
        }
        Ok(Some(value))
    }

    /// The key of the candidate, whose base64 has ended.
    pub(super) fn key(&self) -> Option<PartKey> {
        self.candidate.as_ref()?.hash.as_ref().map(ImageHash::key)
    }

    /// The candidate, if there is one, is no image after all, or one that cannot be read. An image
    /// that it was written over is lost.
    pub(super) fn cancel(&mut self, at: u64) -> Result<(), ScanError> {
        match self.candidate.take() {
            Some(candidate) if candidate.overwrote => {
                let _ = self.finals.end();
                Err(candidate.lost(at))
            }
            _ => Ok(()),
        }
    }

    /// The candidate is an image: keeps it or the one before.
    pub(super) fn commit(&mut self, mut found: Found, at: u64) -> Result<(), ScanError> {
        let is_thought = found.image.is_thought;
        if !self.finals.takes(is_thought) {
            return self.cancel(at);
        }
        let Some(candidate) = self.candidate.take() else { return Ok(()) };
        // Marked as a draft before its bytes and as none behind them: the bytes are gone.
        if candidate.dropped && !is_thought {
            return Err(candidate.lost(at));
        }
        if candidate.target == Destination::Spare {
            self.promote();
        }
        found.image.len = candidate.len;
        (found.image.width, found.image.height) = candidate.sniffer.size().unzip();
        let settled = self.finals.image(found, is_thought);
        self.push_settled(settled);
        Ok(())
    }

    /// Ends the response, and returns its final images in order.
    pub(super) fn end_response(&mut self) -> impl Iterator<Item = Found> + use<> {
        let mut last = self.finals.end();
        if let Some(last) = last.as_mut().filter(|_| self.mode == Mode::Decode) {
            last.image.bytes = std::mem::take(&mut self.main).into();
        }
        std::mem::take(&mut self.settled).into_iter().chain(last)
    }

    /// Takes what has been decoded since the last call, where that is drained.
    pub(super) fn take(&mut self) -> (bool, Vec<u8>) {
        if self.mode != Mode::Drain {
            return (false, Vec::new());
        }
        let bytes = std::mem::take(&mut self.main);
        self.dirty |= !bytes.is_empty();
        (std::mem::take(&mut self.restart), bytes)
    }

    /// What comes next is written over what the main buffer, or the writer, holds.
    fn restart(&mut self) {
        self.main.clear();
        self.restart |= std::mem::take(&mut self.dirty);
    }

    /// The doubtful candidate takes the place of what was kept.
    fn promote(&mut self) {
        self.restart();
        std::mem::swap(&mut self.main, &mut self.spare);
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

/// Appends to a buffer that grows by little.
fn append(buffer: &mut Vec<u8>, bytes: &[u8]) -> Result<(), ErrorKind> {
    if buffer.capacity() - buffer.len() < bytes.len() {
        let grow = bytes.len().max((buffer.len() / GROWTH_PART).max(MIN_GROWTH));
        buffer.try_reserve_exact(grow).map_err(|_| ErrorKind::TooLarge)?;
    }
    buffer.extend_from_slice(bytes);
    Ok(())
}
