//! Owns the tests of the kubectl plugin's binary, with a real API server, operator, kubectl and krew and the simulated
//! Amperity.
#![allow(clippy::unwrap_used, missing_docs)]

mod call;
mod errors;
mod krew;
mod kubectl;
mod output;
#[path = "../cluster/rbac.rs"]
mod rbac;
#[allow(dead_code)]
#[path = "../cluster/support.rs"]
mod support;
mod terminal;
mod wait;
