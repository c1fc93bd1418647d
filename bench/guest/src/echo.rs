//! Answers the guest's datagrams: each one goes back as it came.

use anyhow::{Context, Result};
use std::net::UdpSocket;

/// Port of the service, on the host's 127.0.0.1 and, as the guest sees it, on 10.0.2.2 (QEMU's user network).
pub const PORT: u16 = 7007;

/// Serves until a socket error.
///
/// # Errors
/// The address cannot be bound (`ip link set lo up` is the usual remedy), or the socket fails.
pub fn serve(address: &str) -> Result<()> {
    let socket = UdpSocket::bind(address).with_context(|| format!("cannot bind {address}: is `lo` up?"))?;
    let mut datagram = [0; 2048];
    loop {
        let (length, sender) = socket.recv_from(&mut datagram)?;
        // An answer that cannot be sent is a datagram lost, which UDP allows and the guest counts.
        let _ = socket.send_to(datagram.get(..length).unwrap_or_default(), sender);
    }
}
