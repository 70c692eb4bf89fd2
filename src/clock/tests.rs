use std::cell::Cell;

use super::*;

/// 2026-01-01.
const THEN: u64 = 1_767_225_600;

fn never(_: u64) -> io::Result<()> {
    panic!("the clock is left alone")
}

/// A node that lived at some time and was cut off.
fn lived(directory: &Path, at: u64) {
    let (mut clock, problem) = Clock::step_up(directory, at, never);
    assert_eq!(problem, None);
    clock.keep(at);
}

fn kept(directory: &Path) -> Option<u64> {
    read(&directory.join(FILE)).unwrap()
}

#[test]
fn a_clock_that_lost_its_time_is_stepped_past_all_that_was_seen() {
    let directory = tempfile::tempdir().unwrap();
    lived(directory.path(), THEN);
    for now in [0, THEN - 3600] {
        let to = Cell::new(0);
        let (_, problem) = Clock::step_up(directory.path(), now, |time| {
            to.set(time);
            Ok(())
        });
        assert_eq!(problem, None);
        assert_eq!(to.get(), THEN + PACE);
    }
}

#[test]
fn a_clock_that_is_right_or_was_corrected_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    lived(directory.path(), THEN);
    for now in [THEN - CORRECTION, THEN, THEN + 1_000_000_000] {
        assert_eq!(Clock::step_up(directory.path(), now, never).1, None);
    }
}

#[test]
fn it_is_written_at_most_every_few_minutes_and_follows_who_sets_the_clock() {
    let directory = tempfile::tempdir().unwrap();
    let (mut clock, _) = Clock::step_up(directory.path(), THEN, never);
    for (now, floor) in [
        (THEN, THEN),
        (THEN + PACE - 1, THEN),
        (THEN + PACE, THEN + PACE),
        // A wrong time of the far future, and its correction.
        (THEN + 9_000_000, THEN + 9_000_000),
        (THEN + 2 * PACE, THEN + 2 * PACE),
    ] {
        clock.keep(now);
        assert_eq!(kept(directory.path()), Some(floor), "at {now}");
    }
}

#[test]
fn without_the_capability_it_is_told_and_the_floor_stays() {
    let directory = tempfile::tempdir().unwrap();
    lived(directory.path(), THEN);
    let refuse = |_| Err(io::Error::from_raw_os_error(1));
    let (mut clock, problem) = Clock::step_up(directory.path(), 5, refuse);
    let problem = problem.unwrap();
    assert!(problem.what.contains("Operation not permitted"), "{problem}");
    assert!(problem.remedy.contains("SYS_TIME"), "{problem}");
    clock.keep(5 + PACE);
    assert_eq!(kept(directory.path()), Some(THEN), "the wrong time is not kept");
    clock.keep(THEN + 1_000);
    assert_eq!(kept(directory.path()), Some(THEN + 1_000), "once it is right, it is");
}

#[test]
fn a_torn_or_altered_file_costs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    lived(directory.path(), THEN);
    let file = directory.path().join(FILE);
    let whole = fs::read(&file).unwrap();
    let mut damaged: Vec<Vec<u8>> = (0..whole.len()).map(|end| whole[..end].to_vec()).collect();
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        damaged.push(flipped);
    }
    for bytes in damaged {
        fs::write(&file, &bytes).unwrap();
        let (mut clock, problem) = Clock::step_up(directory.path(), 5, never);
        assert!(problem.is_some(), "{bytes:?}");
        clock.keep(THEN);
        assert_eq!(kept(directory.path()), Some(THEN));
    }
}

#[test]
fn a_directory_that_cannot_be_written_costs_nothing() {
    let (mut clock, problem) = Clock::step_up(Path::new("/proc/nowhere"), THEN, never);
    assert_eq!(problem, None);
    let failure = clock.keep(THEN).expect("there is no such directory").clone();
    assert!(failure.object.contains("/proc/nowhere/clock"), "{failure}");
    assert_eq!(clock.keep(THEN + 1), Some(&failure), "until it can be");
}

#[test]
fn it_is_written_at_each_start_so_that_a_disk_that_fails_is_told_of_then() {
    let directory = tempfile::tempdir().unwrap();
    lived(directory.path(), THEN);
    let (mut clock, _) = Clock::step_up(directory.path(), THEN + 1, never);
    assert_eq!(clock.keep(THEN + 1), None);
    assert_eq!(kept(directory.path()), Some(THEN + 1));
}
