//! Tunnels into which packets go and out of which nothing ever comes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use corax_core::problem::Problem;

use super::report::TunnelReport;

/// How long a tunnel that is used may be without a handshake: three tries of WireGuard's own, 5 s apart, and some.
const PATIENCE: Duration = Duration::from_secs(20);

/// Age from which a handshake carries no more packets, in seconds (WireGuard's REJECT_AFTER_TIME).
const EXPIRED: u64 = 180;

/// What was seen of a tunnel last.
struct Seen {
    sent: u64,
    /// Since when it is used without a handshake.
    since: Option<Instant>,
}

/// Tunnels by the key of their peer.
#[derive(Default)]
pub(super) struct Silence(BTreeMap<String, Seen>);

impl Silence {
    /// Takes in how tunnels are now, and tells of those that stay silent.
    pub(super) fn look(&mut self, tunnels: &[TunnelReport], now: Instant) -> Vec<Problem> {
        self.0.retain(|key, _| tunnels.iter().any(|tunnel| tunnel.key == *key));
        tunnels.iter().filter_map(|tunnel| self.look_at(tunnel, now)).collect()
    }

    fn look_at(&mut self, tunnel: &TunnelReport, now: Instant) -> Option<Problem> {
        let seen = self.0.entry(tunnel.key.clone()).or_insert(Seen { sent: tunnel.sent, since: None });
        if tunnel.handshake_age.is_some_and(|age| age <= EXPIRED) {
            seen.since = None;
        } else if tunnel.sent > seen.sent {
            seen.since.get_or_insert(now);
        }
        seen.sent = tunnel.sent;
        let since = seen.since.filter(|since| now.duration_since(*since) >= PATIENCE)?;
        let endpoint = tunnel.endpoint.as_deref().unwrap_or("it, which has to speak first");
        Some(Problem::new(
            format!("tunnel to {} of Gateway {}", tunnel.node, tunnel.domain),
            format!("no handshake for {} s of trying", now.duration_since(since).as_secs() / 10 * 10),
            format!(
                "see that UDP to {endpoint} gets through, that VPN_CONNECTION_PSK is the same there, and that its \
                 config.publicKey is what `corax key` prints there"
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel(sent: u64, handshake_age: Option<u64>) -> TunnelReport {
        TunnelReport {
            device: "raven-wg0".to_owned(),
            domain: "site".parse().unwrap(),
            node: "s1".parse().unwrap(),
            key: "key".to_owned(),
            endpoint: None,
            handshake_age,
            received: 0,
            sent,
        }
    }

    #[test]
    fn only_a_tunnel_that_is_used_in_vain_is_told() {
        let (mut silence, begun) = (Silence::default(), Instant::now());
        let mut told =
            |sent, age, after| silence.look(&[tunnel(sent, age)], begun + Duration::from_secs(after)).len();
        assert_eq!((told(0, None, 0), told(0, None, 60)), (0, 0), "nobody uses it");
        assert_eq!((told(148, None, 61), told(148, None, 70), told(296, None, 82)), (0, 0, 1));
        assert_eq!((told(400, Some(1), 83), told(900, Some(170), 140)), (0, 0), "it speaks");
        assert_eq!((told(1000, Some(200), 150), told(1100, Some(230), 180)), (0, 1), "and no more");
    }
}
