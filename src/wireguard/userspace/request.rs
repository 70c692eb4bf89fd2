//! Set requests: lines of `key=value`, closed by an empty one. Later lines of a peer belong to the `public_key` above.

use std::fmt::Write;

use corax_core::change::{AllowedUpdate, PeerUpdate, TunnelUpdate};
use corax_core::key::PublicKey;
use zeroize::Zeroizing;

use crate::wireguard::key::PrivateKey;

/// A request; it may hold keys.
pub(super) type Request = Zeroizing<String>;

/// Sets what an update names of the device.
pub(super) fn tunnel(update: &TunnelUpdate, key: &PrivateKey) -> Request {
    let mut lines = Lines::new();
    if update.key.is_some() {
        lines.secret("private_key", key.expose());
    }
    if let Some(port) = update.port {
        lines.add("listen_port", port);
    }
    if let Some(mark) = update.mark {
        lines.add("fwmark", mark);
    }
    lines.end()
}

/// Sets what an update names of a peer; `single`: allowed IPs can be taken away one by one.
pub(super) fn peer(key: PublicKey, update: &PeerUpdate, single: bool) -> Request {
    let mut lines = Lines::new();
    lines.secret("public_key", &key.0);
    if update.exists {
        lines.add("update_only", true);
    }
    if let Some(preshared) = &update.preshared {
        lines.secret("preshared_key", preshared.expose());
    }
    if let Some(endpoint) = update.endpoint {
        lines.add("endpoint", endpoint);
    }
    if let Some(keepalive) = update.keepalive {
        lines.add("persistent_keepalive_interval", keepalive);
    }
    if let Some(allowed) = &update.allowed {
        lines.allowed(allowed, single);
    }
    lines.end()
}

/// Removes a peer.
pub(super) fn remove(key: PublicKey) -> Request {
    let mut lines = Lines::new();
    lines.secret("public_key", &key.0);
    lines.add("remove", true);
    lines.end()
}

struct Lines(Request);

impl Lines {
    fn new() -> Self {
        // Keys are written before anything can make the text grow and leave a copy behind.
        let mut text = String::with_capacity(512);
        text.push_str("set=1\n");
        Self(Zeroizing::new(text))
    }

    fn add(&mut self, key: &str, value: impl std::fmt::Display) {
        writeln!(self.0, "{key}={value}").expect("a string takes everything");
    }

    fn secret(&mut self, key: &str, bytes: &[u8; 32]) {
        write!(self.0, "{key}=").expect("a string takes everything");
        for byte in bytes {
            write!(self.0, "{byte:02x}").expect("a string takes everything");
        }
        self.0.push('\n');
    }

    fn allowed(&mut self, allowed: &AllowedUpdate, single: bool) {
        let replace = !single && !allowed.remove.is_empty();
        if replace {
            self.add("replace_allowed_ips", true);
        } else {
            for prefix in &allowed.remove {
                self.add("allowed_ip", format_args!("-{prefix}"));
            }
        }
        for prefix in if replace { &allowed.all } else { &allowed.add } {
            self.add("allowed_ip", prefix);
        }
    }

    fn end(mut self) -> Request {
        self.0.push('\n');
        self.0
    }
}

#[cfg(test)]
mod tests {
    use corax_core::key::PresharedKey;

    use super::*;

    const KEY: PublicKey = PublicKey([0xab; 32]);

    fn allowed() -> AllowedUpdate {
        let parse = |text: &str| text.parse().unwrap();
        AllowedUpdate {
            all: vec![parse("10.1.0.0/24"), parse("fd00::/64")],
            add: vec![parse("fd00::/64")],
            remove: vec![parse("10.9.0.0/16")],
        }
    }

    #[test]
    fn only_what_differs_is_sent() {
        let hex = "ab".repeat(32);
        assert_eq!(
            peer(KEY, &PeerUpdate { exists: true, keepalive: Some(25), ..PeerUpdate::default() }, true)
                .as_str(),
            format!("set=1\npublic_key={hex}\nupdate_only=true\npersistent_keepalive_interval=25\n\n"),
        );
        assert_eq!(remove(KEY).as_str(), format!("set=1\npublic_key={hex}\nremove=true\n\n"));
        let update = TunnelUpdate { port: Some(4500), ..TunnelUpdate::default() };
        assert_eq!(tunnel(&update, &PrivateKey::generate()).as_str(), "set=1\nlisten_port=4500\n\n");
    }

    #[test]
    fn an_allowed_ip_is_taken_away_alone_or_with_all_replaced() {
        let update = PeerUpdate { exists: true, allowed: Some(allowed()), ..PeerUpdate::default() };
        let text = peer(KEY, &update, true);
        assert!(
            text.ends_with("update_only=true\nallowed_ip=-10.9.0.0/16\nallowed_ip=fd00::/64\n\n"),
            "{}",
            *text
        );
        let text = peer(KEY, &update, false);
        let replaced = "replace_allowed_ips=true\nallowed_ip=10.1.0.0/24\nallowed_ip=fd00::/64\n\n";
        assert!(text.ends_with(replaced), "{}", *text);
    }

    #[test]
    fn nothing_is_replaced_where_nothing_goes() {
        let only_add = AllowedUpdate { remove: Vec::new(), ..allowed() };
        let update = PeerUpdate { allowed: Some(only_add), ..PeerUpdate::default() };
        for single in [true, false] {
            let text = peer(KEY, &update, single);
            assert!(text.ends_with("ab\nallowed_ip=fd00::/64\n\n"), "{}", *text);
        }
    }

    #[test]
    fn a_new_peer_with_everything() {
        let update = PeerUpdate {
            exists: false,
            preshared: Some(PresharedKey::from_bytes([1; 32])),
            endpoint: Some("[fe80::1%3]:4500".parse().unwrap()),
            keepalive: Some(0),
            allowed: None,
        };
        let expected = format!(
            "set=1\npublic_key={}\npreshared_key={}\nendpoint=[fe80::1%3]:4500\npersistent_keepalive_interval=0\n\n",
            "ab".repeat(32),
            "01".repeat(32)
        );
        assert_eq!(peer(KEY, &update, true).as_str(), expected);
    }
}
