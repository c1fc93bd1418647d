//! Figures of two or three places.

/// In what times are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// In ticks of the TSC: those of an emulator are no time.
    Ticks,
    /// In seconds, by the rate of the TSC in kHz.
    Seconds {
        /// That rate.
        khz: u64,
    },
}

impl Unit {
    /// What the figures are.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ticks => "ticks",
            Self::Seconds { .. } => "time",
        }
    }

    /// So many ticks.
    #[must_use]
    pub fn figure(self, ticks: u64) -> String {
        match self {
            Self::Ticks | Self::Seconds { khz: 0 } => millions(ticks),
            Self::Seconds { khz } => time(ticks as f64 / khz as f64),
        }
    }
}

/// Milliseconds in words.
fn time(ms: f64) -> String {
    match ms {
        0.0..1.0 => format!("{:.0} µs", ms * 1e3),
        1.0..100.0 => format!("{ms:.1} ms"),
        100.0..1000.0 => format!("{ms:.0} ms"),
        1000.0..100_000.0 => format!("{:.1} s", ms / 1e3),
        _ => format!("{:.0} s", ms / 1e3),
    }
}

/// Millions, as exact as a figure of three places.
#[must_use]
pub fn millions(ticks: u64) -> String {
    let tenths = (ticks + 50_000) / 100_000;
    match tenths {
        0 => format!("0.{:02} M", (ticks + 5_000) / 10_000),
        1..1000 => format!("{}.{} M", tenths / 10, tenths % 10),
        _ => format!("{} M", grouped((ticks + 500_000) / 1_000_000)),
    }
}

/// With commas.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_two_or_three_places() {
        let texts = [
            0,
            8_849,
            48_721,
            550_437,
            3_350_996,
            99_949_999,
            99_950_000,
            4_261_472_802,
        ]
        .map(millions);
        assert_eq!(
            texts,
            [
                "0.00 M", "0.01 M", "0.05 M", "0.6 M", "3.4 M", "99.9 M", "100 M", "4,261 M"
            ]
        );
    }

    #[test]
    fn time_is_told_in_the_unit_that_fits() {
        let unit = Unit::Seconds { khz: 1000 };
        let texts = [850, 12_345, 230_000, 4_214_000, 640_000_000].map(|ticks| unit.figure(ticks));
        assert_eq!(texts, ["850 µs", "12.3 ms", "230 ms", "4.2 s", "640 s"]);
        assert_eq!(Unit::Seconds { khz: 0 }.figure(3_350_996), "3.4 M", "no rate, no time");
    }
}
