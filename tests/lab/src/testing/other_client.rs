//! Owns another client of a tenant, which uses half of the rate limit. Used by tests and the benchmark.
//! Never looks at the responses.

use std::time::Duration;

use tokio::task::JoinHandle;

use crate::simulator::{RetryAfter, Run, Simulator};

/// Limits the tenant to ten requests per second, with a `Retry-After` of one second, and sends five requests per second
/// until the task is aborted.
pub fn start(amperity: &Simulator, tenant: &'static str) -> JoinHandle<()> {
    amperity.set_rate_limit(Some(10));
    amperity.set_rate_limit_retry_after(Some(RetryAfter::Seconds(1)));
    amperity.add_run(tenant, Run::new("wf-other"));
    let url = format!("{}/workflow/runs/wf-other", amperity.base_url());
    tokio::spawn(async move {
        let http = reqwest::Client::new();
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / 5);
        loop {
            ticks.tick().await;
            let request = http.get(&url).bearer_auth("good-token").header("amperity-tenant", tenant);
            tokio::spawn(request.header("api-version", "2024-04-01").send());
        }
    })
}
