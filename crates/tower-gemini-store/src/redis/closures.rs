use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use redis::aio::MultiplexedConnection;
use tower_gemini::store::{Closure, ClosureStore, SpendingFuture, StoreError};

use super::RedisStore;

/// One hash holds them all. It is forgotten this long after the last change: no circuit rests
/// longer than a day.
const KEPT_SECONDS: i64 = 2 * 24 * 3600;

/// A field: until when, in milliseconds since 1970; how many times in a row; and its cause.
fn text(closure: &Closure) -> String {
    let since = closure.until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{} {} {}", since.as_millis(), closure.trips, closure.cause.as_str())
}

fn read(name: String, text: &str) -> Option<Closure> {
    let mut parts = text.splitn(3, ' ');
    let until = Duration::from_millis(parts.next()?.parse().ok()?);
    let trips = parts.next()?.parse().ok()?;
    let until = SystemTime::UNIX_EPOCH.checked_add(until)?;
    Some(Closure::new(name, until, trips, Closure::cause(parts.next()?)?))
}

impl ClosureStore for RedisStore {
    fn close(&self, closure: Closure) -> SpendingFuture<()> {
        let store = self.clone();
        Box::pin(async move {
            let key = store.name("closures", "");
            let close = async |mut connection: MultiplexedConnection| {
                let mut pipe = redis::pipe();
                pipe.hset(&key, &closure.name, text(&closure)).ignore();
                pipe.expire(&key, KEPT_SECONDS).ignore();
                pipe.exec_async(&mut connection).await
            };
            store.run(close).await
        })
    }

    fn reopen(&self, names: Vec<String>) -> SpendingFuture<()> {
        let store = self.clone();
        Box::pin(async move { store.forget(&names).await })
    }

    fn closures(&self) -> SpendingFuture<Vec<Closure>> {
        let store = self.clone();
        Box::pin(async move {
            let key = store.name("closures", "");
            let all: HashMap<String, String> = store
                .run(async |mut connection: MultiplexedConnection| {
                    redis::cmd("HGETALL").arg(&key).query_async(&mut connection).await
                })
                .await?;
            let now = store.clock.now();
            let (mut closures, mut over) = (Vec::new(), Vec::new());
            for (name, value) in all {
                match read(name.clone(), &value) {
                    Some(closure) if closure.until > now => closures.push(closure),
                    // Its time is over, or another version wrote it.
                    _ => over.push(name),
                }
            }
            store.forget(&over).await?;
            Ok(closures)
        })
    }
}

impl RedisStore {
    async fn forget(&self, names: &[String]) -> Result<(), StoreError> {
        if names.is_empty() {
            return Ok(());
        }
        let key = self.name("closures", "");
        let forget = async |mut connection: MultiplexedConnection| {
            redis::cmd("HDEL").arg(&key).arg(names).exec_async(&mut connection).await
        };
        self.run(forget).await
    }
}
