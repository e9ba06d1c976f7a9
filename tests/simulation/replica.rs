//! Owns the life cycle of a replica: start of the operator's own code, crash or shutdown, and the next start.
//! Never looks into the operator's state.

use std::{sync::Arc, time::Duration};

use kube::Client;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use workflow_run_stop_operator::{
    amperity::{
        budget::Budget,
        client::Amperity,
        credentials::CredentialCache,
        endpoint::{AllowedHosts, Endpoints},
        transport::Transport,
    },
    clock::Clock,
    observe::{metrics::Metrics, reporter::Reporter},
    operator::watch::Watch,
    reconcile::{announcements::Announcements, context::Context, decide::Rules, store::Store},
};

use crate::{
    amperity, apiserver,
    assumptions::Assumption,
    world::{RATE, REQUEST_TIMEOUT, SETTLE_TIME, World},
};

/// The settings of a replica.
pub struct ReplicaSettings {
    /// The first offset of its wall clock from the true date, in seconds.
    pub clock_offset: i64,
    /// The namespaces that it watches; all if the list is empty.
    pub namespaces: Vec<String>,
    /// The longest time between its end and its next start.
    pub max_downtime: Duration,
}

/// Runs a replica until it crashes or has shut down, and starts it again, without end.
pub async fn run_replica(world: World, replica: usize, settings: ReplicaSettings) {
    world.lock().set_clock(replica, settings.clock_offset * 1000);
    loop {
        let crash_after = world.fault_occurs(5.0).then(|| world.below(60) as u32);
        let crash = world.lock().start_process(replica, crash_after);
        let clock: Clock = {
            let world = world.clone();
            Arc::new(move || world.lock().wall(replica))
        };
        let client = Client::new(apiserver::ApiServer { world: world.clone(), replica }, "sim");
        let context = context(&world, replica, client.clone(), clock);
        let shutdown = CancellationToken::new();
        let watch = Watch {
            context: Arc::new(context),
            reporter: Reporter { metrics: Metrics::default(), events: None },
            stop: shutdown.clone(),
            limit: None,
        };
        let (synced, _) = tokio::sync::watch::channel(false);
        let shut_down = async {
            // As after SIGTERM or a lost lease: the outcome of a request in flight is still recorded.
            if world.fault_occurs(3.0) {
                sleep(Duration::from_secs(120).mul_f64(world.fraction())).await;
                world.log(format!("replica {replica} shuts down"));
                shutdown.cancel();
            }
            std::future::pending::<()>().await;
        };
        let work = async {
            let mut tasks = watch.run(&client, &settings.namespaces, &synced).await;
            while tasks.join_next().await.is_some() {}
        };
        tokio::select! {
            biased;
            () = crash.notified() => world.log(format!("replica {replica} crashes")),
            () = work => world.log(format!("replica {replica} has shut down")),
            () = shut_down => {}
        }
        sleep(Duration::from_millis(1) + settings.max_downtime.mul_f64(world.fraction())).await;
    }
}

/// Returns the context of a replica's running process.
pub fn context(world: &World, replica: usize, client: Client, clock: Clock) -> Context {
    let incarnation = world.lock().replica(replica).incarnation;
    let transport = Transport::Custom(Arc::new(amperity::Amperity { world: world.clone(), replica, incarnation }));
    let hosts = AllowedHosts::parse("").unwrap();
    Context {
        store: Store::new(client, &format!("replica-{replica}"), clock.clone()),
        amperity: Amperity::with_transport(transport, clock.clone(), request_timeout(world, replica)),
        budget: Budget::new(RATE),
        credential_cache: CredentialCache::default(),
        endpoints: Endpoints::new("https://app.amperity.com/api", hosts).unwrap(),
        announcements: Announcements::default(),
        rules: Rules { request_timeout: request_timeout(world, replica), settle_time: SETTLE_TIME },
        clock,
    }
}

/// Returns the `--request-timeout` of a replica.
pub fn request_timeout(world: &World, replica: usize) -> Duration {
    let differs = replica == 0 && world.is_off(Assumption::SameTimeouts);
    if differs { REQUEST_TIMEOUT * 6 } else { REQUEST_TIMEOUT }
}
