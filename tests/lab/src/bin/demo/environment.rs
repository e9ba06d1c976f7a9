//! Owns the environment of the demo: control plane, simulated Amperity and operator, their start and end.
//! Never leaves processes or files behind when a start fails or is interrupted.

use std::time::Duration;

use kube::Client;
use lab::{control_plane::ControlPlane, simulator::Simulator};
use tokio::time::{Instant, timeout};

use crate::{EarlyExit, operator::Operator, samples, signals::Signals};

const CRD: &str = include_str!("../../../../../crds/workflowrunstops.yaml");

/// Timeout for an interrupted start to complete, so that its processes can be stopped; it usually takes 2 s.
const STARTS_WITHIN: Duration = Duration::from_secs(10);

/// The running components.
pub struct Environment {
    pub plane: ControlPlane,
    pub amperity: Simulator,
    pub operator: Operator,
}

impl Environment {
    /// Starts all components and prints their addresses.
    pub async fn start(signals: &mut Signals) -> Result<Self, EarlyExit> {
        let started = Instant::now();
        let starting = ControlPlane::start();
        tokio::pin!(starting);
        let plane = tokio::select! {
            plane = &mut starting => plane.map_err(|error| EarlyExit::Failed(error.to_string()))?,
            code = signals.next() => {
                // Wait for the start, to stop what it has started.
                if let Ok(Ok(plane)) = timeout(STARTS_WITHIN, starting).await {
                    plane.stop().await;
                }
                return Err(EarlyExit::Interrupted(code));
            }
        };
        let took = started.elapsed().as_secs_f32();
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
                Err(EarlyExit::Failed(format!("cannot start the operator: {error}")))
            }
        }
    }

    pub fn client(&self) -> Client {
        self.plane.client()
    }

    /// Waits until a component exits unexpectedly and returns a description.
    pub async fn wait_for_unexpected_exit(&self) -> String {
        tokio::select! {
            exit = self.plane.wait_for_unexpected_exit() => format!("the control plane failed: {exit}"),
            status = self.operator.exited() => format!("the operator exited with status {status}"),
        }
    }

    /// Stops everything: the operator first, because it may still have to write a record.
    pub async fn stop(self) {
        self.operator.stop().await;
        self.plane.stop().await;
    }
}
