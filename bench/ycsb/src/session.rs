//! A client whose connection is somebody else's: it makes requests and takes what comes back, one after the other.

use anyhow::{Context, Result};

use crate::{
    command,
    workload::{Operation, Workload},
};

/// What a request was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of the load phase.
    Load,
    /// Reading a record.
    Read,
    /// Writing a field.
    Update,
}

/// One client.
#[derive(Debug)]
pub struct Session {
    workload: Workload,
    /// Commands of the load phase that are left, the last one first.
    load: Vec<Vec<u8>>,
    asked: Option<Asked>,
    got: Vec<u8>,
}

#[derive(Debug)]
enum Asked {
    Load,
    Operation(Operation),
}

impl Session {
    /// One that loads `records` records, and then does operations drawn from `seed`.
    #[must_use]
    pub fn new(records: u64, seed: u64) -> Self {
        let mut workload = Workload::new(records, seed);
        let load = command::load(records, &mut workload);
        let mut load: Vec<_> = load.map(|command| command.get_packed_command()).collect();
        load.reverse();
        Self {
            workload,
            load,
            asked: None,
            got: Vec::new(),
        }
    }

    /// Whether all records are there.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.load.is_empty() && !matches!(self.asked, Some(Asked::Load))
    }

    /// The next request, once the one before has its answer.
    pub fn request(&mut self) -> Option<Vec<u8>> {
        if self.asked.is_some() {
            return None;
        }
        if let Some(command) = self.load.pop() {
            self.asked = Some(Asked::Load);
            return Some(command);
        }
        let operation = self.workload.next_operation();
        let command = operation.command().get_packed_command();
        self.asked = Some(Asked::Operation(operation));
        Some(command)
    }

    /// Takes what came; returns what it was that has its answer now, all of it.
    ///
    /// # Errors
    /// The server refused, or it is not what was asked for.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Option<Kind>> {
        self.got.extend_from_slice(bytes);
        let answer = match redis::parse_redis_value(&self.got) {
            Err(error) if error.is_io_error() => return Ok(None),
            answer => answer.context("the server sends no answer")?,
        };
        self.got.clear();
        match self.asked.take().context("the server answers what it was not asked")? {
            Asked::Load => command::accept_load(answer).map(|()| Some(Kind::Load)),
            Asked::Operation(operation) => {
                operation.accept(answer)?;
                Ok(Some(match operation {
                    Operation::Read { .. } => Kind::Read,
                    Operation::Update { .. } => Kind::Update,
                }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{FIELD_BYTES, FIELDS};

    fn record() -> Vec<u8> {
        let value = "v".repeat(FIELD_BYTES);
        let pair = format!("$1\r\nf\r\n${FIELD_BYTES}\r\n{value}\r\n");
        format!("*{}\r\n{}", 2 * FIELDS, pair.repeat(FIELDS)).into_bytes()
    }

    #[test]
    fn records_are_loaded_and_then_operations_follow_one_another() {
        let mut session = Session::new(3, 1);
        // FLUSHALL, and two commands for each record.
        for _ in 0..7 {
            assert!(!session.is_loaded());
            let request = session.request().unwrap();
            assert!(request.starts_with(b"*"));
            assert_eq!(session.request(), None, "one at a time");
            let answer: &[u8] = if request.windows(4).any(|word| word == b"ZADD") {
                b":1\r\n"
            } else {
                b"+OK\r\n"
            };
            assert_eq!(session.take(answer).unwrap(), Some(Kind::Load));
        }
        assert!(session.is_loaded());
        for _ in 0..20 {
            let read = session.request().unwrap().windows(7).any(|word| word == b"HGETALL");
            let (answer, kind) = if read {
                (record(), Kind::Read)
            } else {
                (b"+OK\r\n".to_vec(), Kind::Update)
            };
            // In pieces, as it comes.
            let (first, last) = answer.split_at(answer.len() - 2);
            assert_eq!(session.take(first).unwrap(), None);
            assert_eq!(session.take(last).unwrap(), Some(kind));
        }
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        let mut session = Session::new(1, 1);
        assert!(session.take(b"+OK\r\n").is_err(), "nothing was asked");
        session.request().unwrap();
        assert!(session.take(b"-ERR no\r\n").is_err());
        session.request().unwrap();
        assert!(session.take(b"garbage\r\n").is_err());
    }
}
