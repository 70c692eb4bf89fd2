//! An uninstall leaves nothing.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;

use crate::agent::{CORAX, SECRET, SOON, await_ready, metrics, status};
use crate::await_::eventually;
use crate::lab::{Lab, Plan};
use crate::objects::{difference, everything, ours};
use crate::space::Space;

#[test]
fn cleanup_leaves_the_node_as_it_was_before_corax() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2), Plan::nat("site", 2).mesh()]);
    // Before Corax ever ran; `corax key` makes its state directory, so that comes after.
    let names = ["cloud-1", "cloud-2", "site-1", "site-2"];
    let before: Vec<_> = names.iter().map(|name| everything(&lab.node(name).space)).collect();
    lab.declare();
    lab.write();
    lab.start_agents();
    lab.everyone_reaches_everyone();
    for (name, before) in names.iter().zip(before) {
        lab.end_agent(name, Signal::SIGTERM);
        let space = &lab.node(name).space;
        assert_ne!(before, everything(space), "{name}: an exit is no uninstall");
        space.run(&format!("{CORAX} cleanup --state"));
        // A tunnel's process ends by itself, once its device is gone.
        eventually(&format!("{name} is as it was"), SOON, || {
            let after = everything(space);
            if before == after { Ok(()) } else { Err(difference(&before, &after)) }
        });
        // Twice does no harm.
        space.run(&format!("{CORAX} cleanup"));
    }
}

#[test]
fn cleanup_touches_nothing_of_others() {
    let mut lab = Lab::build(&[Plan::public("cloud", 1)]);
    lab.declare();
    let space = &lab.node("cloud-1").space;
    // In our tables, our range of ids, near our names, but not ours.
    space.sh("ip link add raven1 type bridge
         ip rule add prio 102 from 10.9.9.9 lookup 4711
         ip route add 10.9.9.0/24 via 172.16.0.254 table 4711
         ip nexthop add id 1073741900 via 172.16.0.254 dev eth0
         nft add table inet corax-other");
    let before = everything(space);
    lab.write();
    lab.start_agents();
    lab.end_agent("cloud-1", Signal::SIGTERM);
    let space = &lab.node("cloud-1").space;
    space.run(&format!("{CORAX} cleanup --state"));
    eventually("the node is as it was", SOON, || {
        let after = everything(space);
        let same = lines_but_state(&before) == lines_but_state(&after);
        if same { Ok(()) } else { Err(difference(&before, &after)) }
    });
}

fn lines_but_state(all: &std::collections::BTreeSet<String>) -> Vec<&String> {
    all.iter().filter(|line| !line.starts_with("file:")).collect()
}

#[test]
fn plan_without_the_secret_shows_no_change_of_it_and_says_so() {
    let lab = Lab::start(&[Plan::public("cloud", 1), Plan::nat("site", 1)]);
    let space = &lab.node("cloud-1").space;
    let source = lab.source().display().to_string();
    let words = format!(
        "{CORAX} plan --node-name cloud-1 --source {source} --service-cidr 10.96.0.0/16,fd00:10:96::/112 --exit-code"
    );
    let text = space.run(&words);
    assert!(
        !text.contains("wg set") && text.contains("# VPN_CONNECTION_PSK: is not given to plan"),
        "{text}"
    );
    let json: serde_json::Value = space.json(&format!("{words} -o json"));
    let problems = json["problems"].to_string();
    assert!(json["changes"] == serde_json::json!([]) && problems.contains("VPN_CONNECTION_PSK"), "{json}");
    // With the agent's, all is known; another one is a change.
    let with = |secret: &str| space.try_run(&format!("env VPN_CONNECTION_PSK={secret} {words}"));
    assert_eq!(with(SECRET).expect("nothing changes").trim(), "# nothing to change");
    let other = with("another").expect_err("it ends with 3");
    assert!(other.contains("preshared-key (hidden)"), "{other}");
}

#[test]
fn plan_writes_nothing_and_prints_lines_of_iproute2() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2), Plan::nat("site", 1)]);
    lab.declare();
    lab.write();
    let space = &lab.node("cloud-2").space;
    let before = everything(space);
    let source = lab.source().display().to_string();
    let text = space.run(&format!("{CORAX} plan --node-name cloud-2 --source {source}"));
    let after = everything(space);
    assert_eq!(lines_but_state(&before), lines_but_state(&after), "{}", difference(&before, &after));
    for line in [
        "ip link add raven0",
        "ip route replace unreachable 10.101.1.0/24 table 9028",
        "ip rule add priority 101",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
    let json: serde_json::Value =
        space.json(&format!("{CORAX} plan --node-name cloud-2 --source {source} -o json"));
    let mut all = problems_and_changes(&json);
    all.push('\n');
    assert_eq!(all, text);
}

/// What `corax plan` prints, of what it says as JSON.
fn problems_and_changes(json: &serde_json::Value) -> String {
    let texts = |key: &str| json[key].as_array().unwrap_or_else(|| panic!("{key}: {json}")).iter();
    let problem = |problem: &serde_json::Value| {
        let [object, what, remedy] =
            ["object", "what", "remedy"].map(|part| problem[part].as_str().expect("text"));
        format!("# {object}: {what} ({remedy})")
    };
    let changes = texts("changes").map(|change| change.as_str().expect("text").to_owned());
    texts("problems").map(problem).chain(changes).collect::<Vec<_>>().join("\n")
}

/// Carries a change of `corax plan` out with the programs that its lines name, as a person would who has the keys.
fn carry_out(space: &Space, change: &str) {
    let first = change.split_whitespace().next().expect("a word");
    if ["ip", "bridge", "wg", "sysctl", "corax"].contains(&first) {
        let preshared = format!("preshared-key <(printf {SECRET} | sha256sum | xxd -r -p | base64)");
        let lines = change
            .replace("private-key (hidden)", "private-key /var/lib/corax/wireguard.key")
            .replace("preshared-key (hidden)", &preshared)
            .replace("corax tunnel", &format!("{CORAX} tunnel"));
        space.sh(&format!("set -e\n{lines}"));
    } else {
        space.nft(change);
    }
}

#[test]
fn what_plan_prints_is_taken_by_the_programs_that_it_names_and_leaves_an_agent_only_the_table_to_seal() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2), Plan::nat("site", 1)]);
    lab.declare();
    lab.write();
    for name in ["cloud-1", "cloud-2"] {
        let space = &lab.node(name).space;
        space.run(&format!("{CORAX} key"));
        let planned = space.json(&format!(
            "env VPN_CONNECTION_PSK={SECRET} {CORAX} plan --node-name {name} --source {} \
             --service-cidr 10.96.0.0/16 --service-cidr fd00:10:96::/112 -o json",
            lab.source().display()
        ));
        let changes: Vec<&str> = planned["changes"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|line| line.as_str().expect("text"))
            .collect();
        let mut programs = BTreeSet::new();
        for change in &changes {
            programs.insert(change.split_whitespace().next().expect("a word").to_owned());
            carry_out(space, change);
        }
        let gateway = name == "cloud-1";
        for program in ["ip", "bridge", "sysctl"] {
            assert!(programs.contains(program), "{name}: no line of {program}");
        }
        assert!(programs.contains("wg") == gateway, "{name}: {programs:?}");
        assert!(changes.iter().any(|change| change.contains("table inet corax {")), "{name}: no table");
        let by_hand = ours(space);
        lab.start_agent(name, &[]);
        let space = &lab.node(name).space;
        await_ready(space);
        let by_the_agent = ours(space);
        let unsealed = |all: &BTreeSet<String>| -> BTreeSet<String> {
            all.iter().filter(|line| !is_of_a_seal(line)).cloned().collect()
        };
        let (by_hand, by_the_agent) = (unsealed(&by_hand), unsealed(&by_the_agent));
        assert!(by_hand == by_the_agent, "{name}:\n{}", difference(&by_hand, &by_the_agent));
        // What nobody has sealed may have been altered by anybody, and a TUN device has an address that the kernel made up.
        for (sample, count) in metrics(space) {
            if sample.starts_with("corax_changes_total") && count > 0.0 {
                let seal = sample.contains("object=\"nft_table\"");
                let made_up = sample.contains("object=\"address\"") && sample.contains("verb=\"delete\"");
                assert!(seal || (made_up && count <= 1.0), "{name}: {sample} {count}");
            }
        }
    }
    lab.start_agent("site-1", &[]);
    await_ready(&lab.node("site-1").space);
    lab.everyone_reaches_everyone();
}

/// The table's fingerprint and checksum, addresses by their form, by which the agent knows it again; and an address that the
/// kernel made up for a TUN device.
fn is_of_a_seal(line: &str) -> bool {
    (line.contains("elements = {") && line.contains(':') && !line.contains(['/', '.']))
        || (line.starts_with("raven-wg0") && line.contains("inet6 fe80:"))
}

#[test]
fn a_directory_that_others_use_too_is_left_as_it_is_and_loses_only_what_is_coraxs() {
    let space = Space::new("a node");
    space.sh("mkdir -p /var/lib/edge/snapshots /var/lib/edge/clockwork /var/lib/edge/pins
              echo precious | tee /var/lib/edge/snapshots/db /var/lib/edge/pins.pub /var/lib/edge/pins/db
              chmod 755 /var/lib/edge");
    let before = space.run("find /var/lib/edge -printf %p%m%u\n");
    let told = space.sh(&format!("{CORAX} key --state-dir /var/lib/edge 2>&1"));
    assert!(told.contains("mode 0755") && told.contains("chmod 0700 /var/lib/edge"), "{told}");
    assert_eq!(space.run("stat -c %a /var/lib/edge").trim(), "755");
    let state = "cleanup --state --state-dir /var/lib/edge";
    let planned = space.run(&format!("{CORAX} {state} --dry-run"));
    assert_eq!(planned, "rm /var/lib/edge/wireguard.key\n");
    let done = space.run(&format!("{CORAX} {state}"));
    assert!(done.starts_with(&planned) && done.contains("holds files of others"), "{done}");
    assert_eq!(space.run("find /var/lib/edge -printf %p%m%u\n"), before);
    // What never held anything of Corax is not Corax's to remove.
    space.sh(&format!(
        "mkdir /var/lib/empty; {CORAX} cleanup --state --state-dir /var/lib/empty; rmdir /var/lib/empty"
    ));
}

#[test]
fn originals_of_configurations_stay_until_they_are_put_back() {
    let space = Space::new("a node");
    space.sh("mkdir -p /var/lib/corax/cni; echo {} >/var/lib/corax/cni/10-pods.conflist.saved");
    let cleanup = format!("{CORAX} cleanup --state");
    let told = space.run(&cleanup);
    assert!(
        told.contains("/var/lib/corax/cni holds originals") && told.contains("corax cni uninstall"),
        "{told}"
    );
    assert_eq!(space.run("cat /var/lib/corax/cni/10-pods.conflist.saved").trim(), "{}");
    space.sh("rm -r /var/lib/corax/cni");
    assert!(space.run(&cleanup).contains("rmdir /var/lib/corax"));
}

#[test]
fn coraxs_own_directory_is_closed_whoever_made_it() {
    let space = Space::new("a node");
    // As kubelet makes one.
    space.sh("mkdir -m 755 /var/lib/corax");
    let told = space.sh(&format!("{CORAX} key 2>&1"));
    assert_eq!(told.lines().count(), 1, "{told}");
    assert_eq!(space.run("stat -c %a /var/lib/corax").trim(), "700");
}

#[test]
fn a_device_of_corax_with_another_name_is_told_of_and_no_cleanup_is_done_with_it() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2)]);
    lab.declare();
    lab.write();
    lab.start_agents();
    let space = &lab.node("cloud-2").space;
    space.sh("ip link set raven0 down; ip link set raven0 name vx0");
    eventually("it is told", SOON, || {
        let told = status(space)["problems"].to_string();
        if told.contains("ip link del vx0") { Ok(()) } else { Err(told) }
    });
    lab.end_agent("cloud-2", Signal::SIGTERM);
    let space = &lab.node("cloud-2").space;
    let told = space.try_run(&format!("{CORAX} cleanup")).expect_err("something is left");
    assert!(told.contains("ip link del vx0"), "{told}");
    space.sh("ip link del vx0");
    space.run(&format!("{CORAX} cleanup"));
}
