//! Owns another client of a tenant, which uses up half of its limit. The benchmark has it beside the operator as well.
//! Never looks at its answers.

use std::time::Duration;

use lab::simulator::{RetryAfter, Run, Simulator};
use tokio::task::JoinHandle;

/// Sets a limit of ten requests in any second, with a `Retry-After` of one, and sends five of them in each, until
/// it is aborted.
pub fn begin(amperity: &Simulator, tenant: &'static str) -> JoinHandle<()> {
    amperity.limit(Some(10));
    amperity.retry_after_on_limit(Some(RetryAfter::Seconds(1)));
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
