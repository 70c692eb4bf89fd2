//! Traffic whose every packet is accounted for.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::agent::SOON;
use crate::await_::{eventually, patience};
use crate::lab::Node;
use crate::space::{Process, Space};

/// Port of the servers.
pub const PORT: u16 = 8080;

/// Bytes of a UDP socket's buffer: a test that is not scheduled for a while loses nothing.
const RECEIVE_BUFFER: usize = 4 << 20;

/// How long one connection, or one piece of it, may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Servers of a pod, TCP and UDP, both families.
///
/// TCP: a client sends a length in eight bytes and as many bytes more; it is answered with the source that the server
/// saw, in a line, and as many bytes. UDP: an echo.
pub struct Server {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts them.
    pub fn start(space: &Space) -> Self {
        let any: [IpAddr; 2] = [IpAddr::from([0u8; 4]), IpAddr::from([0u16; 8])];
        let ended = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for address in any {
            let (tcp, udp) = space.enter(|| {
                let tcp = only_own_family(SocketAddr::new(address, PORT)).expect("the port is free");
                (tcp, bind_udp(address))
            });
            let (stop, stop_udp) = (ended.clone(), ended.clone());
            threads.push(std::thread::spawn(move || accept(&tcp, &stop)));
            threads.push(std::thread::spawn(move || echo(&udp, &stop_udp)));
        }
        Self { ended, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// An iperf3 server that listens, for one transfer: one that has just ended a transfer tells who comes next that it is busy.
pub fn serve_one_transfer(space: &Space) -> Process {
    let server = space.spawn(&["iperf3", "-s", "-1"], |command| {
        command.stdout(Stdio::null());
    });
    eventually("iperf3 listens", SOON, || {
        let listening = space.run("ss -Hltn sport = :5201");
        if listening.is_empty() { Err("not yet") } else { Ok(()) }
    });
    server
}

fn only_own_family(address: SocketAddr) -> nix::Result<TcpListener> {
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
        sockopt,
    };
    use std::os::fd::AsRawFd;
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&fd, Backlog::MAXCONN)?;
    let listener = TcpListener::from(fd);
    listener.set_nonblocking(true).expect("a socket may be so");
    Ok(listener)
}

fn bind_udp(address: IpAddr) -> UdpSocket {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
    };
    use std::os::fd::AsRawFd;
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true).expect("a socket may be so");
    }
    setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).expect("root may");
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, PORT))).expect("the port is free");
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("not zero");
    socket
}

fn accept(listener: &TcpListener, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, peer)) => {
                std::thread::spawn(move || {
                    let _ = answer(stream, peer.ip());
                });
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn answer(mut stream: TcpStream, peer: IpAddr) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    // Who has connected may have other things to do first.
    stream.set_read_timeout(Some(patience(SOON)))?;
    stream.set_write_timeout(Some(patience(TIMEOUT)))?;
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    let length = u64::from_be_bytes(length);
    io::copy(&mut (&mut stream).take(length), &mut io::sink())?;
    stream.write_all(format!("{peer}\n").as_bytes())?;
    io::copy(&mut io::repeat(7).take(length), &mut stream)?;
    Ok(())
}

fn echo(socket: &UdpSocket, ended: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !ended.load(Ordering::Relaxed) {
        if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), peer);
        }
    }
}

/// Connects, sends and receives so many bytes, and tells which source the server saw.
pub fn fetch(from: &Space, to: SocketAddr, bytes: u64) -> Result<IpAddr, String> {
    Fetch::begin(from, to).and_then(|fetch| fetch.finish(bytes))
}

/// A connection to a server.
pub struct Fetch(TcpStream);

impl Fetch {
    /// Connects.
    pub fn begin(from: &Space, to: SocketAddr) -> Result<Self, String> {
        let limit = patience(TIMEOUT);
        let stream = from.enter(|| TcpStream::connect_timeout(&to, limit)).map_err(because("connect"))?;
        stream.set_read_timeout(Some(limit)).map_err(because("socket"))?;
        stream.set_write_timeout(Some(limit)).map_err(because("socket"))?;
        Ok(Self(stream))
    }

    /// Sends and receives so many bytes, and tells which source the server saw.
    pub fn finish(self, bytes: u64) -> Result<IpAddr, String> {
        let Self(mut stream) = self;
        stream.write_all(&bytes.to_be_bytes()).map_err(because("send"))?;
        io::copy(&mut io::repeat(7).take(bytes), &mut stream).map_err(because("send"))?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map_err(because("receive"))?;
        let end = answer.iter().position(|byte| *byte == b'\n').ok_or("no answer")?;
        let (line, rest) = answer.split_at(end);
        if rest.len() as u64 != bytes + 1 {
            return Err(format!("{} of {bytes} bytes came back", rest.len() - 1));
        }
        let line = String::from_utf8_lossy(line);
        line.parse().map_err(|_| format!("{line:?} is no address"))
    }
}

fn because(what: &'static str) -> impl Fn(io::Error) -> String {
    move |error| format!("{what}: {error}")
}

/// A flow of a pod by UDP, from one port.
pub struct OneFlow<'a> {
    socket: UdpSocket,
    port: u16,
    /// The node that is asked about it.
    tracked_by: &'a Node,
}

impl<'a> OneFlow<'a> {
    /// One that has sent nothing yet.
    pub fn start(from: &Node, to: &Node, port: u16, tracked_by: &'a Node) -> Self {
        let any = IpAddr::from([0_u8; 4]);
        let socket = from.pod.enter(|| UdpSocket::bind((any, port)).expect("the port is free"));
        socket.connect((to.pod4(), PORT)).expect("there is a route");
        Self { socket, port, tracked_by }
    }

    /// Sends a packet: what conntrack has of it.
    pub fn tracked(&self) -> Result<String, String> {
        self.socket.send(b"anybody there?").map_err(|error| error.to_string())?;
        Ok(self.tracked_by.space.run(&format!("conntrack -L -p udp --orig-port-src {}", self.port)))
    }

    /// Sends a packet: which source its answers go to.
    pub fn source(&self) -> Result<String, String> {
        let tracked = self.tracked()?;
        // Of the answers it is the destination.
        let answers = tracked.rsplit_once("dst=").map(|(_, rest)| rest).unwrap_or_default();
        answers.split_whitespace().next().map(str::to_owned).ok_or("it is not tracked".to_owned())
    }

    /// Sends packets until answers go to this source.
    #[track_caller]
    pub fn await_source(&self, wanted: IpAddr) {
        eventually(&format!("it is known as {wanted}"), SOON, || {
            let source = self.source()?;
            if source == wanted.to_string() { Ok(()) } else { Err(source) }
        });
    }
}

/// Numbered UDP packets to an echo server, at a steady pace.
pub struct Flow {
    ended: Arc<AtomicBool>,
    sent: Arc<Mutex<Vec<Instant>>>,
    received: Arc<Mutex<BTreeSet<u64>>>,
    sender: Option<JoinHandle<()>>,
    receiver: Option<JoinHandle<()>>,
    name: String,
}

/// What became of a flow.
#[derive(Debug)]
pub struct Count {
    /// From where to where.
    pub name: String,
    /// When each packet was sent, in the order of their numbers.
    pub sent: Vec<Instant>,
    /// Numbers of those that never came back.
    pub lost: Vec<usize>,
}

impl Flow {
    /// Starts one, and waits until the first packets have come back.
    #[track_caller]
    pub fn start(from: &Space, to: IpAddr, every: Duration) -> Self {
        let name = format!("{} to {to}", from.name);
        let any = if to.is_ipv4() { IpAddr::from([0u8; 4]) } else { IpAddr::from([0u16; 8]) };
        let connect = || {
            let socket = UdpSocket::bind((any, 0)).map_err(|error| error.to_string())?;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).map_err(|error| error.to_string())?;
            socket.connect((to, PORT)).map_err(|error| error.to_string())?;
            socket.set_read_timeout(Some(Duration::from_secs(1))).map_err(|error| error.to_string())?;
            Ok::<_, String>(socket)
        };
        let socket = eventually(&name, Duration::from_secs(30), || {
            from.enter(|| {
                let socket = connect()?;
                socket.send(&u64::MAX.to_be_bytes()).map_err(|error| error.to_string())?;
                socket.recv(&mut [0; 8]).map_err(|error| error.to_string())?;
                Ok::<_, String>(socket)
            })
        });
        let ended = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(Mutex::new(Vec::new()));
        let received = Arc::new(Mutex::new(BTreeSet::new()));
        let sender = std::thread::spawn({
            let socket = socket.try_clone().expect("a socket may be shared");
            let (ended, sent) = (ended.clone(), sent.clone());
            move || send(&socket, every, &ended, &sent)
        });
        let receiver = std::thread::spawn({
            let (ended, received) = (ended.clone(), received.clone());
            move || receive(&socket, &received, &ended)
        });
        Self { ended, sent, received, sender: Some(sender), receiver: Some(receiver), name }
    }

    /// Packets sent until now.
    pub fn sent(&self) -> usize {
        self.sent.lock().expect("nobody panicked").len()
    }

    /// What became until now of the packets that were sent that long ago or longer.
    pub fn count(&self, ago: Duration) -> Count {
        let now = Instant::now();
        let mut sent = self.sent.lock().expect("nobody panicked").clone();
        sent.truncate(sent.partition_point(|at| now.duration_since(*at) >= ago));
        let received = self.received.lock().expect("nobody panicked");
        let lost = (0..sent.len()).filter(|number| !received.contains(&(*number as u64))).collect();
        Count { name: self.name.clone(), sent, lost }
    }

    /// Stops it, and waits for what is under way.
    pub fn stop(mut self) -> Count {
        self.end();
        self.sender.take().expect("once").join().expect("the sender does not panic");
        self.receiver.take().expect("once").join().expect("the receiver does not panic");
        self.count(Duration::ZERO)
    }

    /// Sends no more; what is under way still comes back.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Stops it: nothing was lost.
    #[track_caller]
    pub fn lost_nothing(self) {
        none_lost_anything(vec![self]);
    }
}

/// Stops flows: nothing of any was lost.
#[track_caller]
pub fn none_lost_anything(flows: Vec<Flow>) {
    // However short the test, there was something to lose.
    std::thread::sleep(Duration::from_millis(300));
    flows.iter().for_each(Flow::end);
    let mut failures = Vec::new();
    for flow in flows {
        let Count { name, sent, lost } = flow.stop();
        assert!(!sent.is_empty(), "{name}: nothing was sent");
        if !lost.is_empty() {
            failures.push(format!(
                "{name}: {} of {} lost, from {:?} to {:?}",
                lost.len(),
                sent.len(),
                lost.first(),
                lost.last()
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

fn send(socket: &UdpSocket, every: Duration, ended: &AtomicBool, sent: &Mutex<Vec<Instant>>) {
    let mut next = Instant::now();
    for number in 0_u64.. {
        if ended.load(Ordering::Relaxed) {
            return;
        }
        sent.lock().expect("nobody panicked").push(Instant::now());
        // An error is what an earlier packet met: the number stays missing.
        let _ = socket.send(&number.to_be_bytes());
        // Who was held up makes up for no more than a few packets: a burst would overflow a queue on the way.
        next = (next + every).max(Instant::now().checked_sub(8 * every).unwrap_or(next));
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn receive(socket: &UdpSocket, received: &Mutex<BTreeSet<u64>>, ended: &AtomicBool) {
    let mut bytes = [0; 8];
    let mut quiet_since = None;
    loop {
        match socket.recv(&mut bytes) {
            Ok(8) => {
                received.lock().expect("nobody panicked").insert(u64::from_be_bytes(bytes));
                quiet_since = None;
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // After the end, what is under way has a second.
                let since = *quiet_since.get_or_insert_with(Instant::now);
                if ended.load(Ordering::Relaxed) && since.elapsed() > patience(Duration::from_millis(700)) {
                    return;
                }
            }
            Err(_) => {}
        }
    }
}
