use tower_gemini::store::{RecordStore, SpendingFuture};

use super::PostgresStore;
use super::connection::{limited, unreadable};

/// Tables of records are kinds of values.
fn kind(table: &str) -> String {
    format!("records {table}")
}

impl RecordStore for PostgresStore {
    fn change(
        &self,
        table: &'static str,
        mut records: Vec<(String, Option<String>)>,
    ) -> SpendingFuture<()> {
        let store = self.clone();
        // All processes lock in one order. The sort is stable: the last text of a key stays the
        // last.
        records.sort_by(|(a, _), (b, _)| a.cmp(b));
        let change = async move {
            let kind = kind(table);
            let mut transaction = store.connections.begin().await?;
            for (key, text) in &records {
                match text {
                    Some(text) => {
                        store.put(&mut transaction, &kind, key, text.as_bytes()).await?;
                    }
                    None => {
                        let remove = "DELETE FROM tower_gemini_values \
                                      WHERE prefix = $1 AND kind = $2 AND name = $3";
                        let remove = sqlx::query(remove).bind(&store.prefix).bind(&kind).bind(key);
                        remove.execute(&mut *transaction).await?;
                    }
                }
            }
            transaction.commit().await
        };
        Box::pin(limited(change))
    }

    fn get(&self, table: &'static str, keys: Vec<String>) -> SpendingFuture<Vec<Option<String>>> {
        let store = self.clone();
        let get = async move {
            let mut transaction = store.connections.begin().await?;
            let get = "SELECT value FROM unnest($3) WITH ORDINALITY AS asked (name, at) \
                       LEFT JOIN tower_gemini_values AS known \
                       ON known.prefix = $1 AND known.kind = $2 AND known.name = asked.name \
                       ORDER BY at";
            let get = sqlx::query_scalar(get).bind(&store.prefix).bind(kind(table)).bind(keys);
            let texts: Vec<Option<Vec<u8>>> = get.fetch_all(&mut *transaction).await?;
            transaction.commit().await?;
            texts.into_iter().map(|value| value.map(text).transpose()).collect()
        };
        Box::pin(limited(get))
    }

    fn all(&self, table: &'static str) -> SpendingFuture<Vec<(String, String)>> {
        let store = self.clone();
        let all = async move {
            let mut transaction = store.connections.begin().await?;
            let all = "SELECT name, value FROM tower_gemini_values WHERE prefix = $1 AND kind = $2";
            let all = sqlx::query_as(all).bind(&store.prefix).bind(kind(table));
            let rows: Vec<(String, Vec<u8>)> = all.fetch_all(&mut *transaction).await?;
            transaction.commit().await?;
            rows.into_iter().map(|(name, value)| Ok((name, text(value)?))).collect()
        };
        Box::pin(limited(all))
    }
}

fn text(value: Vec<u8>) -> Result<String, sqlx::Error> {
    String::from_utf8(value).map_err(|_| unreadable("a record"))
}
