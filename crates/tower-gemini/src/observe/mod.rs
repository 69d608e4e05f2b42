//! x

mod clip;
mod latency;
mod names;
mod outcome;
mod recent;
mod sentence;
mod tally;
