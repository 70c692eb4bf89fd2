//! User-space WireGuard.
