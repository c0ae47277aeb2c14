//! redb: a B-tree, a transaction a put and a take. Without a sync a commit lives in memory until the next one that syncs.

use std::path::Path;
use std::sync::Arc;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use crate::subject::{Any, Opened, Put, Shared, Sync, Take, Wish, poll};

const TABLE: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("q");

pub fn open(dir: &Path, wish: Wish) -> Any<Opened> {
    if wish.sync == Sync::Every {
        return Err("it has no periodic sync".into());
    }
    let database = Arc::new(Database::create(dir.join("queue.redb"))?);
    let transaction = database.begin_write()?;
    transaction.open_table(TABLE)?;
    transaction.commit()?;
    let durability = if wish.sync == Sync::Each { Durability::Immediate } else { Durability::None };
    let read = database.begin_read()?;
    let next = read.open_table(TABLE)?.last()?.map_or(0, |(key, _)| key.value() + 1);
    Ok(Opened {
        put: Box::new(Shared::new(Putter { database: Arc::clone(&database), durability, next })),
        take: Box::new(Taker { database }),
    })
}

struct Putter {
    database: Arc<Database>,
    durability: Durability,
    next: u64,
}

impl Put for Putter {
    fn put(&mut self, payload: &[u8]) -> Any<()> {
        self.put_batch(&[payload])
    }

    fn put_batch(&mut self, payloads: &[&[u8]]) -> Any<()> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(self.durability)?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for payload in payloads {
                table.insert(self.next, *payload)?;
                self.next += 1;
            }
        }
        Ok(transaction.commit()?)
    }

    fn another(&self) -> Any<Box<dyn Put>> {
        Err("shared behind a mutex".into())
    }
}

struct Taker {
    database: Arc<Database>,
}

impl Take for Taker {
    fn take(&mut self, see: &mut dyn FnMut(&[u8])) -> Any<()> {
        poll(|| {
            let mut transaction = self.database.begin_write()?;
            transaction.set_durability(Durability::None)?;
            let is_there = match transaction.open_table(TABLE)?.pop_first()? {
                Some((_, value)) => {
                    see(value.value());
                    true
                }
                None => false,
            };
            if !is_there {
                transaction.abort()?;
                return Ok(None);
            }
            transaction.commit()?;
            Ok(Some(()))
        })
    }

    fn another(&self) -> Any<Box<dyn Take>> {
        Ok(Box::new(Taker { database: Arc::clone(&self.database) }))
    }
}
