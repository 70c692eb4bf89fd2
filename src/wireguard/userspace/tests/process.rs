//! Against Debian's `wireguard-go`, with `wg` as the judge of what was set.

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;

/// A `wireguard-go` that ends with its test.
struct Process(Child);

impl Process {
    fn start() -> Self {
        let child = Command::new("wireguard-go")
            .args(["-f", "raven-wg0"])
            .env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("wireguard-go is installed");
        let process = Self(child);
        let end = Instant::now() + Duration::from_secs(10);
        while listener(DEVICE).unwrap() != Listener::Present {
            assert!(Instant::now() < end, "wireguard-go has no socket");
            thread::sleep(Duration::from_millis(5));
        }
        process
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Runs a test on a thread with a network and a `/run` of its own.
fn isolated(test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("the test runs as root");
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)
                .unwrap();
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn wg(arguments: &str) -> String {
    let output = Command::new("wg").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "wg {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn driver() -> Userspace {
    Userspace::new(PrivateKey::generate())
}

fn peer(byte: u8) -> PublicKey {
    PublicKey([byte; 32])
}

fn allowed(all: &[&str], add: &[&str], remove: &[&str]) -> Option<AllowedUpdate> {
    Some(AllowedUpdate { all: prefixes(all), add: prefixes(add), remove: prefixes(remove) })
}

/// The allowed IPs of a peer, as `wg` shows them.
fn shown_allowed(key: PublicKey) -> Vec<Prefix> {
    let shown = wg("show raven-wg0 allowed-ips");
    let line = shown.lines().find_map(|line| line.strip_prefix(&format!("{key}\t"))).unwrap();
    let mut list: Vec<Prefix> =
        line.split(' ').filter(|text| *text != "(none)").map(|text| text.parse().unwrap()).collect();
    list.sort();
    list
}

#[test]
fn the_device_is_set_as_wg_shows_it() {
    isolated(|| {
        let _process = Process::start();
        let mut driver = driver();
        let blank = driver.read(DEVICE).unwrap().unwrap();
        assert_eq!((blank.tunnel.key, blank.tunnel.mark, blank.peers.len()), (None, 0, 0));

        let key = driver.key.public();
        let wanted = Tunnel { port: 4500, mark: 0x0c02_a0a8, key: Some(key) };
        driver.set_tunnel(DEVICE, &wanted.into()).unwrap();
        assert_eq!(wg("show raven-wg0 public-key"), key.to_string());
        assert_eq!(wg("show raven-wg0 listen-port"), "4500");
        assert_eq!(wg("show raven-wg0 fwmark"), "0xc02a0a8");
        assert_eq!(driver.read(DEVICE).unwrap().unwrap().tunnel, wanted);
        assert!(
            private_key(DEVICE).unwrap().as_ref() == Some(&driver.key),
            "a restart finds the running key"
        );

        driver.set_tunnel(DEVICE, &TunnelUpdate { port: Some(4501), ..TunnelUpdate::default() }).unwrap();
        assert_eq!(driver.read(DEVICE).unwrap().unwrap().tunnel, Tunnel { port: 4501, ..wanted });
    });
}

#[test]
fn a_peer_is_made_changed_and_removed_and_its_neighbour_stays() {
    isolated(|| {
        let _process = Process::start();
        let mut driver = driver();
        let endpoint: SocketAddr = "192.0.2.1:4500".parse().unwrap();
        let update = PeerUpdate {
            exists: false,
            preshared: Some(PresharedKey::of_secret("openyurt-raven")),
            endpoint: Some(endpoint),
            keepalive: Some(5),
            allowed: allowed(&["10.1.0.0/16", "fd00:1::/64"], &["10.1.0.0/16", "fd00:1::/64"], &[]),
        };
        driver.set_peer(DEVICE, peer(1), &update).unwrap();
        wg(&format!("set raven-wg0 peer {} endpoint [2001:db8::1]:51820 allowed-ips 10.2.0.0/16", peer(2)));

        let observed = driver.read(DEVICE).unwrap().unwrap();
        let first = &observed.peers[&peer(1)];
        assert_eq!(first.peer.preshared, PresharedKey::of_secret("openyurt-raven"));
        assert_eq!((first.peer.endpoint, first.configured), (Some(endpoint), Some(endpoint)));
        assert_eq!((first.peer.keepalive, first.handshake_age), (5, None));
        assert_eq!(first.peer.allowed, prefixes(&["10.1.0.0/16", "fd00:1::/64"]));
        assert_eq!(shown_allowed(peer(1)), first.peer.allowed);
        let second = &observed.peers[&peer(2)];
        assert_eq!(second.configured, None, "this process did not set it");
        assert_eq!(second.peer.endpoint, Some("[2001:db8::1]:51820".parse().unwrap()));

        let add = allowed(&["10.1.0.0/16", "10.3.0.0/16", "fd00:1::/64"], &["10.3.0.0/16"], &[]);
        driver
            .set_peer(DEVICE, peer(1), &PeerUpdate { exists: true, allowed: add, ..PeerUpdate::default() })
            .unwrap();
        assert_eq!(shown_allowed(peer(1)), prefixes(&["10.1.0.0/16", "10.3.0.0/16", "fd00:1::/64"]));

        let less =
            allowed(&["10.1.0.0/16", "10.4.0.0/16"], &["10.4.0.0/16"], &["10.3.0.0/16", "fd00:1::/64"]);
        driver
            .set_peer(DEVICE, peer(1), &PeerUpdate { exists: true, allowed: less, ..PeerUpdate::default() })
            .unwrap();
        assert_eq!(shown_allowed(peer(1)), prefixes(&["10.1.0.0/16", "10.4.0.0/16"]));
        let shown = wg("show raven-wg0 endpoints");
        assert!(shown.contains("192.0.2.1:4500") && shown.contains("[2001:db8::1]:51820"), "{shown}");
        assert!(
            wg("show raven-wg0 preshared-keys")
                .contains(&wg_base64(&PresharedKey::of_secret("openyurt-raven")))
        );

        driver.delete_peer(DEVICE, peer(1)).unwrap();
        driver.delete_peer(DEVICE, peer(1)).unwrap();
        assert_eq!(wg("show raven-wg0 peers"), peer(2).to_string());
    });
}

fn wg_base64(key: &PresharedKey) -> String {
    PublicKey(*key.expose()).to_string()
}

#[test]
fn a_peer_that_is_gone_is_not_made_by_an_update() {
    isolated(|| {
        let _process = Process::start();
        let mut driver = driver();
        let update = PeerUpdate { exists: true, keepalive: Some(5), ..PeerUpdate::default() };
        driver.set_peer(DEVICE, peer(1), &update).unwrap();
        assert_eq!(driver.read(DEVICE).unwrap().unwrap().peers.len(), 0);
    });
}

#[test]
fn many_peers_and_allowed_ips_are_read_back() {
    isolated(|| {
        let _process = Process::start();
        let mut driver = driver();
        let all: Vec<String> = (0..250).map(|number| format!("10.9.{number}.0/24")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        for byte in 1..100 {
            let own = [format!("10.8.{byte}.0/24")];
            let list: Vec<&str> = if byte == 1 { all.clone() } else { vec![own[0].as_str()] };
            let update = PeerUpdate { allowed: allowed(&list, &list, &[]), ..PeerUpdate::default() };
            driver.set_peer(DEVICE, peer(byte), &update).unwrap();
        }
        let observed = driver.read(DEVICE).unwrap().unwrap();
        assert_eq!(observed.peers.len(), 99);
        assert_eq!(observed.peers[&peer(1)].peer.allowed, prefixes(&all));
        assert_eq!(observed.peers[&peer(99)].peer.allowed, prefixes(&["10.8.99.0/24"]));
    });
}

#[test]
fn a_process_that_died_leaves_a_stale_socket_and_is_nobody() {
    isolated(|| {
        assert_eq!(listener(DEVICE).unwrap(), Listener::Absent);
        let mut driver = driver();
        assert!(driver.read(DEVICE).unwrap().is_none());
        drop(Process::start());
        assert_eq!(listener(DEVICE).unwrap(), Listener::Stale);
        assert!(driver.read(DEVICE).unwrap().is_none());
        let error = driver.set_tunnel(DEVICE, &TunnelUpdate::default()).unwrap_err().to_string();
        let expected = "cannot set raven-wg0: nobody answers /var/run/wireguard/raven-wg0.sock; start `corax tunnel raven-wg0`";
        assert_eq!(error, expected);
        fs::remove_file("/run/wireguard/raven-wg0.sock").unwrap();
    });
}
