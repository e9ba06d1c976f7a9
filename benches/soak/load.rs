//! Owns the steady stream of new stops, what happens to each of them, and the sweeps that judge and remove them.
//! Never gives up on the API server: what it asks it asks until there is an answer.

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
use lab::simulator::{Again, Run, Simulator, StopAnswerTasks};
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

use crate::book::{Book, Errand, Kind};

const TENANTS: [&str; 3] = ["acme", "acme2-max", "globex"];

/// The time from one stop to the next.
const PACE: Duration = Duration::from_millis(200);

/// While so many stops are unfinished no new ones come. It is reached early and often, so that what a process needs
/// at the most depends on this and not on luck.
const MOST_UNFINISHED: usize = 80;

/// How long a stop stays suspended that nobody resumes.
const SUSPENDED_FOR: Duration = Duration::from_secs(60);

/// The longest wait for one answer of the API server, which is killed and paused.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The runs of this name cannot be read.
const SEALED: &str = "wf-sealed-";

/// The Secrets with a token, and with a client's id and secret.
pub const TOKEN: &str = "token";
pub const CLIENT: &str = "client";

/// Where stops are made.
pub struct Load {
    pub client: Client,
    pub namespaces: Vec<String>,
    pub amperity: Arc<RwLock<Simulator>>,
    pub book: Book,
    pub made: AtomicUsize,
}

/// What was drawn for one stop.
struct Draw {
    number: usize,
    kind: Kind,
    namespace: usize,
    tenant: &'static str,
    secret: &'static str,
    /// The moment at which something happens to it or its run.
    after: Duration,
}

impl Draw {
    fn new(number: usize, rng: &mut StdRng) -> Self {
        let all = Kind::SHARES.iter().map(|(_, share)| share).sum();
        let mut at = rng.random_range(0..all);
        let drawn = Kind::SHARES.iter().find(|(_, share)| {
            let found = at < *share;
            at = at.saturating_sub(*share);
            found
        });
        Self {
            number,
            kind: drawn.unwrap().0,
            namespace: rng.random_range(0..2),
            tenant: TENANTS[rng.random_range(0..TENANTS.len())],
            secret: if rng.random_bool(0.3) { CLIENT } else { TOKEN },
            after: Duration::from_millis(rng.random_range(0..6000)),
        }
    }

    fn run_id(&self) -> String {
        let start = if self.kind == Kind::Sealed { SEALED } else { "wf-" };
        format!("{start}{}", self.number)
    }

    fn run(&self, id: &str) -> Run {
        let odd = self.number % 2 == 1;
        let run = Run::new(id).with_tasks(self.number % 9);
        match self.kind {
            Kind::Followed if odd => run.stops_in(self.after).failing_with_error(),
            Kind::Followed => run.stops_in(self.after),
            Kind::Sealed => run.unreadable(403),
            Kind::Ending if odd => run.ends_on_its_own("succeeded", self.after).again(Again::Conflict409),
            Kind::Ending => run.ends_on_its_own("failed", self.after),
            _ if odd => run.stop_answer_tasks(StopAnswerTasks::Full),
            Kind::Kept
            | Kind::Expiring
            | Kind::Unfollowed
            | Kind::Resumed
            | Kind::Suspended
            | Kind::Deleted
            | Kind::Recreated
            | Kind::Unknown
            | Kind::Hurried => run.stop_answer_tasks(StopAnswerTasks::Empty),
        }
    }

    fn stop(&self, run: &str) -> WorkflowRunStop {
        let mut spec = WorkflowRunStopSpec::new(run, self.tenant, self.secret);
        spec.suspend = matches!(self.kind, Kind::Suspended | Kind::Resumed);
        spec.ttl_seconds_after_finished = self.kind.expires().then_some(5);
        spec.stop_deadline_seconds = (self.kind == Kind::Hurried).then_some(5);
        if self.kind == Kind::Unfollowed {
            spec.follow_timeout_seconds = 0;
        }
        WorkflowRunStop::new(&format!("stop-{}", self.number), spec)
    }
}

impl Load {
    fn api(&self, namespace: usize) -> Api<WorkflowRunStop> {
        Api::namespaced(self.client.clone(), &self.namespaces[namespace])
    }

    /// Makes stops until it is told to end, and then waits until nothing more is to happen to them.
    pub async fn run(self: Arc<Self>, mut rng: StdRng, end: CancellationToken) {
        let mut ticks = interval(PACE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut lives = JoinSet::new();
        loop {
            tokio::select! {
                () = end.cancelled() => break,
                _ = ticks.tick() => {}
            }
            while lives.try_join_next().is_some_and(|life| life.is_ok()) {}
            if self.book.pages().open.len() < MOST_UNFINISHED {
                let draw = Draw::new(self.made.fetch_add(1, Relaxed), &mut rng);
                lives.spawn(Arc::clone(&self).live(draw, end.clone()));
            }
        }
        while let Some(life) = lives.join_next().await {
            life.unwrap();
        }
    }

    async fn live(self: Arc<Self>, draw: Draw, end: CancellationToken) {
        let run = draw.run_id();
        let api = self.api(draw.namespace);
        let name = format!("stop-{}", draw.number);
        match draw.kind {
            Kind::Deleted => {
                self.apply(&draw, &run, false).await;
                sleep(draw.after / 4).await;
                remove(&api, &name).await;
            }
            Kind::Recreated => {
                self.apply(&draw, &run, false).await;
                sleep(draw.after / 4).await;
                remove(&api, &name).await;
                self.apply(&draw, &format!("{run}-again"), true).await;
            }
            Kind::Resumed => {
                self.apply(&draw, &run, true).await;
                sleep(draw.after * 2).await;
                let params = PatchParams::default();
                let resume = Patch::Merge(json!({"spec": {"suspend": false}}));
                let resumed = insist(|| api.patch(&name, &params, &resume)).await;
                resumed.expect("a suspended stop stays");
            }
            Kind::Suspended => {
                let uid = self.apply(&draw, &run, true).await;
                tokio::select! {
                    () = end.cancelled() => return,
                    () = sleep(SUSPENDED_FOR) => {}
                }
                self.book.pages().open.remove(&uid);
                remove(&api, &name).await;
                self.nothing_sent(&run).await;
            }
            Kind::Kept
            | Kind::Expiring
            | Kind::Followed
            | Kind::Unfollowed
            | Kind::Unknown
            | Kind::Sealed
            | Kind::Ending
            | Kind::Hurried => drop(self.apply(&draw, &run, true).await),
        }
    }

    /// Adds a run and applies a stop of it, which is judged where it is tracked; its uid.
    async fn apply(&self, draw: &Draw, run: &str, tracked: bool) -> String {
        if draw.kind != Kind::Unknown {
            self.amperity.read().await.add_run(draw.tenant, draw.run(run));
        }
        self.book.pages().runs.push(run.to_owned());
        let (api, stop, params) = (self.api(draw.namespace), draw.stop(run), PostParams::default());
        let created = match insist(|| api.create(&params, &stop)).await {
            Ok(created) => Some(created),
            // It was created when the answer got lost, and may have gone through all since.
            Err(status) if status.code == 409 => insist(|| api.get(stop.name())).await.ok(),
            Err(status) => panic!("the API server refuses a stop: {status}"),
        };
        let uid = created.map(|created| created.uid().to_owned()).unwrap_or_default();
        if tracked && !uid.is_empty() {
            let errand = Errand { kind: draw.kind, tenant: draw.tenant, run: run.to_owned() };
            self.book.pages().open.insert(uid.clone(), errand);
        }
        uid
    }

    /// Looks at everything, judges what has finished and removes it; what is unfinished and not meant to be, unless
    /// the API server did not answer.
    pub async fn sweep(&self) -> Option<Vec<String>> {
        let known = self.book.pages().open.clone();
        let mut listed = HashMap::new();
        for namespace in 0..self.namespaces.len() {
            let api = self.api(namespace);
            let list = timeout(ANSWER_WITHIN, async { api.list(&ListParams::default()).await }).await.ok()?.ok()?;
            listed.extend(list.items.into_iter().map(|stop| (stop.uid().to_owned(), (namespace, stop))));
        }
        let (mut unfinished, mut to_remove) = (vec![], vec![]);
        let amperity = self.amperity.read().await;
        for (uid, errand) in known {
            match listed.get(&uid) {
                None => self.book.close(&uid, None, &amperity),
                Some((namespace, stop)) if stop.is_finished() => {
                    self.book.close(&uid, Some(stop), &amperity);
                    to_remove.extend((!errand.kind.expires()).then(|| (*namespace, stop.name().to_owned())));
                }
                Some((_, stop)) if errand.kind == Kind::Suspended && is_suspended(stop) => {}
                Some((_, stop)) => unfinished.push(format!("{errand:?}: {:?}", stop.status)),
            }
        }
        self.book.once(&amperity);
        amperity.forget();
        drop(amperity);
        for (namespace, name) in to_remove {
            let api = self.api(namespace);
            remove(&api, &name).await;
        }
        Some(unfinished)
    }

    /// Looks at all that the cluster still has when everything is over.
    pub async fn rest(&self) {
        for namespace in 0..self.namespaces.len() {
            let list = self.api(namespace).list(&ListParams::default()).await.unwrap();
            for stop in list.items.iter().filter(|stop| !stop.is_finished()) {
                if stop.spec.suspend {
                    self.nothing_sent(&stop.spec.run_id).await;
                } else {
                    self.book.broken(format!("{}: it never finished: {:?}", stop.spec.run_id, stop.status));
                }
            }
        }
    }

    async fn nothing_sent(&self, run: &str) {
        let took = self.amperity.read().await.took_effect(run);
        if !took.is_empty() {
            self.book.broken(format!("{run}: it was suspended, and stops were sent: {took:?}"));
        }
    }

    /// Gives a Secret of this name, with this content, to every namespace.
    pub async fn put_secret(&self, name: &str, data: &[(&str, &str)]) {
        let data: BTreeMap<_, _> = data.iter().copied().collect();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data,
        });
        for namespace in &self.namespaces {
            let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
            let (params, secret) = (PatchParams::apply("soak"), Patch::Apply(&secret));
            insist(|| api.patch(name, &params, &secret)).await.expect("a good Secret");
        }
    }
}

/// That it is suspended, that it says so, and that it has no claim.
fn is_suspended(stop: &WorkflowRunStop) -> bool {
    let conditions = stop.status.iter().flat_map(|status| &status.conditions).cloned().collect::<Vec<_>>();
    let ready = find(&conditions, ConditionType::Ready);
    stop.spec.suspend && stop.claim().is_none() && ready.is_some_and(|ready| ready.reason == Reason::Suspended.as_str())
}

/// Deletes a stop, which may be gone already.
async fn remove(api: &Api<WorkflowRunStop>, name: &str) {
    let params = DeleteParams::default();
    let _ = insist(|| api.delete(name, &params)).await;
}

/// Asks the API server until it takes the request, or says that it is not as the request assumes.
async fn insist<T, F>(ask: impl Fn() -> F) -> Result<T, Box<kube::core::Status>>
where
    F: Future<Output = kube::Result<T>>,
{
    loop {
        match timeout(ANSWER_WITHIN, ask()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409 | 422) => return Err(status),
            Ok(Err(_)) | Err(_) => sleep(Duration::from_millis(200)).await,
        }
    }
}
