//! What a call in flight may be charged.

use crate::call_state::CallState;

impl CallState {
    /// Whether the last attempt was or may have been charged. One that never left costs nothing,
    /// and neither does waiting between attempts.
    pub(super) fn last_may_be_charged(&self) -> bool {
        !self.charges().1.is_surely_free()
    }

    /// Whether the call is worth completing without its client: its attempt was or may have been
    /// charged, and something of it is still to come. A resend that was bought is for a client that
    /// waits.
    pub(super) fn is_worth_completing(&self) -> bool {
        self.last_may_be_charged() && !self.is_between_attempts()
    }

    /// Whether an attempt before the last was or may have been charged: the caller bought the next.
    pub(super) fn earlier_may_be_charged(&self) -> bool {
        !self.charges().0.is_surely_free()
    }

    /// Whether any attempt was or may have been charged.
    pub(super) fn may_be_charged(&self) -> bool {
        !self.worst_charge().is_surely_free()
    }
}
