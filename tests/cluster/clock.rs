//! Deadlines while the clock jumps: the operator's code in this process, with a wall clock that the test sets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use workflow_run_stop_api::{
    WorkflowRunStop,
    conditions::{ConditionStatus, Reason, StopResult},
};
use workflow_run_stop_operator::{
    amperity::{
        budget::Budget,
        client::{Amperity, Settings},
        credentials::CredentialCache,
        endpoint::{AllowedHosts, Endpoints},
    },
    clock::Clock,
    observe::{metrics::Metrics, reporter::Reporter},
    operator::watch::Watch,
    reconcile::{announcements::Announcements, context::Context, decide::Rules, store::Store},
};

use lab::testing::{TENANT, TestEnv, a_stop, ends_at_once, is, ready, stop_request};

/// Returns the current time, to compare with timestamps of the cluster and the operator.
#[allow(clippy::disallowed_methods)]
pub fn now() -> Timestamp {
    Timestamp::try_from(SystemTime::now()).unwrap()
}

/// An operator in this process, whose wall clock is `ahead` seconds ahead. Dropping it aborts it.
struct Operator {
    ahead: Arc<AtomicI64>,
    work: JoinHandle<()>,
}

impl Operator {
    fn start(env: &TestEnv, requests_per_second: u32) -> Self {
        // Fails if another test of this process has installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ahead = Arc::new(AtomicI64::new(0));
        let clock: Clock = {
            let ahead = ahead.clone();
            Arc::new(move || now() + jiff::SignedDuration::from_secs(ahead.load(Ordering::SeqCst)))
        };
        let (request_timeout, settle_time) = (Duration::from_secs(2), Duration::from_secs(1));
        let settings = Settings { api_version: "2024-04-01".into(), request_timeout };
        let client = env.operator_client();
        let context = Context {
            store: Store::new(client.clone(), "in-process", clock.clone()),
            amperity: Amperity::new(&settings, clock.clone()).unwrap(),
            budget: Budget::new(requests_per_second),
            credential_cache: CredentialCache::default(),
            announcements: Announcements::default(),
            endpoints: Endpoints::new(&env.amperity.base_url(), AllowedHosts::parse("").unwrap()).unwrap(),
            rules: Rules { request_timeout, settle_time },
            clock,
        };
        let watch = Watch {
            context: Arc::new(context),
            reporter: Reporter { metrics: Metrics::default(), events: None },
            stop: CancellationToken::new(),
            limit: None,
        };
        let namespaces = [env.namespace.clone()];
        let work = tokio::spawn(async move {
            watch.run(&client, &namespaces, &watch::Sender::new(false)).await;
        });
        Self { ahead, work }
    }

    fn jump(&self, ahead: i64) {
        self.ahead.store(ahead, Ordering::SeqCst);
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.work.abort();
    }
}

/// Queues twenty stops at one request per second, moves the clock one hour ahead after five, and checks that no other
/// one is sent.
async fn assert_nothing_sent_after_jump(deadline: impl Fn(&mut WorkflowRunStop)) {
    const STOPS: usize = 20;
    let env = TestEnv::new().await;
    let runs: Vec<_> = (0..STOPS).map(|index| format!("wf-{index}")).collect();
    for run in &runs {
        env.amperity.add_run(TENANT, ends_at_once(run));
        let mut stop = a_stop(run);
        deadline(&mut stop);
        env.create(stop).await;
    }
    let operator = Operator::start(&env, 1);
    env.amperity.wait_until(|requests| 5 <= requests.len()).await;
    // The next request is due in one second.
    operator.jump(3600);
    let mut sent = 0;
    for run in &runs {
        let stop = env.wait_finished(run).await;
        match stop.status.as_ref().unwrap().result {
            Some(StopResult::Stopped) => sent += 1,
            _ => {
                assert_eq!(ready(&stop), is(ConditionStatus::False, Reason::DeadlineExceeded));
                assert_eq!(stop_request(&stop).attempts, 0, "no claim was written");
            }
        }
    }
    assert_eq!((sent, env.amperity.requests().len()), (5, 5));
}

#[tokio::test]
async fn no_stop_is_sent_after_the_stop_deadline_when_the_clock_jumps_ahead() {
    assert_nothing_sent_after_jump(|stop| stop.spec.stop_deadline_seconds = Some(600)).await;
}

#[tokio::test]
async fn no_stop_is_sent_after_not_after_when_the_clock_jumps_ahead() {
    let soon = Timestamp::from_second(now().as_second() + 600).unwrap();
    assert_nothing_sent_after_jump(|stop| stop.spec.not_after = Some(Time(soon))).await;
}
