use std::fmt::Write;

use proptest::prelude::*;

use super::*;

fn key() -> impl Strategy<Value = String> {
    prop::array::uniform32(any::<u8>())
        .prop_map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn set() -> impl Strategy<Value = Set> {
    let allowed = (any::<bool>(), any::<[u8; 4]>(), 0u8..=32).prop_map(|(add, address, length)| {
        let prefix = Prefix::new(address.into(), length).unwrap();
        if add { Allowed::Add(prefix) } else { Allowed::Remove(prefix) }
    });
    let peer = (
        (key(), any::<bool>(), any::<bool>(), prop::option::of(key())),
        prop::option::of((any::<[u8; 16]>(), any::<u16>())),
        prop::option::of(any::<u16>()),
        any::<bool>(),
        prop::collection::vec(allowed, 0..4),
    )
        .prop_map(
            |((key, remove, update_only, preshared), endpoint, keepalive, replace_allowed, allowed)| {
                SetPeer {
                    key: PublicKey::parse(&key).unwrap(),
                    remove,
                    update_only,
                    preshared_key: preshared.map(|key| PresharedKey::parse(&key).unwrap()),
                    endpoint: endpoint.map(|(address, port)| (address, port).into()),
                    keepalive,
                    replace_allowed,
                    allowed,
                }
            },
        );
    (
        prop::option::of(key()),
        prop::option::of(any::<u16>()),
        prop::option::of(any::<u32>()),
        any::<bool>(),
        prop::collection::vec(peer, 0..4),
    )
        .prop_map(|(private, listen_port, fwmark, replace_peers, peers)| Set {
            private_key: private.map(|key| PrivateKey::parse(&key).unwrap()),
            listen_port,
            fwmark,
            replace_peers,
            peers,
        })
}

/// Writes a request as `wg` does.
fn write(set: &Set) -> String {
    let mut text = "set=1\n".to_owned();
    let mut line = |key: &str, value: &str| writeln!(text, "{key}={value}").unwrap();
    let none = "0".repeat(64);
    if let Some(key) = &set.private_key {
        line("private_key", &key.as_ref().map_or(none.clone(), |key| key.hex().to_string()));
    }
    if let Some(port) = set.listen_port {
        line("listen_port", &port.to_string());
    }
    if let Some(mark) = set.fwmark {
        line("fwmark", &mark.to_string());
    }
    if set.replace_peers {
        line("replace_peers", "true");
    }
    for peer in &set.peers {
        line("public_key", &peer.key.hex());
        if peer.remove {
            line("remove", "true");
        }
        if peer.update_only {
            line("update_only", "true");
        }
        if let Some(key) = &peer.preshared_key {
            line("preshared_key", &key.as_ref().map_or(none.clone(), |key| key.hex().to_string()));
        }
        if let Some(endpoint) = peer.endpoint {
            line("endpoint", &endpoint.to_string());
        }
        if let Some(seconds) = peer.keepalive {
            line("persistent_keepalive_interval", &seconds.to_string());
        }
        if peer.replace_allowed {
            line("replace_allowed_ips", "true");
        }
        for allowed in &peer.allowed {
            match allowed {
                Allowed::Add(prefix) => line("allowed_ip", &prefix.to_string()),
                Allowed::Remove(prefix) => line("allowed_ip", &format!("-{prefix}")),
            }
        }
    }
    text
}

proptest! {
    #[test]
    fn what_is_written_is_read(set in set()) {
        prop_assert_eq!(Request::parse(&write(&set)), Some(Request::Set(set)));
    }

    #[test]
    fn nothing_makes_it_panic(text in "(set=1\n)?([a-z_]{0,12}=?[a-f0-9:./%\\[\\]-]{0,70}\n){0,8}") {
        drop(Request::parse(&text));
    }
}

#[test]
fn secrets_are_not_printed() {
    let secret = "ab".repeat(32);
    let text =
        format!("set=1\nprivate_key={secret}\npublic_key={}\npreshared_key={secret}\n", "cd".repeat(32));
    let printed = format!("{:?}", Request::parse(&text).unwrap());
    assert!(!printed.contains("ab") && !printed.contains("171"), "{printed}");
}

#[test]
fn zone_and_forms_of_marks_are_understood() {
    let parse = |text: &str| Request::parse(&format!("set=1\n{text}\n"));
    let key = "11".repeat(32);
    assert!(parse(&format!("public_key={key}\nendpoint=[fe80::1%lo]:7")).is_some());
    assert!(parse(&format!("public_key={key}\nendpoint=[fe80::1%1]:7")).is_some());
    assert_eq!(parse("fwmark=0x10"), parse("fwmark=16"));
    for bad in
        ["fwmark=x", "listen_port=65536", "replace_peers=false", "private_key=00", "endpoint=1.2.3.4:5", "x"]
    {
        assert_eq!(parse(bad), None, "{bad}");
    }
    assert_eq!(Request::parse("get=2"), None);
    assert_eq!(Request::parse(""), None);
}
