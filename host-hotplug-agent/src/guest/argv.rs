//! From the command line of a guest's QEMU here to the one on the other host.

use super::keyval;

/// What concerns the start of one process and does not go along: where its state came from, its daemon's files, whether
/// it waits. `loadstate` is Proxmox'.
const DROPPED: [&str; 8] = [
    "incoming",
    "loadvm",
    "loadstate",
    "pidfile",
    "S",
    "daemonize",
    "preconfig",
    "only-migratable",
];

/// QEMU's options without an argument (`qemu-options.hx` of QEMU 10.0, and what older ones had).
const FLAGS: &str = "h help version S s snapshot daemonize preconfig only-migratable mem-prealloc usb nographic \
    full-screen no-fd-bootchk win2k-hack enable-kvm xen-attach xen-domid-restrict no-reboot no-shutdown nodefaults \
    no-user-config enable-sync-profile perfmap jitdump no-acpi no-hpet singlestep nodefconfig enable-fips audio-help \
    no-frame alt-grab ctrl-grab no-quit sdl curses portrait no-kvm no-kvm-irqchip no-kvm-pit-reinjection tdf";
/// Those with one. `id` and `loadstate` are Proxmox'.
const WITH_ARGUMENT: &str = "machine M cpu accel smp numa add-fd set global boot m mem-path k audio audiodev device \
    name uuid fda fdb hda hdb hdc hdd cdrom blockdev drive mtdblock sd fsdev virtfs iscsi usbdevice display spice vga \
    vnc acpitable smbios netdev nic net chardev tpmdev bios pflash kernel shim append initrd dtb compat fw_cfg serial \
    parallel monitor qmp qmp-pretty mon debugcon pidfile overcommit gdb d D dfilter seed L xen-domid action loadvm \
    option-rom rtc icount watchdog-action echr incoming sandbox readconfig trace plugin run-with msg dump-vmstate \
    object id loadstate runas chroot watchdog writeconfig async-teardown soundhw balloon realtime tb-size clock";

/// An option with its argument, or a word that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// Its name without dashes, empty for a word that is no option.
    pub name: &'a str,
    /// All of its words.
    pub words: &'a [String],
}

impl<'a> Item<'a> {
    /// What follows the name.
    pub fn argument(&self) -> Option<&'a str> {
        self.words.get(1).map(String::as_str)
    }

    /// Whether it is `-machine`.
    fn is_machine(&self) -> bool {
        ["machine", "M"].contains(&self.name)
    }
}

/// The options after the program's name. An argument may look like an option: `-append -S`.
pub fn items(command: &[String]) -> Vec<Item<'_>> {
    let mut rest = command.get(1..).unwrap_or_default();
    let mut items = Vec::new();
    while let Some((word, after)) = rest.split_first() {
        let name = option(word);
        let knows = |list: &str| list.split(' ').any(|known| known == name);
        let argument = if name.is_empty() || knows(FLAGS) {
            false
        } else {
            // An option that a later QEMU or a wrapper has.
            knows(WITH_ARGUMENT) || after.first().is_some_and(|next| option(next).is_empty())
        };
        let count = if argument { 2.min(rest.len()) } else { 1 };
        let (words, after) = rest.split_at(count);
        items.push(Item { name, words });
        rest = after;
    }
    items
}

fn option(word: &str) -> &str {
    let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
    name.unwrap_or_default()
}

/// `command` made to wait for a guest's state.
pub fn incoming(command: &[String]) -> Vec<String> {
    let mut out: Vec<String> = command.first().cloned().into_iter().collect();
    for item in items(command) {
        if !DROPPED.contains(&item.name) {
            out.extend_from_slice(item.words);
        }
    }
    out.extend(["-incoming".to_owned(), "defer".to_owned()]);
    out
}

/// `command` with the machine type by its full name: another QEMU takes an alias (q35, pc) for another machine, and then
/// rejects the guest's state. If `command` may lack a type, so that QEMU has a default or reads it from a file, it gets one.
pub fn with_machine(command: &[String], machine: &str, may_lack: bool) -> Vec<String> {
    let mut out: Vec<String> = command.first().cloned().into_iter().collect();
    let mut named = false;
    for item in items(command) {
        match item.argument() {
            Some(argument) if item.is_machine() => {
                let (argument, has_type) = typed(argument, machine);
                named |= has_type;
                out.extend(item.words.first().cloned());
                out.push(argument);
            }
            argument => {
                // A file may name another type. What comes later counts.
                named &= item.name != "readconfig" || argument.is_none();
                out.extend_from_slice(item.words);
            }
        }
    }
    if may_lack && !named {
        out.extend(["-machine".to_owned(), machine.to_owned()]);
    }
    out
}

/// The argument of `-machine` with that type, and whether it has one.
fn typed(argument: &str, machine: &str) -> (String, bool) {
    let mut has_type = false;
    let parts = keyval::parts(argument).into_iter().enumerate().map(|(index, part)| {
        let (key, value) = match part.split_once('=') {
            Some(("type", value)) => ("type=", value),
            None if index == 0 => ("", part),
            _ => return part.to_owned(),
        };
        has_type = true;
        // Proxmox' own version of a machine type follows QEMU's.
        let suffix = value.find('+').and_then(|at| value.get(at..)).unwrap_or_default();
        format!("{key}{machine}{suffix}")
    });
    let parts: Vec<String> = parts.collect();
    (parts.join(","), has_type)
}

/// `command` with the RAM of its guest in other files, where `elsewhere` knows another one for the one that is named.
pub fn with_ram(command: &[String], elsewhere: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let mut out: Vec<String> = command.first().cloned().into_iter().collect();
    for item in items(command) {
        let moved = match (item.name, item.argument()) {
            ("object", Some(argument)) => keyval::with_value(argument, "mem-path", elsewhere),
            ("mem-path", Some(argument)) => elsewhere(argument),
            _ => None,
        };
        match (moved, item.words) {
            (Some(argument), [option, ..]) => out.extend([option.clone(), argument]),
            (_, words) => out.extend_from_slice(words),
        }
    }
    out
}

/// Whether a program is QEMU by its name, and not a script that starts one.
pub fn is_qemu(program: &str) -> bool {
    let name = program.rsplit('/').next().unwrap_or_default();
    name.starts_with("qemu-system-") || ["kvm", "qemu-kvm", "qemu"].contains(&name)
}

/// Whether a process has the command line of a QEMU, whatever its program is called.
pub fn starts_qemu(command: &[String]) -> bool {
    const MARKS: [&str; 8] = [
        "qmp",
        "qmp-pretty",
        "mon",
        "chardev",
        "machine",
        "M",
        "object",
        "readconfig",
    ];
    let program = command.first().map_or("", String::as_str);
    is_qemu(program) || items(command).iter().any(|item| MARKS.contains(&item.name))
}

/// The words of `/proc/PID/cmdline`.
pub fn split(cmdline: &[u8]) -> Vec<String> {
    let words = cmdline.strip_suffix(b"\0").unwrap_or(cmdline).split(|&byte| byte == 0);
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn incoming_of(text: &str) -> String {
        incoming(&words(text)).join(" ")
    }

    #[test]
    fn a_second_generation_command_line_does_not_grow() {
        let words =
            split(b"qemu-system-x86_64\0-M\0q35\0-append\0a b\0-S\0-qmp\0unix:/run/one.qmp,server=on\0-daemonize\0");
        assert_eq!(words.len(), 9);
        let once = incoming(&words);
        assert_eq!(
            once.join(" "),
            "qemu-system-x86_64 -M q35 -append a b -qmp unix:/run/one.qmp,server=on -incoming defer"
        );
        assert_eq!(incoming(&once), once);
    }

    #[test]
    fn what_concerns_one_start_only_does_not_go_along() {
        for dropped in [
            "-incoming tcp:0:4444",
            "--incoming defer",
            "-incoming {\"channel-type\":\"main\"}",
            "-loadvm snap1",
            "-loadstate /dev/pve/vm-100-state-suspend",
            "-pidfile /run/x.pid",
            "-S",
            "--S",
            "-daemonize",
            "--preconfig",
            "-only-migratable",
        ] {
            let command = format!("kvm -id 100 {dropped} -m 512");
            assert_eq!(incoming_of(&command), "kvm -id 100 -m 512 -incoming defer", "{dropped}");
        }
    }

    #[test]
    fn arguments_that_look_like_options_are_arguments() {
        for argument in ["-S", "-incoming", "--daemonize", "-loadstate"] {
            let command = format!("qemu-system-x86_64 -append {argument} -name {argument} -m 512");
            assert_eq!(incoming_of(&command), format!("{command} -incoming defer"));
        }
        // An option that nobody here knows, with and without an argument.
        assert_eq!(incoming_of("q -newer -S -m 1"), "q -newer -m 1 -incoming defer");
        assert_eq!(incoming_of("q -newer x -S -m 1"), "q -newer x -m 1 -incoming defer");
        assert_eq!(incoming_of("q disk.img -S"), "q disk.img -incoming defer");
        assert_eq!(incoming_of("q -m"), "q -m -incoming defer");
    }

    #[test]
    fn a_machine_type_gets_its_full_name_wherever_it_stands() {
        let machine = |text: &str| with_machine(&words(text), "pc-q35-9.2", true).join(" ");
        for (given, right) in [
            ("q -M q35", "q -M pc-q35-9.2"),
            ("q --machine q35,usb=off", "q --machine pc-q35-9.2,usb=off"),
            ("q -machine type=q35+pve0", "q -machine type=pc-q35-9.2+pve0"),
            (
                "q -machine usb=off,type=q35,smm=on",
                "q -machine usb=off,type=pc-q35-9.2,smm=on",
            ),
            ("q -M pc -M q35", "q -M pc-q35-9.2 -M pc-q35-9.2"),
            ("q -M q35,a=b,,type=c", "q -M pc-q35-9.2,a=b,,type=c"),
            ("q -M q35 -append -M", "q -M pc-q35-9.2 -append -M"),
            ("q -append q35 -M q35", "q -append q35 -M pc-q35-9.2"),
            // Without a type QEMU has its default, another one in each version.
            ("q -m 1", "q -m 1 -machine pc-q35-9.2"),
            ("q -machine usb=off", "q -machine usb=off -machine pc-q35-9.2"),
            // What comes later counts, and a file may name a type.
            (
                "q -M q35 -readconfig f",
                "q -M pc-q35-9.2 -readconfig f -machine pc-q35-9.2",
            ),
            ("q -readconfig f -M q35", "q -readconfig f -M pc-q35-9.2"),
        ] {
            assert_eq!(machine(given), right);
            assert_eq!(machine(right), right, "a second generation does not grow");
        }
        // A script may have its own.
        let script = words("/guest/guest.sh g1");
        assert_eq!(with_machine(&script, "microvm", false), script);
    }

    #[test]
    fn ram_is_found_under_its_name_on_the_other_host() {
        let elsewhere = |file: &str| (file == "/dev/dax1.0").then(|| "/dev/dax0.0".to_owned());
        let list = "q -object memory-backend-file,id=ram,mem-path=/dev/dax1.0,share=on -append /dev/dax1.0";
        assert_eq!(
            with_ram(&words(list), &elsewhere).join(" "),
            "q -object memory-backend-file,id=ram,mem-path=/dev/dax0.0,share=on -append /dev/dax1.0"
        );
        let json =
            r#"q -object {"id":"ram","mem-path":"/dev/dax1.0","qom-type":"memory-backend-file"} -mem-path /dev/dax1.0"#;
        assert_eq!(
            with_ram(&words(json), &elsewhere).join(" "),
            json.replace("dax1.0", "dax0.0")
        );
        for same in [
            "q -object memory-backend-file,id=r,mem-path=/dev/dax1.00,share=on",
            "q -object iothread,id=i",
            "q",
        ] {
            assert_eq!(with_ram(&words(same), &elsewhere), words(same));
        }
    }

    #[test]
    fn a_program_is_qemu_by_its_name() {
        for program in [
            "/usr/bin/qemu-system-x86_64",
            "kvm",
            "/usr/libexec/qemu-kvm",
            "qemu-system-x86_64-microvm",
        ] {
            assert!(is_qemu(program), "{program}");
        }
        for program in ["/guest/guest.sh", "/usr/bin/bash", "kvm-wrapper"] {
            assert!(!is_qemu(program), "{program}");
        }
        assert!(starts_qemu(&words("/opt/vmm -qmp unix:/run/x")));
        assert!(!starts_qemu(&words("/usr/sbin/libvirtd --timeout 120")));
    }
}
