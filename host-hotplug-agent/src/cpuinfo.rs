//! Whether the CPU can run L0, from `/proc/cpuinfo`.

use crate::sysroot::SysRoot;

/// Features that L0 cannot do without, as Linux names them, with the line of `/proc/cpuinfo` they are on.
const NEEDED: [(&str, &str); 4] = [
    ("flags", "vmx"),
    ("vmx flags", "ept"),
    ("vmx flags", "unrestricted_guest"),
    ("flags", "constant_tsc"),
];

/// Features whose state L0 does not carry over, as `flags` names them while Linux uses them, and how to boot without.
const IN_THE_WAY: [(&str, &str); 3] = [("fred", "fred=off"), ("lass", "clearcpuid=lass"), ("la57", "no5lvl")];

/// What `/proc/cpuinfo` says about features.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuFeatures {
    missing: Vec<&'static str>,
    in_the_way: Vec<(&'static str, &'static str)>,
}

impl CpuFeatures {
    /// Reads the first CPU's features.
    ///
    /// # Errors
    /// If `/proc/cpuinfo` cannot be read.
    pub fn read(sys: &SysRoot) -> std::io::Result<Self> {
        let text = sys.read("proc/cpuinfo")?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let has = |line: &str, flag: &str| {
            text.lines()
                .filter_map(|candidate| candidate.split_once(':'))
                .find(|(key, _)| key.trim() == line)
                .is_some_and(|(_, flags)| flags.split_whitespace().any(|name| name == flag))
        };
        let missing = NEEDED
            .iter()
            .filter(|(line, flag)| !has(line, flag))
            .map(|(_, flag)| *flag);
        let in_the_way = IN_THE_WAY.into_iter().filter(|(flag, _)| has("flags", flag));
        Self {
            missing: missing.collect(),
            in_the_way: in_the_way.collect(),
        }
    }

    /// Features in use with which no CPU can go nested, each with the kernel argument that leaves it out.
    pub fn in_the_way(&self) -> &[(&'static str, &'static str)] {
        &self.in_the_way
    }

    /// Features that L0 needs and the CPU lacks.
    pub fn missing(&self) -> &[&'static str] {
        &self.missing
    }

    /// Of the missing ones, those without which nested mode is impossible.
    pub fn missing_vmx(&self) -> Vec<&'static str> {
        self.missing
            .iter()
            .copied()
            .filter(|flag| *flag != "constant_tsc")
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_feature_is_named() {
        let whole = "processor : 0\nflags\t\t: fpu vmx constant_tsc\nvmx flags\t: vnmi ept vpid unrestricted_guest\n";
        assert_eq!(CpuFeatures::parse(whole).missing(), &[] as &[&str]);
        let no_ept = "flags : fpu vmx constant_tsc\nvmx flags : vnmi unrestricted_guest\n";
        assert_eq!(CpuFeatures::parse(no_ept).missing(), ["ept"]);
        let amd = "flags : fpu svm constant_tsc\n";
        assert_eq!(
            CpuFeatures::parse(amd).missing_vmx(),
            ["vmx", "ept", "unrestricted_guest"]
        );
        assert_eq!(CpuFeatures::parse(amd).in_the_way(), &[]);
        let new = "flags : fpu vmx constant_tsc la57 ibt lass\n";
        assert_eq!(
            CpuFeatures::parse(new).in_the_way(),
            [("lass", "clearcpuid=lass"), ("la57", "no5lvl")]
        );
    }
}
