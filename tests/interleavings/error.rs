//! Stands in for the errors of calls.

use std::time::Duration;

use tower_gemini_core::verdict::Verdict;

#[derive(Debug)]
pub(crate) struct Error;

pub(crate) enum TimeLimit {
    Deadline,
}

impl Error {
    pub(crate) fn timeout(_: TimeLimit, _: Duration, _: Verdict) -> Self {
        Self
    }

    pub(crate) fn misplaced(_: &'static str) -> Self {
        Self
    }

    pub(crate) fn with_trail(self, _: crate::trail::Trail) -> Self {
        self
    }
}
