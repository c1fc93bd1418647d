//! What is done: YCSB's `workloads/workloada` with the defaults of its `CoreWorkload`.

use rand::{RngExt, SeedableRng, distr::Uniform, rngs::SmallRng};

use crate::zipf::{self, Records};

/// Fields of a record (YCSB's `fieldcount`).
pub const FIELDS: usize = 10;
/// Bytes of a field (YCSB's `fieldlength`).
pub const FIELD_BYTES: usize = 100;
/// Share of reads (YCSB's `readproportion` in workload A); the others are updates.
const READS: f64 = 0.5;

/// Contents of a field.
pub type Value = [u8; FIELD_BYTES];

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Read all fields of the record with this key.
    Read {
        /// The record's key.
        key: String,
    },
    /// Write one field.
    Update {
        /// The record's key.
        key: String,
        /// Number of the field.
        field: usize,
        /// What is written.
        value: Value,
    },
}

/// Makes operations; the same seed makes the same.
#[derive(Debug)]
pub struct Workload {
    records: Records,
    random: SmallRng,
}

impl Workload {
    /// Operations on `records` records.
    #[must_use]
    pub fn new(records: u64, seed: u64) -> Self {
        Self {
            records: Records::new(records),
            random: SmallRng::seed_from_u64(seed),
        }
    }

    /// The next operation.
    pub fn next_operation(&mut self) -> Operation {
        let read = self.random.random_bool(READS);
        let key = key(self.records.draw(&mut self.random));
        if read {
            return Operation::Read { key };
        }
        Operation::Update {
            key,
            field: self.random.random_range(0..FIELDS),
            value: self.value(),
        }
    }

    /// Contents for a field: printable bytes, as YCSB's.
    pub fn value(&mut self) -> Value {
        let mut value = [0; FIELD_BYTES];
        if let Ok(printable) = Uniform::new(b' ', b'~') {
            for byte in &mut value {
                *byte = self.random.sample(printable);
            }
        }
        value
    }
}

/// The key of a record (YCSB's `insertorder=hashed`).
#[must_use]
pub fn key(record: u64) -> String {
    format!("user{}", zipf::hash(record))
}

/// The name of a field.
#[must_use]
pub fn field(number: usize) -> String {
    format!("field{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_are_reads_and_updates_touch_every_field_alike() {
        const OPERATIONS: u32 = 100_000;
        let mut workload = Workload::new(1000, 7);
        let mut reads = 0u32;
        let mut fields = [0u32; FIELDS];
        for _ in 0..OPERATIONS {
            match workload.next_operation() {
                Operation::Read { .. } => reads += 1,
                Operation::Update { field, value, .. } => {
                    fields[field] += 1;
                    assert!(value.iter().all(|byte| (b' '..b'~').contains(byte)));
                }
            }
        }
        // Five standard deviations: 158 for the reads, 69 for a field.
        assert!(reads.abs_diff(OPERATIONS / 2) < 5 * 158, "{reads} reads");
        let each = (OPERATIONS - reads) / 10;
        assert!(fields.iter().all(|hits| hits.abs_diff(each) < 5 * 69), "{fields:?}");
    }

    #[test]
    fn a_seed_says_all() {
        let operations = |seed| {
            let mut workload = Workload::new(1000, seed);
            (0..100).map(|_| workload.next_operation()).collect::<Vec<_>>()
        };
        assert_eq!(operations(1), operations(1));
        assert_ne!(operations(1), operations(2));
    }
}
