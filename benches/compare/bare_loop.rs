//! Owns the yardstick of the operator: the least work that stops a run once for each resource, with the same libraries.
//! Never retries, waits for a rate limit, or follows a run.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::{core::v1::Secret, events::v1::Event};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};
use workflow_run_stop_api::{UNFINISHED, WorkflowRunStop};

/// The argument that makes this program run the loop, followed by the namespace and the base URL.
pub const ARGUMENT: &str = "bare-loop";

struct BareLoop {
    stops: Api<WorkflowRunStop>,
    secrets: Api<Secret>,
    events: Api<Event>,
    /// It keeps no connection: each request gets one of its own.
    http: reqwest::Client,
    base_url: String,
}

/// Stops the runs of the resources of one namespace: watch, Secret, claim, request, record, event.
pub async fn run(namespace: &str, base_url: &str) {
    let client = Client::try_default().await.unwrap();
    let this = Arc::new(BareLoop {
        stops: Api::namespaced(client.clone(), namespace),
        secrets: Api::namespaced(client.clone(), namespace),
        events: Api::namespaced(client, namespace),
        http: reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap(),
        base_url: base_url.to_owned(),
    });
    let params = WatchParams { send_initial_events: true, ..WatchParams::default().fields(UNFINISHED) };
    let mut events = this.stops.watch(&params, "").await.unwrap().boxed();
    println!("ready");
    while let Some(event) = events.try_next().await.unwrap() {
        if let WatchEvent::Added(stop) = event {
            let this = this.clone();
            tokio::spawn(async move { this.stop(stop).await });
        }
    }
}

impl BareLoop {
    async fn stop(&self, stop: WorkflowRunStop) {
        let secret = self.secrets.get(&stop.spec.credentials_secret_ref.name).await.unwrap();
        let token = String::from_utf8(secret.data.unwrap()["token"].0.clone()).unwrap();
        let claim = json!({"attempts": 1, "claim": {"id": "x", "holder": "bare", "time": "2026-01-01T00:00:00Z"}});
        let claimed = self.patch(&stop, &json!({"stopRequest": claim})).await;
        let url = format!("{}/workflow/runs/{}/stop", self.base_url, stop.spec.run_id);
        let request = self.http.post(url).bearer_auth(token).header("amperity-tenant", &stop.spec.tenant);
        let response = request.header("api-version", "2024-04-01").send().await.unwrap().error_for_status().unwrap();
        let run: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        let now = jiff::Timestamp::now();
        let condition = json!({
            "type": "Ready", "status": "True", "reason": "StopAccepted", "message": "The run was stopped.",
            "lastTransitionTime": now, "observedGeneration": 1,
        });
        let request = json!({"attempts": 1, "acceptedTime": now, "httpStatus": 200});
        let status = json!({
            "state": run["state"], "taskInstances": [], "stopRequest": request, "conditions": [condition],
            "completionTime": now, "result": "Stopped", "observedGeneration": 1,
        });
        self.patch(&claimed, &status).await;
        let event = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"generateName": format!("{}-", stop.name()), "namespace": stop.namespace()},
            "eventTime": format!("{now:.6}"), "type": "Normal", "reason": "RunStopped", "action": "Stop",
            "note": "The run was stopped.", "reportingController": "bare-loop", "reportingInstance": "bare-loop",
            "regarding": {
                "apiVersion": "workflow.amperity.com/v1alpha1", "kind": "WorkflowRunStop",
                "namespace": stop.namespace(), "name": stop.name(), "uid": stop.uid(),
            },
        });
        self.events.create(&PostParams::default(), &serde_json::from_value(event).unwrap()).await.unwrap();
    }

    /// Writes the status, if uid and resource version are unchanged.
    async fn patch(&self, stop: &WorkflowRunStop, status: &Value) -> WorkflowRunStop {
        let patch = serde_json::from_value(json!([
            {"op": "test", "path": "/metadata/uid", "value": stop.uid()},
            {"op": "test", "path": "/metadata/resourceVersion", "value": stop.resource_version()},
            {"op": "add", "path": "/status", "value": status},
        ]));
        let patch = Patch::Json::<()>(patch.unwrap());
        self.stops.patch_status(stop.name(), &PatchParams::default(), &patch).await.unwrap()
    }
}
