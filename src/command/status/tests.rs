use serde_json::json;

use super::*;

/// A gateway, as its agent answers `/status`.
fn gateway() -> Report {
    let report = json!({
        "version": "1.2.3", "started": 1_000_000, "node": "cloud-1", "role": "gateway", "domain": "cloud",
        "gateway": "cloud-1", "mesh": true, "underlay": "172.16.0.11", "vtep": "aa:0f:ac:10:00:0b",
        "publicKey": "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
        "prefixes": ["10.100.1.0/24", "fd00:10:0:1::/64"],
        "view": { "revision": 7, "since": 1_000_090, "complete": true, "applied": true, "failed": [] },
        "domains": [
            { "name": "box", "path": "tunnel", "gateway": "box-1", "relay": "site", "prefixes": 2 },
            { "name": "office", "path": "none", "gateway": null, "relay": null, "prefixes": 1 },
            { "name": "site", "path": "tunnel", "gateway": "site-1", "relay": null, "prefixes": 4 },
        ],
        "devices": [
            { "name": "raven0", "kind": "vxlan", "mtu": 1420, "up": true },
            { "name": "raven-wg0", "kind": "tun", "mtu": 1420, "up": false },
        ],
        "tunnels": [
            { "device": "raven-wg0", "domain": "office", "node": "office-1", "key": "…", "endpoint": null,
              "handshakeAge": null, "received": 0, "sent": 148 },
            { "device": "raven-wg0", "domain": "site", "node": "site-1", "key": "…",
              "endpoint": "198.51.100.7:4500", "handshakeAge": 130, "received": 10_239, "sent": 7_340_032_000_u64 },
        ],
        "objects": { "nft_table": 1 },
        "drops": [
            { "reason": "vxlan_stranger", "packets": 5, "bytes": 700 },
            { "reason": "plaintext_lock", "packets": 0, "bytes": 0 },
            { "reason": "forward_foreign", "packets": 12, "bytes": 1008 },
        ],
        "lastChanges": (0..12).map(|number| json!({
            "at": 1_000_000 + 8 * number, "line": format!("ip route replace 10.{number}.0.0/24 dev raven-wg0"),
        })).chain([
            json!({ "at": 1_000_099, "line": "ip link add raven0 type vxlan\nip link set raven0 up",
                    "error": "something else is in its place" }),
        ]).collect::<Vec<_>>(),
        "problems": [
            { "object": "rule 50", "what": "stands before Corax's", "remedy": "ip rule del priority 50" },
            { "object": "Gateway office", "what": "has no key", "remedy": "run `corax key` there" },
        ],
    });
    serde_json::from_value(report).unwrap()
}

#[test]
fn a_gateway_is_shown_with_its_domains_tunnels_drops_changes_and_problems() {
    let shown = render(&gateway(), 1_000_100);
    assert_eq!(shown, include_str!("gateway.txt"), "\n{shown}");
}

/// What the line of a word says.
fn line(report: &Report, word: &str) -> String {
    let text = render(report, 1_000_100);
    let found = text.lines().find(|line| line.starts_with(word));
    found.unwrap_or_else(|| panic!("no {word} in:\n{text}"))[word.len()..].trim().to_owned()
}

#[test]
fn what_is_not_there_has_no_heading_and_a_role_says_what_is_missing() {
    let nothing = Report { node: "cloud-9".to_owned(), version: "1.2.3".to_owned(), ..Report::default() };
    let text = render(&nothing, 1_000_100);
    for heading in ["DOMAINS", "TUNNELS", "DEVICES", "DROPPED", "LAST CHANGES", "PROBLEMS"] {
        assert!(!text.contains(heading), "{heading} in:\n{text}");
    }
    assert_eq!(line(&nothing, "view"), "none yet");
    assert_eq!(line(&nothing, "role"), "outside every domain: nothing steered, NO LOCK against plaintext");
    let kept = Report { objects: [("nft_table".to_owned(), 1)].into(), ..nothing.clone() };
    assert_eq!(line(&kept, "role"), "outside every domain, what it had stays");
    let member = Report { role: Role::Member, ..nothing };
    assert_eq!(line(&member, "role"), "member, no gateway");
    let member = Report { gateway: Some("cloud-1".parse().unwrap()), ..member };
    assert_eq!(line(&member, "role"), "member, gateway is cloud-1");
    let mut behind = gateway();
    behind.view.applied = false;
    assert_eq!(line(&behind, "view"), "7, NOT applied");
}
