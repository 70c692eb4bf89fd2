//! The CNI plugin: environment and standard input in, a result or an error on standard output.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    corax_cni::plugin::main()
}
