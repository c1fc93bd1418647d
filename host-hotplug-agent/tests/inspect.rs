//! What `locum` says of running guests before anything is changed: a QEMU that answers QMP from a table, with the
//! command lines that libvirt and Proxmox make (`tests/inputs`).

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;

use locum_abi::Header;
use locum_agent::config::Guest;
use locum_agent::deadline::Deadline;
use locum_agent::error::Refusal;
use locum_agent::guest::others::{By, Other};
use locum_agent::guest::pool::Pool;
use locum_agent::guest::qemu::Qemu;
use locum_agent::guest::{Hypervisor, Spec};
use locum_agent::sysroot::SysRoot;
use serde_json::{Value, json};

const LIBVIRT: &str = include_str!("inputs/libvirt-inherited-fds/argv.txt");
const PROXMOX: &str = include_str!("inputs/proxmox-loadstate/argv.txt");
const OPTANE: &str = include_str!("inputs/devdax-that-is-not-the-pool/argv.txt");

/// A host with one guest, whose QEMU is this process.
struct Host {
    dir: tempfile::TempDir,
    header: Header,
    /// What `qom-get` answers, by path and property.
    properties: BTreeMap<(String, String), Value>,
}

impl Host {
    /// A guest with that command line, its RAM in that file.
    fn new(argv: &str, mem_path: &str) -> Self {
        let mut host = Self {
            dir: tempfile::tempdir().unwrap(),
            header: Header {
                pool: 0x1_0000_0000,
                pool_size: 0x4_0000_0000,
                ..Header::of_this_release()
            },
            properties: BTreeMap::new(),
        };
        let argv: String = argv.lines().map(|word| format!("{word}\0")).collect();
        host.put(&format!("proc/{}/cmdline", std::process::id()), argv);
        for (property, value) in [
            ("type", json!("memory-backend-file")),
            ("mem-path", json!(mem_path)),
            ("share", json!(true)),
        ] {
            host.property("/objects/ram", property, value);
        }
        host.property("/machine", "type", json!("pc-q35-9.2-machine"));
        host.property("block", "nodes", json!([]));
        // As in `inputs/devdax-that-is-not-the-pool/dax.txt`.
        host.dax("dax0.0", 0x1_0000_0000, 0x4_0000_0000);
        host.dax("dax1.0", 0x18_4000_0000, 0xbd_0000_0000);
        host
    }

    fn put(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn property(&mut self, path: &str, property: &str, value: Value) {
        self.properties.insert((path.to_owned(), property.to_owned()), value);
    }

    /// A device-DAX device as `drivers/dax/bus.c` shows it.
    fn dax(&self, name: &str, resource: u64, size: u64) {
        let dir = format!("sys/bus/dax/devices/{name}");
        self.put(&format!("{dir}/resource"), format!("{resource:#x}\n"));
        self.put(&format!("{dir}/size"), format!("{size}\n"));
    }

    fn inspect(&self) -> Result<Spec, Refusal> {
        self.inspect_with(&[])
    }

    /// With a `command` in the configuration.
    fn inspect_with(&self, command: &[&str]) -> Result<Spec, Refusal> {
        let qmp = self.dir.path().join("qmp");
        let _ = fs::remove_file(&qmp);
        let listener = UnixListener::bind(&qmp).unwrap();
        let properties = self.properties.clone();
        let qemu = std::thread::spawn(move || answer(&listener, &properties));
        let guest = Guest {
            name: "vm".to_owned(),
            qmp,
            libvirt: None,
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            channel: None,
            trust_storage: false,
        };
        let outcome = self.hypervisor().inspect(&guest, 1);
        qemu.join().unwrap();
        outcome
    }

    fn hypervisor(&self) -> Qemu {
        let pool = Pool::of(&self.header);
        Qemu::new(SysRoot::at(self.dir.path()), pool)
    }
}

/// One QMP session.
fn answer(listener: &UnixListener, properties: &BTreeMap<(String, String), Value>) {
    let (stream, _) = listener.accept().unwrap();
    let mut out = stream.try_clone().unwrap();
    let mut say = |message: Value| writeln!(out, "{message}");
    say(json!({ "QMP": {} })).unwrap();
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        let message: Value = serde_json::from_str(&line).unwrap();
        let argument = |name: &str| message["arguments"][name].as_str().unwrap_or_default().to_owned();
        let asked = |what: &str, otherwise: Value| {
            let told = properties.get(&("block".to_owned(), what.to_owned()));
            told.cloned().unwrap_or(otherwise)
        };
        let result = match message["execute"].as_str().unwrap() {
            "qmp_capabilities" => Some(json!({})),
            "query-status" => Some(json!({ "status": "running", "running": true })),
            "query-version" => properties.get(&("QEMU".to_owned(), "version".to_owned())).cloned(),
            "query-memdev" => Some(json!([{ "id": "ram" }])),
            "qom-list" => Some(asked("devices", json!([]))),
            "human-monitor-command" => Some(asked("network", json!(""))),
            "query-migrate" => Some(asked("migrate", json!({}))),
            // QEMU before 5.0 knows no `flat`.
            "query-named-block-nodes" if message["arguments"] != json!({}) => {
                properties.get(&("block".to_owned(), "nodes".to_owned())).cloned()
            }
            "query-named-block-nodes" => Some(asked("nodes-of-old", json!([]))),
            "qom-get" => properties.get(&(argument("path"), argument("property"))).cloned(),
            _ => None,
        };
        let reply = match result {
            Some(value) => json!({ "return": value }),
            None => json!({ "error": { "class": "GenericError", "desc": "not found" } }),
        };
        if say(reply).is_err() {
            return;
        }
    }
}

fn inputs() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/inputs"))
}

fn words(spec: &Spec) -> String {
    spec.command.join(" ")
}

#[test]
fn a_command_line_of_libvirt_is_refused_with_cause_and_remedy() {
    let refusal = Host::new(LIBVIRT, "/dev/dax0.0").inspect().unwrap_err().to_string();
    for part in ["fd=27", "fd=28", "vhostfd=30", "master-key.aes", "`command`"] {
        assert!(refusal.contains(part), "{part}: {refusal}");
    }
    for input in ["argv-addfd.txt", "argv-json.txt"] {
        let more = fs::read_to_string(inputs().join("libvirt-inherited-fds").join(input)).unwrap();
        let argv = format!("qemu-system-x86_64\n{more}");
        let refusal = Host::new(&argv, "/dev/dax0.0").inspect().unwrap_err().to_string();
        assert!(refusal.contains("descriptor"), "{input}: {refusal}");
    }
}

#[test]
fn a_guest_of_proxmox_that_woke_from_hibernation_is_started_as_what_it_is() {
    let spec = Host::new(PROXMOX, "/dev/dax0.0").inspect().unwrap();
    assert_eq!(
        words(&spec),
        "/usr/bin/kvm -id 100 -name vm,debug-threads=on \
         -chardev socket,id=qmp,path=/var/run/qemu-server/100.qmp,server=on,wait=off -mon chardev=qmp,mode=control \
         -machine type=pc-q35-9.2+pve0 -incoming defer"
    );
}

#[test]
fn ram_in_another_device_than_the_pool_is_refused() {
    let refusal = Host::new(OPTANE, "/dev/dax1.0").inspect().unwrap_err();
    assert!(matches!(&refusal, Refusal::NotInPool { .. }), "{refusal}");
    let text = refusal.to_string();
    for part in [
        "`ram` lies in /dev/dax1.0",
        "0x1840000000-0xd540000000",
        "mem-path=/dev/dax0.0,share=on",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let spec = Host::new(OPTANE, "/dev/dax0.0").inspect().unwrap();
    // So that the other host, where it may have another name, finds it.
    assert_eq!(
        (spec.ram[0].file.to_str(), spec.ram[0].at),
        (Some("/dev/dax0.0"), 0x1_0000_0000)
    );
}

#[test]
fn without_a_pool_no_ram_can_be_in_it() {
    let mut host = Host::new(OPTANE, "/dev/dax0.0");
    host.header.pool_size = 0;
    let refusal = host.inspect().unwrap_err();
    assert!(refusal.to_string().contains("there is no pool"), "{refusal}");
}

#[test]
fn a_command_that_is_given_replaces_what_libvirt_made() {
    let host = Host::new(LIBVIRT, "/dev/dax0.0");
    let spec = host.inspect_with(&["/usr/sbin/start-vm", "vm", "-M", "q35"]).unwrap();
    // A script may say what it wants in place of a machine type, but not a wrong one.
    assert_eq!(words(&spec), "/usr/sbin/start-vm vm -M pc-q35-9.2 -incoming defer");
    let copied: Vec<&str> = LIBVIRT.lines().collect();
    let refusal = host.inspect_with(&copied).unwrap_err();
    assert!(matches!(&refusal, Refusal::OneStart { .. }), "{refusal}");
    assert!(refusal.to_string().contains("its `command`"), "{refusal}");
}

#[test]
fn a_socket_that_another_program_opened_is_no_guests() {
    let refusal = Host::new("/usr/sbin/libvirtd\n--timeout\n120", "/dev/dax0.0")
        .inspect()
        .unwrap_err();
    assert!(matches!(&refusal, Refusal::NoGuest { .. }), "{refusal}");
    assert!(refusal.to_string().contains("libvirtd --timeout 120"), "{refusal}");
}

#[test]
fn a_qemu_with_the_default_machine_is_started_as_what_it_is() {
    let argv = "qemu-system-x86_64\n-m\n512";
    let mut host = Host::new(argv, "/dev/dax0.0");
    host.property("/machine", "type", json!("pc-i440fx-10.0-machine"));
    let spec = host.inspect().unwrap();
    assert_eq!(
        words(&spec),
        "qemu-system-x86_64 -m 512 -machine pc-i440fx-10.0 -incoming defer"
    );
    assert_eq!(spec.release, None);
    host.property(
        "QEMU",
        "version",
        json!({ "qemu": { "major": 10, "minor": 1, "micro": 3 }, "package": "" }),
    );
    assert_eq!(host.inspect().unwrap().release, Some((10, 1)));
    // One that does not tell is started as it was.
    host.property("/machine", "type", Value::Null);
    assert_eq!(
        words(&host.inspect().unwrap()),
        "qemu-system-x86_64 -m 512 -incoming defer"
    );
}

#[test]
fn a_guest_that_writes_to_temporary_files_is_refused_whatever_command_is_given() {
    for option in ["-snapshot", "-drive\nfile=/a,if=none,snapshot=on"] {
        let host = Host::new(&format!("qemu-system-x86_64\n{option}"), "/dev/dax0.0");
        for command in [&[][..], &["qemu-system-x86_64", "-drive", "file=/a,if=none"]] {
            let refusal = host.inspect_with(command).unwrap_err();
            assert!(matches!(&refusal, Refusal::TemporaryDisk { .. }), "{refusal}");
            assert!(refusal.to_string().contains("snapshot"), "{refusal}");
        }
    }
}

#[test]
fn files_are_looked_for_where_the_qemu_sees_them() {
    let argv = "qemu-system-x86_64\n-object\nsecret,id=s,file=/etc/key\n-readconfig\nvm.cfg";
    let host = Host::new(argv, "/dev/dax0.0");
    let gone = host.inspect().unwrap_err().to_string();
    assert!(
        gone.contains("secret /etc/key") && gone.contains("-readconfig vm.cfg"),
        "{gone}"
    );
    let own = |name: &str| format!("proc/{}/{name}", std::process::id());
    host.put(&own("root/etc/key"), "");
    host.put(&own("cwd/vm.cfg"), "[netdev \"n0\"]\n  type = \"tap\"\n  fd = \"28\"\n");
    let named = host.inspect().unwrap_err().to_string();
    assert!(
        named.contains("-netdev fd=28") && !named.contains("/etc/key"),
        "{named}"
    );
    host.put(&own("cwd/vm.cfg"), "[machine]\n  type = \"q35\"\n");
    let spec = host.inspect().unwrap();
    assert!(words(&spec).ends_with("-readconfig vm.cfg -machine pc-q35-9.2 -incoming defer"));
}

/// A block node as QEMU 10.0 shows it.
fn node(driver: &str, file: &str, read_only: bool, direct: bool) -> Value {
    json!({
        "node-name": "#block102", "drv": driver, "file": file, "ro": read_only,
        "cache": { "no-flush": false, "direct": direct, "writeback": true },
    })
}

const MOUNTS: &str = "24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                      40 24 0:40 / /srv/nfs rw,relatime shared:9 - nfs4 store:/vms rw,vers=4.2\n\
                      41 40 8:2 / /srv/nfs/scratch rw - xfs /dev/sdb1 rw\n";

#[test]
fn disks_are_told_that_the_successor_may_not_have() {
    let mut host = Host::new(OPTANE, "/dev/dax0.0");
    host.put(&format!("proc/{}/mountinfo", std::process::id()), MOUNTS);
    for path in ["srv/nfs/a.qcow2", "srv/nfs/scratch/b.raw", "usr/share/OVMF/CODE.fd"] {
        host.put(path, "");
    }
    let mut problems = |nodes: &[Value]| {
        host.property("block", "nodes", json!(nodes));
        let disks = host.inspect().unwrap().disks;
        disks.into_iter().map(|disk| disk.problem).collect::<Vec<_>>()
    };
    let format = node("qcow2", "/srv/nfs/a.qcow2", false, true);
    for fine in [
        node("file", "/srv/nfs/a.qcow2", false, true),
        // No page cache is in between, whatever its flags say.
        node("nbd", "nbd://10.0.2.2:10810/disk", false, false),
        node("rbd", "rbd:pool/image", false, false),
        node("null-co", "null-co://", false, false),
    ] {
        assert_eq!(problems(&[format.clone(), fine.clone()]), [] as [&str; 0], "{fine}");
    }
    for (bad, word) in [
        (
            node("file", "/srv/nfs/a.qcow2", false, false),
            "(nfs4) is written through this host's page cache",
        ),
        (
            node("file", "/srv/nfs/scratch/b.raw", false, true),
            "is a file of this host (xfs)",
        ),
        (
            node("file", "/gone.raw", false, true),
            "/gone.raw is a file of this host",
        ),
        (
            node("host_device", "/dev/vg0/vm", false, true),
            "/dev/vg0/vm is a device of this host",
        ),
        (
            node("nbd", "nbd+unix:///disk?socket=/run/g2.disk", false, false),
            "a socket of this host",
        ),
        (
            node("nbd", "nbd://127.0.0.1:10810/disk", true, false),
            "a server of this host",
        ),
        (node("nvme", "nvme://0000:01:00.0/1", false, false), "driver `nvme`"),
    ] {
        let told = problems(&[format.clone(), bad.clone()]);
        assert!(told.len() == 1 && told[0].contains(word), "{bad}: {told:?}");
    }
    // Whether the successor has such a file is seen once its initramfs is there.
    host.property(
        "block",
        "nodes",
        json!([node("file", "/usr/share/OVMF/CODE.fd", true, false)]),
    );
    let disks = host.inspect().unwrap().disks;
    let (name, here) = disks[0].read_only.as_ref().unwrap();
    assert_eq!(name, Path::new("/usr/share/OVMF/CODE.fd"));
    assert_eq!(*here, host.dir.path().join("usr/share/OVMF/CODE.fd"));
}

#[test]
fn an_old_qemu_tells_of_its_disks_and_one_that_does_not_is_refused() {
    let mut host = Host::new(OPTANE, "/dev/dax0.0");
    host.properties.remove(&("block".to_owned(), "nodes".to_owned()));
    host.property(
        "block",
        "nodes-of-old",
        json!([node("host_device", "/dev/sdb", false, true)]),
    );
    assert_eq!(host.inspect().unwrap().disks.len(), 1);
    host.property("block", "nodes-of-old", json!("no list"));
    let refusal = host.inspect().unwrap_err();
    assert!(matches!(&refusal, Refusal::NoGuest { .. }), "{refusal}");
}

#[test]
fn what_ties_a_guest_to_this_host_is_refused_by_name() {
    for (what, told, word) in [
        (
            "devices",
            json!([{ "name": "type", "type": "string" }, { "name": "gpu0", "type": "child<vfio-pci>" }]),
            "`gpu0` (vfio-pci)",
        ),
        (
            "network",
            json!("net0.0: index=0,type=nic,model=virtio-net-pci\r\n \\ n0: index=0,type=vhost-user,chardev\r\n"),
            "`n0` is a network whose other end",
        ),
        (
            "migrate",
            json!({ "blocked-reasons": ["The qcow format used by node 'd0' does not support live migration"] }),
            "node 'd0' does not support",
        ),
    ] {
        let mut host = Host::new(OPTANE, "/dev/dax0.0");
        host.property("block", what, told);
        let refusal = host.inspect().unwrap_err();
        assert!(matches!(&refusal, Refusal::Tied { .. }), "{refusal}");
        assert!(refusal.to_string().contains(word), "{refusal}");
    }
}

/// A QEMU that was started with `-no-shutdown`, and whose guest hears its power button or not.
fn powered_down(hears: bool) -> (String, Vec<String>) {
    let host = Host::new("qemu-system-x86_64\n-no-shutdown", "/dev/dax0.0");
    let stat = format!("proc/{}/stat", std::process::id());
    host.put(&stat, format!("{} (qemu) S 1{}\n", std::process::id(), " 1".repeat(48)));
    let stat = host.dir.path().join(stat);
    let qmp = host.dir.path().join("qmp");
    let listener = UnixListener::bind(&qmp).unwrap();
    let qemu = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut out = stream.try_clone().unwrap();
        writeln!(out, "{}", json!({ "QMP": {} })).unwrap();
        let mut heard = Vec::new();
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let message: Value = serde_json::from_str(&line).unwrap();
            let command = message["execute"].as_str().unwrap().to_owned();
            let off = hears && heard.iter().any(|heard| heard == "system_powerdown");
            let status = if off { "shutdown" } else { "running" };
            if writeln!(out, "{}", json!({ "return": { "status": status } })).is_err() {
                // Nobody waits for it any more.
                break;
            }
            if command == "quit" {
                fs::remove_file(&stat).unwrap();
            }
            heard.push(command);
        }
        heard
    });
    let other = Other {
        name: "vm".to_owned(),
        pid: rustix::process::getpid(),
        in_pool: false,
        by: By::Qmp(qmp),
    };
    let limit = std::time::Duration::from_secs(if hears { 60 } else { 1 });
    let outcome = host.hypervisor().shut_down(&other, &Deadline::after(limit));
    let outcome = outcome.map_or_else(|error| format!("{error:#}"), |()| "off".to_owned());
    (outcome, qemu.join().unwrap())
}

#[test]
fn a_guest_that_is_to_stay_is_shut_down_and_its_qemu_ends() {
    let (outcome, heard) = powered_down(true);
    assert_eq!(outcome, "off");
    assert_eq!(heard, ["qmp_capabilities", "system_powerdown", "query-status", "quit"]);
    let (outcome, heard) = powered_down(false);
    assert!(outcome.contains("power button"), "{outcome}");
    assert!(!heard.contains(&"quit".to_owned()), "{heard:?}");
}
