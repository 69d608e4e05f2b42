use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redb::{ReadableTable, StorageError, TableDefinition, WriteTransaction};
use tower_gemini::store::{
    OpenSpend, SpendAsk, SpendReply, SpendSettlement, SpendingBooks, SpendingFuture, SpendingStore,
    StoredSpending,
};

use super::RedbStore;
use super::commit::{Failure, boxed};

/// What each period of a ledger came to, as [`StoredSpending::pages`] writes it.
const PAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("spending_pages_v1");
/// The open reservations of a ledger: the run that made one, and [`OpenSpend::to_bytes`].
const OPEN: TableDefinition<'_, (&str, u128), (u64, &[u8])> =
    TableDefinition::new("spending_open_v1");

/// The accounts as they are in the file, once they were read. Only the thread that writes uses
/// them.
pub(super) struct Accounts {
    /// Of this opening of the file: reservations of other runs are lost.
    run: u64,
    failures: Arc<AtomicU64>,
    cached: Mutex<Cached>,
}

#[derive(Default)]
struct Cached {
    /// Valid for this number of failures: after another one, what is here may not be in the file.
    failures: u64,
    accounts: HashMap<String, StoredSpending>,
}

impl Accounts {
    pub(super) fn new(run: u64, failures: Arc<AtomicU64>) -> Self {
        Self { run, failures, cached: Mutex::default() }
    }

    fn change<R>(
        &self,
        write: &WriteTransaction,
        books: &Arc<SpendingBooks>,
        change: impl FnOnce(&mut StoredSpending) -> R,
    ) -> Result<R, Failure> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = self.failures.load(Ordering::Acquire);
        if cached.failures != failures {
            *cached = Cached { failures, accounts: HashMap::new() };
        }
        let mut account = match cached.accounts.remove(&books.ledger) {
            Some(account) => account,
            None => self.load(write, books)?,
        };
        let result = change(&mut account);
        let mut pages = write.open_table(PAGES).map_err(boxed)?;
        pages.insert(books.ledger.as_str(), account.pages().as_slice()).map_err(boxed)?;
        cached.accounts.insert(books.ledger.clone(), account);
        Ok(result)
    }

    /// Reads an account. Reservations of a process that is gone may have come to all of it.
    fn load(
        &self,
        write: &WriteTransaction,
        books: &Arc<SpendingBooks>,
    ) -> Result<StoredSpending, Failure> {
        let corrupt = |what: &str| boxed(StorageError::Corrupted(format!("{what} is unreadable")));
        let ledger = books.ledger.as_str();
        let pages = write.open_table(PAGES).map_err(boxed)?;
        let mut account = match pages.get(ledger).map_err(boxed)? {
            Some(pages) => StoredSpending::restore(books.clone(), pages.value())
                .ok_or_else(|| corrupt("what was spent"))?,
            None => StoredSpending::new(books.clone()),
        };
        let mut rows = write.open_table(OPEN).map_err(boxed)?;
        let mut lost = Vec::new();
        for row in rows.range((ledger, 0)..=(ledger, u128::MAX)).map_err(boxed)? {
            let (key, value) = row.map_err(boxed)?;
            let ((_, id), (run, open)) = (key.value(), value.value());
            let open = OpenSpend::from_bytes(open).ok_or_else(|| corrupt("a reservation"))?;
            if run == self.run {
                account.reopen(id, open);
            } else {
                account.settle_lost(&open);
                lost.push(id);
            }
        }
        for id in &lost {
            rows.remove((ledger, *id)).map_err(boxed)?;
        }
        if !lost.is_empty() {
            tracing::warn!(
                ledger,
                attempts = lost.len(),
                "attempts that an earlier process did not settle count as spent, at their worst case"
            );
        }
        Ok(account)
    }

    fn reserve(
        &self,
        write: &WriteTransaction,
        now: Now,
        ask: &SpendAsk,
    ) -> Result<SpendReply, Failure> {
        let (reply, row) = self.change(write, &ask.books, |account| {
            (account.reserve(now, ask), account.open(ask.id).map(OpenSpend::to_bytes))
        })?;
        if let Some(row) = row {
            let mut rows = write.open_table(OPEN).map_err(boxed)?;
            let key = (ask.books.ledger.as_str(), ask.id);
            rows.insert(key, (self.run, row.as_slice())).map_err(boxed)?;
        }
        Ok(reply)
    }

    fn settle(
        &self,
        write: &WriteTransaction,
        now: Now,
        settlement: &SpendSettlement,
    ) -> Result<(), Failure> {
        self.change(write, &settlement.books, |account| account.settle(now, settlement))?;
        if let Some(id) = settlement.id {
            let mut rows = write.open_table(OPEN).map_err(boxed)?;
            rows.remove((settlement.books.ledger.as_str(), id)).map_err(boxed)?;
        }
        Ok(())
    }
}

type Now = std::time::SystemTime;

impl SpendingStore for RedbStore {
    fn reserve(&self, ask: SpendAsk) -> SpendingFuture<SpendReply> {
        let (accounts, now) = (self.inner.spending.clone(), self.inner.clock.now());
        self.inner.writer.change(move |write| accounts.reserve(write, now, &ask))
    }

    fn settle(&self, settlement: SpendSettlement) -> SpendingFuture<()> {
        let (accounts, now) = (self.inner.spending.clone(), self.inner.clock.now());
        self.inner.writer.change(move |write| accounts.settle(write, now, &settlement))
    }
}
