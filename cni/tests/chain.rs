//! Real plugins, driven by libcni as a runtime drives them, results cached: bridge, ptp, host-local, portmap, tuning.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

#[path = "support/node.rs"]
mod common;

use common::{Answer, Node};
use serde_json::{Value, json};

const ARGS: [&str; 2] = ["IgnoreUnknown=1", "K8S_POD_NAMESPACE=default"];

fn conflist(version: &str, plugins: Value) -> String {
    json!({ "cniVersion": version, "name": "pods", "plugins": plugins }).to_string()
}

fn bridge(ipam: Value) -> Value {
    json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "mtu": 1450, "ipam": ipam })
}

fn ours(subnets: &[&str]) -> Value {
    let ranges: Vec<_> = subnets.iter().map(|s| json!([{ "subnet": s }])).collect();
    json!({ "type": "corax-cni", "ranges": ranges, "routes": [{ "dst": "0.0.0.0/0" }] })
}

struct Runtime {
    node: Node,
}

impl Runtime {
    fn new(conflist: &str) -> Self {
        let node = Node::new();
        node.write("/run/conf/pods.conflist", conflist);
        Self { node }
    }

    fn verb(&self, verb: &str, container: &str, pod: &str, more: &[&str]) -> Answer {
        let netns = format!("/run/netns/{container}");
        let name = format!("K8S_POD_NAME={pod}");
        let mut arguments = vec!["/run/conf/pods.conflist", container, &netns, "eth0"];
        arguments.extend(ARGS);
        arguments.push(&name);
        arguments.extend(more);
        self.node.libcni(verb, &arguments)
    }

    fn start(&self, container: &str, pod: &str) -> Answer {
        self.node.netns(container);
        let answer = self.verb("add", container, pod, &[]);
        assert!(answer.ok, "{container} of {pod}: {answer:?}");
        answer
    }

    fn stop(&self, container: &str, pod: &str) {
        let answer = self.verb("del", container, pod, &[]);
        assert!(answer.ok, "{container} of {pod}: {answer:?}");
        self.node.sh(&format!("ip netns delete {container}"));
    }
}

#[test]
fn pods_under_bridge_and_portmap_come_home_and_reach_each_other() {
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    let runtime =
        Runtime::new(&conflist("1.0.0", json!([bridge(ours(&["10.1.0.0/24", "fd00:1::/64"])), portmap])));
    let home = runtime.start("c1", "web-0").ips();
    runtime.start("c2", "web-1");
    assert_eq!(home, ["10.1.0.2", "fd00:1::2"]);
    runtime.node.sh("ip netns exec c2 ping -c1 -w20 10.1.0.2");
    assert!(runtime.verb("check", "c1", "web-0", &[]).ok);
    runtime.stop("c1", "web-0");
    assert_eq!(runtime.start("c3", "web-0").ips(), home);
    // Within a second of the last answer a neighbour's entry takes no announcement of another MAC (locktime).
    runtime.node.sh("ip netns exec c2 ip neigh flush dev eth0; ip netns exec c2 ping -c1 -w20 10.1.0.2");

    runtime.node.reboot();
    assert_eq!(runtime.start("c4", "web-1").ips(), ["10.1.0.3", "fd00:1::3"]);
    assert_eq!(runtime.start("c5", "web-0").ips(), home);
    // The runtime tidies up what the boot has killed, late and without namespaces: results are in its cache.
    for (container, pod) in [("c2", "web-1"), ("c3", "web-0")] {
        assert!(runtime.verb("del", container, pod, &[]).ok);
    }
    assert!(runtime.verb("check", "c5", "web-0", &[]).ok);
}

#[test]
fn a_port_is_mapped_to_the_pinned_address() {
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    let runtime = Runtime::new(&conflist("0.4.0", json!([bridge(ours(&["10.1.0.0/24"])), portmap])));
    runtime.node.netns("c1");
    let mapping = r#"cap:portMappings=[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]"#;
    let answer = runtime.verb("add", "c1", "web-0", &[mapping]);
    assert!(answer.ok, "{answer:?}");
    let rules = runtime.node.sh("iptables-save -t nat");
    assert!(rules.contains("--to-destination 10.1.0.2:80"), "{rules}");
    assert!(runtime.verb("del", "c1", "web-0", &[mapping]).ok);
}

#[test]
fn pods_under_ptp_come_home() {
    let ptp = json!({ "type": "ptp", "ipam": ours(&["10.1.0.0/24"]) });
    let runtime = Runtime::new(&conflist("0.3.1", json!([ptp])));
    let home = runtime.start("c1", "web-0").ips();
    runtime.node.sh("ip netns exec c1 ping -c1 -w20 10.1.0.1");
    runtime.stop("c1", "web-0");
    runtime.start("c2", "web-1");
    assert_eq!(runtime.start("c3", "web-0").ips(), home);
}

#[test]
fn a_main_plugin_that_fails_leaves_no_address_behind() {
    let runtime = Runtime::new(&conflist("1.0.0", json!([bridge(ours(&["10.1.0.0/30"]))])));
    let answer = runtime.verb("add", "c1", "web-0", &[]);
    assert!(!answer.ok, "there is no namespace: {answer:?}");
    assert_eq!(runtime.start("c2", "web-1").ips(), ["10.1.0.2"]);
}

#[test]
fn in_a_chain_it_passes_the_result_on_and_sets_the_routes_mtu() {
    let host_local =
        json!({ "type": "host-local", "subnet": "10.1.0.0/24", "routes": [{ "dst": "0.0.0.0/0" }] });
    let plugins =
        json!([bridge(host_local.clone()), { "type": "tuning" }, { "type": "corax-cni", "mtu": 1370 }]);
    let runtime = Runtime::new(&conflist("1.0.0", plugins));
    let with = runtime.start("c1", "web-0").json;
    let mtu = runtime.node.sh("ip -n c1 -j route show default");
    assert_eq!(serde_json::from_str::<Value>(&mtu).unwrap()[0]["metrics"][0]["mtu"], 1370, "{mtu}");
    let device = runtime.node.sh("ip -n c1 -j link show eth0");
    assert_eq!(serde_json::from_str::<Value>(&device).unwrap()[0]["mtu"], 1450, "the device keeps its");
    assert!(runtime.verb("check", "c1", "web-0", &[]).ok);
    runtime.node.sh("ip -n c1 route replace default via 10.1.0.1 dev eth0");
    let refused = runtime.verb("check", "c1", "web-0", &[]);
    assert_eq!(refused.code(), 103, "{refused:?}");

    runtime.node.write(
        "/run/conf/pods.conflist",
        &conflist("1.0.0", json!([bridge(host_local), { "type": "tuning" }])),
    );
    let mut without = runtime.start("c2", "web-1").json;
    assert_eq!(without["ips"][0]["address"], "10.1.0.3/24");
    without["ips"] = with["ips"].clone();
    without["interfaces"] = with["interfaces"].clone();
    assert_eq!(with, without, "nothing else is changed on the way");
}

#[test]
fn check_fails_when_interface_address_default_route_or_namespace_is_gone() {
    let host_local = json!({ "type": "host-local", "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00:1::/64" }]] });
    let runtime = Runtime::new(&conflist("1.0.0", json!([bridge(host_local), { "type": "corax-cni" }])));
    let node = &runtime.node;
    let result = runtime.start("c1", "web-0").json;
    // The part in the chain alone: bridge would find some of this itself.
    let config = json!({ "cniVersion": "1.0.0", "name": "pods", "type": "corax-cni", "prevResult": result });
    let check = || node.call("CHECK", "c1", Some("web-0"), &config);
    let refused = |script: &str, what: &str| {
        node.sh(script);
        let answer = check();
        assert_eq!(answer.code(), 103, "{script}: {answer:?}");
        assert!(answer.json["details"].as_str().unwrap().contains(what), "{script}: {answer:?}");
    };
    assert!(check().ok, "{:?}", check());
    refused("ip -n c1 route del default", "IPv4 route 0.0.0.0/0");
    node.sh("ip -n c1 route add default via 10.1.0.1");
    refused("ip -n c1 -6 route del default", "IPv6 route ::/0");
    node.sh("ip -n c1 -6 route add default via fd00:1::1");
    assert!(check().ok, "{:?}", check());
    refused("ip -n c1 addr del fd00:1::2/64 dev eth0", "address fd00:1::2 of interface eth0");
    node.sh("ip -n c1 addr add fd00:1::2/64 dev eth0 nodad; ip -n c1 -6 route replace default via fd00:1::1");
    assert!(check().ok, "{:?}", check());
    refused("ip -n c1 addr flush dev eth0 scope global", "address 10.1.0.2 of interface eth0");
    refused("ip -n c1 link del eth0", "interface eth0");
    refused("ip netns delete c1", "netns /run/netns/c1 cannot be entered");
}

#[test]
fn the_agents_mtu_is_taken_where_the_configuration_says_none_and_11_results_show_it() {
    let node = Node::new();
    node.sh("mkdir /run/corax; echo 1400 > /run/corax/mtu; ip netns add c1
             ip -n c1 link add eth0 type veth peer name p0; ip -n c1 link set eth0 up; ip -n c1 link set p0 up
             ip -n c1 addr add 10.1.0.9/24 dev eth0; ip -n c1 route add default via 10.1.0.1
             ip -n c1 addr add fd00::9/64 dev eth0 nodad; ip -n c1 route add default via fd00::1");
    let result = json!({ "cniVersion": "1.1.0", "ips": [{ "address": "10.1.0.9/24", "interface": 0 }], "x": [1],
        "interfaces": [{ "name": "eth0", "sandbox": "/run/netns/c1" }], "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0", "mtu": 1300 }] });
    let config = json!({ "cniVersion": "1.1.0", "name": "pods", "type": "corax-cni", "prevResult": result });
    let mut want = result;
    want["routes"][0]["mtu"] = 1400.into();
    let answer = node.call("ADD", "c1", Some("a"), &config);
    assert_eq!(answer.json, want, "{answer:?}");
    assert!(node.sh("ip -n c1 route show default").contains("mtu 1400"));
    assert!(node.sh("ip -n c1 -6 route show default").contains("mtu 1400"));
    assert!(node.call("CHECK", "c1", Some("a"), &config).ok);
}

#[test]
fn a_gateway_outside_of_all_networks_stays_one() {
    let node = Node::new();
    node.sh("ip netns add c1
             ip -n c1 link add eth0 type veth peer name p0; ip -n c1 link set eth0 up; ip -n c1 link set p0 up
             ip -n c1 addr add 10.1.0.9/32 dev eth0; ip -n c1 route add default via 169.254.1.1 dev eth0 onlink
             ip -n c1 addr add fd00::9/128 dev eth0 nodad; ip -n c1 route add default via fd01::1 dev eth0 onlink");
    let result = json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.1.0.9/32", "interface": 0 }],
        "interfaces": [{ "name": "eth0", "sandbox": "/run/netns/c1" }] });
    let config = json!({ "cniVersion": "1.0.0", "name": "pods", "type": "corax-cni", "mtu": 1400, "prevResult": result });
    let answer = node.call("ADD", "c1", Some("a"), &config);
    assert!(answer.ok, "{answer:?}");
    for family in ["-4", "-6"] {
        let route = node.sh(&format!("ip -n c1 {family} route show default"));
        assert!(route.contains("onlink") && route.contains("mtu 1400"), "{route}");
    }
}

#[test]
fn an_mtu_that_no_network_has_is_refused_and_a_main_plugins_own_is_not_ours_to_judge() {
    let node = Node::new();
    let netns = node.netns("c1");
    let config = |address: &str, mtu: Value| {
        let result = json!({ "cniVersion": "1.0.0", "ips": [{ "address": address, "interface": 0 }],
            "interfaces": [{ "name": "lo", "sandbox": netns }] });
        json!({ "cniVersion": "1.0.0", "name": "pods", "type": "corax-cni", "mtu": mtu, "prevResult": result })
    };
    let code =
        |config: &Value| node.call_with("ADD", "c1", Some("a"), config, &[("CNI_IFNAME", "lo")]).code();
    for wrong in [json!(-5), json!("x"), json!(1.5), json!(99_999), json!(65_536), json!(100), json!(575)] {
        let answer = node.call("ADD", "c1", Some("a"), &config("10.1.0.9/24", wrong.clone()));
        assert_eq!(answer.code(), 7, "{wrong}: {answer:?}");
        assert!(answer.json["details"].as_str().unwrap().contains(&format!("mtu is {wrong}")), "{answer:?}");
        node.del("c1", &config("10.1.0.9/24", wrong.clone()));
        let mut main = common::ipam(&["10.1.0.0/24"]);
        main["mtu"] = wrong;
        node.add("c1", "a", &main);
        node.del("c1", &main);
    }
    assert_eq!(code(&config("fd00::9/64", json!(1279))), 7, "IPv6 needs 1280");
    for (address, right) in [
        ("10.1.0.9/24", json!(576)),
        ("10.1.0.9/24", json!(0)),
        ("fd00::9/64", json!(1280)),
        ("fd00::9/64", json!(65_535)),
    ] {
        let config = config(address, right.clone());
        let answer = node.call_with("ADD", "c1", Some("b"), &config, &[("CNI_IFNAME", "lo")]);
        assert!(answer.ok, "{address} {right}: {answer:?}");
    }
}

#[test]
fn an_address_that_differs_from_the_pin_is_flagged() {
    let host_local = json!({ "type": "host-local", "subnet": "10.1.0.0/24" });
    let runtime = Runtime::new(&conflist("1.0.0", json!([bridge(host_local), { "type": "corax-cni" }])));
    assert_eq!(runtime.start("c1", "web-0").ips(), ["10.1.0.2"]);
    runtime.stop("c1", "web-0");
    let moved = runtime.start("c2", "web-0");
    assert_eq!(moved.ips(), ["10.1.0.3"], "host-local goes round");
    assert!(
        moved.errors.contains("pod default/web-0 on network pods is pinned to [10.1.0.2] but got [10.1.0.3]"),
        "{moved:?}"
    );
    let pins = runtime.node.commands(&["pins", "list", "-o", "json"]).json;
    assert_eq!(
        (&pins[0]["addresses"][0], &pins[0]["seen"], &pins[0]["state"]),
        (&json!("10.1.0.3"), &json!(true), &json!("held"))
    );
}

#[test]
fn ipam_and_chain_together_hold_an_address_until_the_interface_is_gone() {
    let plugins = json!([bridge(ours(&["10.1.0.0/24"])), { "type": "corax-cni", "mtu": 1400 }]);
    let runtime = Runtime::new(&conflist("1.0.0", plugins));
    let home = runtime.start("c1", "web-0").ips();
    assert!(runtime.verb("check", "c1", "web-0", &[]).ok);
    // In a DEL the chain's part comes first, while the interface is still there.
    let chain = json!({ "cniVersion": "1.0.0", "name": "pods", "type": "corax-cni" });
    runtime.node.del("c1", &chain);
    runtime.node.netns("c9");
    assert_eq!(runtime.node.call("ADD", "c9", Some("web-0"), &common::ipam(&["10.1.0.0/24"])).code(), 11);
    runtime.stop("c1", "web-0");
    assert_eq!(runtime.start("c2", "web-0").ips(), home);
}

#[test]
fn libcni_speaks_gc_and_status_with_it() {
    let plugin = json!({ "type": "corax-cni", "ipam": ours(&["10.1.0.0/29"]) });
    let runtime = Runtime::new(&conflist("1.1.0", json!([plugin, { "type": "corax-cni" }])));
    let status = || runtime.node.libcni("status", &["/run/conf/pods.conflist"]);
    assert!(status().ok, "{:?}", status());
    for n in 0..5 {
        runtime.start(&format!("c{n}"), &format!("p{n}"));
    }
    assert!(status().ok, "each of the five could come home: {:?}", status());
    // libcni itself deletes what its cache knows beyond the list; what it has forgotten is the plugin's to find.
    runtime.node.sh("rm /var/lib/cni/results/pods-c3-eth0 /var/lib/cni/results/pods-c4-eth0");
    let gc = runtime.node.libcni("gc", &["/run/conf/pods.conflist", "c0:eth0", "c1:eth0", "c2:eth0"]);
    assert!(gc.ok, "{gc:?}");
    assert!(status().ok);
    assert!(runtime.verb("check", "c0", "p0", &[]).ok);
    assert!(!runtime.verb("check", "c4", "p4", &[]).ok);
    assert_eq!(runtime.start("n4", "p4").ips(), ["10.1.0.6"]);
}

#[test]
fn what_flannel_delegates_is_understood() {
    // flannel 1.x hands bridge its own ipam section, completed by the node's subnets.
    let delegated = json!({ "cniVersion": "0.3.1", "name": "cbr0", "type": "bridge", "hairpinMode": true, "isDefaultGateway": true,
        "isGateway": true, "ipMasq": false, "mtu": 1450, "ipam": { "type": "corax-cni",
        "ranges": [[{ "subnet": "10.244.3.0/24" }], [{ "subnet": "fd00:244:3::/64" }]],
        "routes": [{ "dst": "10.244.0.0/16" }, { "dst": "fd00:244::/48" }] } });
    let node = Node::new();
    for (at, container) in ["c1", "c2"].iter().enumerate() {
        node.netns(container);
        let mut command = node.command("/opt/cni/bin/bridge");
        command.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", container).env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", format!("/run/netns/{container}"));
        command.env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=d;K8S_POD_NAME=p{at}"));
        let out = common::feed(command, delegated.to_string().as_bytes());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    }
    assert!(node.sh("ip -n c2 -j addr show eth0").contains("10.244.3.3"));
    node.sh("ip netns exec c1 ping -c1 -w20 10.244.3.3");
}
