//! Whatever a peer sends: no packet is lost, and joined ones can be told apart again.
#![no_main]

use corax_tunnel::packet::coalesce::{Abilities, Coalescer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|packets: Vec<Vec<u8>>| {
    let mut frames = Coalescer::new(Abilities { tcp: true, udp: true }, 8);
    let mut buffer: Vec<u8> = packets.concat();
    let mut at = 0;
    for packet in &packets {
        frames.push(&buffer, at, packet.len());
        at += packet.len();
    }
    let mut again = Vec::new();
    for index in 0..frames.len() {
        frames.finish(index, &mut buffer);
        let places: Vec<_> = frames.separate(index, &mut buffer).collect();
        again.extend(places.into_iter().map(|(at, length)| buffer[at..at + length].to_vec()));
    }
    let mut packets = packets;
    packets.sort();
    again.sort();
    assert_eq!(again, packets);
});
