//! Owns the search without chance: one resource, two replicas, and every schedule that departs from the smooth
//! one at no more than so many points. A departure is a crash at one step of IO, a request or an answer that
//! is lost or late, a watch that lags or breaks, a process that is stopped, or another answer of the API.
//! Never keeps the protocol a second time: what runs is the operator's own code.

use std::{
    sync::{Condvar, Mutex},
    time::Duration,
};

use serde_json::json;
use tokio::time::sleep;

use crate::{
    Outcome,
    answers::Answer,
    chance::{Chance, Departures, Plan},
    in_virtual_time,
    judge::all_ended,
    number,
    promises::{Promise, Violation},
    replica::{Fortune, live},
    runs::Run,
    world::{Size, TROUBLE, World},
};

/// The second replica starts so much later, and its clock is so far behind.
const LATER: Duration = Duration::from_millis(7);
const SKEW: i64 = -25;

/// What is left to the operator after the end, to show that it does nothing more.
const AFTERWARDS: Duration = Duration::from_secs(240);

/// One schedule, and how many ways there were at each of its points.
fn follow(readable: bool, departures: Departures) -> (Outcome, Vec<usize>) {
    in_virtual_time(0, async {
        let world = World::new(Chance::Plan(Plan { departures, ways: vec![] }), Size::Small, None);
        create(&world, readable);
        for replica in 0..2 {
            let world = world.clone();
            let fortune = Fortune {
                skew: SKEW * replica as i64,
                namespaces: vec!["sim".to_owned()],
                away: Duration::from_millis(500),
            };
            tokio::spawn(async move {
                sleep(LATER * replica as u32).await;
                live(world, replica, fortune).await;
            });
        }
        let give_up = TROUBLE * 10;
        let mut waited = Duration::ZERO;
        while waited < give_up && !all_ended(&world) {
            sleep(Duration::from_secs(1)).await;
            waited += Duration::from_secs(1);
        }
        sleep(AFTERWARDS).await;
        let outcome = Outcome::of(&world);
        let mut inner = world.lock();
        let Chance::Plan(plan) = &mut inner.chance else { unreachable!() };
        (outcome, std::mem::take(&mut plan.ways))
    })
}

fn create(world: &World, readable: bool) {
    let (uid, run) = ("uid-0".to_owned(), "wf-0".to_owned());
    let created = world.date().to_string();
    let object = json!({
        "apiVersion": "workflow.amperity.com/v1alpha1",
        "kind": "WorkflowRunStop",
        "metadata": {"name": "stop-0", "namespace": "sim", "uid": uid, "generation": 1, "creationTimestamp": created},
        "spec": {"runId": run, "tenant": "acme", "credentialsSecretRef": {"name": "amperity"}},
    });
    let mut inner = world.lock();
    let mut state = Run::new(&uid);
    state.read_fault = (!readable).then_some(Answer::Own(403));
    inner.runs.insert(run, state);
    inner.put("sim/stop-0", Some(object));
}

/// A schedule that broke a promise.
struct Found {
    departures: Departures,
    outcome: Outcome,
}

/// Follows every plan of no more than so many departures, each once.
struct Search {
    readable: bool,
    most: usize,
    /// The promise that is of interest; all where none is named.
    promise: Option<Promise>,
    progress: Mutex<Progress>,
    changed: Condvar,
}

struct Progress {
    to_do: Vec<Departures>,
    /// How many are being followed.
    at_work: usize,
    done: usize,
    found: Option<Found>,
}

impl Search {
    fn new(readable: bool, most: usize) -> Self {
        let progress = Progress { to_do: vec![vec![]], at_work: 0, done: 0, found: None };
        Self { readable, most, promise: None, progress: Mutex::new(progress), changed: Condvar::new() }
    }

    /// How many plans were followed, and the first that was found to break a promise.
    fn end(self) -> (usize, Option<Found>) {
        let Progress { done, found, .. } = self.progress.into_inner().unwrap();
        (done, found)
    }

    /// Follows plans as long as there are any.
    fn work(&self) {
        while let Some(plan) = self.next() {
            let (outcome, ways) = follow(self.readable, plan.clone());
            let beyond = self.beyond(&plan, &ways);
            let mut progress = self.progress.lock().unwrap();
            progress.at_work -= 1;
            progress.done += 1;
            let counts = |wrong: &Violation| self.promise.is_none_or(|promise| promise == wrong.promise);
            if !outcome.wrong.iter().any(counts) {
                progress.to_do.extend(beyond);
            } else {
                progress.found = Some(Found { departures: plan, outcome });
            }
            self.changed.notify_all();
        }
    }

    /// The plans that depart once more, later than all departures of this one.
    fn beyond(&self, plan: &Departures, ways: &[usize]) -> Vec<Departures> {
        if plan.len() == self.most {
            return vec![];
        }
        let first = plan.last().map_or(0, |(point, _)| point + 1);
        let points = ways.iter().enumerate().skip(first);
        let departures = points.flat_map(|(point, ways)| (1..*ways).map(move |way| (point, way)));
        departures.map(|departure| [&plan[..], &[departure]].concat()).collect()
    }

    /// The next plan; none where all are done or one was found.
    fn next(&self) -> Option<Departures> {
        let mut progress = self.progress.lock().unwrap();
        loop {
            if progress.found.is_some() {
                return None;
            }
            if let Some(plan) = progress.to_do.pop() {
                progress.at_work += 1;
                return Some(plan);
            }
            if progress.at_work == 0 {
                return None;
            }
            progress = self.changed.wait(progress).unwrap();
        }
    }
}

fn written(plan: &Departures) -> String {
    plan.iter().map(|(point, way)| format!("{point}:{way}")).collect::<Vec<_>>().join(",")
}

fn read(plan: &str) -> Departures {
    let departure = |text: &str| text.split_once(':').map(|(at, way)| (at.parse().unwrap(), way.parse().unwrap()));
    plan.split(',').map(|text| departure(text).expect("a plan is written as 12:1,40:2")).collect()
}

#[test]
fn no_schedule_with_few_departures_breaks_the_promises() {
    let readable_too = |readable: bool| if readable { "" } else { ", and the run cannot be read" };
    if let Ok(plan) = std::env::var("PLAN") {
        for readable in [true, false] {
            let (outcome, ways) = follow(readable, read(&plan));
            println!("plan {plan}{}:\n{}\n{:?}", readable_too(readable), outcome.history.join("\n"), outcome.wrong);
            println!("{} points, {} departures", ways.len(), ways.iter().map(|ways| ways - 1).sum::<usize>());
        }
        return;
    }
    let most = number("DEPARTURES").unwrap_or(1) as usize;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for readable in [true, false] {
        let search = Search::new(readable, most);
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(|| search.work()))));
        let (count, found) = search.end();
        if let Some(Found { departures, outcome }) = found {
            let plan = written(&departures);
            println!("{}", outcome.history.join("\n"));
            panic!("plan {plan}{}: {:?}; replay it with PLAN={plan}", readable_too(readable), outcome.wrong);
        }
        println!("{count} schedules with at most {most} departures{}", readable_too(readable));
    }
}

/// The first plan with at most two departures that breaks this promise, and what it breaks. For a run that can be read.
#[cfg(feature = "fault-injection")]
pub fn found_by_plan(promise: Promise) -> Option<(String, Vec<Violation>)> {
    let search = Search { promise: Some(promise), ..Search::new(true, 2) };
    search.work();
    let Found { departures, outcome } = search.end().1?;
    Some((written(&departures), outcome.wrong))
}
