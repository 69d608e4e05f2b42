use sqlx::Error;
use tower_gemini::quota_guard::Moment;
use tower_gemini::store::{Exchange, ExchangeFuture, QuotaStore, Reply, StoredCounts};

use super::PostgresStore;
use super::connection::{int, limited, unreadable};

/// The counts of a key are one value, as [`StoredCounts::to_bytes`] writes them. The number is that
/// of their form, as in the name of redb's table.
const COUNTS: &str = "quota_counts_v3";

impl QuotaStore for PostgresStore {
    fn exchange(&self, exchange: Exchange) -> ExchangeFuture {
        let store = self.clone();
        Box::pin(async move { limited(store.ask(&exchange)).await })
    }
}

impl PostgresStore {
    async fn ask(&self, exchange: &Exchange) -> Result<Reply, Error> {
        let name = exchange.key.to_string();
        let mut transaction = self.connections.begin().await?;
        let counts = self.locked(&mut transaction, COUNTS, &name).await?;
        // Read with the lock held: what is counted later is dated later.
        let now_ms = transaction.now_ms().await?;
        let now = Moment { steady_ms: now_ms, wall_ms: int(now_ms) };
        let mut counts = match counts.as_slice() {
            [] => StoredCounts::new(now, exchange.margin),
            counts => StoredCounts::from_bytes(counts, now)
                .ok_or_else(|| unreadable("the counts of a quota"))?,
        };
        let reply = counts.exchange(now, exchange);
        self.put(&mut transaction, COUNTS, &name, &counts.to_bytes()).await?;
        transaction.commit().await?;
        Ok(reply)
    }
}
