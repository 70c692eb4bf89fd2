//! The nftables table: adopted when it is as it was left, seen when anything of it changes.

use corax_core::change::Change;
use corax_core::nft::Ruleset;
use corax_core::object::{Device, SetRole};
use corax_core::observed::NftTable;
use corax_core::prefix::Family;

use super::support::*;
use crate::kernel::Kernel;

fn made() -> Kernel {
    let mut kernel = Kernel::open().unwrap();
    apply(&mut kernel, &every_class());
    kernel
}

const fn intact(kernel: &Kernel) -> bool {
    matches!(kernel.observed().nft, NftTable::Intact(_))
}

#[test]
fn a_restart_adopts_the_table_without_a_write() {
    in_namespace(|| {
        let before = made().observed().clone();
        let shown = sh("nft list ruleset");
        let mut kernel = Kernel::open().unwrap();
        assert_same(kernel.observed(), &before, "a restart");
        kernel.resync().unwrap();
        assert!(intact(&kernel));
        assert_eq!(shown, sh("nft list ruleset"));
    });
}

#[test]
fn a_table_is_made_where_no_device_is_ours() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        for devices in [vec![], vec![Device::WireGuard(0)], vec![]] {
            let ruleset = Ruleset { devices, ..ruleset() };
            apply(&mut kernel, &[Change::ReplaceTable(Box::new(ruleset), vec![])]);
            assert!(intact(&kernel));
            assert!(sh("nft list chain inet corax lock").contains("jump locked"));
        }
    });
}

#[test]
fn nft_shows_the_elements_that_were_put() {
    in_namespace(|| {
        let mut kernel = made();
        let own = set(SetRole::Own, Family::V4);
        let texts = ["0.0.0.0/1", "128.0.0.0/2", "192.0.2.1/32", "192.0.2.2/31", "255.255.255.255/32"];
        let add = texts.map(|text| (own, prefix(text))).to_vec();
        let change = Change::ChangeElements { delete: vec![(own, prefix("10.10.4.0/23"))], add: add.clone() };
        apply(&mut kernel, &[change]);
        assert_mirror_is_fresh(&mut kernel, "elements put");
        let shown = sh("nft list set inet corax own4");
        for text in ["0.0.0.0/1", "128.0.0.0/2", "192.0.2.1, 192.0.2.2/31", "255.255.255.255"] {
            assert!(shown.contains(text), "{text}\n{shown}");
        }
        apply(&mut kernel, &[Change::ChangeElements { delete: add, add: vec![] }]);
        assert_mirror_is_fresh(&mut kernel, "elements deleted");
        assert!(!sh("nft list set inet corax own4").contains("elements"));
        assert!(intact(&kernel));
    });
}

#[test]
fn elements_changed_by_nft_are_seen_one_by_one() {
    in_namespace(|| {
        let mut kernel = made();
        for line in [
            "nft add element inet corax remote4 '{ 10.30.0.0/16, 10.31.0.0/24, 10.40.0.1 }'",
            "nft delete element inet corax remote4 '{ 10.31.0.0/24 }'",
            "nft add element inet corax members4 '{ 172.16.0.9, 172.16.0.10 }'",
            "nft delete element inet corax members4 '{ 172.16.0.9 }'",
            "nft add element inet corax remote6 '{ ff00::/8 }'",
            "nft flush set inet corax remote4",
            "nft flush set inet corax members4",
        ] {
            sh(line);
            assert!(kernel.drain().ours, "{line}");
            assert!(intact(&kernel), "{line}");
            assert_mirror_is_fresh(&mut kernel, line);
        }
    });
}

#[test]
fn whatever_else_changes_in_the_table_is_seen_and_made_good_by_replacing_it() {
    in_namespace(|| {
        let mut kernel = made();
        for line in [
            "nft add rule inet corax arrived counter accept",
            "nft flush chain inet corax locked",
            "nft insert rule inet corax lock accept",
            "nft add chain inet corax extra",
            "nft add set inet corax extra '{ type ipv4_addr; }'",
            "nft add element inet corax checksum '{ ::1 }'",
            "nft flush set inet corax checksum",
            "nft add element inet corax own4 '{ 10.66.0.1-10.66.0.6 }'",
            "nft delete table inet corax; nft add table inet corax",
        ] {
            sh(line);
            assert!(kernel.drain().ours, "{line}");
            assert_eq!(kernel.observed().nft, NftTable::Altered, "{line}");
            assert_mirror_is_fresh(&mut kernel, line);
            apply(&mut kernel, &[Change::ReplaceTable(Box::new(ruleset()), vec![])]);
            assert!(intact(&kernel), "{line}");
            assert!(kernel.observed().elements.is_empty(), "{line}");
            assert_mirror_is_fresh(&mut kernel, "replacing the table");
        }
    });
}

/// Packets under way meet full sets, and nothing is counted anew.
#[test]
fn a_table_with_the_chains_and_counters_of_another_version_is_renewed_in_place() {
    in_namespace(|| {
        let mut kernel = made();
        let handle = || {
            let shown = sh("nft -a list set inet corax own4");
            shown.lines().find_map(|line| Some(line.split_once("handle ")?.1.to_owned())).expect("it has one")
        };
        let (before, elements) = (handle(), kernel.observed().elements.clone());
        sh("nft flush chain inet corax arriving; nft delete chain inet corax arrived
            nft flush chain inet corax redirects; nft delete counter inet corax icmp_redirect
            nft add counter inet corax former; nft add chain inet corax beside
            nft add chain inet corax former '{ type filter hook forward priority 0; }'
            nft add rule inet corax former jump beside; nft add rule inet corax beside counter name former");
        kernel.drain();
        assert_eq!(kernel.observed().nft, NftTable::Altered);
        let elements: Vec<_> = elements.keys().copied().collect();
        apply(&mut kernel, &[Change::ReplaceTable(Box::new(ruleset()), elements.clone())]);
        assert!(intact(&kernel));
        assert_eq!(before, handle());
        let shown = sh("nft list table inet corax");
        assert!(
            shown.contains("chain arrived")
                && shown.contains("counter icmp_redirect")
                && !shown.contains("former"),
            "{shown}"
        );
        assert!(kernel.observed().elements.keys().eq(&elements));
        assert_mirror_is_fresh(&mut kernel, "renewing the table");
    });
}

#[test]
fn a_table_that_goes_is_seen_by_event() {
    in_namespace(|| {
        let mut kernel = made();
        for line in ["nft flush ruleset", "nft delete table inet corax"] {
            sh(line);
            while kernel.observed().nft != NftTable::Absent {
                assert!(more_to_come(&kernel), "{line}: no event");
                kernel.drain();
            }
            assert!(kernel.observed().elements.is_empty(), "{line}");
            assert_mirror_is_fresh(&mut kernel, line);
            apply(&mut kernel, &[Change::ReplaceTable(Box::new(ruleset()), vec![])]);
            assert!(intact(&kernel));
        }
    });
}

#[test]
fn elements_that_are_so_already_cost_the_others_nothing() {
    in_namespace(|| {
        let mut kernel = made();
        let (members, own) = (set(SetRole::Members, Family::V4), set(SetRole::Own, Family::V4));
        // Behind the mirror's back.
        sh(
            "nft delete element inet corax members4 '{ 172.16.0.2 }'; nft add element inet corax own4 '{ 10.50.0.0/16 }'",
        );
        let change = Change::ChangeElements {
            delete: vec![(members, prefix("172.16.0.2"))],
            add: vec![(own, prefix("10.50.0.0/16")), (own, prefix("10.51.0.0/16"))],
        };
        apply(&mut kernel, &[change]);
        assert!(kernel.observed().elements.contains_key(&(own, prefix("10.51.0.0/16"))));
        assert_mirror_is_fresh(&mut kernel, "a change of what was so already");
    });
}

#[test]
fn a_ruleset_that_nft_refuses_is_an_error_with_its_words() {
    in_namespace(|| {
        let mut kernel = made();
        let own = set(SetRole::Own, Family::V4);
        let overlapping = vec![(own, prefix("10.0.0.0/8")), (own, prefix("10.1.0.0/16"))];
        let results = kernel.apply(&[Change::ReplaceTable(Box::new(ruleset()), overlapping)], &mut nowhere);
        let error = results[0].clone().unwrap_err();
        assert_eq!(error.change, "nft -f - (table inet corax)");
        assert!(error.text.as_deref().unwrap_or_default().contains("conflicting intervals"), "{error}");
        assert!(intact(&kernel), "the old one stands");
        assert_mirror_is_fresh(&mut kernel, "a refused table");
    });
}

/// A program in nft's place: before it makes a table it waits for a neighbour on the overlay, and writes down what else is there.
fn slow_nft(folder: &std::path::Path) -> std::path::PathBuf {
    let text = format!(
        "if [ $1 = -f ]; then
            n=0
            until ip neigh show dev raven0 | grep -q 240.0.0.2 || [ $n = 500 ]; do n=$((n + 1)); done
            (ip -br link show raven0; ip nexthop; ip route show table all type unicast dev raven0) > {}/seen
        fi
        exec nft \"$@\"",
        folder.display()
    );
    script(folder, &text)
}

#[test]
fn until_the_table_holds_the_overlay_is_down_and_nothing_leads_there() {
    in_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut kernel = Kernel::open().unwrap();
        kernel.nft.use_program(slow_nft(folder.path()));
        let mut changes = vec![Change::ReplaceTable(Box::new(ruleset()), Vec::new()), put_overlay()];
        changes.extend(member(2));
        apply(&mut kernel, &changes);

        let seen = std::fs::read_to_string(folder.path().join("seen")).unwrap();
        assert_eq!(seen.lines().count(), 1, "the link alone, no nexthop, no route: {seen}");
        assert!(seen.starts_with("raven0") && !seen.contains("UP"), "{seen}");
        assert!(sh("ip -br link show raven0").contains(",UP,"));
        assert_eq!(sh("ip nexthop").lines().count(), 2);
        assert!(intact(&kernel));
        assert_mirror_is_fresh(&mut kernel, "a table that took its time");
    });
}

#[test]
fn drops_are_counted_by_reason() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        assert_eq!(kernel.drops().unwrap(), []);
        sh("ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up
            ip addr add 192.0.2.1/24 dev v0; ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev v0 nud permanent");
        let remote = (set(SetRole::Remote, Family::V4), prefix("192.0.2.9"));
        apply(&mut kernel, &[Change::ReplaceTable(Box::new(ruleset()), vec![remote])]);
        let count = |kernel: &mut Kernel| {
            let drops = kernel.drops().unwrap();
            assert_eq!(drops.len(), corax_core::nft::DROP_COUNTERS.len());
            drops.into_iter().find(|(name, ..)| name == "plaintext_lock").unwrap()
        };
        assert_eq!((count(&mut kernel).1, count(&mut kernel).2), (0, 0));
        let socket = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
        let _ = socket.send_to(b"plaintext", "192.0.2.9:9");
        let (_, packets, bytes) = count(&mut kernel);
        assert_eq!((packets, bytes), (1, 20 + 8 + 9));
    });
}

/// nft, with `then` done after every ruleset that it makes.
fn meddling_nft(folder: &std::path::Path, then: &str) -> std::path::PathBuf {
    script(folder, &format!("nft \"$@\" || exit; [ $1 != -f ] || {{ {then}; }}"))
}

fn script(folder: &std::path::Path, text: &str) -> std::path::PathBuf {
    let program = folder.join("nft");
    std::fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
    sh(&format!("chmod 0755 {}", program.display()));
    program
}

#[test]
fn others_who_write_beside_the_table_do_not_keep_it_from_being_known() {
    in_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut kernel = Kernel::open().unwrap();
        kernel.nft.use_program(meddling_nft(
            folder.path(),
            "nft add table inet other; nft delete table inet other",
        ));
        let replace = [Change::ReplaceTable(Box::new(ruleset()), vec![])];
        apply(&mut kernel, &replace);
        assert_eq!(kernel.observed().nft, NftTable::Altered, "it may have been this table");
        apply(&mut kernel, &replace);
        assert!(intact(&kernel), "twice the same");
        assert_mirror_is_fresh(&mut kernel, "a table made beside others");
    });
}

#[test]
fn others_who_write_into_the_table_do_keep_it_from_being_known() {
    in_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut kernel = made();
        // Another each time.
        let times = folder.path().join("times");
        let number = format!("$(echo >>{0}; wc -l <{0})", times.display());
        let rule = format!("nft insert rule inet corax lock ip saddr 192.0.2.{number} accept");
        kernel.nft.use_program(meddling_nft(folder.path(), &rule));
        for _ in 0..3 {
            apply(&mut kernel, &[Change::ReplaceTable(Box::new(ruleset()), vec![])]);
            assert_eq!(kernel.observed().nft, NftTable::Altered);
        }
    });
}

#[test]
fn a_table_whose_rules_are_made_anew_keeps_its_counters_and_what_its_sets_are_to_hold() {
    in_namespace(|| {
        let mut kernel = made();
        let (members, own) = (set(SetRole::Members, Family::V4), set(SetRole::Own, Family::V4));
        let elements = vec![(members, prefix("172.16.0.77")), (own, prefix("10.10.4.0/23"))];
        let mut other = ruleset();
        other.mss4 -= 40;
        for (line, ruleset) in [
            ("nft insert rule inet corax lock accept", ruleset()),
            ("nft flush chain inet corax lock", ruleset()),
            ("true", other),
        ] {
            sh(line);
            sh("nft add table inet counted; nft list counters");
            let before = sh("nft -a list counter inet corax plaintext_lock");
            kernel.drain();
            apply(&mut kernel, &[Change::ReplaceTable(Box::new(ruleset), elements.clone())]);
            assert!(intact(&kernel), "{line}");
            assert_eq!(kernel.observed().elements.keys().copied().collect::<Vec<_>>(), elements, "{line}");
            assert_mirror_is_fresh(&mut kernel, line);
            assert_eq!(
                sh("nft -a list counter inet corax plaintext_lock"),
                before,
                "{line}: the same object"
            );
        }
    });
}

#[test]
fn a_table_that_sleeps_is_made_anew() {
    in_namespace(|| {
        let mut kernel = made();
        sh("nft add table inet corax '{ flags dormant; }'");
        assert!(kernel.drain().ours);
        apply(&mut kernel, &[Change::ReplaceTable(Box::new(ruleset()), vec![])]);
        assert!(intact(&kernel));
        assert!(!sh("nft list table inet corax").contains("dormant"));
    });
}

#[test]
fn where_packets_go_by_already_the_rules_come_after_all_members() {
    in_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut kernel = made();
        sh("nft flush ruleset");
        kernel.drain();
        let listed = folder.path().join("listed");
        let look = format!(
            "case $(nft list chains) in *vxlan_in*) ;; *) nft -j list set inet corax members4 > {} ;; esac",
            listed.display()
        );
        // It looks before the rules are made, and again before each text after that.
        kernel.nft.use_program(script(
            folder.path(),
            &format!("[ $1 != -f ] || {{ {look}; }} 2> /dev/null\nexec nft \"$@\""),
        ));
        let members = set(SetRole::Members, Family::V4);
        let elements: Vec<_> =
            (0..2000).map(|n: u32| (members, prefix(&format!("172.16.{}.{}", n / 250, n % 250)))).collect();
        apply(&mut kernel, &[Change::ReplaceTable(Box::new(ruleset()), elements)]);
        let seen = std::fs::read_to_string(listed).unwrap();
        assert_eq!(seen.matches("172.16.").count(), 2000, "{seen}");
        assert!(intact(&kernel));
        assert_mirror_is_fresh(&mut kernel, "a large table");
    });
}

#[test]
fn without_a_table_the_overlay_stays_down() {
    in_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut kernel = Kernel::open().unwrap();
        kernel.nft.use_program(script(folder.path(), "[ $1 != -f ] || exit 1; exec nft \"$@\""));
        let replace = Change::ReplaceTable(Box::new(ruleset()), Vec::new());
        let mut changes = vec![replace.clone(), put_overlay()];
        let up = match put_overlay() {
            Change::AddLink(device, link) => Change::SetLink(device, link),
            other => panic!("{other:?}"),
        };
        // The second time it is there, and only to be set up.
        for what in ["made", "set up"] {
            let results = kernel.apply(&changes, &mut nowhere);
            assert!(results.iter().all(Result::is_err), "{what}: {results:?}");
            assert!(!sh("ip -br link show raven0").contains(",UP,"), "{what}");
            changes = vec![replace.clone(), up.clone()];
        }
        kernel.nft.use_program("/usr/sbin/nft".into());
        apply(&mut kernel, &changes);
        assert!(sh("ip -br link show raven0").contains(",UP,"));
    });
}

#[test]
fn a_full_reading_leaves_out_the_table_only_while_nobody_changed_anything() {
    in_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut kernel = made();
        kernel.resync().unwrap();
        let listed = folder.path().join("listed");
        kernel.nft.use_program(script(
            folder.path(),
            &format!("case $* in *list*) echo >> {} ;; esac\nexec nft \"$@\"", listed.display()),
        ));
        let times = || std::fs::read_to_string(&listed).unwrap_or_default().lines().count();
        kernel.resync().unwrap();
        assert_eq!(times(), 0);
        sh("nft add table inet other");
        for expected in [1, 1] {
            kernel.resync().unwrap();
            assert_eq!(times(), expected);
        }
        assert!(intact(&kernel));
        assert_mirror_is_fresh(&mut kernel, "what others do");
    });
}
