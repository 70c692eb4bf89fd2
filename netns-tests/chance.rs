//! Random numbers that can be had again.

use std::time::{SystemTime, UNIX_EPOCH};

/// A generator (xorshift64), made from `CORAX_SEED` or the time; says which, so that a failure can be repeated.
pub struct Chance {
    /// What it was made from.
    pub seed: u64,
    state: u64,
}

impl Chance {
    /// One with a seed of its own.
    pub fn new() -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64);
        let seed = match std::env::var("CORAX_SEED") {
            Ok(text) => text.parse().expect("CORAX_SEED is a number"),
            Err(_) => now(),
        };
        eprintln!("CORAX_SEED={seed}");
        // Zero would give nothing but zeros; the first numbers of small seeds are small.
        let mut chance = Self { seed, state: seed | 1 << 63 };
        for _ in 0..16 {
            chance.next();
        }
        chance
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// One of some.
    pub fn of<'a, T>(&mut self, some: &'a [T]) -> &'a T {
        &some[self.below(some.len())]
    }
}
