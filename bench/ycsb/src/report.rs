//! What comes out of a run, as JSON.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::counters::Counters;

/// A run: what was done before, and its repetitions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Records in the server.
    pub records: u64,
    /// Operations before the first repetition.
    pub warmup: u64,
    /// Repetitions, in order.
    pub repetitions: Vec<Repetition>,
}

/// One repetition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Repetition {
    /// Operations, all of them successful.
    pub operations: u64,
    /// Reads among them.
    pub reads: u64,
    /// Ticks of the time stamp counter from before the first to after the last.
    pub ticks: u64,
    /// The same time by the host's monotonic clock, in ns.
    pub nanoseconds: u64,
    /// How long a read takes.
    pub read: Latency,
    /// How long an update takes.
    pub update: Latency,
    /// What was counted meanwhile, by the name of the source.
    pub counters: BTreeMap<String, Counters>,
}

/// How long operations of a kind took, in ticks of the time stamp counter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Arithmetic mean.
    pub mean: f64,
    /// Half took at most this long.
    pub p50: u64,
    /// 95 of 100.
    pub p95: u64,
    /// 99 of 100.
    pub p99: u64,
    /// 999 of 1,000.
    pub p999: u64,
    /// The longest.
    pub max: u64,
}

impl From<&Histogram<u64>> for Latency {
    fn from(histogram: &Histogram<u64>) -> Self {
        Self {
            mean: histogram.mean(),
            p50: histogram.value_at_quantile(0.5),
            p95: histogram.value_at_quantile(0.95),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }
}
