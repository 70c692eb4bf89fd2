//! Whatever a client writes into the control socket: it is refused or done, and what was done can be read and set again.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| corax_tunnel::fuzzing::request(text));
