//! SIGTERM while many requests are in flight.

use std::time::Duration;

use lab::{
    simulator::HoldPoint,
    testing::{ready, stop_request},
};
use tokio::time::Instant;

use crate::batch::Batch;

const IN_FLIGHT: usize = 50;

#[tokio::test]
async fn sigterm_with_fifty_requests_in_flight_records_them_all_and_leaves_no_claim() {
    let batch = Batch::new(200).await;
    let hold = batch.env.amperity.hold_stops(HoldPoint::AfterEffect);
    batch.create_stops().await;
    let flags = ["--requests-per-second", "50", "--request-timeout", "30s", "--drain-timeout", "20s"];
    let operator = batch.env.start_operator_with(&flags).await;
    batch.wait_for_stop_requests(IN_FLIGHT, |_| true).await;
    let signaled = Instant::now();
    operator.send_sigterm().await;
    operator.wait_for_log("shutting down").await;
    hold.release();
    assert_eq!(operator.wait_for_exit().await, Some(0));
    let took = signaled.elapsed();
    assert!(took < Duration::from_secs(20), "it took {took:?}");
    let mut sent = 0;
    for run in &batch.runs {
        let stop = batch.env.get(run).await;
        assert_eq!(stop.claim(), None, "{run} still has a claim");
        match batch.env.amperity.stops(run) {
            0 => {
                assert_eq!(stop_request(&stop).accepted_time, None, "{run} was not sent");
                assert_eq!(stop_request(&stop).attempts, 0, "{run} was not sent");
            }
            requests => {
                sent += 1;
                assert_eq!((requests, batch.env.amperity.effects(run)), (1, 1), "{run}");
                assert!(stop_request(&stop).accepted_time.is_some(), "{run} was sent: {:?}", ready(&stop));
            }
        }
    }
    assert!((IN_FLIGHT..batch.runs.len()).contains(&sent), "{sent} were sent");
    let _next = batch.start_operator(&[]).await;
    batch.assert_one_request_each().await;
}
