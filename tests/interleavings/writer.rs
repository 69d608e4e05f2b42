//! The thread that writes a journal, quota and spending to a file.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use futures::future::join_all;
use redb::{Database, ReadableTable, StorageBackend, TableDefinition, WriteTransaction};
use shuttle::future::block_on;

use crate::commit::{Failure, Writer, boxed};
use crate::sync::{AtomicUsize, Ordering};
use crate::{check_on, join, runtime};

const TABLE: TableDefinition<'_, u64, u64> = TableDefinition::new("table");

/// A disk in memory, which outlives its database.
#[derive(Debug, Default, Clone)]
struct Disk(Arc<Mutex<Vec<u8>>>);

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let from = offset as usize;
        Ok(self.0.lock().unwrap()[from..from + len].to_vec())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let from = offset as usize;
        self.0.lock().unwrap()[from..from + data.len()].copy_from_slice(data);
        Ok(())
    }
}

fn database(disk: &Disk) -> Database {
    Database::builder().create_with_backend(disk.clone()).unwrap()
}

/// Counts one up, and returns the count before.
fn count_up(transaction: &WriteTransaction) -> Result<u64, Failure> {
    let mut table = transaction.open_table(TABLE).map_err(boxed)?;
    let before = table.get(0).map_err(boxed)?.map_or(0, |count| count.value());
    table.insert(0, before + 1).map_err(boxed)?;
    Ok(before)
}

/// Changes of two callers while a third one closes the file: each is told, none is made twice or
/// lost, and those of one caller are made in their order.
pub fn every_change_is_made_once_or_refused_however_the_file_is_closed() {
    // A database is large.
    check_on(&runtime(), 40, || {
        let disk = Disk::default();
        let writer = Arc::new(Writer::start(PathBuf::new(), database(&disk)).unwrap());
        let waits = writer.change(count_up);
        let made = Arc::new(AtomicUsize::new(1));
        let closes = writer.clone();
        let calls = (0..2).map(|_| {
            let (writer, made) = (writer.clone(), made.clone());
            Box::new(move || {
                let changes = [writer.change(count_up), writer.change(count_up)];
                let changed: Vec<_> = block_on(join_all(changes)).into_iter().flatten().collect();
                assert!(changed.is_sorted(), "{changed:?}");
                made.fetch_add(changed.len(), Ordering::SeqCst);
            }) as Box<dyn FnOnce() + Send>
        });
        join(calls.chain([Box::new(move || closes.close()) as Box<dyn FnOnce() + Send>]));
        block_on(waits).expect("what waits is committed before the file is closed");
        drop(writer);
        let table = database(&disk).begin_write().unwrap();
        assert_eq!(count_up(&table).unwrap(), made.load(Ordering::SeqCst) as u64);
    });
}
