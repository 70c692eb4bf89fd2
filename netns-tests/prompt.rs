//! Changes of the files are picked up at once, and not by the look that the agent takes at them from time to time.

use std::time::{Duration, Instant};

use crate::agent::SOON;
use crate::await_::eventually;
use crate::lab::{Lab, Plan};
use crate::manifests::paper;

/// The agent looks by itself 30 s after it last did, so that what is there this soon after another change was heard of.
const AT_ONCE: Duration = Duration::from_secs(5);

#[test]
fn a_file_that_is_written_replaced_or_removed_is_in_the_kernel_at_once() {
    let lab = Lab::start(&[Plan::public("cloud", 1)]);
    let space = &lab.node("cloud-1").space;
    let source = lab.source();
    let steered = |number: u8| {
        let routes = space.sh("ip route show table 9028 2>/dev/null || true");
        routes.lines().any(|line| line.starts_with(&format!("unreachable 10.150.{number}.0/24")))
    };
    let others = |number: u8| paper("other", &[format!("10.150.{number}.0/24")]).to_string();
    let becomes = |what: &str, limit: Duration, number: u8, wanted: bool| {
        let begun = Instant::now();
        eventually(what, limit, || if steered(number) == wanted { Ok(()) } else { Err("not yet") });
        eprintln!("{what}: {} ms", begun.elapsed().as_millis());
    };
    // From when on it is known when the agent looked.
    lab.write_file("other.json", &others(0));
    becomes("the first", SOON, 0, true);
    for round in 0..2 {
        let begun = Instant::now();
        std::fs::write(source.join("other.json"), others(3 * round + 1)).expect("it can be written");
        becomes("one written in place", AT_ONCE, 3 * round + 1, true);
        lab.write_file("other.json", &others(3 * round + 2));
        becomes("one put in its place", AT_ONCE, 3 * round + 2, true);
        std::fs::remove_file(source.join("other.json")).expect("it is there");
        // Once the directory has been quiet for two seconds.
        becomes("one removed", AT_ONCE, 3 * round + 2, false);
        std::fs::create_dir_all(source.join("..").join("beside-it")).expect("it can be made");
        let beside = source.join("..").join("beside-it").join("other.json");
        std::fs::write(&beside, others(3 * round + 3)).expect("it can be written");
        std::fs::rename(&beside, source.join("other.json")).expect("on the same filesystem");
        becomes("one moved there", AT_ONCE, 3 * round + 3, true);
        assert!(begun.elapsed() < Duration::from_secs(25), "the agent may have looked by itself");
    }
}
