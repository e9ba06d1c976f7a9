//! Owns the tests of the documents: names and links exist, lists are complete, commands work.
//! Never checks the wording.
#![allow(clippy::unwrap_used, missing_docs)]

mod commands;
mod environment;
mod links;
mod markdown;
mod named;
#[allow(dead_code)]
#[path = "../cluster/rbac.rs"]
mod rbac;
#[allow(dead_code)]
#[path = "../cluster/support.rs"]
mod support;
