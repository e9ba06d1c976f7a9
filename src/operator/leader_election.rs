//! Owns leader election by a Lease: whether this replica may start new work.
//! Never matters for correctness: claims ensure that no stop is sent twice. Leadership only saves traffic and slots of
//! the rate limit.

use std::time::Duration;

use k8s_controller::LeaderElection;
use kube::Client;
use tokio::sync::watch;

/// The time after which a lease that is not renewed is taken over. A standby checks it every two to three seconds, so that
/// it takes over within 18 s.
const LEASE_DURATION: Duration = Duration::from_secs(12);

/// The time after which a leader that cannot renew the lease gives it up, before a standby can take it.
const RENEW_DEADLINE: Duration = Duration::from_secs(8);

/// Creates the leader election of a Lease.
pub fn election(client: Client, namespace: &str, name: &str, identity: &str) -> LeaderElection {
    LeaderElection::new(client, namespace, name, identity)
        .with_lease_duration(LEASE_DURATION)
        .with_renew_deadline(RENEW_DEADLINE)
}

/// Sets `leading` while this replica holds the lease, and competes for it again after losing it.
pub async fn compete(election: LeaderElection, leading: watch::Sender<bool>) {
    loop {
        let hold = async {
            leading.send_replace(true);
            std::future::pending::<()>().await;
        };
        election.with_lease(hold).await;
        leading.send_replace(false);
    }
}
