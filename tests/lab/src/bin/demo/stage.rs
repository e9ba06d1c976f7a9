//! Owns what the demo runs on: control plane, simulated Amperity and operator, their start and their end.
//! Never leaves anything behind when a start is interrupted or fails.

use std::time::Duration;

use kube::Client;
use lab::{control_plane::ControlPlane, simulator::Simulator};
use tokio::time::{Instant, timeout};

use crate::{Ended, operator::Operator, samples, signals::Signals};

const CRD: &str = include_str!("../../../../../crds/workflowrunstops.yaml");

/// How long an interrupted start is waited for, so that what it started can be ended; 2 s are usual.
const STARTS_WITHIN: Duration = Duration::from_secs(10);

/// Everything that runs.
pub struct Stage {
    pub plane: ControlPlane,
    pub amperity: Simulator,
    pub operator: Operator,
}

impl Stage {
    /// Starts everything, and says where it is.
    pub async fn start(signals: &mut Signals) -> Result<Self, Ended> {
        let begun = Instant::now();
        let starting = ControlPlane::start();
        tokio::pin!(starting);
        let plane = tokio::select! {
            plane = &mut starting => plane.map_err(|error| Ended::Failed(error.to_string()))?,
            code = signals.next() => {
                // What was begun is not to be left to itself.
                if let Ok(Ok(plane)) = timeout(STARTS_WITHIN, starting).await {
                    plane.stop().await;
                }
                return Err(Ended::Interrupted(code));
            }
        };
        let took = begun.elapsed().as_secs_f32();
        println!("control plane   {} (etcd and kube-apiserver, ready after {took:.1} s)", plane.url());
        plane.apply_crd(CRD).await;
        let amperity = samples::simulated_amperity().await;
        println!("Amperity        {} (simulated)", amperity.base_url());
        match Operator::start(&plane.kubeconfig_path(), &amperity.base_url()) {
            Ok(operator) => {
                println!("operator        its log is {}", operator.log_path().display());
                Ok(Self { plane, amperity, operator })
            }
            Err(error) => {
                plane.stop().await;
                Err(Ended::Failed(format!("the operator cannot be started: {error}")))
            }
        }
    }

    pub fn client(&self) -> Client {
        self.plane.client()
    }

    /// Waits until something ends that should run; says what.
    pub async fn broke(&self) -> String {
        tokio::select! {
            fault = self.plane.failed() => format!("the control plane broke: {fault}"),
            status = self.operator.ended() => format!("the operator ended by itself with status {status}"),
        }
    }

    /// Ends everything: the operator first, which may still have something to record.
    pub async fn end(self) {
        self.operator.end().await;
        self.plane.stop().await;
    }
}
