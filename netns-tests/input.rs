//! What is wrong with the input, or with the node, costs its own part only, and is said.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::agent::{Agent, CORAX, SECRET, SOON, ask, await_ready, metric, problems, status, wireguard_asked};
use crate::await_::eventually;
use crate::lab::{Lab, Plan};
use crate::manifests::paper;
use crate::objects::{difference, ours};
use crate::space::Space;
use crate::traffic::Flow;

fn two_domains() -> Lab {
    Lab::start(&[Plan::public("cloud", 2), Plan::nat("site", 1)])
}

fn await_problem(space: &Space, words: &[&str]) {
    eventually(&format!("a problem with {words:?}"), SOON, || {
        let status = space.try_run(&format!("{CORAX} status -o json"))?;
        let status: Value = serde_json::from_str(&status).map_err(|error| error.to_string())?;
        let text = status["problems"].to_string();
        if words.iter().all(|word| text.contains(word)) { Ok(()) } else { Err(text) }
    });
}

fn await_route(space: &Space, prefix: &str) {
    eventually(&format!("a route to {prefix}"), SOON, || {
        let routes = space.run("ip route show table 9028");
        if routes.lines().any(|line| line.starts_with(prefix)) { Ok(()) } else { Err(routes) }
    });
}

#[test]
fn a_malformed_file_keeps_its_own_last_gateways_and_others_go_on() {
    let mut lab = two_domains();
    lab.serve();
    let member = lab.node("cloud-2");
    let flow = Flow::start(&member.pod, lab.node("site-1").pod4(), Duration::from_millis(5));
    lab.write_file("site.json", "{ \"apiVersion\": ");
    await_problem(&member.space, &["site.json"]);
    lab.write_file("other.json", &paper("other", &["10.150.1.0/24"]).to_string());
    await_route(&member.space, "10.150.1.0/24");
    flow.lost_nothing();
    // Well again, it is followed again.
    lab.write();
    eventually("nothing is wrong", SOON, || {
        let text = problems(&member.space);
        if text.contains("site.json") { Err(text) } else { Ok(()) }
    });
}

#[test]
fn a_file_that_was_never_good_deletes_nothing_of_what_it_may_name() {
    let mut lab = two_domains();
    lab.serve();
    lab.await_tunnels();
    let flow = Flow::start(&lab.node("cloud-2").pod, lab.node("site-1").pod4(), Duration::from_millis(5));
    for name in ["cloud-1", "cloud-2"] {
        lab.end_agent(name, Signal::SIGKILL);
        lab.node(name).space.sh("rm /var/lib/corax/snapshot*");
    }
    lab.write_file("site.json", "{ \"apiVersion\": ");
    lab.write_file("other.json", &paper("other", &["10.150.1.0/24"]).to_string());
    for name in ["cloud-1", "cloud-2"] {
        let before = lab.node(name).space.sh("ip route show table 9028; ip -6 route show table 9028");
        lab.start_agent(name, &[]);
        let space = &lab.node(name).space;
        await_route(space, "10.150.1.0/24");
        await_problem(space, &["the view", "incomplete"]);
        let (code, body) = ask(space, "/readyz").expect("it answers");
        assert!(code == 200 && body.contains("incomplete"), "{code} {body}");
        let after = space.sh("ip route show table 9028; ip -6 route show table 9028");
        let lost: Vec<_> = before.lines().filter(|line| !after.contains(line.trim())).collect();
        assert!(lost.is_empty(), "{name}: {lost:?} of {after}");
    }
    flow.lost_nothing();
    // Once all is known, what nobody names goes.
    lab.write_file("site.json", &paper("another", &["10.151.1.0/24"]).to_string());
    for name in ["cloud-1", "cloud-2"] {
        let space = &lab.node(name).space;
        eventually("the site's routes are gone", SOON, || {
            let routes = space.run("ip route show table 9028");
            if routes.contains("10.101.") { Err(routes) } else { Ok(()) }
        });
        assert!(!problems(space).contains("incomplete"), "{}", problems(space));
    }
}

#[test]
fn a_domain_that_overlaps_another_is_refused_and_others_go_on() {
    let mut lab = two_domains();
    lab.serve();
    let member = lab.node("cloud-2");
    let flow = Flow::start(&member.pod, lab.node("site-1").pod4(), Duration::from_millis(5));
    lab.write_file("thief.json", &paper("thief", &["10.101.1.0/24"]).to_string());
    lab.write_file("other.json", &paper("other", &["10.150.1.0/24"]).to_string());
    await_route(&member.space, "10.150.1.0/24");
    await_problem(&member.space, &["thief", "10.101.1.0/24"]);
    flow.lost_nothing();
    lab.everyone_reaches_everyone();
}

#[test]
fn a_prefix_that_would_cut_the_node_off_is_refused() {
    let lab = two_domains();
    let member = lab.node("cloud-2");
    let prefixes = ["172.16.0.0/16", "0.0.0.0/0", "10.96.0.0/20", "240.0.0.0/8", "10.150.1.0/24"];
    lab.write_file("greedy.json", &paper("greedy", &prefixes).to_string());
    await_route(&member.space, "10.150.1.0/24");
    for refused in ["172.16.0.0/16", "0.0.0.0/0", "10.96.0.0/20"] {
        await_problem(&member.space, &["greedy", refused]);
    }
    let routes = member.space.run("ip route show table 9028");
    assert!(
        !routes.contains("172.16") && !routes.contains("default") && !routes.contains("10.96"),
        "{routes}"
    );
    member.space.run("ping -n -c 1 -W 2 172.16.0.254");
}

#[test]
fn a_prefix_that_became_one_that_would_cut_the_node_off_stays_as_it_was() {
    let mut lab = two_domains();
    lab.write_file("greedy.json", &paper("greedy", &["172.16.200.0/24"]).to_string());
    await_route(&lab.node("cloud-2").space, "172.16.200.0/24");
    lab.write_file("greedy.json", &paper("greedy", &["172.16.0.0/16"]).to_string());
    let stays = |lab: &Lab| {
        let space = &lab.node("cloud-2").space;
        await_problem(
            space,
            &["greedy", "172.16.0.0/16", "172.16.200.0/24, which was steered before, stays"],
        );
        let routes = space.run("ip route show table 9028");
        assert!(routes.contains("unreachable 172.16.200.0/24"), "{routes}");
        assert!(!routes.contains("172.16.0.0/16"), "{routes}");
        let locked = space.run("nft get element inet corax remote4 { 172.16.200.1 }");
        assert!(locked.contains("172.16.200.0/24"), "{locked}");
    };
    stays(&lab);
    lab.end_agent("cloud-2", Signal::SIGKILL);
    lab.start_agent("cloud-2", &[]);
    await_ready(&lab.node("cloud-2").space);
    stays(&lab);
    // What it is corrected to ends that.
    lab.write_file("greedy.json", &paper("greedy", &["10.150.1.0/24"]).to_string());
    let space = &lab.node("cloud-2").space;
    await_route(space, "10.150.1.0/24");
    let routes = space.run("ip route show table 9028");
    assert!(!routes.contains("172.16.200.0/24"), "{routes}");
}

#[test]
fn malformed_parts_of_a_gateway_cost_only_themselves() {
    let lab = two_domains();
    let member = lab.node("cloud-2");
    let mut gateway = paper("broken", &["", "10.150.1.0/24", "10.300.0.0/24"]);
    lab.write_file("broken.json", &gateway.to_string());
    await_route(&member.space, "10.150.1.0/24");
    await_problem(&member.space, &["broken", "10.300.0.0/24"]);
    gateway["status"]["activeEndpoints"][0]["config"]["publicKey"] = json!("no key");
    lab.write_file("broken.json", &gateway.to_string());
    let space = &lab.node("cloud-1").space;
    await_problem(space, &["broken", "no key"]);
    assert!(space.run("wg show raven-wg0 peers").lines().count() == 2, "its tunnel stays, and the site's");
}

#[test]
fn a_key_that_is_no_good_cuts_no_tunnel() {
    let mut lab = two_domains();
    lab.serve();
    lab.await_tunnels();
    let key = |lab: &Lab, domain: &str| {
        lab.gateways[domain]["status"]["activeEndpoints"][0]["config"]["publicKey"].clone()
    };
    let good = key(&lab, "site");
    let flow = Flow::start(&lab.node("cloud-2").pod, lab.node("site-1").pod4(), Duration::from_millis(5));
    for (bad, word) in
        [(json!("no key"), "no key"), (key(&lab, "cloud"), "endpoint cloud-1 of Gateway cloud")]
    {
        let gateway = lab.gateways.get_mut("site").expect("it is declared");
        gateway["status"]["activeEndpoints"][0]["config"]["publicKey"] = bad;
        lab.write();
        for name in ["cloud-1", "site-1"] {
            let space = &lab.node(name).space;
            await_problem(space, &["Gateway site, endpoint site-1", word, good.as_str().expect("text")]);
            assert!(!problems(space).contains("is not reached"), "{}", problems(space));
        }
    }
    flow.lost_nothing();
}

#[test]
fn a_foreign_raven0_is_refused_and_untouched() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2), Plan::nat("site", 1)]);
    lab.declare();
    lab.write();
    let space = &lab.node("cloud-2").space;
    space.sh("ip link add raven0 type vxlan id 77 dstport 4789 remote 172.16.0.11 dev eth0; ip addr add 10.66.0.1/24 dev raven0; ip link set raven0 up");
    let look = "ip -d link show raven0; ip -4 addr show raven0; cat /proc/sys/net/ipv4/conf/raven0/rp_filter";
    let before = space.sh(look);
    lab.start_agents_of(&["cloud-1", "cloud-2", "site-1"]);
    await_problem(&lab.node("cloud-2").space, &["raven0"]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(before, lab.node("cloud-2").space.sh(look));
}

#[test]
fn a_nexthop_id_of_somebody_else_is_avoided() {
    let mut lab = two_domains();
    let space = &lab.node("cloud-2").space;
    let nexthops = space.json("ip -j nexthop show");
    let taken = nexthops[0]["id"].as_u64().expect("a nexthop");
    lab.end_agent("cloud-2", Signal::SIGTERM);
    let space = &lab.node("cloud-2").space;
    space.run(&format!("{CORAX} cleanup"));
    space.run(&format!("ip nexthop add id {taken} via 172.16.0.254 dev eth0 protocol static"));
    let foreign = space.run(&format!("ip nexthop get id {taken}"));
    lab.start_agent("cloud-2", &[]);
    let space = &lab.node("cloud-2").space;
    await_ready(space);
    assert_eq!(space.run(&format!("ip nexthop get id {taken}")), foreign);
    lab.everyone_reaches_everyone();
}

#[test]
fn a_rule_of_somebody_else_that_shadows_ours_is_reported() {
    let lab = two_domains();
    let space = &lab.node("cloud-2").space;
    let before = ours(space);
    space.run("ip rule add priority 50 from all lookup 4711");
    await_problem(space, &["rule", "50"]);
    let after = ours(space);
    assert!(before.is_subset(&after), "{}", difference(&before, &after));
    space.run("ip rule del priority 50");
    eventually("it is no problem any more", SOON, || {
        let text = problems(space);
        if text.contains("50") { Err(text) } else { Ok(()) }
    });
}

#[test]
fn a_node_whose_packets_come_from_another_address_than_its_gateway_says_is_told() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2), Plan::nat("site", 1)]);
    lab.declare();
    let second = "172.16.0.77";
    let space = &lab.node("cloud-2").space;
    space.run(&format!("ip addr add {second}/24 dev eth0"));
    let first = lab.node("cloud-2").address.to_string();
    let nodes = lab.gateways["cloud"]["status"]["nodes"].as_array().expect("nodes");
    let at = nodes.iter().position(|node| node["nodeName"] == "cloud-2").expect("it is one");
    lab.gateways.get_mut("cloud").expect("it is declared")["status"]["nodes"][at]["privateIP"] =
        json!(second);
    lab.write();
    lab.start_agents();
    let node = lab.node("cloud-2");
    await_problem(
        &node.space,
        &[
            &format!("address {second}"),
            "to the member cloud-1",
            &format!("comes from {first}"),
            "ip route get",
        ],
    );
    assert!(!problems(&lab.node("cloud-1").space).contains("comes from"));
    let to_site = format!("ping -n -c 1 -W 1 {}", lab.node("site-1").pod4());
    lab.await_tunnels();
    assert!(node.pod.try_run(&to_site).is_err(), "the guard takes it for a stranger's");
    // The remedy.
    node.space.run(&format!("ip route change 172.16.0.0/24 dev eth0 src {second}"));
    eventually("it is no problem any more", SOON, || {
        let text = problems(&node.space);
        if text.contains("comes from") { Err(text) } else { Ok(()) }
    });
    eventually("the site answers", SOON, || node.pod.try_run(&to_site));
}

/// That the node says there is no path to a domain, with this reason, wherever it may be asked.
#[track_caller]
fn tells_of_no_path(space: &Space, to: &str, why: &str) {
    eventually(&format!("{}: no path to {to}, for {why}", space.name), SOON, || {
        let (code, body) = ask(space, "/readyz")?;
        let status = status(space);
        let path = metric(space, "corax_domain_path", &[to]);
        let text = space.run(&format!("{CORAX} status"));
        let shown = text.lines().any(|line| {
            line.split_whitespace().next() == Some(to) && line.split_whitespace().nth(1) == Some("none")
        });
        if code == 503 && body.contains(why) && path == 0.0 && shown && one_list(space, &status, &text, why) {
            Ok(())
        } else {
            Err(format!("{code} {body}, path {path}, {status:#}\n{text}"))
        }
    });
}

/// Whether problems are the same in text, JSON and metric, and one of them says why.
fn one_list(space: &Space, status: &Value, text: &str, why: &str) -> bool {
    let all: Vec<String> = (status["problems"].as_array().into_iter().flatten())
        .map(|problem| ["object", "what", "remedy"].map(|part| problem[part].as_str().unwrap_or("")))
        .map(|[object, what, remedy]| format!("{object}: {what} ({remedy})"))
        .collect();
    let failed = status["view"]["failed"].as_array().into_iter().flatten();
    let lines = text.lines().skip_while(|line| *line != "PROBLEMS").skip(1).map(str::trim_start);
    metric(space, "corax_problems", &[]) == all.len() as f64
        && lines.eq(all.iter().map(String::as_str))
        && failed.into_iter().all(|line| line.as_str().is_some_and(|line| all.iter().any(|all| all == line)))
        && all.iter().filter(|line| line.contains(why)).count() == 1
}

#[test]
fn a_path_that_something_stands_in_the_way_of_is_none_wherever_it_is_asked_for() {
    let mut lab = Lab::build(&[Plan::public("cloud", 3), Plan::nat("site", 1)]);
    lab.declare();
    lab.write();
    for (name, script) in [
        ("cloud-1", "ip link add raven-wg0 type bridge"),
        ("cloud-2", "ip link add raven0 type bridge"),
        ("cloud-3", "ip link add other type vxlan id 200 dstport 4472 dev eth0; ip link set other up"),
    ] {
        lab.node(name).space.sh(script);
    }
    lab.start_agents_of(&["cloud-1", "cloud-2", "cloud-3", "site-1"]);
    for (name, why) in [("cloud-1", "raven-wg0"), ("cloud-2", "raven0"), ("cloud-3", "VNI 200")] {
        tells_of_no_path(&lab.node(name).space, "site", why);
    }
    let space = &lab.node("site-1").space;
    await_ready(space);
    assert_eq!(metric(space, "corax_domain_path", &["cloud"]), 1.0);
    space.sh("for pid in $(pgrep -f '[c]orax tunnel'); do kill -STOP $pid; done");
    tells_of_no_path(space, "cloud", "WireGuard");
    space.sh("for pid in $(pgrep -f '[c]orax tunnel'); do kill -CONT $pid; done");
    for (name, script) in [
        ("cloud-1", "ip link del raven-wg0"),
        ("cloud-2", "ip link del raven0"),
        ("cloud-3", "ip link del other"),
        ("site-1", ""),
    ] {
        let space = &lab.node(name).space;
        space.sh(script);
        await_ready(space);
        let to = if name == "site-1" { "cloud" } else { "site" };
        assert_eq!(metric(space, "corax_domain_path", &[to]), 1.0, "{name}");
    }
    lab.everyone_reaches_everyone();
}

#[test]
fn what_the_kernel_goes_on_refusing_is_tried_with_patience() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2).mesh()]);
    lab.declare();
    lab.write();
    let space = &lab.node("cloud-1").space;
    space.sh("ip link add other type vxlan id 200 dstport 4472 dev eth0; ip link set other up");
    lab.start_agent("cloud-1", &[]);
    let space = &lab.node("cloud-1").space;
    await_problem(space, &["VNI 200"]);
    let turns = || metric(space, "corax_reconciles_total", &[]);
    let (before, begun) = (turns(), std::time::Instant::now());
    eventually(
        "it is tried again",
        SOON,
        || {
            if turns() >= before + 3.0 { Ok(()) } else { Err(String::new()) }
        },
    );
    assert!(begun.elapsed() >= Duration::from_secs(1), "three turns in {:?}", begun.elapsed());
}

/// The one problem of a node whose overlay does not come up.
#[track_caller]
fn one_cause(space: &Space, words: &[&str]) {
    let told = eventually(&format!("one problem with {words:?}"), SOON, || {
        let problems = status(space)["problems"].as_array().cloned().unwrap_or_default();
        let text = |problem: &Value| problem.to_string();
        let waits = |text: &String| text.contains("changes that need it wait");
        match problems.iter().map(text).collect::<Vec<_>>() {
            problems if problems.iter().any(waits) => Ok(problems),
            problems => Err(format!("{problems:?}")),
        }
    });
    assert!(told.len() == 1 && words.iter().all(|word| told[0].contains(word)), "{told:#?}");
}

#[test]
fn what_keeps_the_overlay_from_coming_up_is_one_problem() {
    let mut lab = Lab::build(&[Plan::public("cloud", 3).mesh()]);
    lab.declare();
    lab.write();
    lab.node("cloud-1")
        .space
        .sh("ip link add other type vxlan id 200 dstport 4472 dev eth0; ip link set other up");
    // As nft where it may not, once for all that it is asked and once for what it is to write.
    for (name, refused) in [("cloud-2", "*"), ("cloud-3", "*-f*")] {
        lab.node(name).space.sh(&format!(
            "nft=$(command -v nft); mkdir /run/none; cat >/run/none/nft <<END; chmod +x /run/none/nft
#!/bin/sh
case \"\\$*\" in {refused}) echo 'Error: Could not process rule: Operation not supported' >&2; exit 1;; esac
exec $nft \"\\$@\"
END"
        ));
    }
    let wrapper = lab.scratch().join("no-nft");
    std::fs::write(&wrapper, format!("#!/bin/sh\nPATH=/run/none:$PATH exec {CORAX} \"$@\"\n"))
        .expect("the directory can be written");
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    lab.binary = wrapper;
    lab.start_agents_of(&["cloud-1", "cloud-2", "cloud-3"]);
    one_cause(&lab.node("cloud-1").space, &["raven0", "VNI 200", "something else is in its place"]);
    let members = lab.gateways.get_mut("cloud").and_then(|cloud| cloud.pointer_mut("/status/nodes"));
    let joined = json!({ "nodeName": "late", "privateIP": "172.16.0.88", "subnets": ["10.100.88.0/24"] });
    members.and_then(Value::as_array_mut).expect("nodes").push(joined);
    lab.write();
    let log = || std::fs::read_to_string(lab.log("cloud-1")).expect("a log");
    eventually("the member is heard of", SOON, || {
        let status = status(&lab.node("cloud-1").space);
        if status["lastChanges"].to_string().contains("10.100.88.0") {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    assert_eq!(log().lines().filter(|line| line.contains("ERROR")).count(), 1, "{}", log());
    one_cause(&lab.node("cloud-2").space, &["nft", "Operation not supported"]);
    one_cause(&lab.node("cloud-3").space, &["nft", "Operation not supported"]);
}

/// What is told of a node: by its agent, and by `corax plan` beside it. That of failed changes is the agent's alone.
#[track_caller]
fn told_alike(lab: &Lab, name: &str, words: &[&str]) {
    let space = &lab.node(name).space;
    await_problem(space, words);
    let plan = format!(
        "env VPN_CONNECTION_PSK={SECRET} {CORAX} plan --node-name {name} --source {} --service-cidr 10.96.0.0/16 \
         --service-cidr fd00:10:96::/112 -o json",
        lab.source().display()
    );
    eventually(&format!("{name}: status, plan and log say the same"), SOON, || {
        let problems = |value: Value| -> BTreeSet<String> {
            value["problems"].as_array().into_iter().flatten().map(Value::to_string).collect()
        };
        let status = status(space);
        let log = std::fs::read_to_string(lab.log(name)).map_err(|error| error.to_string())?;
        for problem in status["problems"].as_array().into_iter().flatten() {
            let [object, what] = ["object", "what"].map(|part| problem[part].as_str().expect("a text"));
            if !log.contains(&format!(" {object}: {what}")) {
                return Err(format!("{object}: {what} is not in the log:\n{log}"));
            }
        }
        let (status, plan) = (problems(status), problems(space.json(&plan)));
        if status == plan { Ok(()) } else { Err(difference(&status, &plan)) }
    });
}

#[test]
fn status_plan_and_log_have_the_same_words_for_a_problem() {
    let mut lab = two_domains();
    lab.write_file("thief.json", &paper("thief", &["10.101.1.0/24"]).to_string());
    let mut other = paper("other", &["10.150.1.0/24", "no CIDR", "172.16.0.0/24"]);
    other["status"]["nodes"][0]["nodename"] = json!("other-1");
    other["status"]["activeEndpoints"][0]["config"]["publicKey"] = json!("no key");
    lab.write_file("other.json", &other.to_string());
    lab.write_file("torn.json", "{");
    let site = lab.gateways.get_mut("site").expect("it is declared");
    site["status"]["nodes"][0]["privateIP"] = json!("no address");
    site["status"]["activeEndpoints"][0]["config"]["publicKey"] =
        json!("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=");
    lab.write();
    for name in ["cloud-1", "cloud-2", "site-1"] {
        lab.node(name)
            .space
            .sh("ip rule add priority 50 from all lookup 4711; sysctl -qw net.ipv4.ip_forward=0");
        told_alike(&lab, name, &["no CIDR", "nodename", "torn.json", "no address", "rule 50", "ip_forward"]);
    }
    // A node of which nothing is known, as not every file was ever good.
    lab.gateways.remove("cloud");
    std::fs::remove_file(lab.source().join("cloud.json")).expect("it is there");
    told_alike(&lab, "cloud-2", &["node cloud-2", "what it has stays"]);
    // A directory that nothing can be read of.
    std::fs::remove_dir_all(lab.source()).expect("it is there");
    told_alike(&lab, "cloud-2", &["cannot be read"]);
}

#[test]
fn a_node_that_every_domain_has_lost_is_without_locks_and_says_so() {
    let mut lab = two_domains();
    let gateways = lab.gateways.clone();
    let lose = |lab: &mut Lab| {
        let nodes = lab.gateways.get_mut("cloud").and_then(|cloud| cloud.pointer_mut("/status/nodes"));
        nodes.and_then(Value::as_array_mut).expect("nodes").retain(|node| node["nodeName"] != "cloud-2");
        lab.write();
    };
    lab.write_file("torn.json", "{");
    lose(&mut lab);
    let space = &lab.node("cloud-2").space;
    await_problem(space, &["node cloud-2", "what it has stays"]);
    assert!(space.run(&format!("{CORAX} status")).contains("outside every domain, what it had stays"));
    assert!(space.run("ip route show table 9028").contains("10.101.1.0/24"));
    let (code, text) = ask(space, "/readyz").expect("an answer");
    assert!(code == 503 && text.contains("what it has stays"), "{code} {text}");
    std::fs::remove_file(lab.source().join("torn.json")).expect("it is there");
    await_problem(
        space,
        &["node cloud-2", "no lock keeps packets for other domains from leaving in plaintext"],
    );
    eventually("its locks are gone, and it says so", SOON, || {
        let text = space.run(&format!("{CORAX} status"));
        let tables = space.run("nft list tables") + &space.run("ip route show table all");
        if text.contains("NO LOCK against plaintext")
            && !tables.contains("inet corax")
            && !tables.contains("9028")
        {
            Ok(())
        } else {
            Err(text + &tables)
        }
    });
    // And goes on knowing that it is in none, with nobody to ask any more, before and after its restart.
    lab.empty();
    for restart in [false, true] {
        if restart {
            lab.end_agent("cloud-2", Signal::SIGKILL);
            lab.start_agent("cloud-2", &[]);
        }
        let space = &lab.node("cloud-2").space;
        await_problem(space, &["holds no *.yaml"]);
        await_ready(space);
        assert!(!problems(space).contains("what it has stays"), "{}", problems(space));
    }
    // But a snapshot of then, as where none could be written since, takes nothing that came after it.
    lab.node("cloud-2").space.sh("cd /var/lib/corax && mkdir then && cp snapshot snapshot.previous then");
    lab.gateways = gateways;
    lab.write();
    await_route(&lab.node("cloud-2").space, "10.101.1.0/24");
    lab.end_agent("cloud-2", Signal::SIGKILL);
    lab.node("cloud-2").space.sh("cd /var/lib/corax && cp then/* .");
    lab.empty();
    lab.start_agent("cloud-2", &[]);
    let space = &lab.node("cloud-2").space;
    await_problem(space, &["node cloud-2", "what it has stays"]);
    assert!(space.run("ip route show table 9028").contains("10.101.1.0/24"));
    assert!(space.run("nft list tables").contains("inet corax"));
}

#[test]
fn a_mistyped_name_of_a_node_takes_nothing_from_it() {
    let mut lab = two_domains();
    lab.everyone_reaches_everyone();
    lab.end_agent("site-1", Signal::SIGTERM);
    let before = ours(&lab.node("site-1").space);
    let options: Vec<String> =
        wireguard_asked().into_iter().flat_map(|whose| ["--wireguard".to_owned(), whose]).collect();
    let node = lab.node("site-1");
    let typo = Agent::start(
        &node.space,
        Path::new(CORAX),
        "site-1.example.com",
        &lab.source(),
        &lab.log("site-1"),
        &options,
    );
    await_problem(&node.space, &["--node-name site-1"]);
    let after = ours(&node.space);
    assert_eq!(before, after, "{}", difference(&before, &after));
    typo.end(Signal::SIGTERM);
    lab.start_agent("site-1", &[]);
    lab.everyone_reaches_everyone();
}
