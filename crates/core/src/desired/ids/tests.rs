use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::mac::Mac;
use crate::view::Subnets;

fn vtep(path: u32) -> Vtep {
    Vtep {
        gateway: false,
        mac: Mac([2, 0, 0, 0, 0, 0]),
        underlay: IpAddr::from([10, 0, 0, 1]),
        next_hop: Ipv4Addr::from(0xf000_0000 | path),
        subnets: Subnets::new(),
    }
}

proptest! {
    #[test]
    fn no_two_paths_have_one_number_and_none_has_somebody_elses(
        foreign in proptest::collection::btree_set((0u32..4, 0u32..4), 0..12),
    ) {
        let id = |(high, path): &(u32, u32)| NexthopId(NexthopId::FIRST | high << 28 | path);
        let foreign: BTreeSet<NexthopId> = foreign.iter().map(id).collect();
        let ids = Ids::beside(&foreign);
        let of = |family| (1..4).map(|path| ids.member(&vtep(path), family)).chain([ids.gateway(family)]).collect::<Vec<_>>();
        let all: Vec<NexthopId> = Family::ALL.into_iter().flat_map(of).collect();
        prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        prop_assert!(all.iter().all(|id| id.is_ours() && !foreign.contains(id)));
    }

    #[test]
    fn the_last_number_is_followed_by_the_first(more in 0u32..3) {
        let last = NexthopId::FIRST | PATH;
        let foreign = [NexthopId(last), NexthopId(last | STAND_IN), NexthopId(NexthopId::FIRST | STAND_IN | more)].into();
        let id = Ids::beside(&foreign).member(&vtep(PATH), Family::V4);
        prop_assert!(id.is_ours() && !foreign.contains(&id));
    }
}
