//! A node that changes over: host-local's directory, which counts for us and where ours are reserved.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

#[path = "support/node.rs"]
mod common;

use std::collections::BTreeSet;

use common::{Node, attachment, ranges, request};
use corax_pins::Error;
use corax_pins::hostlocal::HostLocal;
use corax_pins::store::Part;

/// host-local's directory and a runtime's cache that knows one attachment, in `netns`.
fn host_local(node: &Node, container: &str, address: &str, netns: &str) -> HostLocal {
    let (data, cache) = (node.directory.path().join("networks"), node.directory.path().join("cache"));
    std::fs::create_dir_all(data.join("pods")).unwrap();
    std::fs::create_dir_all(cache.join("results")).unwrap();
    std::fs::write(data.join("pods").join(address), format!("{container}\r\neth0")).unwrap();
    // As libcni of Debian 12 writes it: the namespace is in the result alone.
    let cached = format!(
        r#"{{"kind":"cniCacheV1","containerId":"{container}","ifName":"eth0","networkName":"pods","result":{{
            "interfaces":[{{"name":"veth1"}},{{"name":"eth0","sandbox":"{netns}"}}],
            "ips":[{{"address":"{address}/29","interface":1}}]}}}}"#
    );
    std::fs::write(cache.join(format!("results/pods-{container}-eth0")), cached).unwrap();
    HostLocal::new(&data, &"pods".parse().unwrap(), &cache)
}

#[test]
fn a_live_hold_is_written_back_over_the_file_of_a_dead_container() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/29"]);
    // Before the power cut host-local gave 10.0.0.2 to `old`; the runtime's cache knows it, its namespace is gone.
    let before = host_local(&node, "old", "10.0.0.2", "/nowhere/old");
    let path = node.netns("new");
    let answer = node.with(|t| t.add(&r, &request("a", "new", &path), Some(&before))).unwrap();
    assert_eq!(answer.addresses[0].to_string(), "10.0.0.2");
    // Uninstall.
    node.with(|t| {
        let live = t.live(&"pods".parse().unwrap());
        let all = live.iter().flat_map(|h| h.addresses.iter().map(|&a| (a, &h.attachment)));
        before.write(all, std::time::Duration::from_secs(1)).unwrap();
    });
    let file = std::fs::read_to_string(before.directory().join("10.0.0.2")).unwrap();
    assert_eq!(file, "new\r\neth0", "new lives there, and a DEL of old must not free it");
}

#[test]
fn what_is_given_while_host_local_is_still_asked_is_reserved_there_too() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/29"]);
    let netns = node.netns("old");
    let before = host_local(&node, "old", "10.0.0.2", &netns);
    let add = |node: &mut Node, pod: &str, container: &str| {
        let path = node.netns(container);
        node.with(|t| t.add(&r, &request(pod, container, &path), Some(&before))).unwrap().addresses[0]
            .to_string()
    };
    let file = |address: &str| std::fs::read_to_string(before.directory().join(address));
    assert_eq!(add(&mut node, "a", "a1"), "10.0.0.3", "old lives");
    assert!(file("10.0.0.3").unwrap().starts_with("a1\r\neth0"));
    assert_eq!(before.reservations().len(), 1, "ours is none that would count against us");
    node.with(|t| t.del(&attachment("a1"), Part::Given, Some(&before))).unwrap();
    assert!(file("10.0.0.3").is_err());
    let add_at = |node: &mut Node, address: &str| {
        let path = node.netns("a1");
        let mut request = request("a", "a1", &path);
        request.requested = vec![address.parse().unwrap()];
        node.with(|t| t.add(&r, &request, Some(&before))).unwrap();
    };
    add_at(&mut node, "10.0.0.4");
    add_at(&mut node, "10.0.0.5");
    assert!(file("10.0.0.4").is_err() && file("10.0.0.5").is_ok(), "of what it holds now");
    let gone = node.with(|t| t.gc(&"pods".parse().unwrap(), &BTreeSet::new(), Part::Given, Some(&before)));
    assert_eq!(gone.unwrap(), 1);
    assert!(file("10.0.0.5").is_err());
    std::fs::write(before.directory().join("10.0.0.2"), "old\r\neth0").unwrap();
    add_at(&mut node, "10.0.0.3");
    node.with(|t| t.del(&attachment("a1"), Part::Given, Some(&before))).unwrap();
    // What a boot left behind is in nobody's way, and goes when the network is handed over.
    add(&mut node, "a", "a2");
    node.reboot();
    assert_eq!(add(&mut node, "a", "a3"), "10.0.0.3");
    assert!(file("10.0.0.3").unwrap().starts_with("a3\r\n"));
    node.kill("a3");
    before.write(std::iter::empty(), std::time::Duration::from_secs(1)).unwrap();
    assert!(file("10.0.0.3").is_err());
    assert_eq!(file("10.0.0.2").unwrap(), "old\r\neth0");
}

#[test]
fn an_address_that_host_local_took_meanwhile_is_not_given_twice() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/30"]); // .2 alone
    let before = host_local(&node, "old", "10.0.0.9", "/nowhere/old");
    std::fs::write(before.directory().join("10.0.0.2"), "late\r\neth0").unwrap();
    let path = node.netns("a1");
    let refused = node.with(|t| t.add(&r, &request("a", "a1", &path), Some(&before))).unwrap_err();
    assert!(matches!(refused, Error::Exhausted { .. }), "{refused}");
}
