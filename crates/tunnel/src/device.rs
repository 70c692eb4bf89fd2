//! What the threads of a tunnel share: the peers, our identity, the sockets, the counters.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};
use std::{io, iter, thread};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::key::PublicKey;
use crate::limit::Limiter;
use crate::metrics::{Metrics, Reason};
use crate::net::outbox::Outbox;
use crate::net::{Socket, Wanted};
use crate::noise::Identity;
use crate::peer::Peer;
use crate::prefix::{Prefix, PrefixMap};
use crate::steering::{self, Steering};

/// Handshake messages a second above which their senders must show with a cookie that their address is theirs.
const HANDSHAKE_LIMIT: u64 = 100;
/// How often a closing socket is looked at.
const RELEASE: Duration = Duration::from_millis(1);
const POISON: &str = "a panic ends the process, so no lock is poisoned";

/// Everything the threads share.
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) metrics: Metrics,
    /// MTU of the TUN device, bytes.
    pub(crate) mtu: AtomicUsize,
    /// What the sockets may use.
    wanted: Wanted,
    /// One for each worker, which has a socket of its own on the one port: told when sockets come and go.
    changes: Box<[EventFd]>,
    table: RwLock<Table>,
    link: Mutex<Link>,
    sockets: RwLock<Arc<[Arc<Socket>]>>,
    /// What the TUN device takes joined.
    pub(crate) joins: Joins,
    /// Bytes that wait for sessions.
    waiting: Arc<AtomicUsize>,
    /// Asked under load only.
    limiter: Mutex<Limiter>,
    random: RandomState,
    next: AtomicU32,
}

/// Kinds of packets that the TUN device takes joined, as far as is known.
pub(crate) struct Joins {
    pub(crate) tcp: AtomicBool,
    pub(crate) udp: AtomicBool,
}

/// Who the peers are and what is theirs.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) identity: Option<Arc<Identity>>,
    peers: BTreeMap<PublicKey, Entry>,
    by_index: HashMap<u32, Arc<Peer>>,
    allowed: PrefixMap<Arc<Peer>>,
    /// Peers of each worker.
    loads: Vec<usize>,
    /// Where there are several workers.
    steering: Option<Steering>,
}

/// A peer and the prefixes that are its own.
pub(crate) struct Entry {
    pub(crate) peer: Arc<Peer>,
    pub(crate) allowed: BTreeSet<Prefix>,
}

/// The network side as configured.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Link {
    /// The device is up.
    pub(crate) up: bool,
    /// Zero: any free port.
    pub(crate) port: u16,
    pub(crate) fwmark: u32,
}

impl Device {
    /// `threads`: workers that share it.
    pub(crate) fn new(name: String, wanted: Wanted, threads: usize, mtu: usize) -> io::Result<Self> {
        let change = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let changes = iter::repeat_with(change).take(threads).collect::<Result<_, _>>()?;
        Ok(Self {
            name,
            metrics: Metrics::default(),
            mtu: AtomicUsize::new(mtu),
            wanted,
            changes,
            table: RwLock::new(Table { loads: vec![0; threads], ..Table::default() }),
            link: Mutex::default(),
            sockets: RwLock::new(Arc::new([])),
            joins: Joins { tcp: true.into(), udp: true.into() },
            waiting: Arc::default(),
            limiter: Mutex::new(Limiter::new(Instant::now())),
            random: RandomState::new(),
            next: AtomicU32::new(0),
        })
    }

    pub(crate) fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().expect(POISON)
    }

    pub(crate) fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().expect(POISON)
    }

    pub(crate) fn link(&self) -> Link {
        *self.lock_link()
    }

    /// The sockets of the device while it is up.
    pub(crate) fn sockets(&self) -> Arc<[Arc<Socket>]> {
        Arc::clone(&self.sockets.read().expect(POISON))
    }

    /// The socket of worker `index` while the device is up.
    pub(crate) fn socket(&self, index: usize) -> Option<Arc<Socket>> {
        self.sockets().get(index).cloned()
    }

    /// Readable when worker `index` is to use another socket, which [`changed_socket`](Self::changed_socket) gives.
    pub(crate) fn changes(&self, index: usize) -> BorrowedFd<'_> {
        self.changes[index].as_fd()
    }

    /// The socket of worker `index` as of now.
    pub(crate) fn changed_socket(&self, index: usize) -> Option<Arc<Socket>> {
        // Forgotten first: what changes from here on is told again.
        let _ = self.changes[index].read();
        self.socket(index)
    }

    /// The port that is bound, or the one that will be.
    pub(crate) fn port(&self) -> u16 {
        self.sockets().first().map_or_else(|| self.link().port, |socket| socket.port)
    }

    /// Opens, closes, moves or marks the sockets as `change` says. Where that fails all stays as it was, except that a
    /// device that comes up is up without a socket, which [`tick`](Self::tick) tries again.
    ///
    /// Waits for threads that use the sockets, and so must not be called with a peer or the table locked.
    pub(crate) fn set_link(&self, change: impl FnOnce(&mut Link)) -> io::Result<()> {
        let mut link = self.lock_link();
        let mut wanted = *link;
        change(&mut wanted);
        let open = self.sockets();
        if !wanted.up {
            self.replace_sockets(open, Vec::new());
        } else if open.is_empty() || wanted.port != link.port {
            // A port already bound (given out for 0, and now asked for by number) is no change.
            if open.first().is_some_and(|socket| socket.port == wanted.port) {
                self.mark(&open, wanted.fwmark)?;
            } else {
                let sockets = self.bind(wanted.port, wanted.fwmark).inspect_err(|_| link.up = true)?;
                self.replace_sockets(open, sockets);
            }
        } else if wanted.fwmark != link.fwmark {
            self.mark(&open, wanted.fwmark)?;
        }
        let moved = (wanted.port, wanted.fwmark) != (link.port, link.fwmark);
        *link = wanted;
        drop(link);
        if moved {
            self.table().entries().for_each(|entry| entry.peer.lock().forget_source());
        }
        Ok(())
    }

    fn mark(&self, sockets: &[Arc<Socket>], fwmark: u32) -> io::Result<()> {
        sockets.iter().try_for_each(|socket| socket.set_fwmark(fwmark))
    }

    fn bind(&self, port: u16, fwmark: u32) -> io::Result<Vec<Arc<Socket>>> {
        let workers = self.changes.len();
        let first = Socket::bind(port, fwmark, self.wanted, false)?;
        if workers > 1 {
            first.share()?;
        }
        let port = first.port;
        let mut sockets = vec![Arc::new(first)];
        for _ in 1..workers {
            sockets.push(Arc::new(Socket::bind(port, fwmark, self.wanted, true)?));
        }
        if workers > 1
            && let Err(error) = steering::by_receiver(sockets[0].fd(), workers as u32)
        {
            tracing::warn!(%error, "a peer's messages come to the worker that its address leads to");
        }
        Ok(sockets)
    }

    /// Returns when nobody uses the old sockets any more, so that their port is free.
    fn replace_sockets(&self, old: Arc<[Arc<Socket>]>, new: Vec<Arc<Socket>>) {
        *self.sockets.write().expect(POISON) = new.into();
        for change in &self.changes {
            // Refused only where it counts 2^64 already.
            let _ = change.write(1);
        }
        // The list counts as a user, too.
        let sockets: Vec<_> = old.iter().cloned().collect();
        drop(old);
        for socket in sockets {
            while Arc::strong_count(&socket) > 1 {
                thread::sleep(RELEASE);
            }
        }
    }

    fn lock_link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().expect(POISON)
    }

    /// Takes over a new private key, or none. The same key changes nothing; a peer that has become ourselves goes.
    pub(crate) fn set_identity(&self, private: Option<crate::key::PrivateKey>) {
        let mut table = self.table_mut();
        if table.identity.as_ref().map(|identity| &identity.private) == private.as_ref() {
            return;
        }
        let identity = private.map(|private| Arc::new(Identity::new(private, HANDSHAKE_LIMIT)));
        table.identity.clone_from(&identity);
        if let Some(identity) = &identity {
            table.remove(&identity.public);
        }
        for entry in table.peers.values() {
            entry.peer.lock().set_identity(identity.clone(), &self.metrics);
        }
    }

    /// Whether a handshake message from `address`, which is its sender's, may be worked on under load.
    pub(crate) fn admit(&self, address: IpAddr, now: Instant) -> bool {
        self.limiter.lock().expect(POISON).admit(address, now)
    }

    /// The peer of that key, made where there is none.
    pub(crate) fn peer(&self, key: PublicKey) -> Arc<Peer> {
        let mut table = self.table_mut();
        if let Some(entry) = table.peers.get(&key) {
            return Arc::clone(&entry.peer);
        }
        let worker = table.least_loaded();
        let index = loop {
            let index = steering::index(self.random_index(), worker, table.loads.len());
            if !table.by_index.contains_key(&index) {
                break index;
            }
        };
        table.loads[worker] += 1;
        let peer = Arc::new(Peer::new(key, index, worker, table.identity.clone(), Arc::clone(&self.waiting)));
        table.by_index.insert(index, Arc::clone(&peer));
        table.peers.insert(key, Entry { peer: Arc::clone(&peer), allowed: BTreeSet::new() });
        peer
    }

    /// 24 bits that do not tell how many peers there are.
    fn random_index(&self) -> u32 {
        let hash = self.random.hash_one(self.next.fetch_add(1, Ordering::Relaxed));
        (hash & 0xff_ffff) as u32
    }

    /// Lets time pass for every peer.
    pub(crate) fn tick(&self, outbox: &mut Outbox) {
        if self.link().up && self.sockets().is_empty() && self.set_link(|_| {}).is_ok() {
            tracing::info!(port = self.port(), "the port can be had now");
        }
        let now = Instant::now();
        let table = self.table();
        if let Some(identity) = &table.identity {
            identity.gate.reset_count();
        }
        let up = !self.sockets().is_empty();
        for entry in table.peers.values() {
            if outbox.full() {
                self.send(outbox, &table);
            }
            let mut state = entry.peer.lock();
            if up {
                state.tick(now, outbox, &self.metrics);
            } else {
                // Keys end all the same; nothing is sent.
                state.age(outbox.room(), &self.metrics);
            }
        }
        self.send(outbox, &table);
    }

    /// The device came up: peers that are to be kept alive are spoken to at once.
    pub(crate) fn greet(&self, outbox: &mut Outbox) {
        let now = Instant::now();
        let table = self.table();
        for entry in table.peers.values() {
            if outbox.full() {
                self.send(outbox, &table);
            }
            let mut state = entry.peer.lock();
            if state.is_to_be_greeted() {
                state.send_keepalive(now, outbox, &self.metrics);
            }
        }
        self.send(outbox, &table);
    }

    /// Sends what is in the outbox by the first socket. No peer's lock may be held.
    pub(crate) fn send(&self, outbox: &mut Outbox, table: &Table) {
        let sockets = self.sockets();
        self.send_by(outbox, table, sockets.first().map(AsRef::as_ref));
    }

    /// Sends what is in the outbox; what the socket's buffer does not take is lost. No peer's lock may be held.
    pub(crate) fn send_by(&self, outbox: &mut Outbox, table: &Table, socket: Option<&Socket>) {
        self.send_some(outbox, table, socket);
        outbox.drop_rest(Reason::SendBufferFull, &self.metrics);
    }

    /// Sends what is in the outbox, as far as the socket's buffer takes it. No peer's lock may be held.
    pub(crate) fn send_some(&self, outbox: &mut Outbox, table: &Table, socket: Option<&Socket>) {
        outbox.send(socket, &self.metrics, |failure| {
            let now = Instant::now();
            for entry in table.peers.values() {
                let mut state = entry.peer.lock();
                if state.endpoint().is_some_and(|endpoint| endpoint.address == failure.address) {
                    state.send_failed(failure.kind, now);
                }
            }
        });
    }
}

impl Table {
    /// The peer to which `destination` is to be sent.
    #[inline]
    pub(crate) fn route(&self, destination: IpAddr) -> Option<&Arc<Peer>> {
        self.allowed.longest(destination)
    }

    /// The peer with that receiver index.
    #[inline]
    pub(crate) fn receiver(&self, index: u32) -> Option<&Arc<Peer>> {
        self.by_index.get(&(index >> 8))
    }

    pub(crate) fn get(&self, key: &PublicKey) -> Option<&Entry> {
        self.peers.get(key)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.peers.values()
    }

    /// The worker that has the fewest peers.
    fn least_loaded(&self) -> usize {
        let loads = self.loads.iter().enumerate();
        loads.min_by_key(|(_, load)| **load).map_or(0, |(worker, _)| worker)
    }

    /// Keeps the kernel's copy of the allowed IPs from now on, of which there are none yet.
    pub(crate) fn steer(&mut self, steering: Steering) {
        self.steering = Some(steering);
    }

    /// Removes a peer and all that is its own.
    pub(crate) fn remove(&mut self, key: &PublicKey) {
        if let Some(entry) = self.peers.remove(key) {
            self.by_index.remove(&entry.peer.index);
            self.loads[entry.peer.worker] -= 1;
            for prefix in entry.allowed {
                self.free(prefix);
            }
        }
    }

    /// A prefix is nobody's any more.
    fn free(&mut self, prefix: Prefix) {
        self.allowed.remove(prefix);
        if let Some(steering) = &self.steering {
            steering.remove(prefix);
        }
    }

    /// Gives a prefix to a peer; another peer that had it loses it.
    pub(crate) fn allow(&mut self, key: &PublicKey, prefix: Prefix) {
        let Some(entry) = self.peers.get_mut(key) else { return };
        if !entry.allowed.insert(prefix) {
            return;
        }
        if let Some(steering) = &self.steering {
            steering.insert(prefix, entry.peer.worker as u32);
        }
        let loser = self.allowed.insert(prefix, Arc::clone(&entry.peer));
        if let Some(entry) = loser.and_then(|loser| self.peers.get_mut(&loser.key)) {
            entry.allowed.remove(&prefix);
        }
    }

    /// Takes a prefix from a peer, if it is the peer's.
    pub(crate) fn disallow(&mut self, key: &PublicKey, prefix: Prefix) {
        if let Some(entry) = self.peers.get_mut(key)
            && entry.allowed.remove(&prefix)
        {
            self.free(prefix);
        }
    }

    /// Makes `prefixes` all that is a peer's; a prefix that stays is the peer's all the time.
    pub(crate) fn allow_only(&mut self, key: &PublicKey, prefixes: &BTreeSet<Prefix>) {
        let Some(entry) = self.peers.get(key) else { return };
        let gone: Vec<_> = entry.allowed.difference(prefixes).copied().collect();
        gone.into_iter().for_each(|prefix| self.disallow(key, prefix));
        prefixes.iter().for_each(|prefix| self.allow(key, *prefix));
    }
}
