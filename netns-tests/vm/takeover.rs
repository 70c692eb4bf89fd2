//! A node on which Raven's tunnel runs: Corax goes on with it as it is.

use crate::agent::{CORAX, SECRET, await_ready};
use crate::lab::{Lab, Plan};
use crate::restart::{STEP, control, lost_no_more};
use crate::space::Space;
use crate::traffic::Flow;
use crate::{is_kernels, names};

use std::time::Duration;

/// What Raven's WireGuard driver leaves on a gateway: the device, with a key that is nowhere else.
fn ravens_device(space: &Space) -> String {
    space
        .sh("ip link add raven-wg0 type wireguard
         wg set raven-wg0 private-key <(wg genkey) listen-port 4500
         ip link set raven-wg0 mtu 1420 up
         wg show raven-wg0 public-key")
        .trim()
        .to_owned()
}

/// Its peer, and the way to that peer's pods. Raven keeps CNIs from masquerading what enters the tunnel.
fn ravens_peer(space: &Space, key: &str, endpoint: Option<&str>, pods: &str, own: &str) {
    let endpoint = endpoint.map(|endpoint| format!("endpoint {endpoint}")).unwrap_or_default();
    space.sh(&format!(
        "wg set raven-wg0 peer {key} {endpoint} persistent-keepalive 5 allowed-ips {pods} \
            preshared-key <(printf {SECRET} | sha256sum | xxd -r -p | base64)
         ip route add {pods} dev raven-wg0 src {own}
         nft insert rule inet cni postrouting oifname raven-wg0 return"
    ));
}

#[test]
fn ravens_tunnel_goes_on_with_its_running_key_and_loses_no_packet() {
    let mut lab = Lab::build(&[Plan::public("cloud", 1), Plan::nat("site", 1)]);
    let (cloud, site) = (lab.node("cloud-1"), lab.node("site-1"));
    let keys = [ravens_device(&cloud.space), ravens_device(&site.space)];
    let public = format!("{}:4500", lab.public("cloud"));
    for node in [cloud, site] {
        node.space.run(&format!("ip address add {}/32 dev cni0", node.side4()));
    }
    ravens_peer(&site.space, &keys[0], Some(&public), &cloud.pods4(), &site.side4().to_string());
    ravens_peer(&cloud.space, &keys[1], None, &site.pods4(), &cloud.side4().to_string());
    lab.serve();
    let (cloud, site) = (lab.node("cloud-1"), lab.node("site-1"));
    let step = Duration::from_millis(4);
    let flows = vec![Flow::start(&site.pod, cloud.pod4(), step), Flow::start(&cloud.pod, site.pod4(), step)];
    let control = control(&lab, STEP);
    let index = |lab: &Lab, name: &str| lab.node(name).space.run("cat /sys/class/net/raven-wg0/ifindex");
    let before = (index(&lab, "cloud-1"), index(&lab, "site-1"));

    for (name, key) in ["cloud-1", "site-1"].iter().zip(&keys) {
        let told = lab.node(name).space.run(&format!("{CORAX} key"));
        assert_eq!(told.trim(), key, "{name}: the running key is the node's");
    }
    lab.declare();
    lab.write();
    for name in names(&lab) {
        lab.start_agent(&name, &[]);
        await_ready(&lab.node(&name).space);
    }
    std::thread::sleep(Duration::from_secs(1));

    lost_no_more(flows, control);
    for (name, key) in ["cloud-1", "site-1"].iter().zip(&keys) {
        let space = &lab.node(name).space;
        is_kernels(space);
        assert_eq!(space.run("wg show raven-wg0 public-key").trim(), key, "{name}");
    }
    assert_eq!(before, (index(&lab, "cloud-1"), index(&lab, "site-1")), "the devices are the same ones");
    lab.everyone_reaches_everyone();
}
