//! The process is told to end with many requests in flight.

use std::time::Duration;

use lab::simulator::HoldPoint;
use tokio::time::Instant;

use crate::{
    batch::Batch,
    support::{ready, request},
};

const IN_FLIGHT: usize = 50;

#[tokio::test]
async fn sigterm_with_fifty_requests_in_flight_records_them_all_and_leaves_no_claim() {
    let batch = Batch::new(200).await;
    let hold = batch.place.amperity.hold_stops(HoldPoint::AfterEffect);
    batch.apply().await;
    let flags = ["--requests-per-second", "50", "--request-timeout", "30s", "--drain-timeout", "20s"];
    let operator = batch.place.operator_with(&flags).await;
    batch.posts(IN_FLIGHT, |_| true).await;
    let told = Instant::now();
    operator.tell_to_end().await;
    operator.says("told to end").await;
    hold.release();
    assert_eq!(operator.ended().await, Some(0));
    let took = told.elapsed();
    assert!(took < Duration::from_secs(20), "it took {took:?}");
    let mut sent = 0;
    for run in &batch.runs {
        let stop = batch.place.get(run).await;
        assert_eq!(stop.claim(), None, "{run} keeps a claim");
        match batch.place.amperity.stops(run) {
            0 => {
                assert_eq!(request(&stop).accepted_time, None, "{run} was not sent");
                assert_eq!(request(&stop).attempts, 0, "{run} was not sent");
            }
            posts => {
                sent += 1;
                assert_eq!((posts, batch.place.amperity.effects(run)), (1, 1), "{run}");
                assert!(request(&stop).accepted_time.is_some(), "{run} was sent: {:?}", ready(&stop));
            }
        }
    }
    assert!((IN_FLIGHT..batch.runs.len()).contains(&sent), "{sent} were sent");
    let _next = batch.operator(&[]).await;
    batch.kept_with_one_request_each().await;
}
