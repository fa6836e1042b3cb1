//! The ways that every POSIX system has.

pub(super) mod hangup;
pub(super) mod ticks;
pub(super) mod watch;
