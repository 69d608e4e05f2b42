use redis::aio::MultiplexedConnection;
use tower_gemini::store::{RecordStore, SpendingFuture};

use super::RedisStore;

/// Each table is a hash.
impl RecordStore for RedisStore {
    fn change(
        &self,
        table: &'static str,
        records: Vec<(String, Option<String>)>,
    ) -> SpendingFuture<()> {
        let store = self.clone();
        Box::pin(async move {
            let key = store.name(table, "");
            let change = async |mut connection: MultiplexedConnection| {
                let mut pipe = redis::pipe();
                pipe.atomic();
                for (field, text) in &records {
                    match text {
                        Some(text) => pipe.hset(&key, field, text).ignore(),
                        None => pipe.hdel(&key, field).ignore(),
                    };
                }
                pipe.exec_async(&mut connection).await
            };
            store.run(change).await
        })
    }

    fn get(&self, table: &'static str, keys: Vec<String>) -> SpendingFuture<Vec<Option<String>>> {
        let store = self.clone();
        Box::pin(async move {
            if keys.is_empty() {
                return Ok(Vec::new());
            }
            let get = async |mut connection: MultiplexedConnection| {
                let mut get = redis::cmd("HMGET");
                get.arg(store.name(table, "")).arg(&keys).query_async(&mut connection).await
            };
            store.run(get).await
        })
    }

    fn all(&self, table: &'static str) -> SpendingFuture<Vec<(String, String)>> {
        let store = self.clone();
        Box::pin(async move {
            let all = async |mut connection: MultiplexedConnection| {
                let mut all = redis::cmd("HGETALL");
                all.arg(store.name(table, "")).query_async(&mut connection).await
            };
            store.run(all).await
        })
    }
}
