//! Against a socket that answers what a test wants it to.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use corax_core::change::{PeerUpdate, TunnelUpdate};
use corax_core::key::PublicKey;
use socket2::{Domain, SockAddr, Socket, Type};

use super::super::Userspace;
use crate::wireguard::key::PrivateKey;
use crate::wireguard::testing::{DEVICE, allowed};
use crate::wireguard::{DEADLINE, Driver, Error};

const KEY: PublicKey = PublicKey([1; 32]);

/// Answers one connection after the other, by the texts in turn; returns the requests.
fn serve(directory: &Path, answers: &'static [&'static str]) -> JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(directory.join("raven-wg0.sock")).unwrap();
    thread::spawn(move || {
        let serve = |answer: &&str| {
            let (mut stream, _) = listener.accept().unwrap();
            let request = request(&mut stream);
            stream.write_all(answer.as_bytes()).unwrap();
            request
        };
        answers.iter().map(serve).collect()
    })
}

fn request(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\n\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        text.extend(byte);
    }
    String::from_utf8(text).unwrap()
}

fn driver(directory: &Path) -> Userspace {
    Userspace::new(PrivateKey::generate()).with_directory(directory)
}

fn removing() -> PeerUpdate {
    let allowed = allowed(&["10.1.0.0/16"], &[], &["10.2.0.0/16"]);
    PeerUpdate { exists: true, allowed, ..PeerUpdate::default() }
}

#[test]
fn a_process_that_can_take_single_allowed_ips_away_is_asked_to() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve(directory.path(), &["errno=0\n\n"]);
    driver(directory.path()).set_peer(DEVICE, KEY, &removing()).unwrap();
    let requests = server.join().unwrap();
    assert!(requests[0].ends_with("allowed_ip=-10.2.0.0/16\n\n"), "{requests:?}");
}

#[test]
fn one_that_cannot_is_asked_once() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve(directory.path(), &["errno=-22\n\n", "errno=0\n\n", "errno=0\n\n"]);
    let mut driver = driver(directory.path());
    driver.set_peer(DEVICE, KEY, &removing()).unwrap();
    driver.set_peer(DEVICE, KEY, &removing()).unwrap();
    let requests = server.join().unwrap();
    assert!(requests[0].contains("allowed_ip=-"));
    for request in &requests[1..] {
        assert!(request.ends_with("replace_allowed_ips=true\nallowed_ip=10.1.0.0/16\n\n"), "{request}");
    }
}

#[test]
fn a_refusal_names_the_device_and_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve(directory.path(), &["errno=-98\n\n", "nonsense\n\n", "errno=5\n\n"]);
    let mut driver = driver(directory.path());
    let update = TunnelUpdate { port: Some(4500), ..TunnelUpdate::default() };
    let error = driver.set_tunnel(DEVICE, &update).unwrap_err().to_string();
    assert!(error.starts_with("cannot set raven-wg0: Address already in use"), "{error}");
    let error = driver.delete_peer(DEVICE, KEY).unwrap_err().to_string();
    assert_eq!(error, "cannot remove a peer of raven-wg0: malformed answer: no errno in it");
    let error = driver.read(DEVICE).unwrap_err().to_string();
    assert!(error.starts_with("cannot read raven-wg0: Input/output error"), "{error}");
    server.join().unwrap();
}

#[test]
fn a_key_that_is_not_this_nodes_is_never_set() {
    let directory = tempfile::tempdir().unwrap();
    let update = TunnelUpdate { key: Some(KEY), ..TunnelUpdate::default() };
    let error = driver(directory.path()).set_tunnel(DEVICE, &update).unwrap_err();
    assert!(matches!(error, Error::ForeignKey { .. }), "{error}");
}

#[test]
fn a_process_that_hangs_up_in_its_answer_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve(directory.path(), &["listen_port=1\n"]);
    let error = driver(directory.path()).read(DEVICE).unwrap_err().to_string();
    assert_eq!(error, "cannot read raven-wg0: it hung up in its answer");
    server.join().unwrap();
}

#[test]
fn a_process_that_says_nothing_or_goes_on_for_ever_is_given_up_at_the_deadline() {
    let begin = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let directory = tempfile::tempdir().unwrap();
            let _silent = UnixListener::bind(directory.path().join("raven-wg0.sock")).unwrap();
            let error = driver(directory.path()).read(DEVICE).unwrap_err();
            assert!(matches!(error, Error::Deadline { .. }), "{error}");
        });
        scope.spawn(|| {
            let directory = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(directory.path().join("raven-wg0.sock")).unwrap();
            let dripping = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                while stream.write_all(b"listen_port=1\n").is_ok() {
                    thread::sleep(Duration::from_millis(100));
                }
            });
            let error = driver(directory.path()).read(DEVICE).unwrap_err();
            assert!(matches!(error, Error::Deadline { .. }), "{error}");
            dripping.join().unwrap();
        });
        scope.spawn(|| {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("raven-wg0.sock");
            let full = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
            full.bind(&SockAddr::unix(&path).unwrap()).unwrap();
            full.listen(0).unwrap();
            let _first = UnixStream::connect(&path).unwrap();
            let error = driver(directory.path()).set_tunnel(DEVICE, &TunnelUpdate::default()).unwrap_err();
            assert!(matches!(error, Error::Deadline { .. }), "{error}");
        });
    });
    assert!(begin.elapsed() >= DEADLINE && begin.elapsed() < DEADLINE * 2, "{:?}", begin.elapsed());
}
