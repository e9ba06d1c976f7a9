//! Owns the deletion of resources that outlived `ttlSecondsAfterFinished`.
//! Never deletes an unfinished resource, or another one of the same name.

use std::{collections::HashMap, pin::pin, time::Duration};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DeleteParams, Object, Preconditions},
    runtime::watcher::Event,
};
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::operator::watch::{apis, changes};
use crate::resource::{EXPIRING, WorkflowRunStop};

/// The wait after a deletion that failed: the right to delete may be missing for long.
const RETRY: Duration = Duration::from_secs(60);

/// The parts of a resource that its expiry depends on: a whole status need not be kept in memory.
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

struct Due {
    namespace: String,
    name: String,
    at: Timestamp,
    stream: usize,
}

/// Deletes what is due, until it is dropped.
pub async fn run(client: &Client, namespaces: &[String], clock: Clock) {
    let kind = ApiResource::erase::<WorkflowRunStop>(&());
    let one = |name: &str| Api::<Expiring>::namespaced_with(client.clone(), name, &kind);
    let apis = apis(namespaces, || Api::all_with(client.clone(), &kind), one);
    let mut events = pin!(changes(apis, EXPIRING));
    let mut due: HashMap<String, Due> = HashMap::new();
    loop {
        let next = due.iter().min_by_key(|(_, due)| due.at).map(|(uid, due)| (uid.clone(), due.at));
        let wait = next.as_ref().map(|(_, at)| Duration::try_from(at.duration_since(clock())).unwrap_or_default());
        let ripe = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ripe => {
                let Some((uid, _)) = next else { continue };
                if let Some(expired) = due.get_mut(&uid) {
                    if delete(client, expired, &uid).await {
                        due.remove(&uid);
                    } else {
                        expired.at = clock().saturating_add(RETRY).unwrap_or(Timestamp::MAX);
                    }
                }
            }
            event = events.next() => match event {
                None => return,
                Some((stream, Event::Init)) => due.retain(|_, due| due.stream != stream),
                Some((stream, Event::InitApply(resource) | Event::Apply(resource))) => {
                    if let Some((uid, expiring)) = expires(&resource, stream) {
                        due.insert(uid, expiring);
                    }
                }
                Some((_, Event::Delete(resource))) => {
                    due.remove(resource.meta().uid.as_deref().unwrap_or_default());
                }
                Some((_, Event::InitDone)) => {}
            },
        }
    }
}

fn expires(resource: &Expiring, stream: usize) -> Option<(String, Due)> {
    let ttl = Duration::from_secs(resource.spec.ttl_seconds_after_finished?.into());
    let Time(finished) = resource.status.as_ref()?.completion_time.clone()?;
    let meta = resource.meta();
    let due = Due {
        namespace: meta.namespace.clone()?,
        name: meta.name.clone()?,
        at: finished.saturating_add(ttl).unwrap_or(Timestamp::MAX),
        stream,
    };
    Some((meta.uid.clone()?, due))
}

/// True where the resource is gone.
async fn delete(client: &Client, due: &Due, uid: &str) -> bool {
    let api: Api<WorkflowRunStop> = Api::namespaced(client.clone(), &due.namespace);
    let only_this = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    let params = DeleteParams { preconditions: Some(only_this), ..DeleteParams::default() };
    match api.delete(&due.name, &params).await {
        Ok(_) => {
            tracing::info!(namespace = due.namespace, name = due.name, "deleted: ttlSecondsAfterFinished are over");
            true
        }
        // Gone already, or another one of this name.
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => true,
        Err(error) => {
            tracing::warn!(namespace = due.namespace, name = due.name, %error, "not deleted although ttlSecondsAfterFinished are over; may the operator delete workflowrunstops? it is tried again");
            false
        }
    }
}
