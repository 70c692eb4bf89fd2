//! Whatever comes from the network: strangers' datagrams with any ancillary data, and any packet of a true peer.
#![no_main]

use std::cell::RefCell;

use corax_tunnel::fuzzing::Tunnel;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static TUNNEL: RefCell<Tunnel> = RefCell::new(Tunnel::new().expect("a UDP socket can be had"));
}

fuzz_target!(|input: (Vec<u8>, Vec<u8>, Vec<u8>, Vec<Vec<u8>>)| {
    let (name, control, data, packets) = input;
    TUNNEL.with_borrow_mut(|tunnel| {
        tunnel.receive(&name, &control, &data);
        tunnel.packets(packets.iter().map(|packet| &packet[..packet.len().min(2000)]));
    });
});
