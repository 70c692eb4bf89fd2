//! The threads of a tunnel, and the one that watches over them.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::device::Device;
use crate::error::Error;
use crate::link::{Link, News};
use crate::net;
use crate::net::outbox::Outbox;
use crate::options::{Failure, Options};
use crate::packet::coalesce::Abilities;
use crate::steering::Steering;
use crate::tun::{self, Tun};
use crate::uapi::server::{self, Server};
use crate::worker::Worker;

/// MTU of a new device, bytes: an Ethernet's less the most that the tunnel adds (IPv6).
const MTU: usize = 1420;
/// How often time passes for the peers.
const TICK: Duration = Duration::from_millis(250);

/// A tunnel that is ready to run.
pub(crate) struct Service {
    device: Arc<Device>,
    tuns: Vec<Arc<Tun>>,
    server: Arc<Server>,
    link: Link,
    /// The device has left the namespace that `link` hears of.
    moved: bool,
    signals: SignalFd,
    files: Inotify,
}

impl Service {
    /// Makes the device and the socket.
    pub(crate) fn start(options: &Options) -> Result<Self, Error> {
        let mut threads = usize::from(options.threads);
        let wanted = tun::Wanted {
            vnet: !options.no_vnet,
            tso: !options.no_tso,
            uso: !options.no_uso,
            refused: Abilities {
                tcp: options.fail == Some(Failure::JoinedTcp),
                udp: options.fail == Some(Failure::JoinedUdp),
            },
        };
        let (first, name) = Tun::open(&options.name, wanted, threads > 1)?;
        let steering = if threads > 1 { steer(&first) } else { None };
        if steering.is_none() {
            threads = 1;
        }
        let mut tuns = vec![Arc::new(first)];
        for _ in 1..threads {
            tuns.push(Arc::new(Tun::open(&name, wanted, true)?.0));
        }
        let server = Arc::new(Server::listen(&name)?);
        // Threads inherit this: the signals come here and nowhere else.
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.add(Signal::SIGINT);
        mask.thread_block().map_err(|error| Error::system("block signals")(error.into()))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC)
            .map_err(|error| Error::system("signal descriptor")(error.into()))?;
        let files = watch(Path::new(server::DIRECTORY)).map_err(Error::system("watch the control socket"))?;

        let link = Link::watch(&name).map_err(Error::system("watch the device"))?;
        link.configure(MTU).map_err(Error::system("configure the device"))?;
        let wanted = net::Wanted {
            segmentation: !options.no_gso,
            grouping: !options.no_gro,
            refusal: options.fail.and_then(Failure::of_trains),
        };
        let device =
            Arc::new(Device::new(name, wanted, threads, MTU).map_err(Error::system("event descriptor"))?);
        if let Some(steering) = steering {
            device.table_mut().steer(steering);
        }
        for joins in [&device.joins.tcp, &device.joins.udp] {
            joins.store(!options.no_join, Ordering::Relaxed);
        }
        Ok(Self { device, tuns, server, link, moved: false, signals, files })
    }

    /// Runs the threads until the tunnel ends.
    pub(crate) fn run(mut self) -> Result<(), Error> {
        let ended = Arc::new(Ended::new().map_err(Error::system("event descriptor"))?);
        for (index, tun) in self.tuns.iter().enumerate() {
            let (device, tun) = (Arc::clone(&self.device), Arc::clone(tun));
            spawn(&format!("worker{index}"), &ended, move || Worker::new(device, tun, index).run())?;
        }
        let (server, device) = (Arc::clone(&self.server), Arc::clone(&self.device));
        spawn("control", &ended, move || {
            server.serve(&device);
            Ok(())
        })?;
        tracing::info!(device = self.device.name, "the tunnel is ready");
        let result = self.watch(&ended);
        self.server.remove();
        tracing::info!(device = self.device.name, "the tunnel ends");
        result
    }

    /// Lets time pass and follows the device, until there is a reason to end.
    fn watch(&mut self, ended: &Ended) -> Result<(), Error> {
        let mut outbox = Outbox::new(64 << 10);
        let mut next = Instant::now() + TICK;
        loop {
            // Rounded up, or the last millisecond is spent asking.
            let wait = next.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000) as u16;
            let mut events = [
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(ended.event.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.link.fd(), PollFlags::POLLIN),
                PollFd::new(self.files.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut events, PollTimeout::from(wait)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(Error::system("poll")(error.into())),
            }
            let [signal, thread, link, files] = events.map(|event| event.any().unwrap_or(true));
            if signal {
                return Ok(());
            }
            if thread {
                return self.thread_ended(ended);
            }
            if files {
                drop(self.files.read_events());
                if !self.server.stands() {
                    tracing::info!("the control socket was removed");
                    return Ok(());
                }
            }
            if link && self.follow_link(&mut outbox)? {
                return Ok(());
            }
            if Instant::now() >= next {
                if self.moved {
                    self.look(&mut outbox);
                }
                self.device.tick(&mut outbox);
                next = Instant::now() + TICK;
            }
        }
    }

    /// A thread came back: the device is gone, or something is broken.
    fn thread_ended(&self, ended: &Ended) -> Result<(), Error> {
        match ended.error.lock().ok().and_then(|mut error| error.take()) {
            Some(error) if self.tuns[0].exists() => Err(error),
            _ => Ok(()),
        }
    }

    /// Does what the news of the device ask for; true when it is gone.
    fn follow_link(&mut self, outbox: &mut Outbox) -> Result<bool, Error> {
        for news in self.link.news().map_err(Error::system("news of the device"))? {
            match news {
                News::Gone if self.tuns[0].exists() => {
                    tracing::info!("the device is in another network namespace now");
                    self.moved = true;
                    self.look(outbox);
                }
                News::Gone => return Ok(true),
                News::State { up, mtu } => self.follow(up, mtu, outbox),
            }
        }
        Ok(false)
    }

    /// Looks where the device is now: no news of it come from there.
    fn look(&mut self, outbox: &mut Outbox) {
        match Link::look(&self.tuns[0]) {
            Ok(news) => {
                for news in news {
                    if let News::State { up, mtu } = news {
                        self.follow(up, mtu, outbox);
                    }
                }
            }
            // Not permitted, or more than a kernel before 5.2 can say.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EINVAL | libc::ENOTTY)) => {
                tracing::warn!(%error, "the device is taken for up from now on: its namespace cannot be looked into");
                self.moved = false;
                self.set_up(true, outbox);
            }
            // On its way, or gone.
            Err(error) => tracing::debug!(%error, "the device is not seen where it is"),
        }
    }

    fn follow(&self, up: bool, mtu: usize, outbox: &mut Outbox) {
        self.device.mtu.store(mtu, Ordering::Relaxed);
        self.set_up(up, outbox);
    }

    fn set_up(&self, up: bool, outbox: &mut Outbox) {
        if self.device.link().up == up {
            return;
        }
        match self.device.set_link(|link| link.up = up) {
            Ok(()) if up => self.device.greet(outbox),
            Ok(()) => {}
            Err(error) => tracing::error!(%error, port = self.device.link().port, "no socket on this port"),
        }
    }
}

/// Without it a peer's packets would come to any worker, and its messages be sent in any order.
fn steer(tun: &Tun) -> Option<Steering> {
    match Steering::new(tun.fd()) {
        Ok(steering) => Some(steering),
        Err(error) => {
            tracing::warn!(%error, "the kernel does not spread packets by peer (BPF): one thread for all");
            None
        }
    }
}

/// How a thread tells that it has ended.
struct Ended {
    event: EventFd,
    error: Mutex<Option<Error>>,
}

impl Ended {
    fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { event, error: Mutex::new(None) })
    }

    fn tell(&self, result: Result<(), Error>) {
        if let (Err(error), Ok(mut slot)) = (result, self.error.lock()) {
            slot.get_or_insert(error);
        }
        let _ = self.event.write(1);
    }
}

fn spawn(
    name: &str,
    ended: &Arc<Ended>,
    work: impl FnOnce() -> Result<(), Error> + Send + 'static,
) -> Result<(), Error> {
    let ended = Arc::clone(ended);
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || ended.tell(work()))
        .map(drop)
        .map_err(Error::system("start a thread"))
}

fn watch(directory: &Path) -> io::Result<Inotify> {
    let files = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let events = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE | AddWatchFlags::IN_DELETE_SELF;
    files.add_watch(directory, events)?;
    Ok(files)
}
