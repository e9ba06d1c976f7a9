//! Owns the tests of the operator while something fails: it is killed, paused or disconnected, or a system that it depends on is.
#![allow(clippy::unwrap_used, missing_docs)]

mod batch;
mod kill;
mod outage;
