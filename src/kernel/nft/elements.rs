//! Elements of sets. An interval set holds the first address of each interval, and the first one after it with a flag.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use corax_core::object::Set;
use corax_core::prefix::{Family, Prefix};

use crate::kernel::wire::Attributes;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
const NFTA_DATA_VALUE: u16 = 1;
pub(super) const NFT_SET_ELEM_INTERVAL_END: u32 = 1;

/// One element as the kernel has it. Ends sort before starts, as one interval's end may be the next one's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Raw {
    pub(super) key: u128,
    pub(super) end: bool,
}

/// Reads elements; none where one is of a form that Corax never makes.
pub(super) fn decode(elements: Attributes<'_>, into: &mut Vec<Raw>) -> Option<()> {
    for element in elements.filter(|attribute| attribute.kind == NFTA_LIST_ELEM) {
        let (mut key, mut flags) = (None, 0);
        for attribute in element.nest() {
            match attribute.kind {
                NFTA_SET_ELEM_KEY => {
                    let value = attribute.nest().find(|attribute| attribute.kind == NFTA_DATA_VALUE)?;
                    key = value.be32().map(u128::from).or_else(|| value.be128());
                }
                NFTA_SET_ELEM_FLAGS => flags = attribute.be32()?,
                NFTA_SET_ELEM_KEY_END => return None,
                _ => {}
            }
        }
        // Any other flag stands for all that is in no other element.
        (flags & !NFT_SET_ELEM_INTERVAL_END == 0).then_some(())?;
        into.push(Raw { key: key?, end: flags != 0 });
    }
    Some(())
}

/// The prefixes that elements of a set make; none where they make none. `whole` says that these are all.
pub(super) fn paired(set: Set, mut raw: Vec<Raw>, whole: bool) -> Option<Vec<Prefix>> {
    if !set.is_interval() {
        let host = |raw: Raw| address(set.family, raw.key).filter(|_| !raw.end).map(Prefix::host);
        return raw.into_iter().map(host).collect();
    }
    raw.sort_unstable_by_key(|raw| (raw.key, !raw.end));
    let mut prefixes = Vec::with_capacity(raw.len() / 2);
    let mut open = None;
    for Raw { key, end } in raw {
        match (open.take(), end) {
            (Some(start), true) => prefixes.push(between(set.family, start, Some(key))?),
            (None, false) => open = Some(key),
            // nft closes the space before the first interval.
            (None, true) if whole || key == 0 => {}
            _ => return None,
        }
    }
    if let Some(start) = open {
        // An interval up to the last address has no end.
        whole.then_some(())?;
        prefixes.push(between(set.family, start, None)?);
    }
    Some(prefixes)
}

fn address(family: Family, key: u128) -> Option<IpAddr> {
    Some(match family {
        Family::V4 => Ipv4Addr::from(u32::try_from(key).ok()?).into(),
        Family::V6 => Ipv6Addr::from(key).into(),
    })
}

/// The prefix from `start` to before `end`, if that is one.
fn between(family: Family, start: u128, end: Option<u128>) -> Option<Prefix> {
    let bits = u32::from(family.bits());
    let last = match end {
        Some(end) => end.checked_sub(1)?,
        None => u128::MAX >> (128 - bits),
    };
    let span = last.checked_sub(start)?;
    // The host bits: all one in `span`, all zero in `start`.
    let host = 128 - span.leading_zeros();
    let whole = span == u128::MAX || (span + 1).is_power_of_two();
    (whole && start & span == 0).then_some(())?;
    let length = u8::try_from(bits.checked_sub(host)?).ok()?;
    Some(Prefix::new(address(family, start)?, length))
}

/// The bytes of a prefix's first address, and of the one after its last where there is one.
pub(super) fn bounds(prefix: &Prefix) -> (IpAddr, Option<IpAddr>) {
    let after = match prefix.last() {
        IpAddr::V4(last) => u32::from(last).checked_add(1).map(|next| Ipv4Addr::from(next).into()),
        IpAddr::V6(last) => u128::from(last).checked_add(1).map(|next| Ipv6Addr::from(next).into()),
    };
    (prefix.first(), after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use corax_core::object::SetRole;

    fn raw(prefix: &Prefix) -> Vec<Raw> {
        let key = |address| match address {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address),
        };
        let (start, end) = bounds(prefix);
        let end = end.map(|end| Raw { key: key(end), end: true });
        [Raw { key: key(start), end: false }].into_iter().chain(end).collect()
    }

    #[test]
    fn every_prefix_is_its_own_interval() {
        for text in [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.1.2.3/32",
            "255.255.255.255/32",
            "240.0.0.0/4",
            "::/0",
            "fd00::/8",
            "ff00::/8",
            "::1/128",
        ] {
            let prefix: Prefix = text.parse().unwrap();
            let set = Set { role: SetRole::Own, family: prefix.family() };
            assert_eq!(paired(set, raw(&prefix), true), Some(vec![prefix]), "{text}");
        }
    }

    #[test]
    fn adjacent_prefixes_stay_two_and_a_range_is_none() {
        let set = Set { role: SetRole::Own, family: Family::V4 };
        let (left, right): (Prefix, Prefix) =
            ("10.0.0.0/24".parse().unwrap(), "10.0.1.0/24".parse().unwrap());
        let mut both = raw(&right);
        both.extend(raw(&left));
        both.push(Raw { key: 0, end: true });
        assert_eq!(paired(set, both, true), Some(vec![left, right]));
        let range = vec![Raw { key: 5, end: false }, Raw { key: 8, end: true }];
        assert_eq!(paired(set, range, true), None);
        assert_eq!(paired(set, vec![Raw { key: 5, end: true }], false), None);
    }
}
