//! Owns the simulated API server: versions, guarded patches, requests and answers that get lost, errors before and
//! after a write took effect, slow writes.
//! Never judges what is written; that is the judges' part.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::{
    answers::any,
    assumptions::Assumption,
    judge_status::status_is_stored,
    watches,
    world::{Inner, World},
};

pub type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The API server as one replica reaches it.
#[derive(Clone)]
pub struct ApiServer {
    pub world: World,
    pub replica: usize,
}

/// What a request is about.
#[derive(Clone, PartialEq)]
enum Target {
    /// The resources of one namespace, or of all.
    Stops(Option<String>),
    /// One resource, by `namespace/name`.
    Stop(String),
    /// A Secret, by `namespace/name`.
    Secret(String),
    Nothing,
}

impl Target {
    fn of(path: &str) -> Self {
        let parts: Vec<_> = path.trim_matches('/').split('/').collect();
        match parts[..] {
            ["apis", _, _, "workflowrunstops"] => Self::Stops(None),
            ["apis", _, _, "namespaces", namespace, "workflowrunstops"] => Self::Stops(Some(namespace.to_owned())),
            ["apis", _, _, "namespaces", namespace, "workflowrunstops", name]
            | ["apis", _, _, "namespaces", namespace, "workflowrunstops", name, "status"] => {
                Self::Stop(format!("{namespace}/{name}"))
            }
            ["api", "v1", "namespaces", namespace, "secrets", name] => Self::Secret(format!("{namespace}/{name}")),
            _ => Self::Nothing,
        }
    }

    fn namespace(&self) -> Option<&str> {
        match self {
            Self::Stops(namespace) => namespace.as_deref(),
            Self::Stop(key) | Self::Secret(key) => key.split_once('/').map(|(namespace, _)| namespace),
            Self::Nothing => None,
        }
    }
}

/// When a request fails on the side of the API server.
#[derive(Clone, Copy, PartialEq)]
enum Fails {
    Never,
    Before,
    After,
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
        let query = head.uri.query().unwrap_or_default().to_owned();
        let target = Target::of(head.uri.path());
        if world.trouble(0.3) {
            world.pause(Duration::from_secs(2)).await;
            return Err("the request got lost".into());
        }
        // The request goes on its way whatever becomes of the client.
        let (answered, answer) = oneshot::channel();
        let server = self.clone();
        tokio::spawn(async move {
            world.on_the_way().await;
            if head.method == "PATCH" {
                // Webhooks and a busy etcd make a write slow.
                world.pause(Duration::from_millis(world.one_of(0.2, [0, 14_000]))).await;
            }
            let fails = world.one_of(0.3, [Fails::Never, Fails::Before, Fails::After]);
            let mut answer = match fails {
                Fails::Before => trouble(&world),
                Fails::Never | Fails::After => server.answer(&target, head.method.as_str(), &query, &body),
            };
            if fails == Fails::After && head.method != "GET" {
                answer = trouble(&world);
            }
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

    fn answer(&self, target: &Target, method: &str, query: &str, body: &[u8]) -> Answer {
        let inner = self.world.lock();
        let namespace = target.namespace();
        if namespace.is_some() && inner.faults.broken == namespace {
            return refused(500, "InternalError");
        }
        match target {
            Target::Secret(_) if inner.faults.secrets_forbidden == namespace => refused(403, "Forbidden"),
            Target::Secret(key) => inner.secrets.get(key).map_or_else(not_found, |secret| done(200, &secret)),
            Target::Stops(_) if query.contains("watch=true") || query.contains("watch=1") => {
                drop(inner);
                watches::watch(&self.world, namespace, query)
            }
            Target::Stops(_) => done(200, &watches::list(&inner, namespace)),
            Target::Stop(key) if method == "GET" => {
                let stored = inner.objects.get(key).cloned();
                drop(inner);
                self.stale(key).or(stored).map_or_else(not_found, |object| done(200, &object))
            }
            Target::Stop(key) => {
                let Some(object) = inner.objects.get(key).cloned() else { return not_found() };
                drop(inner);
                self.patch(key, &object, body)
            }
            Target::Nothing => not_found(),
        }
    }

    fn patch(&self, key: &str, object: &Value, body: &[u8]) -> Answer {
        let mut patch: json_patch::Patch = serde_json::from_slice(body).unwrap();
        let mut patched = object.clone();
        let mut refusal = false;
        if json_patch::patch(&mut patched, &patch).is_err() {
            self.world.tell(format!("replica {}: patch of {key} refused", self.replica));
            refusal = true;
            let writes = self.world.is_off(Assumption::FailedTestWritesNothing) && self.world.trouble(3.0);
            if !writes {
                return refused(422, "Invalid");
            }
            patch.0.retain(|operation| !matches!(operation, json_patch::PatchOperation::Test(_)));
            patched = object.clone();
            json_patch::patch(&mut patched, &patch).unwrap();
        }
        let mut inner = self.world.lock();
        status_is_stored(&mut inner, self.replica, key, object, &patched);
        let stored = if patched == *object { patched } else { inner.put(key, Some(patched)).unwrap() };
        if refusal { refused(422, "Invalid") } else { done(200, &stored) }
    }

    /// An earlier version of an object, if reads need not return what is stored.
    fn stale(&self, key: &str) -> Option<Value> {
        if !self.world.is_off(Assumption::GetReturnsWhatIsStored) || self.world.below(2) == 0 {
            return None;
        }
        let inner = self.world.lock();
        let is_it = |object: &&Value| key_of(object) == key;
        inner.changes.iter().rev().filter_map(|change| change.before.as_ref()).find(is_it).cloned()
    }
}

/// The key of an object: `namespace/name`.
pub fn key_of(object: &Value) -> String {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text("namespace"), text("name"))
}

pub fn is_unfinished(object: &Value) -> bool {
    !object["status"]["completionTime"].is_string()
}

pub fn is_in(object: &Value, namespace: Option<&str>) -> bool {
    namespace.is_none_or(|namespace| object["metadata"]["namespace"] == namespace)
}

/// Everything that is unfinished in a namespace, or everywhere.
pub fn unfinished<'a>(inner: &'a Inner, namespace: Option<&str>) -> Vec<&'a Value> {
    inner.objects.values().filter(|object| is_unfinished(object) && is_in(object, namespace)).collect()
}

pub fn done(status: u16, body: &Value) -> Answer {
    let body = http_body_util::Full::from(body.to_string()).boxed_unsync();
    Response::builder().status(status).body(body).unwrap()
}

/// The API server's own error object.
pub fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason})
}

pub fn refused(code: u16, reason: &str) -> Answer {
    done(code, &status(code, reason))
}

fn not_found() -> Answer {
    refused(404, "NotFound")
}

fn trouble(world: &World) -> Answer {
    let errors = [
        (403, "Forbidden"),
        (429, "TooManyRequests"),
        (503, "ServiceUnavailable"),
        (504, "Timeout"),
        (500, "InternalError"),
    ];
    let (code, reason) = any(world, &errors);
    let mut answer = refused(code, reason);
    if code == 429 {
        answer.headers_mut().insert("retry-after", 1.into());
    }
    answer
}
