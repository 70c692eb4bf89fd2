//! What every driver must do, whoever is behind it. The judge is `wg`.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use corax_core::change::{AllowedUpdate, PeerUpdate, TunnelUpdate};
use corax_core::key::{PresharedKey, PublicKey};
use corax_core::object::{Device, Tunnel};
use corax_core::prefix::Prefix;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::Driver;
use super::key::PrivateKey;
use super::userspace::{self, Listener};

/// The device of these tests.
pub(crate) const DEVICE: Device = Device::WireGuard(0);

/// Runs a test on a thread with a network and a `/run` of its own.
pub(crate) fn isolated(test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("the test runs as root");
            let flags = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
            mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>).unwrap();
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A `wireguard-go` that ends with its test.
pub(crate) struct Process(Child);

impl Process {
    /// Starts one for [`DEVICE`]; it answers.
    pub(crate) fn start() -> Self {
        let child = Command::new("wireguard-go")
            .args(["-f", "raven-wg0"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("wireguard-go is installed");
        let process = Self(child);
        let end = Instant::now() + Duration::from_secs(10);
        while userspace::listener(DEVICE).unwrap() != Listener::Present {
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

/// Runs a program; what it printed.
#[track_caller]
pub(super) fn run(line: &str) -> String {
    let mut words = line.split(' ');
    let program = words.next().unwrap();
    let output =
        Command::new(program).args(words).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub(super) fn prefixes<T: AsRef<str>>(texts: &[T]) -> Vec<Prefix> {
    texts.iter().map(|text| text.as_ref().parse().unwrap()).collect()
}

/// A peer's key; no private one belongs to it.
pub(super) fn peer(byte: u8) -> PublicKey {
    PublicKey([byte; 32])
}

/// An update of allowed IPs.
pub(super) fn allowed<T: AsRef<str>>(all: &[T], add: &[T], remove: &[T]) -> Option<AllowedUpdate> {
    Some(AllowedUpdate { all: prefixes(all), add: prefixes(add), remove: prefixes(remove) })
}

/// The allowed IPs of a peer, as `wg` shows them.
pub(super) fn shown_allowed(key: PublicKey) -> Vec<Prefix> {
    let shown = run("wg show raven-wg0 allowed-ips");
    let line = shown.lines().find_map(|line| line.strip_prefix(&format!("{key}\t"))).unwrap();
    let shown = line.split(' ').filter(|text| *text != "(none)");
    let mut list: Vec<Prefix> = shown.map(|text| text.parse().unwrap()).collect();
    list.sort();
    list
}

/// The device's own settings; the driver holds this key.
pub(super) fn the_device_is_set_as_wg_shows_it(driver: &mut dyn Driver, key: &PrivateKey) {
    let blank = driver.read(DEVICE).unwrap().unwrap();
    assert_eq!((blank.tunnel.key, blank.tunnel.mark, blank.peers.len()), (None, 0, 0));
    assert!(super::running_key(DEVICE).is_none());

    let wanted = Tunnel { port: 4500, mark: corax_core::object::FWMARK, key: Some(key.public()) };
    driver.set_tunnel(DEVICE, &wanted.into()).unwrap();
    assert_eq!(run("wg show raven-wg0 public-key"), key.public().to_string());
    assert_eq!(run("wg show raven-wg0 listen-port"), "4500");
    assert_eq!(run("wg show raven-wg0 fwmark"), "0x1028");
    assert_eq!(driver.read(DEVICE).unwrap().unwrap().tunnel, wanted);
    assert!(super::running_key(DEVICE).as_ref() == Some(key), "a restart finds the running key");

    driver.set_tunnel(DEVICE, &TunnelUpdate { port: Some(4501), ..TunnelUpdate::default() }).unwrap();
    assert_eq!(driver.read(DEVICE).unwrap().unwrap().tunnel, Tunnel { port: 4501, ..wanted });
    driver.set_tunnel(DEVICE, &TunnelUpdate { mark: Some(0), ..TunnelUpdate::default() }).unwrap();
    assert_eq!(run("wg show raven-wg0 fwmark"), "off");
}

/// A peer from its beginning to its end, beside one that somebody else made.
pub(super) fn a_peer_is_made_changed_and_removed_and_its_neighbour_stays(driver: &mut dyn Driver) {
    let secret = PresharedKey::of_secret("openyurt-raven");
    let endpoint: SocketAddr = "192.0.2.1:4500".parse().unwrap();
    let update = PeerUpdate {
        exists: false,
        preshared: Some(secret.clone()),
        endpoint: Some(endpoint),
        keepalive: Some(5),
        allowed: allowed(&["10.1.0.0/16", "fd00:1::/64"], &["10.1.0.0/16", "fd00:1::/64"], &[]),
    };
    driver.set_peer(DEVICE, peer(1), &update).unwrap();
    run(&format!("wg set raven-wg0 peer {} endpoint [2001:db8::1]:51820 allowed-ips 10.2.0.0/16", peer(2)));

    let observed = driver.read(DEVICE).unwrap().unwrap();
    let first = &observed.peers[&peer(1)];
    assert_eq!(first.peer.preshared, secret);
    assert_eq!((first.peer.endpoint, first.configured), (Some(endpoint), Some(endpoint)));
    assert_eq!((first.peer.keepalive, first.handshake_age), (5, None));
    assert_eq!(first.peer.allowed, prefixes(&["10.1.0.0/16", "fd00:1::/64"]));
    assert_eq!(shown_allowed(peer(1)), first.peer.allowed);
    let second = &observed.peers[&peer(2)];
    assert_eq!(second.configured, None, "this process did not set it");
    assert_eq!(second.peer.endpoint, Some("[2001:db8::1]:51820".parse().unwrap()));

    let existing = |allowed| PeerUpdate { exists: true, allowed, ..PeerUpdate::default() };
    let more = allowed(&["10.1.0.0/16", "10.3.0.0/16", "fd00:1::/64"], &["10.3.0.0/16"], &[]);
    driver.set_peer(DEVICE, peer(1), &existing(more)).unwrap();
    assert_eq!(shown_allowed(peer(1)), prefixes(&["10.1.0.0/16", "10.3.0.0/16", "fd00:1::/64"]));
    let less = allowed(&["10.1.0.0/16", "10.4.0.0/16"], &["10.4.0.0/16"], &["10.3.0.0/16", "fd00:1::/64"]);
    driver.set_peer(DEVICE, peer(1), &existing(less)).unwrap();
    assert_eq!(shown_allowed(peer(1)), prefixes(&["10.1.0.0/16", "10.4.0.0/16"]));
    let none = allowed(&[], &[], &["10.1.0.0/16", "10.4.0.0/16"]);
    driver.set_peer(DEVICE, peer(1), &existing(none)).unwrap();
    assert_eq!(shown_allowed(peer(1)), []);
    assert_eq!(shown_allowed(peer(2)), prefixes(&["10.2.0.0/16"]));

    let off = PeerUpdate { exists: true, keepalive: Some(0), ..PeerUpdate::default() };
    driver.set_peer(DEVICE, peer(1), &off).unwrap();
    assert!(run("wg show raven-wg0 persistent-keepalive").contains(&format!("{}\toff", peer(1))));
    let shown = run("wg show raven-wg0 endpoints");
    assert!(shown.contains("192.0.2.1:4500") && shown.contains("[2001:db8::1]:51820"), "{shown}");
    assert!(run("wg show raven-wg0 preshared-keys").contains(&PublicKey(*secret.expose()).to_string()));

    driver.delete_peer(DEVICE, peer(1)).unwrap();
    driver.delete_peer(DEVICE, peer(1)).unwrap();
    assert_eq!(run("wg show raven-wg0 peers"), peer(2).to_string());
}

/// An update of what is gone.
pub(super) fn a_peer_that_is_gone_is_not_made_by_an_update(driver: &mut dyn Driver) {
    let update = PeerUpdate { exists: true, keepalive: Some(5), ..PeerUpdate::default() };
    driver.set_peer(DEVICE, peer(1), &update).unwrap();
    assert_eq!(driver.read(DEVICE).unwrap().unwrap().peers.len(), 0);
}

/// More than fits into one message, each way.
pub(super) fn many_peers_and_allowed_ips_are_set_and_read_back(driver: &mut dyn Driver) {
    let networks = |second: u8| -> Vec<String> {
        let each = |number: u16| match number % 2 {
            0 => format!("10.{second}.{}.{}/32", number / 256, number % 256),
            _ => format!("fd00:{second}:{number:x}::/64"),
        };
        (0..2000).map(each).collect()
    };
    let (first, second) = (networks(9), networks(8));
    let update = |list: &[String], remove: &[String]| PeerUpdate {
        exists: !remove.is_empty(),
        allowed: allowed(list, list, remove),
        ..PeerUpdate::default()
    };
    let sorted = |list: &[String]| {
        let mut list = prefixes(list);
        list.sort();
        list
    };
    driver.set_peer(DEVICE, peer(1), &update(&first, &[])).unwrap();
    for byte in 2..=200 {
        driver.set_peer(DEVICE, peer(byte), &update(&[format!("10.7.{byte}.0/24")], &[])).unwrap();
    }
    assert_eq!(shown_allowed(peer(1)), sorted(&first));
    let observed = driver.read(DEVICE).unwrap().unwrap();
    assert_eq!(observed.peers.len(), 200);
    assert_eq!(observed.peers[&peer(1)].peer.allowed, sorted(&first));
    assert_eq!(observed.peers[&peer(200)].peer.allowed, prefixes(&["10.7.200.0/24"]));

    driver.set_peer(DEVICE, peer(1), &update(&second, &first)).unwrap();
    assert_eq!(shown_allowed(peer(1)), sorted(&second));
    assert_eq!(driver.read(DEVICE).unwrap().unwrap().peers[&peer(1)].peer.allowed, sorted(&second));
}
