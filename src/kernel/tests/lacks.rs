//! What a kernel lacks, by injected answers to what is asked of it at start.

use corax_core::change::Change;
use corax_core::object::Device;
use corax_core::observed::Observed;
use corax_core::plan::plan;
use corax_core::sample::demo;

use super::fake::{Both, desire, with_its_link_set};
use super::support::*;
use crate::kernel::socket::Socket;
use crate::kernel::{FactsQuery, Kernel, Probes};
use crate::wireguard::key::PrivateKey;
use crate::wireguard::testing::isolated;

/// What is said where a kernel is refused at start.
fn refused(probes: Probes) -> String {
    in_namespace(move || {
        let Err(error) = Kernel::open_with(Socket::QUEUE, |_| Ok(probes)) else {
            panic!("{probes:?} is taken")
        };
        error.to_string()
    })
}

#[test]
fn a_kernel_that_cannot_serve_is_refused_with_the_remedy() {
    let floor = Probes { release: (5, 4), vxlan: true, nexthops: true };
    for release in [(4, 19), (5, 3), (3, 10)] {
        let (major, minor) = release;
        for nexthops in [false, true] {
            let told = refused(Probes { release, nexthops, ..floor });
            assert!(told.starts_with(&format!("linux {major}.{minor} is too old")), "{told}");
            assert!(told.contains("run Linux 5.4 or later"), "{told}");
        }
    }
    let told = refused(Probes { release: (6, 1), nexthops: false, ..floor });
    assert!(told.starts_with("linux 6.1 has no nexthop objects") && told.contains("CONFIG_INET"), "{told}");
    for release in [(5, 4), (5, 15), (6, 0), (7, 1)] {
        in_namespace(move || {
            let opened = Kernel::open_with(Socket::QUEUE, |_| Ok(Probes { release, ..floor }));
            assert!(opened.is_ok(), "{release:?}");
        });
    }
}

/// On a gateway in mesh, which has use of everything.
#[test]
fn without_vxlan_the_tunnel_its_rules_and_the_twins_stand() {
    isolated(|| {
        sh("ip link set lo up");
        let key = PrivateKey::generate();
        let mut both = Both::open(&key);
        both.real.probes_mut().vxlan = false;
        let problems = both.real.facts(&FactsQuery::default()).problems;
        let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(
            told.iter().any(|told| told.contains("no VXLAN") && told.contains("CONFIG_VXLAN")),
            "{told:?}"
        );
        // What has no VXLAN refuses the link; so does one that has the network's number in use.
        sh("ip link add other type vxlan id 200 dstport 4472; ip link set other up");
        let desired = desire(&demo(), "s1", &key);
        for round in 0..3 {
            let changes = with_its_link_set(plan(&desired, &both.observed()));
            let names_overlay = |change: &Change| change.to_string().contains(&Device::Overlay.to_string());
            let results = both.apply_to_the_kernel(&changes);
            for (change, result) in changes.iter().zip(results) {
                assert!(
                    result.is_ok() || names_overlay(change) || rests_on_nexthop(change),
                    "{round}: {change}: {result:?}"
                );
            }
        }
        let Observed { links, .. } = both.observed();
        assert_eq!(links.keys().copied().collect::<Vec<_>>(), [Device::WireGuard(0)]);
        for (family, remote) in [("-4", "10.10.1.0/24"), ("-4", "10.10.21.0/24"), ("-6", "fd00:10:1::/64")] {
            for table in [9028, 9029] {
                let routes = sh(&format!("ip {family} route show table {table}"));
                let has = |begin: &str| routes.lines().any(|line| line.starts_with(begin));
                assert!(has(&format!("unreachable {remote}")), "{routes}");
                assert!(has(&format!("{remote} dev raven-wg0")), "{routes}");
            }
        }
        let rules = sh("ip rule; ip -6 rule");
        for rule in [
            "99:\tfrom all fwmark 0x1028 lookup main",
            "100:\tfrom all iif raven-wg0 lookup 9027",
            "101:\tfrom all lookup 9028",
            "102:\tfrom all to 10.10.11.0/24 iif raven-wg0 lookup main",
            "103:\tfrom all iif raven-wg0 unreachable",
        ] {
            assert!(rules.lines().any(|line| line.starts_with(rule)), "{rule} is not in {rules}");
        }
        let shown = sh("wg show raven-wg0");
        assert!(shown.contains("listening port: 4500") && shown.contains("10.10.1.0/24"), "{shown}");
        let listed = sh("nft -j list chain inet corax locked");
        assert_eq!(listed.matches("plaintext_lock").count(), 2, "{listed}");
    });
}

/// A route over the overlay, by a nexthop that could not be made.
fn rests_on_nexthop(change: &Change) -> bool {
    change.to_string().contains(" nhid ")
}
