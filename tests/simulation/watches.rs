//! Owns lists and watches: streams that lag, break, and come to an end when the history that they need is compacted.
//! Never stores anything.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};

use crate::{
    apiserver::{Answer, is_in, is_unfinished, refused, status, unfinished},
    world::{Change, Inner, World},
};

/// A watch without events ends after so long.
const IDLE: Duration = Duration::from_secs(280);

/// What befalls a watch before its next event.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Goes,
    Breaks,
    /// The history that it needs is compacted.
    Expires,
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
    if world.trouble(0.1) {
        return refused(410, "Expired");
    }
    let (world, namespace) = (world.clone(), namespace.map(str::to_owned));
    let events = stream::unfold(Some(from), move |seen| {
        let (world, namespace) = (world.clone(), namespace.clone());
        async move { next(&world, namespace.as_deref(), seen?).await }
    });
    let frames = events.map(|bytes| Ok::<_, Infallible>(http_body::Frame::data(bytes)));
    Response::builder().status(200).body(StreamBody::new(frames).boxed_unsync()).unwrap()
}

/// The next line of a stream and the version that it has reached; `None` in its place where the stream ends after it.
async fn next(world: &World, namespace: Option<&str>, seen: u64) -> Option<(Bytes, Option<u64>)> {
    loop {
        let changed = world.lock().changed.clone();
        let mut waiting = std::pin::pin!(changed.notified());
        waiting.as_mut().enable();
        if seen < world.lock().compacted {
            return Some((expired(), None));
        }
        let Some(change) = change_after(&world.lock(), seen) else {
            if tokio::time::timeout(IDLE, waiting).await.is_err() {
                return None;
            }
            continue;
        };
        world.pause(Duration::from_millis(world.one_of(1.0, [30, 30_000]))).await;
        match world.one_of(0.3, [Fate::Goes, Fate::Breaks, Fate::Expires]) {
            Fate::Goes => {}
            Fate::Breaks => return None,
            Fate::Expires => {
                let mut inner = world.lock();
                inner.tell("the API server compacts its history");
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

/// The event by which a watch of the unfinished resources learns of a change.
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

/// The event by which the API server ends a watch whose history is gone: inside the stream, after a 200.
fn expired() -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": "ERROR", "object": status(410, "Expired")})))
}
