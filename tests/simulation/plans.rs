//! Owns the bounded exhaustive search: one resource, two replicas, and every schedule that departs from the undisturbed
//! one at no more than a given number of choice points. A departure is a crash at one step of IO, a request or response
//! that is lost or late, a watch that lags or disconnects, a process that is stopped, or another answer of the API.
//! Never models the protocol a second time: the operator's own code runs.

use std::{
    sync::{Condvar, Mutex},
    time::Duration,
};

use serde_json::json;
use tokio::time::sleep;

use crate::{
    Outcome,
    answers::Answer,
    choices::{Choices, Departure, Plan},
    in_virtual_time,
    judge::all_finished,
    number,
    promises::{Promise, Violation},
    replica::{ReplicaSettings, run_replica},
    runs::Run,
    world::{FAULT_PERIOD, Size, World},
};

/// The time after which the second replica starts.
const START_DELAY: Duration = Duration::from_millis(7);

/// The offset of the second replica's wall clock, in seconds.
const CLOCK_OFFSET: i64 = -25;

/// The time for which the operator keeps running after the resource has finished: it has to stay idle.
const IDLE_TIME: Duration = Duration::from_secs(240);

/// Runs the schedule of one plan. Returns also the number of options at each of its choice points.
fn simulate_plan(readable: bool, departures: Vec<Departure>) -> (Outcome, Vec<usize>) {
    in_virtual_time(0, async {
        let world = World::new(Choices::Plan(Plan { departures, options: vec![] }), Size::Small, None);
        create_stop(&world, readable);
        // So that both ways of listing are searched.
        world.lock().faults.refuses_streaming_lists = !readable;
        for replica in 0..2 {
            let world = world.clone();
            let settings = ReplicaSettings {
                clock_offset: CLOCK_OFFSET * replica as i64,
                namespaces: vec!["sim".to_owned()],
                max_downtime: Duration::from_millis(500),
            };
            tokio::spawn(async move {
                sleep(START_DELAY * replica as u32).await;
                run_replica(world, replica, settings).await;
            });
        }
        let limit = FAULT_PERIOD * 10;
        let mut waited = Duration::ZERO;
        while waited < limit && !all_finished(&world) {
            sleep(Duration::from_secs(1)).await;
            waited += Duration::from_secs(1);
        }
        sleep(IDLE_TIME).await;
        let outcome = Outcome::of(&world);
        let mut inner = world.lock();
        let Choices::Plan(plan) = &mut inner.choices else { unreachable!() };
        (outcome, std::mem::take(&mut plan.options))
    })
}

fn create_stop(world: &World, readable: bool) {
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

/// A plan whose schedule broke a promise.
struct Failure {
    departures: Vec<Departure>,
    outcome: Outcome,
}

/// The search: runs every plan of at most `max_departures`, each once, until one fails.
struct Search {
    readable: bool,
    max_departures: usize,
    /// The only promise to look at; all if none.
    promise: Option<Promise>,
    progress: Mutex<Progress>,
    changed: Condvar,
}

struct Progress {
    queue: Vec<Vec<Departure>>,
    /// The number of plans that are running.
    running: usize,
    done: usize,
    failure: Option<Failure>,
}

impl Search {
    fn new(readable: bool, max_departures: usize) -> Self {
        let progress = Progress { queue: vec![vec![]], running: 0, done: 0, failure: None };
        Self { readable, max_departures, promise: None, progress: Mutex::new(progress), changed: Condvar::new() }
    }

    /// Returns the number of plans that were run, and the first failure.
    fn finish(self) -> (usize, Option<Failure>) {
        let Progress { done, failure, .. } = self.progress.into_inner().unwrap();
        (done, failure)
    }

    /// Runs plans until none is left or one fails. Several threads may call it.
    fn work(&self) {
        while let Some(plan) = self.next() {
            let (outcome, options) = simulate_plan(self.readable, plan.clone());
            let extended = self.extend(&plan, &options);
            let mut progress = self.progress.lock().unwrap();
            progress.running -= 1;
            progress.done += 1;
            let counts = |violation: &Violation| self.promise.is_none_or(|promise| promise == violation.promise);
            if !outcome.violations.iter().any(counts) {
                progress.queue.extend(extended);
            } else {
                progress.failure = Some(Failure { departures: plan, outcome });
            }
            self.changed.notify_all();
        }
    }

    /// Returns every plan with one more departure than this one, after its last.
    fn extend(&self, plan: &[Departure], options: &[usize]) -> Vec<Vec<Departure>> {
        if plan.len() == self.max_departures {
            return vec![];
        }
        let first = plan.last().map_or(0, |last| last.point + 1);
        let points = options.iter().enumerate().skip(first);
        let departures =
            points.flat_map(|(point, options)| (1..*options).map(move |option| Departure { point, option }));
        departures.map(|departure| [plan, &[departure]].concat()).collect()
    }

    /// Waits for the next plan. Returns none if all are done or one failed.
    fn next(&self) -> Option<Vec<Departure>> {
        let mut progress = self.progress.lock().unwrap();
        loop {
            if progress.failure.is_some() {
                return None;
            }
            if let Some(plan) = progress.queue.pop() {
                progress.running += 1;
                return Some(plan);
            }
            if progress.running == 0 {
                return None;
            }
            progress = self.changed.wait(progress).unwrap();
        }
    }
}

fn format_plan(plan: &[Departure]) -> String {
    plan.iter().map(|Departure { point, option }| format!("{point}:{option}")).collect::<Vec<_>>().join(",")
}

fn parse_plan(plan: &str) -> Vec<Departure> {
    let departure = |text: &str| {
        let (point, option) = text.split_once(':')?;
        Some(Departure { point: point.parse().unwrap(), option: option.parse().unwrap() })
    };
    plan.split(',').map(|text| departure(text).expect("a plan is written as 74:1,79:1")).collect()
}

#[test]
fn no_schedule_with_few_departures_breaks_the_promises() {
    let suffix = |readable: bool| if readable { "" } else { ", the run cannot be read, and lists have pages" };
    if let Ok(plan) = std::env::var("PLAN") {
        let mut violations = vec![];
        for readable in [true, false] {
            let (outcome, options) = simulate_plan(readable, parse_plan(&plan));
            println!("plan {plan}{}:\n{}\n{:?}", suffix(readable), outcome.history.join("\n"), outcome.violations);
            let departures = options.iter().map(|options| options - 1).sum::<usize>();
            println!("{} choice points, {departures} departures", options.len());
            violations.extend(outcome.violations);
        }
        assert!(violations.is_empty(), "the plan breaks a promise: {violations:?}");
        return;
    }
    let max_departures = number("DEPARTURES").unwrap_or(1) as usize;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for readable in [true, false] {
        let search = Search::new(readable, max_departures);
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(|| search.work()))));
        let (count, failure) = search.finish();
        if let Some(Failure { departures, outcome }) = failure {
            let plan = format_plan(&departures);
            println!("{}", outcome.history.join("\n"));
            panic!("plan {plan}{}: {:?}; replay it with PLAN={plan}", suffix(readable), outcome.violations);
        }
        println!("{count} schedules with at most {max_departures} departures{}", suffix(readable));
    }
}

/// Returns the first plan with at most two departures that breaks this promise, and its violations. The run can be
/// read.
#[cfg(feature = "fault-injection")]
pub fn found_by_plan(promise: Promise) -> Option<(String, Vec<Violation>)> {
    let search = Search { promise: Some(promise), ..Search::new(true, 2) };
    search.work();
    let Failure { departures, outcome } = search.finish().1?;
    Some((format_plan(&departures), outcome.violations))
}
