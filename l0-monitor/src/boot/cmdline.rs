//! L0's own command line, and what L0 adds to the host's.

use arrayvec::{ArrayString, ArrayVec};
use firmware_shim::e820::PoolSize;

use super::pool;
use crate::arch::paging::LARGE_PAGE;
use crate::logger::DEBUG_PORT;
use crate::machine::Span;
use crate::nested::shadow;
use crate::park::Wait;

/// Longest command line of a host, in bytes (Linux' x86 `COMMAND_LINE_SIZE`, less the terminating zero).
pub(crate) const HOST_LINE: usize = 2047;

/// What L0 was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Guest RAM: `pool=25%`, `pool=64G`, or `pool=START-END`, hexadecimal, END exclusive, both multiples of 2 MiB; several
    /// of these with commas between them.
    pub(crate) pool: Option<pool::Wanted>,
    /// Where the log goes besides the ring: `log=e9`, `log=com1` to `log=com4`.
    pub(crate) log_port: Option<u16>,
    /// CPUs that the first host uses: `host_cpus=N`. All, if not given.
    pub(crate) host_cpus: Option<u32>,
    /// Whether VMCSs are compared before and after: `check=vmcs`. See [`crate::nested::fingerprint`].
    pub(crate) check: bool,
    /// How VMCS shadowing is used where CPUs have it: `shadowing=active`, `shadowing=cleared`, `shadowing=windows` or
    /// `shadowing=off`. See [`crate::nested::shadow`].
    pub(crate) shadowing: shadow::Use,
    /// Whether a guest's exit is no barrier for branch predictors: `ibpb=off`. See [`crate::nested::predictors`].
    pub(crate) no_barriers: bool,
    /// Whether CPUs are tried instead of a host started: `selftest`. See [`crate::selftest`].
    pub(crate) selftest: bool,
    /// How parked CPUs wait: `park=hlt`, `park=mwait` or `park=spin`.
    pub(crate) wait: Wait,
}

/// An argument that L0 does not understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadArgument<'a> {
    /// The argument.
    pub(crate) argument: &'a str,
    /// What it should be.
    pub(crate) expected: &'static str,
}

/// Takes a value over if it is a known one; else tells what it should be.
fn chosen<T>(place: &mut T, value: Option<T>, expected: &'static str) -> Option<&'static str> {
    match value {
        Some(value) => {
            *place = value;
            None
        }
        None => Some(expected),
    }
}

/// Reads the arguments; those that are wrong go to `bad` and are left out.
pub(crate) fn parse<'a>(line: &'a str, mut bad: impl FnMut(BadArgument<'a>)) -> Options {
    let mut options = Options::default();
    // GRUB does not pass the file's name, but other loaders do.
    for argument in line.split_ascii_whitespace().filter(|a| !a.starts_with('/')) {
        let (key, value) = argument.split_once('=').unwrap_or((argument, ""));
        let expected = match key {
            "pool" => {
                options.pool = pool(value);
                options
                    .pool
                    .is_none()
                    .then_some("pool=25%, pool=64G, or pool=START-END, hexadecimal, multiples of 200000")
            }
            "log" => {
                options.log_port = log_port(value);
                options.log_port.is_none().then_some("log=e9 or log=com1 to log=com4")
            }
            "host_cpus" => {
                options.host_cpus = value.parse().ok().filter(|&n| n > 0);
                options.host_cpus.is_none().then_some("host_cpus=N, at least 1")
            }
            "park" => chosen(
                &mut options.wait,
                match value {
                    "hlt" => Some(Wait::Halt),
                    "mwait" => Some(Wait::Monitor),
                    "spin" => Some(Wait::Spin),
                    _ => None,
                },
                "park=hlt, park=mwait or park=spin",
            ),
            "selftest" => {
                options.selftest = value.is_empty();
                (!options.selftest).then_some("selftest, without a value")
            }
            "check" => {
                options.check = value == "vmcs";
                (!options.check).then_some("check=vmcs")
            }
            "shadowing" => chosen(
                &mut options.shadowing,
                match value {
                    "active" => Some(shadow::Use::Active),
                    "cleared" => Some(shadow::Use::Cleared),
                    "windows" => Some(shadow::Use::Windows),
                    "off" => Some(shadow::Use::Off),
                    _ => None,
                },
                "shadowing=active, shadowing=cleared, shadowing=windows or shadowing=off",
            ),
            "ibpb" => {
                options.no_barriers = value == "off";
                (!matches!(value, "on" | "off")).then_some("ibpb=on or ibpb=off")
            }
            _ => Some("one of pool=, log=, host_cpus=, park=, check=, shadowing=, ibpb=, selftest"),
        };
        if let Some(expected) = expected {
            bad(BadArgument { argument, expected });
        }
    }
    options
}

fn pool(value: &str) -> Option<pool::Wanted> {
    if value.contains('-') {
        let mut ranges = ArrayVec::new();
        for part in value.split(',') {
            ranges.try_push(span(part)?).ok()?;
        }
        return Some(pool::Wanted::Ranges(ranges));
    }
    let size = match value.strip_suffix('%') {
        Some(percent) => PoolSize::Percent(percent.parse().ok().filter(|percent| (1..100).contains(percent))?),
        None => PoolSize::Bytes(bytes(value)?),
    };
    Some(pool::Wanted::Size(size))
}

fn span(value: &str) -> Option<Span> {
    let (start, end) = value.split_once('-')?;
    let (start, end) = (hex(start)?, hex(end)?);
    let aligned = start.is_multiple_of(LARGE_PAGE) && end.is_multiple_of(LARGE_PAGE);
    (aligned && start < end).then_some(Span { start, end })
}

/// A decimal number of mebi-, gibi- or tebibytes, not 0.
fn bytes(value: &str) -> Option<u64> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let shift = match unit {
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return None,
    };
    let number: u64 = digits.parse().ok().filter(|&number| number > 0)?;
    number.checked_mul(1 << shift)
}

fn hex(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16).ok()
}

fn log_port(value: &str) -> Option<u16> {
    Some(match value {
        "e9" => DEBUG_PORT,
        "com1" => 0x3f8,
        "com2" => 0x2f8,
        "com3" => 0x3e8,
        "com4" => 0x2e8,
        _ => return None,
    })
}

/// The host's command line does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// The first host's command line: what Locum needs first, so that the administrator's own words win and an argument
/// `--` ends nothing of ours. `small_pages`: see [`firmware_shim::e820::needs_small_pages`].
///
/// # Errors
/// [`TooLong`] beyond [`HOST_LINE`] bytes.
pub(crate) fn for_first_host(
    own: &str,
    maxcpus: Option<u32>,
    no_five_levels: bool,
    small_pages: bool,
) -> Result<ArrayString<HOST_LINE>, TooLong> {
    use core::fmt::Write;
    let mut line = ArrayString::new();
    let mut write = || {
        write!(line, "no_ipi_broadcast=1 acpi_irq_nobalance")?;
        if no_five_levels {
            // A dormant L0 does without, but a CPU that pages with five levels can't become nested yet.
            write!(line, " no5lvl")?;
        }
        if small_pages {
            write!(line, " nogbpages")?;
        }
        if let Some(n) = maxcpus {
            write!(line, " maxcpus={n}")?;
        }
        write!(line, " {}", own.trim())
    };
    write().map_err(|_| TooLong)?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use locum_abi::POOL_PIECES;
    use std::vec::Vec;

    fn parse_all(line: &str) -> (Options, Vec<&str>) {
        let mut bad = Vec::new();
        let options = parse(line, |b| bad.push(b.argument));
        (options, bad)
    }

    #[test]
    fn all_arguments() {
        let line = "/boot/l0 pool=68000000-7FE00000 log=com2 host_cpus=3 park=mwait shadowing=cleared selftest";
        let (o, bad) = parse_all(line);
        assert!(bad.is_empty());
        assert_eq!(o.pool, ranges(&[(0x6800_0000, 0x7fe0_0000)]));
        assert_eq!(o.log_port, Some(0x2f8));
        assert_eq!(o.host_cpus, Some(3));
        assert_eq!(o.wait, Wait::Monitor);
        assert!(!o.no_barriers && !parse_all("ibpb=on").0.no_barriers && parse_all("ibpb=off").0.no_barriers);
        assert_eq!(o.shadowing, shadow::Use::Cleared);
        assert_eq!(parse_all("shadowing=off").0.shadowing, shadow::Use::Off);
        assert_eq!(parse_all("shadowing=windows").0.shadowing, shadow::Use::Windows);
        assert_eq!(parse_all("shadowing=active").0.shadowing, shadow::Use::Active);
        assert!(o.selftest && !parse_all("quiet").0.selftest && !parse_all("selftest=1").0.selftest);
    }

    fn ranges(ranges: &[(u64, u64)]) -> Option<pool::Wanted> {
        let spans = ranges.iter().map(|&(start, end)| Span { start, end });
        Some(pool::Wanted::Ranges(spans.collect()))
    }

    #[test]
    fn a_pool_by_address_or_by_size() {
        let pool = |value: &str| parse_all(&std::format!("pool={value}")).0.pool;
        let size = |size| Some(pool::Wanted::Size(size));
        assert_eq!(pool("0x200000-0x400000"), ranges(&[(0x20_0000, 0x40_0000)]));
        assert_eq!(
            pool("100000000-200000000,600000000-700000000"),
            ranges(&[(1 << 32, 2 << 32), (6 << 32, 7 << 32)])
        );
        assert_eq!(pool("25%"), size(PoolSize::Percent(25)));
        assert_eq!(pool("1%"), size(PoolSize::Percent(1)));
        assert_eq!(pool("64G"), size(PoolSize::Bytes(64 << 30)));
        assert_eq!(pool("512m"), size(PoolSize::Bytes(512 << 20)));
        assert_eq!(pool("2T"), size(PoolSize::Bytes(2 << 40)));
        for wrong in [
            "",
            "%",
            "0%",
            "100%",
            "-5%",
            "256%",
            "64",
            "G",
            "0G",
            "1.5G",
            "64GB",
            "é",
            "17592186044416T",
            "200000-",
            "-",
            "200000-400000,",
            "200000-400000,25%",
            "200001-400000",
            "400000-400000",
        ] {
            assert_eq!(pool(wrong), None, "{wrong}");
        }
        let many = ["200000-400000"; POOL_PIECES + 1].join(",");
        assert_eq!(pool(&many), None);
    }

    #[test]
    fn bad_arguments_are_named_and_left_out() {
        let line = "pool=1000-200000 pool=400000-200000 log=vga host_cpus=0 park=sleep shadowing=on ibpb=0 quiet";
        let (o, bad) = parse_all(line);
        assert_eq!(bad.len(), 8);
        assert_eq!(o, Options::default());
    }

    #[test]
    fn ours_come_before_the_hosts_words() {
        let line = for_first_host(" console=ttyS0 -- init ", Some(2), true, true).unwrap();
        assert_eq!(
            line.as_str(),
            "no_ipi_broadcast=1 acpi_irq_nobalance no5lvl nogbpages maxcpus=2 console=ttyS0 -- init"
        );
        let plain = for_first_host("quiet", None, false, false).unwrap();
        assert_eq!(plain.as_str(), "no_ipi_broadcast=1 acpi_irq_nobalance quiet");
        let long = "x".repeat(HOST_LINE);
        assert_eq!(for_first_host(&long, None, false, false), Err(TooLong));
    }
}
