//! How the allocator keeps what was freed: a plan for ten thousand members makes and frees some twenty megabytes within a few
//! milliseconds, on two threads. All `unsafe` of the agent is here.

#![allow(unsafe_code)]

/// Makes all threads share one pool of memory, which gives its end back to the kernel from 16 MiB on, and blocks of 4 MiB and more
/// at once. To be called before there is a second thread.
///
/// By default each thread has a pool of its own, and what one has freed is of no use to the other, which asks the kernel for
/// pages anew. So 10,000 members take a quarter less memory (`scripts/bench memory`), and one more of them takes no longer for it.
/// Other C libraries than GNU's do as they do.
pub(crate) fn share() {
    #[cfg(target_env = "gnu")]
    for (option, value) in [
        (nix::libc::M_ARENA_MAX, 1),
        (nix::libc::M_TRIM_THRESHOLD, 16 << 20),
        (nix::libc::M_MMAP_THRESHOLD, 4 << 20),
    ] {
        // SAFETY: it takes two numbers, and no other thread runs.
        unsafe { nix::libc::mallopt(option, value) };
    }
}
