//! What binds a command line to the one process that was started with it.
//!
//! Programs that manage guests open files for their QEMU and hand it the descriptors: libvirt does so with its monitor,
//! with taps and vhost (QEMU's keys `fd`, `fds`, `vhostfd`, `vhostfds` and their like, sets of descriptors from
//! `-add-fd` at `/dev/fdset/N`, socket addresses of the type `fd`). They also write files for one start and remove them
//! with it, such as libvirt's master key. Nobody does that in the successor.

use std::fmt;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::argv::{Item, items};
use super::keyval::{self, Pair};

/// Keys whose values are numbers of descriptors (QEMU `qapi/net.json`, `qapi/char.json`, `qapi/qom.json`; virtio-fs and
/// vhost devices; `sock_fd` was of the 9p proxy).
const DESCRIPTORS: [&str; 6] = ["fd", "fds", "vhostfd", "vhostfds", "sock-fds", "sock_fd"];
/// What paths to descriptors hold.
const PATHS: [&str; 3] = ["/dev/fdset/", "/dev/fd/", "/dev/stdin"];
/// Options whose argument is one value and no list.
const PLAIN: &str = "append kernel initrd shim bios dtb pflash hda hdb hdc hdd fda fdb cdrom sd mtdblock option-rom \
    mem-path D L uuid k d dfilter";
/// Most things that a message lists.
const SHOWN: usize = 5;

/// Where a file is now that a process names, if it is there at all. Without such an answer files are taken to be there.
pub type Find<'f> = Option<&'f dyn Fn(&Path) -> Option<PathBuf>>;

/// What is bound to one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// Descriptors that its parent opened.
    descriptors: Vec<String>,
    /// Files, or keys of the kernel, that were made for it alone.
    files: Vec<String>,
    /// Options because of which what the guest writes is in temporary files.
    pub temporary: Vec<String>,
}

impl Bound {
    /// Of a command line.
    pub fn of(command: &[String], find: Find<'_>) -> Self {
        let mut bound = Self::default();
        for item in items(command) {
            let Some(argument) = item.argument() else {
                if item.name == "snapshot" {
                    bound.temporary.push("-snapshot".to_owned());
                }
                continue;
            };
            match item.name {
                // The guest's business.
                "append" => {}
                "readconfig" => bound.read(argument, find),
                name => bound.add(name, &pairs(item, argument), find),
            }
        }
        bound
    }

    /// Whether the command line can be used again.
    pub fn is_free(&self) -> bool {
        self.descriptors.is_empty() && self.files.is_empty()
    }

    fn read(&mut self, file: &str, find: Find<'_>) {
        self.add("readconfig", &[(String::new(), file.to_owned())], find);
        let path = Path::new(file);
        let there = match find {
            Some(find) => find(path),
            None => Some(path.to_owned()),
        };
        match there {
            Some(path) => {
                let text = fs::read(path).unwrap_or_default();
                for (option, pairs) in keyval::groups(&String::from_utf8_lossy(&text)) {
                    self.add(&option, &pairs, find);
                }
            }
            None => self.files.push(format!("-readconfig {file}")),
        }
    }

    fn add(&mut self, option: &str, pairs: &[Pair], find: Find<'_>) {
        let value_of = |wanted: &str| {
            pairs
                .iter()
                .find(|(key, _)| key == wanted)
                .map(|(_, value)| value.as_str())
        };
        for (key, value) in pairs {
            let last = key.rsplit('.').next().unwrap_or_default();
            let is_number = DESCRIPTORS.contains(&last)
                || last == "type" && value == "fd"
                || option == "global" && key == "property" && DESCRIPTORS.contains(&value.as_str());
            if is_number || leads_to_descriptor(value) {
                let equals = if key.is_empty() { "" } else { "=" };
                self.descriptors.push(format!("-{option} {key}{equals}{value}"));
            }
        }
        let kind = value_of("qom-type").or_else(|| value_of(""));
        match (option, kind, value_of("file")) {
            ("object", Some("secret"), Some(file)) if !leads_to_descriptor(file) => {
                let path = Path::new(file);
                if is_libvirts(path) || find.is_some_and(|find| find(path).is_none()) {
                    self.files.push(format!("secret {file}"));
                }
            }
            ("object", Some("secret_keyring"), _) => {
                let serial = value_of("serial").unwrap_or_default();
                self.files.push(format!("key {serial} of this kernel"));
            }
            _ => {}
        }
        let on = ["on", "yes", "true", "y"];
        if option == "drive" && value_of("snapshot").is_some_and(|value| on.contains(&value)) {
            let drive = value_of("file").unwrap_or_default();
            self.temporary.push(format!("-drive file={drive},snapshot=on"));
        }
    }
}

fn pairs(item: Item<'_>, argument: &str) -> Vec<Pair> {
    if PLAIN.split(' ').any(|name| name == item.name) {
        vec![(String::new(), argument.to_owned())]
    } else {
        keyval::pairs(argument)
    }
}

/// Whether a path in a value is one of a descriptor, `/proc/self/fd/N` included.
fn leads_to_descriptor(value: &str) -> bool {
    let of_process = |rest: &str| rest.split_once('/').is_some_and(|(_, file)| file.starts_with("fd/"));
    PATHS.iter().any(|path| value.contains(path)) || value.split("/proc/").skip(1).any(of_process)
}

/// Whether a file is in the directory that libvirt makes for each start of a domain: `domain-NUMBER-NAME`.
fn is_libvirts(file: &Path) -> bool {
    let of_domain = |name: &str| {
        let number = name.strip_prefix("domain-").and_then(|rest| rest.split_once('-'));
        number.is_some_and(|(number, _)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let mut names = file.components().filter_map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    names.any(of_domain) || file.file_name().is_some_and(|name| name == "master-key.aes")
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |things: &[String]| {
            let shown: Vec<&str> = things.iter().take(SHOWN).map(String::as_str).collect();
            let more = match things.len().saturating_sub(SHOWN) {
                0 => String::new(),
                count => format!(" and {count} more"),
            };
            format!("`{}`{more}", shown.join("`, `"))
        };
        if !self.descriptors.is_empty() {
            write!(
                f,
                "file descriptors that its parent opened ({})",
                list(&self.descriptors)
            )?;
        }
        if !self.descriptors.is_empty() && !self.files.is_empty() {
            write!(f, " and ")?;
        }
        if !self.files.is_empty() {
            write!(f, "what was made for this one start ({})", list(&self.files))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(command: &[&str]) -> Bound {
        let mut words = vec!["qemu-system-x86_64".to_owned()];
        words.extend(command.iter().map(|word| (*word).to_owned()));
        Bound::of(&words, None)
    }

    #[test]
    fn every_way_to_name_a_descriptor_is_found() {
        for command in [
            ["-add-fd", "fd=3,set=2"],
            ["--add-fd", "set=2,fd=3,opaque=a"],
            ["-netdev", "tap,id=n,fd=28"],
            ["-netdev", "tap,id=n,fds=34:35,vhostfds=36:37"],
            ["-netdev", "tap,ifname=t0,id=n,vhost=on,vhostfd=30"],
            ["-netdev", r#"{"type":"tap","fds":"34:35","id":"n"}"#],
            ["-netdev", "{'type':'tap','fd':'34','id':'n'}"],
            ["-netdev", "socket,id=n,fd=5"],
            ["-netdev", "stream,id=n,addr.type=fd,addr.str=5"],
            [
                "-netdev",
                r#"{"type":"dgram","id":"n","local":{"type":"fd","str":"5"}}"#,
            ],
            ["-netdev", "vhost-vdpa,id=n,vhostfd=7"],
            ["-netdev", "af-xdp,ifname=eth0,id=n,sock-fds=8:9"],
            ["-nic", "tap,fd=28"],
            ["-net", "tap,fd=28"],
            ["-chardev", "socket,id=c,fd=27,server=on"],
            ["-chardev", "file,id=c,path=/dev/fdset/3,append=on"],
            ["-chardev", "null,id=c,logfile=/dev/fdset/3"],
            ["-device", "vhost-vsock-pci,guest-cid=3,vhostfd=7"],
            ["-device", r#"{"driver":"vfio-pci","fd":"9"}"#],
            ["-object", "iommufd,id=i,fd=9"],
            ["-object", r#"{"qom-type":"iommufd","id":"i","fd":"9"}"#],
            ["-object", "secret,id=s,file=/dev/fd/63"],
            ["-drive", "file=/dev/fdset/2,if=none"],
            [
                "-drive",
                r#"file=json:{"driver":"raw",,"file":{"filename":"/dev/fdset/2"}}"#,
            ],
            [
                "-blockdev",
                r#"{"driver":"file","filename":"/dev/fdset/2","node-name":"a"}"#,
            ],
            ["-blockdev", "driver=nbd,node-name=a,server.type=fd,server.str=nbd0"],
            ["-virtfs", "proxy,sock_fd=4,mount_tag=t"],
            ["-serial", "file:/dev/fdset/2"],
            ["-tpmdev", "passthrough,id=t,path=/dev/fdset/2,cancel-path=/dev/fdset/3"],
            ["-kernel", "/dev/fd/5"],
            ["-initrd", "/proc/self/fd/5"],
            ["-drive", "file=/proc/1234/fd/5"],
            ["-cdrom", "/dev/stdin"],
            ["-readconfig", "/dev/fd/5"],
            ["-set", "netdev.n.fd=4"],
            ["-global", "vhost-vsock-pci.vhostfd=7"],
            ["-global", "driver=vhost-vsock-pci,property=vhostfd,value=7"],
        ] {
            let bound = bound(&command);
            assert!(!bound.descriptors.is_empty(), "{command:?}");
            assert!(bound.files.is_empty(), "{command:?}: {bound}");
        }
    }

    #[test]
    fn what_is_no_descriptor_is_left_alone() {
        let command = [
            "-append",
            "fd=3 root=/dev/fd/1",
            "-kernel",
            "/boot/linux,fd=3",
            "-drive",
            "file=/a,,fd=3.img,if=floppy",
            "-fda",
            "/dev/fd0",
            "-name",
            "guest=fd,process=vhostfd",
            "-device",
            "isa-fdc,fdtypeA=144",
            "-netdev",
            "tap,id=fd,ifname=fds,script=no",
            "-smbios",
            "type=11,value=a,,fd=3",
            "-chardev",
            "socket,id=c,path=/run/fd/x,server=on",
            "-object",
            "secret,id=s,file=/etc/qemu/key",
            "-device",
            r#"{"driver":"virtio-net-pci","netdev":"fd"}"#,
            "-drive",
            "file=/b,snapshot=off",
        ];
        let bound = bound(&command);
        assert!(bound.is_free() && bound.temporary.is_empty(), "{bound:?}");
    }

    #[test]
    fn files_of_one_start_are_found() {
        let key = "/var/lib/libvirt/qemu/domain-1-vm/master-key.aes";
        let json = format!(r#"{{"qom-type":"secret","id":"masterKey0","format":"raw","file":"{key}"}}"#);
        let list = format!("secret,id=masterKey0,format=raw,file={key}");
        let session = "secret,id=masterKey0,file=/home/u/.config/libvirt/qemu/lib/domain-12-a-b/master-key.aes";
        for object in [&json, &list, session, "secret_keyring,id=k,serial=0x1234"] {
            let bound = bound(&["-object", object]);
            assert!(!bound.is_free() && bound.descriptors.is_empty(), "{object}: {bound:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("there");
        fs::write(&there, "").unwrap();
        let find = |path: &Path| path.exists().then(|| path.to_owned());
        let of = |file: &Path, option: &str, before: &str| {
            let words = ["q", option, &format!("{before}{}", file.display())].map(str::to_owned);
            Bound::of(&words, Some(&find))
        };
        let gone = dir.path().join("gone");
        for (option, before) in [("-object", "secret,id=s,file="), ("-readconfig", "")] {
            assert!(of(&there, option, before).is_free(), "{option}");
            assert!(!of(&gone, option, before).is_free(), "{option}");
        }
    }

    #[test]
    fn a_configuration_file_is_part_of_the_command_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("guest.cfg");
        let with = |text: &str| {
            fs::write(&file, text).unwrap();
            bound(&["-readconfig", file.to_str().unwrap()])
        };
        assert!(with("[machine]\n  type = \"q35\"\n[netdev \"fd\"]\n  type = \"user\"\n").is_free());
        assert!(!with("[netdev \"n\"]\n  type = \"tap\"\n  fd = \"28\"\n").is_free());
        assert!(!with("[add-fd]\n  fd = \"9\"\n  set = \"1\"\n").is_free());
        let key = "[object \"masterKey0\"]\n  qom-type = \"secret\"\n  file = \"/x/domain-1-vm/master-key.aes\"\n";
        assert!(!with(key).is_free());
        assert_eq!(
            with("[drive \"d\"]\n  file = \"/a\"\n  snapshot = \"on\"\n")
                .temporary
                .len(),
            1
        );
    }

    #[test]
    fn temporary_disks_are_found() {
        for command in [
            &["-snapshot"][..],
            &["-drive", "file=/a,snapshot=on"],
            &["-drive", "file=/a,snapshot"],
            &["-drive", "snapshot=yes,file=/a"],
        ] {
            assert_eq!(bound(command).temporary.len(), 1, "{command:?}");
        }
    }

    #[test]
    fn a_long_list_is_cut() {
        let command: Vec<String> = (0..9)
            .flat_map(|fd| ["-add-fd".to_owned(), format!("fd={fd},set=1")])
            .collect();
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let text = bound(&command).to_string();
        assert!(
            text.contains("`-add-fd fd=4` and 4 more") && !text.contains("fd=5"),
            "{text}"
        );
    }
}
