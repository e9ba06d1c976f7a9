//! Owns the deletion of finished resources after `ttlSecondsAfterFinished`.
//! Never deletes an unfinished resource, or another one of the same name.

use std::{
    collections::{BTreeSet, HashMap},
    pin::pin,
    time::Duration,
};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DeleteParams, Object, Preconditions},
    runtime::watcher::Event,
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};
use workflow_run_stop_api::{EXPIRING, WorkflowRunStop};

use crate::clock::{Clock, until};
use crate::operator::watch::{apis, changes};

/// The delay after a failed deletion. It is long because the permission to delete may be missing for a long time.
const RETRY: Duration = Duration::from_secs(60);

/// The timeout of one deletion.
const DELETE_TIMEOUT: Duration = Duration::from_secs(10);

/// The parts of a resource that its expiry depends on, so that no whole status is decoded.
type Expiring = Object<Ttl, Completion>;

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ttl {
    ttl_seconds_after_finished: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Completion {
    completion_time: Option<Time>,
}

/// A finished resource that expires.
struct Due {
    namespace: String,
    name: String,
    stream: usize,
}

/// Resources to delete, by uid and by time.
#[derive(Default)]
struct DeletionQueue {
    due: HashMap<String, (Timestamp, Due)>,
    order: BTreeSet<(Timestamp, String)>,
}

impl DeletionQueue {
    fn put(&mut self, uid: String, at: Timestamp, due: Due) {
        self.remove(&uid);
        self.order.insert((at, uid.clone()));
        self.due.insert(uid, (at, due));
    }

    fn remove(&mut self, uid: &str) -> Option<Due> {
        let (at, due) = self.due.remove(uid)?;
        self.order.remove(&(at, uid.to_owned()));
        Some(due)
    }

    fn forget(&mut self, stream: usize) {
        self.due.retain(|_, (_, due)| due.stream != stream);
        self.order.retain(|(_, uid)| self.due.contains_key(uid));
    }
}

/// Deletes expired resources until the future is dropped.
pub async fn run(client: Client, namespaces: Vec<String>, clock: Clock) {
    let kind = ApiResource::erase::<WorkflowRunStop>(&());
    let one = |name: &str| Api::<Expiring>::namespaced_with(client.clone(), name, &kind);
    let apis = apis(&namespaces, || Api::all_with(client.clone(), &kind), one);
    let mut events = pin!(changes(apis, EXPIRING));
    let mut deletions = DeletionQueue::default();
    loop {
        let first = deletions.order.first().cloned();
        let wait = first.as_ref().map(|(at, _)| Duration::try_from(at.duration_since(clock())).unwrap_or_default());
        tokio::select! {
            () = until(wait.map(|wait| Instant::now() + wait)) => {
                let Some((_, uid)) = first else { continue };
                let Some(due) = deletions.remove(&uid) else { continue };
                if !delete(&client, &due, &uid).await {
                    deletions.put(uid, clock().saturating_add(RETRY).unwrap_or(Timestamp::MAX), due);
                }
            }
            event = events.next() => match event {
                None => return,
                Some((stream, Event::Init)) => deletions.forget(stream),
                Some((stream, Event::InitApply(resource) | Event::Apply(resource))) => {
                    if let Some((uid, at, due)) = expires(&resource, stream) {
                        deletions.put(uid, at, due);
                    }
                }
                Some((_, Event::Delete(resource))) => {
                    deletions.remove(resource.meta().uid.as_deref().unwrap_or_default());
                }
                Some((_, Event::InitDone)) => {}
            },
        }
    }
}

fn expires(resource: &Expiring, stream: usize) -> Option<(String, Timestamp, Due)> {
    let ttl = Duration::from_secs(resource.spec.ttl_seconds_after_finished?.into());
    let Time(finished) = resource.status.as_ref()?.completion_time.clone()?;
    let meta = resource.meta();
    let due = Due { namespace: meta.namespace.clone()?, name: meta.name.clone()?, stream };
    Some((meta.uid.clone()?, finished.saturating_add(ttl).unwrap_or(Timestamp::MAX), due))
}

/// Deletes one resource. Returns true if it is gone.
async fn delete(client: &Client, due: &Due, uid: &str) -> bool {
    let api: Api<WorkflowRunStop> = Api::namespaced(client.clone(), &due.namespace);
    let only_this = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    let params = DeleteParams { preconditions: Some(only_this), ..DeleteParams::default() };
    let deleted = timeout(DELETE_TIMEOUT, api.delete(&due.name, &params)).await;
    match deleted {
        Err(_) => false,
        Ok(Ok(_)) => {
            tracing::info!(
                namespace = due.namespace,
                name = due.name,
                "deleted expired stop: ttlSecondsAfterFinished has passed"
            );
            true
        }
        // Gone already, or another resource of this name.
        Ok(Err(kube::Error::Api(status))) if status.is_not_found() || status.is_conflict() => true,
        Ok(Err(error)) => {
            tracing::warn!(namespace = due.namespace, name = due.name, %error, "failed to delete expired stop, will retry; check that the operator may delete workflowrunstops");
            false
        }
    }
}
