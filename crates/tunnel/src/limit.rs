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
