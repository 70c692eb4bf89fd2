use corax_core::sample::demo;
use proptest::prelude::*;

use super::*;

fn files(name: &str) -> Files {
    Files::from([(name.to_owned(), demo())])
}

#[test]
fn what_was_saved_is_read_and_none_is_empty() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = Snapshot::new(directory.path());
    assert_eq!(snapshot.load().unwrap().files, Files::new());
    snapshot.save(&files("a.yaml")).unwrap();
    let loaded = snapshot.load().unwrap();
    assert_eq!((loaded.files, loaded.problem), (files("a.yaml"), None));
}

#[test]
fn a_directory_that_is_not_there_is_an_error_that_names_the_file() {
    let error = Snapshot::new("/nonexistent").save(&files("a.yaml")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/snapshot.new"), "{error}");
}

proptest! {
    #[test]
    fn a_torn_snapshot_gives_the_generation_before_and_is_told(cut in 0usize..2000, flip in any::<bool>()) {
        let directory = tempfile::tempdir().unwrap();
        let snapshot = Snapshot::new(directory.path());
        snapshot.save(&files("old.yaml")).unwrap();
        snapshot.save(&files("new.yaml")).unwrap();
        let path = directory.path().join("snapshot");
        let mut bytes = fs::read(&path).unwrap();
        let at = cut % bytes.len();
        if flip {
            bytes[at] ^= 0x20;
        } else {
            bytes.truncate(at);
        }
        fs::write(&path, bytes).unwrap();
        let loaded = snapshot.load().unwrap();
        prop_assert_eq!(loaded.files, files("old.yaml"));
        prop_assert!(loaded.problem.is_some());
        // The torn one does not push out the good one.
        snapshot.save(&files("newer.yaml")).unwrap();
        prop_assert_eq!(snapshot.load().unwrap().files, files("newer.yaml"));
    }
}
