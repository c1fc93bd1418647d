//! A channel's file, read and written with a deadline. Never hangs: the other host may be dead.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::deadline::Deadline;

/// Why a channel's read or write ended without what was wanted.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Nothing happened in time.
    #[error("the other host did not answer in time")]
    Timeout,
    /// The other side closed.
    #[error("the other host closed the channel")]
    Closed,
    /// Someone here wants it to end.
    #[error("given up")]
    GivenUp,
    /// Anything else.
    #[error("the channel failed: {0}")]
    Io(#[from] io::Error),
}

/// Longest wait between two questions whether to give up; below a second.
const ASK_EVERY: Duration = Duration::from_millis(100);

impl Deadline<'_> {
    /// Waits for `file`. Whether to give up is asked only when nothing happens for a while: the question may cost more
    /// than the bytes that are waited for, and a guest stands still meanwhile.
    ///
    /// # Errors
    /// [`PortError::Timeout`] or [`PortError::GivenUp`].
    pub fn wait(&self, file: &impl AsFd, flags: PollFlags) -> Result<PollFlags, PortError> {
        loop {
            let left = self.left();
            if left.is_zero() {
                return Err(PortError::Timeout);
            }
            let most = Timespec {
                tv_sec: 0,
                tv_nsec: left.min(ASK_EVERY).subsec_nanos().into(),
            };
            let mut fds = [PollFd::new(file, flags)];
            match poll(&mut fds, Some(&most)) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(0) if self.given_up() => return Err(PortError::GivenUp),
                Ok(0) => {}
                Ok(_) => {
                    let [fd] = fds;
                    return Ok(fd.revents());
                }
                Err(error) => return Err(PortError::Io(error.into())),
            }
        }
    }
}

/// A channel, opened without blocking.
#[derive(Debug)]
pub struct Port {
    file: File,
    /// Bytes read so far.
    taken: Arc<AtomicU64>,
    /// Bytes written so far.
    given: Arc<AtomicU64>,
}

impl Port {
    /// Over a socket that stands for a channel.
    ///
    /// # Errors
    /// If it cannot be kept from blocking.
    pub fn over(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self::new(File::from(OwnedFd::from(socket))))
    }

    /// Two ends of a pair of sockets.
    ///
    /// # Errors
    /// If there are no sockets to be had.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (left, right) = UnixStream::pair()?;
        Ok((Self::over(left)?, Self::over(right)?))
    }

    /// Over an open file, which must not block (`O_NONBLOCK`).
    pub fn new(file: File) -> Self {
        Self {
            file,
            taken: Arc::default(),
            given: Arc::default(),
        }
    }

    /// The same channel once more: one to read from, while another thread writes.
    ///
    /// # Errors
    /// If this process has too many files open.
    pub fn other_half(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            taken: self.taken.clone(),
            given: self.given.clone(),
        })
    }

    /// Bytes written so far, by either half.
    pub fn sent(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }

    /// Whether no byte has been read since this was called, to be asked while another thread reads.
    pub fn untouched(&self) -> impl Fn() -> bool + use<> {
        let taken = self.taken.clone();
        let before = taken.load(Ordering::Relaxed);
        move || taken.load(Ordering::Relaxed) == before
    }

    /// Whether the other side has closed, and nothing is left to be read.
    pub fn ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
        let looked = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        looked.is_ok() && fds.iter().any(|fd| fd.revents().contains(PollFlags::HUP))
    }

    /// Reads what there is, at least a byte. 0: the other side closed.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn read_some(&mut self, buf: &mut [u8], until: &Deadline<'_>) -> Result<usize, PortError> {
        loop {
            match self.file.read(buf) {
                Ok(count) => {
                    self.taken.fetch_add(count as u64, Ordering::Relaxed);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    until.wait(&self.file, PollFlags::IN)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(PortError::Io(error)),
            }
        }
    }

    /// Fills `buf`.
    ///
    /// # Errors
    /// [`PortError`]; [`PortError::Closed`] if the other side closed before.
    pub fn read_exact(&mut self, buf: &mut [u8], until: &Deadline<'_>) -> Result<(), PortError> {
        let mut filled = 0;
        while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.read_some(rest, until)? {
                0 => return Err(PortError::Closed),
                count => filled += count,
            }
        }
        Ok(())
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// [`PortError`]; [`PortError::Closed`] if the other side reads no more.
    pub fn write_all(&mut self, mut bytes: &[u8], until: &Deadline<'_>) -> Result<(), PortError> {
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(count) => {
                    self.given.fetch_add(count as u64, Ordering::Relaxed);
                    bytes = bytes.get(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    until.wait(&self.file, PollFlags::OUT)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Err(PortError::Closed);
                }
                Err(error) => return Err(PortError::Io(error)),
            }
        }
        Ok(())
    }
}

/// For tests: so long from now.
#[cfg(test)]
pub fn within(seconds: u64) -> Deadline<'static> {
    Deadline::after(Duration::from_secs(seconds))
}

/// For tests: two ends of a pair of channels.
#[cfg(test)]
pub fn pair() -> (Port, Port) {
    Port::pair().unwrap()
}
