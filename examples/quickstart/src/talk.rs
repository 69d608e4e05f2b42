//! Lines for people.

use std::io::Write;

/// How a line is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good = 32,
    Waiting = 33,
    Bad = 31,
}

/// Writes lines. A reader who has seen enough (`| head`) ends the talk and not the work: what is
/// being paid for is still saved.
pub(crate) struct Talk<'a> {
    output: &'a mut dyn Write,
    colour: bool,
    over: bool,
}

impl<'a> Talk<'a> {
    pub(crate) fn new(output: &'a mut dyn Write, colour: bool) -> Self {
        Self { output, colour, over: false }
    }

    pub(crate) fn line(&mut self, tone: Tone, line: &str) {
        if self.colour && tone != Tone::Plain {
            self.text(&format!("\x1b[{}m{line}\x1b[0m\n", tone as u8));
        } else {
            self.text(&format!("{line}\n"));
        }
    }

    pub(crate) fn plain(&mut self, line: &str) {
        self.line(Tone::Plain, line);
    }

    pub(crate) fn text(&mut self, text: &str) {
        if !self.over {
            self.over =
                self.output.write_all(text.as_bytes()).and_then(|()| self.output.flush()).is_err();
        }
    }
}
