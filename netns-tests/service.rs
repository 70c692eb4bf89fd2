//! The unit for systemd, `deploy/corax.service`.

use std::path::Path;
use std::process::Command;

use crate::agent::{CORAX, SECRET, await_ready};
use crate::lab::{Lab, Plan};

const INSTALLED: &str = "/usr/local/bin/corax";
const SOURCE: &str = "/etc/corax/gateways";

fn unit() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/corax.service");
    std::fs::read_to_string(path).expect("it is there")
}

/// What is set in the unit's text, in order.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

#[test]
fn systemd_takes_the_unit() {
    let directory = tempfile::tempdir().expect("there is room");
    let file = directory.path().join("corax.service");
    let unit = unit();
    assert!(unit.contains(INSTALLED));
    std::fs::write(&file, unit.replace(INSTALLED, CORAX)).expect("it is ours");
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&file)
        .output()
        .unwrap_or_else(|error| panic!("cannot run systemd-analyze: {error}: apt-get install systemd"));
    let said = String::from_utf8_lossy(&output.stderr);
    let of_it: Vec<_> = said.lines().filter(|line| line.contains("corax")).collect();
    assert!(output.status.success() && of_it.is_empty(), "{said}");
}

#[test]
fn a_restart_by_systemd_ends_the_agent_alone_and_a_boot_waits_for_no_network() {
    let unit = unit();
    // The tunnel's process is in a session of its own, but in the unit's control group.
    assert_eq!(values(&unit, "KillMode"), ["process"]);
    assert_eq!(values(&unit, "OOMPolicy"), ["continue"], "nor does the end of one end the other");
    assert_eq!(values(&unit, "Restart"), ["always"]);
    assert_eq!(values(&unit, "StartLimitIntervalSec"), ["0"], "however often");
    for key in ["After", "Wants", "Requires"] {
        assert!(values(&unit, key).iter().all(|units| !units.contains("online")), "{key}");
    }
}

#[test]
fn the_units_command_runs_an_agent() {
    let mut lab = Lab::build(&[Plan::public("cloud", 1)]);
    lab.declare();
    lab.write();
    let unit = unit();
    let command = values(&unit, "ExecStart").concat().replace(INSTALLED, CORAX);
    let command = command.replace(SOURCE, &lab.source().display().to_string());
    // Without a file that says more.
    let words: Vec<_> = command.split(' ').filter(|word| *word != "$CORAX_OPTIONS").collect();
    let environment = values(&unit, "Environment").concat();
    assert!(environment.contains("NODE_NAME=%H") && environment.contains("CORAX_OPTIONS="), "{environment}");
    let space = &lab.node("cloud-1").space;
    let _agent = space.spawn(&words, |command| {
        command.env("NODE_NAME", "cloud-1").env("VPN_CONNECTION_PSK", SECRET);
    });
    await_ready(space);
}
