use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sqlx::Error;
use tokio::runtime::Handle;
use tower_gemini::store::{
    OpenSpend, SpendAsk, SpendReply, SpendSettlement, SpendingBooks, SpendingFuture, SpendingStore,
    StoreError, StoredSpending,
};

use super::PostgresStore;
use super::connection::{Transaction, int, limited, unreadable};

/// So long what was given up can still be settled, by a process that was only cut off.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3600);

/// What a ledger has spent is one value, as [`StoredSpending::pages`] writes it, with a row for
/// each open reservation beside it. The number is that of its form, as in the name of redb's table.
const PAGES: &str = "spending_pages_v1";

impl SpendingStore for PostgresStore {
    fn reserve(&self, ask: SpendAsk) -> SpendingFuture<SpendReply> {
        let store = self.clone();
        Box::pin(async move { limited(store.reserve_spending(&ask)).await })
    }

    fn settle(&self, settlement: SpendSettlement) -> SpendingFuture<()> {
        let store = self.clone();
        let settle = async move { limited(store.settle_spending(&settlement)).await };
        match Handle::try_current() {
            // On its way now, whether or not somebody waits for it.
            Ok(runtime) => {
                let settled = runtime.spawn(settle);
                Box::pin(async move { settled.await.map_err(StoreError::new)? })
            }
            Err(_) => Box::pin(settle),
        }
    }
}

/// An account with its value locked, as it was read and as it is now.
struct Locked {
    transaction: Transaction,
    now_ms: u64,
    before: Vec<u8>,
    account: StoredSpending,
}

impl Locked {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.now_ms)
    }
}

impl PostgresStore {
    async fn reserve_spending(&self, ask: &SpendAsk) -> Result<SpendReply, Error> {
        let mut locked = self.locked_account(&ask.books).await?;
        self.give_up(&mut locked, &ask.books.ledger).await?;
        let id = ask.id.to_be_bytes();
        let known = "SELECT open FROM tower_gemini_spends \
                     WHERE prefix = $1 AND ledger = $2 AND id = $3";
        let known = sqlx::query_scalar(known).bind(&self.prefix).bind(&ask.books.ledger).bind(id);
        let known: Option<Vec<u8>> = known.fetch_optional(&mut *locked.transaction).await?;
        let is_known = known.is_some();
        if let Some(known) = known {
            locked.account.reopen(ask.id, open(&known)?);
        }
        let now = locked.now();
        let reply = locked.account.reserve(now, ask);
        if let (Some(open), false) = (locked.account.open(ask.id), is_known) {
            let add = "INSERT INTO tower_gemini_spends \
                           (prefix, ledger, id, open, is_lost, ends_ms) \
                       VALUES ($1, $2, $3, $4, false, $5)";
            let add = sqlx::query(add).bind(&self.prefix).bind(&ask.books.ledger).bind(id);
            let add = add.bind(open.to_bytes()).bind(after(locked.now_ms, self.give_up_after));
            add.execute(&mut *locked.transaction).await?;
        }
        self.keep_account(locked, &ask.books.ledger).await?;
        Ok(reply)
    }

    async fn settle_spending(&self, settlement: &SpendSettlement) -> Result<(), Error> {
        let ledger = &settlement.books.ledger;
        let mut locked = self.locked_account(&settlement.books).await?;
        if let Some(id) = settlement.id {
            let remove = "DELETE FROM tower_gemini_spends \
                          WHERE prefix = $1 AND ledger = $2 AND id = $3 RETURNING open, is_lost";
            let remove = sqlx::query_as(remove).bind(&self.prefix).bind(ledger);
            let remove = remove.bind(id.to_be_bytes());
            let row: Option<(Vec<u8>, bool)> =
                remove.fetch_optional(&mut *locked.transaction).await?;
            match row {
                Some((known, false)) => locked.account.reopen(id, open(&known)?),
                Some((known, true)) => locked.account.reopen_lost(id, open(&known)?),
                None => {}
            }
        }
        let now = locked.now();
        locked.account.settle(now, settlement);
        self.keep_account(locked, ledger).await
    }

    async fn locked_account(&self, books: &Arc<SpendingBooks>) -> Result<Locked, Error> {
        let mut transaction = self.connections.begin().await?;
        let before = self.locked(&mut transaction, PAGES, &books.ledger).await?;
        let now_ms = transaction.now_ms().await?;
        let account = match before.as_slice() {
            [] => StoredSpending::new(books.clone()),
            pages => StoredSpending::restore(books.clone(), pages)
                .ok_or_else(|| unreadable("what was spent"))?,
        };
        Ok(Locked { transaction, now_ms, before, account })
    }

    async fn keep_account(&self, locked: Locked, ledger: &str) -> Result<(), Error> {
        let Locked { mut transaction, before, account, .. } = locked;
        let pages = account.pages();
        if pages != before {
            self.put(&mut transaction, PAGES, ledger, &pages).await?;
        }
        transaction.commit().await
    }

    /// Settles what processes that are gone had reserved: they may have spent all of it.
    async fn give_up(&self, locked: &mut Locked, ledger: &str) -> Result<(), Error> {
        let give_up = "WITH forgotten AS (DELETE FROM tower_gemini_spends \
                       WHERE prefix = $1 AND ledger = $2 AND is_lost AND ends_ms <= $3) \
                       UPDATE tower_gemini_spends SET is_lost = true, ends_ms = $4 \
                       WHERE prefix = $1 AND ledger = $2 AND NOT is_lost AND ends_ms <= $3 \
                       RETURNING open";
        let give_up = sqlx::query_scalar(give_up).bind(&self.prefix).bind(ledger);
        let give_up = give_up.bind(int(locked.now_ms)).bind(after(locked.now_ms, FORGOTTEN_AFTER));
        let lost: Vec<Vec<u8>> = give_up.fetch_all(&mut *locked.transaction).await?;
        for lost in lost {
            locked.account.settle_lost(&open(&lost)?);
        }
        Ok(())
    }
}

fn after(now_ms: u64, time: Duration) -> i64 {
    int(now_ms).saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}

fn open(bytes: &[u8]) -> Result<OpenSpend, Error> {
    OpenSpend::from_bytes(bytes).ok_or_else(|| unreadable("a reservation"))
}
