//! Which tests are run, how, and which are not.

/// Emulated seconds that a test may take unless [`BOUNDS`] says otherwise; most end within one.
const BOUND: u32 = 30;

/// Tests that may take longer, or are told to do less: program, arguments, emulated seconds.
const BOUNDS: &[(&str, &str, u32)] = &[
    // Iterations of 10 ms, three for each of its modes, its least, not 32. It writes all of a gibibyte first, each time.
    ("dirty_log_test", "-i 3 -I 10", 240),
    // One slot for a page each, one second of each of its parts.
    ("memslot_perf_test", "-s 32 -l 1 -e 4", 180),
    // With less to do than upstream's: build.sh.
    ("hardware_disable_test", "", 120),
    // Two seconds of IPIs.
    ("xapic_ipi_test", "-s 2", 60),
];

/// Tests that are not run, and why not.
const LEFT_OUT: &[(&str, &str)] = &[
    ("access_tracking_perf_test", TOO_LONG),
    ("demand_paging_test", TOO_LONG),
    ("dirty_log_perf_test", TOO_LONG),
    ("dirty_log_page_splitting_test", HUGE_PAGES),
    ("kvm_create_max_vcpus", TOO_LONG),
    ("kvm_page_table_test", TOO_LONG),
    ("max_guest_memory_test", "touches all RAM that the host has"),
    ("memslot_modification_stress_test", TOO_LONG),
    ("nx_huge_pages_test", HUGE_PAGES),
];

const TOO_LONG: &str = "a benchmark: takes longer in the emulator than all others together";
const HUGE_PAGES: &str = "needs huge pages, which the lab's hosts do without";

/// How a test is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    /// Its arguments.
    pub arguments: &'static str,
    /// Emulated seconds that it may take.
    pub bound: u32,
}

/// How a test is run, or why it is not.
pub(super) fn way(name: &str) -> Result<Way, &'static str> {
    if let Some((_, why)) = LEFT_OUT.iter().find(|(left_out, _)| *left_out == name) {
        return Err(why);
    }
    let found = BOUNDS.iter().find(|(bounded, ..)| *bounded == name);
    let (arguments, bound) = found.map_or(("", BOUND), |&(_, arguments, bound)| (arguments, bound));
    Ok(Way { arguments, bound })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_list_names_is_run_as_it_is() {
        assert_eq!(
            way("vmx_new_test"),
            Ok(Way {
                arguments: "",
                bound: BOUND
            })
        );
        assert_eq!(way("xapic_ipi_test").unwrap().arguments, "-s 2");
        assert_eq!(way("demand_paging_test"), Err(TOO_LONG));
    }

    #[test]
    fn no_test_is_in_both_lists() {
        for (name, ..) in BOUNDS {
            assert!(way(name).is_ok(), "{name}");
        }
    }
}
