use corax_core::sample::domain;

use super::*;

#[test]
fn what_is_given_twice_is_told_with_both_files() {
    let site = || domain("site").node("s1", "192.168.1.1", &["10.20.1.0/24"]);
    let other = domain("other").node("s1", "192.168.1.1", &["10.21.1.0/24"]);
    let files = Files::from([
        ("a.yaml".to_owned(), vec![site().into()]),
        ("b.yaml".to_owned(), vec![other.into(), site().into()]),
        ("c.yaml".to_owned(), vec![domain("c").into(), domain("c").into()]),
    ]);
    let view = build(&files, &Settings::default(), None).unwrap();
    let told: Vec<String> = view.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "Gateway c: given twice in c.yaml: the first is used (remove one)",
            "Gateway site: given twice, in a.yaml and in b.yaml: the first is used (remove one)",
            "Gateway site, node s1: is a member of Gateway other (b.yaml) too, and left out here (a.yaml) (let one Gateway \
             have it)",
        ]
    );
}

#[test]
fn a_name_that_another_file_takes_stays_with_the_file_that_had_it() {
    let site = |address: &str| Gateway::from(domain("site").node("s1", address, &["10.20.1.0/24"]));
    let mut files = Files::from([("site.yaml".to_owned(), vec![site("192.168.1.1")])]);
    let before = build(&files, &Settings::default(), None).unwrap();
    files.insert("a.yaml".to_owned(), vec![site("192.168.66.6")]);
    let after = build(&files, &Settings::default(), Some(&before)).unwrap();
    assert_eq!(after.domains, before.domains);
    let told: Vec<String> = after.problems.iter().map(ToString::to_string).collect();
    let what = "given twice, in a.yaml and in site.yaml: that of site.yaml is used, as it was before";
    assert_eq!(told, [format!("Gateway site: {what} (remove one)")]);
    // As the snapshot keeps it; and once it is gone from its file, the other is it.
    let kept: View = serde_json::from_str(&serde_json::to_string(&*after).unwrap()).unwrap();
    assert_eq!(build(&files, &Settings::default(), Some(&kept)).unwrap().domains, before.domains);
    files.remove("site.yaml");
    let moved = build(&files, &Settings::default(), Some(&after)).unwrap();
    assert_ne!(moved.domains, before.domains);
    assert_eq!(moved.problems, []);
}

/// What a source on a directory and a state directory reads.
fn read(directory: &std::path::Path, state: &std::path::Path) -> Sourced {
    let mut source =
        Source::open(directory.to_owned(), Snapshot::new(state), Settings::default(), "c1".parse().unwrap());
    source.read();
    source.current().clone()
}

#[test]
fn that_all_was_known_outlives_the_agent_and_its_directory_but_does_not_tell_what_came_since() {
    let (directory, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let nowhere = state.path().join("nowhere");
    assert_eq!(read(&nowhere, state.path()).known, Known::Part);
    let site: Gateway = domain("site").node("s1", "192.168.1.1", &["10.20.1.0/24"]).into();
    let text = serde_json::to_string(&site).unwrap();
    let (good, torn) = (directory.path().join("site.json"), directory.path().join("torn.json"));
    std::fs::write(good, &text).unwrap();
    std::fs::write(&torn, "{").unwrap();
    assert_eq!(read(directory.path(), state.path()).known, Known::Part);
    assert_eq!(read(&nowhere, state.path()).known, Known::Part);
    // No Gateway changes with it.
    std::fs::remove_file(torn).unwrap();
    assert_eq!(read(directory.path(), state.path()).known, Known::All);
    let offline = read(&nowhere, state.path());
    assert!(offline.known == Known::Once && offline.view.is_some(), "{offline:?}");
}

#[test]
fn a_node_that_is_given_another_name_is_known_by_the_one_that_its_gateway_has() {
    let (directory, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = directory.path().join("site.json");
    let write = |nodes: &[&str]| {
        let site = nodes.iter().zip(1..).fold(domain("site"), |site, (node, number)| {
            site.node(node, &format!("192.168.1.{number}"), &[&*format!("10.20.{number}.0/24")])
        });
        std::fs::write(&file, serde_json::to_string(&Gateway::from(site)).unwrap()).unwrap();
    };
    let once = |name: &str| {
        let snapshot = Snapshot::new(state.path());
        let settings = Settings::default();
        let mut source = Source::open(directory.path().to_owned(), snapshot, settings, name.parse().unwrap());
        source.read();
        source.current().once.as_ref().map(ToString::to_string)
    };
    write(&["s1"]);
    assert_eq!(once("other"), None, "it never was one");
    assert_eq!(once("s1"), None);
    assert_eq!(once("s1.example.com").as_deref(), Some("s1"));
    assert_eq!(once("s1.example.com").as_deref(), Some("s1"), "as long as it stands there");
    write(&["s2"]);
    assert_eq!(once("s1.example.com"), None, "it is gone from there");
    write(&["s1", "s1.example.com"]);
    assert_eq!(once("s1.example.com"), None, "it has it now");
    assert_eq!(once("s1"), None);
}
