//! What is on disk is torn, flipped, empty, missing or unreadable: the node starts, and says what is lost.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

#[path = "support/node.rs"]
mod common;

use std::collections::BTreeMap;
use std::fs;

use common::{Chance, Node, ranges};
use corax_pins::Snapshot;
use corax_pins::store::{self, Part};

/// Three pods, one of them deleted, and the log that says so.
fn small() -> (Node, BTreeMap<String, String>, Vec<u8>) {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/24"]);
    let pods = ["a", "b", "c"];
    let homes =
        pods.iter().map(|pod| ((*pod).to_owned(), node.address(&r, pod, &format!("{pod}1")))).collect();
    node.del("b1");
    let log = fs::read(node.log()).unwrap();
    (node, homes, log)
}

/// How many pods come home from a log, and that none gets another's address.
fn come_home(node: &mut Node, homes: &BTreeMap<String, String>, log: &[u8], what: &str) -> usize {
    node.reboot();
    fs::write(node.log(), log).unwrap();
    let r = ranges(&["10.0.0.0/24"]);
    let now: Vec<_> = homes.keys().map(|pod| node.address(&r, pod, &format!("{pod}2"))).collect();
    let distinct: std::collections::BTreeSet<_> = now.iter().collect();
    assert_eq!(distinct.len(), now.len(), "{what}: one address given twice: {now:?}");
    now.iter().zip(homes.values()).filter(|(now, home)| now == home).count()
}

#[test]
fn a_log_torn_at_any_byte_loses_only_what_was_behind_it() {
    let (mut node, homes, log) = small();
    let ends: Vec<_> = ["pin", "pin", "pin"]
        .iter()
        .scan(0, |from, kind| {
            let word = format!(" {kind} ");
            let at = log[*from..].windows(5).position(|w| w == word.as_bytes())? + *from;
            let end = at + log[at..].iter().position(|&b| b == b'\n')? + 1;
            *from = end;
            Some(end)
        })
        .collect();
    assert_eq!(ends.len(), 3);
    for cut in 0..=log.len() {
        let whole = ends.iter().filter(|&&end| end <= cut).count();
        let home = come_home(&mut node, &homes, &log[..cut], &format!("cut at {cut}"));
        assert!(home >= whole, "cut at {cut}: {whole} pins were whole, {home} pods came home");
    }
}

#[test]
fn a_flipped_bit_costs_at_most_one_pin_and_is_told() {
    let (mut node, homes, log) = small();
    for at in 0..log.len() {
        let mut flipped = log.clone();
        flipped[at] ^= 1 << (at % 8);
        let home = come_home(&mut node, &homes, &flipped, &format!("flip at {at}"));
        assert!(home >= 2, "flip at {at}: only {home} of 3 came home");
    }
    let mut flipped = log.clone();
    let middle = log.len() / 2;
    flipped[middle] ^= 1;
    node.reboot();
    fs::write(node.log(), &flipped).unwrap();
    assert_eq!(Snapshot::read(&node.store()).damaged, 1);
    let r = ranges(&["10.0.0.0/24"]);
    let path = node.netns("new");
    let notes = node.with(|t| {
        t.add(&r, &common::request("new", "new", &path), None).unwrap();
        t.notes()
    });
    assert!(notes.iter().any(|n| n.contains("1 records of") && n.contains("are lost")), "{notes:?}");
    assert_eq!(Snapshot::read(&node.store()).damaged, 0, "and cleared away");
    assert_eq!(fs::read(node.log().with_extension("damaged")).unwrap()[..flipped.len()], flipped, "and kept");
    fs::write(node.directory.path().join("state/.pods.new"), "a list half written").unwrap();
    all_is_known_for_ours(&node, 3);
}

#[test]
fn a_pin_lost_while_its_pod_runs_comes_back_from_the_hold() {
    let (mut node, homes, _) = small();
    fs::write(node.log(), b"").unwrap();
    let r = ranges(&["10.0.0.0/24"]);
    node.address(&r, "d", "d1");
    node.reboot();
    assert_eq!(node.address(&r, "a", "a2"), homes["a"]);
    assert_eq!(node.address(&r, "c", "c2"), homes["c"]);
}

#[test]
fn a_pin_lost_while_its_pod_runs_comes_back_at_its_del() {
    for how in ["missing", "empty", "directory"] {
        let (mut node, homes, _) = small();
        fs::remove_file(node.log()).unwrap();
        match how {
            "empty" => fs::write(node.log(), b"").unwrap(),
            "directory" => fs::create_dir(node.log()).unwrap(),
            _ => {}
        }
        let notes = node.with(|t| {
            t.del(&common::attachment("a1"), Part::Given, None).unwrap();
            t.notes()
        });
        let told = |what: &str| notes.iter().any(|note| note.contains(what));
        assert!(told("2 pins that") && told("are written again"), "{how}: {notes:?}");
        assert!(how != "missing" || told("the pins of pods that do not run are lost"), "{notes:?}");
        let r = ranges(&["10.0.0.0/24"]);
        node.address(&r, "new", "n1");
        assert_eq!(node.address(&r, "a", "a2"), homes["a"], "{how}");
        node.del("c1");
        assert_eq!(node.address(&r, "c", "c2"), homes["c"], "{how}");
    }
}

#[test]
fn what_was_on_disk_of_a_log_is_not_believed_of_the_next_one() {
    // A new file may well have the inode of the old one.
    for by in ["STATUS", "DEL"] {
        let (mut node, ..) = small();
        let synced = |node: &Node| fs::read_to_string(node.run().join("holds")).unwrap().contains(" synced ");
        assert!(synced(&node), "{by}");
        fs::remove_file(node.log()).unwrap();
        node.with(|t| match by {
            "DEL" => t.del(&common::attachment("a1"), Part::Given, None).unwrap(),
            _ => t.status(&common::attachment("a1").network, Some(&ranges(&["10.0.0.0/24"])), None).unwrap(),
        });
        assert!(node.log().exists() && !synced(&node), "{by}");
        node.address(&ranges(&["10.0.0.0/24"]), "a", "a2");
        assert!(synced(&node), "{by}");
    }
}

#[test]
fn a_late_del_takes_no_address_back_from_the_pod_that_has_it_now() {
    let mut node = Node::new();
    let address = ["10.4.0.9".parse().unwrap()];
    let path = node.netns("a1");
    node.with(|t| t.observe(&common::request("a", "a1", &path), &address)).unwrap();
    node.kill("a1");
    let path = node.netns("b1");
    node.with(|t| t.observe(&common::request("b", "b1", &path), &address)).unwrap();
    node.with(|t| t.del(&common::attachment("a1"), Part::Seen, None)).unwrap();
    let pins = Snapshot::read(&node.store()).pins;
    assert_eq!(pins.iter().map(|p| p.pod.as_str()).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn a_large_log_torn_or_flipped_anywhere_starts() {
    let mut node = Node::new();
    let r = ranges(&["10.0.0.0/16"]);
    for n in 0..2_000 {
        let request = common::request(&format!("pod-{n}"), &format!("c{n}"), "/nowhere");
        node.with(|t| t.add(&r, &request, None)).unwrap();
    }
    let log = fs::read(node.log()).unwrap();
    let mut chance = Chance(0x5eed);
    for round in 0..200 {
        let mut bad = log.clone();
        let at = chance.below(log.len() as u64) as usize;
        match round % 3 {
            0 => bad.truncate(at),
            1 => bad[at] ^= 1 << chance.below(8),
            _ => bad[at..(at + 512).min(log.len())].fill(0),
        }
        node.reboot();
        fs::write(node.log(), &bad).unwrap();
        let pins = Snapshot::read(&node.store()).pins.len();
        let least = if round % 3 == 0 { at / (log.len() / 2_000) * 9 / 10 } else { 1_980 };
        assert!(pins >= least.min(1_980), "round {round}: {pins} pins left of a log damaged at {at}");
        assert!(node.add(&r, "new", "new").is_ok());
    }
}

#[test]
fn empty_missing_and_unreadable_files_cost_no_start() {
    let r = ranges(&["10.0.0.0/24"]);
    for file in ["state/pins", "run/holds", "state/pods"] {
        for how in ["empty", "missing", "directory", "garbage"] {
            let (mut node, ..) = small();
            let path = node.directory.path().join(file);
            let _ = fs::remove_file(&path);
            match how {
                "empty" => fs::write(&path, b"").unwrap(),
                "directory" => fs::create_dir(&path).unwrap(),
                "garbage" => fs::write(&path, [0xff, 0, b'\n', 0xfe, b' ']).unwrap(),
                _ => {}
            }
            let request = common::request("new", "new", "/nowhere");
            let notes = node.with(|t| {
                t.add(&r, &request, None).unwrap_or_else(|e| panic!("{file} {how}: {e}"));
                t.notes()
            });
            node.del("a1");
            if how == "directory" && file != "state/pods" {
                assert!(notes.iter().any(|n| n.contains("cannot be read")), "{file}: {notes:?}");
            }
            let list = notes.iter().any(|n| n.contains("which pods this node has is not known"));
            assert_eq!(list, file == "state/pods" && how != "missing", "{file} {how}: {notes:?}");
        }
    }
}

#[test]
fn what_was_put_aside_before_stays() {
    let r = ranges(&["10.0.0.0/24"]);
    let (mut node, ..) = small();
    let state = node.directory.path().join("state");
    for number in 0..2 {
        let _ = fs::remove_file(state.join("pins"));
        fs::create_dir(state.join("pins")).unwrap();
        fs::write(state.join("pins/mark"), format!("{number}")).unwrap();
        node.with(|t| t.add(&r, &common::request("new", &format!("new{number}"), "/nowhere"), None).unwrap());
    }
    for (number, name) in ["pins.unreadable", "pins.unreadable.1"].into_iter().enumerate() {
        assert_eq!(fs::read_to_string(state.join(name).join("mark")).unwrap(), number.to_string());
    }
    all_is_known_for_ours(&node, 3);
}

/// Whoever takes the state away must know what is the store's by name, and take nothing else.
fn all_is_known_for_ours(node: &Node, least: usize) {
    let entries = fs::read_dir(node.directory.path().join("state")).unwrap();
    let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.len() >= least, "{names:?}");
    let strangers: Vec<_> = names.iter().filter(|name| !store::makes(name)).collect();
    assert!(strangers.is_empty(), "{strangers:?}");
}

#[test]
fn a_name_that_only_begins_like_one_of_the_stores_is_somebody_elses() {
    for name in
        ["pins", "pods", ".pins.new", ".pods.new", "pins.damaged", "pins.unreadable", "pins.unreadable.99"]
    {
        assert!(store::makes(name), "{name}");
    }
    for name in [
        "",
        "pins.pub",
        "pins.",
        "pinsetter",
        "pods.yaml",
        "pins.new",
        ".pins",
        "pods.damaged",
        "pins.damaged.1",
        "pins.unreadable.0",
        "pins.unreadable.01",
        "pins.unreadable.100",
        "pins/",
        "holds",
        "lock",
    ] {
        assert!(!store::makes(name), "{name}");
    }
}
