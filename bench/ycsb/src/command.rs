//! Operations in Redis' words, as YCSB's binding has them.

use anyhow::{Context, Result, bail, ensure};
use redis::{Cmd, Value, cmd, from_redis_value};

use crate::{
    workload::{self, FIELD_BYTES, FIELDS, Operation, Workload},
    zipf,
};

/// Key of the sorted set in which YCSB's Redis binding keeps all keys, for scans.
const INDEX: &str = "_indices";

/// YCSB's load phase: writes all records anew.
pub(crate) fn load(records: u64, workload: &mut Workload) -> impl Iterator<Item = Cmd> {
    let records = (0..records).flat_map(move |record| {
        let key = workload::key(record);
        let mut insert = cmd("HMSET");
        insert.arg(&key);
        for field in 0..FIELDS {
            insert.arg(workload::field(field)).arg(workload.value().as_slice());
        }
        // YCSB scores by the key's hash in Java; any number that scatters does.
        let mut index = cmd("ZADD");
        index.arg(INDEX).arg(zipf::hash(record)).arg(&key);
        [insert, index]
    });
    std::iter::once(cmd("FLUSHALL")).chain(records)
}

/// Makes sure that a command of [`load`] was done.
///
/// # Errors
/// The server refused it.
pub(crate) fn accept_load(answer: Value) -> Result<()> {
    let error = answer.extract_error();
    error.map(drop).context("the server refuses to load a record")
}

impl Operation {
    /// Its command.
    #[must_use]
    pub fn command(&self) -> Cmd {
        match self {
            Self::Read { key } => {
                let mut read = cmd("HGETALL");
                read.arg(key);
                read
            }
            Self::Update { key, field, value } => {
                let mut update = cmd("HMSET");
                update.arg(key).arg(workload::field(*field)).arg(value.as_slice());
                update
            }
        }
    }

    /// Makes sure that the server's answer is that of this operation.
    ///
    /// # Errors
    /// The server refused, or gives back something else than a record.
    pub fn accept(&self, answer: Value) -> Result<()> {
        let answer = answer.extract_error()?;
        match self {
            Self::Read { key } => {
                let fields: Vec<(Vec<u8>, Vec<u8>)> = from_redis_value(answer)?;
                let whole = fields.iter().all(|(_, value)| value.len() == FIELD_BYTES);
                ensure!(fields.len() == FIELDS && whole, "the server has no whole record {key}");
            }
            Self::Update { key, .. } => match answer {
                Value::Okay => {}
                other => bail!("the server answers an update of {key} by {other:?}"),
            },
        }
        Ok(())
    }
}
