//! Without each offload in turn, and when one fails while it is used.

use super::traffic;
use super::world::{CORAX, Host, Tunnel, World, join, third};

/// Traffic of all kinds both ways; then `check` says by host and counters that the tunnel with the switches obeyed them.
fn works_with(switches: &str, check: impl FnOnce(&Host, &Tunnel)) {
    let world = World::new();
    let (a, b) = world.pair();
    let program = format!("{CORAX} {switches}");
    let (wga, wgb) = join((&a, &program), (&b, CORAX));
    a.ping("10.8.0.2");
    for (from, to, v4, v6) in [(&a, &b, "10.8.0.2", "fd08::2"), (&b, &a, "10.8.0.1", "fd08::1")] {
        traffic::tcp(from, to, v4, 2 << 20);
        traffic::tcp(from, to, v6, 2 << 20);
        traffic::udp(from, to, v4, 1392);
        // Larger than the MTU: fragments inside the tunnel.
        traffic::udp(from, to, v6, 4000);
    }
    wga.found_no_fault();
    wgb.found_no_fault();
    check(&a, &wga);
}

/// Batches of more than one packet.
fn joined(tunnel: &Tunnel, batches: &str) -> u64 {
    [2, 4, 8, 16, 32, 64].iter().map(|most| tunnel.metric(&format!("{batches}_batches_{most}"))).sum()
}

fn is_offloaded(host: &Host, feature: &str) -> bool {
    host.run("ethtool -k wga").contains(&format!("{feature}: on"))
}

const TSO: &str = "tx-tcp-segmentation";
const USO: &str = "tx-udp-segmentation";

#[test]
fn works_with_everything() {
    works_with("", |a, wga| {
        for batches in ["send", "receive", "write"] {
            assert!(joined(wga, batches) > 0, "{batches}");
        }
        assert!(wga.metric("tun_reads_gso_total") > 0);
        assert!(is_offloaded(a, TSO) && is_offloaded(a, USO));
    });
}

#[test]
fn works_without_a_virtio_header() {
    works_with("--no-vnet", |a, wga| {
        assert_eq!(wga.metric("tun_reads_gso_total") + joined(wga, "write"), 0);
        assert!(!is_offloaded(a, TSO) && !is_offloaded(a, USO));
    });
}

#[test]
fn works_without_tso() {
    works_with("--no-tso", |a, wga| {
        assert_eq!(wga.metric("tun_reads_gso_total"), 0);
        assert!(!is_offloaded(a, TSO));
    });
}

#[test]
fn works_without_uso() {
    works_with("--no-uso", |a, wga| {
        assert!(wga.metric("tun_reads_gso_total") > 0);
        assert!(is_offloaded(a, TSO) && !is_offloaded(a, USO));
    });
}

#[test]
fn works_without_joining() {
    works_with("--no-join", |_, wga| {
        assert_eq!(joined(wga, "write"), 0);
    });
}

#[test]
fn works_without_datagram_trains_out() {
    works_with("--no-gso", |_, wga| {
        assert_eq!(joined(wga, "send"), 0);
    });
}

#[test]
fn works_without_datagram_trains_in() {
    works_with("--no-gro", |_, wga| {
        assert_eq!(joined(wga, "receive"), 0);
    });
}

#[test]
fn works_without_anything() {
    works_with("--no-vnet --no-gso --no-gro", |_, wga| {
        for batches in ["send", "receive", "write"] {
            assert_eq!(joined(wga, batches), 0, "{batches}");
        }
    });
}

#[test]
fn a_path_that_answers_trains_with_an_error_goes_without() {
    for error in ["eio", "emsgsize", "einval"] {
        works_with(&format!("--fail {error}"), |_, wga| {
            assert_eq!(joined(wga, "send"), 0, "{error}");
            assert!(wga.metric("fallbacks_total") > 0, "{error}");
            assert_eq!(wga.metric("udp_segmentation"), 1, "{error}: it is the path's affair");
        });
    }
}

#[test]
fn a_path_that_takes_no_trains_costs_other_peers_none() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, _wgb) = join((&a, &format!("{CORAX} --fail eio")), (&b, CORAX));
    let (c, _wgc) = third(&world, &a, &wga);
    traffic::tcp(&a, &b, "10.8.0.2", 2 << 20);
    assert_eq!((joined(&wga, "send"), wga.metric("fallbacks_total")), (0, 1));
    traffic::tcp(&a, &c, "10.8.0.3", 2 << 20);
    assert!(joined(&wga, "send") > 0);
    let trains = joined(&wga, "send");
    traffic::tcp(&a, &b, "10.8.0.2", 2 << 20);
    assert_eq!((joined(&wga, "send"), wga.metric("fallbacks_total")), (trains, 1), "not asked again so soon");
    wga.found_no_fault();
}

#[test]
fn a_device_that_refuses_joined_packets_of_one_kind_gets_those_of_the_other() {
    for (refused, tcp, udp) in [("joined-tcp", 0, 1), ("joined-udp", 1, 0)] {
        let world = World::new();
        let (a, b) = world.pair();
        let (wga, wgb) = join((&a, &format!("{CORAX} --fail {refused}")), (&b, CORAX));
        a.ping("10.8.0.2");
        traffic::udp_trains(&b, &a, "10.8.0.1");
        let before = joined(&wga, "write");
        traffic::udp_trains(&b, &a, "10.8.0.1");
        assert_eq!(joined(&wga, "write") > before, udp == 1, "{refused}");
        traffic::tcp(&b, &a, "10.8.0.1", 2 << 20);
        let before = joined(&wga, "write");
        traffic::tcp(&b, &a, "fd08::1", 2 << 20);
        assert_eq!(joined(&wga, "write") > before, tcp == 1, "{refused}");
        assert_eq!((wga.metric("gso_writes_tcp"), wga.metric("gso_writes_udp")), (tcp, udp));
        assert_eq!(wga.metric("fallbacks_total"), 1);
        wga.found_no_fault();
        wgb.found_no_fault();
    }
}

#[test]
fn datagrams_that_the_kernel_leaves_uncut_arrive_joined() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, wgb) = join((&a, CORAX), (&b, CORAX));
    a.ping("10.8.0.2");
    for address in ["10.8.0.2", "fd08::2"] {
        let before = (wga.metric("tun_reads_gso_total"), joined(&wgb, "write"));
        traffic::udp_trains(&a, &b, address);
        let after = (wga.metric("tun_reads_gso_total"), joined(&wgb, "write"));
        assert!(after.0 >= before.0 + 10 && after.1 >= before.1 + 10, "{before:?} {after:?}");
    }
    wga.found_no_fault();
    wgb.found_no_fault();
}

#[test]
fn a_device_that_cannot_finish_checksums_is_no_obstacle() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, _wgb) = join((&a, CORAX), (&b, CORAX));
    // Trains fail there with EIO before Linux 6.11.
    a.run("ethtool -K eth0 tx off");
    a.ping("10.8.0.2");
    traffic::tcp(&a, &b, "10.8.0.2", 4 << 20);
    assert_eq!(wga.metric("drops_send_failed_total"), 0);
}

#[test]
fn a_path_that_is_too_small_for_trains_gets_fragments() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, _wgb) = join((&a, CORAX), (&b, CORAX));
    for host in [&a, &b] {
        host.run("ip link set eth0 mtu 1300");
    }
    a.ping("10.8.0.2");
    traffic::tcp(&a, &b, "10.8.0.2", 4 << 20);
    assert!(wga.metric("fallbacks_total") > 0, "the send failed with EMSGSIZE");
    assert_eq!(wga.metric("udp_segmentation"), 1, "other paths keep their trains");
    assert_eq!(wga.metric("drops_send_failed_total"), 0);
}

#[test]
fn offloads_are_used_where_they_are() {
    let world = World::new();
    let (a, b) = world.pair();
    let (wga, wgb) = join((&a, CORAX), (&b, CORAX));
    traffic::tcp(&a, &b, "10.8.0.2", 16 << 20);
    assert!(wga.metric("tun_reads_gso_total") > 0, "TSO on the TUN device");
    assert!(wga.metric("send_batches_64") > 0, "UDP_SEGMENT");
    assert!(wgb.metric("received_packets_total") > 2 * wgb.metric("receive_calls_total"), "UDP_GRO");
    assert!(wgb.metric("write_batches_64") > 0, "joined writes");
}
