//! Shares the quota counts, the spending and the journal of paid calls of [`tower_gemini`] between
//! processes and machines.
//!
//! | store | feature | shared by | survives |
//! | --- | --- | --- | --- |
//! | `RedbStore` | `redb` | one process at a time | kill -9 and restart |
//! | `RedisStore` | `redis` | every process that reaches the server | every client; what the server persists |
//!
//! Both implement [`QuotaStore`](tower_gemini::store::QuotaStore),
//! [`SpendingStore`](tower_gemini::store::SpendingStore) and
//! [`Journal`](tower_gemini::store::Journal); the layers take either with
//! [`QuotaGuardLayer::store`](tower_gemini::QuotaGuardLayer::store) and
//! [`SpendingLayer::store`](tower_gemini::SpendingLayer::store). No feature is on by default.

#[cfg(feature = "redis")]
mod lanes;
#[cfg(feature = "redb")]
mod redb;
#[cfg(feature = "redis")]
mod redis;

#[cfg(feature = "redb")]
pub use self::redb::RedbStore;
#[cfg(feature = "redis")]
pub use self::redis::RedisStore;

/// Bytes that nobody can guess: the standard library's keys for its hash maps are random, from the
/// operating system, and never leave the process.
#[cfg(any(feature = "redb", feature = "redis"))]
fn random() -> [u8; 16] {
    use std::hash::{BuildHasher, RandomState};
    let (a, b) = (RandomState::new().hash_one(0_u8), RandomState::new().hash_one(1_u8));
    (u128::from(a) << 64 | u128::from(b)).to_le_bytes()
}
