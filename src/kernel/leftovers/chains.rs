//! Raven's chains in the tables of `iptables-nft`, which are nftables' (`linux/netfilter/nf_tables.h`).

use corax_core::raven::{Chain, Jump, Leftover, Tables};
use nix::errno::Errno;

use crate::kernel::error::Failure;
use crate::kernel::nft::wire::{
    Batch, NFPROTO_IPV4, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, header, kind,
};
use crate::kernel::socket::Socket;
use crate::kernel::wire::{Attribute, Attributes, Writer};

/// Of chains and rules alike.
const NFTA_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFTA_MATCH_NAME: u16 = 1;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_DATA_VALUE: u16 = 1;

/// The device that Raven's jump out of POSTROUTING names.
const TUNNEL: &[u8] = b"raven-wg0\0";

/// Raven's chains and the jumps to them.
pub(super) fn read(socket: &mut Socket) -> Result<Vec<Leftover>, Failure> {
    let mut found = Vec::new();
    for chain in Chain::ALL {
        if !exists(socket, chain)? {
            continue;
        }
        found.push(Leftover::Chain(Tables::Nft, chain));
        for from in chain.hooks() {
            let jump = |handle: u64| {
                Leftover::Jump(Jump { tables: Tables::Nft, to: chain, from, rule: handle.to_string().into() })
            };
            found.extend(jumps(socket, chain, from)?.into_iter().map(jump));
        }
    }
    Ok(found)
}

fn exists(socket: &mut Socket, chain: Chain) -> Result<bool, Failure> {
    let put = |writer: &mut Writer| {
        writer.text(NFTA_TABLE, chain.table());
        writer.text(NFTA_CHAIN_NAME, chain.name());
    };
    match socket.get(kind(NFT_MSG_GETCHAIN), &header(NFPROTO_IPV4, 0), put, |_| Some(())) {
        Err(failure) if failure.errno == Errno::ENOENT => Ok(false),
        result => result.map(|found| found.is_some()),
    }
}

/// Handles of the rules of a chain that are Raven's jump.
fn jumps(socket: &mut Socket, to: Chain, from: &str) -> Result<Vec<u64>, Failure> {
    let in_chain = |writer: &mut Writer| {
        writer.text(NFTA_TABLE, to.table());
        writer.text(NFTA_RULE_CHAIN, from);
    };
    let result =
        socket.dump(kind(NFT_MSG_GETRULE), &header(NFPROTO_IPV4, 0), in_chain, Vec::new, |into, message| {
            let mut fields = message.fields();
            fields.u32();
            let (mut handle, mut ravens) = (None, false);
            for attribute in fields.attributes() {
                match attribute.kind {
                    NFTA_RULE_HANDLE => handle = attribute.be64(),
                    NFTA_RULE_EXPRESSIONS => ravens = is_jump(attribute.nest(), to),
                    _ => {}
                }
            }
            into.extend(handle.filter(|_| ravens));
        });
    match result {
        Err(failure) if failure.errno == Errno::ENOENT => Ok(Vec::new()),
        result => result,
    }
}

/// Whether a rule does nothing but jump to a chain, and asks for nothing that Raven's does not: a rule of a user's own is
/// left alone.
fn is_jump(expressions: Attributes<'_>, to: Chain) -> bool {
    let mut jumps = false;
    for expression in expressions {
        let data = |path: &[u16]| inside(inside(Some(expression), &[NFTA_EXPR_DATA]), path);
        let known = match inside(Some(expression), &[NFTA_EXPR_NAME]).and_then(|name| name.text()) {
            Some("counter") => true,
            Some("match") => data(&[NFTA_MATCH_NAME]).and_then(|name| name.text()) == Some("comment"),
            Some("meta") => to == Chain::Postrouting,
            Some("cmp") => {
                data(&[NFTA_CMP_DATA, NFTA_DATA_VALUE]).is_some_and(|device| TUNNEL.starts_with(device.value))
            }
            Some("immediate") => {
                let chain = data(&[NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN]);
                jumps = chain.and_then(|chain| chain.text()) == Some(to.name());
                jumps
            }
            _ => false,
        };
        if !known {
            return false;
        }
    }
    jumps
}

/// The attribute that a path of nests leads to.
fn inside<'a>(at: Option<Attribute<'a>>, path: &[u16]) -> Option<Attribute<'a>> {
    path.iter().fold(at, |at, kind| at?.nest().find(|inner| inner.kind == *kind))
}

/// Takes a jump away; gone already will do.
pub(super) fn delete_jump(socket: &mut Socket, jump: &Jump) -> Result<(), Failure> {
    let Ok(handle) = jump.rule.parse::<u64>() else { return Ok(()) };
    gone(Batch::send(socket, |batch| {
        batch.message(NFT_MSG_DELRULE, NFPROTO_IPV4, |writer| {
            writer.text(NFTA_TABLE, jump.to.table());
            writer.text(NFTA_RULE_CHAIN, jump.from);
            writer.attribute(NFTA_RULE_HANDLE, &handle.to_be_bytes());
        });
    }))
}

/// Empties a chain and takes it away. Where somebody else jumps to it, it stays, and is not emptied.
pub(super) fn delete(socket: &mut Socket, chain: Chain) -> Result<(), Failure> {
    gone(Batch::send(socket, |batch| {
        batch.message(NFT_MSG_DELRULE, NFPROTO_IPV4, |writer| {
            writer.text(NFTA_TABLE, chain.table());
            writer.text(NFTA_RULE_CHAIN, chain.name());
        });
        batch.message(NFT_MSG_DELCHAIN, NFPROTO_IPV4, |writer| {
            writer.text(NFTA_TABLE, chain.table());
            writer.text(NFTA_CHAIN_NAME, chain.name());
        });
    }))
}

fn gone(result: Result<(), Failure>) -> Result<(), Failure> {
    result.or_else(|failure| if failure.errno == Errno::ENOENT { Ok(()) } else { Err(failure) })
}
