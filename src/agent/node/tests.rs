use clap::Parser;
use corax_core::sample::demo;
use corax_core::view::{Settings, View};

use super::*;
use crate::kernel::tests::support::{in_namespace, sh};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: NodeArgs,
}

/// A node of the sample's cloud, converged.
fn member() -> (Node, Decision) {
    sh("ip link add eth0 type veth peer name far
        ip link set eth0 up; ip link set far up; ip addr add 10.0.0.2/24 dev eth0");
    let line = Line::parse_from(["corax", "--node-name", "c2", "--source", "/nowhere", "--mesh"]);
    let mut node = Node::open(line.args, Some(PrivateKey::generate())).unwrap();
    let view = View::build(&demo(), &Settings::default(), None);
    let facts = node.facts(&view);
    let decision = node.decide(&view, facts, Known::All, None, Desired::nothing());
    let converged = node.converge(&decision.desired);
    assert!(converged.unsure.is_none() && !converged.done.is_empty(), "{:?}", converged.unsure);
    (node, decision)
}

fn told(converged: &Converged) -> Vec<String> {
    converged.done.iter().map(|step| format!("{} {:?}", step.change, step.error)).collect()
}

#[test]
fn what_a_dump_missed_is_read_again_and_not_done_for_ever() {
    in_namespace(|| {
        let (mut node, decision) = member();
        // What is there makes no event when it is made once more: only reading shows it.
        let observed = node.kernel.observed_mut();
        let element = *observed.elements.iter().next().unwrap().0;
        observed.elements.remove(&element);
        let neighbour = *observed.neighbours.iter().next().unwrap().0;
        observed.neighbours.remove(&neighbour);
        let converged = node.converge(&decision.desired);
        assert!(converged.unsure.is_none(), "{:?}", converged.unsure);
        assert_eq!(converged.done.len(), 2, "{:?}", told(&converged));
        assert!(node.converge(&decision.desired).done.is_empty());
    });
}

#[test]
fn who_is_asked_for_is_one_of_each_network_and_one_beyond() {
    let site = corax_core::sample::domain("site")
        .node("a", "10.0.0.1", &["10.1.0.0/24"])
        .node("b", "10.0.0.2", &["10.1.1.0/24"])
        .node("c", "10.0.0.3", &["10.1.2.0/24"])
        .node("d", "10.0.8.1", &["10.1.3.0/24"])
        .node("e", "10.0.8.2", &["10.1.4.0/24"])
        .node("f", "172.16.0.1", &["10.1.5.0/24"])
        .node("g", "172.16.0.2", &["10.1.6.0/24"])
        .public("c", "198.51.100.1");
    let view = View::build(&[site.into()], &Settings::default(), None);
    let domain = view.domains.values().next().unwrap();
    let networks = ["10.0.0.0/16", "10.0.8.0/24", "192.168.7.0/24"]
        .map(|network| (network.parse().unwrap(), String::new()))
        .into();
    let asked = |node: &str, all| {
        let asked = spoken_to(domain, &node.parse().unwrap(), all, &networks);
        asked.iter().map(|(node, _)| node.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(asked("a", true), ["f", "c", "d"], "the gateway before the others of its network");
    assert_eq!(asked("a", false), ["c"]);
    assert_eq!(asked("c", true), ["f", "a", "d"]);
    assert_eq!(asked("c", false), [""; 0]);
}
