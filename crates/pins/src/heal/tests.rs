use super::*;

/// A log of `pods` pods that came and went, and one that stays.
fn log(pods: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut push = |number, kind, value: &str, subject: &str| {
        frame::push(&mut out, &Line { number, kind, at: 1, value, subject }.text());
    };
    push(1, pin::LOG, "id", VERSION);
    push(2, pin::PIN, "fd00::2", "pods default stays eth0");
    for n in 0..pods {
        let key = format!("pods default job-{n} eth0");
        push(2 * n + 3, pin::PIN, &format!("fd00::1:{n:x}"), &key);
        push(2 * n + 4, pin::FREE, NONE, &key);
    }
    out
}

fn list(pods: &[&str]) -> PodList {
    PodList { log: "id".into(), highest: 2, pods: pods.iter().map(|p| p.parse().unwrap()).collect() }
}

#[test]
fn where_addresses_never_end_the_log_still_does() {
    let before = log(13_000);
    let book = Book::replay(&before);
    let (holds, list) = (Holds::default(), list(&["default/stays", "default/job-0"]));
    assert!(worth(&book, &holds, Some(&list)));
    let after = compacted(&book, &holds, Some(&list), 9);
    let book = Book::replay(&after);
    assert_eq!(book.pins.len(), REMEMBERED + 2);
    assert!(book.pins.contains_key("pods default job-0 eth0"), "listed, though released longest ago");
    assert!(book.pins.contains_key("pods default job-12999 eth0"));
    assert!(!book.pins.contains_key("pods default job-1 eth0"));
    assert!(!worth(&book, &holds, Some(&list)), "once is enough");
}

#[test]
fn a_log_written_anew_says_the_same() {
    let before = log(900);
    let book = Book::replay(&before);
    let after = compacted(&book, &Holds::default(), None, 9);
    let anew = Book::replay(&after);
    assert_eq!((anew.id, anew.highest, anew.damaged), (book.id, book.highest, 0));
    assert_eq!(anew.pins.len(), book.pins.len());
    for (key, entry) in &book.pins {
        let other = &anew.pins[key];
        assert_eq!(
            (entry.addresses, entry.made, entry.taken, entry.freed),
            (other.addresses, other.made, other.taken, other.freed)
        );
        assert_eq!(entry.released(book.began("boot")), other.released(anew.began("boot")));
    }
}

#[test]
fn records_of_a_later_version_are_kept() {
    let mut bytes = log(1);
    frame::push(&mut bytes, "77 lease 5 x pods default stays eth0");
    let book = Book::replay(&bytes);
    let after = compacted(&book, &Holds::default(), None, 9);
    assert!(String::from_utf8(after).unwrap().contains("77 lease 5 x pods default stays eth0"));
}

#[test]
fn of_two_pins_for_one_address_the_later_wins() {
    let mut bytes = log(0);
    frame::push(&mut bytes, "9 pin 5 fd00::2 pods default thief eth0");
    let book = Book::replay(&bytes);
    let index = book.index(&"pods".parse().unwrap());
    assert_eq!(index.void, ["pods default stays eth0"]);
    assert_eq!(index.by_address[&"fd00::2".parse().unwrap()].key, "pods default thief eth0");
    let ended = missing(&book, &Holds::default());
    assert_eq!(
        ended,
        [decide::Entry::End("pods default stays eth0".into())],
        "and the other is cleared away"
    );
}
