use redb::{TableDefinition, TableError};
use tokio::runtime::Handle;
use tower_gemini::store::{RecordStore, SpendingFuture, StoreError};

use super::RedbStore;
use super::commit::{Failure, boxed};

/// Texts by their table and key.
const RECORDS: TableDefinition<'_, (&str, &str), &str> = TableDefinition::new("records_v1");

type Records = redb::ReadOnlyTable<(&'static str, &'static str), &'static str>;

impl RedbStore {
    /// Reads records apart from the thread that writes. Before the first change there are none.
    fn read_records<T: Default + Send + 'static>(
        &self,
        read: impl FnOnce(&Records) -> Result<T, Failure> + Send + 'static,
    ) -> SpendingFuture<T> {
        let inner = self.inner.clone();
        let read = move || {
            inner.writer.read(|transaction| match transaction.open_table(RECORDS) {
                Ok(table) => read(&table),
                Err(TableError::TableDoesNotExist(_)) => Ok(T::default()),
                Err(error) => Err(boxed(error)),
            })
        };
        Box::pin(async move {
            match Handle::try_current() {
                Ok(runtime) => runtime.spawn_blocking(read).await.map_err(StoreError::new)?,
                Err(_) => read(),
            }
        })
    }
}

impl RecordStore for RedbStore {
    fn change(
        &self,
        table: &'static str,
        records: Vec<(String, Option<String>)>,
    ) -> SpendingFuture<()> {
        self.inner.writer.change(move |write| {
            let mut rows = write.open_table(RECORDS).map_err(boxed)?;
            for (key, text) in &records {
                let key = (table, key.as_str());
                match text {
                    Some(text) => rows.insert(key, text.as_str()).map_err(boxed)?,
                    None => rows.remove(key).map_err(boxed)?,
                };
            }
            Ok(())
        })
    }

    fn get(&self, table: &'static str, keys: Vec<String>) -> SpendingFuture<Vec<Option<String>>> {
        let count = keys.len();
        let read = self.read_records(move |rows| {
            let text = |key: &String| {
                let row = rows.get((table, key.as_str())).map_err(boxed)?;
                Ok(row.map(|row| row.value().to_owned()))
            };
            keys.iter().map(text).collect()
        });
        Box::pin(async move {
            let mut texts: Vec<_> = read.await?;
            texts.resize(count, None);
            Ok(texts)
        })
    }

    fn all(&self, table: &'static str) -> SpendingFuture<Vec<(String, String)>> {
        self.read_records(move |rows| {
            let mut all = Vec::new();
            for row in rows.range((table, "")..).map_err(boxed)? {
                let (key, text) = row.map_err(boxed)?;
                let (of, key) = key.value();
                if of != table {
                    break;
                }
                all.push((key.to_owned(), text.value().to_owned()));
            }
            Ok(all)
        })
    }
}
