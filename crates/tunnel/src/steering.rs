//! Which queue of the device a packet goes to, where there are several: by its destination, so by peer.
//!
//! Left alone, the kernel moves a flow to the queue that its answers were last written to; packets on the old queue are then
//! overtaken. The destination of a flow never changes.

use std::os::fd::BorrowedFd;

use crate::sys;

/// One instruction of the kernel's virtual machine (linux/bpf.h): opcode, registers, jump, constant.
const fn instruction(code: u8, registers: u8, jump: i16, constant: i32) -> u64 {
    u64::from_le_bytes({
        let [j0, j1] = jump.to_le_bytes();
        let [c0, c1, c2, c3] = constant.to_le_bytes();
        [code, registers, j0, j1, c0, c1, c2, c3]
    })
}

/// Mixes the last four bytes of the destination; the kernel takes the result modulo the number of queues.
const PROGRAM: [u64; 10] = [
    instruction(0xbf, 0x16, 0, 0),                      // r6 = r1, the packet
    instruction(0x30, 0x00, 0, 0),                      // r0 = byte 0
    instruction(0x77, 0x00, 0, 4),                      // r0 >>= 4
    instruction(0x15, 0x00, 2, 6),                      // if r0 == 6, skip 2
    instruction(0x20, 0x00, 0, 16),                     // r0 = IPv4 destination
    instruction(0x05, 0x00, 1, 0),                      // skip 1
    instruction(0x20, 0x00, 0, 36),                     // r0 = end of the IPv6 destination
    instruction(0x24, 0x00, 0, 0x9e37_79b1_u32 as i32), // r0 *= golden ratio, 32 bits
    instruction(0x74, 0x00, 0, 16),                     // r0 >>= 16
    instruction(0x95, 0x00, 0, 0),                      // return r0
];

/// Steers the device of which `tun` is a queue.
pub(crate) fn by_destination(tun: BorrowedFd<'_>) -> std::io::Result<()> {
    let program = sys::load_socket_filter(&PROGRAM)?;
    sys::tun_steer(tun, &program)
}
