//! The system calls that no safe crate offers: TUN ioctls, BPF, batched datagrams and socket options; and the one sum that is
//! compiled for AVX2 as well.
//!
//! All `unsafe` of the crate is here. Nothing in this file knows what a packet is.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_uint, c_void, iovec, mmsghdr};

use crate::packet::checksum;

/// [`checksum::unfolded`], by AVX2 where the processor has it.
#[inline]
pub(crate) fn unfolded(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn avx2(bytes: &[u8]) -> u64 {
            checksum::unfolded(bytes)
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { avx2(bytes) };
        }
    }
    checksum::unfolded(bytes)
}

/// Longest socket address the rings carry: `struct sockaddr_in6`.
pub(crate) const NAME: usize = size_of::<libc::sockaddr_in6>();
/// Bytes of ancillary data a datagram may carry.
pub(crate) const CONTROL: usize = 128;

/// Ancillary data, aligned as `struct cmsghdr` asks.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Control(pub(crate) [u8; CONTROL]);

/// Attaches an open `/dev/net/tun` to the device `name` (created where absent) with IFF_* `flags`; returns the
/// name the kernel gave it.
pub(crate) fn tun_attach(tun: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<String> {
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is, and outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    // SAFETY: the kernel terminates the name it wrote, and the array was zeroed and longer than `name` before.
    let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) };
    Ok(name.to_string_lossy().into_owned())
}

/// Tells the kernel which offloads (TUN_F_*) the reader of a TUN device takes care of.
pub(crate) fn tun_set_offload(tun: BorrowedFd<'_>, flags: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(flags)) })
        .map(drop)
}

/// Name of the device that an open `/dev/net/tun` is attached to.
pub(crate) fn tun_name(tun: BorrowedFd<'_>) -> io::Result<String> {
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `ifreq`, which `request` is, and outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) })?;
    // SAFETY: the kernel terminates the name it wrote.
    let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) };
    Ok(name.to_string_lossy().into_owned())
}

/// The network namespace that the device is in (Linux 5.2).
pub(crate) fn tun_namespace(tun: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: TUNGETDEVNETNS takes no argument.
    let namespace = check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETDEVNETNS as _) })?;
    // SAFETY: the descriptor is new, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(namespace) })
}

/// The kernel's `union bpf_attr` as far as BPF_PROG_LOAD needs it (linux/bpf.h).
#[repr(C)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// Loads a program of type BPF_PROG_TYPE_SOCKET_FILTER, which looks at a packet and returns a number.
pub(crate) fn load_socket_filter(instructions: &[u64]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: c_int = 5;
    const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
    let load = ProgramLoad {
        kind: BPF_PROG_TYPE_SOCKET_FILTER,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    // SAFETY: the attributes and what they point at outlive the call, with their true lengths; the kernel reads only, and
    // verifies the program itself.
    let program =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<ProgramLoad>()) };
    let program = check(program as c_int)?;
    // SAFETY: the descriptor is new, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}

/// A table of the kernel's that finds the longest prefix that holds a key (BPF_MAP_TYPE_LPM_TRIE); values are numbers.
#[derive(Debug)]
pub(crate) struct PrefixTable {
    table: OwnedFd,
    key: usize,
}

/// The kernel's `union bpf_attr` for BPF_MAP_CREATE.
#[repr(C)]
struct MapCreate {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

/// The same for BPF_MAP_UPDATE_ELEM and BPF_MAP_DELETE_ELEM.
#[repr(C)]
struct MapElement {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl PrefixTable {
    /// For addresses of so many bytes, at most `entries` prefixes.
    pub(crate) fn new(address: usize, entries: u32) -> io::Result<Self> {
        const BPF_MAP_CREATE: c_int = 0;
        const BPF_MAP_TYPE_LPM_TRIE: u32 = 11;
        const BPF_F_NO_PREALLOC: u32 = 1;
        let key = size_of::<u32>() + address;
        let create = MapCreate {
            kind: BPF_MAP_TYPE_LPM_TRIE,
            key: key as u32,
            value: size_of::<u32>() as u32,
            entries,
            flags: BPF_F_NO_PREALLOC,
        };
        // SAFETY: the attributes outlive the call, with their true length; the kernel reads only.
        let table = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, &raw const create, size_of::<MapCreate>())
        };
        let table = check(table as c_int)?;
        // SAFETY: the descriptor is new, and nobody else knows of it.
        Ok(Self { table: unsafe { OwnedFd::from_raw_fd(table) }, key })
    }

    /// `key`: length of the prefix in the machine's order, then the address.
    pub(crate) fn insert(&self, key: &[u8], value: u32) -> io::Result<()> {
        const BPF_MAP_UPDATE_ELEM: c_int = 2;
        self.change(BPF_MAP_UPDATE_ELEM, key, &raw const value as u64)
    }

    pub(crate) fn remove(&self, key: &[u8]) -> io::Result<()> {
        const BPF_MAP_DELETE_ELEM: c_int = 3;
        self.change(BPF_MAP_DELETE_ELEM, key, 0)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.table.as_fd()
    }

    fn change(&self, command: c_int, key: &[u8], value: u64) -> io::Result<()> {
        if key.len() != self.key {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let element = MapElement {
            map: self.table.as_raw_fd().cast_unsigned(),
            padding: 0,
            key: key.as_ptr() as u64,
            value,
            flags: 0,
        };
        // SAFETY: the attributes outlive the call, with their true length, and so do the key, which has the bytes that the
        // table was made for, and the value, which is one of the callers' or none; the kernel reads only.
        let done =
            unsafe { libc::syscall(libc::SYS_bpf, command, &raw const element, size_of::<MapElement>()) };
        check(done as c_int).map(drop)
    }
}

/// One instruction of a socket's filter: opcode, jumps where true and where not, constant.
pub(crate) type FilterInstruction = (u16, u8, u8, u32);

/// Lets a program choose among the sockets that share the port of `socket`, in the order in which they came there.
pub(crate) fn attach_to_port(socket: BorrowedFd<'_>, program: &[FilterInstruction]) -> io::Result<()> {
    let mut filter: Vec<_> =
        program.iter().map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: pointer and length describe `program`, which points at the filter with its true length; both outlive the call,
    // and the kernel reads and verifies only.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast::<c_void>(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Lets a program choose the queue of each packet of a TUN device.
pub(crate) fn tun_steer(tun: BorrowedFd<'_>, program: &OwnedFd) -> io::Result<()> {
    let program: c_int = program.as_raw_fd();
    // SAFETY: TUNSETSTEERINGEBPF reads one int, which outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETSTEERINGEBPF as _, &raw const program) })
        .map(drop)
}

/// Sets an integer socket option.
pub(crate) fn set_option(
    socket: BorrowedFd<'_>,
    level: c_int,
    option: c_int,
    value: c_int,
) -> io::Result<()> {
    // SAFETY: pointer and length describe `value`, which outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast::<c_void>(),
            size_of::<c_int>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// One datagram, or one train of equal ones, to send.
#[derive(Clone, Copy)]
pub(crate) struct Outgoing<'a> {
    /// Raw socket address of the receiver.
    pub(crate) name: &'a [u8],
    /// Ancillary data, empty for none.
    pub(crate) control: &'a [u8],
    pub(crate) data: &'a [u8],
}

/// Room for the headers of one `sendmmsg`, kept between calls so that sending allocates nothing.
pub(crate) struct SendRing {
    headers: Box<[mmsghdr]>,
    vectors: Box<[iovec]>,
}

impl SendRing {
    pub(crate) fn new(slots: usize) -> Self {
        Self { headers: empty_headers(slots), vectors: empty_vectors(slots) }
    }

    /// Sends as many of `datagrams` as fit and as the kernel takes; returns how many. An error speaks of the first; it is
    /// `WouldBlock` where the socket's buffer is full.
    pub(crate) fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        datagrams: impl Iterator<Item = Outgoing<'a>>,
    ) -> io::Result<usize> {
        let mut count = 0;
        for ((header, vector), out) in self.headers.iter_mut().zip(self.vectors.iter_mut()).zip(datagrams) {
            *vector = iovec { iov_base: out.data.as_ptr().cast_mut().cast(), iov_len: out.data.len() };
            header.msg_hdr.msg_name = out.name.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = out.name.len() as _;
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = if out.control.is_empty() {
                std::ptr::null_mut()
            } else {
                out.control.as_ptr().cast_mut().cast()
            };
            header.msg_hdr.msg_controllen = out.control.len() as _;
            count += 1;
        }
        if count == 0 {
            return Ok(0);
        }
        // SAFETY: the first `count` headers were just filled from slices of lifetime 'a, which outlives this call; the
        // kernel only reads through them. The headers are exclusively ours.
        let sent = unsafe {
            libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), count, libc::MSG_DONTWAIT as _)
        };
        check(sent).map(|sent| sent as usize)
    }
}

/// Buffers for one `recvmmsg`: equal slots of one contiguous allocation.
pub(crate) struct RecvRing {
    headers: Box<[mmsghdr]>,
    vectors: Box<[iovec]>,
    names: Box<[[u8; NAME]]>,
    controls: Box<[Control]>,
    data: Box<[u8]>,
    slot: usize,
}

/// What arrived in one slot.
pub(crate) struct Incoming<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) control: &'a [u8],
    pub(crate) data: &'a [u8],
    /// The datagram was longer than the slot.
    pub(crate) truncated: bool,
}

impl RecvRing {
    pub(crate) fn new(slots: usize, slot: usize) -> Self {
        Self {
            headers: empty_headers(slots),
            vectors: empty_vectors(slots),
            names: vec![[0; NAME]; slots].into(),
            controls: vec![Control([0; CONTROL]); slots].into(),
            data: vec![0; slots * slot].into(),
            slot,
        }
    }

    /// Takes the datagrams that are there, as far as slots go; returns how many. `WouldBlock` where there are none.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let slots = self.data.chunks_exact_mut(self.slot).zip(&mut self.names).zip(&mut self.controls);
        for ((header, vector), ((data, name), control)) in
            self.headers.iter_mut().zip(self.vectors.iter_mut()).zip(slots)
        {
            *vector = iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
            header.msg_hdr.msg_name = name.as_mut_ptr().cast();
            header.msg_hdr.msg_namelen = NAME as _;
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL as _;
            header.msg_hdr.msg_flags = 0;
        }
        // SAFETY: every header points at a slot, a name and a control buffer of its own with their true lengths; all
        // belong to `self`, which is borrowed exclusively for the call. No timeout is given.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as _,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        check(received).map(|received| received as usize)
    }

    /// What the last [`receive`](Self::receive) put into slot `index`.
    #[allow(clippy::unnecessary_cast)] // the lengths have other types with musl
    pub(crate) fn incoming(&self, index: usize) -> Incoming<'_> {
        let header = &self.headers[index];
        let slot = &self.data[index * self.slot..][..self.slot];
        Incoming {
            name: &self.names[index][..(header.msg_hdr.msg_namelen as usize).min(NAME)],
            control: &self.controls[index].0[..(header.msg_hdr.msg_controllen as usize).min(CONTROL)],
            data: &slot[..(header.msg_len as usize).min(self.slot)],
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        }
    }
}

fn empty_headers(slots: usize) -> Box<[mmsghdr]> {
    // SAFETY: `mmsghdr` is plain old data; all zeroes is a valid value (null pointers, no lengths).
    (0..slots).map(|_| unsafe { std::mem::zeroed() }).collect()
}

fn empty_vectors(slots: usize) -> Box<[iovec]> {
    (0..slots).map(|_| iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }).collect()
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
