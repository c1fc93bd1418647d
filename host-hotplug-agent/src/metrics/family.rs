//! Families of samples, by the crate `prometheus`.

use anyhow::Result;
use prometheus::core::Collector;
use prometheus::{GaugeVec, IntCounter, Opts, Registry, TextEncoder};

/// All that is told.
#[derive(Default)]
pub struct Families(Registry);

impl Families {
    /// A gauge with a sample for each row of values of `labels`.
    ///
    /// # Errors
    /// If there is another of that name.
    pub fn gauge<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: &[&str; N],
        rows: impl IntoIterator<Item = ([&'a str; N], f64)>,
    ) -> Result<()> {
        let gauge = GaugeVec::new(Opts::new(name, help), labels)?;
        for (values, value) in rows {
            gauge.with_label_values(&values).set(value);
        }
        self.register(gauge)
    }

    /// A gauge with one sample.
    ///
    /// # Errors
    /// As [`Self::gauge`].
    pub fn one(&mut self, name: &str, help: &str, value: f64) -> Result<()> {
        self.gauge(name, help, &[], [([], value)])
    }

    /// A counter with one sample.
    ///
    /// # Errors
    /// As [`Self::gauge`].
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<()> {
        let counter = IntCounter::new(name, help)?;
        counter.inc_by(value);
        self.register(counter)
    }

    fn register(&self, collector: impl Collector + 'static) -> Result<()> {
        Ok(self.0.register(Box::new(collector))?)
    }

    /// As Prometheus reads it.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn text(&self) -> Result<String> {
        Ok(TextEncoder::new().encode_to_string(&self.0.gather())?)
    }
}
