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
