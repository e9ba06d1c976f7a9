//! What the operator depends on goes away, slows down or changes in the middle of its work.
#![allow(clippy::unwrap_used, missing_docs)]

mod amperity;
mod apiserver;
#[allow(dead_code)]
#[path = "../kill/batch.rs"]
mod batch;
mod changes;
mod other_client;
#[path = "../cluster/rights.rs"]
mod rights;
#[allow(dead_code)]
#[path = "../cluster/support.rs"]
mod support;
