//! A guest's disk in the pool, served to QEMU over NBD.
//!
//! A disk whose contents lay inside one host would be lost with it. In a data centre it is shared storage; here it is a
//! range of the pool, which both hosts map, served by a process of this kind in each. QEMU drains and flushes before it
//! hands over, so what the successor's server reads is what the incumbent's wrote.
//!
//! The protocol is the fixed newstyle of `doc/proto.md` in the NBD project, without TLS and structured replies: what
//! QEMU needs.

mod late;

pub use self::late::serve as serve_late;
use crate::map::Shared;
use anyhow::{Result, bail, ensure};
use std::io::{ErrorKind, Read, Write};

/// Where a disk's bytes lie.
pub trait Store {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Copies bytes out.
    ///
    /// # Errors
    /// The range is not inside the store.
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<()>;
    /// Copies bytes in.
    ///
    /// # Errors
    /// The range is not inside the store.
    fn write(&self, offset: u64, from: &[u8]) -> Result<()>;
}

impl Store for Shared {
    fn size(&self) -> u64 {
        self.len() as u64
    }
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        self.read_at(offset, to)
    }
    fn write(&self, offset: u64, from: &[u8]) -> Result<()> {
        self.write_at(offset, from)
    }
}

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// NBD_FLAG_FIXED_NEWSTYLE, NBD_FLAG_NO_ZEROES.
const HANDSHAKE_FLAGS: u16 = 0b11;
/// NBD_FLAG_HAS_FLAGS, _SEND_FLUSH, _SEND_FUA, _CAN_MULTI_CONN: every write is in the pool when it is answered.
const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 8;
/// Longest request that is served, in bytes: QEMU's own limit is 32 MiB.
const LONGEST: u32 = 32 << 20;
const EINVAL: u32 = 22;

/// What a client asks for before it reads and writes: NBD_OPT_*.
mod option {
    pub(super) const EXPORT_NAME: u32 = 1;
    pub(super) const ABORT: u32 = 2;
    pub(super) const INFO: u32 = 6;
    pub(super) const GO: u32 = 7;
}

/// What it is answered: NBD_REP_*.
mod reply {
    pub(super) const ACK: u32 = 1;
    pub(super) const INFO: u32 = 3;
    pub(super) const UNSUPPORTED: u32 = 1 << 31 | 1;
}

/// NBD_CMD_*.
mod command {
    pub(super) const READ: u16 = 0;
    pub(super) const WRITE: u16 = 1;
    pub(super) const DISCONNECT: u16 = 2;
    pub(super) const FLUSH: u16 = 3;
}

/// Serves one connection until the client disconnects.
///
/// # Errors
/// The connection broke, or the client violates the protocol.
pub fn serve(mut stream: impl Read + Write, store: &impl Store) -> Result<()> {
    if handshake(&mut stream, store.size())? {
        transmit(&mut stream, store)?;
    }
    Ok(())
}

/// Returns whether the client went on to the transmission phase.
fn handshake(stream: &mut (impl Read + Write), size: u64) -> Result<bool> {
    stream.write_all(b"NBDMAGIC")?;
    stream.write_all(&OPTION_MAGIC.to_be_bytes())?;
    stream.write_all(&HANDSHAKE_FLAGS.to_be_bytes())?;
    let flags = u32::from_be_bytes(take(stream)?);
    ensure!(
        flags & !u32::from(HANDSHAKE_FLAGS) == 0,
        "unknown handshake flags {flags:#x}"
    );
    let no_zeroes = flags & 2 != 0;
    loop {
        match take_option(stream)? {
            option::EXPORT_NAME => {
                // No reply but the export itself.
                stream.write_all(&size.to_be_bytes())?;
                stream.write_all(&EXPORT_FLAGS.to_be_bytes())?;
                if !no_zeroes {
                    stream.write_all(&[0; 124])?;
                }
                return Ok(true);
            }
            option::ABORT => {
                option_reply(stream, option::ABORT, reply::ACK, &[])?;
                return Ok(false);
            }
            which @ (option::INFO | option::GO) => {
                // NBD_INFO_EXPORT, which is 0.
                let mut info = [0; 12];
                info[2..10].copy_from_slice(&size.to_be_bytes());
                info[10..].copy_from_slice(&EXPORT_FLAGS.to_be_bytes());
                option_reply(stream, which, reply::INFO, &info)?;
                option_reply(stream, which, reply::ACK, &[])?;
                if which == option::GO {
                    return Ok(true);
                }
            }
            other => option_reply(stream, other, reply::UNSUPPORTED, &[])?,
        }
    }
}

/// What the client asks for next; what it says besides is passed over, for there is one export.
fn take_option(stream: &mut impl Read) -> Result<u32> {
    let magic = u64::from_be_bytes(take(stream)?);
    ensure!(magic == OPTION_MAGIC, "bad option magic {magic:#x}");
    let option = u32::from_be_bytes(take(stream)?);
    let length = u32::from_be_bytes(take(stream)?);
    ensure!(length <= 4096, "option {option} of {length} bytes is too long");
    std::io::copy(&mut stream.take(length.into()), &mut std::io::sink())?;
    Ok(option)
}

fn option_reply(stream: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> Result<()> {
    let mut reply = Vec::with_capacity(20 + data.len());
    reply.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    reply.extend_from_slice(&option.to_be_bytes());
    reply.extend_from_slice(&kind.to_be_bytes());
    reply.extend_from_slice(&u32::try_from(data.len())?.to_be_bytes());
    reply.extend_from_slice(data);
    Ok(stream.write_all(&reply)?)
}

fn transmit(stream: &mut (impl Read + Write), store: &impl Store) -> Result<()> {
    while let Some(request) = Request::take(stream)? {
        if request.command == command::DISCONNECT {
            return Ok(());
        }
        stream.write_all(&request.perform(store))?;
    }
    Ok(())
}

/// One request of the client.
struct Request {
    command: u16,
    cookie: [u8; 8],
    offset: u64,
    /// What it writes, or room for what it reads.
    data: Vec<u8>,
}

impl Request {
    /// `None` if the client is gone.
    fn take(stream: &mut impl Read) -> Result<Option<Self>> {
        let mut request = [0; 28];
        match stream.read_exact(&mut request) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let mut fields = request.as_slice();
        let magic = u32::from_be_bytes(take(&mut fields)?);
        ensure!(magic == REQUEST_MAGIC, "bad request magic {magic:#x}");
        let _flags = u16::from_be_bytes(take(&mut fields)?);
        let command = u16::from_be_bytes(take(&mut fields)?);
        let cookie = take(&mut fields)?;
        let offset = u64::from_be_bytes(take(&mut fields)?);
        let length = u32::from_be_bytes(take(&mut fields)?);
        let carries_data = matches!(command, command::READ | command::WRITE);
        if carries_data && length > LONGEST {
            bail!("a request of {length} bytes is too long");
        }
        let mut data = vec![0; if carries_data { length as usize } else { 0 }];
        if command == command::WRITE {
            stream.read_exact(&mut data)?;
        }
        Ok(Some(Self {
            command,
            cookie,
            offset,
            data,
        }))
    }

    /// Does it; returns the answer.
    fn perform(mut self, store: &impl Store) -> Vec<u8> {
        let result = match self.command {
            command::READ => store.read(self.offset, &mut self.data),
            command::WRITE => store.write(self.offset, &self.data),
            command::FLUSH => Ok(()),
            other => Err(anyhow::anyhow!("unknown command {other}")),
        };
        let error = if result.is_ok() { 0 } else { EINVAL };
        let mut reply = Vec::with_capacity(16 + self.data.len());
        reply.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
        reply.extend_from_slice(&error.to_be_bytes());
        reply.extend_from_slice(&self.cookie);
        if self.command == command::READ && result.is_ok() {
            reply.extend_from_slice(&self.data);
        }
        reply
    }
}

fn take<const N: usize>(stream: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
