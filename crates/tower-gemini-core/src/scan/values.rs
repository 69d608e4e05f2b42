//! Reads values that somebody else has cut out of a text, with the reader that the scanner feeds.

use super::answer::Answer;
use super::json::Lexer;
use super::read::Reader;
use super::store::Mode;

/// Gathers an [`Answer`] from JSON values, one after the other.
///
/// For texts whose framing is broken or unknown. Images are recognised, not decoded: recorded
/// bodies have their base64 cut.
pub(crate) struct ValueReader(Reader);

impl ValueReader {
    pub(crate) fn new() -> Self {
        let mut reader = Reader::new(Mode::Judge);
        reader.takes_any = true;
        Self(reader)
    }

    /// Reads one value. Returns whether it was one, alone and whole. `is_cut` says that its end was
    /// added by a repair.
    pub(crate) fn read(&mut self, json: &str, is_cut: bool) -> bool {
        let mut lexer = Lexer::default();
        self.0.is_cut = is_cut;
        let taken = lexer.feed(json.as_bytes(), 0, &mut self.0);
        self.0.copy_raw(json.as_bytes(), 0);
        let is_whole = taken.is_ok_and(|taken| taken == json.len())
            && lexer.finish(json.len() as u64, &mut self.0).is_ok();
        if !is_whole {
            self.0.abandon();
        }
        is_whole
    }

    /// Returns what the values said. `said_end` is whether their framing said that nothing follows.
    pub(crate) fn finish(self, said_end: bool) -> Answer {
        let ended = said_end || self.0.ended;
        let mut answer = self.0.finish(None);
        answer.said_end = ended || answer.finish_reason.is_some() || answer.block_reason.is_some();
        answer
    }
}
