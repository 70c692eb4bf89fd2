//! What is promised of pins and holds, in the words of a user.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

#[path = "support/node.rs"]
mod common;

use std::collections::BTreeSet;

use common::{Node, attachment, ranges, request};
use corax_pins::store::Part;
use corax_pins::{Error, PinState, PodList, Snapshot, import};

fn pods(list: &[&str]) -> BTreeSet<corax_pins::PodName> {
    list.iter().map(|p| format!("default/{p}").parse().unwrap()).collect()
}

/// What the agent does when it gets a list from the API server.
fn agent_lists(node: &Node, list: &[&str]) {
    let seen = Snapshot::read(&node.store());
    let list = PodList { log: seen.log, highest: seen.highest, pods: pods(list) };
    list.write(&node.state(), node.clock).unwrap();
}

#[test]
fn a_pod_keeps_its_address_over_restarts_and_reboots() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/24", "fd00::/64"]);
    let home = node.address(&r, "web-0", "c1");
    assert_eq!(home, "10.0.0.2,fd00::2");
    node.address(&r, "web-1", "c2");
    node.del("c1");
    assert_eq!(node.address(&r, "web-0", "c3"), home);
    node.reboot();
    assert_eq!(node.address(&r, "web-1", "c4"), "10.0.0.3,fd00::3");
    assert_eq!(node.address(&r, "web-0", "c5"), home);
}

#[test]
fn the_same_container_gets_the_same_answer_again() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/24"]);
    assert_eq!(node.address(&r, "web-0", "c1"), node.address(&r, "web-0", "c1"));
    let plain = node.address(&r, "-", "podman");
    assert_eq!(plain, node.address(&r, "-", "podman"));
}

#[test]
fn a_live_sandbox_keeps_the_address_and_a_dead_one_does_not() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/24"]);
    let home = node.address(&r, "web-0", "old");
    let refused = node.add(&r, "web-0", "new").unwrap_err();
    assert!(refused.passes(), "{refused}");
    assert_eq!(refused.to_string(), "10.0.0.2 is still held by container old of pod default/web-0");
    node.kill("old");
    assert_eq!(node.address(&r, "web-0", "new"), home);
    // The old sandbox's DEL comes late, and by container: the new one keeps what it has.
    node.del("old");
    node.with(|t| t.check(&attachment("new"), &[home.parse().unwrap()])).unwrap();
}

#[test]
fn a_namespace_that_took_the_path_of_a_dead_one_does_not_keep_its_address() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/24"]);
    let home = node.address(&r, "web-0", "old");
    let path = node.directory.path().join("netns/old");
    std::fs::write(path.with_extension("other"), "another").unwrap();
    std::fs::rename(path.with_extension("other"), path).unwrap();
    assert_eq!(node.address(&r, "web-0", "new"), home);
}

#[test]
fn a_sandbox_whose_namespace_was_never_there_keeps_no_address() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/24"]);
    let request = request("web-0", "old", "/nowhere/old");
    let home = node.with(|t| t.add(&r, &request, None)).unwrap().addresses[0].to_string();
    assert_eq!(Snapshot::read(&node.store()).pins[0].state, PinState::Free);
    assert_eq!(node.address(&r, "web-0", "new"), home);
}

#[test]
fn new_pods_get_unused_addresses_then_those_of_gone_pods_then_the_longest_released() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/29"]); // .2 to .6
    for (at, pod) in ["a", "b", "c", "d"].iter().enumerate() {
        node.address(&r, pod, &format!("{pod}1"));
        assert_eq!(
            node.add(&r, pod, &format!("{pod}1")).unwrap().addresses[0].to_string(),
            format!("10.0.0.{}", at + 2)
        );
    }
    node.del("b1");
    node.del("a1");
    node.del("c1");
    assert_eq!(node.address(&r, "e", "e1"), "10.0.0.6", "never used");
    agent_lists(&node, &["a", "b", "d", "e"]);
    assert_eq!(node.address(&r, "f", "f1"), "10.0.0.4", "of c, which is gone");
    let full = node.add(&r, "g", "g1").unwrap_err();
    assert!(matches!(full, Error::Exhausted { .. }), "a and b are on the list: {full}");
    std::fs::remove_file(node.state().join("pods")).unwrap();
    assert_eq!(node.address(&r, "g", "g1"), "10.0.0.3", "b was released before a");
    assert_eq!(node.address(&r, "a", "a2"), "10.0.0.2", "a kept its");
    assert!(matches!(node.add(&r, "b", "b2").unwrap_err(), Error::Exhausted { .. }));
}

#[test]
fn holds_lost_with_a_boot_count_as_released_then() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/29"]);
    for pod in ["a", "b", "c", "d"] {
        node.address(&r, pod, &format!("{pod}1"));
    }
    // a came home once more, without a write: its release long ago must not make it the first to go.
    node.del("a1");
    node.address(&r, "a", "a2");
    node.del("b1");
    node.reboot();
    assert_eq!(node.address(&r, "e", "e1"), "10.0.0.6");
    node.del("e1");
    assert_eq!(node.address(&r, "f", "f1"), "10.0.0.3", "b's: the only one released before the boot");
    let next = node.address(&r, "g", "g1");
    assert_ne!(next, "10.0.0.6", "e was released after the boot, a, c and d at it");
}

#[test]
fn a_pod_that_came_home_long_after_its_release_counts_as_running_at_a_power_cut() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/29"]);
    node.address(&r, "a", "a1");
    node.del("a1");
    for pod in ["b", "c", "d", "e"] {
        node.address(&r, pod, &format!("{pod}1"));
    }
    node.del("e1");
    let home = node.address(&r, "a", "a2");
    node.reboot();
    assert_eq!(node.address(&r, "f", "f1"), "10.0.0.6", "e's, which was released later, but did not run");
    assert_eq!(node.address(&r, "a", "a3"), home);
}

#[test]
fn a_pod_whose_address_another_container_has_gets_another() {
    let r = ranges(&["10.0.0.0/29"]);
    // The other is a pod of the node, a container without a pin, or a pod that the log does not know: it is from a backup.
    for other in ["b", "-"] {
        let mut node = Node::new();
        let lost = node.address(&r, "a", "a1");
        let backup = std::fs::read(node.log()).unwrap();
        let id = Snapshot::read(&node.store()).pins[0].id();
        node.del("a1");
        node.with(|t| t.release(&id, false)).unwrap();
        let rest: Vec<_> = ["10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"].into();
        for (at, address) in rest.iter().enumerate() {
            assert_eq!(node.address(&r, "-", &format!("x{at}")), *address);
        }
        assert_eq!(node.address(&r, other, "b1"), lost);
        std::fs::write(node.log(), &backup).unwrap();
        node.del("x1");

        assert_eq!(node.address(&r, "a", "a2"), "10.0.0.4", "not refused for as long as {other} runs");
        node.del("b1");
        node.del("a2");
        assert_eq!(node.address(&r, "a", "a3"), "10.0.0.4", "and that is its pin from now on");
        if other == "b" {
            assert_eq!(node.address(&r, other, "b2"), lost, "the pin that the backup did not know is back");
        }
    }
}

#[test]
fn an_address_whose_pin_was_ended_is_given_before_another_pin_ends() {
    let mut node = Node::new();
    node.contents_from = Some(0);
    let r = ranges(&["10.0.0.0/29"]);
    for pod in ["a", "b", "c", "d", "e"] {
        node.address(&r, pod, &format!("{pod}1"));
        node.del(&format!("{pod}1"));
    }
    // The log is read whole, and its table of contents written.
    agent_lists(&node, &["a"]);
    assert!(matches!(node.with(|t| t.status(&"pods".parse().unwrap(), Some(&r), None)), Ok(())));
    let id = |pod: &str| {
        Snapshot::read(&node.store()).pins.into_iter().find(|p| p.pod.as_str() == pod).unwrap().id()
    };
    let ended = id("d");
    std::fs::remove_file(node.state().join("pods")).unwrap();
    node.with(|t| t.release(&ended, false)).unwrap();
    assert_eq!(node.address(&r, "f", "f1"), "10.0.0.5", "d's, which nobody has, and not a's");
}

#[test]
fn a_damaged_list_still_keeps_the_addresses_of_the_pods_it_names() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/29"]);
    for pod in ["a", "b", "c", "d", "e"] {
        node.address(&r, pod, &format!("{pod}1"));
        node.del(&format!("{pod}1"));
    }
    agent_lists(&node, &["a", "b", "c"]);
    let path = node.state().join("pods");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("default/b", "default/q")).unwrap();
    let netns = node.netns("f1");
    let (given, notes) = node.with(|t| {
        let answer = t.add(&r, &request("f", "f1", &netns), None).unwrap();
        (answer.addresses[0].to_string(), t.notes())
    });
    assert_eq!(given, "10.0.0.3", "b's, whose line is damaged and who was released before d and e");
    assert!(
        notes.iter().any(|note| note.contains("pods: damaged; what can be read of it counts")),
        "{notes:?}"
    );
}

#[test]
fn a_pod_that_started_after_the_list_is_not_known_to_be_gone() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/29"]);
    node.address(&r, "old", "o1");
    node.del("o1");
    agent_lists(&node, &[]);
    for pod in ["a", "b", "c", "d"] {
        node.address(&r, pod, &format!("{pod}1"));
        node.del(&format!("{pod}1"));
    }
    let states: Vec<_> =
        Snapshot::read(&node.store()).pins.iter().map(|p| (p.pod.to_string(), p.state)).collect();
    assert_eq!(states.iter().filter(|(_, s)| *s == PinState::Gone).count(), 1, "{states:?}");
    assert_eq!(node.address(&r, "e", "e1"), "10.0.0.2", "of the one that is known to be gone");
}

#[test]
fn a_pinned_pod_starts_on_a_disk_that_cannot_be_written() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/24"]);
    let home = node.address(&r, "web-0", "c1");
    node.del("c1");
    let before = std::fs::read(node.log()).unwrap();
    assert_eq!(node.address(&r, "web-0", "c2"), home);
    assert_eq!(std::fs::read(node.log()).unwrap(), before, "not a byte is written");
}

#[test]
fn a_family_added_later_extends_the_pin_all_or_nothing() {
    let mut node = Node::new();
    let four = ranges(&["10.0.0.0/24"]);
    let both = ranges(&["10.0.0.0/24", "fd00::/126"]); // of the second, fd00::2 alone
    let home = node.address(&four, "a", "a1");
    node.del("a1");
    assert_eq!(node.address(&both, "b", "b1"), "10.0.0.3,fd00::2");
    assert!(matches!(node.add(&both, "a", "a2").unwrap_err(), Error::Exhausted { .. }));
    assert_eq!(node.address(&four, "a", "a2"), home, "the refused extension changed nothing");
    node.del("a2");
    node.del("b1");
    assert_eq!(node.address(&both, "a", "a3"), format!("{home},fd00::2"));
}

#[test]
fn a_pin_outside_the_ranges_lapses() {
    let mut node = Node::new();
    let (old, new) = (ranges(&["10.0.0.0/24"]), ranges(&["10.9.0.0/24"]));
    node.address(&old, "a", "a1");
    node.del("a1");
    let answer = node.add(&new, "a", "a2").unwrap();
    assert_eq!(answer.addresses[0].to_string(), "10.9.0.2");
    assert_eq!(answer.before.unwrap()[0].to_string(), "10.0.0.2", "and that is said");
    node.del("a2");
    assert_eq!(node.address(&new, "a", "a3"), "10.9.0.2");
}

#[test]
fn a_requested_address_is_given_or_refused_never_another() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/24"]);
    node.address(&r, "a", "a1");
    let mut ask = |pod: &str, container: &str, address: &str| {
        let path = node.netns(container);
        let mut request = request(pod, container, &path);
        request.requested = vec![address.parse().unwrap()];
        node.with(|t| t.add(&r, &request, None))
    };
    assert_eq!(ask("b", "b1", "10.0.0.77").unwrap().addresses[0].to_string(), "10.0.0.77");
    assert!(matches!(ask("c", "c1", "10.0.0.2").unwrap_err(), Error::Held { .. }));
    assert!(matches!(ask("c", "c1", "10.0.0.1").unwrap_err(), Error::NotInRanges { .. }), "the gateway");
    assert!(matches!(ask("c", "c1", "10.1.0.2").unwrap_err(), Error::NotInRanges { .. }));
    node.del("a1");
    agent_lists(&node, &["a"]);
    let mut ask = |pod: &str, container: &str, address: &str| {
        let path = node.netns(container);
        let mut request = request(pod, container, &path);
        request.requested = vec![address.parse().unwrap()];
        node.with(|t| t.add(&r, &request, None))
    };
    assert!(matches!(ask("c", "c1", "10.0.0.2").unwrap_err(), Error::Pinned { .. }));
}

#[test]
fn gc_frees_what_is_not_valid_and_ends_no_pin() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/24"]);
    let (a, b) = (node.address(&r, "a", "a1"), node.address(&r, "b", "b1"));
    let valid = BTreeSet::from([("a1".parse().unwrap(), "eth0".parse().unwrap())]);
    let network = "pods".parse().unwrap();
    assert_eq!(node.with(|t| t.gc(&network, &valid, Part::Given, None)).unwrap(), 1);
    assert!(node.add(&r, "a", "a2").unwrap_err().passes());
    assert_eq!(node.address(&r, "b", "b2"), b);
    assert_ne!(a, b);
}

#[test]
fn what_another_ipam_gave_is_recorded_as_it_is() {
    let mut node = Node::new();
    let path = node.netns("c1");
    let (one, two) = (["10.4.0.9".parse().unwrap()], ["10.4.0.10".parse().unwrap()]);
    assert_eq!(node.with(|t| t.observe(&request("a", "c1", &path), &one)).unwrap().before, None);
    node.with(|t| t.del(&attachment("c1"), Part::Given, None)).unwrap();
    node.with(|t| t.check(&attachment("c1"), &one)).expect("the IPAM part's DEL is not ours");
    node.with(|t| t.del(&attachment("c1"), Part::Seen, None)).unwrap();
    let path = node.netns("c2");
    let moved = node.with(|t| t.observe(&request("a", "c2", &path), &two)).unwrap();
    assert_eq!(moved.before, Some(one.to_vec()), "that it is another is flagged");
    let pins = Snapshot::read(&node.store()).pins;
    assert_eq!((pins[0].addresses.as_slice(), pins[0].seen), (two.as_slice(), true));
}

#[test]
fn a_released_pin_is_free_and_a_live_pods_is_released_by_force_alone() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/24"]);
    node.address(&r, "a", "a1");
    let id = Snapshot::read(&node.store()).pins[0].id();
    assert!(matches!(node.with(|t| t.release(&id, false)).unwrap_err(), Error::Held { .. }));
    node.with(|t| t.release(&id, true)).unwrap();
    node.address(&r, "b", "b1");
    let pins = Snapshot::read(&node.store()).pins;
    assert_eq!(pins.iter().map(|p| p.pod.as_str()).collect::<Vec<_>>(), ["b"], "its hold brings no pin back");
    assert!(matches!(node.with(|t| t.release(&id, false)).unwrap_err(), Error::NoPin(_)));
}

#[test]
fn a_del_that_cannot_get_the_lock_is_carried_out_by_the_next_call() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/24"]);
    let home = node.address(&r, "a", "a1");
    node.store().del_later(&attachment("a1"), Part::Given, 1).unwrap();
    assert_eq!(node.address(&r, "a", "a2"), home, "a1 holds it no more, though its netns is there");
    assert_eq!(std::fs::read_dir(node.run().join("freed")).unwrap().count(), 0);
}

#[test]
fn a_lock_that_is_never_released_is_waited_for_only_so_long() {
    let node = Node::new();
    let store = node.store();
    let _held = store.begin(1).unwrap();
    let hasty =
        corax_pins::Store::new(&node.state(), &node.run(), "boot-1", std::time::Duration::from_millis(50));
    let late = hasty.begin(1).unwrap_err();
    assert!(matches!(late, Error::Locked { .. }) && late.passes(), "{late}");
}

#[test]
fn ten_thousand_starts_never_exhaust_a_24() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/24"]);
    let mut live: Vec<(String, String)> = Vec::new();
    for n in 0..10_000 {
        if live.len() == 110 {
            let (container, _) = live.remove(n % 110);
            node.del(&container);
        }
        let (pod, container) = (format!("job-{n:05}-x7x2p"), format!("c{n}"));
        let address = node.address(&r, &pod, &container);
        assert!(live.iter().all(|(_, other)| *other != address), "{address} is given twice at start {n}");
        live.push((container, address));
    }
    let length = std::fs::metadata(node.log()).unwrap().len();
    assert!(length < 256 << 10, "the log has an end: {length} bytes");
}

#[test]
fn two_processes_cannot_be_given_one_address() {
    let node = Node::new();
    let r = ranges(&["10.0.0.0/24"]);
    let store = node.store();
    let all: BTreeSet<_> = std::thread::scope(|scope| {
        let worker = |n: u32| {
            let (store, r) = (&store, &r);
            scope.spawn(move || {
                (0..14)
                    .map(|at| {
                        let name = format!("p{n}-{at}");
                        let request = request(&name, &name, "/nowhere");
                        store.begin(1).unwrap().add(r, &request, None).unwrap().addresses[0]
                    })
                    .collect::<Vec<_>>()
            })
        };
        let workers: Vec<_> = (0..8).map(worker).collect();
        workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    assert_eq!(all.len(), 112);
}

#[test]
fn with_a_table_of_contents_and_without_a_new_pod_gets_the_same_address() {
    let r = ranges(&["10.0.0.0/25"]);
    // When the list of this node's pods is written: never, while addresses were never used, while they are used again, last.
    for list_at in [None, Some(60), Some(170), Some(219)] {
        let told = [0, u64::MAX].map(|from| {
            let mut node = Node::new();
            node.contents_from = Some(from);
            let add = |node: &mut Node, n: u32| {
                let address = node.address(&r, &format!("pod-{n}"), &format!("c{n}"));
                if n % 50 != 7 {
                    node.del(&format!("c{n}"));
                }
                if list_at == Some(n) {
                    let seen = Snapshot::read(&node.store());
                    let pods = [n, n - 1, n - 40].map(|n| format!("default/pod-{n}").parse().unwrap()).into();
                    let list = PodList { log: seen.log, highest: seen.highest, pods };
                    list.write(&node.state(), 1).unwrap();
                }
                address
            };
            (0..260).map(|n| add(&mut node, n)).collect::<Vec<_>>()
        });
        let [with, without] = told;
        assert_eq!(with, without, "list at {list_at:?}");
    }
}

#[test]
fn a_container_added_again_in_a_new_namespace_keeps_its_address() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/30"]); // .2 alone
    let first = node.netns("first");
    let second = node.netns("second");
    let a = node.with(|t| t.add(&r, &request("-", "box", &first), None)).unwrap();
    node.kill("first");
    let b = node.with(|t| t.add(&r, &request("-", "box", &second), None)).unwrap();
    assert_eq!(a.addresses, b.addresses);
    let other = node.add(&r, "-", "other");
    assert!(
        other.is_err(),
        "box lives in {second} and holds it, yet other got {:?}",
        other.unwrap().addresses
    );
}

#[test]
fn a_pinned_pods_container_added_again_in_a_new_namespace_keeps_its_address() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/30"]);
    let first = node.netns("first");
    let second = node.netns("second");
    node.with(|t| t.add(&r, &request("a", "box", &first), None)).unwrap();
    node.kill("first");
    node.with(|t| t.add(&r, &request("a", "box", &second), None)).unwrap();
    let other = node.add(&r, "b", "other");
    assert!(other.is_err(), "other got {:?}", other.unwrap().addresses);
}

#[test]
fn a_pod_that_ran_until_now_goes_after_one_deleted_long_ago() {
    for from in [0, u64::MAX] {
        let mut node = Node::new();
        node.contents_from = Some(from);
        let r = ranges(&["10.0.0.0/29"]); // .2 to .6
        for pod in ["a", "b", "c", "d", "e"] {
            node.address(&r, pod, &format!("{pod}1"));
        }
        node.del("b1"); // deleted
        node.clock += 1_000_000;
        node.kill("a1"); // its sandbox crashed just now, no DEL yet
        assert_eq!(node.address(&r, "new", "n1"), "10.0.0.3", "b's, deleted long ago; a ran until now");
        assert_eq!(node.address(&r, "a", "a2"), "10.0.0.2", "a comes home");
    }
}

#[test]
fn a_pin_ended_by_observation_stays_ended() {
    let mut node = Node::new();
    let address = ["10.4.0.9".parse().unwrap()];
    let path = node.netns("a1");
    node.with(|t| t.observe(&request("a", "a1", &path), &address)).unwrap();
    node.kill("a1");
    let path = node.netns("b1");
    node.with(|t| t.observe(&request("b", "b1", &path), &address)).unwrap();
    let path = node.netns("c1");
    node.with(|t| t.observe(&request("c", "c1", &path), &["10.4.0.10".parse().unwrap()])).unwrap();
    let pins = Snapshot::read(&node.store()).pins;
    let who: Vec<_> = pins.iter().map(|p| (p.pod.to_string(), p.addresses.clone(), p.state)).collect();
    assert_eq!(pins.len(), 2, "{who:?}");
}

#[test]
fn a_pod_seen_where_another_was_keeps_its_pin() {
    let mut node = Node::new();
    let address = ["10.4.0.9".parse().unwrap()];
    let see = |node: &mut Node, pod: &str, c: &str, a: &[std::net::IpAddr]| {
        let path = node.netns(c);
        node.with(|t| t.observe(&request(pod, c, &path), a)).unwrap()
    };
    see(&mut node, "a", "a1", &address);
    node.kill("a1");
    see(&mut node, "b", "b1", &address);
    see(&mut node, "c", "c1", &["10.4.0.10".parse().unwrap()]);
    node.with(|t| t.del(&attachment("b1"), Part::Seen, None)).unwrap();
    node.kill("b1");
    let pins = Snapshot::read(&node.store()).pins;
    let who: Vec<_> = pins.iter().map(|p| (p.pod.to_string(), p.addresses.clone(), p.state)).collect();
    assert!(pins.iter().any(|p| p.pod.as_str() == "b"), "b's pin is lost: {who:?}");
    let answer = see(&mut node, "b", "b2", &address);
    assert_eq!(answer.before, None, "the address is the pin's");
}

#[test]
fn an_import_keeps_that_a_pin_was_only_seen() {
    let mut node = Node::new();
    let path = node.netns("a1");
    node.with(|t| t.observe(&request("a", "a1", &path), &["10.4.0.9".parse().unwrap()])).unwrap();
    let pins = Snapshot::read(&node.store()).pins;
    assert!(pins[0].seen);
    let mut other = Node::new();
    other.with(|t| import::pins(t, &pins)).unwrap();
    assert!(Snapshot::read(&other.store()).pins[0].seen, "exported as seen, imported as given");
}

#[test]
fn a_run_directory_emptied_during_a_transaction_gives_no_address_twice() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/29"]);
    node.address(&r, "z", "z1");
    let (p1, p2) = (node.netns("a1"), node.netns("b1"));
    let store = node.store();
    let mut one = store.begin(1).unwrap();
    let none = "d/none".parse().unwrap();
    let id =
        corax_pins::PinId { network: "pods".parse().unwrap(), pod: none, interface: "eth0".parse().unwrap() };
    let _ = one.release(&id, false); // it has read the log
    std::fs::remove_dir_all(node.run()).unwrap();
    let mut two = store.begin(2).unwrap();
    let b = two.add(&r, &request("b", "b1", &p2), None).unwrap().addresses;
    drop(two);
    let refused = one.add(&r, &request("a", "a1", &p1), None).unwrap_err();
    assert!(matches!(refused, Error::LostLock { .. }) && refused.passes(), "{refused}; the other has {b:?}");
}

#[test]
fn whose_pin_ends_for_another_pod_is_told() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/30"]); // .2 alone
    node.address(&r, "a", "a1");
    node.del("a1");
    let path = node.netns("b1");
    let notes = node.with(|t| {
        t.add(&r, &request("b", "b1", &path), None).unwrap();
        t.notes()
    });
    let told = "pod default/a is pinned no more on network pods: pod default/b has its address";
    assert!(notes.iter().any(|note| note == told), "{notes:?}");
}
