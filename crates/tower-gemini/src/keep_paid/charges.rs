//! What is known of the charges of a call in flight.

use tower_gemini_core::trail::{Attempt, Trail};

/// The attempts of one call, as far as they were or may have been charged.
#[derive(Debug, Clone)]
pub(super) struct Charges {
    pub(super) trail: Trail,
    /// Attempts of other calls, which were given the same trail before.
    earlier: usize,
}

impl Charges {
    pub(super) fn begin(trail: &Trail) -> Self {
        Self { trail: trail.clone(), earlier: trail.attempts().len() }
    }

    fn attempts(&self) -> Vec<Attempt> {
        let mut all = self.trail.attempts();
        all.split_off(self.earlier.min(all.len()))
    }

    /// Whether the last attempt was or may have been charged. One that never left costs nothing,
    /// and neither does waiting between attempts.
    pub(super) fn last_may_be_charged(&self) -> bool {
        self.attempts().last().is_some_and(|last| match last.outcome {
            None => self.trail.request_is_out(),
            Some(_) => !last.charge.is_surely_free(),
        })
    }

    /// Whether an attempt before the last was or may have been charged: the caller bought the next.
    pub(super) fn earlier_may_be_charged(&self) -> bool {
        let attempts = self.attempts();
        let before = attempts.split_last().map_or(&[][..], |(_, before)| before);
        before.iter().any(|attempt| attempt.outcome.is_some() && !attempt.charge.is_surely_free())
    }

    /// Whether any attempt was or may have been charged.
    pub(super) fn may_be_charged(&self) -> bool {
        self.last_may_be_charged() || self.earlier_may_be_charged()
    }
}
