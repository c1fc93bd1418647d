use super::*;
use std::cell::RefCell;
use std::io::Cursor;

struct Disk(RefCell<Vec<u8>>);

impl Disk {
    fn range(&self, offset: u64, length: usize) -> Result<std::ops::Range<usize>> {
        let start = usize::try_from(offset)?;
        match start.checked_add(length) {
            Some(end) if end <= self.0.borrow().len() => Ok(start..end),
            _ => bail!("outside"),
        }
    }
}

impl Store for Disk {
    fn size(&self) -> u64 {
        self.0.borrow().len() as u64
    }
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        let range = self.range(offset, to.len())?;
        to.copy_from_slice(&self.0.borrow()[range]);
        Ok(())
    }
    fn write(&self, offset: u64, from: &[u8]) -> Result<()> {
        let range = self.range(offset, from.len())?;
        self.0.borrow_mut()[range].copy_from_slice(from);
        Ok(())
    }
}

struct Client {
    sends: Cursor<Vec<u8>>,
    receives: Vec<u8>,
}

impl Read for Client {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        self.sends.read(to)
    }
}

impl Write for Client {
    fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
        self.receives.write(from)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(super) fn option(number: u32) -> Vec<u8> {
    [&OPTION_MAGIC.to_be_bytes()[..], &number.to_be_bytes(), &[0; 4]].concat()
}

pub(super) fn request(command: u16, offset: u64, length: u32) -> Vec<u8> {
    [
        &REQUEST_MAGIC.to_be_bytes()[..],
        &[0; 2],
        &command.to_be_bytes(),
        &[9; 8],
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ]
    .concat()
}

fn talk(disk: &Disk, sends: &[Vec<u8>]) -> (Result<()>, Vec<u8>) {
    let mut client = Client {
        sends: Cursor::new(sends.concat()),
        receives: Vec::new(),
    };
    let result = serve(&mut client, disk);
    (result, client.receives)
}

pub(super) fn flags() -> Vec<u8> {
    3u32.to_be_bytes().to_vec()
}

#[test]
fn a_write_is_read_back() {
    let disk = Disk(RefCell::new(vec![0; 1024]));
    let sends = [
        flags(),
        option(8),
        option(7),
        request(1, 512, 4),
        b"beat".to_vec(),
        request(3, 0, 0),
        request(0, 510, 8),
        request(2, 0, 0),
    ];
    let (result, received) = talk(&disk, &sends);
    result.expect("a polite client");
    assert_eq!(&disk.0.borrow()[512..516], b"beat");
    assert!(received.ends_with(b"\0\0\0\0\t\t\t\t\t\t\t\t\0\0beat\0\0"));
    let size = received.windows(8).any(|w| w == 1024u64.to_be_bytes());
    assert!(size, "the export's size is told");
}

#[test]
fn a_request_outside_is_refused_and_the_next_one_served() {
    let disk = Disk(RefCell::new(vec![1; 512]));
    let sends = [
        flags(),
        option(7),
        request(0, 510, 4),
        request(0, u64::MAX, 1),
        request(0, 0, 2),
    ];
    let (result, received) = talk(&disk, &sends);
    result.expect("an end without NBD_CMD_DISC is an end");
    let errors: Vec<u8> = received
        .windows(4)
        .zip(received[4..].windows(4))
        .filter(|(magic, _)| *magic == REPLY_MAGIC.to_be_bytes())
        .map(|(_, error)| error[3])
        .collect();
    assert_eq!(errors, [22, 22, 0]);
}

#[test]
fn a_wild_client_ends_its_connection_only() {
    let disk = Disk(RefCell::new(vec![0; 512]));
    for sends in [
        vec![flags(), vec![0; 16]],
        vec![flags(), option(7), vec![0; 28]],
        vec![flags(), option(7), request(0, 0, u32::MAX)],
        vec![vec![0xff; 4]],
    ] {
        assert!(talk(&disk, &sends).0.is_err());
    }
    assert!(talk(&disk, &[flags(), option(2)]).0.is_ok());
}
