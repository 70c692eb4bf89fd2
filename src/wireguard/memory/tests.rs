use super::*;

const DEVICE: Device = Device::WireGuard(0);
const KEY: PublicKey = PublicKey([7; 32]);

fn reading(handshake: u64) -> Reading {
    let peer = PeerReading { handshake: Duration::from_secs(handshake), ..PeerReading::default() };
    Reading { peers: [(KEY, peer)].into(), ..Reading::default() }
}

fn at(start: Instant, wall: u64, elapsed: u64) -> Clocks {
    Clocks { wall: Duration::from_secs(wall), now: start + Duration::from_secs(elapsed) }
}

fn age(memory: &mut Memory, handshake: u64, clocks: Clocks) -> Option<u64> {
    memory.observe(DEVICE, reading(handshake), clocks).peers[&KEY].handshake_age.map(|age| age.as_secs())
}

#[test]
fn a_handshake_ages_with_time() {
    let (mut memory, start) = (Memory::default(), Instant::now());
    assert_eq!(age(&mut memory, 0, at(start, 1000, 0)), None);
    assert_eq!(age(&mut memory, 990, at(start, 1000, 0)), Some(0), "it was not there at the reading before");
    let mut memory = Memory::default();
    assert_eq!(age(&mut memory, 990, at(start, 1000, 0)), Some(10));
    assert_eq!(age(&mut memory, 990, at(start, 1005, 5)), Some(15));
    assert_eq!(age(&mut memory, 1007, at(start, 1008, 8)), Some(1));
}

#[test]
fn a_clock_that_is_set_ages_no_tunnel() {
    let (mut memory, start) = (Memory::default(), Instant::now());
    // The box came up in 1970 and shook hands there.
    assert_eq!(age(&mut memory, 100, at(start, 101, 0)), Some(1));
    // The clock jumps to 2026.
    assert_eq!(age(&mut memory, 100, at(start, 1_800_000_000, 2)), Some(3));
    // It jumps back: the handshake is in the future.
    assert_eq!(age(&mut memory, 1_800_000_001, at(start, 50, 9)), Some(0));
    assert_eq!(age(&mut memory, 1_800_000_001, at(start, 51, 10)), Some(1));
}

#[test]
fn the_configured_endpoint_lasts_as_long_as_its_peer() {
    let (mut memory, clocks) = (Memory::default(), Clocks::read());
    let endpoint = "192.0.2.1:4500".parse().unwrap();
    let configured = |memory: &mut Memory| memory.observe(DEVICE, reading(0), clocks).peers[&KEY].configured;

    assert_eq!(configured(&mut memory), None);
    memory.configure(DEVICE, KEY, endpoint);
    assert_eq!(configured(&mut memory), Some(endpoint));
    memory.forget_peer(DEVICE, KEY);
    assert_eq!(configured(&mut memory), None);

    memory.configure(DEVICE, KEY, endpoint);
    memory.observe(DEVICE, Reading::default(), clocks);
    assert_eq!(configured(&mut memory), None, "a reading without the peer forgets it");

    memory.configure(DEVICE, KEY, endpoint);
    memory.forget_device(DEVICE);
    assert_eq!(configured(&mut memory), None);
}

#[test]
fn allowed_ips_are_sorted() {
    let parse = |text: &str| text.parse::<Prefix>().unwrap();
    let mut given = reading(0);
    given.peers.get_mut(&KEY).unwrap().allowed =
        ["fd00::/64", "10.2.0.0/16", "10.1.0.0/16"].map(parse).into();
    let tunnel = Memory::default().observe(DEVICE, given, Clocks::read());
    assert_eq!(tunnel.peers[&KEY].peer.allowed, ["10.1.0.0/16", "10.2.0.0/16", "fd00::/64"].map(parse));
}
