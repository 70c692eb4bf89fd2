use super::*;

fn spec(subnet: &str) -> RangeSpec {
    RangeSpec { subnet: subnet.parse().unwrap(), start: None, end: None, gateway: None, exclude: Vec::new() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn all(set: &RangeSet, after: Option<&str>) -> Vec<String> {
    let mut out = Vec::new();
    set.walk(after.map(ip), &mut |a| {
        out.push(a.to_string());
        false
    });
    out
}

#[test]
fn defaults_are_host_locals() {
    let range = Range::new(spec("10.1.2.0/29")).unwrap();
    assert_eq!(range.to_string(), "10.1.2.1-10.1.2.6");
    assert_eq!(range.gateway(), ip("10.1.2.1"));
    let set = RangeSet::new(vec![range]).unwrap();
    assert_eq!(all(&set, None), ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
    assert_eq!(all(&set, Some("10.1.2.4")), ["10.1.2.5", "10.1.2.6", "10.1.2.2", "10.1.2.3", "10.1.2.4"]);
}

#[test]
fn first_and_last_of_a_subnet_are_never_given_out() {
    let v6 = RangeSet::new(vec![Range::new(spec("fd00::/125")).unwrap()]).unwrap();
    assert_eq!(all(&v6, None), ["fd00::2", "fd00::3", "fd00::4", "fd00::5", "fd00::6"]);
    let mut wide = spec("10.0.0.0/30");
    (wide.start, wide.end) = (Some(ip("10.0.0.0")), Some(ip("10.0.0.3")));
    let set = RangeSet::new(vec![Range::new(wide).unwrap()]).unwrap();
    assert_eq!(all(&set, None), ["10.0.0.2"]);
}

#[test]
fn excluded_prefixes_are_stepped_over_however_large() {
    let mut huge = spec("fd00::/64");
    huge.exclude = vec!["fd00::/65".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
    let set = RangeSet::new(vec![Range::new(huge).unwrap()]).unwrap();
    let mut first = None;
    set.walk(None, &mut |a| {
        first = Some(a);
        true
    });
    assert_eq!(first, Some(ip("fd00::8000:0:0:0")));
    assert!(set.range_of(ip("fd00::5")).is_none());
    let mut whole = spec("255.255.255.0/24");
    whole.exclude = vec!["255.255.255.128/25".parse().unwrap()];
    let set = RangeSet::new(vec![Range::new(whole).unwrap()]).unwrap();
    assert_eq!(all(&set, None).len(), 126);
}

#[test]
fn several_ranges_are_walked_once_each() {
    let set = RangeSet::new(vec![
        Range::new(spec("10.0.0.0/30")).unwrap(),
        Range::new(spec("10.0.1.0/30")).unwrap(),
        Range::new(spec("10.0.2.0/30")).unwrap(),
    ])
    .unwrap();
    assert_eq!(all(&set, Some("10.0.1.2")), ["10.0.2.2", "10.0.0.2", "10.0.1.2"]);
    assert_eq!(all(&set, Some("10.0.1.1")), ["10.0.1.2", "10.0.2.2", "10.0.0.2"]);
    assert_eq!(all(&set, Some("10.9.9.9")), ["10.0.0.2", "10.0.1.2", "10.0.2.2"]);
}

#[test]
fn what_no_pod_could_use_is_refused() {
    assert!(matches!(Range::new(spec("10.0.0.0/31")), Err(RangeError::TooSmall(_))));
    assert!(matches!(Range::new(spec("fd00::/127")), Err(RangeError::TooSmall(_))));
    assert!(matches!(Range::new(spec("10.0.0.1/24")), Err(RangeError::HostBits { .. })));
    let mut outside = spec("10.0.0.0/24");
    outside.start = Some(ip("10.0.1.1"));
    assert!(matches!(Range::new(outside), Err(RangeError::Outside { what: "rangeStart", .. })));
    let mut backwards = spec("10.0.0.0/24");
    (backwards.start, backwards.end) = (Some(ip("10.0.0.9")), Some(ip("10.0.0.5")));
    assert!(matches!(Range::new(backwards), Err(RangeError::Backwards { .. })));
    let (a, b) = (Range::new(spec("10.0.0.0/24")).unwrap(), Range::new(spec("10.0.0.0/25")).unwrap());
    let six = Range::new(spec("fd00::/64")).unwrap();
    assert!(matches!(RangeSet::new(vec![a.clone(), b.clone()]), Err(RangeError::Overlap(..))));
    assert!(matches!(RangeSet::new(vec![a.clone(), six]), Err(RangeError::MixedFamilies(..))));
    let one = |r| RangeSet::new(vec![r]).unwrap();
    assert!(matches!(Ranges::new(vec![one(a), one(b)]), Err(RangeError::Overlap(..))));
    assert!(matches!(Ranges::new(vec![]), Err(RangeError::NoRanges)));
}
