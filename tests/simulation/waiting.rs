//! Owns the tests of a resource that waits for the rate limit: what its status says, and what ends the wait.
//! Never tests a single step: the operator's own watch and scheduler run.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use prometheus_client::metrics::family::Family;
use serde_json::json;
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{ConditionType, Reason, find},
};
use workflow_run_stop_operator::{
    metric_labels::ResultLabel,
    observe::{event_filter::EventDraft, event_queue::Entry, events::Events, metrics::Metrics, reporter::Reporter},
    operator::watch::Watch,
};

use crate::{
    in_virtual_time,
    scenario::{LONG, RUN, Scenario, claim_of_another, stored},
    secrets::STATIC,
    world::World,
};

/// Runs the operator in the world of a scenario.
fn run(test: Scenario, limit: Option<usize>) -> (World, JoinHandle<()>) {
    run_with_events(test, limit, None)
}

fn run_with_events(test: Scenario, limit: Option<usize>, events: Option<Events>) -> (World, JoinHandle<()>) {
    let Scenario { world, context, client, .. } = test;
    let watch = Watch {
        context: Arc::new(context),
        reporter: Reporter { metrics: Metrics::default(), events },
        stop: CancellationToken::new(),
        limit,
    };
    let work = tokio::spawn(async move {
        let (synced, _) = tokio::sync::watch::channel(false);
        drop(watch.run(&client, &[], &synced).await);
    });
    (world, work)
}

fn reason(stop: &WorkflowRunStop) -> Option<Reason> {
    find(&stop.status.as_ref()?.conditions, ConditionType::Ready).and_then(Reason::of)
}

#[test]
fn a_stop_that_waits_for_the_rate_limit_says_so_after_two_to_four_seconds_and_a_read_does_not() {
    // The time within these seconds is random.
    for (seed, is_read) in [(1, false), (2, false), (3, false), (4, true)] {
        in_virtual_time(seed, async {
            let test = Scenario::new();
            if is_read {
                test.is_accepted();
            }
            test.close_budget(LONG).await;
            let (world, _work) = run(test, None);
            sleep(Duration::from_millis(1900)).await;
            assert_ne!(reason(&stored(&world)), Some(Reason::WaitingForBudget), "{seed}");
            sleep(Duration::from_millis(2200)).await;
            assert_eq!(reason(&stored(&world)) == Some(Reason::WaitingForBudget), !is_read, "{seed}");
            sleep(LONG).await;
            let requests = world.lock().runs[RUN].posts.len();
            assert_eq!(requests, usize::from(!is_read), "{seed}: it is sent after the wait");
        });
    }
}

#[test]
fn a_deadline_ends_the_wait_for_the_rate_limit() {
    in_virtual_time(1, async {
        let test = Scenario::new();
        test.change(|object| {
            object["metadata"]["creationTimestamp"] = "2027-01-15T08:00:00Z".into();
            object["spec"]["stopDeadlineSeconds"] = 20.into();
        });
        test.close_budget(Duration::from_secs(3600)).await;
        let (world, _work) = run(test, None);
        sleep(Duration::from_secs(25)).await;
        assert_eq!(reason(&stored(&world)), Some(Reason::DeadlineExceeded));
    });
}

#[test]
fn an_open_claim_whose_read_waits_for_the_rate_limit_for_an_hour_has_an_unknown_outcome() {
    in_virtual_time(1, async {
        let test = Scenario::new();
        test.change(claim_of_another);
        test.close_budget(Duration::from_secs(4 * 3600)).await;
        let (world, _work) = run(test, None);
        sleep(Duration::from_secs(3600)).await;
        assert!(!stored(&world).is_finished());
        sleep(Duration::from_secs(1200)).await;
        assert_eq!(reason(&stored(&world)), Some(Reason::OutcomeUnknown));
        assert!(stored(&world).is_finished());
    });
}

#[test]
fn a_stop_over_the_limit_of_its_namespace_says_so_and_sends_nothing() {
    in_virtual_time(1, async {
        let (world, _work) = run(Scenario::new(), Some(0));
        sleep(LONG).await;
        assert_eq!(reason(&stored(&world)), Some(Reason::NamespaceLimit));
        assert!(world.lock().runs[RUN].posts.is_empty());
    });
}

#[test]
fn following_ends_in_time_although_no_request_may_be_sent_to_the_host_any_more() {
    in_virtual_time(1, async {
        let test = Scenario::new();
        test.is_accepted();
        test.change(|object| object["spec"]["baseUrl"] = "https://elsewhere.example/api".into());
        let (world, _work) = run(test, None);
        sleep(Duration::from_secs(3500)).await;
        assert_eq!(reason(&stored(&world)), Some(Reason::EndpointNotAllowed));
        sleep(Duration::from_secs(200)).await;
        assert_eq!(reason(&stored(&world)), Some(Reason::RunStillActive));
    });
}

/// Stores further stops of the scenario's tenant, the last one being the oldest.
fn add_stops(world: &World, count: i64) {
    for number in 0..count {
        let created = Timestamp::from_second(1_800_000_000 - number).unwrap().to_string();
        let object = json!({
            "apiVersion": "workflow.amperity.com/v1alpha1",
            "kind": "WorkflowRunStop",
            "metadata": {
                "name": format!("more-{number}"), "namespace": "sim", "uid": format!("more-{number}"), "generation": 1,
                "creationTimestamp": created,
            },
            "spec": {"runId": RUN, "tenant": "acme", "credentialsSecretRef": {"name": STATIC}},
        });
        world.lock().put(&format!("sim/more-{number}"), Some(object));
    }
}

#[test]
fn a_backlog_is_reported_by_one_event_on_the_oldest_stop_of_the_namespace_every_ten_minutes() {
    in_virtual_time(1, async {
        let test = Scenario::new();
        test.change(|object| object["metadata"]["creationTimestamp"] = "2027-01-15T08:00:00Z".into());
        add_stops(&test.world, 9);
        test.close_budget(Duration::from_secs(4 * 3600)).await;
        let (events, mut emitted) = Events::channel(Family::default());
        let (_world, _work) = run_with_events(test, None, Some(events));
        let mut reported = || -> Vec<_> {
            let about = |entry: Entry| (entry.about.name.clone().unwrap(), entry.drafts.clone());
            std::iter::from_fn(|| emitted.try_next().map(about)).collect()
        };
        sleep(Duration::from_secs(115)).await;
        assert_eq!(reported(), [], "nothing has waited for two minutes");
        for _ in 0..3 {
            sleep(Duration::from_secs(600)).await;
            assert_eq!(reported(), [("more-8".to_owned(), vec![EventDraft::backlog(10)])]);
        }
    });
}

#[test]
fn of_two_thousand_waiting_stops_six_hundred_say_so_in_the_first_minute_and_all_in_six() {
    in_virtual_time(1, async {
        let test = Scenario::new();
        test.change(|object| object["metadata"]["creationTimestamp"] = "2027-01-15T08:00:00Z".into());
        add_stops(&test.world, 1999);
        test.close_budget(Duration::from_secs(4 * 3600)).await;
        let writes = test.context.store.writes.clone();
        let stored = || writes.get_or_create(&ResultLabel { result: "stored" }).get();
        let (_world, _work) = run(test, None);
        sleep(Duration::from_secs(60)).await;
        assert!((560..=610).contains(&stored()), "{}", stored());
        sleep(Duration::from_secs(300)).await;
        assert_eq!(stored(), 2000);
    });
}
