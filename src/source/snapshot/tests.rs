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
    snapshot.save(&files("a.yaml"), true, None, None).unwrap();
    let loaded = snapshot.load().unwrap();
    assert_eq!((loaded.files, loaded.complete, loaded.problem), (files("a.yaml"), true, None));
}

#[test]
fn one_of_a_build_that_did_not_say_whether_all_was_known_is_read_and_not_complete() {
    let directory = tempfile::tempdir().unwrap();
    let json = serde_json::to_vec(&serde_json::json!({ "files": files("a.yaml") })).unwrap();
    let header = format!("{FORM} {} {}\n", json.len(), hex(&json));
    fs::write(directory.path().join(NEWEST), [header.as_bytes(), &json].concat()).unwrap();
    let loaded = Snapshot::new(directory.path()).load().unwrap();
    assert_eq!((loaded.files, loaded.complete, loaded.problem), (files("a.yaml"), false, None));
}

#[test]
fn who_held_what_comes_back_where_it_matters() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = Snapshot::new(directory.path());
    let late = corax_core::sample::domain("a").node("a1", "10.0.0.1", &["10.10.1.0/24"]);
    let build =
        |gateways: &[_], before| View::build(gateways, &corax_core::view::Settings::default(), before);
    let before = build(&demo(), None);
    let files = Files::from([("a".to_owned(), vec![late.into()]), ("b".to_owned(), demo())]);
    let gateways: Vec<_> = files.values().flatten().cloned().collect();
    let view = build(&gateways, Some(&before));
    snapshot.save(&files, true, None, Some(&view)).unwrap();
    let loaded = snapshot.load().unwrap();
    assert_eq!(build(&gateways, loaded.view.as_ref()).domains, view.domains);
    assert_ne!(build(&gateways, None).domains, view.domains, "the name alone gives it to the other");
}

#[test]
fn the_first_generation_stands_twice() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = Snapshot::new(directory.path());
    snapshot.save(&files("only.yaml"), true, None, None).unwrap();
    fs::write(directory.path().join("snapshot"), "").unwrap();
    let loaded = snapshot.load().unwrap();
    assert_eq!(loaded.files, files("only.yaml"));
    assert!(loaded.problem.is_some() && !loaded.complete, "{loaded:?}");
}

#[test]
fn a_directory_that_is_not_there_is_an_error_that_names_the_file() {
    let error = Snapshot::new("/nonexistent").save(&files("a.yaml"), true, None, None).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/snapshot.new"), "{error}");
}

proptest! {
    #[test]
    fn a_torn_snapshot_gives_the_generation_before_and_is_told(cut in 0usize..2000, flip in any::<bool>()) {
        let directory = tempfile::tempdir().unwrap();
        let snapshot = Snapshot::new(directory.path());
        snapshot.save(&files("old.yaml"), true, None, None).unwrap();
        snapshot.save(&files("new.yaml"), true, None, None).unwrap();
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
        snapshot.save(&files("newer.yaml"), true, None, None).unwrap();
        prop_assert_eq!(snapshot.load().unwrap().files, files("newer.yaml"));
    }
}
