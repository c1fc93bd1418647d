//! The guest's parameters, read from its kernel's command line (`lab.NAME=VALUE`; the kernel leaves words with a dot to
//! modules, so they reach nobody else).

use crate::measure::orders::Step;

/// How a guest behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Params {
    /// `lab.name`: the guest's name.
    pub name: String,
    /// `lab.buffer_mib`: size of the verified buffer, in MiB.
    pub buffer_mib: u64,
    /// `lab.report_ms`: guest time between two lines on the console, in ms; 0 for none.
    pub report_ms: u64,
    /// `lab.duty`: percent of the time that each worker works, 1 to 100.
    pub duty: u64,
    /// `lab.io_ms`: guest time between two requests to disk and network, in ms.
    pub io_ms: u64,
    /// `lab.disk_depth`: requests that the disk has at once, 1 to 8.
    pub disk_depth: u64,
    /// `lab.modules`: whether to load the modules of the initramfs; 0 saves a guest without devices the time.
    pub modules: bool,
    /// `lab.reboot_after`: reboot after that many beats; 0 for never. For tests of a guest's death.
    pub reboot_after: u64,
    /// `lab.measure`: measure this instead of running the checks; see [`Step::parse`].
    pub measure: Vec<Step>,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            name: "guest".into(),
            buffer_mib: 16,
            report_ms: 1000,
            duty: 100,
            io_ms: 20,
            disk_depth: 1,
            modules: true,
            reboot_after: 0,
            measure: Vec::new(),
        }
    }
}

impl Params {
    /// Reads the command line.
    ///
    /// # Errors
    /// A sentence that names the word that is wrong and what it should be.
    pub(crate) fn parse(command_line: &str) -> Result<Self, String> {
        let mut params = Params::default();
        for word in command_line.split_ascii_whitespace() {
            let Some((key, value)) = word.strip_prefix("lab.").and_then(|rest| rest.split_once('=')) else {
                continue;
            };
            let number = || {
                value
                    .parse::<u64>()
                    .map_err(|_| format!("{word}: not a number; give a decimal one"))
            };
            match key {
                "name" => params.name = value.to_owned(),
                "buffer_mib" => params.buffer_mib = number()?,
                "report_ms" => params.report_ms = number()?,
                "duty" => params.duty = number()?.clamp(1, 100),
                "io_ms" => params.io_ms = number()?,
                "disk_depth" => params.disk_depth = number()?.clamp(1, 8),
                "modules" => params.modules = number()? != 0,
                "measure" => {
                    params.measure = Step::parse(value).map_err(|error| format!("{word}: {error}"))?;
                }
                "reboot_after" => params.reboot_after = number()?,
                _ => {
                    return Err(format!("{word}: unknown; see the list in lab-guest's params.rs"));
                }
            }
        }
        Ok(params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_are_left_alone() {
        let params = Params::parse("console=ttyS0 quiet lab.name=g2 lab.buffer_mib=32 lab.duty=300 panic=-1\n");
        let expected = Params {
            name: "g2".into(),
            buffer_mib: 32,
            duty: 100,
            ..Params::default()
        };
        assert_eq!(params, Ok(expected));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(Params::parse("lab.duty=x").is_err_and(|e| e.contains("lab.duty=x")));
        assert!(Params::parse("lab.measure=x").is_err_and(|e| e.contains("cpuid")));
        assert!(Params::parse("lab.nmae=g1").is_err_and(|e| e.contains("unknown")));
    }
}
