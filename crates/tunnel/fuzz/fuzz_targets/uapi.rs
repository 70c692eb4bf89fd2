//! Whatever a client writes into the control socket.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| corax_tunnel::fuzzing::request(text));
