//! Decides which day, hour or time zone a moment belongs to. Pure: moments are handed in, and no
//! clock is read here.
//!
//! Quotas, spending periods, cooldowns and schedules share this room, so that all of them agree on
//! when a day ends.

mod pacific;
mod zone;

pub use pacific::PacificDay;
pub(crate) use pacific::unix_ms;
pub(crate) use zone::timestamp;
pub use zone::{UnknownZone, Zone};
