//! Everything that fuzzing has found worth keeping, run once more, and some inputs that look random: see `src/fuzz/`.

use std::fs;
use std::path::Path;

use l0_monitor::fuzz::run;

/// Inputs of a target that look random and are the same each time (Knuth's MMIX generator).
const RANDOM: u64 = 200;

/// Runs what is in a target's folder of the corpus, and some random inputs.
fn replay(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let inputs = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<_> = inputs.map(|entry| entry.expect("an input").path()).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{}", folder.display());
    for input in inputs {
        // The name of the input is in the output of a test that fails.
        println!("{}", input.display());
        run(name, &fs::read(input).expect("a file"));
    }
    for seed in 0..RANDOM {
        println!("random input {seed}");
        let mut state = seed;
        let bytes = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        });
        run(name, &bytes.take(1024).collect::<Vec<_>>());
    }
}

#[test]
fn the_decoder_agrees_with_another() {
    replay("decode");
}

#[test]
fn no_host_breaks_out() {
    replay("wild");
}

#[test]
fn a_host_sees_no_difference() {
    replay("life");
}

#[test]
fn two_hosts_own_everything_once() {
    replay("partition");
}
