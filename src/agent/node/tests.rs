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
    let decision = node.decide(&view, facts, true, &Desired::nothing());
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
