use proptest::prelude::*;

use super::*;

#[test]
fn host_bits_are_cleared() {
    assert_eq!("10.10.4.7/24".parse::<Prefix>().unwrap().to_string(), "10.10.4.0/24");
    assert_eq!("fd00::1/64".parse::<Prefix>().unwrap().to_string(), "fd00::/64");
    assert_eq!("10.0.0.1".parse::<Prefix>().unwrap().to_string(), "10.0.0.1/32");
}

#[test]
fn malformed_prefixes_are_refused_with_their_text() {
    for text in ["10.0.0.0/33", "10.0.0/8", "fd00::/129", "10.0.0.0/", "10.0.0.0/+8", "pods", "10.0.0.0/8/8"]
    {
        assert_eq!(text.parse::<Prefix>(), Err(PrefixError::Malformed(text.to_owned())), "{text}");
    }
    assert_eq!(" ".parse::<Prefix>(), Err(PrefixError::Empty));
}

#[test]
fn the_pod_side_address_is_flannels_of_ipv4_and_no_anycast_of_ipv6() {
    assert_eq!("10.10.4.0/24".parse::<Prefix>().unwrap().pod_side().to_string(), "10.10.4.0");
    assert_eq!(
        "fd00:4::/64".parse::<Prefix>().unwrap().pod_side().to_string(),
        "fd00:4::ffff:ffff:ffff:ffff"
    );
}

/// Small prefixes, so that overlaps happen.
fn small() -> impl Strategy<Value = Prefix> {
    (0u8..16, 28u8..=32).prop_map(|(last, length)| Prefix::new(IpAddr::from([10, 0, 0, last]), length))
}

proptest! {
    #[test]
    fn disjoint_prefixes_refuse_exactly_what_overlaps(prefixes in prop::collection::vec(small(), 0..12)) {
        let mut set = DisjointPrefixes::new();
        let mut plain: Vec<Prefix> = Vec::new();
        for prefix in prefixes {
            let refused = plain.iter().any(|held| held.overlaps(&prefix));
            prop_assert_eq!(set.insert(prefix, ()).is_err(), refused);
            if !refused {
                plain.push(prefix);
            }
        }
        for last in 0..16 {
            let address = IpAddr::from([10, 0, 0, last]);
            let expected = plain.iter().find(|held| held.contains(address));
            prop_assert_eq!(set.lookup(address).map(|(held, ())| held), expected);
        }
    }

    #[test]
    fn a_prefix_reads_back_as_it_prints(prefix in small()) {
        prop_assert_eq!(prefix.to_string().parse::<Prefix>().unwrap(), prefix);
    }
}

#[test]
fn a_prefix_without_some_of_it_is_the_rest() {
    let without = |prefix: &str, holes: &[&str]| {
        let holes: Vec<Prefix> = holes.iter().map(|hole| hole.parse().unwrap()).collect();
        let left = prefix.parse::<Prefix>().unwrap().without(&holes);
        left.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(without("10.0.0.0/30", &["10.0.0.2"]), ["10.0.0.0/31", "10.0.0.3/32"]);
    assert_eq!(without("10.0.0.0/30", &["10.0.0.2", "10.0.0.0/31"]), ["10.0.0.3/32"]);
    assert_eq!(without("10.0.0.0/30", &["10.0.1.0/24"]), ["10.0.0.0/30"]);
    assert_eq!(without("10.0.0.0/30", &["10.0.0.0/8"]), Vec::<String>::new());
    assert_eq!(without("fd00::/64", &["fd00::1"]).len(), 64);
}
