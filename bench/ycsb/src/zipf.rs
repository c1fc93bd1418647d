//! Which record an operation is about: YCSB's scrambled zipfian distribution.
//!
//! Source: YCSB, `core/src/main/java/site/ycsb/generator/{ZipfianGenerator,ScrambledZipfianGenerator}.java` and
//! `Utils.java`. The ranks come from Gray et al., "Quickly Generating Billion-Record Synthetic Databases" (SIGMOD
//! 1994).

use rand::RngExt;

/// Exponent of the distribution (YCSB's `ZIPFIAN_CONSTANT`).
pub const THETA: f64 = 0.99;
/// Ranks that are drawn from, before they are scrambled (YCSB's `ITEM_COUNT`, when its `ZETAN` was computed).
pub const RANKS: u64 = 10_000_000_000;
/// Sum of `rank^-THETA` over [`RANKS`] ranks (YCSB's `ZETAN`).
pub const ZETAN: f64 = 26.469_028_201_783_02;

/// FNV-1a with 64 bits over the eight bytes of a number, lowest first, and its absolute value as a signed number:
/// YCSB's `fnvhash64`.
#[must_use]
pub fn hash(value: u64) -> u64 {
    let hash = value.to_le_bytes().iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.cast_signed().unsigned_abs()
}

/// Draws ranks from 0, the most frequent, to [`RANKS`].
#[derive(Debug, Clone, Copy)]
pub struct Zipfian {
    items: f64,
    alpha: f64,
    eta: f64,
    second: f64,
}

impl Default for Zipfian {
    fn default() -> Self {
        // YCSB's bounds are inclusive: one item more than the constant says.
        #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
        let items = (RANKS + 1) as f64;
        let second = 0.5f64.powf(THETA);
        Self {
            items,
            alpha: 1.0 / (1.0 - THETA),
            eta: (1.0 - (2.0 / items).powf(1.0 - THETA)) / (1.0 - (1.0 + second) / ZETAN),
            second,
        }
    }
}

impl Zipfian {
    /// The rank for a number that is evenly distributed in [0, 1).
    #[must_use]
    pub fn rank(&self, uniform: f64) -> u64 {
        let scaled = uniform * ZETAN;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + self.second {
            return 1;
        }
        let rank = self.items * (self.eta * uniform - self.eta + 1.0).powf(self.alpha);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and the number of items"
        )]
        let rank = rank as u64;
        rank
    }
}

/// Draws record numbers below `records`, the frequent ones scattered.
#[derive(Debug, Clone, Copy)]
pub struct Records {
    ranks: Zipfian,
    records: u64,
}

impl Records {
    /// For records with the numbers 0 to `records` - 1.
    #[must_use]
    pub fn new(records: u64) -> Self {
        Self {
            ranks: Zipfian::default(),
            records,
        }
    }

    /// The record that a rank stands for, if it exists: YCSB's `CoreWorkload` gives the generator an inclusive bound
    /// that is one too high, and draws again when that one comes.
    #[must_use]
    pub fn of_rank(&self, rank: u64) -> Option<u64> {
        Some(hash(rank) % (self.records + 1)).filter(|record| *record < self.records)
    }

    /// The next record.
    pub fn draw(&self, random: &mut impl RngExt) -> u64 {
        loop {
            if let Some(record) = self.of_rank(self.ranks.rank(random.random())) {
                return record;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, distr::Distribution, rngs::SmallRng};
    use std::collections::HashMap;

    const DRAWS: u32 = 2_000_000;

    /// Sum of `i^-THETA` for `i` from `from` to `to`, by Euler and Maclaurin from rank 1,000 on.
    fn zeta(from: u64, to: u64) -> f64 {
        let term = |i: f64| i.powf(-THETA);
        let near: f64 = (from..=to.min(1000)).map(|i| term(i as f64)).sum();
        if to <= 1000 {
            return near;
        }
        let (a, b) = (from.max(1001) as f64, to as f64);
        let integral = |x: f64| x.powf(1.0 - THETA) / (1.0 - THETA);
        near + integral(b) - integral(a) + f64::midpoint(term(a), term(b)) + THETA / 12.0 * (term(a) / a - term(b) / b)
    }

    #[test]
    fn the_hash_is_ycsbs() {
        // The first keys of every YCSB load with hashed inserts, as they stand in its output (user6284781860667377211,
        // ...).
        assert_eq!(
            [0, 1, 2].map(hash),
            [
                6_284_781_860_667_377_211,
                8_517_097_267_634_966_620,
                1_820_151_046_732_198_393
            ]
        );
    }

    #[test]
    fn the_published_constant_is_the_sum_over_the_ranks() {
        let sum = zeta(1, RANKS);
        assert!((sum - ZETAN).abs() < 1e-6, "{sum}");
    }

    /// Allowed distance of a share of [`DRAWS`]: five standard deviations.
    fn close(share: f64, expected: f64) -> bool {
        (share - expected).abs() < 5.0 * (expected / f64::from(DRAWS)).sqrt()
    }

    #[test]
    fn ranks_have_the_analytic_frequencies() {
        let mut random = SmallRng::seed_from_u64(1);
        let ranks = Zipfian::default();
        let mut seen = HashMap::<u64, u32>::new();
        for _ in 0..DRAWS {
            *seen.entry(ranks.rank(random.random())).or_default() += 1;
        }
        // Exact for the two first (Gray's method treats them apart): 3.78% and 1.90%.
        for rank in [0, 1u64] {
            let share = f64::from(seen[&rank]) / f64::from(DRAWS);
            let expected = ((rank + 1) as f64).powf(-THETA) / ZETAN;
            assert!(close(share, expected), "rank {rank}: {share} not {expected}");
        }
        // From there on it is an approximation of the tail; by decades it stays within 3% of the true one.
        for decade in 1..10 {
            let (from, to) = (10u64.pow(decade), 10u64.pow(decade + 1));
            let hits: u32 = seen
                .iter()
                .filter(|(rank, _)| (from..to).contains(rank))
                .map(|(_, hits)| hits)
                .sum();
            let share = f64::from(hits) / f64::from(DRAWS);
            let expected = zeta(from + 1, to) / ZETAN;
            assert!(
                (share / expected - 1.0).abs() < 0.03,
                "ranks {from} to {to}: {share} not {expected}"
            );
        }
    }

    #[test]
    fn hot_records_are_as_hot_as_with_another_zipf() {
        const RECORDS: u64 = 1000;
        let records = Records::new(RECORDS);
        let mut random = SmallRng::seed_from_u64(2);
        let other = rand_distr::Zipf::new(RANKS as f64, THETA).unwrap();
        let mut ours = HashMap::<u64, u32>::new();
        let mut theirs = HashMap::<u64, u32>::new();
        let mut drawn = 0;
        while drawn < DRAWS {
            *ours.entry(records.draw(&mut random)).or_default() += 1;
            let rank = other.sample(&mut random) as u64 - 1;
            if let Some(record) = records.of_rank(rank) {
                *theirs.entry(record).or_default() += 1;
                drawn += 1;
            }
        }
        let mut hottest: Vec<_> = theirs.iter().collect();
        hottest.sort_by_key(|(_, hits)| std::cmp::Reverse(**hits));
        // The record of rank 0 leads with its own 3.78% and a thousandth of the rest.
        assert_eq!(*hottest[0].0, records.of_rank(0).unwrap());
        // Gray's method is exact for the ranks 0 and 1 only; the next ones get up to a fifth more or less than their
        // due.
        for (place, (record, hits)) in hottest.into_iter().take(10).enumerate() {
            let (ours, theirs) = (f64::from(ours[record]), f64::from(*hits));
            let allowed = if place < 2 { 0.03 } else { 0.22 };
            assert!(
                (ours / theirs - 1.0).abs() < allowed,
                "record {record}: {ours} hits, by rand_distr {theirs}"
            );
        }
        assert!(ours.keys().all(|record| *record < RECORDS));
        assert_eq!(ours.len() as u64, RECORDS, "every record is drawn");
    }
}
