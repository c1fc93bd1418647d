//! What `locum` says of running guests before anything is changed: a QEMU that answers QMP from a table, with the
//! command lines that tools make (`tests/inputs`).

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;

use locum_abi::Header;
use locum_agent::config::Guest;
use locum_agent::error::Refusal;
use locum_agent::guest::pool::Pool;
use locum_agent::guest::qemu::Qemu;
use locum_agent::guest::{Hypervisor, Spec};
use locum_agent::sysroot::SysRoot;
use serde_json::{Value, json};

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
        let qmp = self.dir.path().join("qmp");
        let _ = fs::remove_file(&qmp);
        let listener = UnixListener::bind(&qmp).unwrap();
        let properties = self.properties.clone();
        let qemu = std::thread::spawn(move || answer(&listener, &properties));
        let guest = Guest {
            name: "vm".to_owned(),
            qmp,
            command: vec![],
            channel: None,
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
        let result = match message["execute"].as_str().unwrap() {
            "qmp_capabilities" => Some(json!({})),
            "query-status" => Some(json!({ "status": "running", "running": true })),
            "query-memdev" => Some(json!([{ "id": "ram" }])),
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
    assert!(Host::new(OPTANE, "/dev/dax0.0").inspect().is_ok());
}

#[test]
fn without_a_pool_no_ram_can_be_in_it() {
    let mut host = Host::new(OPTANE, "/dev/dax0.0");
    host.header.pool_size = 0;
    let refusal = host.inspect().unwrap_err();
    assert!(refusal.to_string().contains("there is no pool"), "{refusal}");
}
