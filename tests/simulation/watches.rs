//! Owns lists and watches: streams that lag, disconnect, and expire when the versions that they need are compacted.
//! Never changes an object.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};

use crate::{
    apiserver::{Answer, is_in, is_unfinished, rejected, status, unfinished},
    world::{Change, Inner, World},
};

/// The time after which a watch without events ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(280);

/// The fault of a watch before its next event.
#[derive(Clone, Copy, PartialEq)]
enum WatchFault {
    None,
    Disconnect,
    /// The versions that it needs are compacted.
    Expired,
}

pub fn list(inner: &Inner, namespace: Option<&str>) -> Value {
    json!({
        "apiVersion": "workflow.amperity.com/v1alpha1",
        "kind": "WorkflowRunStopList",
        "metadata": {"resourceVersion": inner.version.to_string()},
        "items": unfinished(inner, namespace),
    })
}

pub fn watch(world: &World, namespace: Option<&str>, query: &str) -> Answer {
    let mut parts = query.split('&');
    let from = parts.find_map(|part| part.strip_prefix("resourceVersion=")).and_then(|version| version.parse().ok());
    let from: u64 = from.unwrap_or_else(|| world.lock().version);
    if world.fault_occurs(0.1) {
        return rejected(410, "Expired");
    }
    let (world, namespace) = (world.clone(), namespace.map(str::to_owned));
    let events = stream::unfold(Some(from), move |seen| {
        let (world, namespace) = (world.clone(), namespace.clone());
        async move { next(&world, namespace.as_deref(), seen?).await }
    });
    let frames = events.map(|bytes| Ok::<_, Infallible>(http_body::Frame::data(bytes)));
    Response::builder().status(200).body(StreamBody::new(frames).boxed_unsync()).unwrap()
}

/// Waits for the next line of a stream. Returns it with the version that the stream has reached, or with `None` if the
/// stream ends after it.
async fn next(world: &World, namespace: Option<&str>, seen: u64) -> Option<(Bytes, Option<u64>)> {
    loop {
        let changed = world.lock().changed.clone();
        let mut notified = std::pin::pin!(changed.notified());
        notified.as_mut().enable();
        if seen < world.lock().compacted {
            return Some((expired(), None));
        }
        let Some(change) = change_after(&world.lock(), seen) else {
            if tokio::time::timeout(IDLE_TIMEOUT, notified).await.is_err() {
                return None;
            }
            continue;
        };
        world.delay(Duration::from_millis(world.choose(1.0, [30, 30_000]))).await;
        match world.choose(0.3, [WatchFault::None, WatchFault::Disconnect, WatchFault::Expired]) {
            WatchFault::None => {}
            WatchFault::Disconnect => return None,
            WatchFault::Expired => {
                let mut inner = world.lock();
                inner.log("the API server compacts its history");
                inner.compacted = inner.version;
                inner.changed.notify_waiters();
                return Some((expired(), None));
            }
        }
        let line = event(&change, namespace).unwrap_or_default();
        return Some((Bytes::from(format!("{line}\n")), Some(change.version)));
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
