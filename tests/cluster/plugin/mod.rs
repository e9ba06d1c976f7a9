//! Owns the tests of the kubectl plugin's binary, with a real API server, operator, kubectl and krew and the simulated
//! Amperity.

mod call;
mod errors;
mod krew;
mod kubectl;
mod output;
mod terminal;
mod wait;
