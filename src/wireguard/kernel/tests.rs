//! Against a kernel with WireGuard. Ignored elsewhere: `netns-tests/vm/run driver` runs them in a guest.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use corax_core::key::PresharedKey;

use super::*;
use crate::wireguard::testing::{self, DEVICE, allowed, isolated, peer, prefixes, run, shown_allowed};

/// Runs a test with a device of its own.
fn with_device(test: impl FnOnce(&mut Kernel, &PrivateKey) + Send) {
    isolated(|| {
        run("ip link add raven-wg0 type wireguard");
        let key = PrivateKey::generate();
        test(&mut Kernel::open(key.clone()).unwrap(), &key);
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard: netns-tests/vm/run driver"]
fn the_device_is_set_as_wg_shows_it() {
    with_device(|driver, key| testing::the_device_is_set_as_wg_shows_it(driver, key));
}

#[test]
#[ignore = "needs a kernel with WireGuard: netns-tests/vm/run driver"]
fn a_peer_is_made_changed_and_removed_and_its_neighbour_stays() {
    with_device(|driver, _| testing::a_peer_is_made_changed_and_removed_and_its_neighbour_stays(driver));
}

#[test]
#[ignore = "needs a kernel with WireGuard: netns-tests/vm/run driver"]
fn a_peer_that_is_gone_is_not_made_by_an_update() {
    with_device(|driver, _| testing::a_peer_that_is_gone_is_not_made_by_an_update(driver));
}

#[test]
#[ignore = "needs a kernel with WireGuard: netns-tests/vm/run driver"]
fn many_peers_and_allowed_ips_are_set_and_read_back() {
    with_device(|driver, _| testing::many_peers_and_allowed_ips_are_set_and_read_back(driver));
}

#[test]
#[ignore = "needs a kernel with WireGuard: netns-tests/vm/run driver"]
fn asking_for_wireguard_leaves_no_device_behind() {
    isolated(|| {
        let before = run("ip -o link");
        assert!(probe().unwrap(), "this test wants a kernel with WireGuard");
        assert_eq!(run("ip -o link"), before);
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard: netns-tests/vm/run driver"]
fn what_is_no_wireguard_device_is_none() {
    isolated(|| {
        let mut driver = Kernel::open(PrivateKey::generate()).unwrap();
        for make in ["ip link add d0 type dummy", "ip link add raven-wg0 type dummy"] {
            run(make);
            assert!(driver.read(DEVICE).unwrap().is_none());
            let error = driver.set_tunnel(DEVICE, &TunnelUpdate::default()).unwrap_err().to_string();
            assert_eq!(error, "cannot set raven-wg0: there is no such WireGuard device");
        }
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard: netns-tests/vm/run driver"]
fn a_refusal_is_told() {
    with_device(|driver, key| {
        run("ip link set raven-wg0 up");
        let other = run("wg show raven-wg0 listen-port").parse().unwrap();
        run("ip link add raven-wg1 type wireguard");
        run("ip link set raven-wg1 up");
        let update = TunnelUpdate { key: Some(key.public()), port: Some(other), mark: None };
        let error = driver.set_tunnel(Device::WireGuard(1), &update).unwrap_err().to_string();
        assert!(error.starts_with("cannot set raven-wg1: Address already in use"), "{error}");
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard: netns-tests/vm/run driver"]
fn a_device_has_threaded_napi_from_its_first_peer_on() {
    with_device(|driver, _| {
        let threaded = || fs::read_to_string("/sys/class/net/raven-wg0/threaded").unwrap().trim().to_owned();
        assert_eq!(threaded(), "0");
        driver.set_peer(DEVICE, peer(1), &PeerUpdate::default()).unwrap();
        assert_eq!(threaded(), "1");
        // Whoever wants it otherwise has it so until there is another peer.
        fs::write("/sys/class/net/raven-wg0/threaded", "0").unwrap();
        driver.set_peer(DEVICE, peer(1), &PeerUpdate { exists: true, ..PeerUpdate::default() }).unwrap();
        assert_eq!(threaded(), "0");
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard: netns-tests/vm/run driver"]
fn a_driver_outlives_the_module() {
    // Its number is another one after it was loaded again, if something else took a number meanwhile.
    isolated(|| {
        run("ip link add raven-wg0 type wireguard");
        let mut driver = Kernel::open(PrivateKey::generate()).unwrap();
        assert!(driver.read(DEVICE).unwrap().is_some());
        run("ip link del raven-wg0");
        run("rmmod wireguard");
        run("modprobe -a act_mirred tipc");
        assert!(driver.read(DEVICE).unwrap().is_none());
        run("ip link add raven-wg0 type wireguard");
        assert!(driver.read(DEVICE).unwrap().is_some());
        driver.set_peer(DEVICE, peer(1), &PeerUpdate::default()).unwrap();
    });
}

/// Two ends of a tunnel; the far one is set by `wg`, in a namespace of its own.
fn with_tunnel(test: impl FnOnce(&mut Kernel, PublicKey) + Send) {
    with_device(|driver, key| {
        let far = PrivateKey::generate();
        fs::write("/run/far.key", PublicKey(*far.expose()).to_string()).unwrap();
        fs::write("/run/psk", PublicKey(*PresharedKey::of_secret("x").expose()).to_string()).unwrap();
        let script = format!(
            "set -e
             ip netns add far
             ip link add eth0 type veth peer name eth0 netns far
             ip addr add 192.0.2.1/24 dev eth0; ip link set eth0 up
             ip -n far addr add 192.0.2.2/24 dev eth0; ip -n far addr add 192.0.2.3/25 dev eth0
             ip -n far link set eth0 up
             ip -n far link add wg0 type wireguard
             ip netns exec far wg set wg0 private-key /run/far.key listen-port 4500 \
                peer {} preshared-key /run/psk allowed-ips 10.0.0.1/32
             ip -n far addr add 10.0.0.2/24 dev wg0; ip -n far link set wg0 up
             ip addr add 10.0.0.1/24 dev raven-wg0",
            key.public()
        );
        let output = Command::new("bash").args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let update = TunnelUpdate { key: Some(key.public()), port: Some(4500), mark: None };
        driver.set_tunnel(DEVICE, &update).unwrap();
        run("ip link set raven-wg0 up");
        let update = PeerUpdate {
            exists: false,
            preshared: Some(PresharedKey::of_secret("x")),
            endpoint: Some("192.0.2.2:4500".parse().unwrap()),
            keepalive: Some(0),
            allowed: allowed(&["10.0.0.2/32", "10.5.0.0/16"], &["10.0.0.2/32", "10.5.0.0/16"], &[]),
        };
        driver.set_peer(DEVICE, far.public(), &update).unwrap();
        test(driver, far.public());
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard: netns-tests/vm/run driver"]
fn a_session_and_a_roamed_endpoint_outlast_every_change_of_their_peer() {
    with_tunnel(|driver, far| {
        assert_eq!(driver.read(DEVICE).unwrap().unwrap().peers[&far].handshake_age, None);
        let begun = Instant::now();
        run("ping -c 1 -W 30 10.0.0.2");
        let first = driver.read(DEVICE).unwrap().unwrap();
        let age = first.peers[&far].handshake_age.unwrap();
        assert!(age <= begun.elapsed() + Duration::from_secs(1), "{age:?}");
        assert!(first.peers[&far].received > 0 && first.peers[&far].sent > 0);

        // The far end moves; this one follows by what it hears.
        run("ip -n far addr del 192.0.2.2/24 dev eth0");
        run("ip netns exec far ping -c 1 -W 30 10.0.0.1");
        let roamed = "192.0.2.3:4500".parse().unwrap();
        let observed = driver.read(DEVICE).unwrap().unwrap();
        assert_eq!(observed.peers[&far].peer.endpoint, Some(roamed));
        assert_eq!(observed.peers[&far].configured, Some("192.0.2.2:4500".parse().unwrap()));

        let handshake = run("wg show raven-wg0 latest-handshakes");
        let existing = PeerUpdate { exists: true, ..PeerUpdate::default() };
        for update in [
            existing.clone(),
            PeerUpdate { keepalive: Some(25), ..existing.clone() },
            PeerUpdate { preshared: Some(PresharedKey::of_secret("x")), ..existing.clone() },
            PeerUpdate { allowed: allowed(&[], &["10.6.0.0/16"], &[]), ..existing.clone() },
            PeerUpdate { allowed: allowed(&["10.0.0.2/32"], &[], &["10.5.0.0/16"]), ..existing },
        ] {
            driver.set_peer(DEVICE, far, &update).unwrap();
            driver.set_peer(DEVICE, peer(9), &PeerUpdate::default()).unwrap();
            driver.delete_peer(DEVICE, peer(9)).unwrap();
            run("ping -c 1 -W 30 10.0.0.2");
        }
        driver.set_tunnel(DEVICE, &TunnelUpdate { mark: Some(7), ..TunnelUpdate::default() }).unwrap();
        run("ping -c 1 -W 30 10.0.0.2");
        assert_eq!(run("wg show raven-wg0 latest-handshakes"), handshake, "no new handshake was needed");
        assert_eq!(driver.read(DEVICE).unwrap().unwrap().peers[&far].peer.endpoint, Some(roamed));
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard: netns-tests/vm/run driver"]
fn what_stays_of_a_peer_is_the_peers_while_more_is_taken_from_it() {
    with_tunnel(|driver, far| {
        run("ping -c 1 -W 30 10.0.0.2");
        // They are set before what the packets go by.
        let crowd: Vec<String> =
            (0..2000).map(|number| format!("9.0.{}.{}/32", number / 256, number % 256)).collect();
        let mut all = crowd.clone();
        all.extend(["10.0.0.2/32", "10.5.0.0/16"].map(str::to_owned));
        let more = PeerUpdate { exists: true, allowed: allowed(&all, &crowd, &[]), ..PeerUpdate::default() };
        driver.set_peer(DEVICE, far, &more).unwrap();

        let ping = |address| {
            let arguments = ["-q", "-i", "0.01", "-c", "400", "-W", "10", address];
            Command::new("ping").args(arguments).stdout(Stdio::piped()).spawn().unwrap()
        };
        let (mut flow, control) = (ping("10.0.0.2"), ping("192.0.2.3"));
        let mut taken = 0;
        while flow.try_wait().unwrap().is_none() {
            let gone = all.remove(0);
            let less =
                PeerUpdate { exists: true, allowed: allowed(&all, &[], &[gone]), ..PeerUpdate::default() };
            driver.set_peer(DEVICE, far, &less).unwrap();
            taken += 1;
        }
        let received = |ping: Child| {
            let told = String::from_utf8(ping.wait_with_output().unwrap().stdout).unwrap();
            let (before, _) = told.split_once(" received").unwrap();
            before.rsplit(' ').next().unwrap().parse::<u32>().unwrap()
        };
        let (flow, control) = (received(flow), received(control));
        assert!(taken > 10, "only {taken} were taken while packets went");
        assert!(flow >= control, "{flow} of 400 came back, and {control} beside the tunnel");
        assert_eq!(shown_allowed(far), prefixes(&all));
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard: netns-tests/vm/run driver"]
fn a_reading_while_others_change_the_device_is_whole() {
    with_device(|driver, _| {
        let peers: Vec<PublicKey> = (1..=120).map(peer).collect();
        for key in &peers {
            let list = [format!("10.1.{}.0/24", key.0[0])];
            let update = PeerUpdate { allowed: allowed(&list, &list, &[]), ..PeerUpdate::default() };
            driver.set_peer(DEVICE, *key, &update).unwrap();
        }
        let end = Instant::now() + Duration::from_secs(2);
        thread::scope(|scope| {
            let churn = scope.spawn(|| {
                let mut turns = 0;
                while Instant::now() < end {
                    run(&format!("wg set raven-wg0 peer {} allowed-ips 10.2.0.0/16", peer(200)));
                    run(&format!("wg set raven-wg0 peer {} remove", peer(200)));
                    turns += 1;
                }
                turns
            });
            let mut readings = 0;
            while Instant::now() < end {
                let observed = driver.read(DEVICE).unwrap().unwrap();
                assert!(peers.iter().all(|key| observed.peers[key].peer.allowed.len() == 1));
                assert!(observed.peers.len() <= 121);
                readings += 1;
            }
            assert!(churn.join().unwrap() > 0 && readings > 0);
        });
    });
}
