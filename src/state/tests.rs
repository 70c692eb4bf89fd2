use std::collections::BTreeSet;
use std::os::unix::fs::symlink;

use super::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names(paths: &[PathBuf]) -> BTreeSet<&str> {
    paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect()
}

#[test]
fn what_corax_makes_is_its_own_by_the_exact_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let own = [
        "wireguard.key",
        "wireguard.key.damaged-1",
        "wireguard.key.new-4711",
        "snapshot",
        "snapshot.previous",
        "snapshot.new",
        "clock",
        "clock.new",
        "raven-wg0.log",
        "raven-wg1.log",
        "raven-wg1.log.previous",
        "pins",
        "pods",
        "pins.damaged",
    ];
    let others = [
        "wireguard.key.pub",
        "wireguard.key.damaged-",
        "wireguard.key.damaged-01",
        "wireguard.key.damaged-1.bak",
        "wireguard.keys",
        "snapshot.db",
        "snapshots",
        "clockwork",
        "clock.previous",
        "raven-wg0.conf",
        "raven-wg.log",
        "raven-wg0.log.previous.1",
        "raven0.log",
        "pins.pub",
        "Snapshot",
    ];
    for name in own.iter().chain(&others) {
        fs::write(path.join(name), "precious").unwrap();
    }
    assert_eq!(names(&files(path).unwrap()), BTreeSet::from(own));
}

#[test]
fn what_is_no_plain_file_is_somebody_elses() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::create_dir(path.join("snapshot")).unwrap();
    fs::write(path.join("snapshot/db"), "precious").unwrap();
    symlink("/etc/passwd", path.join("clock")).unwrap();
    assert_eq!(names(&files(path).unwrap()), BTreeSet::new());
    assert_eq!(names(&files(&path.join("nowhere")).unwrap()), BTreeSet::new());
}

#[test]
fn only_a_directory_that_is_made_is_closed() {
    let above = tempfile::tempdir().unwrap();
    let made = above.path().join("edge/corax");
    assert_eq!(prepare(&made).unwrap(), []);
    assert_eq!(mode(&made), 0o700);
    for (open, can) in [(0o755, "look into it"), (0o777, "put another key"), (0o1777, "look into it")] {
        fs::set_permissions(&made, fs::Permissions::from_mode(open)).unwrap();
        let problems = prepare(&made).unwrap();
        let [problem] = problems.as_slice() else { panic!("{problems:?}") };
        assert!(problem.what.contains(can) && problem.remedy.starts_with("chmod 0700 /"), "{problem}");
        assert_eq!(mode(&made), open, "it is left as it is");
    }
}
