//! Owns lists and watches: pages and streams that lag, break off, and expire when the versions that they need are
//! compacted.
//! Never changes an object.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};

use crate::{
    apiserver::{Answer, is_in, is_unfinished, rejected, response, status},
    world::{Change, Inner, World},
};

/// The time after which a watch without events ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(280);

/// The largest number of objects in a page, whatever the client asks for.
const PAGE_SIZE: usize = 2;

/// The fault of a watch before its next event.
#[derive(Clone, Copy, PartialEq)]
enum WatchFault {
    None,
    Disconnect,
    /// It disconnects in the middle of the event.
    BreakOff,
    /// The versions that it needs are compacted.
    Expired,
}

/// Returns the value of a parameter.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').filter_map(|part| part.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// Returns the unfinished resources of a namespace, or of all. The one that cannot be decoded is the first, so that no
/// other is listed if a list ends there.
fn matching(inner: &Inner, namespace: Option<&str>) -> Vec<Value> {
    let objects = inner.objects.values().filter(|object| is_unfinished(object) && is_in(object, namespace)).cloned();
    undecodable(inner, namespace, inner.version).into_iter().chain(objects).collect()
}

/// Returns the object that cannot be decoded, if this world has one in this namespace. No user cares for it.
fn undecodable(inner: &Inner, namespace: Option<&str>, version: u64) -> Option<Value> {
    let own = inner.namespaces()[0];
    let object = json!({
        "metadata": {"name": "undecodable", "namespace": own, "uid": "undecodable", "resourceVersion": version.to_string()},
        "spec": {"runId": "wf-1", "tenant": "acme", "credentialsSecretRef": {"name": "amperity"}},
        "status": {"taskInstances": "no list"},
    });
    (inner.faults.has_undecodable && is_in(&object, namespace)).then_some(object)
}

/// Returns a list, or its next page.
pub fn list(world: &World, namespace: Option<&str>, query: &str) -> Answer {
    let list = {
        let mut inner = world.lock();
        let token = parameter(query, "continue");
        let version = token.map_or(inner.version, |token| token.split('-').next().unwrap().parse().unwrap());
        if version < inner.compacted {
            return rejected(410, "Expired");
        }
        let mut items = match token {
            None => matching(&inner, namespace),
            Some(token) => inner.next_pages[token].clone(),
        };
        let rest = match parameter(query, "limit") {
            Some(_) => items.split_off(items.len().min(PAGE_SIZE)),
            None => vec![],
        };
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if !rest.is_empty() {
            let token = format!("{version}-{}", inner.next_pages.len());
            metadata["continue"] = json!(token);
            inner.next_pages.insert(token, rest);
        }
        json!({
            "apiVersion": "workflow.amperity.com/v1alpha1",
            "items": items,
            "kind": "WorkflowRunStopList",
            "metadata": metadata,
        })
    };
    if world.fault_occurs(0.1) {
        let half = list.to_string().into_bytes();
        return chunks(stream::iter([Bytes::copy_from_slice(&half[..half.len() / 2])]));
    }
    response(200, &list)
}

/// Returns a response whose body arrives in these chunks.
fn chunks(chunks: impl futures::Stream<Item = Bytes> + Send + 'static) -> Answer {
    let frames = chunks.map(|bytes| Ok::<_, Infallible>(http_body::Frame::data(bytes)));
    Response::builder().status(200).body(StreamBody::new(frames).boxed_unsync()).unwrap()
}

/// The state of a watch.
struct Watch {
    /// The version that it has reached.
    seen: u64,
    /// The events of its initial list that were not sent yet, the next one last.
    initial: Vec<Value>,
    ended: bool,
}

pub fn watch(world: &World, namespace: Option<&str>, query: &str) -> Answer {
    let lists = parameter(query, "sendInitialEvents") == Some("true");
    if lists && world.lock().faults.refuses_streaming_lists {
        return rejected(422, "Invalid");
    }
    if world.fault_occurs(0.1) {
        return rejected(410, "Expired");
    }
    let watch = {
        let inner = world.lock();
        let seen = parameter(query, "resourceVersion").and_then(|version| version.parse().ok());
        let mut initial = vec![];
        if lists {
            let annotations = json!({"k8s.io/initial-events-end": "true"});
            let metadata = json!({"resourceVersion": inner.version.to_string(), "annotations": annotations});
            initial.push(json!({"type": "BOOKMARK", "object": {"metadata": metadata}}));
            let objects = matching(&inner, namespace).into_iter().rev();
            initial.extend(objects.map(|object| json!({"type": "ADDED", "object": object})));
        }
        Watch { seen: seen.unwrap_or(inner.version), initial, ended: false }
    };
    // Both ways of saying so occur.
    if watch.seen < world.lock().compacted && watch.seen.is_multiple_of(2) {
        return rejected(410, "Expired");
    }
    let (world, namespace) = (world.clone(), namespace.map(str::to_owned));
    let events = stream::unfold(watch, move |mut watch| {
        let (world, namespace) = (world.clone(), namespace.clone());
        async move {
            let line = if watch.ended { None } else { watch.next(&world, namespace.as_deref()).await };
            Some((line?, watch))
        }
    });
    // No line arrives in one piece.
    chunks(events.flat_map(|line| {
        let half = line.len() / 2;
        stream::iter([line.slice(..half), line.slice(half..)])
    }))
}

impl Watch {
    /// Waits for the next line.
    async fn next(&mut self, world: &World, namespace: Option<&str>) -> Option<Bytes> {
        if let Some(event) = self.initial.pop() {
            return self.disturbed(world, format!("{event}\n"));
        }
        loop {
            let changed = world.lock().changed.clone();
            let mut notified = std::pin::pin!(changed.notified());
            notified.as_mut().enable();
            if self.seen < world.lock().compacted {
                self.ended = true;
                return Some(expired());
            }
            let Some(change) = change_after(&world.lock(), self.seen) else {
                if tokio::time::timeout(IDLE_TIMEOUT, notified).await.is_err() {
                    return None;
                }
                continue;
            };
            world.delay(Duration::from_millis(world.choose(1.0, [30, 30_000]))).await;
            let line = event(&change, namespace).unwrap_or_default();
            let undecodable = undecodable(&world.lock(), namespace, self.seen);
            let undecodable = undecodable.map(|object| json!({"type": "MODIFIED", "object": object}).to_string());
            self.seen = change.version;
            let lines = undecodable.into_iter().chain(Some(line).filter(|line| !line.is_empty()));
            return self.disturbed(world, lines.map(|line| line + "\n").collect());
        }
    }

    /// Returns these lines, unless a fault occurs.
    fn disturbed(&mut self, world: &World, lines: String) -> Option<Bytes> {
        let faults = [WatchFault::None, WatchFault::Disconnect, WatchFault::BreakOff, WatchFault::Expired];
        let fault = world.choose(0.3, faults);
        self.ended = fault != WatchFault::None;
        match fault {
            WatchFault::None => Some(lines.into()),
            WatchFault::Disconnect => None,
            WatchFault::BreakOff => Some(lines[..lines.len() / 2].to_owned().into()),
            WatchFault::Expired => {
                let mut inner = world.lock();
                inner.log("the API server compacts its history");
                inner.compacted = inner.version;
                inner.changed.notify_waiters();
                Some(expired())
            }
        }
    }
}

fn change_after(inner: &Inner, seen: u64) -> Option<Change> {
    let next = inner.changes.partition_point(|change| change.version <= seen);
    inner.changes.get(next).cloned()
}

/// Returns the event for a change in a watch of the unfinished resources, if it has one.
fn event(change: &Change, namespace: Option<&str>) -> Option<String> {
    let Change { version, before, after } = change;
    let matches = |object: &Option<Value>| {
        object.as_ref().is_some_and(|object| is_unfinished(object) && is_in(object, namespace))
    };
    let kind = match (matches(before), matches(after)) {
        (false, true) => "ADDED",
        (true, true) => "MODIFIED",
        (true, false) => "DELETED",
        (false, false) => return None,
    };
    let mut object = after.clone().or_else(|| before.clone())?;
    object["metadata"]["resourceVersion"] = json!(version.to_string());
    Some(json!({"type": kind, "object": object}).to_string())
}

/// Returns the event with which the API server ends an expired watch: inside the stream, after a 200.
fn expired() -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": "ERROR", "object": status(410, "Expired")})))
}
