//! Owns the tests that need neither a control plane nor another program: tables, properties, and the rules of the code.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod amperity;
mod any_answer;
mod budget;
mod decide;
mod gitops;
mod json_stream;
mod layers;
mod nested_json;
mod outcome;
