//! Jobs of many images: planned, queued in SQLite or Postgres, resumed after a crash, never paid
//! twice.
#![doc = include_str!("../README.md")]

mod batch;
mod decide;
mod draw;
mod inputs;
mod item;
mod job;
pub mod lane;
mod output;
pub mod plan;
pub mod read;
mod request;
mod run;
mod store;

use std::time::{Duration, SystemTime};

pub use draw::{Draw, Drawn, OfJob, Through};
pub use inputs::{Inputs, Loading};
pub use item::{Deadline, Item};
pub use job::{Counts, ItemState, Job, JobOptions, JobState, Spent};
pub use lane::Lane;
pub use output::{ImageFile, Record, copy_images, delete_job, manifest_csv};
pub use plan::{Plan, Planner};
pub use request::{Picture, generate_content, single};
pub use run::Worker;
pub use store::{JobStore, NewItem, NewJob, Notice, RequestKey, StoreError, StoredItem};

/// A name that nobody else has and nobody guesses: 64 random bits.
pub(crate) fn random_name() -> Result<String, StoreError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(StoreError::new)?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

/// A duration in milliseconds; the most that there are for a longer one.
pub(crate) fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// A time in milliseconds since 1970.
pub(crate) fn unix_ms(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, millis)
}

/// How long from one time to another.
pub(crate) fn until(now_ms: i64, at_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(at_ms.saturating_sub(now_ms)).unwrap_or(0))
}
