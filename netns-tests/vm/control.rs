//! Losses that are Corax's. A guest on a busy machine drops packets of whomever it likes, so what flows lose counts in those
//! seconds alone in which control flows, that Corax does not touch, lose nothing, and the kernel tells of no packet that it dropped
//! as it could not keep up; and there must be enough of such seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::figure;
use crate::lab::Lab;
use crate::space::Space;
use crate::traffic::{Count, Flow, Server};

/// What is judged as one.
const PIECE: Duration = Duration::from_secs(1);

/// Packets that a control has sent in a piece at least; a piece in which it sent fewer is nobody's.
const LEAST: usize = 8;

/// How far apart packets of a control are.
const STEP: Duration = Duration::from_millis(32);

/// What has not come back after so long is taken for lost as long as the flows go on.
const LATE: Duration = Duration::from_secs(3);

/// Flows, and their controls.
pub(crate) struct Traffic {
    began: Instant,
    flows: Vec<Flow>,
    controls: Vec<Flow>,
    overruns: Overruns,
    happened: Vec<(String, Range<Instant>)>,
    _servers: Vec<Server>,
    _spaces: Vec<Space>,
}

impl Traffic {
    /// Adds controls to flows of pods, in namespaces where nothing is of Corax: over the line that tunnels go by, and as many
    /// pairs of hosts as there are nodes.
    pub(crate) fn new(lab: &Lab, flows: Vec<Flow>) -> Self {
        let IpAddr::V4(router) = lab.public("site") else { panic!("the internet is IPv4") };
        let internet = IpAddr::from((u32::from(router) - 1).to_be_bytes());
        let mut traffic = Self::off_the_line(lab, flows);
        traffic._servers.push(Server::start(lab.internet()));
        traffic.controls.push(Flow::start(lab.router("site"), internet, STEP));
        Self { began: Instant::now(), ..traffic }
    }

    /// As [`Traffic::new`], for a line that loses packets by itself: no control goes over it.
    pub(crate) fn off_the_line(lab: &Lab, flows: Vec<Flow>) -> Self {
        let (mut servers, mut controls, mut spaces) = (Vec::new(), Vec::new(), Vec::new());
        for _ in lab.nodes() {
            let pair = pair();
            servers.push(Server::start(&pair[1]));
            controls.push(Flow::start(&pair[0], FAR, STEP));
            spaces.extend(pair);
        }
        Self::of(flows, controls, servers, spaces)
    }

    fn of(flows: Vec<Flow>, controls: Vec<Flow>, servers: Vec<Server>, spaces: Vec<Space>) -> Self {
        let overruns = Overruns::watch();
        let began = Instant::now();
        Self { began, flows, controls, overruns, happened: Vec::new(), _servers: servers, _spaces: spaces }
    }

    /// Does to somebody what the flows must not notice, with seconds before and behind it that can be judged.
    pub(crate) fn beside(&mut self, whom: &str, what: impl FnOnce()) {
        std::thread::sleep((self.began + 2 * PIECE).saturating_duration_since(Instant::now()));
        let from = Instant::now();
        what();
        self.happened.push((whom.to_owned(), from..Instant::now()));
        std::thread::sleep(2 * PIECE);
    }

    /// Packets of the flows until now, their answers included.
    pub(crate) fn sent(&self) -> usize {
        2 * self.flows.iter().map(Flow::sent).sum::<usize>()
    }

    /// What can be said by now, while the flows go on.
    pub(crate) fn so_far(&self) -> Judgement {
        let counts = |flows: &[Flow]| -> Vec<Count> { flows.iter().map(|flow| flow.count(LATE)).collect() };
        let witnesses = Witnesses { controls: counts(&self.controls), overruns: self.overruns.so_far() };
        judge(self.began, &witnesses, &counts(&self.flows), &self.happened)
    }

    /// Ends the flows.
    pub(crate) fn stop(self) -> Judgement {
        self.flows.iter().chain(&self.controls).for_each(Flow::end);
        let counts = |flows: Vec<Flow>| -> Vec<Count> { flows.into_iter().map(Flow::stop).collect() };
        let (flows, controls) = (counts(self.flows), counts(self.controls));
        judge(self.began, &Witnesses { controls, overruns: self.overruns.so_far() }, &flows, &self.happened)
    }

    /// Ends the flows: nothing was lost, and most of what happened did so before witnesses. How much of each was.
    #[track_caller]
    pub(crate) fn lost_nothing(self) -> BTreeMap<String, usize> {
        let sent = self.sent();
        let (all, judgement) = (self.happened.len(), self.stop());
        judgement.nothing_lost();
        judgement.figure(sent);
        assert!(
            2 * judgement.packets >= sent && 2 * judgement.happened.values().sum::<usize>() >= all,
            "this machine is too busy to tell: of {sent} packets and {all} happenings: {judgement:?}"
        );
        judgement.happened
    }

    /// Lets the flows go on for a while, and ends them: however much was lost, none of them was silent for so long.
    #[track_caller]
    pub(crate) fn is_never_silent_for(self, limit: Duration, time: Duration) {
        std::thread::sleep((self.began + time).saturating_duration_since(Instant::now()));
        let sent = self.sent();
        let judgement = self.stop();
        let (silence, whose) = &judgement.silence;
        assert!(*silence < limit, "{whose}: nothing came back for {silence:?}: {judgement:?}");
        judgement.figure(sent);
        assert!(2 * judgement.packets >= sent, "this machine is too busy to tell: of {sent}: {judgement:?}");
    }
}

/// The far one of a [`pair`].
const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

/// Two hosts and a line between them.
fn pair() -> [Space; 2] {
    let (near, far) = (Space::new("near"), Space::new("far"));
    near.ip(&format!(
        "link add line type veth peer name line netns {}
         address add 192.0.2.1/24 dev line
         link set line up",
        far.net().display()
    ));
    far.ip(&format!("address add {FAR}/24 dev line\nlink set line up"));
    [near, far]
}

/// Moments at which the kernel had dropped packets since the look before, since too many waited for a processor. It counts them for
/// all namespaces as one, by no device of anybody's.
struct Overruns {
    ended: Arc<AtomicBool>,
    moments: Arc<Mutex<Vec<Instant>>>,
    watcher: Option<JoinHandle<()>>,
}

impl Overruns {
    fn watch() -> Self {
        let (ended, moments) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let watcher = std::thread::spawn({
            let (ended, moments) = (ended.clone(), moments.clone());
            move || {
                let mut before = dropped();
                while !ended.load(Ordering::Relaxed) {
                    std::thread::sleep(PIECE / 10);
                    let now = dropped();
                    if now != before {
                        moments.lock().expect("nobody panicked").push(Instant::now());
                    }
                    before = now;
                }
            }
        });
        Self { ended, moments, watcher: Some(watcher) }
    }

    fn so_far(&self) -> Vec<Instant> {
        self.moments.lock().expect("nobody panicked").clone()
    }
}

impl Drop for Overruns {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = self.watcher.take().map(JoinHandle::join);
    }
}

/// Packets that the kernel had no room for until now: the second column, a line for each processor.
fn dropped() -> u64 {
    let text = std::fs::read_to_string("/proc/net/softnet_stat").expect("there is a network");
    let second = |line: &str| u64::from_str_radix(line.split(' ').nth(1)?, 16).ok();
    text.lines().filter_map(second).sum()
}

/// By whom the machine is known.
struct Witnesses {
    controls: Vec<Count>,
    overruns: Vec<Instant>,
}

/// What is known of the pieces in which the machine lost nothing.
#[derive(Debug)]
pub(crate) struct Judgement {
    /// Packets of the flows that were sent in them, and their answers.
    pub(crate) packets: usize,
    /// Happenings of which no part was in another piece, by whom they were done to.
    pub(crate) happened: BTreeMap<String, usize>,
    /// What flows lost in them.
    lost: Vec<String>,
    /// The longest time in them in which all was lost that a flow sent, and which flow it was.
    silence: (Duration, String),
    /// Packets that controls lost in the others.
    spared: usize,
    /// How often the kernel dropped packets in the others.
    overruns: usize,
}

impl Judgement {
    #[track_caller]
    pub(crate) fn nothing_lost(&self) {
        assert!(self.lost.is_empty(), "lost while the machine lost nothing: {}", self.lost.join("\n"));
    }

    /// Prints how many of so many packets were judged.
    pub(crate) fn figure(&self, sent: usize) {
        let test = std::thread::current().name().map(ToOwned::to_owned).unwrap_or_default();
        figure::print(&format!("{test}: {} packets of {sent} judged", self.packets));
    }
}

/// Judges flows by their controls.
fn judge(
    began: Instant,
    witnesses: &Witnesses,
    flows: &[Count],
    happened: &[(String, Range<Instant>)],
) -> Judgement {
    let clean = clean(began, witnesses);
    let mut judgement = Judgement {
        packets: 0,
        happened: BTreeMap::new(),
        lost: Vec::new(),
        silence: (Duration::ZERO, String::new()),
        spared: witnesses.controls.iter().map(|control| control.lost.len()).sum(),
        overruns: witnesses.overruns.len(),
    };
    for flow in flows {
        let counts = |number: &usize| clean.contains(&piece(began, flow.sent[*number]));
        judgement.packets += 2 * (0..flow.sent.len()).filter(counts).count();
        let lost: Vec<usize> = flow.lost.iter().copied().filter(counts).collect();
        let silences = lost.chunk_by(|one, next| one + 1 == *next).filter_map(|all| {
            let [first, .., last] = all else { return None };
            Some(flow.sent[*last].saturating_duration_since(flow.sent[*first]))
        });
        if let Some(longest) = silences.max().filter(|longest| *longest > judgement.silence.0) {
            judgement.silence = (longest, flow.name.clone());
        }
        if let (Some(first), Some(last)) = (lost.first(), lost.last()) {
            let at = [first, last].map(|number| flow.sent[*number].saturating_duration_since(began));
            judgement.lost.push(format!(
                "{}: {} of {}, from {first} at {:?} to {last} at {:?}",
                flow.name,
                lost.len(),
                flow.sent.len(),
                at[0],
                at[1]
            ));
        }
    }
    for (whom, when) in happened {
        if (piece(began, when.start)..=piece(began, when.end)).all(|number| clean.contains(&number)) {
            *judgement.happened.entry(whom.clone()).or_default() += 1;
        }
    }
    judgement
}

/// Pieces in which every control sent and none lost, nor did the kernel, nor in those beside: a machine that stalls does so
/// over a boundary, and who was held up by it is late. So the first and the last are none.
fn clean(began: Instant, witnesses: &Witnesses) -> BTreeSet<u128> {
    let calm = |control: &Count| -> BTreeSet<u128> {
        let pieces = control.sent.chunk_by(|one, next| piece(began, *one) == piece(began, *next));
        let busy = pieces.filter(|piece| piece.len() >= LEAST).filter_map(|sent| sent.first());
        let mut calm: BTreeSet<u128> = busy.map(|at| piece(began, *at)).collect();
        for number in &control.lost {
            calm.remove(&piece(began, control.sent[*number]));
        }
        calm
    };
    let mut all = witnesses.controls.iter().map(calm).reduce(|one, other| &one & &other).unwrap_or_default();
    for at in &witnesses.overruns {
        all.remove(&piece(began, *at));
    }
    all.iter().copied().filter(|at| *at > 0 && all.contains(&(at - 1)) && all.contains(&(at + 1))).collect()
}

fn piece(began: Instant, at: Instant) -> u128 {
    at.saturating_duration_since(began).as_millis() / PIECE.as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flow of ten seconds that sends each 20 ms and loses what was sent in these milliseconds.
    fn flow(began: Instant, lost: Range<u64>) -> Count {
        let at: Vec<u64> = (0..500).map(|number| number * 20).collect();
        Count {
            name: "a flow".to_owned(),
            sent: at.iter().map(|at| began + Duration::from_millis(*at)).collect(),
            lost: (0..500).filter(|number| lost.contains(&at[*number])).collect(),
        }
    }

    fn witnesses<const N: usize>(controls: [Count; N]) -> Witnesses {
        Witnesses { controls: controls.into(), overruns: Vec::new() }
    }

    #[test]
    fn what_is_lost_while_the_controls_lose_nothing_is_told() {
        let began = Instant::now();
        let judgement =
            judge(began, &witnesses([flow(began, 0..0), flow(began, 0..0)]), &[flow(began, 5000..5001)], &[]);
        // All but the first second and the last.
        assert_eq!(judgement.packets, 2 * 8 * 50);
        assert!(judgement.lost[0].starts_with("a flow: 1 of 500, from 250 at 5s to 250"), "{judgement:?}");
    }

    #[test]
    fn a_second_in_which_any_control_loses_something_is_nobodys_nor_are_those_beside() {
        let began = Instant::now();
        let controls = witnesses([flow(began, 0..0), flow(began, 5500..5501)]);
        let judged = |lost| judge(began, &controls, &[flow(began, lost)], &[]);
        assert_eq!(judged(0..1).packets, 2 * 5 * 50);
        judged(4000..7000).nothing_lost();
        for lost in [3980..3981, 7000..7001] {
            assert!(!judged(lost).lost.is_empty());
        }
    }

    #[test]
    fn a_second_in_which_a_control_hardly_sends_is_nobodys() {
        let began = Instant::now();
        let mut control = flow(began, 0..0);
        control.sent.drain(250..293);
        assert_eq!(judge(began, &witnesses([control]), &[flow(began, 0..0)], &[]).packets, 2 * 5 * 50);
    }

    #[test]
    fn a_second_in_which_the_kernel_dropped_packets_is_nobodys() {
        let began = Instant::now();
        let overruns = vec![began + Duration::from_millis(5500)];
        let witnesses = Witnesses { overruns, ..witnesses([flow(began, 0..0)]) };
        judge(began, &witnesses, &[flow(began, 4000..7000)], &[]).nothing_lost();
    }

    #[test]
    fn a_silence_is_as_long_as_all_is_lost() {
        let began = Instant::now();
        let calm = witnesses([flow(began, 0..0)]);
        let mut scattered = flow(began, 2000..2001);
        scattered.lost.extend((150..450).step_by(2));
        let flows = [scattered, flow(began, 4000..6500)];
        let silence = judge(began, &calm, &flows, &[]).silence.0;
        assert_eq!(silence, Duration::from_millis(2480));
        // What the machine lost too is nobody's: from 4 s to 5 s is left.
        let busy = witnesses([flow(began, 6500..6501)]);
        assert_eq!(judge(began, &busy, &flows, &[]).silence.0, Duration::from_millis(980));
    }

    #[test]
    fn what_happened_counts_where_all_of_it_did_so_before_witnesses() {
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let happened =
            [("one", at(1)..at(2)), ("one", at(2)..at(4)), ("two", at(7)..at(8)), ("two", at(8)..at(9))];
        let happened = happened.map(|(whom, when)| (whom.to_owned(), when));
        let judgement = judge(began, &witnesses([flow(began, 5000..5001)]), &[], &happened);
        assert_eq!(judgement.happened, BTreeMap::from([("one".to_owned(), 1), ("two".to_owned(), 1)]));
    }

    #[test]
    fn a_route_that_is_gone_for_a_fifth_of_a_second_is_seen() {
        let [near, far] = pair();
        near.ip("address add 198.51.100.1/24 dev line");
        far.ip("address add 198.51.100.2/24 dev line");
        let server = Server::start(&far);
        let judged = Flow::start(&near, IpAddr::from([198, 51, 100, 2]), Duration::from_millis(16));
        let control = Flow::start(&near, FAR, Duration::from_millis(16));
        let mut traffic = Traffic::of(vec![judged], vec![control], vec![server], Vec::new());
        for attempt in 1.. {
            traffic.beside("the route", || {
                near.ip("route del 198.51.100.0/24 dev line");
                std::thread::sleep(Duration::from_millis(200));
                near.ip("route add 198.51.100.0/24 dev line src 198.51.100.1");
            });
            // The last one cannot be judged yet.
            std::thread::sleep(LATE);
            let judgement = traffic.so_far();
            if !judgement.happened.is_empty() {
                break;
            }
            assert!(attempt < 30, "this machine is too busy to tell: {judgement:?}");
        }
        let judgement = traffic.stop();
        assert!(!judgement.lost.is_empty(), "{judgement:?}");
    }
}
