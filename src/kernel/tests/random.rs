//! Whatever happens, in whatever order: the mirror is what a fresh dump reads.

use std::time::{SystemTime, UNIX_EPOCH};

use corax_core::change::Change;

use super::support::*;
use crate::kernel::{Kernel, Probes};

/// Random numbers that are the same in every run of one seed (xorshift64).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        // Zero would give nothing but zeros, and the first numbers of small seeds, or of neighbours, are alike.
        let mut random = Self(seed | 1 << 63);
        for _ in 0..16 {
            random.below(1);
        }
        random
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

/// What others do to a node, and what a person does by mistake.
const MISHAPS: [&str; 36] = [
    "ip link set raven0 down",
    "ip link set raven0 up",
    "ip link del raven0",
    "ip link set raven0 mtu 1300",
    "ip link set raven0 mtu 1000",
    "ip link set raven0 mtu 1420",
    "ip link set raven0 address aa:0f:00:00:00:77",
    "ip link set raven0 down name lost; ip link set lost up",
    "ip link set lost down name raven0; ip link set raven0 up",
    // A link that is down changes its alias in silence.
    "ip link set raven0 up; ip link set raven0 alias ''",
    "ip addr flush dev raven0",
    "ip addr del 10.10.4.0/32 dev raven0",
    "ip addr add 10.10.5.1/24 dev raven0",
    "ip -6 addr flush dev raven0",
    "ip neigh flush dev raven0 nud permanent",
    "ip neigh replace 240.0.0.2 lladdr 02:00:00:00:00:02 dev raven0",
    "ip rule flush",
    "ip -6 rule flush",
    "ip rule add priority 101 lookup 9028 protocol 90",
    "ip rule add priority 300 lookup main",
    "ip route flush table 9027",
    "ip -6 route flush table 9028",
    "ip route replace unreachable 10.0.2.0/24 table 9027",
    "ip route replace 10.20.0.0/16 dev raven0 table 9028 protocol 90 metric 5",
    "ip -6 route append unreachable fd00:20::/32 table 9028 metric 1024 protocol 90",
    "ip nexthop flush",
    "ip nexthop del id 1073741826",
    "ip nexthop replace id 1073741827 blackhole",
    "bridge fdb del aa:0f:00:00:00:02 dev raven0",
    "bridge fdb replace aa:0f:00:00:00:03 dev raven0 dst 172.16.0.77 dynamic",
    "bridge fdb append 00:00:00:00:00:00 dev raven0 dst 172.16.0.77",
    // Without an address that goes, this is silent.
    "ip addr add fd00:99::1/64 dev raven0 nodad && echo 1 > /proc/sys/net/ipv6/conf/raven0/disable_ipv6",
    "echo 1 > /proc/sys/net/ipv4/conf/raven0/rp_filter; echo 0 > /proc/sys/net/ipv4/ip_forward",
    "nft flush ruleset",
    "nft flush chain inet corax locked",
    "nft add element inet corax own4 '{ 10.77.0.0/16 }'; nft flush set inet corax remote6",
];

/// Some seeds, new ones in each run; `CORAX_SEED` is the first of them where it is set.
fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let first = match std::env::var("CORAX_SEED") {
        Ok(text) => text.parse().expect("CORAX_SEED is a number"),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64),
    };
    (0..count).map(move |number| first.wrapping_add(number)).inspect(|seed| eprintln!("CORAX_SEED={seed}"))
}

fn play(seed: u64, steps: usize, queue: Option<usize>) {
    in_namespace(move || {
        let mut random = Random::new(seed);
        let mut kernel = match queue {
            Some(queue) => Kernel::open_with(queue, Probes::ask).unwrap(),
            None => Kernel::open().unwrap(),
        };
        let changes = every_class();
        apply(&mut kernel, &changes);
        let mut overrun = false;
        for step in 0..steps {
            let what = match random.below(4) {
                0 => {
                    // All of it, as far as it can be done.
                    let _ = kernel.apply(&changes, &mut nowhere);
                    "everything".to_owned()
                }
                1 => {
                    let change = &changes[random.below(changes.len())];
                    let change = if random.below(2) == 0 { Some(change.clone()) } else { opposite(change) };
                    let chosen: Vec<Change> = change.into_iter().collect();
                    let _ = kernel.apply(&chosen, &mut nowhere);
                    format!("{chosen:?}")
                }
                _ => {
                    let lines = MISHAPS[random.below(MISHAPS.len())];
                    try_sh(&format!("set +e; {lines}"));
                    lines.to_owned()
                }
            };
            // Some steps pass before anybody looks.
            if random.below(3) != 0 {
                let drained = kernel.drain();
                overrun |= drained.overrun;
                assert!(drained.errors.is_empty(), "{:?}", drained.errors);
                assert_mirror_is_fresh(&mut kernel, &format!("step {step} of seed {seed}: {what}"));
            }
        }
        if queue.is_some() {
            assert!(overrun, "the queue was never full");
        }
    });
}

#[test]
fn the_mirror_is_the_kernel_after_every_random_step() {
    for seed in seeds(6) {
        play(seed, 60, None);
    }
}

#[test]
fn the_mirror_is_the_kernel_also_where_events_are_lost() {
    for seed in seeds(3) {
        play(seed, 40, Some(2048));
    }
}

#[test]
fn many_changes_at_once_are_all_seen() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        let mut changes = vec![put_overlay()];
        changes.extend((2..402).flat_map(member));
        apply(&mut kernel, &changes);
        let observed = kernel.observed();
        assert_eq!((observed.fdb.len(), observed.routes.len()), (400, 800));
        assert_mirror_is_fresh(&mut kernel, "many changes");
        let deletes: Vec<Change> = changes.iter().rev().filter_map(opposite).collect();
        apply(&mut kernel, &deletes);
        assert_eq!(*kernel.observed(), Default::default());
        // And the events after them.
        apply(&mut kernel, &[put_overlay()]);
        sh("bridge fdb add aa:0f:00:00:00:09 dev raven0 dst 172.16.0.9");
        assert!(kernel.drain().ours);
        assert_eq!(kernel.observed().fdb.get(&mac(9)), Some(&address("172.16.0.9")));
    });
}
