use std::fs;

use corax_core::sample::demo;

use super::*;

fn lab() -> (tempfile::TempDir, Manifests) {
    let directory = tempfile::tempdir().unwrap();
    let manifests = Manifests::new(directory.path().to_owned(), Files::new());
    (directory, manifests)
}

/// Writes a file, and scans as if told that it is whole.
fn put(directory: &tempfile::TempDir, manifests: &mut Manifests, name: &str, text: &str) -> Scan {
    fs::write(directory.path().join(name), text).unwrap();
    manifests.scan(&BTreeSet::from([name.to_owned()]))
}

fn gateway(name: &str) -> String {
    format!("apiVersion: {API_VERSION}\nkind: Gateway\nmetadata:\n  name: {name}\n")
}

fn names(manifests: &Manifests) -> Vec<&str> {
    manifests.files().values().flatten().map(|gateway| gateway.metadata.name.as_str()).collect()
}

#[test]
fn yaml_json_lists_and_several_in_a_file_are_read() {
    let (directory, mut manifests) = lab();
    put(&directory, &mut manifests, "a.yaml", &format!("{}---\n{}", gateway("one"), gateway("two")));
    let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": demo() });
    let scan = put(&directory, &mut manifests, "b.json", &list.to_string());
    assert_eq!(scan.problems, []);
    assert_eq!(names(&manifests), ["one", "two", "cloud", "site", "box"]);
}

#[test]
fn a_bad_file_keeps_its_own_last_gateways_and_says_why() {
    let (directory, mut manifests) = lab();
    put(&directory, &mut manifests, "a.yaml", &gateway("one"));
    put(&directory, &mut manifests, "b.yaml", &gateway("two"));
    for bad in ["", "kind: [", "- 1\n- 2\n", "kind: Service\napiVersion: v1\nmetadata: {name: x}\n"] {
        let scan = put(&directory, &mut manifests, "a.yaml", bad);
        assert!(!scan.changed, "{bad:?}");
        assert!(scan.problems[0].to_string().contains("a.yaml"), "{:?}", scan.problems);
        assert_eq!(names(&manifests), ["one", "two"]);
    }
    assert!(put(&directory, &mut manifests, "a.yaml", &gateway("three")).changed);
    assert_eq!(names(&manifests), ["three", "two"]);
}

#[test]
fn a_gateway_or_file_that_is_gone_is_gone_but_an_empty_directory_deletes_nothing() {
    let (directory, mut manifests) = lab();
    put(&directory, &mut manifests, "a.yaml", &format!("{}---\n{}", gateway("one"), gateway("two")));
    put(&directory, &mut manifests, "b.yaml", &gateway("three"));
    put(&directory, &mut manifests, "a.yaml", &gateway("one"));
    assert_eq!(names(&manifests), ["one", "three"]);
    fs::remove_file(directory.path().join("b.yaml")).unwrap();
    assert!(manifests.scan(&BTreeSet::new()).changed);
    assert_eq!(names(&manifests), ["one"]);
    fs::remove_file(directory.path().join("a.yaml")).unwrap();
    let scan = manifests.scan(&BTreeSet::new());
    assert!(!scan.changed && scan.problems[0].what.contains("stays"), "{scan:?}");
    fs::remove_dir(directory.path()).unwrap();
    let scan = manifests.scan(&BTreeSet::new());
    assert!(!scan.changed && scan.problems[0].what.contains("cannot be read"), "{scan:?}");
    assert_eq!(names(&manifests), ["one"]);
}

#[test]
fn a_file_that_may_be_half_written_is_not_trusted() {
    let (directory, mut manifests) = lab();
    put(&directory, &mut manifests, "a.yaml", &format!("{}---\n{}", gateway("one"), gateway("two")));
    // Half of it parses, and would delete a Gateway.
    fs::write(directory.path().join("a.yaml"), gateway("one")).unwrap();
    assert!(!manifests.scan(&BTreeSet::new()).changed);
    assert!(manifests.unsettled());
    assert_eq!(names(&manifests), ["one", "two"]);
    assert!(manifests.scan(&BTreeSet::from(["a.yaml".to_owned()])).changed);
    assert!(!manifests.unsettled());
}
