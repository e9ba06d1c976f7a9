//! Owns the steady stream of new stops, their scenarios, and the sweeps that check and delete finished ones.
//! Never gives up on the API server: requests are retried until it responds.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use lab::simulator::{RepeatedStop, Run, Simulator, StopResponseTasks};
use rand::{RngExt, rngs::StdRng};
use serde_json::json;
use tokio::{
    sync::RwLock,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use workflow_run_stop_api::{
    WorkflowRunStop, WorkflowRunStopSpec,
    conditions::{ConditionType, Reason, find},
};

use crate::tracker::{Scenario, TrackedStop, Tracker};

const TENANTS: [&str; 3] = ["acme", "acme2-max", "globex"];

/// The interval between new stops.
const INTERVAL: Duration = Duration::from_millis(200);

/// The maximum number of unfinished stops. It is reached early and often, so that the peak resource usage of a replica
/// depends on it and not on chance.
const MAX_UNFINISHED: usize = 80;

/// Time after which a suspended stop is deleted.
const SUSPENDED_FOR: Duration = Duration::from_secs(60);

/// Timeout of one request to the API server, which is killed and paused at times.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The prefix of the ids of unreadable runs.
const UNREADABLE: &str = "wf-unreadable-";

/// The name of the Secret with a token.
pub const TOKEN: &str = "token";
/// The name of the Secret with client id and client secret.
pub const CLIENT: &str = "client";

/// The load on the operator.
pub struct Load {
    pub client: Client,
    pub namespaces: Vec<String>,
    pub amperity: Arc<RwLock<Simulator>>,
    pub tracker: Tracker,
    /// Number of planned stops so far.
    pub created: AtomicUsize,
}

/// The random plan of one stop.
struct StopPlan {
    number: usize,
    scenario: Scenario,
    namespace: usize,
    tenant: &'static str,
    secret: &'static str,
    /// Delay of the events of the scenario.
    after: Duration,
}

impl StopPlan {
    fn new(number: usize, rng: &mut StdRng) -> Self {
        let total = Scenario::WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut rest = rng.random_range(0..total);
        let chosen = Scenario::WEIGHTS.iter().find(|(_, weight)| {
            let found = rest < *weight;
            rest = rest.saturating_sub(*weight);
            found
        });
        Self {
            number,
            scenario: chosen.unwrap().0,
            namespace: rng.random_range(0..2),
            tenant: TENANTS[rng.random_range(0..TENANTS.len())],
            secret: if rng.random_bool(0.3) { CLIENT } else { TOKEN },
            after: Duration::from_millis(rng.random_range(0..6000)),
        }
    }

    fn run_id(&self) -> String {
        let prefix = if self.scenario == Scenario::UnreadableRun { UNREADABLE } else { "wf-" };
        format!("{prefix}{}", self.number)
    }

    fn run(&self, id: &str) -> Run {
        let odd = self.number % 2 == 1;
        let run = Run::new(id).with_tasks(self.number % 9);
        match self.scenario {
            Scenario::Followed if odd => run.stops_in(self.after).failing_with_error(),
            Scenario::Followed => run.stops_in(self.after),
            Scenario::UnreadableRun => run.unreadable(403),
            Scenario::EndsOnItsOwn if odd => {
                run.ends_on_its_own("succeeded", self.after).on_repeated_stop(RepeatedStop::Conflict409)
            }
            Scenario::EndsOnItsOwn => run.ends_on_its_own("failed", self.after),
            _ if odd => run.stop_response_tasks(StopResponseTasks::Full),
            Scenario::Plain
            | Scenario::Ttl
            | Scenario::NotFollowed
            | Scenario::Resumed
            | Scenario::Suspended
            | Scenario::Deleted
            | Scenario::Recreated
            | Scenario::UnknownRun
            | Scenario::ShortDeadline => run.stop_response_tasks(StopResponseTasks::Empty),
        }
    }

    fn stop(&self, run: &str) -> WorkflowRunStop {
        let mut spec = WorkflowRunStopSpec::new(run, self.tenant, self.secret);
        spec.suspend = matches!(self.scenario, Scenario::Suspended | Scenario::Resumed);
        spec.ttl_seconds_after_finished = self.scenario.has_ttl().then_some(5);
        spec.stop_deadline_seconds = (self.scenario == Scenario::ShortDeadline).then_some(5);
        if self.scenario == Scenario::NotFollowed {
            spec.follow_timeout_seconds = 0;
        }
        WorkflowRunStop::new(&format!("stop-{}", self.number), spec)
    }
}

impl Load {
    fn api(&self, namespace: usize) -> Api<WorkflowRunStop> {
        Api::namespaced(self.client.clone(), &self.namespaces[namespace])
    }

    /// Creates stops until it is cancelled, then waits until their scenarios are complete.
    pub async fn run(self: Arc<Self>, mut rng: StdRng, cancel: CancellationToken) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut scenarios = JoinSet::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                _ = ticks.tick() => {}
            }
            while scenarios.try_join_next().is_some_and(|scenario| scenario.is_ok()) {}
            if self.tracker.lock().open.len() < MAX_UNFINISHED {
                let plan = StopPlan::new(self.created.fetch_add(1, Relaxed), &mut rng);
                scenarios.spawn(Arc::clone(&self).run_scenario(plan, cancel.clone()));
            }
        }
        while let Some(scenario) = scenarios.join_next().await {
            scenario.unwrap();
        }
    }

    /// Applies one stop and runs its scenario.
    async fn run_scenario(self: Arc<Self>, plan: StopPlan, cancel: CancellationToken) {
        let run = plan.run_id();
        let api = self.api(plan.namespace);
        let name = format!("stop-{}", plan.number);
        match plan.scenario {
            Scenario::Deleted => {
                self.apply(&plan, &run, false).await;
                sleep(plan.after / 4).await;
                delete(&api, &name).await;
            }
            Scenario::Recreated => {
                self.apply(&plan, &run, false).await;
                sleep(plan.after / 4).await;
                delete(&api, &name).await;
                self.apply(&plan, &format!("{run}-again"), true).await;
            }
            Scenario::Resumed => {
                self.apply(&plan, &run, true).await;
                sleep(plan.after * 2).await;
                let params = PatchParams::default();
                let resume = Patch::Merge(json!({"spec": {"suspend": false}}));
                let resumed = retry_until_response(|| api.patch(&name, &params, &resume)).await;
                resumed.expect("a suspended stop exists");
            }
            Scenario::Suspended => {
                let uid = self.apply(&plan, &run, true).await;
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = sleep(SUSPENDED_FOR) => {}
                }
                self.tracker.lock().open.remove(&uid);
                delete(&api, &name).await;
                self.check_nothing_sent(&run).await;
            }
            Scenario::Plain
            | Scenario::Ttl
            | Scenario::Followed
            | Scenario::NotFollowed
            | Scenario::UnknownRun
            | Scenario::UnreadableRun
            | Scenario::EndsOnItsOwn
            | Scenario::ShortDeadline => drop(self.apply(&plan, &run, true).await),
        }
    }

    /// Adds a run and creates a stop of it, whose result is checked if `tracked`. Returns its uid.
    async fn apply(&self, plan: &StopPlan, run: &str, tracked: bool) -> String {
        if plan.scenario != Scenario::UnknownRun {
            self.amperity.read().await.add_run(plan.tenant, plan.run(run));
        }
        self.tracker.lock().runs.push(run.to_owned());
        let (api, stop, params) = (self.api(plan.namespace), plan.stop(run), PostParams::default());
        let created = match retry_until_response(|| api.create(&params, &stop)).await {
            Ok(created) => Some(created),
            // It was created, but the response was lost. It may have finished and been deleted since.
            Err(status) if status.code == 409 => retry_until_response(|| api.get(stop.name())).await.ok(),
            Err(status) => panic!("the API server rejected a stop: {status}"),
        };
        let uid = created.map(|created| created.uid().to_owned()).unwrap_or_default();
        if tracked && !uid.is_empty() {
            let tracked_stop = TrackedStop { scenario: plan.scenario, tenant: plan.tenant, run: run.to_owned() };
            self.tracker.lock().open.insert(uid.clone(), tracked_stop);
        }
        uid
    }

    /// Lists all stops, and checks and deletes the finished ones. Returns those that are unexpectedly unfinished, or
    /// `None` if the API server did not respond.
    pub async fn sweep(&self) -> Option<Vec<String>> {
        let tracked = self.tracker.lock().open.clone();
        let mut listed = HashMap::new();
        for namespace in 0..self.namespaces.len() {
            let api = self.api(namespace);
            let list = timeout(REQUEST_TIMEOUT, async { api.list(&ListParams::default()).await }).await.ok()?.ok()?;
            listed.extend(list.items.into_iter().map(|stop| (stop.uid().to_owned(), (namespace, stop))));
        }
        let (mut unfinished, mut to_delete) = (vec![], vec![]);
        let amperity = self.amperity.read().await;
        for (uid, tracked_stop) in tracked {
            match listed.get(&uid) {
                None => self.tracker.check(&uid, None, &amperity),
                Some((namespace, stop)) if stop.is_finished() => {
                    self.tracker.check(&uid, Some(stop), &amperity);
                    to_delete.extend((!tracked_stop.scenario.has_ttl()).then(|| (*namespace, stop.name().to_owned())));
                }
                Some((_, stop)) if tracked_stop.scenario == Scenario::Suspended && is_suspended(stop) => {}
                Some((_, stop)) => unfinished.push(format!("{tracked_stop:?}: {:?}", stop.status)),
            }
        }
        self.tracker.check_requests(&amperity);
        amperity.clear_requests();
        drop(amperity);
        for (namespace, name) in to_delete {
            let api = self.api(namespace);
            delete(&api, &name).await;
        }
        Some(unfinished)
    }

    /// Checks the stops that still exist at the end.
    pub async fn check_remaining(&self) {
        for namespace in 0..self.namespaces.len() {
            let list = self.api(namespace).list(&ListParams::default()).await.unwrap();
            for stop in list.items.iter().filter(|stop| !stop.is_finished()) {
                if stop.spec.suspend {
                    self.check_nothing_sent(&stop.spec.run_id).await;
                } else {
                    self.tracker.record_violation(format!("{}: never finished: {:?}", stop.spec.run_id, stop.status));
                }
            }
        }
    }

    /// Checks that no stop request was sent for the run of a suspended stop.
    async fn check_nothing_sent(&self, run: &str) {
        let effects = self.amperity.read().await.stop_effects(run);
        if !effects.is_empty() {
            self.tracker.record_violation(format!("{run}: stop requests were sent while suspended: {effects:?}"));
        }
    }

    /// Applies a Secret with this name and data in every namespace.
    pub async fn put_secret(&self, name: &str, data: &[(&str, &str)]) {
        let data: BTreeMap<_, _> = data.iter().copied().collect();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data,
        });
        for namespace in &self.namespaces {
            let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
            let (params, secret) = (PatchParams::apply("soak"), Patch::Apply(&secret));
            retry_until_response(|| api.patch(name, &params, &secret)).await.expect("a valid Secret");
        }
    }
}

/// Returns whether a stop is suspended, reports it in its status, and has no claim.
fn is_suspended(stop: &WorkflowRunStop) -> bool {
    let conditions = stop.status.iter().flat_map(|status| &status.conditions).cloned().collect::<Vec<_>>();
    let ready = find(&conditions, ConditionType::Ready);
    stop.spec.suspend && stop.claim().is_none() && ready.is_some_and(|ready| ready.reason == Reason::Suspended.as_str())
}

/// Deletes a stop, which may not exist any more.
async fn delete(api: &Api<WorkflowRunStop>, name: &str) {
    let params = DeleteParams::default();
    let _ = retry_until_response(|| api.delete(name, &params)).await;
}

/// Sends a request until the API server accepts it, or rejects it with 404, 409 or 422.
async fn retry_until_response<T, F>(send: impl Fn() -> F) -> Result<T, Box<kube::core::Status>>
where
    F: Future<Output = kube::Result<T>>,
{
    loop {
        match timeout(REQUEST_TIMEOUT, send()).await {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409 | 422) => return Err(status),
            Ok(Err(_)) | Err(_) => sleep(Duration::from_millis(200)).await,
        }
    }
}
