//! Answers: configuration, state and counters as `key=value` lines.

use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::time::UNIX_EPOCH;

use zeroize::Zeroizing;

use crate::device::Device;

/// The answer to `get=1`, without the `errno` line. It holds keys, so it is cleared when dropped.
pub(crate) fn state(device: &Device) -> Zeroizing<String> {
    // Asked before the table is locked: who holds the link may be waiting for a thread that waits for the table.
    let (port, fwmark) = (device.port(), device.link().fwmark);
    let table = device.table();
    // Text that grows leaves copies of keys behind: take room for all of it at once.
    let prefixes: usize = table.entries().map(|entry| entry.allowed.len()).sum();
    let mut text = Zeroizing::new(String::with_capacity(512 + 512 * table.entries().count() + 64 * prefixes));
    if let Some(identity) = &table.identity {
        line(&mut text, "private_key", &**identity.private.hex());
    }
    line(&mut text, "listen_port", port);
    if fwmark != 0 {
        line(&mut text, "fwmark", fwmark);
    }
    for entry in table.entries() {
        let state = entry.peer.lock();
        line(&mut text, "public_key", &**entry.peer.key.hex());
        if let Some(preshared) = state.preshared() {
            line(&mut text, "preshared_key", &**preshared.hex());
        }
        line(&mut text, "protocol_version", 1);
        if let Some(endpoint) = state.endpoint() {
            line(&mut text, "endpoint", endpoint.address);
        }
        let handshake =
            state.last_handshake.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        line(&mut text, "last_handshake_time_sec", handshake.as_secs());
        line(&mut text, "last_handshake_time_nsec", handshake.subsec_nanos());
        line(&mut text, "tx_bytes", state.tx_bytes);
        line(&mut text, "rx_bytes", state.rx_bytes);
        line(&mut text, "persistent_keepalive_interval", state.keepalive().as_secs());
        for prefix in &entry.allowed {
            line(&mut text, "allowed_ip", prefix);
        }
    }
    text
}

/// The answer to `get=metrics`, without the `errno` line: all count from the start of the process. A histogram's line names
/// the largest batch its bucket holds, and buckets do not include one another.
pub(super) fn metrics(device: &Device) -> String {
    let mut text = String::new();
    let metrics = &device.metrics;
    for (key, counter) in [
        ("tun_reads_total", &metrics.tun_reads),
        ("tun_reads_gso_total", &metrics.tun_read_gso),
        ("sent_packets_total", &metrics.sent_packets),
        ("sent_bytes_total", &metrics.sent_bytes),
        ("send_calls_total", &metrics.send_calls),
        ("receive_calls_total", &metrics.receive_calls),
        ("received_packets_total", &metrics.received_packets),
        ("received_bytes_total", &metrics.received_bytes),
        ("initiations_sent_total", &metrics.initiations_sent),
        ("initiations_received_total", &metrics.initiations_received),
        ("handshakes_total", &metrics.handshakes),
        ("handshakes_by_cookie_total", &metrics.handshakes_by_cookie),
        ("cookies_sent_total", &metrics.cookies_sent),
        ("fallbacks_total", &metrics.fallbacks),
    ] {
        line(&mut text, key, counter.get());
    }
    for (key, sizes) in [
        ("send_batches", &metrics.send_sizes),
        ("receive_batches", &metrics.receive_sizes),
        ("write_batches", &metrics.write_sizes),
    ] {
        for (bound, count) in sizes.buckets() {
            line(&mut text, &format!("{key}_{bound}"), count);
        }
    }
    for (reason, count) in metrics.drops() {
        line(&mut text, &format!("drops_{reason}_total"), count);
    }
    let sockets = device.sockets();
    line(&mut text, "mtu", device.mtu.load(Ordering::Relaxed));
    line(&mut text, "udp_segmentation", u8::from(sockets.iter().any(|socket| socket.segmentation)));
    line(&mut text, "gso_writes_tcp", u8::from(device.joins.tcp.load(Ordering::Relaxed)));
    line(&mut text, "gso_writes_udp", u8::from(device.joins.udp.load(Ordering::Relaxed)));
    for entry in device.table().entries() {
        let state = entry.peer.lock();
        line(&mut text, "public_key", &**entry.peer.key.hex());
        line(&mut text, "tx_packets", state.tx_packets);
        line(&mut text, "tx_bytes", state.tx_bytes);
        line(&mut text, "rx_packets", state.rx_packets);
        line(&mut text, "rx_bytes", state.rx_bytes);
        line(&mut text, "handshakes", state.handshakes);
    }
    text
}

fn line(text: &mut String, key: &str, value: impl std::fmt::Display) {
    writeln!(text, "{key}={value}").expect("a string takes all text");
}
