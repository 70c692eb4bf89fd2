//! Links (`linux/if_link.h`).

use std::net::{IpAddr, Ipv4Addr};

use corax_core::mac::Mac;
use corax_core::object::{ALIAS, Device, Link, LinkKind, VNI, VXLAN_PORT, Vxlan};
use corax_core::prefix::Family;

use super::wire::{Attribute, Attributes, Message, Writer};

pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_GETLINK: u16 = 18;
pub(super) const RTM_SETLINK: u16 = 19;

const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_GROUP: u16 = 2;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_AGEING: u16 = 8;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_GROUP6: u16 = 16;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_TUN_TYPE: u16 = 3;
const IFF_TUN: u8 = 1;
const AF_INET6: u16 = 10;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

/// Any link of the node, as far as Corax looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: Box<str>,
    pub(super) mtu: u32,
    pub(super) up: bool,
    /// It has the alias of Corax's devices.
    pub(super) marked: bool,
}

/// What a link message tells.
pub(super) struct Decoded {
    pub(super) index: u32,
    pub(super) interface: Interface,
    /// Where the name is one of ours.
    pub(super) ours: Option<(Device, Link)>,
    /// The IPv4 address that a VXLAN device sends to where its forwarding database does not say; Raven sets one.
    pub(super) remote: Option<IpAddr>,
}

/// A request's header (`ifinfomsg`), by index, or by name where that is zero.
pub(super) fn header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let [a, b, c, d] = index.to_ne_bytes();
    let [e, f, g, h] = flags.to_ne_bytes();
    let [i, j, k, l] = change.to_ne_bytes();
    [0, 0, 0, 0, a, b, c, d, e, f, g, h, i, j, k, l]
}

/// Leaves the counters out of a dump.
pub(super) fn without_counters(writer: &mut Writer) {
    writer.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
}

/// Packets that a link got and that were for another hardware address; the 25th of its counters (`rtnl_link_stats64`).
pub(super) fn decode_otherhost(message: &Message<'_>) -> Option<u64> {
    const AT: usize = 24 * size_of::<u64>();
    decode_index(message)?;
    let mut fields = message.fields();
    fields.array::<16>()?;
    let counters = fields.attributes().find(|attribute| attribute.kind == IFLA_STATS64)?.value;
    counters.get(AT..)?.first_chunk().copied().map(u64::from_ne_bytes)
}

/// The index of a link that goes away.
pub(super) fn decode_index(message: &Message<'_>) -> Option<u32> {
    let mut fields = message.fields();
    // Another family is about something else: that a port leaves its bridge, say.
    (fields.u32()?.to_ne_bytes().first() == Some(&0)).then_some(())?;
    fields.u32()
}

pub(super) fn decode(message: &Message<'_>) -> Option<Decoded> {
    let index = decode_index(message)?;
    let mut fields = message.fields();
    fields.array::<8>()?;
    let up = fields.u32()? & IFF_UP != 0;
    fields.u32()?;
    let (mut name, mut mtu, mut mac, mut alias, mut info) = (None, None, None, None, None);
    for attribute in fields.attributes() {
        match attribute.kind {
            IFLA_ADDRESS => mac = attribute.mac(),
            IFLA_IFNAME => name = attribute.text(),
            IFLA_MTU => mtu = attribute.u32(),
            IFLA_IFALIAS => alias = attribute.text(),
            IFLA_LINKINFO => info = Some(attribute.nest()),
            _ => {}
        }
    }
    // A wireless event carries no more than the name.
    let (name, mtu) = (name?, mtu?);
    let remote = info.and_then(decode_remote);
    let marked = alias == Some(ALIAS);
    let ours = Device::from_name(name).map(|device| {
        let kind = decode_kind(info);
        // A tunnel's has no meaning; the kernel shows none, or zeros.
        let mac = mac.filter(|mac| *mac != Mac([0; 6]));
        (device, Link { kind, mac, mtu, up, owned: marked })
    });
    Some(Decoded { index, interface: Interface { name: name.into(), mtu, up, marked }, ours, remote })
}

fn decode_kind(info: Option<Attributes<'_>>) -> LinkKind {
    let (mut kind, mut data) = ("unknown", Attributes(&[]));
    for attribute in info.into_iter().flatten() {
        match attribute.kind {
            IFLA_INFO_KIND => kind = attribute.text().unwrap_or(kind),
            IFLA_INFO_DATA => data = attribute.nest(),
            _ => {}
        }
    }
    match kind {
        "vxlan" => LinkKind::Vxlan(decode_vxlan(data)),
        "wireguard" => LinkKind::WireGuard,
        "tun" => {
            let mut data = data;
            let tun =
                data.any(|attribute| attribute.kind == IFLA_TUN_TYPE && attribute.u8() == Some(IFF_TUN));
            if tun { LinkKind::Tun } else { LinkKind::Other("tap".into()) }
        }
        other => LinkKind::Other(other.into()),
    }
}

fn decode_remote(mut info: Attributes<'_>) -> Option<IpAddr> {
    let data = info.find(|attribute| attribute.kind == IFLA_INFO_DATA)?;
    data.nest().find(|attribute| attribute.kind == IFLA_VXLAN_GROUP)?.address()
}

fn decode_vxlan(data: Attributes<'_>) -> Vxlan {
    let mut vxlan = Vxlan { vni: 0, port: 0, learning: false, ageing: 0, underlay: Family::V4, local: None };
    for attribute in data {
        match attribute.kind {
            IFLA_VXLAN_ID => vxlan.vni = attribute.u32().unwrap_or_default(),
            IFLA_VXLAN_PORT => vxlan.port = attribute.be16().unwrap_or_default(),
            IFLA_VXLAN_LEARNING => vxlan.learning = attribute.u8() != Some(0),
            IFLA_VXLAN_AGEING => vxlan.ageing = attribute.u32().unwrap_or_default(),
            IFLA_VXLAN_GROUP6 => vxlan.underlay = Family::V6,
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => {
                vxlan.local = Attribute::address(&attribute);
                vxlan.underlay = vxlan.local.map_or(Family::V4, Family::of);
            }
            _ => {}
        }
    }
    vxlan
}

/// Whether a link without our alias is one that Raven left, or that a crash kept from its alias.
pub(super) fn is_taken_over(device: Device, link: &Link) -> bool {
    match (&link.kind, device) {
        (LinkKind::Vxlan(vxlan), Device::Overlay) => vxlan.vni == VNI && vxlan.port == VXLAN_PORT,
        (LinkKind::WireGuard, Device::WireGuard(_)) => true,
        _ => false,
    }
}

pub(super) fn put_name(writer: &mut Writer, device: Device) {
    writer.text(IFLA_IFNAME, &device.to_string());
}

/// What a new link is made with; false for a kind that is not made here.
pub(super) fn put_new(writer: &mut Writer, device: Device, link: &Link) {
    put_name(writer, device);
    if let Some(mac) = link.mac {
        writer.attribute(IFLA_ADDRESS, &mac.0);
    }
    writer.u32(IFLA_MTU, link.mtu);
    match &link.kind {
        LinkKind::Vxlan(vxlan) => put_kind(writer, "vxlan", |writer| {
            writer.u32(IFLA_VXLAN_ID, vxlan.vni);
            writer.attribute(IFLA_VXLAN_PORT, &vxlan.port.to_be_bytes());
            match vxlan.local {
                Some(local) if local.is_ipv4() => writer.address(IFLA_VXLAN_LOCAL, local),
                Some(local) => writer.address(IFLA_VXLAN_LOCAL6, local),
                None => {}
            }
            put_changeable(writer, vxlan);
        }),
        LinkKind::WireGuard => put_kind(writer, "wireguard", |_| {}),
        LinkKind::Tun => put_kind(writer, "tun", |_| {}),
        LinkKind::Other(kind) => put_kind(writer, kind, |_| {}),
    }
}

/// A kind and what belongs to it.
pub(super) fn put_kind(writer: &mut Writer, kind: &str, data: impl FnOnce(&mut Writer)) {
    writer.nest(IFLA_LINKINFO, |writer| {
        writer.text(IFLA_INFO_KIND, kind);
        writer.nest(IFLA_INFO_DATA, data);
    });
}

/// A kind without its data, which the kernel refuses where it knows the kind.
pub(super) fn put_bare_kind(writer: &mut Writer, kind: &str) {
    writer.nest(IFLA_LINKINFO, |writer| writer.text(IFLA_INFO_KIND, kind));
}

/// What of a VXLAN device can be changed in place.
pub(super) fn put_changeable(writer: &mut Writer, vxlan: &Vxlan) {
    writer.u8(IFLA_VXLAN_LEARNING, u8::from(vxlan.learning));
    writer.u32(IFLA_VXLAN_AGEING, vxlan.ageing);
}

/// A VXLAN device sends nothing to where its forwarding database does not say.
pub(super) fn put_no_remote(writer: &mut Writer) {
    writer.address(IFLA_VXLAN_GROUP, Ipv4Addr::UNSPECIFIED.into());
}

/// Address, MTU and alias of a link that is there. An address that is set flushes all neighbours, be it the same.
pub(super) fn put_settings(writer: &mut Writer, held: Option<&Link>, link: &Link) {
    if let Some(mac) = link.mac.filter(|mac| held.and_then(|held| held.mac) != Some(*mac)) {
        writer.attribute(IFLA_ADDRESS, &mac.0);
    }
    writer.u32(IFLA_MTU, link.mtu);
    put_alias(writer);
}

pub(super) fn put_alias(writer: &mut Writer) {
    writer.attribute(IFLA_IFALIAS, ALIAS.as_bytes());
}

/// The kernel makes no link-local address of its own: Corax gives it.
pub(super) fn put_no_addresses(writer: &mut Writer) {
    writer.nest(IFLA_AF_SPEC, |writer| {
        writer.nest(AF_INET6, |writer| writer.u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE));
    });
}

/// The header that puts a link up.
pub(super) fn header_up(index: u32) -> [u8; 16] {
    header(index, IFF_UP, IFF_UP)
}
