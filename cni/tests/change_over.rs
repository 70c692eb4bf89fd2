//! A node changes over from host-local, and back: running pods keep what they have and no address is given twice.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

#[path = "support/node.rs"]
mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use common::{Answer, Node, commands};
use serde_json::{Value, json};

const CONF: &str = "/run/conf/10-pods.conflist";
const INSTALL: [&str; 8] =
    ["cni", "install", "--conf-dir", "/run/conf", "--plugin", common::PLUGIN, "-o", "json"];
const UNINSTALL: [&str; 6] = ["cni", "uninstall", "--conf-dir", "/run/conf", "-o", "json"];

fn original() -> String {
    let ipam = json!({ "type": "host-local", "ranges": [[{ "subnet": "10.1.0.0/28" }]] });
    let bridge = json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": ipam });
    json!({ "cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, { "type": "tuning" }] }).to_string()
}

fn verb(node: &Node, verb: &str, container: &str, pod: &str) -> Answer {
    let (netns, name) = (format!("/run/netns/{container}"), format!("K8S_POD_NAME={pod}"));
    node.libcni(
        verb,
        &[CONF, container, &netns, "eth0", "IgnoreUnknown=1", "K8S_POD_NAMESPACE=default", &name],
    )
}

fn start(node: &Node, container: &str, pod: &str) -> String {
    node.netns(container);
    let answer = verb(node, "add", container, pod);
    assert!(answer.ok, "{answer:?}");
    answer.ips().remove(0)
}

fn stop(node: &Node, container: &str, pod: &str) {
    let answer = verb(node, "del", container, pod);
    assert!(answer.ok, "{answer:?}");
    node.sh(&format!("ip netns delete {container}"));
}

#[test]
fn a_running_pod_keeps_its_address_there_and_back() {
    let node = Node::new();
    node.write(CONF, &original());
    let homes = [start(&node, "a1", "a"), start(&node, "b1", "b"), start(&node, "c1", "c")];
    stop(&node, "b1", "b");
    node.sh("ip netns delete c1"); // dies without a DEL: host-local would leak its address

    let installed = node.commands(&INSTALL);
    assert!(installed.ok, "{installed:?}");
    let outcomes: Vec<_> =
        installed.json["imported"].as_array().unwrap().iter().map(|i| (&i["pod"], &i["outcome"])).collect();
    assert_eq!(
        outcomes,
        [(&json!("default/a"), &json!("pinned-and-held")), (&json!("default/c"), &json!("pinned"))]
    );
    let config: Value = serde_json::from_str(&node.read(CONF)).unwrap();
    assert_eq!(config["cniVersion"], "0.4.0");
    assert_eq!(config["plugins"][0]["ipam"]["type"], "corax-cni");
    assert_eq!(node.commands(&INSTALL).json["changed"], false, "again changes nothing");

    assert!(verb(&node, "check", "a1", "a").ok);
    stop(&node, "a1", "a");
    assert_eq!(start(&node, "a2", "a"), homes[0]);
    assert_eq!(start(&node, "c2", "c"), homes[2]);
    let listed = node.commands(&["pins", "list"]);
    assert!(listed.ok && listed.text.contains("held") && listed.text.contains("10.1.0.2"), "{listed:?}");

    let removed = node.commands(&UNINSTALL);
    assert!(removed.ok, "{removed:?}");
    assert_eq!(removed.json["networks"][0]["written_back"], 2);
    assert_eq!(node.read(CONF), original(), "to the byte");
    assert_eq!(removed.json["plugin"]["removed"], false);
    let stays = removed.json["plugin"]["stays"].as_str().unwrap();
    assert!(stays.starts_with("2 live sandboxes may need it"), "{removed:?}");
    let written = node.read(&format!("/var/lib/cni/networks/pods/{}", homes[0]));
    assert_eq!(written, "a2\r\neth0", "as host-local writes it");
    let new: Vec<_> = (0..5).map(|n| start(&node, &format!("n{n}"), &format!("n{n}"))).collect();
    assert!(
        !new.contains(&homes[0]) && !new.contains(&homes[2]),
        "{new:?} under host-local, {homes:?} still live"
    );
    stop(&node, "a2", "a");
    stop(&node, "c2", "c");
    let finished = node.commands(&UNINSTALL);
    let plugin = json!({ "file": "/opt/cni/bin/corax-cni", "removed": true, "stays": null });
    assert_eq!(finished.json, json!({ "networks": [], "plugin": plugin }), "{finished:?}");
    assert!(!node.path("/opt/cni/bin/corax-cni").exists(), "nobody needs it any more");
}

#[test]
fn one_changed_word_is_enough() {
    let node = Node::new();
    node.write(CONF, &original());
    let a = start(&node, "a1", "a");
    node.write(CONF, &original().replace("host-local", "corax-cni"));
    for n in 0..12 {
        assert_ne!(start(&node, &format!("n{n}"), &format!("n{n}")), a, "host-local gave it to a");
    }
    stop(&node, "a1", "a");
    assert_eq!(start(&node, "x1", "x"), a, "a's DEL freed it, for host-local too");
    let reserved = node.read(&format!("/var/lib/cni/networks/pods/{a}"));
    assert!(reserved.starts_with("x1\r\neth0"), "and ours are reserved there: {reserved}");
}

#[test]
fn a_host_local_that_is_still_asked_gives_no_address_of_ours() {
    let node = Node::new();
    node.write(CONF, &original());
    let old = start(&node, "a1", "a");
    // A sandbox on its way: its runtime has read the old configuration, and host-local comes last.
    node.write("/run/conf/old", &original());
    node.write(CONF, &original().replace("host-local", "corax-cni"));
    let ours = start(&node, "b1", "b");
    node.netns("c1");
    let late = node.libcni("add", &["/run/conf/old", "c1", "/run/netns/c1", "eth0"]);
    assert!(late.ok, "{late:?}");
    assert!(![old, ours].contains(&late.ips().remove(0)), "{late:?}");
}

#[test]
fn nothing_of_ours_stays_in_host_locals_directory() {
    let node = Node::new();
    node.write(CONF, &original());
    assert!(node.commands(&INSTALL).ok);
    // No pod has an address yet, and a runtime has read the old configuration.
    node.write("/run/conf/old", &original());
    let ours = start(&node, "a1", "a");
    node.netns("b1");
    let late = node.libcni("add", &["/run/conf/old", "b1", "/run/netns/b1", "eth0"]);
    assert_ne!(late.ips(), [ours], "{late:?}");
    let files = || node.sh("cd /var/lib/cni/networks/pods; grep -l corax-cni -r . | sort | xargs");
    assert_ne!(files(), "");
    // A disk that is full, or a writer killed: a file that says nothing is in nobody's way for long.
    node.sh("cd /var/lib/cni/networks/pods; touch -d '1 minute ago' 10.1.0.4 10.1.0.5 10.1.0.6");
    stop(&node, "a1", "a");
    assert_eq!(files(), "", "gone with its container");
    for n in 0..5 {
        start(&node, &format!("n{n}"), &format!("n{n}"));
    }
    node.reboot();
    assert_ne!(files(), "", "a boot leaves them");
    assert!(node.commands(&UNINSTALL).ok);
    assert_eq!(files(), "", "the network is host-local's again");
}

#[test]
fn uninstall_looks_where_the_configuration_keeps_its_things() {
    let node = Node::new();
    node.write(CONF, &original());
    let elsewhere = ["--state-dir", "/var/lib/other", "--run-dir", "/run/other"];
    assert!(node.commands(&[&INSTALL[..], &elsewhere].concat()).ok);
    start(&node, "a1", "a");
    let refused = node.commands(&UNINSTALL);
    let remedy = "run it with --state-dir /var/lib/other --run-dir /run/other --cache-dir /var/lib/cni";
    assert!(!refused.ok && refused.errors.contains(remedy), "{refused:?}");
    assert!(node.read(CONF).contains("corax-cni"), "nothing is done");
    let removed = node.commands(&[&UNINSTALL[..], &elsewhere].concat());
    assert_eq!(removed.json["networks"][0]["written_back"], 1, "{removed:?}");
    assert_eq!(node.sh("stat -c %a /var/lib/other"), "700");
}

#[test]
fn a_mode_that_is_asked_for_is_the_mode_or_is_refused() {
    let node = Node::new();
    node.write(CONF, &original());
    let install = |mode: &str| node.commands(&[&INSTALL[..], &["--mode", mode]].concat());
    let chained = || node.read(CONF).matches("corax-cni").count();
    assert!(install("both").ok && chained() == 2);
    assert_eq!(install("ipam").json["outcome"], "edited", "by nobody else");
    assert_eq!(chained(), 1);
    let refused = install("chain");
    assert!(!refused.ok && refused.errors.contains("`corax cni uninstall` first"), "{refused:?}");
    assert_eq!(chained(), 1);
}

#[test]
fn a_link_to_a_configuration_stays_one() {
    let node = Node::new();
    node.write("/run/real", &original());
    node.sh(&format!("ln -s /run/real {CONF}"));
    assert!(node.commands(&INSTALL).ok);
    assert_eq!(node.sh(&format!("readlink {CONF}")), "/run/real");
    assert!(node.read("/run/real").contains("corax-cni"));
    assert!(node.commands(&UNINSTALL).ok);
    assert_eq!(node.read("/run/real"), original());
}

#[test]
fn between_uninstall_and_the_runtimes_reload_an_add_says_try_again() {
    let node = Node::new();
    node.write(CONF, &original());
    assert!(node.commands(&INSTALL).ok);
    let ours = node.read(CONF);
    start(&node, "a1", "a");
    assert!(node.commands(&UNINSTALL).ok);
    node.write("/run/conf/old", &ours);
    node.netns("b1");
    let answer = node.libcni("add", &["/run/conf/old", "b1", "/run/netns/b1", "eth0"]);
    assert_eq!(answer.code(), 11, "{answer:?}");
    let remedy = "`corax cni install` takes it back";
    assert!(answer.json["details"].as_str().unwrap().contains(remedy), "{answer:?}");
    assert!(node.libcni("del", &["/run/conf/old", "a1", "/run/netns/a1", "eth0"]).ok);

    assert!(node.commands(&UNINSTALL).ok, "nobody holds anything now: the hand-over is finished");
    assert!(!node.path("/opt/cni/bin/corax-cni").exists());
    node.sh(&format!("cp {} /opt/cni/bin/corax-cni", common::PLUGIN));
    node.netns("b2"); // bridge left its interface in b1
    let answer = node.libcni("add", &["/run/conf/old", "b2", "/run/netns/b2", "eth0"]);
    assert!(answer.ok, "who puts the plugin back by hand means it: {answer:?}");
}

/// A process that goes with the test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_file_that_another_tool_rewrites_is_edited_again_and_that_is_reported() {
    let node = Node::new();
    node.write(CONF, &original());
    let mut arguments = INSTALL.to_vec();
    arguments.push("--watch");
    let mut watch = Running(node.command(commands()).args(arguments).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(watch.0.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["outcome"], "edited");
    let other = original().replace("tuning", "portmap");
    node.write("/run/conf/.new", &other);
    node.sh(&format!("mv /run/conf/.new {CONF}"));
    assert_eq!(next()["outcome"], "rewritten by another tool, edited again");
    let config: Value = serde_json::from_str(&node.read(CONF)).unwrap();
    assert_eq!(config["plugins"][0]["ipam"]["type"], "corax-cni");
    assert_eq!(config["plugins"][1]["type"], "portmap");
    let refused = node.commands(&UNINSTALL);
    assert!(
        !refused.ok && refused.errors.contains("watches the configurations: stop it first"),
        "{refused:?}"
    );
    // The directory goes and comes back, as `kubeadm reset` and a new CNI do it.
    node.sh("rm -rf /run/conf; mkdir /run/conf");
    node.write(CONF, &other);
    let line = lines.next().unwrap().unwrap();
    assert!(line.contains("edited again"), "{line}");
    assert!(node.read(CONF).contains("corax-cni"));
    drop(watch);
    assert!(node.commands(&UNINSTALL).ok);
    assert_eq!(node.read(CONF), other, "the other tool's is the original now");
}

#[test]
fn a_file_that_cannot_be_replaced_is_told_once_and_waited_for() {
    let node = Node::new();
    node.write(CONF, &original());
    // As a volume of one file is mounted into a container.
    node.sh(&format!("mount --bind {CONF} {CONF}"));
    let mut arguments = INSTALL.to_vec();
    arguments.push("--watch");
    let mut command = node.command(commands());
    let command = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut watch = Running(command.spawn().unwrap());
    let told = BufReader::new(watch.0.stderr.take().unwrap()).lines().next().unwrap().unwrap();
    assert!(told.contains(CONF), "{told}");
    let switches = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", watch.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
        line.unwrap().to_owned()
    };
    // Its own attempt is told by the kernel, too, and may still be taken in.
    let rests = (0..50).any(|_| {
        let before = switches();
        std::thread::sleep(std::time::Duration::from_millis(200));
        before == switches()
    });
    assert!(rests, "it tries again and again");
    node.sh(&format!("umount {CONF}; touch /run/conf/event"));
    let line = BufReader::new(watch.0.stdout.take().unwrap()).lines().next().unwrap().unwrap();
    assert!(line.contains("edited"), "{line}");
}

#[test]
fn pins_move_by_export_and_import_and_end_by_release() {
    let node = Node::new();
    node.write(CONF, &original());
    assert!(node.commands(&INSTALL).ok);
    let a = start(&node, "a1", "a");
    let exported = node.commands(&["pins", "export"]);
    node.write("/run/pins.json", &exported.text);
    let refused = node.commands(&["pins", "release", "default/a"]);
    assert!(!refused.ok && refused.errors.contains("is still held by container a1"), "{refused:?}");
    stop(&node, "a1", "a");
    assert!(node.commands(&["pins", "release", "default/a"]).ok);
    assert_eq!(node.commands(&["pins", "list", "-o", "json"]).json, json!([]));
    assert!(
        node.commands(&["pins", "import", "--from", "/run/pins.json"]).text.contains("1 of 1 pins are new")
    );
    assert_eq!(node.commands(&["pins", "import", "--from", "/run/pins.json"]).text, "0 of 1 pins are new\n");
    assert_eq!(start(&node, "a2", "a"), a);
    assert!(node.commands(&["pins", "export", "--host-local", "/run/back"]).ok);
    assert_eq!(node.read(&format!("/run/back/pods/{a}")), "a2\r\neth0");
    assert!(!node.commands(&["pins", "release", "default/nobody"]).ok);
}

#[test]
fn a_configuration_of_a_version_that_the_plugin_does_not_speak_is_left_alone() {
    let node = Node::new();
    for old in [r#""cniVersion":"0.2.0","#, r#""cniVersion":"0.1.0","#, ""] {
        let text = original().replace(r#""cniVersion":"0.4.0","#, old);
        assert_ne!(text, original());
        node.write(CONF, &text);
        let refused = node.commands(&INSTALL);
        assert!(!refused.ok, "pods could not start: {refused:?}");
        assert!(refused.errors.contains(CONF) && refused.errors.contains("its cniVersion is"), "{refused:?}");
        assert!(refused.errors.contains("set it to one of 0.3.0, 0.3.1"), "{refused:?}");
        assert_eq!(node.read(CONF), text);
    }
}

#[test]
fn no_configuration_is_left_naming_a_plugin_that_is_gone() {
    let node = Node::new();
    let had_us = original().replace(r#"{"type":"tuning"}"#, r#"{"type":"tuning"},{"type":"corax-cni"}"#);
    assert_ne!(had_us, original());
    node.write(CONF, &had_us);
    assert!(node.commands(&INSTALL).ok);
    // Another network's, which this command is told to leave alone.
    let other = had_us.replace(r#""name":"pods""#, r#""name":"other""#);
    node.write("/run/conf/20-other.conflist", &other);
    let removed = node.commands(&[&UNINSTALL[..], &["--network", "pods"]].concat());
    assert!(removed.ok && !node.read(CONF).contains("corax-cni"), "{removed:?} {}", node.read(CONF));
    let stays = removed.json["plugin"]["stays"].as_str().unwrap();
    assert!(stays.contains("20-other.conflist still names it"), "{removed:?}");
    assert!(node.path("/opt/cni/bin/corax-cni").exists(), "the other network needs it");
    assert!(node.commands(&UNINSTALL).ok);
    assert!(!node.read("/run/conf/20-other.conflist").contains("corax-cni"));
    assert!(!node.path("/opt/cni/bin/corax-cni").exists());
}

#[test]
fn pins_that_cannot_be_read_are_no_empty_list() {
    let node = Node::new();
    assert_eq!(node.commands(&["pins", "list", "-o", "json"]).json, json!([]), "no pod was pinned yet");
    let refused = |arguments: &[&str], what: &str| {
        for command in ["list", "export"] {
            let answer = node.commands(&[&["pins", command], arguments].concat());
            assert!(!answer.ok && answer.text.is_empty(), "{command} {arguments:?}: {answer:?}");
            assert!(
                answer.errors.contains("the pins cannot be read") && answer.errors.contains(what),
                "{answer:?}"
            );
        }
    };
    refused(&["--state-dir", "/nowhere"], "/nowhere");
    node.sh("mkdir /var/lib/corax/pins");
    refused(&[], "/var/lib/corax/pins");
    node.sh("rmdir /var/lib/corax/pins; mkdir -p /run/corax/holds");
    refused(&[], "/run/corax/holds");
}

#[test]
fn install_says_which_file_or_network_is_in_the_way() {
    let node = Node::new();
    let install = |more: &[&str]| {
        let answer = node.commands(&[&["cni", "install", "--conf-dir", "/run/conf"], more].concat());
        assert!(!answer.ok, "{more:?}: {answer:?}");
        answer.errors
    };
    node.write(CONF, &original());
    let before = node.sh("sha256sum /opt/cni/bin/corax-cni");
    node.write("/run/text", "no program");
    for plugin in ["/run/text", "/bin/true"] {
        let errors = install(&["--plugin", plugin]);
        assert!(errors.contains(&format!("plugin {plugin} is none that this node can run")), "{errors}");
    }
    assert_eq!(node.sh("sha256sum /opt/cni/bin/corax-cni"), before, "the old one stays");
    assert_eq!(node.read(CONF), original());
    let errors = install(&["--plugin", common::PLUGIN, "--network", "y"]);
    assert!(
        errors.contains("of network y in /run/conf: /run/conf/10-pods.conflist is of network pods"),
        "{errors}"
    );
    node.write(CONF, "{");
    let errors = install(&["--plugin", common::PLUGIN]);
    assert!(errors.contains(&format!("{CONF}: it is no JSON")), "{errors}");
}

#[test]
fn import_says_of_each_pin_that_it_refuses_why() {
    let node = Node::new();
    let pin = |pod: &str, addresses: &[&str]| {
        json!({ "network": "pods", "namespace": "default", "pod": pod, "interface": "eth0", "addresses": addresses,
            "state": "free", "since": 1 })
    };
    let import = |pins: Value, more: &[&str]| {
        node.write("/run/pins.json", &pins.to_string());
        let answer = node.commands(&[&["pins", "import", "--from", "/run/pins.json"], more].concat());
        assert!(answer.ok, "{answer:?}");
        answer
    };
    let first = import(json!([pin("a", &["10.1.0.2"]), pin("b", &["10.1.0.2"])]), &["-o", "json"]);
    let refused = |pod: &str, reason: &str| json!({ "network": "pods", "pod": format!("default/{pod}"), "interface": "eth0", "reason": reason });
    let twice = refused("b", "10.1.0.2 is pinned to pod default/a");
    assert_eq!(first.json, json!({ "pins": 2, "new": 1, "refused": [twice] }));
    let again =
        json!([pin("a", &["10.1.0.2"]), pin("a", &["10.1.0.9"]), pin("b", &["10.1.0.2"]), pin("c", &[])]);
    assert_eq!(
        import(again, &[]).text,
        "0 of 4 pins are new\n\
         refused: eth0 of pod default/a on network pods: the pod is pinned to 10.1.0.2 already\n\
         refused: eth0 of pod default/b on network pods: 10.1.0.2 is pinned to pod default/a\n\
         refused: eth0 of pod default/c on network pods: it has no address\n"
    );
}
