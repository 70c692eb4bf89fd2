//! What becomes of a node whose state directory is damaged, full, read-only or gone: it starts, forwards and says what it
//! lost.

use std::net::IpAddr;

use nix::sys::signal::Signal;

use crate::agent::{CORAX, SOON, await_ready, problems};
use crate::await_::eventually;
use crate::chance::Chance;
use crate::lab::{Lab, Plan};

const NODE: &str = "site-1";

fn two_domains() -> Lab {
    let mut lab = Lab::start(&[Plan::public("cloud", 1), Plan::nat("site", 1)]);
    lab.everyone_reaches_everyone();
    lab
}

/// Starts the node's agent again and waits until the other domain is reached.
#[track_caller]
fn comes_back(lab: &mut Lab, manifests: bool) {
    let source = if manifests { lab.source() } else { lab.scratch().join("nowhere") };
    lab.start_agent_from(NODE, &source, &[]);
    await_ready(&lab.node(NODE).space);
    reaches(lab, lab.node("cloud-1").pod4());
    reaches(lab, lab.node("cloud-1").pod6());
}

#[track_caller]
fn reaches(lab: &Lab, to: IpAddr) {
    let pod = &lab.node(NODE).pod;
    eventually("the other domain is reached", SOON, || {
        pod.try_run(&format!("ping -n -q -c 1 -W 1 {to}")).map(drop)
    });
}

/// Shell that damages `$f` in ways that a power cut or a dying disk does.
fn damage(chance: &mut Chance, flips: bool) -> String {
    // More than the last line's end goes.
    let cut = chance.below(950);
    let flip = chance.below(100_000);
    let ways = [
        ": >$f".to_owned(),
        format!("truncate -s $(($(stat -c %s $f) * {cut} / 1000)) $f"),
        format!(
            "at=$(({flip} % $(stat -c %s $f))); byte=$(od -An -tu1 -j $at -N 1 $f)
             printf $(printf '\\\\%03o' $((byte ^ {}))) | dd of=$f bs=1 seek=$at conv=notrunc status=none",
            1 << chance.below(8)
        ),
    ];
    chance.of(if flips { &ways } else { &ways[..2] }).clone()
}

#[test]
fn a_torn_file_costs_no_start_and_is_told() {
    let mut lab = two_domains();
    let mut chance = Chance::new();
    let rounds = std::env::var("CORAX_TIMES").map_or(12, |text| text.parse().expect("a number"));
    for round in 0..rounds {
        // The key has no checksum: a bit that was flipped in it makes another key.
        let (file, flips) = [("snapshot", true), ("wireguard.key", false), ("clock", true)][round % 3];
        // Every other time as in a boot: nothing is left in the kernel. The key is there alone then, so it is not damaged.
        match (file, round / 3 % 2) {
            ("snapshot" | "clock", 1) => lab.lose_power(NODE),
            _ => lab.end_agent(NODE, Signal::SIGKILL),
        }
        let how = damage(&mut chance, flips);
        lab.node(NODE).space.sh(&format!("set -e; f=/var/lib/corax/{file}; {how}"));
        // Without manifests the snapshot is all there is: the generation before is as good here.
        comes_back(&mut lab, file != "snapshot");
        let told = problems(&lab.node(NODE).space);
        assert!(told.contains(file), "{how}: {told}");
        let log = std::fs::read_to_string(lab.log(NODE)).expect("there is a log");
        assert!(log.contains(file), "{how}: {log}");
        // What was damaged is made whole by what is known.
        lab.end_agent(NODE, Signal::SIGTERM);
        lab.start_agent(NODE, &[]);
        await_ready(&lab.node(NODE).space);
        let told = problems(&lab.node(NODE).space);
        assert!(!told.contains(file), "{how}, then started again: {told}");
    }
}

#[test]
fn a_snapshot_of_which_both_generations_are_damaged_costs_no_start_and_is_told() {
    let mut lab = two_domains();
    lab.lose_power(NODE);
    lab.node(NODE).space.sh("set -e; cd /var/lib/corax; truncate -s 99 snapshot; : >snapshot.previous");
    comes_back(&mut lab, true);
    // What is known now is kept; with nobody to ask it was that or nothing.
    lab.lose_power(NODE);
    comes_back(&mut lab, false);
    lab.end_agent(NODE, Signal::SIGKILL);
    lab.node(NODE).space.sh("set -e; cd /var/lib/corax; truncate -s 99 snapshot; : >snapshot.previous");
    // Nothing is known: the kernel's state stays as it is, and forwards.
    lab.start_agent_from(NODE, &lab.scratch().join("nowhere"), &[]);
    eventually("the snapshot is told of", SOON, || {
        let told = problems(&lab.node(NODE).space);
        if told.contains("snapshot") { Ok(()) } else { Err(told) }
    });
    reaches(&lab, lab.node("cloud-1").pod4());
}

#[test]
fn a_bit_that_is_flipped_in_the_key_is_told_as_another_key() {
    let mut lab = two_domains();
    lab.end_agent(NODE, Signal::SIGKILL);
    // A bit of the second digit, which WireGuard does not set itself; one that makes it another digit of base64.
    lab.node(NODE).space.sh(
        r#"f=/var/lib/corax/wireguard.key; digit=$(head -c 2 $f | tail -c 1)
        case $digit in [AZaz]) bit=2 ;; [+/]) bit=4 ;; *) bit=1 ;; esac
        printf "\\x$(printf %x $(($(printf %d "'$digit") ^ bit)))" | dd of=$f bs=1 seek=1 conv=notrunc status=none"#,
    );
    lab.start_agent(NODE, &[]);
    let space = &lab.node(NODE).space;
    eventually("the key is told of", SOON, || {
        let told = problems(space);
        if told.contains("public key") { Ok(()) } else { Err(told) }
    });
    let own = space.run(&format!("{CORAX} key"));
    assert!(problems(space).contains(own.trim()), "{own}");
}

#[test]
fn a_state_directory_that_is_full_or_read_only_or_gone_costs_no_start_and_is_told() {
    let happenings = [
        (
            "full",
            "cp -a /var/lib/corax /run/before; mount -t tmpfs -o size=256k,mode=700 tmpfs /var/lib/corax
             cp -a /run/before/. /var/lib/corax; dd if=/dev/zero of=/var/lib/corax/foreign 2>/dev/null; true",
        ),
        ("read-only", "mount --bind /var/lib/corax /var/lib/corax; mount -o remount,bind,ro /var/lib/corax"),
        ("gone, and nowhere to make it", "rm -rf /var/lib/corax; mount -o remount,ro /var/lib"),
    ];
    for (what, script) in happenings {
        let mut lab = two_domains();
        // As in a boot, nothing is left in the kernel; but where the disk has no key, the tunnel has it.
        match what {
            "gone, and nowhere to make it" => lab.end_agent(NODE, Signal::SIGKILL),
            _ => lab.lose_power(NODE),
        }
        lab.node(NODE).space.sh(script);
        comes_back(&mut lab, true);
        let space = &lab.node(NODE).space;
        let says_so = || {
            let told = problems(space);
            if told.contains("/var/lib/corax") { Ok(()) } else { Err(told) }
        };
        eventually(&format!("{what}: it says so"), SOON, says_so);
        // A new view that cannot be kept.
        lab.gateways.get_mut("cloud").expect("it is declared")["metadata"]["labels"] =
            serde_json::json!({ "a": "b" });
        lab.gateways
            .get_mut("cloud")
            .and_then(|gateway| gateway.pointer_mut("/status/nodes/0/subnets"))
            .and_then(|subnets| subnets.as_array_mut())
            .expect("subnets")
            .push("10.199.0.0/24".into());
        lab.write();
        let space = &lab.node(NODE).space;
        eventually("the new view is applied all the same", SOON, || {
            let routes = space.run("ip route show table 9028");
            if routes.contains("10.199.0.0/24") { Ok(()) } else { Err(routes) }
        });
        lab.everyone_reaches_everyone();
    }
}

#[test]
fn a_state_directory_that_is_removed_is_made_anew_with_the_key_that_runs() {
    let mut lab = two_domains();
    let space = &lab.node(NODE).space;
    let key = space.run(&format!("{CORAX} key"));
    lab.end_agent(NODE, Signal::SIGKILL);
    lab.node(NODE).space.run("rm -rf /var/lib/corax");
    comes_back(&mut lab, true);
    let space = &lab.node(NODE).space;
    assert_eq!(space.run(&format!("{CORAX} key")), key, "the running tunnel's");
    assert_eq!(space.run("stat -c %a /var/lib/corax").trim(), "700");
    // With nobody to ask from now on.
    lab.end_agent(NODE, Signal::SIGKILL);
    comes_back(&mut lab, false);
}

#[test]
fn a_state_directory_in_a_containers_own_layer_is_refused_with_the_remedy() {
    let mut lab = Lab::build(&[Plan::public("cloud", 1)]);
    lab.declare();
    lab.write();
    let space = &lab.node("cloud-1").space;
    space.sh("mkdir -p /run/upper /run/work /run/lower /var/lib/layer
         mount -t tmpfs tmpfs /run/upper; mkdir /run/upper/up /run/upper/work
         mount -t overlay overlay -o lowerdir=/run/lower,upperdir=/run/upper/up,workdir=/run/upper/work /var/lib/layer");
    let source = lab.source().display().to_string();
    let words =
        format!("{CORAX} agent --node-name cloud-1 --source {source} --state-dir /var/lib/layer/corax");
    let said = space.try_run(&words).expect_err("it does not start");
    assert!(said.contains("hostPath") && said.contains("DirectoryOrCreate"), "{said}");
    assert!(!space.run("ip -br link").contains("raven"), "nothing was made");
}
