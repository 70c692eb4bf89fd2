//! Tunnels into which packets go and out of which nothing ever comes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use corax_core::problem::Problem;
use corax_core::view::View;

use super::report::TunnelReport;

/// How long a tunnel that is used may be without a handshake: three tries of WireGuard's own, 5 s apart, and some.
const PATIENCE: Duration = Duration::from_secs(20);

/// Age by which a handshake of a tunnel in use has been followed by another, in seconds: tried from 120 on
/// (WireGuard's REKEY_AFTER_TIME), each 5 s.
const DUE: u64 = 150;

/// Sizes of WireGuard's initiation and response, bytes; empty messages, and those of data that are shorter than the MTU, are
/// multiples of [`BLOCK`].
const HANDSHAKE: [u64; 2] = [148, 92];
const BLOCK: u64 = 16;

/// From one look to the next there are no more of either.
const MOST: u64 = 6;

/// What was seen of a tunnel last.
struct Seen {
    sent: u64,
    received: u64,
    handshake_age: Option<u64>,
    /// Since when it asks for a handshake in vain.
    since: Option<Instant>,
}

/// Tunnels by the key of their peer.
#[derive(Default)]
pub(super) struct Silence(BTreeMap<String, Seen>);

impl Silence {
    /// Takes in how tunnels are now, and tells of those that stay silent. `view` knows which addresses are nodes' own.
    pub(super) fn look(
        &mut self,
        tunnels: &[TunnelReport],
        view: Option<&View>,
        now: Instant,
    ) -> Vec<Problem> {
        self.0.retain(|key, _| tunnels.iter().any(|tunnel| tunnel.key == *key));
        tunnels.iter().filter_map(|tunnel| self.look_at(tunnel, view, now)).collect()
    }

    fn look_at(&mut self, tunnel: &TunnelReport, view: Option<&View>, now: Instant) -> Option<Problem> {
        let TunnelReport { sent, received, handshake_age, .. } = *tunnel;
        let first = Seen { sent, received, handshake_age, since: None };
        let seen = self.0.entry(tunnel.key.clone()).or_insert(first);
        let renewed = handshake_age.is_some_and(|age| seen.handshake_age.is_none_or(|before| age < before));
        let (more_sent, more_received) =
            (sent.saturating_sub(seen.sent), received.saturating_sub(seen.received));
        // Who hears data answers it within 10 s, be it with an empty message; our own keepalives are never answered. So where
        // nothing but handshakes comes, and one is asked for, the other end has no session, or is not there.
        let heard = !is_handshakes(more_received);
        let asks = !more_sent.is_multiple_of(BLOCK);
        let overdue = handshake_age.is_none_or(|age| age > DUE);
        if renewed || (heard && !overdue) {
            seen.since = None;
        } else if asks || (overdue && more_sent > 0) {
            seen.since.get_or_insert(now);
        }
        (seen.sent, seen.received, seen.handshake_age) = (sent, received, handshake_age);
        seen.since.filter(|since| now.duration_since(*since) >= PATIENCE)?;
        let endpoint = match tunnel.endpoint.as_deref() {
            None => "it, which has to speak first,".to_owned(),
            Some(endpoint) if is_private(tunnel, view) => format!(
                "{endpoint}, its privateIP (where that is not its address from here: give its endpoint publicIP, or underNAT),"
            ),
            Some(endpoint) => endpoint.to_owned(),
        };
        Some(Problem::new(
            format!("tunnel to {} of Gateway {}", tunnel.node, tunnel.domain),
            // The same words as long as it lasts: the log tells of each once.
            format!("no handshake for more than {} s of trying", PATIENCE.as_secs()),
            format!(
                "see that UDP to {endpoint} gets through, that VPN_CONNECTION_PSK is the same there, and that its \
                 config.publicKey is what `corax key` prints there"
            ),
        ))
    }
}

/// Whether a tunnel's endpoint is where its node is said to be in its own domain.
fn is_private(tunnel: &TunnelReport, view: Option<&View>) -> bool {
    let member = view.and_then(|view| view.domains.get(&tunnel.domain)?.member(&tunnel.node));
    let endpoint = tunnel.endpoint.as_ref().and_then(|endpoint| endpoint.parse::<SocketAddr>().ok());
    member.zip(endpoint).is_some_and(|(member, endpoint)| member.underlay == endpoint.ip())
}

/// Whether so many bytes can be handshakes alone, or nothing at all.
fn is_handshakes(bytes: u64) -> bool {
    let [initiation, response] = HANDSHAKE;
    (0..=MOST).any(|begun| (0..=MOST).any(|answered| begun * initiation + answered * response == bytes))
}

#[cfg(test)]
mod tests {
    use corax_core::api::Gateway;
    use corax_core::sample::domain;
    use corax_core::view::Settings;

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

    /// How many problems there are by bytes sent and received, the handshake's age and the time, in seconds.
    fn teller() -> impl FnMut(u64, u64, u64, u64) -> usize {
        let (mut silence, begun) = (Silence::default(), Instant::now());
        move |sent, received, age, after| {
            let tunnel = TunnelReport { received, ..tunnel(sent, Some(age)) };
            silence.look(&[tunnel], None, begun + Duration::from_secs(after)).len()
        }
    }

    #[test]
    fn sizes_of_handshakes_are_known() {
        assert!([0, 92, 148, 240, 296, 332].into_iter().all(is_handshakes));
        assert!(![1, 32, 64, 96, 128, 180, 208, 10_000_000].into_iter().any(is_handshakes));
    }

    #[test]
    fn only_a_tunnel_that_is_used_in_vain_is_told() {
        let (mut silence, begun) = (Silence::default(), Instant::now());
        let mut told = |sent, age, after| {
            silence.look(&[tunnel(sent, age)], None, begun + Duration::from_secs(after)).len()
        };
        assert_eq!((told(0, None, 0), told(0, None, 60)), (0, 0), "nobody uses it");
        assert_eq!((told(148, None, 61), told(148, None, 70), told(296, None, 82)), (0, 0, 1));
        assert_eq!((told(400, Some(1), 83), told(900, Some(170), 140)), (0, 0), "it speaks");
        assert_eq!((told(1000, Some(200), 150), told(1100, Some(230), 180)), (0, 1), "and no more");
    }

    #[test]
    fn data_of_the_size_of_handshakes_is_data() {
        let (mut silence, begun) = (Silence::default(), Instant::now());
        for (look, bytes) in (0..10).map(|look| (look, 240 * look)) {
            let tunnel = TunnelReport { received: bytes, ..tunnel(bytes, Some(5 * look)) };
            assert_eq!(silence.look(&[tunnel], None, begun + Duration::from_secs(5 * look)), []);
        }
    }

    #[test]
    fn an_endpoint_that_is_the_nodes_own_address_is_told_as_such() {
        let site: Gateway = domain("site").node("s1", "192.168.1.1", &["10.20.1.0/24"]).into();
        let view = View::build(&[site], &Settings::default(), None);
        let remedy = |endpoint: Option<&str>| {
            let (mut silence, begun) = (Silence::default(), Instant::now());
            let mut told = |sent, after| {
                let tunnel = TunnelReport { endpoint: endpoint.map(str::to_owned), ..tunnel(sent, None) };
                silence.look(&[tunnel], Some(&view), begun + Duration::from_secs(after))
            };
            (told(0, 0), told(148, 1), told(296, 30)).2.remove(0).remedy
        };
        let own = "UDP to 192.168.1.1:4500, its privateIP (where that is not its address from here: give its endpoint publicIP, or \
                   underNAT), gets through";
        assert!(remedy(Some("192.168.1.1:4500")).contains(own));
        assert!(remedy(Some("203.0.113.1:4500")).contains("UDP to 203.0.113.1:4500 gets through"));
        assert!(remedy(None).contains("UDP to it, which has to speak first, gets through"));
    }

    #[test]
    fn a_peer_that_went_is_told_though_its_last_handshake_is_fresh() {
        let mut told = teller();
        // Data one way, which an empty message answers now and then; our own keepalives, which nothing answers.
        assert_eq!([told(1452, 0, 1, 0), told(2904, 0, 6, 5), told(4356, 32, 11, 10)], [0; 3]);
        assert_eq!([told(4388, 32, 31, 30), told(4420, 32, 56, 55)], [0; 2]);
        // Then nothing answers data, and initiations go with it.
        assert_eq!([told(4548, 32, 61, 60), told(4824, 32, 66, 65), told(5100, 32, 71, 70)], [0; 3]);
        assert_eq!([told(5228, 32, 81, 80), told(5376, 32, 86, 85)], [0, 1]);
        assert_eq!(told(5504, 160, 91, 90), 0, "it was a bad line");
    }

    #[test]
    fn a_tunnel_that_only_asks_for_a_handshake_is_told_though_its_last_one_is_fresh() {
        let mut told = teller();
        // Keepalives that need no answer, then data without one, then an answer.
        assert_eq!(
            [told(148, 92, 1, 0), told(180, 92, 6, 5), told(212, 92, 11, 10), told(452, 92, 16, 15)],
            [0; 4]
        );
        assert_eq!([told(900, 2000, 21, 20), told(932, 2000, 41, 40)], [0; 2]);
        // The other end begins anew with another preshared key. It asks, and is answered, in vain.
        assert_eq!([told(1080, 2000, 46, 45), told(1228, 2000, 51, 50), told(1468, 2148, 56, 55)], [0; 3]);
        assert_eq!([told(1468, 2148, 61, 60), told(1616, 2148, 66, 65)], [0, 1]);
        assert_eq!(told(1800, 2240, 2, 70), 0, "and there it is");
    }
}
