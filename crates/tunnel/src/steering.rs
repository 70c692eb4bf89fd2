//! Which worker a packet goes to, where there are several: all that is a peer's goes by one of them, so that its messages are
//! sealed and sent in one order.
//!
//! Packets of the device come to a worker's queue by the peer whose allowed IPs hold their destination, messages from the
//! network to its socket by their receiver index. Left alone, the kernel would spread both by flow.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use crate::noise;
use crate::prefix::Prefix;
use crate::sys::{self, FilterInstruction, PrefixTable};

/// Most prefixes of a version. The kernel takes memory for those that are there, but before 5.11 counts all against a limit.
const PREFIXES: u32 = 1 << 18;

/// The kernel's copy of the allowed IPs: whose worker each prefix is.
#[derive(Debug)]
pub(crate) struct Steering {
    v4: PrefixTable,
    v6: PrefixTable,
}

impl Steering {
    /// Steers the device of which `tun` is a queue. What is in no prefix goes to the first queue.
    pub(crate) fn new(tun: BorrowedFd<'_>) -> io::Result<Self> {
        // Refused to who may not; newer kernels do not ask.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        let this = Self { v4: PrefixTable::new(4, PREFIXES)?, v6: PrefixTable::new(16, PREFIXES)? };
        let program = sys::load_socket_filter(&this.program())?;
        sys::tun_steer(tun, &program)?;
        Ok(this)
    }

    /// From now on packets to `prefix` go to `worker`, but for those to longer prefixes.
    pub(crate) fn insert(&self, prefix: Prefix, worker: u32) {
        let (table, key) = self.place(prefix);
        if let Err(error) = table.insert(&key, worker) {
            tracing::warn!(%error, %prefix, "packets to it are not steered");
        }
    }

    pub(crate) fn remove(&self, prefix: Prefix) {
        let (table, key) = self.place(prefix);
        if let Err(error) = table.remove(&key) {
            tracing::debug!(%error, %prefix, "was not steered");
        }
    }

    /// Key of a prefix (`struct bpf_lpm_trie_key`): its length, then its address.
    fn place(&self, prefix: Prefix) -> (&PrefixTable, Vec<u8>) {
        let mut key = u32::from(prefix.length()).to_ne_bytes().to_vec();
        match prefix.address() {
            IpAddr::V4(v4) => key.extend(v4.octets()),
            IpAddr::V6(v6) => key.extend(v6.octets()),
        }
        let table = if prefix.address().is_ipv4() { &self.v4 } else { &self.v6 };
        (table, key)
    }

    /// Looks for the destination; the kernel takes what is returned modulo the number of queues.
    fn program(&self) -> Vec<u64> {
        let v4 = look_up(&self.v4, 16, 4);
        let mut program = vec![
            instruction(0xbf, 0x16, 0, 0),               // r6 = r1, the packet
            instruction(0x30, 0x00, 0, 0),               // r0 = byte 0
            instruction(0x77, 0x00, 0, 4),               // r0 >>= 4
            instruction(0x15, 0x00, v4.len() as i16, 6), // if r0 == 6, skip IPv4
        ];
        program.extend(v4);
        program.extend(look_up(&self.v6, 24, 16));
        program
    }
}

/// Returns the value of the address of `size` bytes at `at`, 0 where there is none.
fn look_up(table: &PrefixTable, at: i32, size: i32) -> Vec<u64> {
    const LOAD_BYTES: i32 = 26;
    const LOOK_UP: i32 = 1;
    vec![
        instruction(0x62, 0x0a, -24, 8 * size), // key: the longest prefix
        instruction(0xbf, 0x61, 0, 0),          // r1 = r6
        instruction(0xb7, 0x02, 0, at),         // r2 = at
        instruction(0xbf, 0xa3, 0, 0),          // r3 = r10
        instruction(0x07, 0x03, 0, -20),        // r3 -= 20
        instruction(0xb7, 0x04, 0, size),       // r4 = size
        instruction(0x85, 0x00, 0, LOAD_BYTES), // the address behind it, zeroes where it is cut short
        instruction(0x18, 0x11, 0, table.fd().as_raw_fd()), // r1 = the table, in two words
        0,
        instruction(0xbf, 0xa2, 0, 0),       // r2 = r10
        instruction(0x07, 0x02, 0, -24),     // r2 -= 24
        instruction(0x85, 0x00, 0, LOOK_UP), // r0 = the place of the value
        instruction(0x15, 0x00, 1, 0),       // if r0 == 0, skip 1
        instruction(0x61, 0x00, 0, 0),       // r0 = the value
        instruction(0x95, 0x00, 0, 0),       // return r0
    ]
}

/// One instruction of the kernel's virtual machine (linux/bpf.h): opcode, source and destination, offset, constant.
const fn instruction(code: u8, registers: u8, offset: i16, constant: i32) -> u64 {
    u64::from_ne_bytes({
        let [o0, o1] = offset.to_ne_bytes();
        let [c0, c1, c2, c3] = constant.to_ne_bytes();
        [code, registers, o0, o1, c0, c1, c2, c3]
    })
}

/// Upper receiver index, 24 bits, of a peer of `worker`: its last byte tells which, and is what [`by_receiver`] looks at.
/// Of one worker `random` stays as it is.
pub(crate) fn index(random: u32, worker: usize, workers: usize) -> u32 {
    let byte = (random & 0xff) as usize;
    let told = byte - byte % workers + worker;
    let told = if told > 0xff { told - workers } else { told };
    random & 0xff_ff00 | told as u32
}

/// Steers messages to the sockets that share a port, of which `socket` is one, by what receiver they name. What names none
/// goes where its sender's address leads.
pub(crate) fn by_receiver(socket: BorrowedFd<'_>, workers: u32) -> io::Result<()> {
    // Classic BPF on the UDP payload (linux/filter.h): opcode, jumps where true and where not, constant.
    const LOAD_BYTE: u16 = 0x30;
    const JUMP: u16 = 0x05;
    const JUMP_IF: u16 = 0x15;
    const MODULO: u16 = 0x94;
    const RETURN: u16 = 0x06;
    const RETURN_IT: u16 = 0x16;
    // A message's receiver index is little-endian, and its upper 24 bits are the peer's.
    const INDEX: u32 = 4 + 1;
    const SECOND_INDEX: u32 = 8 + 1;
    let program: [FilterInstruction; 10] = [
        (LOAD_BYTE, 0, 0, 0),
        (JUMP_IF, 5, 0, noise::DATA.into()),
        (JUMP_IF, 4, 0, noise::COOKIE.into()),
        (JUMP_IF, 1, 0, noise::RESPONSE.into()),
        (RETURN, 0, 0, u32::MAX), // no socket: the kernel's own choice
        // A response names its sender first.
        (LOAD_BYTE, 0, 0, SECOND_INDEX),
        (JUMP, 0, 0, 1),
        (LOAD_BYTE, 0, 0, INDEX),
        (MODULO, 0, 0, workers),
        (RETURN_IT, 0, 0, 0),
    ];
    sys::attach_to_port(socket, &program)
}

#[cfg(test)]
mod tests;
