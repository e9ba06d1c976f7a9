//! Owns many stops at the same point of the protocol, what is seen of them, and the promises that hold at their end.
//! Never decides when a process ends.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt;
use kube::runtime::{
    WatchStreamExt,
    watcher::{self, Event, watcher},
};
use lab::{
    apiserver_proxy::{ApiserverProxy, Call, Purpose},
    simulator::{Kind, Recorded},
};
use tokio::{sync::watch, time::timeout};
use workflow_run_stop_api::WorkflowRunStop;

use crate::support::{Operator, Place, TENANT, a_stop, ends_at_once, ready, request};

/// Nothing here takes so long; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(90);

type Stops = BTreeMap<String, WorkflowRunStop>;

/// Many runs and the stops of them.
pub struct Batch {
    pub place: Place,
    pub runs: Vec<String>,
    seen: watch::Receiver<Stops>,
}

impl Batch {
    /// So many runs that a stop ends; nothing is applied yet.
    pub async fn new(count: usize) -> Self {
        Self::at(Place::new().await, count)
    }

    /// The same at this place.
    pub fn at(place: Place, count: usize) -> Self {
        let runs: Vec<_> = (0..count).map(|number| format!("wf-{number:03}")).collect();
        for run in &runs {
            // A second stop that comes while the first one is at work counts as an effect.
            place.amperity.add_run(TENANT, ends_at_once(run).stops_in(Duration::from_secs(3)));
        }
        let seen = seen(&place);
        Self { place, runs, seen }
    }

    /// Applies a stop of each run.
    pub async fn apply(&self) {
        self.place.apply_all(self.runs.iter().map(|run| a_stop(run))).await;
    }

    /// An operator that is in no way slowed down, besides what these flags say.
    pub async fn operator(&self, flags: &[&str]) -> Operator {
        self.place.operator_with(&[&["--requests-per-second", "1000"], flags].concat()).await
    }

    /// The same behind a proxy.
    pub async fn operator_behind(&self, proxy: &ApiserverProxy, flags: &[&str]) -> Operator {
        let mut command = self.place.command();
        command.env("KUBECONFIG", proxy.kubeconfig()).args(["--requests-per-second", "1000"]).args(flags);
        Operator::start(command).await
    }

    /// A proxy before the API server of this place.
    pub async fn proxy(&self) -> ApiserverProxy {
        ApiserverProxy::start(self.place.operators_client()).await
    }

    /// Waits until the stops as they are seen satisfy this.
    pub async fn until(&self, what: &str, is_so: impl Fn(&Stops) -> bool) {
        let mut seen = self.seen.clone();
        if !matches!(timeout(PATIENCE, seen.wait_for(|stops| is_so(stops))).await, Ok(Ok(_))) {
            let stops = self.seen.borrow();
            let unfinished: Vec<_> = stops.values().filter(|stop| !stop.is_finished()).collect();
            panic!("never {what}; {} of {} are unfinished: {unfinished:#?}", unfinished.len(), stops.len());
        }
    }

    /// Waits until so many stops of the simulator's record are so.
    pub async fn posts(&self, count: usize, is_so: impl Fn(&Recorded) -> bool) {
        let enough = |requests: &[Recorded]| {
            count <= requests.iter().filter(|request| request.kind == Kind::Stop && is_so(request)).count()
        };
        let waited = timeout(PATIENCE, self.place.amperity.wait_until(enough)).await;
        assert!(waited.is_ok(), "there never were {count} such requests; {} arrived", self.all_posts());
    }

    /// How many stop requests arrived so far.
    pub fn all_posts(&self) -> usize {
        self.place.amperity.requests().iter().filter(|request| request.kind == Kind::Stop).count()
    }

    /// Waits until all have finished.
    pub async fn finished(&self) {
        self.until("all finished", |stops| {
            self.runs.len() <= stops.len() && stops.values().all(WorkflowRunStop::is_finished)
        })
        .await;
    }

    /// Waits until all have finished and holds each run against the promises: one effect, no request after an effect,
    /// a reason, no claim. The number of requests for each run, in order.
    pub async fn kept(&self) -> Vec<usize> {
        self.finished().await;
        let mut posts = vec![];
        for run in &self.runs {
            let stop = self.place.get(run).await;
            assert!(stop.is_finished(), "{run}");
            let (truth, reason) = ready(&stop);
            assert_eq!(truth, "True", "{run}: {reason}");
            assert!(!reason.is_empty(), "{run}");
            assert_eq!(request(&stop).claim, None, "{run}: {reason}");
            assert_eq!(self.place.amperity.effects(run), 1, "{run}: effects");
            posts.push(self.assert_nothing_follows_an_effect(run));
        }
        posts
    }

    /// As [`Batch::kept`], with exactly one request for each run.
    pub async fn kept_with_one_request_each(&self) {
        let posts = self.kept().await;
        assert!(posts.iter().all(|posts| *posts == 1), "requests per run: {posts:?}");
    }

    fn assert_nothing_follows_an_effect(&self, run: &str) -> usize {
        let requests = self.place.amperity.requests();
        let of_run = requests.iter().filter(|request| request.run_id.as_deref() == Some(run));
        let stops: Vec<_> = of_run.filter(|request| request.kind == Kind::Stop).collect();
        let effects: Vec<_> = stops.iter().map(|request| request.effect).collect();
        let last = effects.len().saturating_sub(1);
        assert!(!effects[..last].contains(&true), "{run}: a request was sent after an effect: {effects:?}");
        stops.len()
    }
}

/// The newest version of every stop of the place. The API server ends the watch of somebody who reads too slowly;
/// then it is begun again.
fn seen(place: &Place) -> watch::Receiver<Stops> {
    let mut events = watcher(place.stops(), watcher::Config::default()).default_backoff().boxed();
    let (sender, seen) = watch::channel(Stops::new());
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            if let Ok(Event::InitApply(stop) | Event::Apply(stop)) = event {
                sender.send_modify(|stops| drop(stops.insert(stop.name().to_owned(), stop)));
            }
        }
    });
    seen
}

/// Waits until so many requests for this purpose came to the proxy.
pub async fn came(proxy: &ApiserverProxy, purpose: Purpose, count: usize) {
    reached(proxy, count, |call| call.purpose == purpose).await;
}

/// Waits until so many requests for this purpose are stored.
pub async fn stored(proxy: &ApiserverProxy, purpose: Purpose, count: usize) {
    reached(proxy, count, |call| call.purpose == purpose && call.status == Some(200)).await;
}

async fn reached(proxy: &ApiserverProxy, count: usize, is_so: impl Fn(&Call) -> bool) {
    let enough = |calls: &[Call]| count <= calls.iter().filter(|call| is_so(call)).count();
    let waited = timeout(PATIENCE, proxy.wait_until(enough)).await;
    assert!(waited.is_ok(), "there never were {count} such requests: {:#?}", proxy.calls().last());
}
