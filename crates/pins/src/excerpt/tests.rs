use std::fs;

use super::*;
use crate::contents::{Draft, Stamp};
use crate::record::NONE;

const EPOCH: &str = "boot";
const POD: &str = "pods default pod-7 eth0";

/// A log of pods that each have an address, some of them deleted and come back, and its table of contents.
struct Disk {
    directory: tempfile::TempDir,
    number: u64,
}

impl Disk {
    fn new(pods: u32) -> Self {
        let mut disk = Self { directory: tempfile::tempdir().unwrap(), number: 0 };
        disk.push(pin::LOG, "id", "corax-pins-1");
        disk.push(pin::EPOCH, EPOCH, NONE);
        for n in 0..pods {
            let address = std::net::Ipv4Addr::from_bits(0x0a01_0002 + n);
            disk.push(pin::PIN, &address.to_string(), &format!("pods default pod-{n} eth0"));
        }
        for pod in (0..pods).step_by(3) {
            disk.push(pin::FREE, NONE, &format!("pods default pod-{pod} eth0"));
        }
        for pod in (0..pods).step_by(6) {
            disk.push(pin::TAKE, NONE, &format!("pods default pod-{pod} eth0"));
        }
        disk.push(pin::SEEN, "fd00::7,10.1.0.1", "other default pod-7 eth0");
        disk
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn push(&mut self, kind: &str, value: &str, subject: &str) {
        self.number += 1;
        let mut log = self.bytes();
        frame::push(&mut log, &Line { number: self.number, kind, at: 1, value, subject }.text());
        fs::write(self.path("pins"), log).unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.path("pins")).unwrap_or_default()
    }

    fn stamp(&self) -> Stamp {
        Stamp::of(&fs::metadata(self.path("pins")).unwrap())
    }

    fn write_contents(&self) {
        let bytes = self.bytes();
        Draft::of(&Book::replay(&bytes), EPOCH).unwrap().write(&self.path("contents"), self.stamp()).unwrap();
    }

    fn contents(&self) -> Option<Contents> {
        Contents::open(&self.path("contents"), self.stamp())
    }

    fn excerpt(&self, contents: &Contents, keys: &[&str], oldest: usize) -> Option<Excerpt> {
        let log = File::open(self.path("pins")).unwrap();
        let keys = keys.iter().map(|&key| key.to_owned()).collect();
        let length = log.metadata().unwrap().len();
        Excerpt::read(&log, length, contents, &"pods".parse().unwrap(), keys, oldest)
    }
}

#[test]
fn an_excerpt_says_of_its_pods_what_the_whole_says() {
    let mut disk = Disk::new(300);
    disk.write_contents();
    let contents = disk.contents().unwrap();
    disk.push(pin::FREE, NONE, "pods default pod-8 eth0");
    disk.push(pin::PIN, "10.1.9.9", "pods default late eth0");
    disk.push(pin::END, NONE, "pods default pod-9 eth0");
    let bytes = disk.bytes();
    let whole = Book::replay(&bytes);
    for n in [0, 3, 6, 7, 8, 9, 299, 300] {
        let key = format!("pods default pod-{n} eth0");
        let excerpt = disk.excerpt(&contents, &[&key], 0).unwrap();
        let book = excerpt.book();
        assert_eq!(format!("{:?}", book.pins.get(&*key)), format!("{:?}", whole.pins.get(&*key)), "{key}");
        assert_eq!(
            (book.highest, book.id, book.epoch, book.length),
            (whole.highest, whole.id, whole.epoch, whole.length)
        );
    }
    let excerpt = disk.excerpt(&contents, &[], 0).unwrap();
    let takes = |address: &str| excerpt.rest.takes(address.parse().unwrap());
    assert!(takes("10.1.0.2") && takes("10.1.1.45"));
    assert!(
        !takes("10.1.0.1") && !takes("10.1.1.46") && !takes("fd00::7"),
        "of another network, or nobody's"
    );
    assert!(!takes("10.1.0.10") && !takes("10.1.0.11"), "8 and 9 are in the book, or ended");
    assert!(!takes("10.1.9.9") && excerpt.book().pins.contains_key("pods default late eth0"));
}

#[test]
fn the_oldest_are_those_released_first() {
    let disk = Disk::new(30);
    disk.write_contents();
    let bytes = disk.bytes();
    let whole = Book::replay(&bytes);
    let began = whole.began(EPOCH);
    let mut order: Vec<_> = whole.pins.iter().filter(|(key, _)| key.starts_with("pods ")).collect();
    order.sort_by_key(|(_, entry)| (entry.released(began), entry.made));
    let contents = disk.contents().unwrap();
    for n in [1, 10, 29, 30, 31] {
        let excerpt = disk.excerpt(&contents, &[], n).unwrap();
        let book = excerpt.book();
        assert_eq!(book.pins.len(), n.min(30));
        assert!(order.iter().take(n).all(|(key, _)| book.pins.contains_key(*key)), "{n} oldest");
        let next = order.get(n).map_or(u64::MAX, |(_, entry)| entry.released(began));
        assert_eq!(excerpt.rest.released_from, next);
    }
}

#[test]
fn a_table_is_true_of_the_log_as_it_was_stamped() {
    let mut disk = Disk::new(20);
    disk.write_contents();
    let contents = disk.contents().unwrap();
    disk.push(pin::FREE, NONE, POD);
    assert!(disk.contents().is_none(), "somebody else wrote");
    contents.stamp(disk.stamp()).unwrap();
    assert!(disk.contents().is_some());
    let log = disk.bytes();
    fs::write(disk.path("pins"), &log).unwrap();
    assert!(disk.contents().is_none(), "written again, be it the same");
}

#[test]
fn a_table_flipped_or_torn_anywhere_is_none() {
    let disk = Disk::new(20);
    disk.write_contents();
    let good = fs::read(disk.path("contents")).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(disk.path("contents"), &bad).unwrap();
        assert!(disk.contents().is_none(), "flip at {at}");
        fs::write(disk.path("contents"), &good[..at]).unwrap();
        assert!(disk.contents().is_none(), "cut at {at}");
    }
}

#[test]
fn what_an_excerpt_cannot_tell_is_for_the_whole() {
    let mut disk = Disk::new(20);
    disk.write_contents();
    let contents = disk.contents().unwrap();
    assert!(disk.excerpt(&contents, &[POD], 0).is_some());
    // The record it would read is damaged.
    let good = disk.bytes();
    let mut bad = good.clone();
    let at = Book::replay(&good).pins[POD].end - 5;
    bad[at] ^= 1;
    fs::write(disk.path("pins"), bad).unwrap();
    assert!(disk.excerpt(&contents, &[POD], 0).is_none());
    assert!(disk.excerpt(&contents, &["pods default pod-8 eth0"], 0).is_some());
    // The tail is torn, or tells of another epoch.
    fs::write(disk.path("pins"), [&good[..], b"\n0123"].concat()).unwrap();
    assert!(disk.excerpt(&contents, &[POD], 0).is_none());
    fs::write(disk.path("pins"), &good).unwrap();
    disk.push(pin::EPOCH, "next", NONE);
    assert!(disk.excerpt(&contents, &[POD], 0).is_none());
}

#[test]
fn a_log_with_one_address_twice_has_no_table() {
    let mut disk = Disk::new(20);
    disk.push(pin::PIN, "10.1.0.4", "pods default thief eth0");
    assert!(Draft::of(&Book::replay(&disk.bytes()), EPOCH).is_none());
}
