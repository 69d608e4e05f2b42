use std::time::{Duration, SystemTime};

use redb::{ReadableTable, TableDefinition};
use tower_gemini::store::{Closure, ClosureStore, SpendingFuture};

use super::RedbStore;
use super::commit::boxed;

/// Each closure: until when, in milliseconds since 1970; how many times in a row; and its cause.
const CLOSURES: TableDefinition<'_, &str, (u64, u32, &str)> = TableDefinition::new("closures_v1");

fn ms(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn closure(name: &str, until_ms: u64, trips: u32, cause: &str) -> Option<Closure> {
    let until = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(until_ms))?;
    Some(Closure::new(name.to_owned(), until, trips, Closure::cause(cause)?))
}

impl ClosureStore for RedbStore {
    fn close(&self, closure: Closure) -> SpendingFuture<()> {
        self.inner.writer.change(move |write| {
            let row = (ms(closure.until), closure.trips, closure.cause.as_str());
            let mut table = write.open_table(CLOSURES).map_err(boxed)?;
            table.insert(closure.name.as_str(), row).map_err(boxed)?;
            Ok(())
        })
    }

    fn reopen(&self, names: Vec<String>) -> SpendingFuture<()> {
        self.inner.writer.change(move |write| {
            let mut table = write.open_table(CLOSURES).map_err(boxed)?;
            for name in &names {
                table.remove(name.as_str()).map_err(boxed)?;
            }
            Ok(())
        })
    }

    fn closures(&self) -> SpendingFuture<Vec<Closure>> {
        let now = ms(self.inner.clock.now());
        self.inner.writer.change(move |write| {
            let mut table = write.open_table(CLOSURES).map_err(boxed)?;
            table.retain(|_, (until, ..)| until > now).map_err(boxed)?;
            let mut closures = Vec::new();
            for row in table.iter().map_err(boxed)? {
                let (name, row) = row.map_err(boxed)?;
                let (until, trips, cause) = row.value();
                closures.extend(closure(name.value(), until, trips, cause));
            }
            Ok(closures)
        })
    }
}
