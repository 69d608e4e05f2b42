//! Shares the quota counts, the spending and the journal of paid calls of [`tower_gemini`] between
//! processes and machines.
//!
//! | store | feature | shared by | survives |
//! | --- | --- | --- | --- |
//! | `RedbStore` | `redb` | one process at a time | kill -9 and restart |
//! | `RedisStore` | `redis` | every process that reaches the server | every client; what the server persists |
//! | `PostgresStore` | `postgres` | every process that reaches the server | every client, and a crash of the server |
//!
//! All implement [`QuotaStore`](tower_gemini::store::QuotaStore),
//! [`SpendingStore`](tower_gemini::store::SpendingStore),
//! [`RecordStore`](tower_gemini::store::RecordStore) and
//! [`Journal`](tower_gemini::store::Journal); the layers take any with
//! [`QuotaGuardLayer::store`](tower_gemini::QuotaGuardLayer::store) and
//! [`SpendingLayer::store`](tower_gemini::SpendingLayer::store). No feature is on by default.
//! `postgres` needs Rust 1.94, the rest of the crate Rust 1.85.

#[cfg(any(feature = "redis", feature = "postgres"))]
mod lanes;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redb")]
mod redb;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redb")]
mod sync;

#[cfg(feature = "postgres")]
pub use self::postgres::PostgresStore;
#[cfg(feature = "redb")]
pub use self::redb::RedbStore;
#[cfg(feature = "redis")]
pub use self::redis::RedisStore;

/// Bytes that nobody can guess: the standard library's keys for its hash maps are random, from the
/// operating system, and never leave the process.
#[cfg(any(feature = "redb", feature = "redis", feature = "postgres"))]
fn random() -> [u8; 16] {
    use std::hash::{BuildHasher, RandomState};
    let (a, b) = (RandomState::new().hash_one(0_u8), RandomState::new().hash_one(1_u8));
    (u128::from(a) << 64 | u128::from(b)).to_le_bytes()
}
