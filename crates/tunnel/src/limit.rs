//! How often one address may shake hands: each handshake costs four curve multiplications.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Handshake messages a second and address, as in the kernel's WireGuard.
const PER_SECOND: u32 = 20;
/// Messages at once.
const BURST: u32 = 5;
/// Addresses remembered; beyond that none is let in until some have been forgotten.
const ADDRESSES: usize = 8192;

/// A token bucket an address. IPv6 addresses count by their /64.
#[derive(Debug)]
pub(crate) struct Limiter {
    buckets: HashMap<u128, (Instant, Duration)>,
    swept: Instant,
}

impl Limiter {
    pub(crate) fn new(now: Instant) -> Self {
        Self { buckets: HashMap::new(), swept: now }
    }

    /// Whether a message from `address` may be worked on.
    pub(crate) fn admit(&mut self, address: IpAddr, now: Instant) -> bool {
        const COST: Duration = Duration::from_nanos(1_000_000_000 / PER_SECOND as u64);
        const FULL: Duration = Duration::from_nanos(1_000_000_000 / PER_SECOND as u64 * BURST as u64);
        if now.duration_since(self.swept) >= FULL {
            // A bucket that has filled up again says no more than none.
            self.buckets.retain(|_, (at, tokens)| now.duration_since(*at) + *tokens < FULL);
            self.swept = now;
        }
        let key = match address {
            IpAddr::V4(v4) => v4.to_bits().into(),
            IpAddr::V6(v6) => v6.to_bits() & !u128::from(u64::MAX),
        };
        if self.buckets.len() >= ADDRESSES && !self.buckets.contains_key(&key) {
            return false;
        }
        let (at, tokens) = self.buckets.entry(key).or_insert((now, FULL));
        let have = (*tokens + now.duration_since(*at)).min(FULL);
        *at = now;
        let Some(left) = have.checked_sub(COST) else {
            *tokens = have;
            return false;
        };
        *tokens = left;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_burst_and_then_a_rate() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        let address = "192.0.2.1".parse().unwrap();
        let admitted = (0..100).filter(|_| limiter.admit(address, start)).count();
        assert_eq!(admitted, 5);
        assert!(limiter.admit("192.0.2.2".parse().unwrap(), start), "others are not held up");
        let admitted =
            (1..=1000).filter(|milli| limiter.admit(address, start + Duration::from_millis(*milli))).count();
        assert_eq!(admitted, 20);
    }

    #[test]
    fn addresses_are_forgotten_and_bounded() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        let admitted = (0..20_000u32)
            .filter(|index| limiter.admit(std::net::Ipv4Addr::from(*index).into(), start))
            .count();
        assert_eq!(admitted, ADDRESSES);
        assert!(limiter.admit("203.0.113.1".parse().unwrap(), start + Duration::from_secs(1)));
        assert_eq!(limiter.buckets.len(), 1);
    }
}
