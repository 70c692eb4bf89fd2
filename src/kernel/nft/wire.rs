//! nfnetlink messages of nftables (`linux/netfilter/nf_tables.h`, `linux/netfilter/nfnetlink.h`).

use corax_core::object::ALIAS;
use corax_core::prefix::Prefix;
use nix::errno::Errno;

use super::elements::{self, NFT_SET_ELEM_INTERVAL_END, Raw, bounds};
use crate::kernel::error::Failure;
use crate::kernel::socket::{Socket, failure};
use crate::kernel::wire::{Attributes, Message, Messages, NLM_F_CREATE, NLMSG_ERROR, Writer};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
pub(super) const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
pub(in crate::kernel) const NFPROTO_IPV4: u8 = 2;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
pub(in crate::kernel) const NFT_MSG_GETCHAIN: u16 = 4;
pub(in crate::kernel) const NFT_MSG_DELCHAIN: u16 = 5;
pub(in crate::kernel) const NFT_MSG_GETRULE: u16 = 7;
pub(in crate::kernel) const NFT_MSG_DELRULE: u16 = 8;
pub(super) const NFT_MSG_GETSET: u16 = 10;
const NFT_MSG_NEWSETELEM: u16 = 12;
pub(super) const NFT_MSG_GETSETELEM: u16 = 13;
const NFT_MSG_DELSETELEM: u16 = 14;
const NFT_MSG_NEWGEN: u16 = 15;
const NFT_MSG_GETGEN: u16 = 16;
const NFT_MSG_TRACE: u16 = 17;
const NFT_MSG_GETOBJ: u16 = 19;
const NFT_OBJECT_COUNTER: u32 = 1;

/// The table's name is the first attribute of every class.
pub(super) const NFTA_TABLE: u16 = 1;
const NFTA_GEN_ID: u16 = 1;
pub(super) const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;

/// Prefixes a message: two elements each, and a nest of attributes ends at 64 KiB.
const CHUNK: usize = 400;

pub(in crate::kernel) const fn kind(message: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | message
}

/// A request's header (`nfgenmsg`).
pub(in crate::kernel) const fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// What an event is about.
pub(super) enum Event<'a> {
    /// That a transaction was, or a packet.
    Nothing,
    /// Something of others.
    Foreign,
    /// Our table, or a part of it other than elements.
    Table,
    /// Elements of this set of ours.
    Elements(&'a str, ElementEvent<'a>),
}

pub(super) enum ElementEvent<'a> {
    Added(Attributes<'a>),
    Deleted(Attributes<'a>),
}

pub(super) fn decode_event<'a>(message: &Message<'a>) -> Event<'a> {
    let mut fields = message.fields();
    let family = fields.array::<4>().map(|[family, ..]| family);
    let what = message.kind & 0xff;
    if message.kind >> 8 != NFNL_SUBSYS_NFTABLES || matches!(what, NFT_MSG_NEWGEN | NFT_MSG_TRACE) {
        return Event::Nothing;
    }
    if family != Some(NFPROTO_INET) {
        return Event::Foreign;
    }
    let (mut ours, mut set, mut elements) = (false, "", Attributes(&[]));
    for attribute in fields.attributes() {
        match attribute.kind {
            NFTA_TABLE => ours = attribute.text() == Some(ALIAS),
            NFTA_SET_ELEM_LIST_SET => set = attribute.text().unwrap_or_default(),
            NFTA_SET_ELEM_LIST_ELEMENTS => elements = attribute.nest(),
            _ => {}
        }
    }
    match what {
        _ if !ours => Event::Foreign,
        NFT_MSG_NEWSETELEM => Event::Elements(set, ElementEvent::Added(elements)),
        NFT_MSG_DELSETELEM => Event::Elements(set, ElementEvent::Deleted(elements)),
        _ => Event::Table,
    }
}

/// How many transactions the namespace has seen.
pub(super) fn generation(socket: &mut Socket) -> Result<u32, Failure> {
    let generation = socket.get(
        kind(NFT_MSG_GETGEN),
        &header(NFPROTO_UNSPEC, 0),
        |_| {},
        |message| {
            let mut fields = message.fields();
            fields.u32();
            fields.attributes().find(|attribute| attribute.kind == NFTA_GEN_ID)?.be32()
        },
    )?;
    Ok(generation.unwrap_or_default())
}

pub(super) fn table_exists(socket: &mut Socket) -> Result<bool, Failure> {
    let put = |writer: &mut Writer| writer.text(NFTA_TABLE, ALIAS);
    match socket.get(kind(NFT_MSG_GETTABLE), &header(NFPROTO_INET, 0), put, |_| Some(())) {
        Err(failure) if failure.errno == Errno::ENOENT => Ok(false),
        result => result.map(|found| found.is_some()),
    }
}

/// Elements of a set; none where one is of a form that Corax never makes.
pub(super) fn dump_elements(socket: &mut Socket, set: &str) -> Result<Option<Vec<Raw>>, Failure> {
    socket.dump(
        kind(NFT_MSG_GETSETELEM),
        &header(NFPROTO_INET, 0),
        |writer| {
            writer.text(NFTA_TABLE, ALIAS);
            writer.text(NFTA_SET_ELEM_LIST_SET, set);
        },
        || Some(Vec::new()),
        |into, message| {
            let mut fields = message.fields();
            fields.u32();
            for attribute in
                fields.attributes().filter(|attribute| attribute.kind == NFTA_SET_ELEM_LIST_ELEMENTS)
            {
                let known = into.as_mut().and_then(|into| elements::decode(attribute.nest(), into));
                if known.is_none() {
                    *into = None;
                }
            }
        },
    )
}

/// Named counters of the table: packets and bytes.
pub(super) fn dump_counters(socket: &mut Socket) -> Result<Vec<(String, u64, u64)>, Failure> {
    socket.dump(
        kind(NFT_MSG_GETOBJ),
        &header(NFPROTO_INET, 0),
        |writer| {
            writer.text(NFTA_TABLE, ALIAS);
            writer.be32(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER);
        },
        Vec::new,
        |into, message| {
            let mut fields = message.fields();
            fields.u32();
            let (mut table, mut name, mut packets, mut bytes) = (None, None, 0, 0);
            for attribute in fields.attributes() {
                match attribute.kind {
                    NFTA_TABLE => table = attribute.text(),
                    NFTA_OBJ_NAME => name = attribute.text(),
                    NFTA_OBJ_DATA => {
                        for value in attribute.nest() {
                            match value.kind {
                                NFTA_COUNTER_BYTES => bytes = value.be64().unwrap_or_default(),
                                NFTA_COUNTER_PACKETS => packets = value.be64().unwrap_or_default(),
                                _ => {}
                            }
                        }
                    }
                    _ => {}
                }
            }
            if let (Some(ALIAS), Some(name)) = (table, name) {
                into.push((name.to_owned(), packets, bytes));
            }
        },
    )
}

/// One transaction.
pub(in crate::kernel) struct Batch {
    writer: Writer,
    sequence: u32,
}

impl Batch {
    /// Fills a transaction, sends it, and waits for its outcome.
    pub(in crate::kernel) fn send(socket: &mut Socket, fill: impl FnOnce(&mut Self)) -> Result<(), Failure> {
        let first = socket.next_sequence();
        let mut writer = Writer::default();
        writer.message(NFNL_MSG_BATCH_BEGIN, 0, first, &header(NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES), |_| {});
        // All within have one number, so that one acknowledgement ends it.
        let last = socket.next_sequence();
        let mut batch = Self { writer, sequence: last };
        fill(&mut batch);
        let mut writer = batch.writer;
        writer.acknowledge_last();
        let end = socket.next_sequence();
        writer.message(NFNL_MSG_BATCH_END, 0, end, &header(NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES), |_| {});
        socket.send(&writer)?;
        loop {
            for message in Messages(socket.receive()?) {
                // A transaction that is refused as a whole is so by the number of its begin.
                if message.kind == NLMSG_ERROR && (message.sequence == first || message.sequence == last) {
                    return failure(&message).map_or(Ok(()), Err);
                }
            }
        }
    }

    pub(super) fn add(&mut self, set: &str, interval: bool, prefixes: &[Prefix]) {
        self.elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE, set, interval, prefixes);
    }

    pub(super) fn delete(&mut self, set: &str, interval: bool, prefixes: &[Prefix]) {
        self.elements(NFT_MSG_DELSETELEM, 0, set, interval, prefixes);
    }

    pub(super) fn delete_table(&mut self) {
        self.message(NFT_MSG_DELTABLE, NFPROTO_INET, |writer| writer.text(NFTA_TABLE, ALIAS));
    }

    /// Any other message.
    pub(in crate::kernel) fn message(&mut self, message: u16, family: u8, fill: impl FnOnce(&mut Writer)) {
        self.writer.message(kind(message), 0, self.sequence, &header(family, 0), fill);
    }

    fn elements(&mut self, message: u16, flags: u16, set: &str, interval: bool, prefixes: &[Prefix]) {
        for chunk in prefixes.chunks(CHUNK) {
            self.writer.message(kind(message), flags, self.sequence, &header(NFPROTO_INET, 0), |writer| {
                writer.text(NFTA_TABLE, ALIAS);
                writer.text(NFTA_SET_ELEM_LIST_SET, set);
                writer.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |writer| {
                    for prefix in chunk {
                        let (first, after) = bounds(prefix);
                        put_element(writer, first, false);
                        if let Some(after) = after.filter(|_| interval) {
                            put_element(writer, after, true);
                        }
                    }
                });
            });
        }
    }
}

fn put_element(writer: &mut Writer, address: std::net::IpAddr, end: bool) {
    writer.nest(NFTA_LIST_ELEM, |writer| {
        if end {
            writer.be32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
        }
        writer.nest(NFTA_SET_ELEM_KEY, |writer| writer.address(NFTA_DATA_VALUE, address));
    });
}
