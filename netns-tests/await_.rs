//! Waiting for what must become true, without sleeping longer than it takes.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Asks again until `check` is content; panics with its last answer after `limit`.
#[track_caller]
pub fn eventually<T, E: Display>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return value,
            Err(why) if Instant::now() > end => panic!("{what}: not within {limit:?}: {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
