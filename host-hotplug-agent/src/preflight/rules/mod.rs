//! What the facts mean.

pub mod board;
pub mod control_registers;
pub mod cpu;
pub mod guests;
pub mod kernel;
pub mod memory;

/// Numbers of CPUs in a sentence: "CPU 3", "CPUs 1, 3 and 60 more".
fn cpus(numbers: &[u32]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<String> = numbers.iter().take(SHOWN).map(u32::to_string).collect();
    let more = match numbers.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let noun = if numbers.len() == 1 { "CPU" } else { "CPUs" };
    format!("{noun} {}{more}", shown.join(", "))
}
