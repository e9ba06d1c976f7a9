//! Owns the steps of the demo: start, samples, table, comparison, and the exit code.
//! Never uses a cluster or an Amperity other than those that it starts.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

mod comparison;
mod display;
mod environment;
mod operator;
mod samples;
mod signals;

use std::{error::Error, fs, path::Path, process::ExitCode, time::Duration};

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use crate::{display::LiveTable, environment::Environment, samples::Sample, signals::Signals};

const NAMESPACE: &str = "default";
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");

/// Timeout for all samples to finish; it usually takes 10 s.
const FINISHES_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);

/// Timeout for all steps together. Exceeded only if the API server does not respond.
const COMPLETES_WITHIN: Duration = Duration::from_secs(90);

/// The reason of an early exit.
pub enum EarlyExit {
    /// An error, with its message.
    Failed(String),
    /// A signal, with the exit code for it.
    Interrupted(u8),
}

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let keep = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--keep"] => true,
        _ => {
            eprintln!("usage: demo [--keep]");
            return ExitCode::from(2);
        }
    };
    let result = match Signals::listen() {
        Ok(mut signals) => run(keep, &mut signals).await,
        Err(error) => Err(EarlyExit::Failed(format!("cannot handle signals: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(EarlyExit::Failed(message)) => {
            eprintln!("demo: failed: {message}");
            ExitCode::FAILURE
        }
        Err(EarlyExit::Interrupted(code)) => {
            eprintln!("demo: interrupted; all processes are stopped");
            ExitCode::from(code)
        }
    }
}

/// Runs the demo, and stops everything it started before it returns.
async fn run(keep: bool, signals: &mut Signals) -> Result<(), EarlyExit> {
    let environment = Environment::start(signals).await?;
    let mut result = tokio::select! {
        steps = timeout(COMPLETES_WITHIN, run_steps(&environment)) => match steps {
            Ok(outcome) => outcome.map_err(|message| EarlyExit::Failed(message.to_string())),
            Err(_) => Err(EarlyExit::Failed("the API server does not respond".to_owned())),
        },
        exit = environment.wait_for_unexpected_exit() => Err(EarlyExit::Failed(exit)),
        code = signals.next() => Err(EarlyExit::Interrupted(code)),
    };
    if let Err(EarlyExit::Failed(message)) = &result {
        eprintln!("\nthe last lines of the operator's log:\n{}\n", environment.operator.log_tail());
        if keep {
            // `main` prints it only after Ctrl-C.
            eprintln!("demo: failed: {message}");
        }
    }
    if keep && !matches!(result, Err(EarlyExit::Interrupted(_))) {
        print_suggestions(&environment);
        tokio::select! {
            exit = environment.wait_for_unexpected_exit() => result = Err(EarlyExit::Failed(exit)),
            // The expected end, not an early exit.
            _ = signals.next() => println!("\nstopping everything"),
        }
    }
    environment.stop().await;
    result
}

/// Applies the samples, shows them until all have finished, and compares the results.
async fn run_steps(environment: &Environment) -> Outcome {
    let client = environment.client();
    // The API server creates this namespace itself, a moment after its start.
    apply_text(&client, "{apiVersion: v1, kind: Namespace, metadata: {name: default}}").await?;
    let samples = samples::samples();
    for file in std::iter::once(samples::SECRET).chain(samples.iter().map(|sample| sample.file)) {
        let text = fs::read_to_string(Path::new(EXAMPLES).join(file)).map_err(|error| format!("{file}: {error}"))?;
        apply_text(&client, &text).await.map_err(|error| format!("cannot apply examples/{file}: {error}"))?;
        println!("applied         examples/{file}");
    }
    let resources = wait_until_finished(&client, &samples).await?;
    println!();
    display::wide(&client).await?;
    let resource = |name: &str| resources.iter().find(|resource| resource["metadata"]["name"] == name);
    let mut differences = Vec::new();
    for sample in &samples {
        let resource = resource(sample.name).ok_or_else(|| format!("{} does not exist any more", sample.name))?;
        if sample.name == samples::FAILING {
            display::status(sample.name, resource);
        }
        differences.extend(comparison::differences(sample, resource, &environment.amperity));
    }
    if !differences.is_empty() {
        return Err(differences.join("\n").into());
    }
    println!("All {} stops ended as expected, and Amperity received exactly one request for each.", samples.len());
    Ok(())
}

/// Shows the table until all samples have finished, and returns all resources.
async fn wait_until_finished(client: &Client, samples: &[Sample]) -> Result<Vec<Value>, Box<dyn Error + Send + Sync>> {
    let stops: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), NAMESPACE, &resource("workflow.amperity.com/v1alpha1", "WorkflowRunStop"));
    let mut live = LiveTable::new(client.clone());
    let deadline = Instant::now() + FINISHES_WITHIN;
    loop {
        // The table is fetched after the list, so that the last one shows all samples finished.
        let list = stops.list(&ListParams::default()).await?;
        live.show().await?;
        let resources: Vec<_> = list.items.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
        let is_finished = |name: &str| {
            resources.iter().any(|resource| resource["metadata"]["name"] == name && comparison::is_finished(resource))
        };
        let missing: Vec<_> = samples.iter().map(|sample| sample.name).filter(|name| !is_finished(name)).collect();
        if missing.is_empty() {
            return Ok(resources);
        }
        if deadline <= Instant::now() {
            let (seconds, missing) = (FINISHES_WITHIN.as_secs(), missing.join(", "));
            return Err(format!("not finished after {seconds} s: {missing}").into());
        }
        sleep(POLL).await;
    }
}

/// Applies all documents of a manifest, like `kubectl apply --server-side`.
async fn apply_text(client: &Client, text: &str) -> Outcome {
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let document = Value::deserialize(document)?;
        let field = |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let api_resource = resource(field("/apiVersion"), field("/kind"));
        let api: Api<DynamicObject> = match api_resource.kind.as_str() {
            "Namespace" => Api::all_with(client.clone(), &api_resource),
            _ => Api::namespaced_with(client.clone(), NAMESPACE, &api_resource),
        };
        api.patch(field("/metadata/name"), &PatchParams::apply("demo"), &Patch::Apply(&document)).await?;
    }
    Ok(())
}

fn resource(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

fn print_suggestions(environment: &Environment) {
    let kubeconfig = environment.plane.kubeconfig_path();
    println!(
        "\nEverything keeps running until Ctrl-C. In another terminal, in this folder:

  export KUBECONFIG={}
  kubectl get wrs -w
  kubectl apply -f examples/stop-another.yaml
  kubectl wait wrs/stop-another --for=condition=Ready --timeout=1m
  kubectl describe wrs stop-failing
  kubectl explain wrs.status
  tail -f {}

Without kubectl: export PATH=\"$(sh tests/lab/control-plane/build.sh kubectl):$PATH\" builds one.
Runs cannot be added to the simulated Amperity from outside. These runs of the tenant {} are still unused:

{}
  sed 's/stop-nightly/mine/; s/wf-demo-1/wf-demo-9/' examples/stop.yaml | kubectl apply -f -",
        kubeconfig.display(),
        environment.operator.log_path().display(),
        samples::TENANT,
        samples::SPARE_RUNS,
    );
}
