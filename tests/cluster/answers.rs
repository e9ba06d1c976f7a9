//! One test for each row of the answer table: how often the request was sent, and what the status says.

use std::time::Duration;

use lab::simulator::Run;
use workflow_run_stop_operator::resource::conditions::{ConditionType, Reason, Truth};

use crate::support::{Place, TENANT, a_stop, condition, is, ready};

#[tokio::test]
async fn a_run_that_takes_a_while_to_stop_is_stopped_once_and_followed_to_its_end() {
    let place = Place::new().await;
    place.amperity.add_run(TENANT, Run::new("wf-1").with_tasks(3).stops_in(Duration::from_secs(1)));
    let operator = place.operator().await;
    place.apply(a_stop("wf-1")).await;
    let stop = place.finished("wf-1").await;
    assert_eq!(ready(&stop), is(Truth::True, Reason::RunStopped));
    assert_eq!(condition(&stop, ConditionType::StopAccepted), is(Truth::True, Reason::StopAccepted));
    assert_eq!(condition(&stop, ConditionType::RunEnded), is(Truth::True, Reason::RunStopped));
    assert_eq!(condition(&stop, ConditionType::Reconciling), Default::default());
    let status = stop.status.unwrap();
    assert_eq!(status.state.as_deref(), Some("canceled"));
    assert_eq!(status.error.unwrap().message.as_deref(), Some("Workflow manually stopped"));
    assert_eq!(status.task_instances.unwrap().len(), 3);
    let request = status.stop_request.unwrap();
    assert_eq!((request.attempts, request.claim, request.http_status), (1, None, Some(200)));
    assert_eq!(request.answered_state.as_deref(), Some("stopping"));
    assert_eq!((place.amperity.stops("wf-1"), place.amperity.effects("wf-1")), (1, 1));
    assert!(!operator.log().join("\n").contains("good-token"));
}
