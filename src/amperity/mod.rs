//! Owns the Amperity API as the operator sees it: requests, answers, credentials and the rate limit.
//! Never knows Kubernetes or a status.

pub mod adaptive_rate;
pub mod answer;
pub mod budget;
pub mod client;
pub mod credentials;
pub mod decode;
pub mod endpoint;
pub mod json_repair;
pub mod lenient_json;
pub mod purpose;
pub mod reply;
pub mod request_metrics;
pub mod run;
pub mod transport;
