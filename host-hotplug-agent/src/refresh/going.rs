//! Which guests go over, which stay and are shut down, and which are refused.

use locum_abi::CHANNEL_COUNT;

use crate::config::{self, Config};
use crate::error::{Refusal, listed};
use crate::guest::others::{By, Other};
use crate::guest::{Hypervisor, Spec, storage};

/// Puts the domains that are in the pool, and that no other line names, in place of a line that means all of them.
pub(super) fn with_all_domains(hypervisor: &dyn Hypervisor, config: &mut Config) -> Result<(), Refusal> {
    let means_all = |guest: &config::Guest| guest.libvirt.as_deref() == Some(config::ALL);
    if !config.guests.iter().any(means_all) {
        return Ok(());
    }
    let trust_storage = config
        .guests
        .iter()
        .any(|guest| means_all(guest) && guest.trust_storage);
    config.guests.retain(|guest| !means_all(guest));
    let here = hypervisor.guests_here()?.into_iter();
    let more: Vec<_> = here
        .filter(|guest| guest.libvirt.is_some())
        .filter(|guest| config.guests.iter().all(|known| known.libvirt != guest.libvirt))
        .map(|guest| config::Guest { trust_storage, ..guest })
        .collect();
    config.guests.extend(more);
    Ok(())
}

/// Looks at each guest that goes over.
pub(super) fn guests(hypervisor: &dyn Hypervisor, config: &Config) -> Result<Vec<Spec>, Refusal> {
    let mut turns = (1..CHANNEL_COUNT).cycle();
    config
        .guests
        .iter()
        .map(|guest| {
            let channel = guest.channel.or_else(|| turns.next()).unwrap_or(1);
            hypervisor.inspect(guest, channel)
        })
        .collect()
}

/// Of the guests that do not go over, those that an operator wants to be shut down, of whom a configuration names those in
/// `left`; all others are refused.
pub(super) fn leaving(others: Vec<Other>, left: &[config::Guest], leave: &[String]) -> Result<Vec<Other>, Refusal> {
    // A configuration may call a guest otherwise than itself does.
    let is = |other: &Other, name: &String| {
        let named = |guest: &&config::Guest| match &other.by {
            By::Libvirt(domain) => guest.libvirt.as_ref() == Some(domain),
            By::Qmp(socket) => guest.libvirt.is_none() && guest.qmp == *socket,
            By::Nobody => false,
        };
        other.name == *name || left.iter().filter(named).any(|guest| guest.name == *name)
    };
    if let Some(other) = others.iter().find(|other| other.by == By::Nobody) {
        return Err(Refusal::NobodysGuest(other.name.clone()));
    }
    let untold: Vec<_> = others
        .iter()
        .filter(|other| leave.iter().all(|name| !is(other, name)))
        .map(|other| {
            let why = if other.in_pool {
                "no `[[guests]]` names it"
            } else {
                "its RAM is not in the pool"
            };
            (other.name.as_str(), why)
        })
        .collect();
    if !untold.is_empty() {
        let each: Vec<_> = untold.iter().map(|(name, why)| format!("{name} ({why})")).collect();
        let leave: Vec<_> = untold.iter().map(|(name, _)| format!("--leave '{name}'")).collect();
        return Err(Refusal::Stays {
            guests: each.join(", "),
            leave: leave.join(" "),
        });
    }
    let known =
        |name: &String| left.iter().any(|guest| guest.name == *name) || others.iter().any(|other| is(other, name));
    match leave.iter().find(|name| !known(name)) {
        Some(name) => Err(Refusal::NotHere(name.clone())),
        None => Ok(others),
    }
}

/// Refuses guests whose disks the successor may not have, but for those that an operator trusts. Returns a note for each of
/// these.
pub(super) fn storage(
    guests: &[Spec],
    config: &Config,
    trusted: &[String],
    initramfs: &[u8],
) -> Result<Vec<String>, Refusal> {
    if let Some(name) = trusted
        .iter()
        .find(|name| guests.iter().all(|guest| guest.name != **name))
    {
        let known: Vec<_> = guests.iter().map(|guest| guest.name.as_str()).collect();
        return Err(Refusal::NoSuchGuest {
            name: name.clone(),
            known: listed(&known),
        });
    }
    let disks: Vec<_> = guests.iter().flat_map(|guest| &guest.disks).collect();
    let mut settled = storage::settled(&disks, initramfs).into_iter();
    let mut notes = Vec::new();
    for guest in guests {
        let problems: Vec<_> = guest
            .disks
            .iter()
            .filter(|_| settled.next() != Some(true))
            .map(|disk| disk.problem.as_str())
            .collect();
        if problems.is_empty() {
            continue;
        }
        let what = problems.join("; ");
        let in_file = config
            .guests
            .iter()
            .any(|known| known.name == guest.name && known.trust_storage);
        if !in_file && !trusted.contains(&guest.name) {
            return Err(Refusal::Storage {
                guest: guest.name.clone(),
                what,
            });
        }
        notes.push(format!("guest {}: its storage is trusted: {what}", guest.name));
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use anyhow::Result;

    use super::*;
    use crate::deadline::Deadline;
    use crate::guest::{Vm, storage::Disk};

    /// Knows what is in the pool, and nothing else.
    struct Pool(Vec<config::Guest>);

    impl Hypervisor for Pool {
        fn guests_here(&self) -> Result<Vec<config::Guest>, Refusal> {
            Ok(self.0.clone())
        }
        fn inspect(&self, _: &config::Guest, _: usize) -> Result<Spec, Refusal> {
            unreachable!("nobody asked")
        }
        fn attach(&self, _: &Spec) -> Result<Box<dyn Vm>> {
            unreachable!("nobody asked")
        }
        fn find(&self, _: &Spec) -> Result<Option<Box<dyn Vm>>> {
            unreachable!("nobody asked")
        }
        fn prepare(&self, _: &Spec, _: &Deadline<'_>) -> Result<Box<dyn Vm>> {
            unreachable!("nobody asked")
        }
        fn others(&self, _: &[Spec]) -> Vec<Other> {
            unreachable!("nobody asked")
        }
        fn shut_down(&self, _: &Other, _: &Deadline<'_>) -> Result<()> {
            unreachable!("nobody asked")
        }
        fn users(&self) -> Option<String> {
            unreachable!("nobody asked")
        }
    }

    fn guest(name: &str, domain: Option<&str>) -> config::Guest {
        config::Guest {
            name: name.to_owned(),
            qmp: PathBuf::new(),
            libvirt: domain.map(str::to_owned),
            command: Vec::new(),
            channel: None,
            trust_storage: false,
        }
    }

    #[test]
    fn disks_that_the_successor_may_not_have_are_refused_unless_trusted() {
        let spec = |name: &str, problems: &[&str]| Spec {
            name: name.to_owned(),
            channel: 1,
            disks: problems
                .iter()
                .map(|problem| Disk {
                    problem: (*problem).to_owned(),
                    read_only: None,
                })
                .collect(),
            ..Spec::default()
        };
        let guests = [
            spec("a", &[]),
            spec("b", &["/b is a file of this host", "/c is another"]),
        ];
        let config = |guests: &str| {
            let text = format!("kernel = \"/k\"\ninitramfs = \"/i\"\ncpus = 1\nmemory = \"1G\"\n{guests}");
            Config::parse(Path::new("/x.toml"), &text).unwrap()
        };
        let no_one = config("");
        let refusal = storage(&guests, &no_one, &[], &[]).unwrap_err();
        assert!(matches!(&refusal, Refusal::Storage { .. }), "{refusal}");
        for part in [
            "guest b",
            "/b is a file of this host; /c is another",
            "--trust-storage 'b'",
        ] {
            assert!(refusal.to_string().contains(part), "{part}: {refusal}");
        }
        let refusal = storage(&guests, &no_one, &["a".to_owned()], &[]).unwrap_err();
        assert!(
            matches!(&refusal, Refusal::Storage { .. }),
            "trust in another: {refusal}"
        );
        let refusal = storage(&guests, &no_one, &["b".to_owned(), "z".to_owned()], &[]).unwrap_err();
        assert!(
            refusal.to_string().contains("`z`") && refusal.to_string().contains("a, b"),
            "{refusal}"
        );
        let by_name = storage(&guests, &no_one, &["b".to_owned()], &[]).unwrap();
        assert!(
            by_name.len() == 1 && by_name[0].contains("/c is another"),
            "{by_name:?}"
        );
        let in_file = config("[[guests]]\nname = \"b\"\nqmp = \"/b\"\ntrust_storage = true\n");
        assert_eq!(storage(&guests, &in_file, &[], &[]).unwrap(), by_name);
    }

    #[test]
    fn all_domains_are_those_that_no_line_names() {
        let pool = Pool(vec![guest("q", None), guest("a", Some("a")), guest("b", Some("b"))]);
        let names = |lines: &str| {
            let text = format!("kernel = \"/k\"\ninitramfs = \"/i\"\ncpus = 1\nmemory = \"1G\"\n{lines}");
            let mut config = Config::parse(Path::new("/x.toml"), &text).unwrap();
            with_all_domains(&pool, &mut config).unwrap();
            let names = config.guests.into_iter().map(|guest| guest.name);
            names.collect::<Vec<_>>()
        };
        let all = "[[guests]]\nlibvirt = \"all\"\n";
        assert_eq!(names(all), ["a", "b"]);
        assert_eq!(
            names(&format!("{all}[[guests]]\nname = \"first\"\nlibvirt = \"b\"\n")),
            ["first", "a"]
        );
        assert_eq!(names("[[guests]]\nlibvirt = \"b\"\n"), ["b"]);
    }
}
