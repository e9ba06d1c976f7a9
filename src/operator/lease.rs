//! Owns leadership: whether this replica may start new work.
//! Never decides about correctness: leadership saves traffic and budget, claims keep the promise.

use k8s_controller::LeaderElection;
use tokio::sync::watch;

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
