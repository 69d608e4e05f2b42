//! What is known of a call while it is under way.

use std::sync::Arc;

use super::files::Record;
use crate::call_state::CallState;
use crate::trail::Trail;

/// A call that is under way.
#[derive(Debug, Clone)]
pub(super) struct Course {
    pub(super) trail: Trail,
    state: CallState,
    /// Where what comes of it is written down.
    pub(super) record: Arc<Record>,
}

impl Course {
    pub(super) fn begin(state: &CallState) -> Self {
        Self { trail: state.trail().clone(), state: state.clone(), record: Arc::default() }
    }

    /// The verdict of a call that is abandoned now.
    pub(super) fn cut_off(&self) -> tower_gemini_core::verdict::Verdict {
        self.state.cut_off()
    }

    /// Whether the last attempt was or may have been paid for. One that never left costs nothing,
    /// and neither does waiting between attempts.
    pub(super) fn is_out(&self) -> bool {
        !self.state.charges().1.is_surely_free()
    }

    /// Whether one before the last was or may have been paid for: its caller bought the next.
    pub(super) fn was_out_before(&self) -> bool {
        !self.state.charges().0.is_surely_free()
    }

    /// Whether any of it was or may have been paid for.
    pub(super) fn may_have_cost(&self) -> bool {
        !self.state.worst_charge().is_surely_free()
    }
}
