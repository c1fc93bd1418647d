//! Times and sizes in words, as an operator reads them.

/// Seconds of `ticks` of a time-stamp counter of `khz` kHz; 0 if the rate is not known.
pub fn seconds(ticks: u64, khz: u64) -> f64 {
    if khz == 0 {
        0.0
    } else {
        ticks as f64 / (khz as f64 * 1e3)
    }
}

/// A time in two units at most: `48 s`, `3 min 20 s`, `2 h 5 min`.
pub fn span(seconds: u64) -> String {
    let two = |large: u64, unit: &str, small: u64, smaller: &str| match small {
        0 => format!("{large} {unit}"),
        _ => format!("{large} {unit} {small} {smaller}"),
    };
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => two(seconds / 60, "min", seconds % 60, "s"),
        _ => two(seconds / 3600, "h", seconds % 3600 / 60, "min"),
    }
}

/// A short time with three places: `850 µs`, `12.3 ms`, `4.21 s`.
pub fn moment(seconds: f64) -> String {
    let three = |value: f64, unit: &str| {
        let places = match value {
            0.0..10.0 => 2,
            10.0..100.0 => 1,
            _ => 0,
        };
        format!("{value:.places$} {unit}")
    };
    match seconds {
        0.0..0.001 => three(seconds * 1e6, "µs"),
        0.001..1.0 => three(seconds * 1e3, "ms"),
        1.0..120.0 => three(seconds, "s"),
        _ => span(seconds as u64),
    }
}

/// Bytes in GiB, or in MiB below one.
pub fn size(bytes: u64) -> String {
    if bytes < 1 << 30 {
        format!("{} MiB", bytes >> 20)
    } else {
        format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_short() {
        assert_eq!(
            [0, 119, 120, 200, 7200, 7500].map(span),
            ["0 s", "119 s", "2 min", "3 min 20 s", "2 h", "2 h 5 min"]
        );
        assert_eq!(
            [0.000_85, 0.0123, 4.214, 12.34, 600.0].map(moment),
            ["850 µs", "12.3 ms", "4.21 s", "12.3 s", "10 min"]
        );
        assert_eq!([0, 512 << 20, 24 << 30].map(size), ["0 MiB", "512 MiB", "24.0 GiB"]);
        assert_eq!(seconds(3_000_000, 1_000_000), 0.003);
        assert_eq!(seconds(1, 0), 0.0);
    }
}
