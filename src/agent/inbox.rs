//! How other threads reach the one that reconciles: the newest view, a wish for a fresh report, the end.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::source::Sourced;

/// Holds what is newest; nothing queues up.
pub(crate) struct Inbox {
    held: Mutex<Held>,
    wake: EventFd,
}

#[derive(Default)]
struct Held {
    sourced: Option<Sourced>,
    refresh: bool,
    stop: bool,
}

/// What was in the inbox.
pub(crate) struct Taken {
    /// A newer view.
    pub sourced: Option<Sourced>,
    /// Somebody waits for a fresh report.
    pub refresh: bool,
    /// The process is to end.
    pub stop: bool,
}

impl Inbox {
    /// An empty one.
    ///
    /// # Errors
    /// Where the system has no eventfd left.
    pub(crate) fn new() -> nix::Result<Arc<Self>> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let wake = EventFd::from_value_and_flags(0, flags)?;
        Ok(Arc::new(Self { held: Mutex::default(), wake }))
    }

    /// Puts in a newer view.
    pub(crate) fn put(&self, sourced: Sourced) {
        self.change(|held| held.sourced = Some(sourced));
    }

    /// Asks for a fresh report.
    pub(crate) fn refresh(&self) {
        self.change(|held| held.refresh = true);
    }

    /// Asks for the end.
    pub(crate) fn stop(&self) {
        self.change(|held| held.stop = true);
    }

    /// Takes out what is there.
    pub(crate) fn take(&self) -> Taken {
        // The counter is emptied first: what is put in after that wakes again.
        let _ = self.wake.read();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Held { sourced, refresh, stop } = &mut *held;
        Taken { sourced: sourced.take(), refresh: std::mem::take(refresh), stop: *stop }
    }

    /// Readable while something is in it.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn change(&self, change: impl FnOnce(&mut Held)) {
        change(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner));
        // It cannot overflow: it is emptied at each turn.
        let _ = self.wake.write(1);
    }
}
