//! Owns the life of a replica: the operator's own code, from start to crash or end, again and again.
//! Never looks into it.

use std::{sync::Arc, time::Duration};

use kube::Client;
use tokio::{sync::watch, time::sleep};
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
    reconcile::{context::Context, decide::Rules, store::Store},
};

use crate::{
    amperity, apiserver,
    assumptions::Assumption,
    world::{RATE, REQUEST_TIMEOUT, SETTLE_TIME, World},
};

/// What befalls a replica beside its IO.
pub struct Fortune {
    /// How far its wall clock is ahead at first, in seconds.
    pub skew: i64,
    /// The namespaces that it watches; all where none is named.
    pub namespaces: Vec<String>,
    /// The longest time until it is started again.
    pub away: Duration,
}

/// One replica: it works until it crashes or is told to end, and is started again.
pub async fn live(world: World, replica: usize, fortune: Fortune) {
    world.lock().set_clock(replica, fortune.skew * 1000);
    loop {
        let burns = world.trouble(5.0).then(|| world.below(60) as u32);
        let (crash, life) = {
            let mut inner = world.lock();
            let crash = inner.begin_life(replica, burns);
            (crash, inner.replica(replica).life)
        };
        let clock: Clock = {
            let world = world.clone();
            Arc::new(move || world.lock().wall(replica))
        };
        let client = Client::new(apiserver::ApiServer { world: world.clone(), replica }, "sim");
        let carrier = Transport::Other(Arc::new(amperity::Amperity { world: world.clone(), replica, life }));
        let hosts = AllowedHosts::parse("").unwrap();
        let context = Context {
            store: Store::new(client.clone(), &format!("replica-{replica}"), clock.clone()),
            amperity: Amperity::over(carrier, clock.clone(), request_timeout(&world, replica)),
            budget: Budget::new(RATE),
            credential_cache: CredentialCache::default(),
            endpoints: Endpoints::new("https://app.amperity.com/api", hosts).unwrap(),
            rules: Rules { request_timeout: request_timeout(&world, replica), settle_time: SETTLE_TIME },
            clock,
        };
        let stop = CancellationToken::new();
        let watching = Watch {
            context: Arc::new(context),
            reporter: Reporter { metrics: Metrics::default(), events: None },
            stop: stop.clone(),
        };
        let (synced, _) = watch::channel(false);
        let told = async {
            // The lease is lost, or it is told to end: what is in flight is recorded all the same.
            if world.trouble(3.0) {
                sleep(Duration::from_secs(120).mul_f64(world.share())).await;
                world.tell(format!("replica {replica} is told to end"));
                stop.cancel();
            }
            std::future::pending::<()>().await;
        };
        let work = async {
            let mut tasks = watching.run(&client, &fortune.namespaces, &synced).await;
            while tasks.join_next().await.is_some() {}
        };
        tokio::select! {
            biased;
            () = crash.notified() => world.tell(format!("replica {replica} crashes")),
            () = work => world.tell(format!("replica {replica} has ended")),
            () = told => {}
        }
        sleep(Duration::from_millis(1) + fortune.away.mul_f64(world.share())).await;
    }
}

/// The `--request-timeout` of a replica.
pub fn request_timeout(world: &World, replica: usize) -> Duration {
    let differs = replica == 0 && world.is_off(Assumption::SameTimeouts);
    if differs { REQUEST_TIMEOUT * 6 } else { REQUEST_TIMEOUT }
}
