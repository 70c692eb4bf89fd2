//! The pure core of Corax: model, view, topology, plan. No runtime, no sockets, no clock.
#![forbid(unsafe_code)]
