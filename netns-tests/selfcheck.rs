//! The ground itself: what the other tests stand on.

use std::time::Duration;

use crate::lab::{Lab, Plan};
use crate::traffic::{Flow, fetch};

#[test]
fn a_domain_without_corax_reaches_itself_and_nobody_else() {
    let mut lab = Lab::build(&[Plan::public("cloud", 2), Plan::nat("site", 1)]);
    lab.serve();
    let (one, two, site) = (lab.node("cloud-1"), lab.node("cloud-2"), lab.node("site-1"));
    for (own, other) in [(one.pod4(), two.pod4()), (one.pod6(), two.pod6())] {
        assert_eq!(fetch(&one.pod, (other, 8080).into(), 1_000_000), Ok(own));
    }
    assert!(fetch(&one.pod, (site.pod4(), 8080).into(), 1).is_err());
    let flow = Flow::start(&one.pod, two.pod4(), Duration::from_millis(5));
    std::thread::sleep(Duration::from_millis(500));
    flow.lost_nothing();
    // The underlay is what it should be: the site reaches the cloud's gateway by its public address.
    site.space.run("ping -n -c 1 -W 5 198.18.0.2");
}

#[test]
fn whoever_is_orphaned_inside_is_buried() {
    let lab = Lab::build(&[Plan::public("cloud", 1)]);
    let space = &lab.node("cloud-1").space;
    space.sh("setsid sleep 0.05 & disown");
    crate::await_::eventually("no zombie", Duration::from_secs(5), || {
        let left = space.run("ps -e -o stat=,args=");
        if left.lines().any(|line| line.contains("sleep") || line.contains("defunct")) {
            Err(left)
        } else {
            Ok(())
        }
    });
}
