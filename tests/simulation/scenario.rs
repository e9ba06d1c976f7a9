//! Owns scenarios: one replica and one resource in an undisturbed world, and a script of faults for the requests to the API server.
//! Never chooses anything at random.

use std::{
    collections::VecDeque,
    future::pending,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use http::Request;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::Service;
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{ConditionType, Reason, find},
};
use workflow_run_stop_operator::{
    amperity::{
        budget::Slot, credentials::CredentialsKey, endpoint::Endpoint, purpose::Purpose, wait_queue::Requester,
    },
    clock::Clock,
    reconcile::{
        access::Access,
        context::Context,
        decide::decide,
        reconcile,
        step_report::{Requeue, StepOutcome, StepReport},
        tracked::Tracked,
    },
};

use crate::{
    answers::{Answer, Behavior, Effect},
    apiserver::{self, ApiServer, rejected},
    choices::{Choices, Plan},
    replica::context,
    runs::Run,
    secrets::{CLIENT, STATIC},
    world::{Size, World},
};

/// The key of the resource, `namespace/name`.
pub const KEY: &str = "sim/a";

/// The id of its run.
pub const RUN: &str = "wf-1";

/// The fault of one request.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    None,
    /// It does not reach the API server.
    RequestLost,
    /// It is executed, and the client does not learn it.
    ResponseLost,
    /// It is refused with this status.
    Refused(u16),
    /// It is executed, and answered with this status: a proxy repeated it.
    Repeated(u16),
    /// Somebody changes the resource right before it arrives.
    ChangedBefore(fn(&mut Value)),
    /// The resource is deleted right before it arrives.
    DeletedBefore,
}

/// The simulated API server behind a script of faults.
#[derive(Clone)]
struct Scripted {
    server: ApiServer,
    script: Arc<Mutex<VecDeque<Fault>>>,
    /// The methods of the requests so far.
    requests: Arc<Mutex<Vec<String>>>,
}

impl Service<Request<Body>> for Scripted {
    type Response = apiserver::Answer;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<apiserver::Answer, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.requests.lock().unwrap().push(request.method().to_string());
        let fault = self.script.lock().unwrap().pop_front().unwrap_or(Fault::None);
        let mut server = self.server.clone();
        Box::pin(async move {
            match fault {
                Fault::RequestLost => return Err("the request was lost".into()),
                Fault::Refused(code) => return Ok(rejected(code, "Refused")),
                Fault::ChangedBefore(change) => change_stored(&server.world, change),
                Fault::DeletedBefore => drop(server.world.lock().put(KEY, None)),
                Fault::None | Fault::ResponseLost | Fault::Repeated(_) => {}
            }
            let answer = server.call(request).await?;
            match fault {
                Fault::ResponseLost => Err("the response was lost".into()),
                Fault::Repeated(code) => Ok(rejected(code, "Repeated")),
                Fault::None
                | Fault::RequestLost
                | Fault::Refused(_)
                | Fault::ChangedBefore(_)
                | Fault::DeletedBefore => Ok(answer),
            }
        })
    }
}

/// One replica, and one resource with its Secret and its run, which is active.
pub struct Scenario {
    pub world: World,
    /// The context of the replica.
    pub context: Context,
    /// The replica's client of the API server.
    pub client: Client,
    /// The resource as the replica knows it.
    pub tracked: Tracked,
    script: Arc<Mutex<VecDeque<Fault>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Scenario {
    pub fn new() -> Self {
        let world = World::new(Choices::Plan(Plan::default()), Size::Small, None);
        drop(world.lock().start_process(0, None));
        let (namespace, name) = KEY.split_once('/').unwrap();
        let object = json!({
            "apiVersion": "workflow.amperity.com/v1alpha1",
            "kind": "WorkflowRunStop",
            "metadata": {"name": name, "namespace": namespace, "uid": "uid-1", "generation": 1},
            "spec": {"runId": RUN, "tenant": "acme", "credentialsSecretRef": {"name": STATIC}},
        });
        {
            let mut inner = world.lock();
            inner.runs.insert(RUN.to_owned(), Run::new("uid-1"));
            inner.put(KEY, Some(object));
        }
        let (script, requests) = (Arc::default(), Arc::default());
        let server = ApiServer { world: world.clone(), replica: 0 };
        let service = Scripted { server, script: Arc::clone(&script), requests: Arc::clone(&requests) };
        let clock: Clock = {
            let world = world.clone();
            Arc::new(move || world.lock().wall(0))
        };
        let client = Client::new(service, namespace);
        let context = context(&world, 0, client.clone(), clock);
        let tracked = Tracked::new(stored(&world));
        Self { world, context, client, tracked, script, requests }
    }

    /// Sets the faults of the next requests to the API server.
    pub fn faults(&self, faults: &[Fault]) {
        *self.script.lock().unwrap() = faults.iter().copied().collect();
        self.requests.lock().unwrap().clear();
    }

    /// Returns the methods of the requests to the API server since the last call of [`Self::faults`].
    pub fn requests(&self) -> String {
        self.requests.lock().unwrap().join(" ")
    }

    /// Returns the resource as it is stored.
    pub fn stored(&self) -> WorkflowRunStop {
        stored(&self.world)
    }

    /// Changes the stored resource.
    pub fn change(&self, change: fn(&mut Value)) {
        change_stored(&self.world, change);
    }
}

/// Returns the resource as it is stored.
pub fn stored(world: &World) -> WorkflowRunStop {
    serde_json::from_value(world.lock().objects[KEY].clone()).unwrap()
}

fn change_stored(world: &World, change: fn(&mut Value)) {
    let mut inner = world.lock();
    let mut object = inner.objects[KEY].clone();
    change(&mut object);
    inner.put(KEY, Some(object));
}

/// Lets another replica claim the resource.
pub fn claim_of_another(object: &mut Value) {
    object["status"] = json!({
        "stopRequest": {"attempts": 2, "claim": {"id": "other", "holder": "replica-1", "time": "2027-01-15T08:00:00Z"}},
    });
}

/// Finishes the resource.
pub fn finish(object: &mut Value) {
    object["status"]["completionTime"] = json!("2027-01-15T08:00:00Z");
}

/// The steps of tests of single reconciliations.
impl Scenario {
    /// Lets the run answer every stop request like this.
    pub fn stops(&self, answer: Answer, effect: Effect) {
        self.world.lock().runs.get_mut(RUN).unwrap().stop_fault = Some(Behavior { answer, effect });
    }

    /// Lets the run be stopping, and stop requests be accepted.
    pub fn is_stopping(&self) {
        self.world.lock().runs.get_mut(RUN).unwrap().set_state("stopping");
        self.stops(Answer::Run(200), Effect::None);
    }

    /// Lets the run answer every read like this.
    pub fn reads(&self, answer: Answer) {
        self.world.lock().runs.get_mut(RUN).unwrap().read_fault = Some(answer);
    }

    /// Reconciles once, with the newest version of the resource, and with a slot if the step needs one.
    pub async fn step(&mut self) -> StepReport {
        *self.tracked.resource = self.stored();
        let (facts, observed) = (self.tracked.facts(), self.tracked.observed());
        let slot = match decide(&facts, self.context.now(), &observed, &self.context.rules).purpose() {
            Some(purpose) => Some(self.slot(purpose).await),
            None => None,
        };
        reconcile(&self.context, &mut self.tracked, slot, pin!(pending())).await
    }

    /// Returns the requester of a slot for the resource.
    pub fn requester(&self, purpose: Purpose) -> Requester {
        let stored = self.stored();
        let secret = &stored.spec.credentials_secret_ref.name;
        Requester::new(stored.namespace(), secret, purpose, stored.created())
    }

    /// Waits for a slot for the resource.
    pub async fn slot(&self, purpose: Purpose) -> Slot {
        self.context.budget.acquire(&self.endpoint().budget_key(), &self.requester(purpose)).await
    }

    /// Reconciles, waiting as each step asks for, until a step writes something.
    pub async fn step_that_writes(&mut self) -> StepReport {
        for _ in 0..100 {
            let report = self.step().await;
            match (&report.outcome, report.requeue) {
                (StepOutcome::Unchanged, Requeue::At(then)) => tokio::time::sleep_until(then).await,
                (StepOutcome::Unchanged, Requeue::Now) => {}
                _ => return report,
            }
        }
        panic!("100 steps wrote nothing: {:?}", self.stored().status)
    }

    pub fn reason(&self) -> Option<Reason> {
        let status = self.stored().status?;
        find(&status.conditions, ConditionType::Ready).and_then(Reason::of)
    }

    /// Returns the number of stop requests that were written.
    pub fn posts(&self) -> usize {
        self.world.lock().runs[RUN].posts.len()
    }

    /// Lets the resource use the Secret of an OAuth client instead of the one with a static token.
    pub fn uses_client(&self) {
        self.change(|object| object["spec"]["credentialsSecretRef"]["name"] = CLIENT.into());
    }

    /// Returns the credentials for a request, with a token that is fetched if the cache has none.
    pub async fn access(&self) -> Access {
        let slot = self.slot(Purpose::Read).await;
        let access = self.context.access(&self.requester(Purpose::Read), &self.endpoint(), slot).await;
        access.unwrap_or_else(|_| panic!("there is a token")).0
    }

    pub fn endpoint(&self) -> Endpoint {
        self.context.endpoints.of("acme", None).unwrap()
    }

    /// Returns the key of the credentials in the Secret as it is now.
    pub async fn credentials_key(&self, name: &str) -> CredentialsKey {
        let secret = self.context.store.secret("sim", name).await.unwrap().unwrap();
        CredentialsKey { namespace: "sim".into(), secret: secret.version, budget: self.endpoint().budget_key() }
    }

    /// Closes the budget of the tenant, as a 429 to another request does.
    pub async fn close_budget(&self, wait: Duration) {
        let slot = self.slot(Purpose::Token).await;
        slot.mark_sent();
        slot.record_rate_limited(Some(wait));
    }

    /// Lets another process accept the stop.
    pub fn is_accepted(&self) {
        self.world.lock().runs.get_mut(RUN).unwrap().set_state("stopping");
        self.change(|object| {
            object["status"]["stopRequest"] = json!({"attempts": 1, "acceptedTime": "2027-01-15T08:00:00Z"});
        });
    }
}

/// Returns the time until the next reconciliation; `None` if only a change requeues the resource.
pub fn wait(requeue: Requeue) -> Option<Duration> {
    match requeue {
        Requeue::Now => Some(Duration::ZERO),
        Requeue::At(then) => Some(then.saturating_duration_since(Instant::now())),
        Requeue::OnChange => None,
    }
}

/// Longer than a stop waits for the rate limit before its status says so.
pub const LONG: Duration = Duration::from_secs(10);
