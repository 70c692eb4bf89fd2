//! A node on a bad day: full and read-only disks, a lock nobody releases, processes killed at any moment, everything at once.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

#[path = "support/node.rs"]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Node, PLUGIN, ipam};
use serde_json::{Value, json};

/// 110 pods with 110 addresses, as a full node has.
fn full_node(node: &Node, config: &Value) -> BTreeMap<String, Vec<String>> {
    node.sh("for n in $(seq 110); do ip netns add a$n; done");
    (1..=110).map(|n| (format!("pod-{n}"), node.add(&format!("a{n}"), &format!("pod-{n}"), config))).collect()
}

/// All pods start at once, in no order; each has to be where it was.
fn all_come_home(node: &Node, config: &Value, homes: &BTreeMap<String, Vec<String>>, prefix: &str) {
    node.sh(&format!("for n in $(seq 110); do ip netns add {prefix}$n; done"));
    let mut order: Vec<_> = (1..=110).collect();
    order.sort_by_key(|n| (n * 7_919) % 113);
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                while let Some(n) = order.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let pod = format!("pod-{n}");
                    assert_eq!(node.add(&format!("{prefix}{n}"), &pod, config), homes[&pod], "{pod}");
                }
            });
        }
    });
}

#[test]
fn a_full_node_comes_home_after_a_reboot_on_a_disk_that_is_full_or_read_only() {
    let node = Node::new();
    let config = ipam(&["10.1.0.0/24", "fd00:1::/64"]);
    node.sh("mount -t tmpfs -o size=64k tmpfs /var/lib/corax");
    let homes = full_node(&node, &config);

    node.sh("dd if=/dev/zero of=/var/lib/corax/fill bs=4k 2>/dev/null || true");
    node.reboot();
    all_come_home(&node, &config, &homes, "b");
    node.netns("new");
    let refused = node.call("ADD", "new", Some("new"), &config);
    // A last block may have room for one record; not for all of these.
    let mut refusals = u32::from(!refused.ok);
    for n in 0..200 {
        let name = format!("new-{n}-{}", "x".repeat(200));
        let answer = node.call_with("ADD", "new", Some(&name), &config, &[("CNI_IFNAME", &format!("e{n}"))]);
        if !answer.ok {
            refusals += 1;
            assert!([100, 101].contains(&answer.code()), "{answer:?}");
            if answer.code() == 101 {
                assert!(
                    answer.json["details"].as_str().unwrap().contains("No space left on device"),
                    "{answer:?}"
                );
                break;
            }
        }
    }
    assert!(refusals > 0);

    node.sh("mount -o remount,ro /var/lib/corax");
    node.reboot();
    all_come_home(&node, &config, &homes, "c");
    node.netns("newer");
    let refused = node.call("ADD", "newer", Some("newer"), &config);
    assert_eq!(refused.code(), 101, "{refused:?}");
    assert!(refused.json["details"].as_str().unwrap().contains("Read-only file system"), "{refused:?}");
    node.del("c1", &config);
}

#[test]
fn pods_keep_their_addresses_through_restarts_in_a_range_that_is_crowded() {
    let node = Node::new();
    let config = ipam(&["10.1.0.0/25"]);
    let homes = full_node(&node, &config);
    for n in 1..=110 {
        node.del(&format!("a{n}"), &config);
    }
    all_come_home(&node, &config, &homes, "b");
    node.reboot();
    all_come_home(&node, &config, &homes, "c");
}

#[test]
fn where_the_locks_holder_is_stopped_an_add_says_try_again_and_a_del_succeeds() {
    common::need("flock", "util-linux");
    let node = Node::new();
    let mut config = ipam(&["10.1.0.0/24"]);
    config["ipam"]["lockTimeout"] = 200.into();
    node.netns("c1");
    node.netns("c2");
    let home = node.add("c1", "a", &config);
    // Without a fork the shell holds the lock itself: it ends with its own process.
    let mut stuck = node
        .command("flock")
        .args(["--no-fork", "/run/corax/lock", "sh", "-c", "echo locked; kill -STOP $$"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 7];
    std::io::Read::read_exact(stuck.stdout.as_mut().unwrap(), &mut line).unwrap();
    let refused = node.call("ADD", "c2", Some("b"), &config);
    assert_eq!(refused.code(), 11, "{refused:?}");
    node.del("c1", &config);
    stuck.kill().unwrap();
    stuck.wait().unwrap();
    assert_eq!(
        node.add("c2", "a", &config),
        home,
        "what was left to the next call is done: a is held no more"
    );
}

#[test]
fn processes_killed_at_any_moment_give_no_address_twice_and_lose_no_pin() {
    const ROUNDS: u64 = 60;
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(place("netns")).unwrap();
    let config = json!({ "cniVersion": "1.0.0", "name": "pods", "ipam": { "type": "corax-cni", "subnet": "10.1.0.0/26",
        "stateDir": place("state"), "runDir": place("run"), "dataDir": place("none"), "cacheDir": place("none") } });
    let text = config.to_string();
    /// What each pod was told, which address is whose, and how many calls were cut short.
    #[derive(Default)]
    struct Told {
        homes: BTreeMap<String, Value>,
        live: BTreeMap<String, String>,
        killed: u32,
    }
    let told = Mutex::new(Told::default());
    std::thread::scope(|scope| {
        for worker in 0..6_u64 {
            let (text, told, place) = (&text, &told, &place);
            scope.spawn(move || {
                let mut seed = worker + 1;
                let mut chance = move |n: u64| {
                    seed =
                        seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (seed >> 33) % n
                };
                for round in 0..ROUNDS {
                    let pod = format!("w{worker}-{}", chance(4));
                    let container = format!("c{worker}-{round}");
                    let netns = place(&format!("netns/{container}"));
                    std::fs::write(&netns, "").unwrap();
                    // No file may grow beyond so many blocks of 512 bytes: a disk that is full in the middle of a record.
                    let call = |verb: &str, kill: Option<u64>, room: u64| {
                        let limited = format!("trap '' XFSZ; ulimit -f {room}; exec {PLUGIN}");
                        let mut child = Command::new("sh")
                            .args(["-c", &limited])
                            .env("CNI_COMMAND", verb)
                            .env("CNI_CONTAINERID", &container)
                            .env("CNI_NETNS", &netns)
                            .env("CNI_IFNAME", "eth0")
                            .env("CNI_ARGS", format!("K8S_POD_NAMESPACE=d;K8S_POD_NAME={pod}"))
                            .stdin(Stdio::piped())
                            .stdout(Stdio::piped())
                            .stderr(Stdio::null())
                            .spawn()
                            .unwrap();
                        let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes());
                        if let Some(spins) = kill {
                            // Not a wait for anything: some moment in the life of the process.
                            (0..spins).for_each(|_| std::hint::spin_loop());
                            let _ = child.kill();
                        }
                        let out = child.wait_with_output().unwrap();
                        (
                            out.status.success(),
                            serde_json::from_slice::<Value>(&out.stdout).unwrap_or_default(),
                        )
                    };
                    let kill = (chance(2) == 0).then(|| chance(400_000));
                    let room = if chance(4) == 0 { chance(24) } else { 1 << 20 };
                    let (ok, result) = call("ADD", kill, room);
                    if ok {
                        let ips = result["ips"].clone();
                        let address = ips[0]["address"].as_str().unwrap().to_owned();
                        let mut told = told.lock().unwrap();
                        let twice = told.live.insert(address.clone(), container.clone());
                        assert_eq!(twice, None, "{address} is given twice, to {container} too");
                        let before = told.homes.insert(pod.clone(), ips.clone());
                        assert!(
                            before.is_none_or(|before| before == ips),
                            "{pod} was promised another than {ips}"
                        );
                    } else {
                        assert!(kill.is_some() || room < 24, "{result}");
                        told.lock().unwrap().killed += 1;
                    }
                    // The sandbox goes: it is no more before its address may be another's.
                    told.lock().unwrap().live.retain(|_, holder| *holder != container);
                    if chance(3) > 0 {
                        call("DEL", (chance(3) == 0).then(|| chance(400_000)), room);
                    }
                    std::fs::remove_file(&netns).unwrap();
                }
            });
        }
    });
    let told = told.into_inner().unwrap();
    assert!(told.killed > 0, "none was killed in time");
    let store = corax_pins::Store::new(
        place("state").as_ref(),
        place("run").as_ref(),
        "any",
        std::time::Duration::from_secs(20),
    );
    let pins = corax_pins::Snapshot::read(&store).pins;
    let distinct: BTreeSet<_> = pins.iter().flat_map(|p| p.addresses.clone()).collect();
    assert_eq!(distinct.len(), pins.len(), "no address has two pins");
    for (pod, ips) in &told.homes {
        let pin =
            pins.iter().find(|p| p.pod.as_str() == pod).unwrap_or_else(|| panic!("the pin of {pod} is lost"));
        assert!(ips[0]["address"].as_str().unwrap().starts_with(&format!("{}/", pin.addresses[0])), "{pod}");
    }
}

#[test]
fn a_run_directory_emptied_under_running_containers_is_told_and_costs_nobody_the_address() {
    let node = Node::new();
    let conf = "/run/conf/10-pods.conflist";
    let bridge = json!({ "type": "bridge", "bridge": "cni0", "isGateway": true,
        "ipam": { "type": "corax-cni", "ranges": [[{ "subnet": "10.1.0.0/29" }]] } });
    node.write(conf, &json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [bridge] }).to_string());
    let call = |verb: &str, container: &str, pod: Option<&str>| {
        let (netns, name) =
            (format!("/run/netns/{container}"), format!("K8S_POD_NAME={}", pod.unwrap_or_default()));
        let mut arguments =
            vec![conf, container, &netns, "eth0", "IgnoreUnknown=1", "K8S_POD_NAMESPACE=default", &name];
        arguments.truncate(if pod.is_some() { 7 } else { 4 });
        node.libcni(verb, &arguments)
    };
    let start = |container: &str, pod: Option<&str>| {
        node.netns(container);
        call("add", container, pod)
    };
    // Five addresses: two pods and one container that is no pod run, one pod is gone.
    let live = [("a1", Some("a")), ("b1", Some("b")), ("x1", None)];
    let mut homes: Vec<_> = live.iter().flat_map(|(container, pod)| start(container, *pod).ips()).collect();
    let gone = start("c1", Some("c")).ips().remove(0);
    assert!(call("del", "c1", Some("c")).ok);
    node.sh("ip netns delete c1; rm -rf /run/corax");

    let first = start("d1", Some("d"));
    assert!(first.errors.contains("is missing while containers run: 3 that live"), "{first:?}");
    let others = [first.ips().remove(0), start("e1", Some("e")).ips().remove(0)];
    assert!(others.iter().all(|address| !homes.contains(address)), "{others:?} were held: {homes:?}");
    assert!(others.contains(&gone), "what nobody holds may be had");
    assert_eq!(start("f1", Some("f")).code(), 100, "all five are held");

    for (container, pod) in live {
        assert!(call("del", container, pod).ok);
        node.sh(&format!("ip netns delete {container}"));
    }
    assert_eq!(start("a2", Some("a")).ips(), [homes.remove(0)], "and comes home");
}

#[test]
fn a_network_without_pins_comes_back_too_where_another_is_asked_about_first() {
    let node = Node::new();
    let conf = |name: &str, subnet: &str| {
        let path = format!("/run/conf/10-{name}.conflist");
        let bridge = json!({ "type": "bridge", "bridge": name, "isGateway": true,
            "ipam": { "type": "corax-cni", "ranges": [[{ "subnet": subnet }]] } });
        node.write(&path, &json!({ "cniVersion": "1.0.0", "name": name, "plugins": [bridge] }).to_string());
        path
    };
    let (one, two) = (conf("one", "10.1.0.0/29"), conf("two", "10.2.0.0/29"));
    let start = |conf: &str, container: &str| {
        node.netns(container);
        node.libcni("add", &[conf, container, &format!("/run/netns/{container}"), "eth0"])
    };
    let homes = [start(&one, "a1").ips(), start(&two, "b1").ips()];
    node.sh("rm -rf /run/corax");
    assert_ne!(start(&one, "a2").ips(), homes[0]);
    let second = start(&two, "b2");
    assert!(second.errors.contains("1 containers that ran before"), "{second:?}");
    assert_ne!(second.ips(), homes[1], "b1 lives");
    for container in ["b1", "b2"] {
        let netns = format!("/run/netns/{container}");
        assert!(node.libcni("check", &[&two, container, &netns, "eth0"]).ok, "{container} holds its address");
    }
}

#[test]
fn a_pinned_pod_starts_on_a_disk_that_an_error_made_read_only() {
    common::need("mkfs.ext4", "e2fsprogs");
    let node = Node::new();
    let config = ipam(&["10.1.0.0/24"]);
    node.sh("truncate -s 16M /run/disk && mkfs.ext4 -q /run/disk
         mount -o loop,errors=remount-ro /run/disk /var/lib/corax");
    node.netns("a1");
    let home = node.add("a1", "a", &config);
    // The log is read from the disk, and then there is the error.
    node.sh("umount /var/lib/corax; mount -o loop,errors=remount-ro /run/disk /var/lib/corax");
    node.reboot();
    node.sh("device=$(findmnt -no SOURCE /var/lib/corax)
         echo 1 > /sys/fs/ext4/$(basename $device)/trigger_fs_error
         ! touch /var/lib/corax/x");
    node.netns("a2");
    assert_eq!(node.add("a2", "a", &config), home);
    node.netns("new");
    let refused = node.call("ADD", "new", Some("new"), &config);
    assert_eq!(refused.code(), 101, "{refused:?}");
    node.sh("umount /var/lib/corax");
}

#[test]
fn a_damaged_hold_of_a_running_container_costs_nobody_the_address() {
    let node = Node::new();
    let conf = "/run/conf/10-pods.conflist";
    let bridge = json!({ "type": "bridge", "bridge": "cni0", "isGateway": true,
        "ipam": { "type": "corax-cni", "rangeStart": "10.1.0.2", "rangeEnd": "10.1.0.3", "subnet": "10.1.0.0/29" } });
    node.write(conf, &json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [bridge] }).to_string());
    let start = |container: &str| {
        node.netns(container);
        node.libcni("add", &[conf, container, &format!("/run/netns/{container}"), "eth0"])
    };
    let first = start("x1").ips();
    // One letter of its record: the sum is wrong from now on.
    node.sh("grep -q ' hold .* x1 ' /run/corax/holds; sed -i '/ hold .* x1 /s/eth0/etho/' /run/corax/holds");
    let second = start("x2");
    assert!(second.errors.contains("were damaged"), "{second:?}");
    assert_ne!(second.ips(), first, "x1 lives");
    assert_eq!(start("x3").code(), 100, "both are held");
}
