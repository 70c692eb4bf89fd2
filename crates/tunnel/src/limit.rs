//! How often strangers may shake hands: each handshake costs four curve multiplications.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Handshake messages of one address, as in the kernel's WireGuard.
const ONE: Rate = Rate { per_second: 20, burst: 5 };
/// Handshake messages of all addresses together, which are a tenth of a core or so; whoever has very many addresses gets no
/// more. Five thousand peers that come at once are in within ten seconds.
const ALL: Rate = Rate { per_second: 500, burst: 100 };
/// Addresses remembered; beyond that none is let in until some have been forgotten.
const ADDRESSES: usize = 8192;

/// Token buckets, one for the device and one an address. IPv6 addresses count by their /64.
#[derive(Debug)]
pub(crate) struct Limiter {
    all: Bucket,
    buckets: HashMap<u128, Bucket>,
    swept: Instant,
}

#[derive(Debug)]
struct Rate {
    per_second: u32,
    /// Messages at once.
    burst: u32,
}

/// Time that has been saved up.
#[derive(Debug)]
struct Bucket {
    at: Instant,
    saved: Duration,
}

impl Limiter {
    pub(crate) fn new(now: Instant) -> Self {
        Self { all: Bucket { at: now, saved: ALL.full() }, buckets: HashMap::new(), swept: now }
    }

    /// Whether a message from `address` may be worked on.
    pub(crate) fn admit(&mut self, address: IpAddr, now: Instant) -> bool {
        if now.saturating_duration_since(self.swept) >= ONE.full() {
            // A bucket that has filled up again says no more than none.
            self.buckets.retain(|_, bucket| bucket.idle(now) + bucket.saved < ONE.full());
            self.swept = now;
        }
        let key = match address {
            IpAddr::V4(v4) => v4.to_bits().into(),
            IpAddr::V6(v6) => v6.to_bits() & !u128::from(u64::MAX),
        };
        if self.buckets.len() >= ADDRESSES && !self.buckets.contains_key(&key) {
            return false;
        }
        let bucket = self.buckets.entry(key).or_insert(Bucket { at: now, saved: ONE.full() });
        bucket.take(&ONE, now) && self.all.take(&ALL, now)
    }
}

impl Rate {
    const fn full(&self) -> Duration {
        Duration::from_nanos(1_000_000_000 / self.per_second as u64 * self.burst as u64)
    }
}

impl Bucket {
    fn take(&mut self, rate: &Rate, now: Instant) -> bool {
        let have = (self.saved + self.idle(now)).min(rate.full());
        // Threads look at the clock before they come here, and may come in another order.
        self.at = self.at.max(now);
        let left = have.checked_sub(Duration::from_secs(1) / rate.per_second);
        self.saved = left.unwrap_or(have);
        left.is_some()
    }

    /// Since it was last taken from.
    fn idle(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.at)
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
    fn many_addresses_have_a_rate_together() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        let address = |index: u32| std::net::Ipv4Addr::from(index).into();
        let admitted = (0..10_000).filter(|index| {
            let at = start + Duration::from_millis(u64::from(*index / 10));
            limiter.admit(address(*index % 1000), at)
        });
        assert_eq!(admitted.count(), 100 + 499, "a second of ten a millisecond");
    }

    #[test]
    fn addresses_are_forgotten_and_bounded() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        let admitted = (0..20_000u32)
            .filter(|index| limiter.admit(std::net::Ipv4Addr::from(*index).into(), start))
            .count();
        assert_eq!((admitted, limiter.buckets.len()), (100, ADDRESSES));
        assert!(limiter.admit("203.0.113.1".parse().unwrap(), start + Duration::from_secs(1)));
        assert_eq!(limiter.buckets.len(), 1);
    }
}
