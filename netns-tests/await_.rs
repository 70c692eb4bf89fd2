//! Waiting for what must become true, without sleeping longer than it takes.

use std::fmt::Display;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Asks again until `check` is content; panics with its last answer after `limit`, or longer where a guest is slow by then.
#[track_caller]
pub fn eventually<T, E: Display>(what: &str, limit: Duration, check: impl FnMut() -> Result<T, E>) -> T {
    await_at(pace, what, limit, check)
}

#[track_caller]
fn await_at<T, E: Display>(
    pace: impl Fn() -> u32,
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> Result<T, E>,
) -> T {
    let begun = Instant::now();
    let mut patience = limit;
    loop {
        match check() {
            Ok(value) => return value,
            Err(why) if begun.elapsed() > patience => {
                let longer = limit * pace();
                assert!(longer > patience, "{what}: not within {patience:?}: {why}");
                patience = longer;
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A limit for what is tried once: longer where a guest is slow.
pub fn patience(limit: Duration) -> Duration {
    limit * slowness()
}

/// How many times slower than usual a guest was when this was first asked.
pub fn slowness() -> u32 {
    static AT_FIRST: OnceLock<u32> = OnceLock::new();
    *AT_FIRST.get_or_init(pace)
}

/// Whether this is a guest, whose processor is emulated.
pub fn emulated() -> bool {
    std::env::var_os("CORAX_PACE").is_some()
}

/// How many times slower a guest is than usual, by a control in which Corax has no part; 1 outside of guests.
fn pace() -> u32 {
    let Some(program) = std::env::var_os("CORAX_PACE") else { return 1 };
    let output = Command::new(program).output().expect("the guest has it");
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().unwrap_or_else(|_| panic!("the control failed: {output:?}"))
}

/// Content at the tenth time, each of which takes a while.
fn tenth() -> impl FnMut() -> Result<u32, u32> {
    let mut asked = 0;
    move || {
        std::thread::sleep(Duration::from_millis(2));
        asked += 1;
        if asked < 10 { Err(asked) } else { Ok(asked) }
    }
}

#[test]
fn a_slow_machine_has_longer() {
    assert_eq!(await_at(|| 10_000, "the tenth time", Duration::from_millis(1), tenth()), 10);
}

#[test]
#[should_panic(expected = "the tenth time: not within 1ms: 1")]
fn a_machine_that_is_no_slower_than_usual_has_not() {
    await_at(|| 1, "the tenth time", Duration::from_millis(1), tenth());
}
