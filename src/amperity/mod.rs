//! Owns the client side of the Amperity API: requests, answers, credentials and the rate limit. The API is described in
//! <https://docs.amperity.com/api/>.
//! Never uses Kubernetes or a `WorkflowRunStop`.

pub mod adaptive_rate;
pub mod answer;
pub mod answer_memory;
pub mod body;
pub mod body_fields;
pub mod budget;
pub mod budgets;
pub mod client;
pub mod connector;
pub mod content;
pub mod credentials;
pub mod decode;
pub mod endpoint;
pub mod json_part;
pub mod json_repair;
pub mod kept_connections;
pub mod lenient_json;
pub mod purpose;
pub mod reply;
pub mod request_metrics;
pub mod run;
pub mod step_shares;
pub mod tenant_budget;
pub mod transport;
pub mod wait_queue;
