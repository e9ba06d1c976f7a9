//! Creates a stop and waits for its result:
//!
//! ```sh
//! cargo run -p workflow-run-stop-api --example create_stop -- NAMESPACE RUN TENANT SECRET
//! ```

#![allow(clippy::print_stdout)]

use std::{env, error::Error};

use kube::{
    Api, Client,
    api::PostParams,
    runtime::wait::{Condition, await_condition},
};
use workflow_run_stop_api::{WorkflowRunStop, WorkflowRunStopSpec};

fn is_finished() -> impl Condition<WorkflowRunStop> {
    |stop: Option<&WorkflowRunStop>| stop.is_some_and(WorkflowRunStop::is_finished)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [namespace, run, tenant, secret] = arguments.as_slice() else {
        return Err("usage: create_stop NAMESPACE RUN TENANT SECRET".into());
    };
    let stops: Api<WorkflowRunStop> = Api::namespaced(Client::try_default().await?, namespace);
    let mut stop = WorkflowRunStop::new("", WorkflowRunStopSpec::new(run, tenant, secret));
    stop.metadata.name = None;
    stop.metadata.generate_name = Some("stop-".to_owned());
    let created = stops.create(&PostParams::default(), &stop).await?;
    let finished = await_condition(stops, created.name(), is_finished()).await?;
    let result = finished.and_then(|stop| stop.status?.result);
    println!("{}: {}", created.name(), result.map_or("deleted before its result", |result| result.as_str()));
    Ok(())
}
