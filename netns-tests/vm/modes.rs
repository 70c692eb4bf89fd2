//! Whose WireGuard it is makes no difference on the wire.

use crate::agent::{SOON, await_ready, status};
use crate::await_::eventually;
use crate::control::Traffic;
use crate::lab::{Lab, Plan};
use crate::manifests::paper;
use crate::restart::STEP;
use crate::traffic::{Flow, serve_one_transfer};
use crate::{is_in_user_space, is_kernels, two_domains};

#[test]
fn every_pod_reaches_every_pod_through_the_kernels_tunnels_and_wg_agrees_with_status() {
    let mut lab = two_domains();
    lab.everyone_reaches_everyone();
    for name in ["cloud-1", "site-1"] {
        let space = &lab.node(name).space;
        let peers = space.run("wg show raven-wg0 peers");
        let told = status(space).to_string();
        for key in peers.lines() {
            assert!(told.contains(key), "{name}: status does not know {key}: {told}");
        }
        assert_eq!(peers.lines().count(), 1, "{name}: {peers}");
        let shaken = space.run("wg show raven-wg0 latest-handshakes");
        assert!(shaken.lines().all(|line| !line.ends_with("\t0")), "{name}: {shaken}");
    }
}

#[test]
fn a_gateway_in_user_space_talks_to_one_in_the_kernel() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2), Plan::nat("site", 1), Plan::nat("box", 1)]);
    lab.declare();
    lab.write();
    // By relay, the two modes meet both ways round.
    for (name, mode) in
        [("cloud-1", "kernel"), ("cloud-2", "kernel"), ("site-1", "userspace"), ("box-1", "kernel")]
    {
        lab.start_agent(name, &["--wireguard", mode]);
    }
    for node in lab.nodes() {
        await_ready(&node.space);
    }
    is_kernels(&lab.node("cloud-1").space);
    is_in_user_space(&lab.node("site-1").space);
    lab.everyone_reaches_everyone();
    load(&lab, "site-1", "cloud-1");
}

/// Four streams each way and both ways at once between pods of two gateways, one of them in user space, which finds no fault
/// with a packet. Streams have a length, not a time: this may be an emulated machine.
fn load(lab: &Lab, user: &str, kernel: &str) {
    let (from, to) = (&lab.node(user).pod, lab.node(kernel));
    for (address, load) in [
        (to.pod4(), "-n 4M -P 4"),
        (to.pod4(), "-n 4M -P 4 -R"),
        (to.pod6(), "-n 4M -P 4"),
        (to.pod6(), "-n 4M -P 4 -R"),
        (to.pod4(), "-n 8M --bidir"),
    ] {
        let _server = serve_one_transfer(&to.pod);
        from.run(&format!("iperf3 --connect-timeout 5000 -c {address} {load}"));
    }
    let metrics = lab
        .node(user)
        .space
        .sh("printf 'get=metrics\\n\\n' | socat -t 10 - UNIX-CONNECT:/run/wireguard/raven-wg0.sock");
    for reason in
        ["malformed", "not_authentic", "replayed", "source_not_allowed", "write_failed", "send_failed"]
    {
        assert!(metrics.contains(&format!("\ndrops_{reason}_total=0\n")), "{reason}: {metrics}");
    }
    assert!(metrics.contains("\nerrno=0"), "{metrics}");
}

#[test]
fn a_node_whose_kernel_has_wireguard_uses_it_unasked() {
    let mut lab = Lab::start(&[Plan::public("cloud", 1), Plan::nat("site", 1)]);
    for name in ["cloud-1", "site-1"] {
        is_kernels(&lab.node(name).space);
    }
    lab.everyone_reaches_everyone();
}

#[test]
fn a_gateway_whose_port_changes_listens_there_and_the_far_end_follows() {
    let mut lab = two_domains();
    lab.everyone_reaches_everyone();
    let device = |lab: &Lab| lab.node("cloud-1").space.run("cat /sys/class/net/raven-wg0/ifindex");
    let before = device(&lab);
    let gateway = lab.gateways.get_mut("cloud").expect("it is declared");
    for endpoints in ["/spec/endpoints/0", "/status/activeEndpoints/0"] {
        gateway.pointer_mut(endpoints).expect("one endpoint")["port"] = 4600.into();
    }
    lab.write();
    eventually("the kernel's device listens there", SOON, || {
        let port = lab.node("cloud-1").space.run("wg show raven-wg0 listen-port");
        if port.trim() == "4600" { Ok(()) } else { Err(port) }
    });
    assert_eq!(device(&lab), before, "it is the same device");
    let end = format!("{}:4600", lab.public("cloud"));
    eventually("the far end follows", SOON, || {
        let endpoints = lab.node("site-1").space.run("wg show raven-wg0 endpoints");
        if endpoints.trim().ends_with(&end) { Ok(()) } else { Err(endpoints) }
    });
    lab.everyone_reaches_everyone();
}

/// Where it is was told, and is no longer true: its NAT has forgotten it, and it was heard from another port.
#[test]
fn a_peer_that_roamed_stays_where_it_is_heard_while_another_gateway_comes_and_goes() {
    let mut lab = Lab::build(&[Plan::public("cloud", 1), Plan::public("site", 1)]);
    lab.declare();
    lab.write();
    for name in ["cloud-1", "site-1"] {
        lab.start_agent(name, &["--wireguard", "kernel"]);
        await_ready(&lab.node(name).space);
    }
    lab.serve();
    let (cloud, site) = (lab.node("cloud-1"), lab.node("site-1"));
    let key = site.space.run("wg show raven-wg0 public-key").trim().to_owned();
    let of_peer = |what: &str| {
        let told = cloud.space.run(&format!("wg show raven-wg0 {what}"));
        let line = told.lines().find(|line| line.starts_with(&key));
        line.unwrap_or_else(|| panic!("no {key} in {told}")).to_owned()
    };
    let public = lab.public("site");
    let ping = || site.pod.try_run(&format!("ping -n -q -c 1 -W 1 {}", cloud.pod4()));
    eventually("it is reached where it was said to be", SOON, ping);
    assert!(of_peer("endpoints").ends_with(&format!("{public}:4500")), "{}", of_peer("endpoints"));
    eventually("it is heard from another port", SOON, || {
        lab.rebind("site", 20_000);
        ping()?;
        let now = of_peer("endpoints");
        if now.contains(&format!("{public}:20")) { Ok(()) } else { Err(now) }
    });
    let roamed = || ["endpoints", "latest-handshakes"].map(of_peer);
    let before = roamed();
    let await_peers = |count: usize| {
        eventually(&format!("there are {count} peers"), SOON, || {
            let told = cloud.space.run("wg show raven-wg0 peers");
            if told.lines().count() == count { Ok(()) } else { Err(told) }
        });
    };
    // It is not heard meanwhile: that would mend what is done to it.
    site.space.nft(
        "table inet silence { chain out { type filter hook output priority filter; udp sport 4500 drop; }; }",
    );
    lab.write_file("third.json", &paper("third", &["10.77.1.0/24"]).to_string());
    await_peers(2);
    assert_eq!(roamed(), before, "another one came");
    site.space.run("nft delete table inet silence");
    let flows = vec![Flow::start(&cloud.pod, site.pod4(), STEP), Flow::start(&site.pod, cloud.pod6(), STEP)];
    let mut traffic = Traffic::new(&lab, flows);
    traffic.beside("cloud-1", || {
        lab.write_file("third.json", &paper("third", &["10.77.2.0/24"]).to_string());
        eventually("it has other pods", SOON, || {
            let told = cloud.space.run("wg show raven-wg0 allowed-ips");
            if told.contains("10.77.2.0/24") && !told.contains("10.77.1.0/24") { Ok(()) } else { Err(told) }
        });
    });
    traffic.beside("cloud-1", || {
        std::fs::remove_file(lab.source().join("third.json")).expect("it was there");
        await_peers(1);
    });
    assert_eq!(roamed(), before, "it changed, and went");
    traffic.lost_nothing();
}
