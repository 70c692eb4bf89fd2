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

/// Asks for `time` long; panics as soon as `check` is not content.
#[track_caller]
pub fn always<E: Display>(what: &str, time: Duration, mut check: impl FnMut() -> Result<(), E>) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if let Err(why) = check() {
            panic!("{what}: {why}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
