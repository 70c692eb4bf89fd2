//! Against Debian's `wireguard-go`.

use corax_core::change::TunnelUpdate;

use super::super::{Listener, Userspace, listener};
use crate::wireguard::Driver;
use crate::wireguard::key::PrivateKey;
use crate::wireguard::testing::{self, DEVICE, Process, isolated};

/// Runs a test with a process of its own.
fn with_process(test: impl FnOnce(&mut Userspace, &PrivateKey) + Send) {
    isolated(|| {
        let _process = Process::start();
        let key = PrivateKey::generate();
        test(&mut Userspace::new(key.clone()), &key);
    });
}

#[test]
fn the_device_is_set_as_wg_shows_it() {
    with_process(|driver, key| testing::the_device_is_set_as_wg_shows_it(driver, key));
}

#[test]
fn a_peer_is_made_changed_and_removed_and_its_neighbour_stays() {
    with_process(|driver, _| testing::a_peer_is_made_changed_and_removed_and_its_neighbour_stays(driver));
}

#[test]
fn a_peer_that_is_gone_is_not_made_by_an_update() {
    with_process(|driver, _| testing::a_peer_that_is_gone_is_not_made_by_an_update(driver));
}

#[test]
fn many_peers_and_allowed_ips_are_set_and_read_back() {
    with_process(|driver, _| testing::many_peers_and_allowed_ips_are_set_and_read_back(driver));
}

#[test]
fn a_process_that_died_leaves_a_stale_socket_and_is_nobody() {
    isolated(|| {
        assert_eq!(listener(DEVICE).unwrap(), Listener::Absent);
        let mut driver = Userspace::new(PrivateKey::generate());
        assert!(driver.read(DEVICE).unwrap().is_none());
        drop(Process::start());
        assert_eq!(listener(DEVICE).unwrap(), Listener::Stale);
        assert!(driver.read(DEVICE).unwrap().is_none());
        let error = driver.set_tunnel(DEVICE, &TunnelUpdate::default()).unwrap_err().to_string();
        let socket = "/var/run/wireguard/raven-wg0.sock";
        let expected =
            format!("cannot set raven-wg0: nobody answers {socket}; start `corax tunnel raven-wg0`");
        assert_eq!(error, expected);
    });
}
