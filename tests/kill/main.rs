//! The operator, killed, paused and disconnected at every point that can be observed from outside.
#![allow(clippy::unwrap_used, missing_docs)]

mod apiserver;
mod batch;
mod crash;
mod drain;
#[path = "../cluster/rbac.rs"]
mod rbac;
mod replicas;
#[allow(dead_code)]
#[path = "../cluster/support.rs"]
mod support;
