//! Whatever the kernel says of a frame: it is cut or refused.
#![no_main]

use corax_tunnel::packet::segment::{SLACK, segment};
use corax_tunnel::packet::vnet::Header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: ([u8; 10], u16, Vec<u8>)| {
    let (header, mtu, mut frame) = input;
    let Some(header) = Header::parse(&header) else { return };
    let length = frame.len();
    frame.extend([0; SLACK]);
    let mut bytes = 0;
    let result = segment(&mut frame, length, &header, mtu.into(), |packet| bytes += packet.len());
    assert_eq!(result.is_ok(), bytes > 0, "refused frames hand out nothing");
});
