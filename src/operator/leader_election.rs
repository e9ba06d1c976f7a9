//! Owns leadership: whether this replica may start new work.
//! Never decides about correctness: leadership saves traffic and budget, claims keep the promise.

use std::time::Duration;

use k8s_controller::LeaderElection;
use kube::Client;
use tokio::sync::watch;

/// A lease that is not renewed for so long is taken over. Another replica looks at it every two to
/// three seconds, so that it takes over within 18 s.
const LEASE_DURATION: Duration = Duration::from_secs(12);

/// Who cannot renew the lease for so long gives it up, before another one can take it.
const RENEW_DEADLINE: Duration = Duration::from_secs(8);

/// The election that takes place at a Lease.
pub fn election(client: Client, namespace: &str, name: &str, identity: &str) -> LeaderElection {
    LeaderElection::new(client, namespace, name, identity)
        .with_lease_duration(LEASE_DURATION)
        .with_renew_deadline(RENEW_DEADLINE)
}

/// Sets `leading` while this replica holds the lease; competes for it again whenever it is lost.
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
