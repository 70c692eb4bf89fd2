use proptest::prelude::*;

use super::*;

/// Few bits, so that prefixes overlap.
fn prefix() -> impl Strategy<Value = Prefix> {
    (any::<bool>(), 0u8..8, 0u32..256).prop_map(|(v6, length, bits)| {
        let address: IpAddr = if v6 {
            Ipv6Addr::from_bits(u128::from(bits) << 120).into()
        } else {
            Ipv4Addr::from_bits(bits << 24).into()
        };
        Prefix::new(address, length).unwrap()
    })
}

fn holds(prefix: &Prefix, address: IpAddr) -> bool {
    prefix.address.is_ipv4() == address.is_ipv4() && Prefix::new(address, prefix.length) == Some(*prefix)
}

proptest! {
    #[test]
    fn the_longest_prefix_wins(
        operations in prop::collection::vec((any::<bool>(), prefix(), any::<u8>()), 0..40),
        look in prop::collection::vec(prefix(), 20),
    ) {
        let mut map = PrefixMap::default();
        let mut plain = std::collections::BTreeMap::new();
        for (insert, prefix, value) in operations {
            if insert {
                prop_assert_eq!(map.insert(prefix, value), plain.insert(prefix, value));
            } else {
                prop_assert_eq!(map.remove(prefix), plain.remove(&prefix));
            }
        }
        for Prefix { address, .. } in look {
            let best = plain.iter().filter(|(have, _)| holds(have, address)).max_by_key(|(have, _)| have.length);
            prop_assert_eq!(map.longest(address), best.map(|(_, value)| value));
        }
    }

    #[test]
    fn text_comes_back(prefix in prefix()) {
        prop_assert_eq!(Prefix::parse(&prefix.to_string()), Some(prefix));
    }
}

#[test]
fn host_bits_are_cleared_and_nonsense_is_refused() {
    assert_eq!(Prefix::parse("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
    assert_eq!(Prefix::parse("fd00::1").unwrap().to_string(), "fd00::1/128");
    assert_eq!(Prefix::parse("0.0.0.0/0").unwrap().to_string(), "0.0.0.0/0");
    for text in ["", "10.0.0.0/33", "fd00::/129", "10.0.0.0/", "10.0.0/8", "10.0.0.0/-1"] {
        assert_eq!(Prefix::parse(text), None, "{text}");
    }
}
