//! What Linux has switched on in CR4, which only the module can read.

use anyhow::Result;

use crate::machine::CarriedOver;
use crate::preflight::finding::Finding;

/// Bits of CR4 (SDM vol. 3A, 2.5) that a Linux may use and L0 does not know, with the argument that leaves them out.
const BITS: [(u32, &str, Option<&str>); 8] = [
    (12, "5-level paging", Some("no5lvl")),
    (19, "Key Locker", None),
    (23, "CET with shadow stacks of the kernel", None),
    (24, "PKS", None),
    (25, "user interrupts", None),
    (27, "LASS", Some("clearcpuid=lass")),
    (28, "LAM of the kernel", None),
    (32, "FRED", Some("fred=off")),
];

/// What the module found.
pub fn finding(found: &Result<CarriedOver>) -> Finding {
    const NAME: &str = "CR4";
    match found {
        Ok(CarriedOver::All) => Finding::fine(NAME, "L0 carries over what every CPU has on"),
        Ok(CarriedOver::Not { apic_id, cr4 }) => {
            let (names, remedy) = in_words(*cr4);
            Finding::refuses(
                NAME,
                format!("CPU with APIC id {apic_id} has {names} on, which L0 does not carry over"),
                remedy,
            )
        }
        Ok(CarriedOver::Unknown(why)) => Finding::hurts(
            NAME,
            "could not look: if the kernel uses what L0 does not know, a refresh is given up when its CPUs become nested",
            why.as_str(),
        ),
        Err(error) => Finding::refuses(NAME, format!("{error:#}"), "see the kernel's log (`dmesg`)"),
    }
}

/// The bits' names, and what to do about them.
fn in_words(cr4: u64) -> (String, String) {
    let (mut names, mut arguments, mut others) = (Vec::new(), Vec::new(), false);
    for bit in (0..u64::BITS).filter(|bit| cr4 >> bit & 1 != 0) {
        let known = BITS.iter().find(|(known, ..)| *known == bit);
        let name = known.map_or("a feature", |(_, name, _)| name);
        names.push(format!("{name} (bit {bit})"));
        match known.and_then(|(.., argument)| *argument) {
            Some(argument) => arguments.push(argument),
            None => others = true,
        }
    }
    let mut remedy = match arguments.is_empty() {
        true => String::new(),
        false => format!("boot with {}", arguments.join(" ")),
    };
    if others {
        remedy += if remedy.is_empty() { "" } else { "; " };
        remedy += "use a release of Locum that knows it, or a kernel that leaves it off";
    }
    (names.join(", "), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Level;

    #[test]
    fn what_is_on_is_named_with_its_argument() {
        let not = |cr4| finding(&Ok(CarriedOver::Not { apic_id: 6, cr4 })).to_string();
        let known = not(1 << 27 | 1 << 32);
        assert!(
            known.starts_with("refuses  CR4: CPU with APIC id 6 has LASS (bit 27), FRED (bit 32) on"),
            "{known}"
        );
        assert!(known.ends_with("-> boot with clearcpuid=lass fred=off"), "{known}");
        let newer = not(1 << 12 | 1 << 33);
        assert!(newer.contains("5-level paging (bit 12), a feature (bit 33)"), "{newer}");
        assert!(newer.contains("boot with no5lvl; use a release of Locum"), "{newer}");
        assert!(not(1 << 25).ends_with("-> use a release of Locum that knows it, or a kernel that leaves it off"));
        assert_eq!(finding(&Ok(CarriedOver::All)).level, Level::Fine);
        let unknown = finding(&Ok(CarriedOver::Unknown("load it".into())));
        assert_eq!(
            (unknown.level, unknown.remedy.as_deref()),
            (Level::Hurts, Some("load it"))
        );
        assert_eq!(finding(&Err(anyhow::anyhow!("x"))).level, Level::Refuses);
    }
}
