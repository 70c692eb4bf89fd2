//! The golden vectors of Raven's wire: device, VTEP, FDB and neighbours with `--vtep-identity=node-ip`.

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agent::{Agent, CORAX, await_ready};
use crate::lab::{Lab, Plan};
use crate::manifests;
use crate::space::Space;

/// Gateway 192.168.1.1 and member 192.168.1.4 on one link, and a domain elsewhere.
fn start(directory: &TempDir) -> [(Space, Agent); 2] {
    let (gateway, member) = (Space::new("gateway"), Space::new("member"));
    gateway.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {}
         address add 192.168.1.1/24 dev eth0
         link set eth0 up
         route add default via 192.168.1.4",
        member.net().display()
    ));
    member.ip("address add 192.168.1.4/24 dev eth0
         link set eth0 up
         route add default via 192.168.1.1");
    let key = gateway.run(&format!("{CORAX} key")).trim().to_owned();
    let foreign = member.sh("wg genkey | wg pubkey").trim().to_owned();
    let domain = |name: &str, node: &str, ip: &str, key: &str, nodes: Value| {
        let endpoint =
            json!({ "nodeName": node, "type": "tunnel", "publicIP": ip, "config": { "publicKey": key } });
        manifests::gateway(name, &endpoint, &nodes)
    };
    let here = json!([
        { "nodeName": "gateway", "privateIP": "192.168.1.1", "subnets": ["10.10.1.0/24"] },
        { "nodeName": "member", "privateIP": "192.168.1.4", "subnets": ["10.10.4.0/24"] },
    ]);
    let there = json!([{ "nodeName": "far", "privateIP": "10.0.0.1", "subnets": ["10.20.0.0/24"] }]);
    let source = directory.path().join("gateways");
    std::fs::create_dir(&source).expect("it is new");
    for gateway in [
        domain("here", "gateway", "203.0.113.1", &key, here),
        domain("there", "far", "203.0.113.9", &foreign, there),
    ] {
        let name = gateway["metadata"]["name"].as_str().expect("a name");
        std::fs::write(source.join(format!("{name}.json")), gateway.to_string()).expect("it can be written");
    }
    let options = ["--vtep-identity".to_owned(), "node-ip".to_owned()];
    [gateway, member].map(|space| {
        let log = directory.path().join(format!("{}.log", space.name));
        let agent = Agent::start(&space, Path::new(CORAX), &space.name.clone(), &source, &log, &options);
        await_ready(&space);
        (space, agent)
    })
}

#[test]
fn device_vtep_fdb_and_neighbours_are_ravens() {
    let directory = TempDir::with_prefix("corax-golden-").expect("a directory");
    let [(gateway, _), (member, _)] = start(&directory);
    let vectors = [
        (&gateway, "aa:0f:f0:a8:01:01", "240.168.1.1", "aa:0f:f0:a8:01:04", "240.168.1.4", "192.168.1.4"),
        (&member, "aa:0f:f0:a8:01:04", "240.168.1.4", "aa:0f:f0:a8:01:01", "240.168.1.1", "192.168.1.1"),
    ];
    for (space, mac, address, peer_mac, peer_address, peer) in vectors {
        let link = &space.json("ip -j -d link show raven0")[0];
        assert_eq!(link["mtu"], json!(1420), "{}", space.name);
        assert_eq!(space.sh("cat /run/corax/mtu").trim(), "1420", "{}: for the CNI plugin", space.name);
        assert_eq!(link["address"], json!(mac), "{}", space.name);
        let vxlan = &link["linkinfo"]["info_data"];
        let wanted = json!({ "id": 200, "port": 4472, "learning": false, "ageing": 300 });
        for (key, value) in wanted.as_object().expect("an object") {
            assert_eq!(&vxlan[key], value, "{}: {key} of {vxlan}", space.name);
        }
        let addresses = &space.json("ip -j -4 address show dev raven0")[0]["addr_info"];
        let own = addresses.as_array().into_iter().flatten().find(|one| one["local"] == json!(address));
        let own = own.unwrap_or_else(|| panic!("{}: no {address} in {addresses}", space.name));
        assert_eq!((&own["prefixlen"], &own["scope"]), (&json!(8), &json!("link")), "{own}");
        let fdb = space.json("bridge -j fdb show dev raven0");
        let entry = fdb.as_array().into_iter().flatten().find(|one| one["mac"] == json!(peer_mac));
        let entry = entry.unwrap_or_else(|| panic!("{}: no {peer_mac} in {fdb}", space.name));
        assert_eq!((&entry["dst"], &entry["state"]), (&json!(peer), &json!("permanent")), "{entry}");
        assert_eq!(entry["flags"], json!(["self"]), "{entry}");
        let neighbours = space.json("ip -j -4 neigh show dev raven0");
        let one = neighbours.as_array().into_iter().flatten().find(|one| one["dst"] == json!(peer_address));
        let one = one.unwrap_or_else(|| panic!("{}: no {peer_address} in {neighbours}", space.name));
        assert_eq!((&one["lladdr"], &one["state"]), (&json!(peer_mac), &json!(["PERMANENT"])), "{one}");
    }
}

#[test]
fn nodes_of_one_cluster_name_have_their_macs_of_it_and_reach_each_other() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2).mesh(), Plan::nat("site", 1)]);
    lab.declare();
    lab.write();
    let names = ["cloud-1", "cloud-2", "site-1"];
    let mut macs = Vec::new();
    for cluster in ["kubernetes", "other"] {
        for name in names {
            lab.start_agent(name, &["--cluster-name", cluster]);
        }
        for name in names {
            await_ready(&lab.node(name).space);
        }
        lab.everyone_reaches_everyone();
        let mac = |name: &str| lab.node(name).space.json("ip -j link show raven0")[0]["address"].clone();
        for (here, there) in [("cloud-1", "cloud-2"), ("cloud-2", "cloud-1")] {
            let fdb = lab.node(here).space.json("bridge -j fdb show dev raven0");
            let to = lab.node(there).address.to_string();
            let entries = fdb.as_array().into_iter().flatten();
            let of_it: Vec<_> = entries.filter(|entry| entry["dst"] == json!(to)).collect();
            assert_eq!(of_it.len(), 1, "{here}, {cluster}: {fdb}");
            assert_eq!(of_it[0]["mac"], mac(there), "{here}, {cluster}: {fdb}");
        }
        macs.extend(names.map(|name| (cluster, name, mac(name))));
        for name in names {
            lab.end_agent(name, Signal::SIGTERM);
        }
    }
    let [before, after] = [macs.get(..3), macs.get(3..)].map(|half| half.expect("three nodes"));
    assert!(before.iter().zip(after).all(|((.., one), (.., other))| one != other), "{macs:?}");
}
