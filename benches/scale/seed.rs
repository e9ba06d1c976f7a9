//! Owns the stops of a measurement: it stores very many, each a copy of one that the API server stored.
//! Never asks the API server for each of them, which would take a minute for a hundred thousand: it writes to etcd.

use futures::{StreamExt, stream};
use k8s_openapi::ByteString;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use lab::control_plane::ControlPlane;
use serde_json::{Value, json};
use tokio::time::Instant;
use workflow_run_stop_api::{WorkflowRunStop, WorkflowRunStopSpec};

/// The number of objects in one transaction: the largest that etcd accepts.
const BATCH: usize = 128;

/// The number of transactions at the same time.
const CONNECTIONS: usize = 8;

/// The length of a name: the longest that is also a DNS label.
const NAME_LENGTH: usize = 63;

/// The time in which all stops were created, before now, in seconds: within their deadline.
const CREATED_WITHIN: i64 = 3600;

/// One stop to be stored.
pub struct Seed {
    pub namespace: String,
    pub tenant: String,
    pub index: usize,
}

/// Returns a stop as a user would write it.
pub fn a_stop(name: &str, tenant: &str) -> WorkflowRunStop {
    let mut stop = WorkflowRunStop::new(name, WorkflowRunStopSpec::new(&run_id(0), tenant, "amperity"));
    stop.spec.stop_deadline_seconds = Some(86_400);
    stop.spec.reason = Some("superseded by the nightly run".into());
    stop
}

/// Stores these stops. With a status, each gets it; otherwise they have none.
pub async fn store(cluster: &ControlPlane, seeds: Vec<Seed>, status: Option<Value>) {
    let Some(first) = seeds.first() else { return };
    let template = template(cluster, &first.namespace, status).await;
    let started = Instant::now();
    let count = seeds.len();
    stream::iter(seeds.chunks(BATCH))
        .for_each_concurrent(CONNECTIONS, async |batch| {
            let puts: Vec<Value> = batch.iter().map(|seed| put(&template, seed)).collect();
            etcd(cluster, "txn", &json!({"success": puts})).await;
        })
        .await;
    println!("stored {count} stops in {:.1} s", started.elapsed().as_secs_f64());
}

/// Creates a stop, returns it as the API server stored it, and deletes it.
async fn template(cluster: &ControlPlane, namespace: &str, status: Option<Value>) -> Value {
    let api: Api<WorkflowRunStop> = Api::namespaced(cluster.client(), namespace);
    api.create(&PostParams::default(), &a_stop("template", "acme")).await.unwrap();
    if let Some(status) = status {
        let patch = Patch::Merge(json!({"status": status}));
        api.patch_status("template", &PatchParams::default(), &patch).await.unwrap();
    }
    let found = etcd(cluster, "range", &json!({"key": ByteString(key(namespace, "template").into())})).await;
    let ByteString(stored) = serde_json::from_value(found["kvs"][0]["value"].clone()).unwrap();
    api.delete("template", &Default::default()).await.unwrap();
    serde_json::from_slice(&stored).unwrap()
}

fn put(template: &Value, Seed { namespace, tenant, index }: &Seed) -> Value {
    let mut stop = template.clone();
    let name = name(*index);
    let now: jiff::Timestamp = serde_json::from_value(template["metadata"]["creationTimestamp"].clone()).unwrap();
    let age = CREATED_WITHIN - i64::try_from(*index).unwrap() % CREATED_WITHIN;
    let created = now - jiff::SignedDuration::from_secs(age);
    let uid = format!("5ca1ab1e-0000-4000-8000-{index:012x}");
    let metadata = &mut stop["metadata"];
    (metadata["namespace"], metadata["name"]) = (json!(namespace), json!(name));
    (metadata["uid"], metadata["creationTimestamp"]) = (json!(uid), json!(created));
    (stop["spec"]["runId"], stop["spec"]["tenant"]) = (json!(run_id(*index)), json!(tenant));
    let value = ByteString(serde_json::to_vec(&stop).unwrap());
    json!({"requestPut": {"key": ByteString(key(namespace, &name).into()), "value": value}})
}

fn name(index: usize) -> String {
    let number = format!("{index:06}");
    let words = "stop-of-the-nightly-customer-360-rebuild-before-the-migration-window";
    format!("{}-{number}", &words[..NAME_LENGTH - 1 - number.len()])
}

/// Returns the id of the run of the stop with this index.
pub fn run_id(index: usize) -> String {
    format!("wf-20260619-{index:06}-6UhqSe")
}

fn key(namespace: &str, name: &str) -> String {
    format!("/registry/workflow.amperity.com/workflowrunstops/{namespace}/{name}")
}

async fn etcd(cluster: &ControlPlane, path: &str, what: &Value) -> Value {
    let request = reqwest::Client::new().post(format!("{}/v3/kv/{path}", cluster.etcd_url()));
    let answer = request.body(what.to_string()).send().await.unwrap().error_for_status().unwrap();
    serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
}
