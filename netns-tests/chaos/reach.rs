//! Who reaches whom: a packet of UDP from everyone to every pod, and who was answered.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::await_::emulated;
use crate::lab::{Lab, Node};

const PORT: u16 = 9099;

/// How long an answer that is awaited may take, and how long one that must not come is listened for after that.
const PATIENCE: Duration = Duration::from_millis(400);
const AFTER: Duration = Duration::from_millis(30);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum From {
    /// The node's pod.
    Pod,
    /// A process of the node itself.
    Node,
}

/// One packet's way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// The node that it comes from.
    pub from: String,
    /// Who there.
    pub who: From,
    /// The node whose pod it goes to.
    pub to: String,
    /// By which family.
    pub six: bool,
}

/// Answers every packet with the source that it had, until it falls.
pub struct Answerers {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Answerers {
    /// One in every pod.
    pub fn start(lab: &Lab) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for node in lab.nodes() {
            for six in [false, true] {
                let socket = node.pod.enter(|| bind(pod(node, six), PORT));
                socket.set_read_timeout(Some(Duration::from_millis(200))).expect("not zero");
                let ended = ended.clone();
                threads.push(std::thread::spawn(move || answer(&socket, &ended)));
            }
        }
        Self { ended, threads }
    }
}

impl Drop for Answerers {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn pod(node: &Node, six: bool) -> IpAddr {
    if six { node.pod6() } else { node.pod4() }
}

fn bind(address: IpAddr, port: u16) -> UdpSocket {
    UdpSocket::bind((address, port)).unwrap_or_else(|error| panic!("{address}: {error}"))
}

fn answer(socket: &UdpSocket, ended: &AtomicBool) {
    let mut asked = [0; 64];
    while !ended.load(Ordering::Relaxed) {
        if let Ok((length, peer)) = socket.recv_from(&mut asked) {
            let mut said = asked.get(..length).unwrap_or_default().to_vec();
            said.extend(peer.ip().to_string().bytes());
            let _ = socket.send_to(&said, peer);
        }
    }
}

/// Sockets that ask, each from the same port for ever: what a connection of before was made into must not stay in the way.
pub struct Askers {
    sockets: Vec<(String, From, bool, UdpSocket)>,
    /// Packets that were sent until now.
    sent: AtomicU32,
}

impl Askers {
    /// One for each family in every pod and on every node.
    pub fn new(lab: &Lab) -> Self {
        let mut sockets = Vec::new();
        for node in lab.nodes() {
            for (who, space) in [(From::Pod, &node.pod), (From::Node, &node.space)] {
                for six in [false, true] {
                    let socket = space.enter(|| bind(any(six), 0));
                    socket.set_nonblocking(true).expect("a socket may be so");
                    sockets.push((node.name.clone(), who, six, socket));
                }
            }
        }
        Self { sockets, sent: AtomicU32::new(0) }
    }

    /// Everyone asks every other node's pod at once: who was answered, and the source that was seen there. Waits until all
    /// of `awaited` are, or it is too late.
    pub fn ask_all(&self, lab: &Lab, awaited: impl Fn(&Way) -> bool) -> BTreeMap<Way, IpAddr> {
        let mut ways = BTreeMap::new();
        for (from, who, six, socket) in &self.sockets {
            for to in lab.nodes().iter().filter(|to| to.name != *from) {
                let number = self.sent.fetch_add(1, Ordering::Relaxed);
                let way = Way { from: from.clone(), who: *who, to: to.name.clone(), six: *six };
                // Where there is no way, the kernel may say so at once.
                let _ = socket.send_to(&number.to_be_bytes(), SocketAddr::new(pod(to, *six), PORT));
                ways.insert(number, way);
            }
        }
        let mut missing = ways.values().filter(|way| awaited(way)).count();
        let mut answered = BTreeMap::new();
        let mut end = Instant::now() + PATIENCE * if emulated() { 10 } else { 1 };
        let mut last_call = false;
        while Instant::now() < end {
            for (.., socket) in &self.sockets {
                while let Some((number, source)) = hear(socket) {
                    // Who was asked before answers late.
                    let Some(way) = ways.get(&number) else { continue };
                    if answered.insert(way.clone(), source).is_none() && awaited(way) {
                        missing -= 1;
                    }
                }
            }
            if missing == 0 && !last_call {
                (last_call, end) = (true, Instant::now() + AFTER);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        answered
    }
}

fn any(six: bool) -> IpAddr {
    if six { IpAddr::from([0_u16; 8]) } else { IpAddr::from([0_u8; 4]) }
}

/// An answer: the number that was asked with, and the source that was seen.
fn hear(socket: &UdpSocket) -> Option<(u32, IpAddr)> {
    let mut said = [0; 128];
    // An error is what an earlier packet met.
    let length = (0..8).find_map(|_| match socket.recv(&mut said) {
        Ok(length) => Some(Some(length)),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Some(None),
        Err(_) => None,
    })??;
    let (number, source) = said.get(..length)?.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*number), std::str::from_utf8(source).ok()?.parse().ok()?))
}
