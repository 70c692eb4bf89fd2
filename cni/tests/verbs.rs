//! The plugin against the specification (CNI 1.1): verbs, versions, results, errors with their codes.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

#[path = "support/node.rs"]
mod common;

use common::{Node, ipam};
use serde_json::{Value, json};

#[test]
fn results_are_those_of_the_version_asked_for() {
    let node = Node::new();
    node.netns("c1");
    let mut config = ipam(&["10.1.0.0/16", "fd00:1::/64"]);
    config["ipam"]["routes"] =
        json!([{ "dst": "0.0.0.0/0", "mtu": 1400 }, { "dst": "::/0", "gw": "fd00:1::1" }]);
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        config["cniVersion"] = version.into();
        let mut v4 = json!({ "address": "10.1.0.2/16", "gateway": "10.1.0.1" });
        let mut v6 = json!({ "address": "fd00:1::2/64", "gateway": "fd00:1::1" });
        if version < "1" {
            (v4["version"], v6["version"]) = ("4".into(), "6".into());
        }
        let mut route = json!({ "dst": "0.0.0.0/0", "mtu": 1400 });
        if version < "1.1" {
            route.as_object_mut().unwrap().remove("mtu");
        }
        let want = json!({ "cniVersion": version, "ips": [v4, v6], "dns": {},
            "routes": [route, { "dst": "::/0", "gw": "fd00:1::1" }] });
        assert_eq!(node.call("ADD", "c1", Some("web-0"), &config).json, want, "version {version}");
    }
}

#[test]
fn the_specifications_own_example() {
    let node = Node::new();
    node.netns("c1");
    node.write("/run/resolv.conf", "nameserver 10.1.0.1\n");
    let config = json!({ "cniVersion": "1.1.0", "name": "dbnet", "type": "bridge", "bridge": "cni0",
        "keyA": ["some more", "plugin specific", "configuration"], "mtu": 1400,
        "ipam": { "type": "corax-cni", "subnet": "10.1.0.0/16", "gateway": "10.1.0.1",
                  "rangeStart": "10.1.0.5", "routes": [{ "dst": "0.0.0.0/0" }], "resolvConf": "/run/resolv.conf" } });
    let want = json!({ "cniVersion": "1.1.0", "ips": [{ "address": "10.1.0.5/16", "gateway": "10.1.0.1" }],
        "routes": [{ "dst": "0.0.0.0/0" }], "dns": { "nameservers": ["10.1.0.1"] } });
    assert_eq!(node.call("ADD", "c1", None, &config).json, want);
}

#[test]
fn version_says_what_is_spoken() {
    let node = Node::new();
    let answer = node.call("VERSION", "c1", None, &json!({ "cniVersion": "0.4.0" }));
    assert!(answer.ok);
    assert_eq!(answer.json["cniVersion"], "0.4.0");
    assert_eq!(answer.json["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
}

#[test]
fn errors_have_the_specifications_codes() {
    let node = Node::new();
    node.netns("c1");
    let good = ipam(&["10.1.0.0/24"]);
    let with = |key: &str, value: Value| {
        let mut config = good.clone();
        config[key] = value;
        config
    };
    let code = |verb: &str, config: &Value| node.call(verb, "c1", Some("a"), config).code();
    for version in ["0.1.0", "0.2.0", "9.9.9", ""] {
        assert_eq!(code("ADD", &with("cniVersion", version.into())), 1, "version {version:?}");
    }
    assert_eq!(code("CHECK", &with("cniVersion", "0.3.1".into())), 1, "CHECK came with 0.4.0");
    assert_eq!(code("GC", &good), 1, "GC came with 1.1.0");
    assert_eq!(code("STATUS", &good), 1, "STATUS came with 1.1.0");
    for (name, value) in [
        ("CNI_COMMAND", ""),
        ("CNI_COMMAND", "FLY"),
        ("CNI_CONTAINERID", ""),
        ("CNI_CONTAINERID", "a b"),
        ("CNI_IFNAME", ""),
        ("CNI_IFNAME", "much-too-long-for-linux"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_NETNS", ""),
        ("CNI_ARGS", "x"),
    ] {
        let answer = node.call_with("ADD", "c1", None, &good, &[(name, value)]);
        assert_eq!(answer.code(), 4, "{name}={value}");
        assert!(answer.json["details"].as_str().unwrap().contains(name), "{answer:?}");
        assert_eq!(answer.json["cniVersion"], "1.0.0");
    }
    assert_eq!(code("ADD", &json!("no object")), 6);
    for route in [json!({ "dst": "foo" }), json!({}), json!({ "dst": "0.0.0.0/0", "gw": "foo" })] {
        let mut config = good.clone();
        config["ipam"]["routes"] = json!([route]);
        assert_eq!(code("ADD", &config), 7, "{config}");
    }
    for wrong in [
        json!([[{ "subnet": "10.1.0.0/31" }]]),
        json!([[{ "subnet": "10.1.0.1/24" }]]),
        json!([[{ "subnet": "x" }]]),
        json!([]),
        json!([[{}]]),
        json!([[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "10.1.0.0/25" }]]),
    ] {
        let mut config = good.clone();
        config["ipam"]["ranges"] = wrong.clone();
        assert_eq!(code("ADD", &config), 7, "{wrong}");
    }
    assert_eq!(code("ADD", &with("name", "".into())), 7);
    assert_eq!(code("ADD", &with("ipam", json!({}))), 7, "first in a chain");
    assert_eq!(node.call_with("ADD", "c1", None, &good, &[("CNI_ARGS", "IP=10.2.0.9")]).code(), 102);
    let tiny = ipam(&["10.3.0.0/30"]);
    node.add("c1", "a", &tiny);
    node.netns("c2");
    assert_eq!(node.call("ADD", "c2", Some("b"), &tiny).code(), 100);
    assert_eq!(node.call("ADD", "c2", Some("a"), &tiny).code(), 11);
    assert_eq!(node.call("CHECK", "c2", Some("b"), &tiny).code(), 103);
}

#[test]
fn an_add_to_a_namespace_that_is_not_there_fails_and_takes_no_address() {
    let node = Node::new();
    let config = ipam(&["10.1.0.0/24"]);
    let refused = node.call("ADD", "c1", Some("a"), &config);
    assert_eq!(refused.code(), 4, "{refused:?}");
    assert!(
        refused.json["details"].as_str().unwrap().contains("no network namespace at /run/netns/c1"),
        "{refused:?}"
    );
    node.netns("c2");
    assert_eq!(node.add("c2", "b", &config), ["10.1.0.2"]);
}

#[test]
fn del_always_succeeds() {
    let node = Node::new();
    node.netns("c1");
    let config = ipam(&["10.1.0.0/24"]);
    node.del("never-there", &config);
    node.add("c1", "a", &config);
    node.sh("ip netns delete c1");
    node.del("c1", &config);
    node.del("c1", &config);
    node.netns("c2");
    node.add("c2", "b", &config);
    for broken in [
        json!("no object"),
        json!({}),
        json!({ "name": "pods", "ipam": { "type": "corax-cni" } }),
        json!({ "cniVersion": "7", "name": "pods", "ipam": { "type": "corax-cni", "subnet": "nonsense" } }),
    ] {
        node.del("c2", &broken);
    }
    node.netns("c3");
    assert_eq!(
        node.add("c3", "b", &config),
        ["10.1.0.3"],
        "what c2 held is free, whatever its configuration had become"
    );
    node.sh("echo torn > /var/lib/corax/pins; echo torn > /run/corax/holds");
    node.del("c3", &config);
    node.sh("rm -rf /run/corax; touch /run/corax");
    node.del("c3", &config);
}

#[test]
fn an_address_may_be_asked_for_in_three_ways() {
    let node = Node::new();
    let config = ipam(&["10.1.0.0/24", "fd00::/64"]);
    for container in ["c1", "c2", "c3"] {
        node.netns(container);
    }
    let answer = node.call_with("ADD", "c1", None, &config, &[("CNI_ARGS", "IgnoreUnknown=1;IP=10.1.0.50")]);
    assert_eq!(answer.ips(), ["10.1.0.50", "fd00::2"]);
    let mut args = config.clone();
    args["args"] = json!({ "cni": { "ips": ["10.1.0.51"] } });
    assert_eq!(node.add("c2", "a", &args), ["10.1.0.51", "fd00::3"]);
    let mut capability = config.clone();
    capability["runtimeConfig"] = json!({ "ips": ["fd00::52/64", "10.1.0.52"] });
    assert_eq!(node.add("c3", "b", &capability), ["10.1.0.52", "fd00::52"]);
}

#[test]
fn check_tells_whether_the_addresses_are_held() {
    let node = Node::new();
    node.netns("c1");
    let mut config = ipam(&["10.1.0.0/24"]);
    let result = node.call("ADD", "c1", Some("a"), &config).json;
    config["prevResult"] = result;
    assert!(node.call("CHECK", "c1", Some("a"), &config).ok);
    config["prevResult"]["ips"][0]["address"] = "10.1.0.9/24".into();
    assert_eq!(node.call("CHECK", "c1", Some("a"), &config).code(), 103);
    node.del("c1", &config);
    assert_eq!(node.call("CHECK", "c1", Some("a"), &config).code(), 103);
}

#[test]
fn gc_without_a_list_frees_nothing() {
    let node = Node::new();
    let mut config = ipam(&["10.1.0.0/24"]);
    config["cniVersion"] = "1.1.0".into();
    for container in ["c1", "c2"] {
        node.netns(container);
        node.add(container, container, &config);
    }
    let held = || node.call("CHECK", "c2", None, &config).ok;
    assert!(node.call("GC", "", None, &config).ok);
    assert!(held());
    let mut list = config.clone();
    list["cni.dev/valid-attachments"] = Value::Null;
    assert!(node.call("GC", "", None, &list).ok && held());
    list["cni.dev/valid-attachments"] = json!([{ "containerID": "c1", "ifname": "eth0" }]);
    assert!(node.call("GC", "", None, &list).ok);
    assert!(!held(), "c2 is not on the list");
    assert!(node.call("CHECK", "c1", None, &config).ok);
}

#[test]
fn status_is_good_on_a_disk_that_cannot_be_written_while_every_known_pod_runs() {
    let node = Node::new();
    let mut config = ipam(&["10.1.0.0/24"]);
    config["cniVersion"] = "1.1.0".into();
    let status = || node.call("STATUS", "", None, &config);
    node.sh("mount -t tmpfs tmpfs /var/lib/corax; mount -o remount,ro /var/lib/corax");
    assert_eq!(status().code(), 50, "no pod is known, and no new one can be pinned");
    node.sh("mount -o remount,rw /var/lib/corax");
    node.netns("c1");
    let home = node.add("c1", "a", &config);
    node.sh("mount -o remount,ro /var/lib/corax");
    assert!(status().ok, "a crash of its sandbox, and a comes home: {:?}", status());
    node.del("c1", &config);
    node.netns("c2");
    assert_eq!(node.add("c2", "a", &config), home);
}

#[test]
fn status_fails_only_where_an_add_would() {
    let node = Node::new();
    let mut config = ipam(&["10.1.0.0/29"]);
    config["cniVersion"] = "1.1.0".into();
    config["ipam"]["lockTimeout"] = 100.into();
    let status = || node.call("STATUS", "", None, &config);
    assert!(status().ok);
    for n in 0..5 {
        node.netns(&format!("c{n}"));
        assert!(node.call("ADD", &format!("c{n}"), None, &config).ok);
    }
    assert_eq!(status().code(), 50, "exhausted, by containers of no pod: nobody can come home");
    for n in 0..5 {
        node.del(&format!("c{n}"), &config);
        node.add(&format!("c{n}"), &format!("p{n}"), &config);
    }
    assert!(status().ok, "all of them run, and each could come home");
    node.sh(
        "mount -t tmpfs -o size=16k tmpfs /mnt; cp /var/lib/corax/pins /mnt; mount --bind /mnt /var/lib/corax
             dd if=/dev/zero of=/mnt/fill bs=4k 2>/dev/null || true",
    );
    assert!(status().ok, "the disk is full, and none of them needs it");
    node.del("c1", &config);
    assert!(status().ok, "p1 could come home");
    assert_eq!(node.add("c1", "p1", &config), ["10.1.0.3"]);
    assert!(status().ok);
    node.sh("umount /var/lib/corax; chattr -i /var/lib/corax 2>/dev/null || true; rm -rf /run/corax; touch /run/corax");
    assert_eq!(status().code(), 51, "holds cannot be kept");
    node.netns("c9");
    assert!(!node.call("ADD", "c9", Some("p9"), &config).ok);
}
