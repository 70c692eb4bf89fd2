//! A node for tests of the store: two directories, network namespaces that are files, and a generator of chance.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use corax_pins::range::RangeSpec;
use corax_pins::store::identity;
use corax_pins::{
    Answer, Attachment, Error, Netns, Range, RangeSet, Ranges, Request, Store, Transaction, store::Part,
};

/// A generator that repeats: xorshift64*.
pub struct Chance(pub u64);

impl Chance {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }

    pub fn of<'t, T>(&mut self, all: &'t [T]) -> &'t T {
        &all[self.below(all.len() as u64) as usize]
    }
}

/// Memory-backed where there is such a place: tests that write ten thousand times should not wear a disk.
pub fn directory() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

pub struct Node {
    pub directory: tempfile::TempDir,
    pub boots: u32,
    pub clock: u64,
    /// A log over this length has a table of contents; nothing: over the usual one.
    pub contents_from: Option<u64>,
}

impl Node {
    pub fn new() -> Self {
        let directory = directory();
        std::fs::create_dir(directory.path().join("netns")).unwrap();
        Self { directory, boots: 1, clock: 1_000, contents_from: None }
    }

    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub fn run(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    pub fn log(&self) -> PathBuf {
        self.state().join("pins")
    }

    pub fn store(&self) -> Store {
        let boot = format!("boot-{}", self.boots);
        let store = Store::new(&self.state(), &self.run(), &boot, Duration::from_secs(20));
        match self.contents_from {
            Some(length) => store.with_contents_from(length),
            None => store,
        }
    }

    /// Power off, power on: what is in the run directory is gone, and with it every network namespace.
    pub fn reboot(&mut self) {
        self.boots += 1;
        let _ = std::fs::remove_dir_all(self.run());
        std::fs::remove_dir_all(self.directory.path().join("netns")).unwrap();
        std::fs::create_dir(self.directory.path().join("netns")).unwrap();
    }

    pub fn netns(&self, container: &str) -> String {
        let path = self.directory.path().join("netns").join(container);
        std::fs::write(&path, container).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Another namespace (inode) at the path.
    pub fn renew(&self, container: &str) {
        let path = self.directory.path().join("netns").join(container);
        std::fs::write(path.with_extension("other"), "another").unwrap();
        std::fs::rename(path.with_extension("other"), path).unwrap();
    }

    pub fn kill(&self, container: &str) {
        let _ = std::fs::remove_file(self.directory.path().join("netns").join(container));
    }

    pub fn with<T>(&mut self, verb: impl FnOnce(&mut Transaction<'_>) -> T) -> T {
        self.clock += 1;
        let store = self.store();
        let mut transaction = store.begin(self.clock).unwrap();
        verb(&mut transaction)
    }

    pub fn add(&mut self, ranges: &Ranges, pod: &str, container: &str) -> Result<Answer, Error> {
        let path = self.netns(container);
        let request = request(pod, container, &path);
        self.with(|t| t.add(ranges, &request, None))
    }

    pub fn address(&mut self, ranges: &Ranges, pod: &str, container: &str) -> String {
        let answer = self.add(ranges, pod, container).unwrap();
        answer.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
    }

    /// The sandbox goes as sandboxes do: DEL, then its namespace.
    pub fn del(&mut self, container: &str) {
        self.with(|t| t.del(&attachment(container), Part::Given, None)).unwrap();
        self.kill(container);
    }
}

pub fn attachment(container: &str) -> Attachment {
    Attachment {
        network: "pods".parse().unwrap(),
        container: container.parse().unwrap(),
        interface: "eth0".parse().unwrap(),
    }
}

/// A pod named `-` is none.
pub fn request(pod: &str, container: &str, netns: &str) -> Request {
    let pod = (pod != "-").then(|| format!("default/{pod}").parse().unwrap());
    let netns = Some(Netns { identity: identity(netns), path: netns.to_owned() });
    Request { attachment: attachment(container), pod, uid: None, netns, requested: Vec::new() }
}

pub fn ranges(subnets: &[&str]) -> Ranges {
    let set = |subnet: &&str| {
        let spec = RangeSpec {
            subnet: subnet.parse().unwrap(),
            start: None,
            end: None,
            gateway: None,
            exclude: Vec::new(),
        };
        RangeSet::new(vec![Range::new(spec).unwrap()]).unwrap()
    };
    Ranges::new(subnets.iter().map(set).collect()).unwrap()
}
