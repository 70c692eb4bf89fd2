//! Counters of the data path. Written once a batch, mostly by one thread, and read by whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! drops {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a packet went no further.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// Every reason, in the order of the variants.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The reason as metrics name it.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

drops! {
    /// No peer's allowed IPs hold the destination.
    NoPeer = "no_peer",
    /// Nobody has said yet where the peer is.
    NoEndpoint = "no_endpoint",
    /// The device has no private key.
    NoKey = "no_key",
    /// The device is down or its port cannot be had: there is no socket.
    NoSocket = "no_socket",
    /// Too many packets wait for sessions already.
    TooManyWaiting = "too_many_waiting",
    /// It waited for a session that did not come about.
    NoHandshake = "no_handshake",
    /// Not IP, or its headers contradict each other.
    Malformed = "malformed",
    /// The network refused it: no route, not permitted, too long.
    SendFailed = "send_failed",
    /// The socket's buffer is full: the way out is slower than what is sent.
    SendBufferFull = "send_buffer_full",
    /// A message of no known kind, or of a wrong length.
    NotWireGuard = "not_wireguard",
    /// A message to a receiver index that nobody has.
    UnknownIndex = "unknown_index",
    /// A handshake of a key that is no peer's, or with a wrong MAC.
    UnknownPeer = "unknown_peer",
    /// A handshake that was asked to come again with a cookie.
    UnderLoad = "under_load",
    /// A handshake above what its address, or all together, may send while under load.
    RateLimited = "rate_limited",
    /// A handshake older than the last one, or come again.
    OldHandshake = "old_handshake",
    /// The session has ended or never was.
    NoSession = "no_session",
    /// Came before, or is too old to tell.
    Replayed = "replayed",
    /// The cipher says it is not the peer's.
    NotAuthentic = "not_authentic",
    /// The peer may not send from that source.
    SourceNotAllowed = "source_not_allowed",
    /// The device did not take it: it is down, or out of memory.
    WriteFailed = "write_failed",
}

/// Batches by size: 1, 2, 3–4, 5–8, … 33–64 packets.
#[derive(Debug, Default)]
pub(crate) struct Sizes([Counter; 7]);

impl Sizes {
    #[inline]
    pub(crate) fn add(&self, packets: usize) {
        let bucket = packets.max(1).next_power_of_two().trailing_zeros() as usize;
        self.0[bucket.min(6)].add(1);
    }

    /// Upper bounds and counts, not cumulative.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.0.iter().enumerate().map(|(power, count)| (1 << power, count.get()))
    }
}

/// All counters of a device; those of a peer are with the peer.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Reads of the TUN device that gave a frame.
    pub(crate) tun_reads: Counter,
    /// Frames to several packets that the kernel left uncut.
    pub(crate) tun_read_gso: Counter,
    /// Packets sealed and sent.
    pub(crate) sent_packets: Counter,
    /// Their bytes on the wire, UDP payload.
    pub(crate) sent_bytes: Counter,
    /// `sendmmsg` calls.
    pub(crate) send_calls: Counter,
    /// Messages in a datagram train that left together.
    pub(crate) send_sizes: Sizes,
    /// `recvmmsg` calls that gave something.
    pub(crate) receive_calls: Counter,
    /// Messages in a datagram train that arrived together.
    pub(crate) receive_sizes: Sizes,
    /// Messages received, whatever became of them.
    pub(crate) received_packets: Counter,
    /// Their bytes on the wire, UDP payload.
    pub(crate) received_bytes: Counter,
    /// Packets written to the TUN device together.
    pub(crate) write_sizes: Sizes,
    /// Handshake initiations sent.
    pub(crate) initiations_sent: Counter,
    /// Handshake initiations received that were right.
    pub(crate) initiations_received: Counter,
    /// Sessions that became usable.
    pub(crate) handshakes: Counter,
    /// Handshake messages worked on under load, as they came with a cookie.
    pub(crate) handshakes_by_cookie: Counter,
    /// Cookies sent instead of an answer.
    pub(crate) cookies_sent: Counter,
    /// Times an offload failed and was given up or passed over.
    pub(crate) fallbacks: Counter,
    drops: [Counter; Reason::ALL.len()],
}

impl Metrics {
    /// Counts `messages` of `bytes` together that left in trains of `train`.
    #[inline]
    pub(crate) fn sent(&self, messages: usize, train: usize, bytes: usize) {
        self.sent_packets.add(messages as u64);
        self.sent_bytes.add(bytes as u64);
        (0..messages / train).for_each(|_| self.send_sizes.add(train));
    }

    #[inline]
    pub(crate) fn drop(&self, reason: Reason, packets: u64) {
        if packets > 0 {
            self.drops[reason as usize].add(packets);
        }
    }

    /// Every reason and its count.
    pub(crate) fn drops(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Reason::ALL.iter().map(|reason| (reason.name(), self.drops[*reason as usize].get()))
    }
}
