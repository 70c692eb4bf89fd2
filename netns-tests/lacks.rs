//! What a node lacks is said at start, and nothing is half done.

use crate::agent::{CORAX, SECRET, SOON, await_ready};
use crate::await_::eventually;
use crate::lab::{Lab, Plan};
use crate::objects::{difference, everything};

/// How an agent is started, before the program's name and after it.
fn agent(lab: &Lab, before: &str, options: &str) -> String {
    let source = lab.source().display().to_string();
    format!(
        "env VPN_CONNECTION_PSK={SECRET} NO_COLOR=1 {before} timeout 20 {CORAX} agent --node-name cloud-1 --source {source} {options}"
    )
}

fn one_node() -> Lab {
    let mut lab = Lab::build(&[Plan::public("cloud", 1), Plan::nat("site", 1)]);
    lab.declare();
    lab.write();
    lab
}

#[test]
fn without_the_capability_the_agent_says_so_and_ends() {
    let lab = one_node();
    let space = &lab.node("cloud-1").space;
    let before = everything(space);
    let without = "setpriv --bounding-set -net_admin --inh-caps -net_admin";
    let effective = space.run(&format!("{without} grep CapEff /proc/self/status"));
    let bits = u64::from_str_radix(effective.trim_start_matches("CapEff:").trim(), 16).expect("hexadecimal");
    assert_eq!(bits & 1 << 12, 0, "it has CAP_NET_ADMIN: {effective}");
    let told = space.try_run(&agent(&lab, without, "")).expect_err("it ends");
    assert!(told.contains("no permission to change the network"), "{told}");
    assert!(told.contains("run as root, or give the capability CAP_NET_ADMIN"), "{told}");
    let plan = format!("{without} {CORAX} plan --node-name cloud-1 --source {}", lab.source().display());
    let told = space.try_run(&plan).expect_err("it ends");
    assert!(told.contains("CAP_NET_ADMIN"), "{told}");
    let told = space.try_run(&format!("{without} {CORAX} cleanup")).expect_err("it ends");
    assert!(told.contains("CAP_NET_ADMIN"), "{told}");
    let after = everything(space);
    let in_kernel = |all: &std::collections::BTreeSet<String>| -> Vec<String> {
        all.iter().filter(|line| !line.starts_with("file:")).cloned().collect()
    };
    assert_eq!(in_kernel(&before), in_kernel(&after), "{}", difference(&before, &after));
}

#[test]
fn the_kernels_wireguard_is_taken_where_there_is_one_and_refused_where_there_is_none() {
    let mut lab = one_node();
    let space = &lab.node("cloud-1").space;
    // Asking loads the module, where there is one.
    let there = space.try_run("ip link add probe type wireguard");
    if there.is_ok() {
        space.run("ip link del probe");
        lab.start_agent("cloud-1", &["--wireguard", "kernel"]);
        let space = &lab.node("cloud-1").space;
        await_ready(space);
        let link = space.json("ip -j -d link show raven-wg0");
        assert_eq!(link[0]["linkinfo"]["info_kind"], "wireguard", "{link}");
        return;
    }
    let told = space.try_run(&agent(&lab, "", "--wireguard kernel")).expect_err("it ends");
    assert!(told.contains("the kernel has no WireGuard"), "{told}");
    assert!(told.contains("--wireguard userspace"), "the remedy: {told}");
    assert!(!space.run("ip link").contains("raven"), "nothing is begun");
    // Who lets it choose has the other.
    lab.start_agent("cloud-1", &["--wireguard", "auto"]);
    let space = &lab.node("cloud-1").space;
    await_ready(space);
    let link = space.json("ip -j -d link show raven-wg0");
    assert_eq!(link[0]["linkinfo"]["info_kind"], "tun", "{link}");
    eventually("it answers", SOON, || space.try_run("wg show raven-wg0").map(drop));
}
