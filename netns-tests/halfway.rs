//! Agents that are killed halfway through a view.

use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::agent::{await_ready, metric};
use crate::lab::{Lab, paper};

/// Prefixes that change: so many take the kernel a while.
const CROWD: usize = 1000;

/// Gives a node a view in which all prefixes of a third domain are others than in that of `turn` before, kills its agent as
/// soon as the kernel tells of the first route of them, and starts another, which has to bring it to its end. Returns
/// whether that had anything left to do.
pub fn kill_halfway(lab: &mut Lab, name: &str, turn: u8, options: &[&str]) -> bool {
    let subnet = |number| format!("10.{turn}.{}.{}/26", number / 4, number % 4 * 64);
    let subnets: Vec<String> = (0..CROWD).map(subnet).collect();
    let named = |turn| format!("unreachable 10.{turn}.");
    let mut told = lab.node(name).space.spawn(&["ip", "monitor", "route"], |command| {
        command.stdout(Stdio::piped());
    });
    // Behind a NAT, so that another such domain's gateway has them with what is the relay's own, which flows go by.
    let mut third = paper("third", &subnets);
    for list in ["/spec/endpoints/0", "/status/activeEndpoints/0"] {
        third.pointer_mut(list).expect("it has one endpoint")["underNAT"] = true.into();
    }
    lab.write_file("third.json", &third.to_string());
    assert!(told.lines().any(|line| line.contains(&named(turn))), "the new view is being programmed");
    lab.end_agent(name, Signal::SIGKILL);
    lab.start_agent(name, options);
    let space = &lab.node(name).space;
    await_ready(space);
    let routes = space.run("ip route show table 9028");
    assert_eq!(routes.matches(&named(turn)).count(), CROWD, "{name}: {routes}");
    assert!(!routes.contains(&named(turn - 1)), "{name}: {routes}");
    metric(space, "corax_changes_total", &[]) > 0.0
}
