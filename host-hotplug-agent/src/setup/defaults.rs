//! `/etc/default/locum`: what a shell reads (update-grub does), as far as plain assignments go.

use std::collections::BTreeMap;

use crate::sysroot::SysRoot;

/// Where it is.
pub const FILE: &str = "etc/default/locum";

/// The assignments in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defaults(BTreeMap<String, String>);

impl Defaults {
    /// Of this host; none where the file is missing.
    pub fn read(sys: &SysRoot) -> Self {
        Self::parse(&sys.read_optional(FILE).unwrap_or_default())
    }

    /// The last of several assignments counts. Nothing is expanded.
    pub fn parse(text: &str) -> Self {
        let assignments = text.lines().filter_map(|line| line.trim().split_once('='));
        let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let plain = |value: &str| {
            let value = value.trim_end();
            let quoted = ['"', '\''].into_iter().find_map(|quote| {
                let rest = value.strip_prefix(quote)?;
                rest.split_once(quote).map(|(value, _)| value.to_owned())
            });
            quoted.unwrap_or_else(|| value.split_whitespace().next().unwrap_or_default().to_owned())
        };
        Self(
            assignments
                .filter(|(name, _)| is_name(name))
                .map(|(name, value)| (name.to_owned(), plain(value)))
                .collect(),
        )
    }

    /// A value; `None` if it is not set, or empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_read_as_a_shell_reads_them() {
        let defaults = Defaults::parse(
            "# LOCUM_STAY=no\nLOCUM_STAY=yes\n LOCUM_STAY='no'\nLOCUM_L0=\"log=com2 ibpb=off\" # for trials\n\
             LOCUM_POOL=50% # half\nLOCUM_CMDLINE=\nif [ a = b ]; then\n",
        );
        assert_eq!(defaults.get("LOCUM_STAY"), Some("no"), "the last one counts");
        assert_eq!(defaults.get("LOCUM_L0"), Some("log=com2 ibpb=off"));
        assert_eq!(defaults.get("LOCUM_POOL"), Some("50%"));
        assert_eq!(defaults.get("LOCUM_CMDLINE"), None);
        assert_eq!(defaults.get("if [ a"), None);
        assert_eq!(Defaults::parse("").get("LOCUM_STAY"), None);
    }
}
