//! Holds the documents: what they name exists, what exists is named, links lead somewhere, and commands work.
#![allow(clippy::unwrap_used, missing_docs)]

mod commands;
mod links;
mod markdown;
mod named;
#[allow(dead_code)]
#[path = "../cluster/rights.rs"]
mod rights;
mod stage;
#[allow(dead_code)]
#[path = "../cluster/support.rs"]
mod support;
