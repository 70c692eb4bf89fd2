//! Frames that come out of the overlay and are for another hardware address than its own: members that make the addresses of
//! VTEPs of something else do not hear each other, and nothing else tells of it.

use std::time::{Duration, Instant};

use corax_core::object::Device;
use corax_core::problem::Problem;
use nix::errno::Errno;

use super::error::Error;
use super::socket::Socket;
use super::{dump, link};

/// How long after the last one it is told. Facts are asked for each minute.
const TOLD: Duration = Duration::from_secs(130);

/// What the kernel counted last.
#[derive(Default)]
pub(super) struct Misled {
    count: Option<u64>,
    since: Option<Instant>,
}

impl Misled {
    /// Looks at the kernel's counter, which it has from 5.19 on.
    pub(super) fn look(&mut self, socket: &mut Socket, now: Instant) -> Result<Option<Problem>, Error> {
        let put = |writer: &mut _| link::put_name(writer, Device::Overlay);
        let count = match socket.get(link::RTM_GETLINK, &link::header(0, 0, 0), put, link::decode_otherhost) {
            Ok(count) => count,
            Err(failure) if failure.errno == Errno::ENODEV => None,
            Err(failure) => return Err(dump::read("counters of raven0")(failure)),
        };
        Ok(self.take_in(count, now))
    }

    fn take_in(&mut self, count: Option<u64>, now: Instant) -> Option<Problem> {
        // Another device begins at nothing.
        let before = std::mem::replace(&mut self.count, count);
        if before.zip(count).is_some_and(|(before, count)| count > before) {
            self.since = Some(now);
        }
        let told = count.is_some() && self.since.is_some_and(|since| now.duration_since(since) < TOLD);
        told.then(|| {
            Problem::new(
                "link raven0",
                "gets frames for other hardware addresses than its own, and drops them: members of the domain make that of this \
                 node's VTEP of something else",
                "give all nodes the same --cluster-name and --vtep-identity; `corax identity` shows what comes of them",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_while_they_come_and_a_while_after() {
        let (mut misled, begun) = (Misled::default(), Instant::now());
        let mut told = |count, after| misled.take_in(count, begun + Duration::from_secs(after)).is_some();
        assert_eq!([told(None, 0), told(Some(7), 10), told(Some(7), 70)], [false; 3], "those from before");
        assert_eq!([told(Some(8), 130), told(Some(8), 190), told(Some(8), 260)], [true, true, false]);
        assert_eq!([told(Some(0), 320), told(Some(0), 380), told(Some(1), 440)], [false, false, true]);
        assert!(!told(None, 450), "it is gone");
    }
}
