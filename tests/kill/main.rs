//! The operator's binary, killed, stopped and cut off at every point that can be seen from outside.
#![allow(clippy::unwrap_used, missing_docs)]

mod apiserver;
mod batch;
mod crash;
mod drain;
mod replicas;
#[path = "../cluster/rights.rs"]
mod rights;
#[allow(dead_code)]
#[path = "../cluster/support.rs"]
mod support;
