//! Nodes whose own settings stand in the way: Corax works all the same, or says exactly what to set.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::agent::{SOON, await_ready, by_events, lose_tunnel, metric, status};
use crate::await_::eventually;
use crate::lab::{Lab, Plan};
use crate::space::Space;
use crate::traffic::{PORT, fetch};

/// Problems of an object with these words.
fn problems_of(space: &Space, words: &str) -> Vec<Value> {
    let status = status(space);
    let all = status["problems"].as_array().expect("a list").iter();
    all.filter(|problem| problem["object"].as_str().is_some_and(|object| object.contains(words)))
        .cloned()
        .collect()
}

/// Does what the problems of an object ask for, and waits until they are gone.
#[track_caller]
fn remedied(lab: &Lab, name: &str, words: &str, count: usize) {
    let space = &lab.node(name).space;
    let problems = problems_of(space, words);
    assert_eq!(problems.len(), count, "{words}: {problems:?}");
    let log = std::fs::read_to_string(lab.log(name)).expect("there is a log");
    for problem in &problems {
        let [what, remedy] = ["what", "remedy"].map(|part| problem[part].as_str().expect("text"));
        let told =
            log.lines().any(|line| line.contains(what) && line.ends_with(&format!("remedy={remedy:?}")));
        assert!(told, "{problem} is not in the log: {log}");
        space.sh(remedy);
    }
    eventually(&format!("{words}: no longer a problem"), SOON, || {
        // Of iptables' old kind, and of sysctls, no event tells: they are seen each minute, or when something else happens.
        space.run("ip address add 10.250.0.1/32 dev lo");
        space.run("ip address del 10.250.0.1/32 dev lo");
        match problems_of(space, words) {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        }
    });
}

fn two_domains(hostile: &str) -> Lab {
    let mut lab = Lab::build(&[Plan::public("cloud", 1), Plan::nat("site", 2).mesh()]);
    for node in lab.nodes() {
        node.space.sh(hostile);
    }
    lab.declare();
    lab.write();
    for name in ["cloud-1", "site-1", "site-2"] {
        lab.start_agent(name, &[]);
    }
    for node in lab.nodes() {
        await_ready(&node.space);
    }
    lab
}

#[track_caller]
fn is_cut_off(lab: &Lab) {
    let (from, to) = (lab.node("site-2"), lab.node("cloud-1"));
    from.pod.try_run(&format!("ping -n -q -c 1 -w 3 {}", to.pod4())).expect_err("this setting does no harm");
}

/// Nodes with a setting that cuts them off: each says what to set, by so many problems of these objects, and works once that is
/// done.
#[track_caller]
fn told_and_remedied(hostile: &str, objects: &[(&str, usize)]) {
    let mut lab = two_domains(hostile);
    is_cut_off(&lab);
    for name in ["cloud-1", "site-1", "site-2"] {
        for (words, count) in objects {
            remedied(&lab, name, words, *count);
        }
    }
    lab.everyone_reaches_everyone();
}

#[test]
fn a_forward_policy_of_drop_is_told_with_what_to_set() {
    told_and_remedied("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP", &[("FORWARD", 2)]);
}

#[test]
fn a_firewall_of_nftables_that_forwards_nothing_is_told_with_what_to_set() {
    told_and_remedied(
        "nft 'table inet firewall { chain through { type filter hook forward priority filter; policy drop;
             ct state established,related accept; }; }'",
        &[("inet firewall", 1)],
    );
}

/// Does something on a node that works, and waits until so many of its chains are told of.
#[track_caller]
fn told(space: &Space, script: &str, count: usize) {
    space.sh(script);
    eventually(&format!("after {script}: {count} problems"), SOON, || match problems_of(space, "chain ") {
        told if told.len() == count => Ok(()),
        told => Err(format!("{told:?}")),
    });
}

#[test]
fn a_filter_that_comes_or_goes_is_told_at_once() {
    let mut lab = two_domains("");
    lab.everyone_reaches_everyone();
    let space = &lab.node("cloud-1").space;
    for (come, go, count) in [
        (
            "nft 'table inet firewall { chain through { type filter hook forward priority filter; policy drop; }; }'",
            "nft delete table inet firewall",
            1,
        ),
        (
            "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP",
            "iptables -P FORWARD ACCEPT; ip6tables -P FORWARD ACCEPT",
            2,
        ),
    ] {
        by_events(space, come, || {
            told(space, come, count);
            told(space, go, 0);
        });
    }
}

#[test]
fn others_that_change_their_tables_all_the_time_cost_a_look_now_and_then() {
    let lab = two_domains("");
    let space = &lab.node("cloud-1").space;
    space.sh("nft add table inet busy; nft add chain inet busy rest");
    let turns = || metric(space, "corax_reconciles_total", &[]);
    let (before, begun) = (turns(), std::time::Instant::now());
    for _ in 0..200 {
        space.sh("nft add rule inet busy rest counter; nft flush chain inet busy rest");
    }
    // A look each 3 s, the tunnel each 5 s, and what else may be.
    let most = begun.elapsed().as_secs_f64() * (1.0 / 3.0 + 1.0 / 5.0) + 6.0;
    assert!(turns() - before <= most, "{} turns, {most} are enough", turns() - before);
}

#[test]
fn strict_reverse_path_filters_do_no_harm_and_forwarding_that_is_off_is_told() {
    told_and_remedied(
        "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 >$f; done
         echo 0 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding",
        &[("net.ipv4.ip_forward", 1), ("net.ipv6.conf.all.forwarding", 1)],
    );
}

/// Loads a firewall's rules into every node, does what status says on each, and sees that domains reach each other then.
#[track_caller]
fn firewalls_are_told_of_and_passed(load: impl Fn(&Space)) {
    let mut lab = Lab::build(&[Plan::public("cloud", 2), Plan::nat("site", 2).mesh()]);
    for node in lab.nodes() {
        load(&node.space);
    }
    lab.declare();
    lab.write();
    lab.start_agents();
    is_cut_off(&lab);
    for node in lab.nodes() {
        let chains = problems_of(&node.space, "chain ");
        assert!(!chains.is_empty(), "{} tells of no chain", node.name);
        remedied(&lab, &node.name, "chain ", chains.len());
    }
    lab.serve();
    lab.await_tunnels();
    for from in lab.nodes() {
        // Inside a domain without mesh it is the CNI that has to tell the firewall.
        for to in lab.nodes().iter().filter(|to| to.domain != from.domain) {
            for address in [to.pod4(), to.pod6()] {
                fetch(&from.pod, (address, PORT).into(), 1000)
                    .unwrap_or_else(|why| panic!("{} to {address}: {why}", from.name));
            }
        }
    }
}

#[test]
fn a_firewall_of_legacy_iptables_is_told_of_with_what_to_set() {
    firewalls_are_told_of_and_passed(|space| {
        space.sh("for program in iptables-legacy ip6tables-legacy; do
                      $program -P FORWARD DROP
                      $program -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
                      $program -A INPUT -p ipv6-icmp -j ACCEPT
                      $program -A INPUT -i lo -j ACCEPT
                      $program -A INPUT -j REJECT
                  done");
    });
}

#[test]
fn a_firewall_that_lets_everything_of_corax_through_is_no_problem() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2), Plan::nat("site", 1)]);
    for node in lab.nodes() {
        node.space.nft(
            "table inet firewall {
                 chain through {
                     type filter hook forward priority filter; policy accept;
                     iifname { raven0, raven-wg0 } accept
                     oifname { raven0, raven-wg0 } accept
                     iifname cni0 oifname eth0 accept
                     iifname eth0 oifname cni0 accept
                     jump rest
                 }
                 chain in {
                     type filter hook input priority filter; policy drop;
                     ct state established,related accept
                     iifname { lo, cni0 } accept
                     meta l4proto { icmp, ipv6-icmp } accept
                     udp dport { 53, 4400-4472, 4500 } accept
                 }
                 chain rest { counter reject; }
             }",
        );
    }
    lab.declare();
    lab.write();
    lab.start_agents();
    lab.everyone_reaches_everyone();
    for node in lab.nodes() {
        assert_eq!(problems_of(&node.space, "chain "), Vec::<Value>::new(), "{}", node.name);
    }
}

#[test]
fn a_firewall_that_lets_little_out_is_told_of_with_what_to_set() {
    firewalls_are_told_of_and_passed(|space| {
        space.nft(
            "table inet firewall {
                 chain out {
                     type filter hook output priority filter; policy drop;
                     oifname { lo, cni0 } accept
                     meta l4proto { icmp, ipv6-icmp } accept
                 }
             }",
        );
    });
}

/// What kubelets before 1.27 make, and later ones leave where it is.
#[test]
fn what_kubelet_drops_by_its_mark_is_not_ours() {
    let mut lab = Lab::build(&[Plan::public("cloud", 1), Plan::nat("site", 2).mesh()]);
    for node in lab.nodes() {
        node.space.sh("for program in iptables ip6tables; do
                           $program -N KUBE-FIREWALL
                           $program -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
                           $program -I OUTPUT -j KUBE-FIREWALL
                           $program -I INPUT -j KUBE-FIREWALL
                       done");
    }
    lab.declare();
    lab.write();
    lab.start_agents();
    lab.everyone_reaches_everyone();
}

#[test]
fn ufw_is_told_of_with_what_to_set() {
    firewalls_are_told_of_and_passed(|space| {
        space.feed(&["iptables-restore"], include_str!("fixtures/ufw/iptables.rules"));
        space.feed(&["ip6tables-restore"], include_str!("fixtures/ufw/ip6tables.rules"));
    });
}

#[test]
fn firewalld_is_told_of_with_what_to_set() {
    firewalls_are_told_of_and_passed(|space| space.nft(include_str!("fixtures/firewalld/nftables.rules")));
}

#[test]
fn a_secret_that_changed_at_one_end_costs_nothing_until_a_session_ends_and_is_told_then() {
    let mut lab = two_domains("");
    lab.everyone_reaches_everyone();
    lab.end_agent("cloud-1", Signal::SIGTERM);
    lab.start_agent("cloud-1", &["--vpn-connection-psk", "another"]);
    await_ready(&lab.node("cloud-1").space);
    lab.everyone_reaches_everyone();
    lose_tunnel(&lab.node("site-1").space);
    await_handshakes_in_vain(&lab, true);
    lab.end_agent("site-1", Signal::SIGTERM);
    lab.start_agent("site-1", &["--vpn-connection-psk", "another"]);
    lab.everyone_reaches_everyone();
    await_handshakes_in_vain(&lab, false);
}

#[test]
fn a_peer_that_went_is_told_of_though_its_session_is_fresh() {
    let mut lab = two_domains("");
    lab.everyone_reaches_everyone();
    let router = lab.router("site");
    router.nft(
        "table inet cut {
             chain through {
                 type filter hook forward priority raw; policy accept;
                 meta l4proto udp drop
             }
         }",
    );
    await_handshakes_in_vain(&lab, true);
    router.sh("nft delete table inet cut");
    await_handshakes_in_vain(&lab, false);
}

/// Waits, with traffic, until the site tells, or tells no longer, of a tunnel that asks for a handshake in vain.
#[track_caller]
fn await_handshakes_in_vain(lab: &Lab, told: bool) {
    let (site, to) = (lab.node("site-1"), lab.node("cloud-1").pod4());
    let what = if told { "it is told" } else { "it is no problem any more" };
    eventually(what, 3 * SOON, || {
        let _ = site.pod.try_run(&format!("ping -n -q -c 1 -W 1 {to}"));
        let problems = status(&site.space)["problems"].to_string();
        if problems.contains("no handshake") == told { Ok(()) } else { Err(problems) }
    });
}

/// By a minute's end, where the kernel counts it (5.19).
#[test]
fn members_that_make_macs_of_something_else_are_told_of() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2).mesh()]);
    lab.declare();
    lab.write();
    lab.start_agent("cloud-1", &[]);
    lab.start_agent("cloud-2", &["--cluster-name", "another"]);
    let (own, other) = (lab.node("cloud-1"), lab.node("cloud-2"));
    await_ready(&own.space);
    await_ready(&other.space);
    eventually("it is told", SOON * 4, || {
        let _ = other.pod.try_run(&format!("ping -n -q -c 1 -W 1 {}", own.pod4()));
        let problems = status(&own.space)["problems"].to_string();
        if problems.contains("--cluster-name") { Ok(()) } else { Err(problems) }
    });
}
