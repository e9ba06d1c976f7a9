//! Owns the measurement of the whole operator while a hundred hostile answers arrive at once, for a hundred tenants, until
//! their outcomes are stored.
//! Never limits what the answers contain.

use std::{path::Path, time::Duration};

use futures::future::join_all;
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use lab::{control_plane::ControlPlane, testing::namespace_with_secret};
use tokio::{net::TcpListener, sync::oneshot, time::sleep};
use tokio_util::task::AbortOnDropHandle;
use workflow_run_stop_api::WorkflowRunStop;

use crate::{hostile, process::Operator, seed::a_stop};

/// The kinds of answers that take the most memory: very many tasks, large ones, and one large text.
const KINDS: [&str; 3] = ["tasks", "large", "text"];

/// The number of answers at once.
const AT_ONCE: usize = 100;

/// The measurement of one kind of answers.
pub struct HostileAnswers {
    /// The kind.
    pub kind: &'static str,
    /// The peak of the resident memory, in MiB.
    pub peak: f64,
}

/// Measures each kind.
pub async fn measure(cluster: &ControlPlane) -> Vec<HostileAnswers> {
    let mut all = vec![];
    for kind in KINDS {
        let peak = of_kind(cluster, kind).await;
        println!("{AT_ONCE} answers at once, {kind}: peak {peak:.1} MiB");
        all.push(HostileAnswers { kind, peak });
    }
    all
}

async fn of_kind(cluster: &ControlPlane, kind: &'static str) -> f64 {
    let ca = Path::new(env!("CARGO_TARGET_TMPDIR")).join("scale-ca.pem");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("https://{}/api", listener.local_addr().unwrap());
    let authority = ca.display().to_string();
    let (ready, is_ready) = oneshot::channel();
    let serving = async move {
        hostile::serve(listener, "https", kind, AT_ONCE, &authority, || ready.send(()).unwrap()).await;
    };
    let _server = AbortOnDropHandle::new(tokio::spawn(serving));
    is_ready.await.unwrap();
    let namespace = namespace_with_secret(cluster).await;
    let api: Api<WorkflowRunStop> = Api::namespaced(cluster.client(), &namespace);
    join_all((0..AT_ONCE).map(async |number| {
        let mut stop = a_stop(&format!("stop-{number}"), &format!("tenant-{number}"));
        stop.spec.run_id = "wf-1".into();
        // No read: its answer would be like that to the stop.
        stop.spec.follow_timeout_seconds = 0;
        api.create(&PostParams::default(), &stop).await.unwrap();
    }))
    .await;
    let operator = Operator::start_with(cluster, &base, &[("SSL_CERT_FILE", &ca)]);
    while api.list(&ListParams::default()).await.unwrap().items.iter().any(|stop| !stop.is_finished()) {
        sleep(Duration::from_millis(500)).await;
    }
    let peak = operator.mebibytes("VmHWM");
    operator.kill().await;
    peak
}
