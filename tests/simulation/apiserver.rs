//! Owns the simulated API server: versions, patches with tests, lost requests and responses, errors before and after a
//! write is stored, slow writes.
//! Never judges what is written: judge_status does.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::{answers::pick, assumptions::Assumption, judge_status::check_status, watches, world::World};

pub type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The API server as one replica reaches it.
#[derive(Clone)]
pub struct ApiServer {
    pub world: World,
    pub replica: usize,
}

/// The object or list that a request is for.
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

/// An error that the API server returns in place of its answer.
#[derive(Clone, Copy, PartialEq)]
enum InjectedError {
    None,
    /// The request is not executed.
    BeforeExecution,
    /// The request is executed.
    AfterExecution,
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
        if world.fault_occurs(0.3) {
            world.delay(Duration::from_secs(2)).await;
            return Err("the request was lost".into());
        }
        // A request that was written arrives even if the client goes away.
        let (answered, answer) = oneshot::channel();
        let server = self.clone();
        tokio::spawn(async move {
            world.network_delay().await;
            if head.method == "PATCH" {
                // Admission webhooks and a busy etcd make a write slow.
                world.delay(Duration::from_millis(world.choose(0.2, [0, 14_000]))).await;
            }
            let error =
                world.choose(0.3, [InjectedError::None, InjectedError::BeforeExecution, InjectedError::AfterExecution]);
            let mut answer = match error {
                InjectedError::BeforeExecution => error_response(&world),
                InjectedError::None | InjectedError::AfterExecution => {
                    server.answer(&target, head.method.as_str(), &query, &body)
                }
            };
            if error == InjectedError::AfterExecution && head.method != "GET" {
                answer = error_response(&world);
            }
            let lost = world.fault_occurs(0.5);
            world.network_delay().await;
            if !lost {
                let _ = answered.send(answer);
            }
        });
        let answer = answer.await.map_err(|_| "the response was lost")?;
        self.world.step(self.replica).await;
        Ok(answer)
    }

    fn answer(&self, target: &Target, method: &str, query: &str, body: &[u8]) -> Answer {
        let inner = self.world.lock();
        let namespace = target.namespace();
        if namespace.is_some() && inner.faults.failing_namespace == namespace {
            return rejected(500, "InternalError");
        }
        match target {
            Target::Secret(_) if inner.faults.secrets_forbidden == namespace => rejected(403, "Forbidden"),
            Target::Secret(key) => inner.secrets.get(key).map_or_else(not_found, |secret| response(200, &secret)),
            Target::Stops(_) if query.contains("watch=true") || query.contains("watch=1") => {
                drop(inner);
                watches::watch(&self.world, namespace, query)
            }
            Target::Stops(_) => {
                drop(inner);
                watches::list(&self.world, namespace, query)
            }
            Target::Stop(key) if method == "GET" => {
                let stored = inner.objects.get(key).cloned();
                drop(inner);
                self.stale(key).or(stored).map_or_else(not_found, |object| response(200, &object))
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
        let mut test_failed = false;
        if json_patch::patch(&mut patched, &patch).is_err() {
            self.world.log(format!("replica {}: patch of {key} rejected", self.replica));
            test_failed = true;
            let writes = self.world.is_off(Assumption::FailedTestWritesNothing) && self.world.fault_occurs(3.0);
            if !writes {
                return rejected(422, "Invalid");
            }
            patch.0.retain(|operation| !matches!(operation, json_patch::PatchOperation::Test(_)));
            patched = object.clone();
            json_patch::patch(&mut patched, &patch).unwrap();
        }
        let mut inner = self.world.lock();
        check_status(&mut inner, self.replica, key, object, &patched);
        let stored = if patched == *object { patched } else { inner.put(key, Some(patched)).unwrap() };
        if test_failed { rejected(422, "Invalid") } else { response(200, &stored) }
    }

    /// Returns an earlier version of an object, if a GET need not return the stored one.
    fn stale(&self, key: &str) -> Option<Value> {
        if !self.world.is_off(Assumption::GetReturnsWhatIsStored) || self.world.below(2) == 0 {
            return None;
        }
        let inner = self.world.lock();
        let has_key = |object: &&Value| key_of(object) == key;
        inner.changes.iter().rev().filter_map(|change| change.before.as_ref()).find(has_key).cloned()
    }
}

/// Returns the key of an object: `namespace/name`.
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

pub fn response(status: u16, body: &Value) -> Answer {
    let body = http_body_util::Full::from(body.to_string()).boxed_unsync();
    Response::builder().status(status).body(body).unwrap()
}

/// Returns the API server's error object.
pub fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason})
}

pub fn rejected(code: u16, reason: &str) -> Answer {
    response(code, &status(code, reason))
}

fn not_found() -> Answer {
    rejected(404, "NotFound")
}

/// Picks an error of the API server.
fn error_response(world: &World) -> Answer {
    let errors = [
        (403, "Forbidden"),
        (429, "TooManyRequests"),
        (503, "ServiceUnavailable"),
        (504, "Timeout"),
        (500, "InternalError"),
    ];
    let (code, reason) = pick(world, &errors);
    let mut answer = rejected(code, reason);
    if code == 429 {
        answer.headers_mut().insert("retry-after", 1.into());
    }
    answer
}
