//! The demo, with the binary under test.

use std::process::Command;

use crate::agent::CORAX;

#[test]
fn the_demo_shows_every_pod_and_node_connected_with_every_pod() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/demo");
    let output = Command::new(script).args(["--check", "--binary", CORAX]).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{why}");
    assert_eq!(text, "", "--check prints failures only");
}
