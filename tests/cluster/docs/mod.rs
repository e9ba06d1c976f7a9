//! Owns the tests of the documents: names and links exist, lists are complete, commands work.
//! Never checks the wording.

mod commands;
mod environment;
mod links;
mod markdown;
mod named;
