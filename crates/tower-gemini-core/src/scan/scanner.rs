//! [`Scanner`]: framing, and the reader it feeds.

use bytes::Bytes;

use super::answer::{Answer, PartSpan};
use super::error::{ErrorKind, ScanError, ScanFailure};
use super::framing::Framing;
use super::json::Lexer;
use super::read::Reader;
use super::signatures::PartKeyer;
use super::sse::{Lines, Run};
use super::store::Mode;

/// No image is decoded beyond this unless set otherwise: what go-genai allows a line of a stream to
/// be (2026-08).
const DEFAULT_MAX_IMAGE_BYTES: u64 = 256 << 20;

const BOM: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// Reads one response as its bytes arrive.
///
/// There are three ways to use it, which differ only in where the image's bytes go:
/// [`judging`](Self::judging) drops them, [`decoding`](Self::decoding) keeps those of the final
/// image, [`draining`](Self::draining) hands them on.
///
/// # Errors
///
/// An error is final: [`feed`](Self::feed) repeats it, and [`finish`](Self::finish) gives it
/// together with what was found. The outcome is the same however the bytes are cut into chunks.
#[derive(Debug)]
pub struct Scanner {
    reader: Reader,
    lexer: Lexer,
    lines: Lines,
    shape: Shape,
    hint: Framing,
    at: u64,
    bom: usize,
    said_done: bool,
    error: Option<ScanError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Unknown,
    /// One JSON value.
    Whole,
    /// Events, or JSON values one after the other.
    Lines,
    /// The same, within a value that is not in an event.
    Bare,
}

/// Decoded bytes to be written, in order.
///
/// ```
/// use tower_gemini_core::call::Framing;
/// use tower_gemini_core::scan::Scanner;
///
/// let body = br#"{"candidates": [{"content": {"parts": [
///     {"inlineData": {"data": "ZHJhZnQ=", "mimeType": "image/png"}, "thought": true},
///     {"inlineData": {"mimeType": "image/png", "data": "b25l"}}]}}]}"#;
/// let mut file = Vec::new();
/// let mut scanner = Scanner::draining(Framing::Whole);
/// for chunk in body.chunks(20) {
///     scanner.feed(chunk)?;
///     let decoded = scanner.take_decoded();
///     if decoded.restart {
///         file.clear(); // a seekable writer goes back to its start instead
///     }
///     file.extend_from_slice(&decoded.bytes);
/// }
/// let image = scanner.finish()?.image.unwrap();
/// file.truncate(image.len as usize);
/// assert_eq!(file, b"one");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decoded {
    /// Whether what was written so far was a draft: go back to the start before writing
    /// [`bytes`](Self::bytes). When the scan ends, truncate what was written to the image's
    /// [length](super::Image::len), since a draft may have been longer.
    pub restart: bool,
    /// The bytes to write.
    pub bytes: Bytes,
}

impl Scanner {
    fn new(mode: Mode, hint: Framing) -> Self {
        Self {
            reader: Reader::new(mode),
            lexer: Lexer::default(),
            lines: Lines::default(),
            shape: Shape::Unknown,
            hint,
            at: 0,
            bom: 0,
            said_done: false,
            error: None,
        }
    }

    /// Creates a scanner that finds out everything but keeps no image's bytes.
    ///
    /// Images are still decoded, to be checked, counted and measured ([length](super::Image::len),
    /// [width](super::Image::width)).
    #[must_use]
    pub fn judging(framing: Framing) -> Self {
        Self::new(Mode::Judge, framing)
    }

    /// Creates a scanner that keeps the final image's bytes, of 256 MiB at most unless
    /// [`max_image_bytes`](Self::max_image_bytes) says otherwise.
    #[must_use]
    pub fn decoding(framing: Framing) -> Self {
        Self::new(Mode::Decode, framing).max_image_bytes(DEFAULT_MAX_IMAGE_BYTES)
    }

    /// Creates a scanner that returns decoded bytes after every [`feed`](Self::feed), for a writer
    /// that can seek.
    ///
    /// Call [`take_decoded`](Self::take_decoded) after each chunk, and feed chunks of at most 256
    /// KiB: what a chunk decodes to is held until it is taken.
    ///
    /// An image behind one that may be final is held back until it is known to be final itself, or
    /// until half a megabyte of it has come. Beyond that it is written over the one before; should
    /// it then turn out to be a draft, the scan fails with [`ScanError::is_overwritten`]. No server
    /// is known to send drafts behind the final image.
    #[must_use]
    pub fn draining(framing: Framing) -> Self {
        Self::new(Mode::Drain, framing)
    }

    /// Keeps the final image's `thoughtSignature` in its [signature](super::Image::signature). They
    /// can have megabytes: off by default.
    #[must_use]
    pub fn keep_signature(mut self, keep: bool) -> Self {
        self.reader.keep_signature = keep;
        self
    }

    /// Keeps the signature of every part that has one in [`Answer::signatures`], with a key that
    /// finds the part again. Up to 64 MiB: off by default.
    #[must_use]
    pub fn keep_signatures(mut self, keyer: PartKeyer) -> Self {
        self.reader.store.keyer = Some(keyer);
        self
    }

    /// Sets whether images that are not marked as thoughts may be drafts, as those of a model that
    /// thinks ([`Call::makes_drafts`](crate::call::Call::makes_drafts)): then the last wins of those
    /// without text between them. If not, every one is final. Default: they may be.
    #[must_use]
    pub fn unmarked_drafts(mut self, may_be: bool) -> Self {
        self.reader.store.set_unmarked_drafts(may_be);
        self
    }

    /// Fails with [`ScanError::is_too_large`] when any image decodes to more than this.
    #[must_use]
    pub fn max_image_bytes(mut self, max: u64) -> Self {
        self.reader.store.max = Some(max);
        self
    }

    /// Sets the expected length of the response (`Content-Length`), so that the image's buffer need
    /// not grow.
    ///
    /// The buffer is then reserved in one piece as large as the rest of the response could need, 64
    /// MiB at most; its pages are touched only as bytes arrive, but an allocator that counts will
    /// count them: with drafts before the image, up to three times the image. Worth it where
    /// reallocating copies. It is only a hint: any other length is right too.
    #[must_use]
    pub fn expect_len(mut self, len: u64) -> Self {
        self.reader.store.expected = Some(len);
        self
    }

    /// Reads the next bytes of the response.
    ///
    /// # Errors
    ///
    /// The first fault, again at every later call.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), ScanError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let result = self.advance(chunk);
        self.error = result.as_ref().err().cloned();
        result
    }

    /// Returns what has been decoded since the last call. Empty unless the scanner is
    /// [`draining`](Self::draining).
    #[must_use]
    pub fn take_decoded(&mut self) -> Decoded {
        let (restart, bytes) = self.reader.store.take();
        Decoded { restart, bytes: Bytes::from(bytes) }
    }

    /// Returns whether anything has been seen that makes this an answer: content of the first
    /// candidate that is not empty, a finish or block reason, or an error. An event without any of
    /// them decides nothing.
    #[must_use]
    pub fn has_content(&self) -> bool {
        self.reader.has_content
    }

    /// Returns how many complete JSON objects were read that are a response, or a chunk or event of
    /// one.
    #[must_use]
    pub fn events_seen(&self) -> u64 {
        self.reader.events
    }

    /// Returns the id that the response gives itself (`responseId`, `id`, `interaction_id`), as soon
    /// as it was read: of an interaction, the id by which it can be fetched.
    ///
    /// ```
    /// use tower_gemini_core::call::Framing;
    /// use tower_gemini_core::scan::Scanner;
    ///
    /// let mut scanner = Scanner::judging(Framing::Whole);
    /// scanner.feed(br#"{"object": "interaction", "id": "v1_abc", "sta"#)?;
    /// assert_eq!(scanner.response_id(), Some("v1_abc"));
    /// # Ok::<(), tower_gemini_core::scan::ScanError>(())
    /// ```
    #[must_use]
    pub fn response_id(&self) -> Option<&str> {
        self.reader.response_id()
    }

    /// Returns the model that the response names (`modelVersion`, `model`), as soon as it was read.
    #[must_use]
    pub fn model_version(&self) -> Option<&str> {
        self.reader.model_version()
    }

    /// Returns the `event_id` of the last complete event, from which an interaction's stream can be
    /// resumed.
    #[must_use]
    pub fn event_id(&self) -> Option<&str> {
        self.reader.answer.event_id.as_deref()
    }

    /// Returns whether the stream's last event was read: one whose type ends in `.completed`, an
    /// error, or `[DONE]`.
    #[must_use]
    pub fn has_closed(&self) -> bool {
        self.reader.closed || self.said_done
    }

    /// Returns how many bytes were read without fault.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Returns how the response is framed, as far as its bytes say so.
    pub(super) fn found_framing(&self) -> Option<Framing> {
        match self.shape {
            Shape::Lines if self.lines.has_fields() => Some(Framing::Sse),
            Shape::Whole if self.reader.is_array() => Some(Framing::JsonArray),
            _ => None,
        }
    }

    /// Returns whether an event, or a chunk of an array, has begun and not ended.
    pub(super) fn is_in_event(&self) -> bool {
        self.reader.is_in_document()
    }

    /// Takes where the images of the event stand that was just read, whether a text or an error stands
    /// behind them, and whether it said that the response has ended.
    pub(super) fn take_event(&mut self) -> (Vec<PartSpan>, bool, bool) {
        let Reader { answer, after_text, .. } = &mut self.reader;
        let is_last = answer.finish_reason.take().is_some();
        // Nothing comes behind an error that could make a draft of an image.
        let is_over = answer.error.is_some() || answer.block_reason.is_some();
        let is_settled = std::mem::take(after_text) || is_over;
        (std::mem::take(&mut answer.parts), is_settled, is_last)
    }

    /// Ends the scan and returns what the response holds.
    ///
    /// # Errors
    ///
    /// The fault that [`feed`](Self::feed) met, or that the response ends too early, each with what
    /// was found.
    pub fn finish(mut self) -> Result<Answer, ScanFailure> {
        let result = match self.error.take() {
            Some(error) => Err(error),
            None => self.end(),
        };
        let said_end = match self.shape {
            // One value says that it has ended; an array of chunks only says that the server has
            // stopped.
            Shape::Whole if self.hint == Framing::Whole => result.is_ok(),
            _ => self.said_done,
        };
        let failed_at = result.is_err().then_some(self.at);
        let ended = self.reader.ended;
        let mut answer = self.reader.finish(failed_at);
        answer.said_end =
            said_end || ended || answer.finish_reason.is_some() || answer.block_reason.is_some();
        match result {
            Ok(()) => Ok(answer),
            Err(error) => Err(ScanFailure { error, found: Box::new(answer) }),
        }
    }

    fn advance(&mut self, mut bytes: &[u8]) -> Result<(), ScanError> {
        while let Some(&b) = bytes.first() {
            let taken = match self.shape {
                Shape::Unknown => self.decide(b)?,
                Shape::Whole => self.json(bytes)?,
                Shape::Bare => {
                    let taken = self.lex(bytes)?;
                    if self.lexer.is_done() {
                        self.lexer = Lexer::default();
                        self.lines.after_bare();
                        self.shape = Shape::Lines;
                    }
                    taken
                }
                Shape::Lines => self.line(bytes)?,
            };
            self.at += taken as u64;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Tells the framing from the first byte that says anything.
    fn decide(&mut self, b: u8) -> Result<usize, ScanError> {
        if self.at == self.bom as u64 && BOM.get(self.bom) == Some(&b) {
            self.bom += 1;
            return Ok(1);
        }
        if self.bom == 1 || self.bom == 2 {
            return Err(ScanError::new(ErrorKind::Utf8, 0));
        }
        self.shape = match b {
            b' ' | b'\t' | b'\r' | b'\n' => return Ok(1),
            b'{' if self.hint == Framing::Whole => Shape::Whole,
            // Fields of an event, a comment, or a value that others may follow.
            b'{' | b':' | b'd' | b'e' | b'i' | b'r' => Shape::Lines,
            _ => Shape::Whole,
        };
        self.reader.takes_done = self.shape == Shape::Lines;
        Ok(0)
    }

    /// Reads JSON, and only blanks behind it.
    fn json(&mut self, bytes: &[u8]) -> Result<usize, ScanError> {
        if !self.lexer.is_done() {
            return self.lex(bytes);
        }
        match bytes.iter().position(|b| !matches!(b, b' ' | b'\t' | b'\r' | b'\n')) {
            Some(i) => Err(ScanError::new(ErrorKind::Trailing, self.at + i as u64)),
            None => Ok(bytes.len()),
        }
    }

    fn lex(&mut self, bytes: &[u8]) -> Result<usize, ScanError> {
        let taken = self.lexer.feed(bytes, self.at, &mut self.reader);
        // What was complete before a fault counts, whether or not it came in the same piece.
        let good = match &taken {
            Ok(taken) => *taken,
            Err(error) => usize::try_from(error.offset().saturating_sub(self.at))
                .map_or(0, |good| good.min(bytes.len())),
        };
        self.reader.copy_raw(&bytes[..good], self.at);
        taken
    }

    fn line(&mut self, bytes: &[u8]) -> Result<usize, ScanError> {
        let (run, len) = self.lines.next(bytes);
        match run {
            Run::Nothing => {}
            Run::Data => return self.json(&bytes[..len]),
            Run::DataEnd => self.end_data_line()?,
            Run::Dispatch => self.end_event()?,
            Run::Bare => {
                // In the middle of an event: its data are cut off.
                if self.lexer.is_started() {
                    return Err(ScanError::new(ErrorKind::Syntax, self.at));
                }
                self.shape = Shape::Bare;
            }
            Run::Foreign => {
                // Streams may hold fields of the future. Without a single known field this is no
                // stream.
                if !self.lines.has_fields() {
                    return Err(ScanError::new(ErrorKind::Syntax, self.at));
                }
            }
        }
        Ok(len)
    }

    fn end_data_line(&mut self) -> Result<(), ScanError> {
        if self.lexer.is_done() {
            self.said_done |= self.lexer.said_done();
            // Some servers leave the blank line out: a value that is complete needs none.
            self.lexer = Lexer::default();
        } else if self.lexer.is_started() {
            self.lexer.feed(b"\n", self.at, &mut self.reader)?;
            self.reader.copy_newline();
        }
        Ok(())
    }

    fn end_event(&mut self) -> Result<(), ScanError> {
        if self.lexer.is_started() {
            self.lexer.finish(self.at, &mut self.reader)?;
            self.lexer = Lexer::default();
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), ScanError> {
        match self.shape {
            // A stream may hold nothing at all. A value may not.
            Shape::Unknown if self.hint == Framing::Sse && matches!(self.bom, 0 | 3) => Ok(()),
            Shape::Unknown | Shape::Whole | Shape::Bare => {
                self.lexer.finish(self.at, &mut self.reader)
            }
            Shape::Lines => {
                if self.lines.is_in_data() {
                    self.end_data_line()?;
                }
                self.end_event()
            }
        }
    }
}
