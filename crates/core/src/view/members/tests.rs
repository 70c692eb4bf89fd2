use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::mac::Mac;
use crate::prefix::Prefix;

fn member(number: u8, bits: u8, subnets: u8) -> Member {
    let prefix = |family: u8| match family {
        0 => Prefix::new(IpAddr::from([10, 0, 200 - number, 0]), 24),
        _ => Prefix::new(IpAddr::from([0xfd00, u16::from(number), 0, 0, 0, 0, 0, 0]), 32),
    };
    Member {
        node: format!("n{number}").parse().unwrap(),
        underlay: IpAddr::from([192, 168, number ^ 5, number]),
        // Those of few bits share a next hop, at either end of the range.
        mac: Mac([2, number, 0xff, 0xff, 0xff, 0xfc | bits]),
        subnets: (0..2).filter(|family| subnets >> family & 1 == 1).map(prefix).collect(),
    }
}

proptest! {
    #[test]
    fn members_are_the_same_in_whatever_order_they_come(
        given in proptest::collection::vec((0u8..4, 0u8..4), 0..20), turn in 0usize..20,
    ) {
        let all: Vec<Member> = (0..).zip(&given).map(|(number, (bits, subnets))| member(number, *bits, *subnets)).collect();
        let mut turned = all.clone();
        turned.rotate_left(turn % all.len().max(1));
        let members = Members::from(all);
        prop_assert_eq!(&members, &Members::from(turned));
        prop_assert!(members.is_sorted_by_key(|member| member.node.clone()));
        prop_assert!(members.addresses().is_sorted());
        prop_assert!(members.by_prefix().is_sorted_by_key(|(member, _)| member.subnets.first().copied()));
        prop_assert_eq!(members.by_prefix().count(), given.len());
        let hops: BTreeSet<Ipv4Addr> = members.by_prefix().map(|(_, hop)| hop).collect();
        prop_assert_eq!(hops.len(), given.len(), "no two share one");
        let json = serde_json::to_string(&members).unwrap();
        prop_assert_eq!(serde_json::from_str::<Members>(&json).unwrap(), members);
    }
}
