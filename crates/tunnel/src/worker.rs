//! One thread of a tunnel: both directions of one queue of the TUN device and one socket, a batch of each in turn.
//!
//! Both by one thread, because a flow loads one direction and trickles in the other: what acknowledges is taken up between
//! two batches of what it acknowledges, without a second thread to be woken and without a wait for the peer's lock.

use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::device::Device;
use crate::error::Error;
use crate::inbound::Inbound;
use crate::net::Socket;
use crate::outbound::Outbound;
use crate::tun::Tun;

/// See the module.
pub(crate) struct Worker {
    device: Arc<Device>,
    tun: Arc<Tun>,
    /// Which of the device's sockets is its own.
    index: usize,
    outbound: Outbound,
    inbound: Inbound,
}

impl Worker {
    pub(crate) fn new(device: Arc<Device>, tun: Arc<Tun>, index: usize) -> Self {
        let outbound = Outbound::new(Arc::clone(&device), Arc::clone(&tun));
        let inbound = Inbound::new(Arc::clone(&device), Arc::clone(&tun));
        Self { device, tun, index, outbound, inbound }
    }

    /// Runs until the device is gone; sockets come and go with its state.
    pub(crate) fn run(mut self) -> Result<(), Error> {
        let mut socket = self.device.socket(self.index);
        loop {
            let ready = if self.inbound.has_more() { Ready::BOTH } else { self.wait(socket.as_deref())? };
            if ready.changes {
                // Let go of it first: the port is free only when nobody holds it.
                drop(socket.take());
                socket = self.device.changed_socket(self.index);
                if self.outbound.is_stuck() {
                    self.outbound.turn(socket.as_deref())?;
                }
                continue;
            }
            if ready.outbound {
                self.outbound.turn(socket.as_deref())?;
            }
            if let (true, Some(socket)) = (ready.inbound, &socket) {
                self.inbound.turn(socket);
            }
        }
    }

    fn wait(&self, socket: Option<&Socket>) -> Result<Ready, Error> {
        let (changes, tun) = (self.device.changes(self.index), self.tun.fd());
        let way_out = if self.outbound.is_stuck() { socket } else { None };
        let mut events = [
            PollFd::new(changes, PollFlags::POLLIN),
            way_out.map_or(PollFd::new(tun, PollFlags::POLLIN), |socket| {
                PollFd::new(socket.fd(), PollFlags::POLLOUT)
            }),
            // Where there is no socket, nothing is asked of what stands in its place.
            socket.map_or(PollFd::new(tun, PollFlags::empty()), |socket| {
                PollFd::new(socket.fd(), PollFlags::POLLIN)
            }),
        ];
        match poll(&mut events, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(Error::system("poll of TUN device and socket")(error.into())),
        }
        let [changes, outbound, inbound] = events.map(|event| event.any().unwrap_or(true));
        Ok(Ready { changes, outbound, inbound })
    }
}

/// What has something to do, or an error to tell.
struct Ready {
    /// Other sockets are to be used.
    changes: bool,
    outbound: bool,
    inbound: bool,
}

impl Ready {
    /// Both directions, for all that is known without asking.
    const BOTH: Self = Self { changes: false, outbound: true, inbound: true };
}
