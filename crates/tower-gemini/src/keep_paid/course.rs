//! What is known of a call while it is under way.

use std::sync::Arc;

use tower_gemini_core::trail::{Attempt, Trail};

use super::files::Record;

/// A call that is under way.
#[derive(Debug, Clone)]
pub(super) struct Course {
    pub(super) trail: Trail,
    /// Attempts of other calls, which were given the same trail before.
    earlier: usize,
    /// Where what comes of it is written down.
    pub(super) record: Arc<Record>,
}

impl Course {
    pub(super) fn begin(trail: &Trail) -> Self {
        Self { trail: trail.clone(), earlier: trail.attempts().len(), record: Arc::default() }
    }

    fn attempts(&self) -> Vec<Attempt> {
        let mut all = self.trail.attempts();
        all.split_off(self.earlier.min(all.len()))
    }

    /// Whether the last attempt was or may have been paid for. One that never left costs nothing,
    /// and neither does waiting between attempts.
    pub(super) fn is_out(&self) -> bool {
        self.attempts().last().is_some_and(|last| match last.outcome {
            None => self.trail.request_is_out(),
            Some(_) => !last.charge.is_surely_free(),
        })
    }

    /// Whether one before the last was or may have been paid for: its caller bought the next.
    pub(super) fn was_out_before(&self) -> bool {
        let attempts = self.attempts();
        let before = attempts.split_last().map_or(&[][..], |(_, before)| before);
        before.iter().any(|attempt| attempt.outcome.is_some() && !attempt.charge.is_surely_free())
    }

    /// Whether any of it was or may have been paid for.
    pub(super) fn may_have_cost(&self) -> bool {
        self.is_out() || self.was_out_before()
    }
}
