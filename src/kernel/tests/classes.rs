//! What is applied is what iproute2 and nft show; what they make is what is observed.

use corax_core::change::Change;
use corax_core::object::Device;
use corax_core::observed::NftTable;

use super::support::*;
use crate::kernel::Kernel;

#[test]
fn every_class_is_applied_and_seen_by_its_echo() {
    in_namespace(|| {
        let mut kernel = Kernel::open().unwrap();
        assert_eq!(*kernel.observed(), Default::default());
        let changes = every_class();
        apply(&mut kernel, &changes);
        let observed = kernel.observed().clone();
        assert_mirror_is_fresh(&mut kernel, "applying every class");
        assert_same(&observed, kernel.observed(), "draining");
        assert_eq!(observed.links.get(&Device::Overlay), Some(&overlay(mac(1))));
        assert_eq!(observed.nft, NftTable::Intact(ruleset().fingerprint()));
        assert_eq!((observed.fdb.len(), observed.neighbours.len(), observed.nexthops.len()), (2, 4, 4));
        assert_eq!((observed.routes.len(), observed.rules.len(), observed.elements.len()), (8, 8, 6));
        assert_eq!(observed.addresses.len(), 4);
        assert!(!kernel.drain().ours);
    });
}

#[test]
fn the_printed_lines_make_the_same_as_the_changes() {
    let changes = every_class();
    let applied = in_namespace({
        let changes = changes.clone();
        move || {
            let mut kernel = Kernel::open().unwrap();
            apply(&mut kernel, &changes);
            kernel.observed().clone()
        }
    });
    let by_hand = in_namespace(move || {
        let mut kernel = Kernel::open().unwrap();
        for change in &changes {
            match change {
                // `sysctl` is not installed everywhere, and nft reads a file of lines.
                Change::PutSysctl(device, sysctl, value) => {
                    sh(&format!("echo {value} > /proc/sys/{}", sysctl.path(*device)));
                }
                Change::ReplaceTable(..) => {
                    sh(&format!("nft -f - <<'END'\n{change}\nEND"));
                }
                Change::ChangeElements { .. } => {
                    let lines = change.to_string().replace("{ ", "'{ ").replace(" }", " }'");
                    sh(&lines);
                }
                // nft's address generation mode is Corax's own: without it the kernel adds one.
                Change::AddLink(..) => {
                    sh(&change
                        .to_string()
                        .replace("\nip link set", "\nip link set raven0 addrgenmode none\nip link set"));
                }
                _ => {
                    sh(&change.to_string());
                }
            }
        }
        kernel.drain();
        assert_eq!(kernel.observed().nft, NftTable::Altered, "nobody sealed it");
        kernel.observed_mut().nft = NftTable::Intact(ruleset().fingerprint());
        kernel.observed().clone()
    });
    assert_same(&applied, &by_hand, "the printed lines");
}
