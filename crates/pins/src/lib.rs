//! Pins and holds: which address belongs to which pod.
#![forbid(unsafe_code)]
