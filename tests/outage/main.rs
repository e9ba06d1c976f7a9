//! Outages, slow responses and changes of the systems that the operator depends on.
#![allow(clippy::unwrap_used, missing_docs)]

mod amperity;
mod apiserver;
#[allow(dead_code)]
#[path = "../kill/batch.rs"]
mod batch;
mod changes;
mod other_client;
#[path = "../cluster/rbac.rs"]
mod rbac;
#[allow(dead_code)]
#[path = "../cluster/support.rs"]
mod support;
