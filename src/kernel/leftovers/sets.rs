//! ipsets, over nfnetlink (`linux/netfilter/ipset/ip_set.h`).

use std::path::Path;
use std::time::{Duration, Instant};

use corax_core::raven::{Leftover, Set};
use nix::errno::Errno;

use crate::kernel::error::Failure;
use crate::kernel::socket::Socket;
use crate::kernel::wire::{NLM_F_ACK, Writer};

const NFNL_SUBSYS_IPSET: u16 = 6;
const IPSET_CMD_DESTROY: u16 = 3;
const IPSET_CMD_HEADER: u16 = 12;
const IPSET_ATTR_PROTOCOL: u16 = 1;
const IPSET_ATTR_SETNAME: u16 = 2;
/// Every kernel since 2.6.39 speaks it.
const PROTOCOL: u8 = 6;
const NFPROTO_IPV4: u8 = 2;

/// How long a set may be used by what is gone.
const LET_GO: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);

/// `nfgenmsg`.
const HEADER: [u8; 4] = [NFPROTO_IPV4, 0, 0, 0];

const fn kind(command: u16) -> u16 {
    NFNL_SUBSYS_IPSET << 8 | command
}

fn put(writer: &mut Writer, set: Set) {
    writer.u8(IPSET_ATTR_PROTOCOL, PROTOCOL);
    writer.text(IPSET_ATTR_SETNAME, set.name());
}

/// Raven's sets that are there. A kernel that has none yet is not asked: that would load the module.
pub(super) fn read(socket: &mut Socket) -> Result<Vec<Leftover>, Failure> {
    let mut found = Vec::new();
    if !Path::new("/sys/module/ip_set").exists() {
        return Ok(found);
    }
    for set in Set::ALL {
        match socket.get(kind(IPSET_CMD_HEADER), &HEADER, |writer| put(writer, set), |_| Some(())) {
            Ok(_) => found.push(Leftover::Set(set)),
            Err(failure) if failure.errno == Errno::ENOENT => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(found)
}

/// Why a set stays.
pub(super) fn meaning(failure: &Failure) -> String {
    if is_in_use(failure) {
        return "a rule or another set uses it, see `iptables-nft-save` and `iptables-legacy-save`"
            .to_owned();
    }
    failure.to_string()
}

/// ipset has numbers of its own, above those of the system (`IPSET_ERR_BUSY`).
fn is_in_use(failure: &Failure) -> bool {
    failure.errno == Errno::UnknownErrno
}

/// Destroys a set. A rule of nftables that was just taken away lets go of it a moment later, of which no event tells.
pub(super) fn destroy(socket: &mut Socket, set: Set) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        match destroy_now(socket, set) {
            Err(failure) if is_in_use(&failure) && begun.elapsed() < LET_GO => std::thread::sleep(LOOK),
            result => return result,
        }
    }
}

fn destroy_now(socket: &mut Socket, set: Set) -> Result<(), Failure> {
    match socket.ask(kind(IPSET_CMD_DESTROY), NLM_F_ACK, &HEADER, |writer| put(writer, set), |_| None::<()>) {
        Err(failure) if failure.errno == Errno::ENOENT => Ok(()),
        result => result.map(|_| ()),
    }
}
