//! Owns the simulated API server: versions, guarded patches, watches that lag, requests and answers that get lost.
//! Never lets a status change after its end, and says so where the operator tries.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::world::World;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The API server as one replica reaches it.
#[derive(Clone)]
pub struct ApiServer {
    pub world: World,
    pub replica: usize,
}

impl tower::Service<Request<Body>> for ApiServer {
    type Response = Answer;
    type Error = Failure;
    type Future = BoxFuture<'static, Result<Answer, Failure>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Failure>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move { server.serve(request).await })
    }
}

impl ApiServer {
    async fn serve(self, request: Request<Body>) -> Result<Answer, Failure> {
        let world = self.world.clone();
        world.step(self.replica).await;
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let path = head.uri.path().to_owned();
        let query = head.uri.query().unwrap_or_default().to_owned();
        if world.trouble(0.3) {
            world.pause(Duration::from_secs(2)).await;
            return Err("the request got lost".into());
        }
        // The request goes on its way whatever becomes of the client.
        let (answered, answer) = oneshot::channel();
        let server = self.clone();
        tokio::spawn(async move {
            world.on_the_way().await;
            let answer = if query.contains("watch=true") || query.contains("watch=1") {
                server.watch(&query)
            } else {
                server.answer(head.method.as_str(), &path, &body)
            };
            let lost = world.trouble(0.5);
            world.on_the_way().await;
            if !lost {
                let _ = answered.send(answer);
            }
        });
        let answer = answer.await.map_err(|_| "the answer got lost")?;
        self.world.step(self.replica).await;
        Ok(answer)
    }

    fn answer(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let mut inner = self.world.lock();
        if path.contains("/secrets/") {
            let meta = json!({"name": "amperity", "namespace": "sim", "uid": "s", "resourceVersion": "1"});
            return done(
                200,
                &json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": {"token": "dG9r"}}),
            );
        }
        let name = path.trim_end_matches("/status").rsplit('/').next().unwrap_or_default();
        if name == "workflowrunstops" {
            let items: Vec<_> = inner.objects.values().filter(|object| unfinished(object)).cloned().collect();
            let meta = json!({"resourceVersion": inner.version.to_string()});
            let kind = "WorkflowRunStopList";
            let list =
                json!({"apiVersion": "workflow.amperity.com/v1alpha1", "kind": kind, "metadata": meta, "items": items});
            return done(200, &list);
        }
        let Some(object) = inner.objects.get(name).cloned() else { return refused(404, "NotFound") };
        if method == "GET" {
            return done(200, &object);
        }
        let patch: json_patch::Patch = serde_json::from_slice(body).unwrap();
        let mut patched = object.clone();
        if json_patch::patch(&mut patched, &patch).is_err() {
            inner.tell(&format!("replica {}: patch of {name} refused", self.replica));
            return refused(422, "Invalid");
        }
        if object["status"]["completionTime"].is_string() && object["status"] != patched["status"] {
            inner.fail(&format!("the status of {name} changed after its end"));
        }
        let ready = patched["status"]["conditions"]
            .as_array()
            .and_then(|all| all.iter().find(|one| one["type"] == "Ready").cloned());
        let claim_in = |object: &Value| object["status"]["stopRequest"]["claim"]["id"].as_str().map(str::to_owned);
        let claim = claim_in(&patched);
        if claim.is_some() && claim != claim_in(&object) && inner.has_closed_for_long(self.replica) {
            inner.fail(&format!("replica {} claims {name} although a 429 closes its budget", self.replica));
        }
        let claim = claim.map(|id| id[..6].to_owned());
        let reason = ready.map(|ready| ready["reason"].clone());
        inner.tell(&format!("replica {}: {name} is {reason:?}, claim {claim:?}", self.replica));
        if patched == object {
            return done(200, &object);
        }
        let stored = inner.put(name, Some(patched));
        done(200, &stored.unwrap())
    }

    /// A watch that lags, breaks, and now and then is too old.
    fn watch(&self, query: &str) -> Answer {
        let from: u64 =
            query.split('&').find_map(|part| part.strip_prefix("resourceVersion=")).unwrap().parse().unwrap();
        if self.world.trouble(0.3) {
            return refused(410, "Expired");
        }
        let world = self.world.clone();
        let events = stream::unfold((world, from), |(world, seen)| async move {
            loop {
                let changed = world.lock().changed.clone();
                let mut waiting = std::pin::pin!(changed.notified());
                waiting.as_mut().enable();
                let next = world.lock().changes.iter().find(|(version, ..)| seen < *version).cloned();
                let Some((version, before, after)) = next else {
                    // A bookmark is as good as a sign of life.
                    if tokio::time::timeout(Duration::from_secs(280), waiting).await.is_err() {
                        return None;
                    }
                    continue;
                };
                world.pause(Duration::from_millis(world.one_of(1.0, [30, 30_000]))).await;
                if world.trouble(0.2) {
                    return None;
                }
                let was = before.as_ref().is_some_and(unfinished);
                let is = after.as_ref().is_some_and(unfinished);
                let mut object = after.or(before).unwrap();
                object["metadata"]["resourceVersion"] = json!(version.to_string());
                let kind = match (was, is) {
                    (false, true) => "ADDED",
                    (true, true) => "MODIFIED",
                    (true, false) => "DELETED",
                    (false, false) => return Some((Bytes::from_static(b"\n"), (world, version))),
                };
                let line = format!("{}\n", json!({"type": kind, "object": object}));
                return Some((Bytes::from(line), (world, version)));
            }
        });
        let frames = events.map(|bytes| Ok::<_, Infallible>(http_body::Frame::data(bytes)));
        Response::builder().status(200).body(StreamBody::new(frames).boxed_unsync()).unwrap()
    }
}

fn unfinished(object: &Value) -> bool {
    !object["status"]["completionTime"].is_string()
}

fn done(status: u16, body: &Value) -> Answer {
    let body = http_body_util::Full::from(body.to_string()).boxed_unsync();
    Response::builder().status(status).body(body).unwrap()
}

fn refused(code: u16, reason: &str) -> Answer {
    done(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason}),
    )
}
