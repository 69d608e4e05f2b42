//! What quota and spending share: a reservation for each attempt, and the calls that wait for one.

pub(crate) mod queue;
