//! A 16550, polled.
//!
//! Not the kernel's tty: a host with hardware-reduced ACPI has no legacy interrupts, and the kernel's own polling of
//! such a port moves 16 bytes per jiffy. The FIFO stays off, so the emulator hands over the next byte only when the
//! last one was read: nothing can be lost, however slowly the port is polled.

use anyhow::{Result, bail};

use crate::ports::Ports;

const DATA: u16 = 0;
const IER: u16 = 1;
const FCR: u16 = 2;
const LCR: u16 = 3;
const MCR: u16 = 4;
const LSR: u16 = 5;

const LCR_8N1: u8 = 0x03;
const LCR_DLAB: u8 = 0x80;
const MCR_DTR_RTS: u8 = 0x03;
const LSR_DATA_READY: u8 = 0x01;
const LSR_TX_EMPTY: u8 = 0x20;

/// One serial port.
pub(crate) struct Uart {
    ports: Ports,
    base: u16,
}

impl Uart {
    /// Takes over the port that Linux calls `name` (`ttyS0` to `ttyS3`, at the PC's usual addresses) and sets it to
    /// 115200 baud, 8N1, no interrupts.
    ///
    /// # Errors
    /// An unknown name; ports that may not be used; no UART at the address.
    pub(crate) fn open(name: &str) -> Result<Self> {
        let base = match name {
            "ttyS0" => 0x3f8,
            "ttyS1" => 0x2f8,
            "ttyS2" => 0x3e8,
            "ttyS3" => 0x2e8,
            other => bail!("no serial port is called {other}; use ttyS0 to ttyS3"),
        };
        let ports = Ports::open(base, 8)?;
        let uart = Self { ports, base };
        uart.write(IER, 0)?;
        uart.write(LCR, LCR_8N1 | LCR_DLAB)?;
        uart.write(DATA, 1)?;
        uart.write(IER, 0)?;
        uart.write(LCR, LCR_8N1)?;
        uart.write(FCR, 0)?;
        uart.write(MCR, MCR_DTR_RTS)?;
        if uart.read(LSR)? == 0xff {
            bail!("no serial port answers at {base:#x} ({name}); enable it in the machine");
        }
        Ok(uart)
    }

    /// The next byte that has arrived, if any.
    pub(crate) fn receive(&self) -> Result<Option<u8>> {
        if self.read(LSR)? & LSR_DATA_READY == 0 {
            return Ok(None);
        }
        Ok(Some(self.read(DATA)?))
    }

    /// Sends all of `bytes`, giving the CPU away while the transmitter is busy.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<()> {
        for byte in bytes {
            while self.read(LSR)? & LSR_TX_EMPTY == 0 {
                std::thread::yield_now();
            }
            self.write(DATA, *byte)?;
        }
        Ok(())
    }

    fn read(&self, register: u16) -> Result<u8> {
        self.ports.read(self.base + register)
    }

    fn write(&self, register: u16, byte: u8) -> Result<()> {
        self.ports.write(self.base + register, byte)
    }
}
