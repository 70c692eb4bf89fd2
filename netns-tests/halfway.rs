//! Agents that are killed halfway through a view.

use std::process::Stdio;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::agent::{SOON, await_ready, metric};
use crate::await_::{eventually, patience};
use crate::lab::Lab;
use crate::manifests::paper;
use crate::space::{Process, Space};

/// Prefixes that change: so many take the kernel a while.
const CROWD: usize = 1000;

/// Gives a node a view in which all prefixes of a third domain are others than in that of `turn` before, kills its agent as
/// soon as the kernel tells of the first route of them, and starts another, which has to bring it to its end. Returns
/// whether that had anything left to do.
pub fn kill_halfway(lab: &mut Lab, name: &str, turn: u8, options: &[&str]) -> bool {
    let subnet = |number| format!("10.{turn}.{}.{}/26", number / 4, number % 4 * 64);
    let subnets: Vec<String> = (0..CROWD).map(subnet).collect();
    let named = |turn| format!("unreachable 10.{turn}.");
    let told = Routes::watch(&lab.node(name).space);
    // Behind a NAT, so that another such domain's gateway has them with what is the relay's own, which flows go by.
    let mut third = paper("third", &subnets);
    for list in ["/spec/endpoints/0", "/status/activeEndpoints/0"] {
        third.pointer_mut(list).expect("it has one endpoint")["underNAT"] = true.into();
    }
    lab.write_file("third.json", &third.to_string());
    told.until(&named(turn));
    lab.end_agent(name, Signal::SIGKILL);
    lab.start_agent(name, options);
    let space = &lab.node(name).space;
    await_ready(space);
    let routes = space.run("ip route show table 9028");
    assert_eq!(routes.matches(&named(turn)).count(), CROWD, "{name}: {routes}");
    assert!(!routes.contains(&named(turn - 1)), "{name}: {routes}");
    metric(space, "corax_changes_total", &[]) > 0.0
}

/// What `ip monitor route` tells.
struct Routes {
    lines: Receiver<String>,
    _process: Process,
}

impl Routes {
    /// Listens from now on: a flood that finds the monitor at its beginning ends it.
    fn watch(space: &Space) -> Self {
        let mut process = space.spawn(&["ip", "monitor", "route"], |command| {
            command.stdout(Stdio::piped());
        });
        let (tell, lines) = mpsc::channel();
        let told = process.lines();
        std::thread::spawn(move || told.take_while(|line| tell.send(line.clone()).is_ok()).for_each(drop));
        let this = Self { lines, _process: process };
        eventually("`ip monitor route` listens", SOON, || {
            space.run("ip route add blackhole 192.0.2.99 table 4242");
            space.run("ip route del blackhole 192.0.2.99 table 4242");
            let line =
                this.lines.recv_timeout(Duration::from_millis(100)).map_err(|error| error.to_string())?;
            if line.contains("192.0.2.99") { Ok(()) } else { Err(line) }
        });
        this
    }

    /// Returns when a line has `what` in it.
    fn until(&self, what: &str) {
        let line = || self.lines.recv_timeout(patience(SOON)).expect("the new view is being programmed");
        while !line().contains(what) {}
    }
}
