//! Answers: lines of `key=value`, closed by `errno=N` and an empty line.

use std::net::{SocketAddr, SocketAddrV6};
use std::time::Duration;

use corax_core::key::{PresharedKey, PublicKey};
use zeroize::Zeroizing;

use crate::wireguard::key::PrivateKey;
use crate::wireguard::memory::{PeerReading, Reading};

/// What a process answers to `get=1`.
#[derive(Debug)]
pub(super) struct Response {
    /// The device.
    pub(super) reading: Reading,
    /// Its private key.
    pub(super) key: Option<PrivateKey>,
    /// Zero, or why there is no device.
    pub(super) errno: i32,
}

/// Reads an answer to `get=1`. Keys that are not known are passed over: the protocol may grow.
pub(super) fn parse(text: &str) -> Result<Response, String> {
    let mut response = Response { reading: Reading::default(), key: None, errno: 0 };
    let mut errno = None;
    let mut peer: Option<(PublicKey, PeerReading)> = None;
    for line in text.lines().take_while(|line| !line.is_empty()) {
        // Keys are not repeated in what goes wrong with them.
        let (key, value) = line.split_once('=').ok_or("a line without `=`")?;
        let wrong = || format!("a wrong value of {key}");
        match (key, &mut peer) {
            ("errno", _) => errno = Some(value.parse().map_err(|_| wrong())?),
            ("public_key", _) => {
                response.reading.peers.extend(peer.take());
                peer = Some((PublicKey(*hex(value).ok_or_else(wrong)?), PeerReading::default()));
            }
            ("private_key", None) => response.key = PrivateKey::from_bytes(*hex(value).ok_or_else(wrong)?),
            ("listen_port", None) => response.reading.port = value.parse().map_err(|_| wrong())?,
            ("fwmark", None) => response.reading.mark = mark(value).ok_or_else(wrong)?,
            (_, None) => {}
            (_, Some((_, peer))) => peer_line(peer, key, value).ok_or_else(wrong)?,
        }
    }
    response.reading.peers.extend(peer);
    response.reading.key = response.key.as_ref().map(PrivateKey::public);
    response.errno = errno.ok_or("no errno at its end")?;
    Ok(response)
}

/// Reads an answer to a set request.
pub(super) fn errno(text: &str) -> Result<i32, String> {
    let value = text.lines().find_map(|line| line.strip_prefix("errno=")).ok_or("no errno in it")?;
    value.parse().map_err(|_| format!("a wrong errno {value:?}"))
}

fn peer_line(peer: &mut PeerReading, key: &str, value: &str) -> Option<()> {
    match key {
        "preshared_key" => peer.preshared = PresharedKey::from_bytes(*hex(value)?),
        "endpoint" => peer.endpoint = Some(endpoint(value)?),
        "persistent_keepalive_interval" => peer.keepalive = value.parse().ok()?,
        "allowed_ip" => peer.allowed.push(value.parse().ok()?),
        "last_handshake_time_sec" => peer.handshake += Duration::from_secs(value.parse().ok()?),
        "last_handshake_time_nsec" => peer.handshake += Duration::from_nanos(value.parse().ok()?),
        "rx_bytes" => peer.received = value.parse().ok()?,
        "tx_bytes" => peer.sent = value.parse().ok()?,
        _ => {}
    }
    Some(())
}

/// 32 bytes in 64 hexadecimal digits.
fn hex(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    if pairs.len() != bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// A mark, in decimal or, as some write it, in hexadecimal.
fn mark(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// An address and port; a link-local one may name its interface, which wireguard-go does.
fn endpoint(text: &str) -> Option<SocketAddr> {
    if let Ok(endpoint) = text.parse() {
        return Some(endpoint);
    }
    let (address, rest) = text.strip_prefix('[')?.split_once('%')?;
    let (zone, port) = rest.split_once("]:")?;
    let scope = nix::net::if_::if_nametoindex(zone).ok()?;
    Some(SocketAddrV6::new(address.parse().ok()?, port.parse().ok()?, 0, scope).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the protocol's own page, with `errno` at its end.
    const EXAMPLE: &str = include_str!("example.txt");

    #[test]
    fn the_protocols_own_example_is_understood() {
        let response = parse(EXAMPLE).unwrap();
        assert_eq!((response.errno, response.reading.port), (0, 12912));
        let private = hex("e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a").unwrap();
        assert!(response.key == PrivateKey::from_bytes(*private));
        let peers: Vec<_> = response.reading.peers.values().collect();
        assert_eq!(peers.len(), 3);
        let of = |key: &str| &response.reading.peers[&PublicKey(*hex(key).unwrap())];
        let first = of("b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33");
        assert_eq!(first.endpoint, Some("[abcd:23::33%2]:51820".parse().unwrap()));
        assert_eq!(first.allowed, ["192.168.4.4/32".parse().unwrap()]);
        assert_ne!(first.preshared, PeerReading::default().preshared);
        let second = of("58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376");
        assert_eq!((second.sent, second.received, second.keepalive), (38333, 2224, 111));
        assert_eq!(second.allowed, ["192.168.4.6/32".parse().unwrap()]);
        let third = of("662e14fd594556f522604703340351258903b64f35553763f19426ab2a515c58");
        assert_eq!((third.sent, third.received), (1_212_111, 1_929_999_999));
    }

    #[test]
    fn an_answer_without_an_end_or_with_nonsense_is_refused_without_repeating_keys() {
        for (text, what) in [
            ("listen_port=1\n", "no errno"),
            ("listen_port\nerrno=0\n", "without `=`"),
            ("private_key=secret\nerrno=0\n", "value of private_key"),
            ("public_key=00\nerrno=0\n", "value of public_key"),
            ("errno=x\n", "value of errno"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(what) && !error.contains("secret"), "{error}");
        }
        assert!(
            parse(&format!("public_key={}\nallowed_ip=10.0.0.0/33\nerrno=0\n", "00".repeat(32))).is_err()
        );
    }

    #[test]
    fn no_key_is_32_zeros() {
        let response = parse(&format!("private_key={}\nfwmark=0x20\nerrno=0\n\n", "0".repeat(64))).unwrap();
        assert_eq!((response.reading.key, response.reading.mark), (None, 0x20));
    }

    #[test]
    fn a_refusal_is_read() {
        assert_eq!(errno("errno=-22\n\n"), Ok(-22));
        assert_eq!(errno("errno=0\n\n"), Ok(0));
        assert!(errno("\n").is_err());
    }
}
