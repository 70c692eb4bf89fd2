//! What stays while the view is incomplete: the kernel's prefixes and peers that no domain of the view has. Whose they are is
//! not known, so nothing tells that they are gone.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::Desired;
use crate::key::PublicKey;
use crate::object::{Peer, RouteKey, TWIN_METRIC, Table};
use crate::observed::Observed;
use crate::prefix::Prefix;

/// Remote prefixes and peers as they are in the kernel, or were decided on last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Prefixes with a twin.
    pub prefixes: BTreeSet<Prefix>,
    /// Peers of the tunnel: keepalive, and allowed IPs.
    pub peers: BTreeMap<PublicKey, (u16, Vec<Prefix>)>,
}

impl Kept {
    /// What is there, and what was asked for before and may be missing for a moment.
    #[must_use]
    pub fn of(observed: &Observed, before: &Desired) -> Self {
        let entry = |key: &PublicKey, peer: &Peer| (*key, (peer.keepalive, peer.allowed.clone()));
        let asked_peers = before.tunnels.iter().flat_map(|(_, tunnel)| tunnel.peers.iter());
        let there_peers = observed.tunnels.values().flat_map(|tunnel| &tunnel.peers);
        Self {
            prefixes: steered(observed, before),
            peers: (asked_peers.map(|(key, peer)| entry(key, peer)))
                .chain(there_peers.map(|(key, seen)| entry(key, &seen.peer)))
                .collect(),
        }
    }
}

/// Prefixes with a twin in the kernel, or decided on last.
#[must_use]
pub fn steered(observed: &Observed, before: &Desired) -> BTreeSet<Prefix> {
    let twin = |key: &&RouteKey| key.table == Table::Remote && key.metric == TWIN_METRIC;
    let there = observed.routes.keys().filter(twin).map(|key| key.prefix);
    let asked = before.routes.keys().filter(twin).map(|key| key.prefix);
    there.chain(asked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Gateway;
    use crate::change::Change;
    use crate::desired::Options;
    use crate::facts::Facts;
    use crate::fake::FakeKernel;
    use crate::key::PresharedKey;
    use crate::plan::plan;
    use crate::sample::{demo, domain, key};
    use crate::topology::{Local, Topology};
    use crate::view::{Settings, View};

    fn desired(gateways: &[Gateway], node: &str, kept: Option<&Kept>) -> Desired {
        let view = View::build(gateways, &Settings::default(), None);
        let (node, facts) = (node.parse().unwrap(), Facts::default());
        let topology = Topology::of(&view, &Local { kept, ..Local::new(&node, &facts) });
        let options = Options {
            userspace: false,
            listen: None,
            key: key(node.as_str()),
            preshared: PresharedKey::from_bytes([1; 32]),
        };
        Desired::of(&topology, &facts, &options)
    }

    fn converged(desired: &Desired) -> FakeKernel {
        let mut kernel = FakeKernel::default();
        plan(desired, &kernel.state).iter().for_each(|change| kernel.apply(change).unwrap());
        kernel
    }

    /// The changes for which a file of the demo's site is the only thing known, or all but the domain `less`.
    fn changes(node: &str, known: &[Gateway]) -> Vec<Change> {
        let kernel = converged(&desired(&demo(), node, None));
        let kept = Kept::of(&kernel.state, &Desired::nothing());
        plan(&desired(known, node, Some(&kept)), &kernel.state)
    }

    #[test]
    fn what_no_domain_has_stays_with_path_twin_lock_and_peer() {
        let cloud = || demo().remove(0);
        let without_site: Vec<Gateway> = vec![cloud(), demo().remove(2)];
        for (node, known) in
            [("c1", vec![cloud()]), ("c2", vec![cloud()]), ("c1", without_site.clone()), ("c2", without_site)]
        {
            assert_eq!(changes(node, &known), [], "{node}");
        }
        // A relay's peer carries them too.
        let known = [cloud(), demo().remove(1)];
        assert_eq!(changes("s1", &known), []);
    }

    #[test]
    fn once_all_is_known_the_rest_goes() {
        let kernel = converged(&desired(&demo(), "c1", None));
        let changes = plan(&desired(&demo()[..2], "c1", None), &kernel.state);
        assert!(changes.iter().any(|change| matches!(change, Change::DeletePeer(..))), "{changes:?}");
    }

    #[test]
    fn what_a_domain_of_the_view_has_by_now_is_not_kept() {
        let kernel = converged(&desired(&demo(), "c1", None));
        let kept = Kept::of(&kernel.state, &Desired::nothing());
        // The box's prefix is the cloud's now, but for half of it.
        let cloud: crate::api::Gateway = domain("cloud")
            .node("c1", "10.0.0.1", &["10.10.1.0/24"])
            .node("c2", "10.0.0.2", &["10.10.21.0/25"])
            .public("c1", "203.0.113.1")
            .into();
        let desired = desired(&[cloud], "c1", Some(&kept));
        let twins: Vec<String> =
            Kept::of(&Observed::default(), &desired).prefixes.iter().map(ToString::to_string).collect();
        assert!(twins.contains(&"10.10.21.128/25".to_owned()), "{twins:?}");
        assert!(!twins.iter().any(|twin| twin == "10.10.21.0/24" || twin == "10.10.21.0/25"), "{twins:?}");
    }

    #[test]
    fn what_was_asked_for_stays_although_it_is_gone_from_the_kernel() {
        let before = desired(&demo(), "c1", None);
        let kept = Kept::of(&Observed::default(), &before);
        assert_eq!(desired(&demo()[..1], "c1", Some(&kept)).routes, before.routes);
    }
}
