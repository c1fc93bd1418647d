//! The successor's command line: the administrator's, and what a host beside another cannot do without.

/// Facts that go onto the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// CPUs that the successor boots with.
    pub cpus: usize,
    /// The incumbent's TSC rate.
    pub tsc_khz: u64,
    /// The successor's generation.
    pub generation: u64,
    /// Whether it must do without pages of 1 GiB: [`firmware_shim::e820::needs_small_pages`].
    pub small_pages: bool,
}

/// `given` with everything needed appended. A parameter that is given keeps its value, but for those that only Locum
/// can know: `maxcpus`, `tsc_early_khz`, `locum.generation`, and `cpuhp.parallel`. Parallel bring-up (kernel/cpu.c,
/// `cpuhp_bringup_cpus_parallel`) counts primary threads against `maxcpus`, so a host whose boot CPU is a sibling would
/// wake the other host's CPU and wait for it for ever.
pub fn complete(given: &str, facts: Facts) -> String {
    let own = [
        ("maxcpus", facts.cpus.to_string()),
        ("tsc_early_khz", facts.tsc_khz.to_string()),
        ("locum.generation", facts.generation.to_string()),
        ("cpuhp.parallel", "0".to_owned()),
    ];
    let needed = [
        Some(("no_ipi_broadcast", "=1")),
        Some(("acpi_irq_nobalance", "")),
        Some(("dax_hmem.region_idle", "=1")),
        // L0 does not carry 5-level paging over.
        Some(("no5lvl", "")),
        facts.small_pages.then_some(("nogbpages", "")),
    ];
    let key = |word: &str| word.split('=').next().unwrap_or(word).replace('-', "_");
    let mut words: Vec<String> = given
        .split_whitespace()
        .filter(|word| !own.iter().any(|(name, _)| key(word) == *name))
        .map(str::to_owned)
        .collect();
    // What follows `--` goes to init and not to the kernel.
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let rest = words.split_off(end);
    for (name, value) in needed.into_iter().flatten() {
        if !words.iter().any(|word| key(word) == name) {
            words.push(format!("{name}{value}"));
        }
    }
    words.extend(own.map(|(name, value)| format!("{name}={value}")));
    words.extend(rest);
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_locum_knows_wins_and_the_rest_stays() {
        let facts = Facts {
            cpus: 2,
            tsc_khz: 100_001,
            generation: 3,
            small_pages: true,
        };
        let line = complete("console=ttyS1 maxcpus=8 no-ipi-broadcast=0 -- arg", facts);
        assert_eq!(
            line,
            "console=ttyS1 no-ipi-broadcast=0 acpi_irq_nobalance dax_hmem.region_idle=1 no5lvl nogbpages maxcpus=2 tsc_early_khz=100001 locum.generation=3 cpuhp.parallel=0 -- arg"
        );
        let again = complete(&line, Facts { generation: 4, ..facts });
        assert_eq!(
            again.matches("locum.generation").count(),
            1,
            "from generation to generation: {again}"
        );
        assert_eq!(again.matches("acpi_irq_nobalance").count(), 1);
        let large = complete(
            "quiet",
            Facts {
                small_pages: false,
                ..facts
            },
        );
        assert!(!large.contains("nogbpages"), "{large}");
    }
}
