//! The operator, killed, paused and disconnected at every point that can be observed from outside.

mod apiserver;
mod crash;
mod drain;
mod replicas;
