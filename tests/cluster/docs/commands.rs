//! Owns the tests of the documents' commands: every `sh` block is run in the order of its document, or is
//! marked with the reason why not.

use std::fmt::Write;

use tokio::sync::Semaphore;

use super::environment::Environment;
use super::markdown::{Block, Document, Mark, all};

/// Limits the tests that run at once: each needs half a GiB for its control plane.
static PERMITS: Semaphore = Semaphore::const_new(2);

/// The state of the cluster before the first command of a document.
enum Setup {
    /// An empty cluster.
    Empty,
    /// The operator, installed by the chart, and a Secret with a token.
    Installed,
    /// The same, after these commands.
    InstalledAnd(&'static str),
}
use Setup::{Empty, Installed, InstalledAnd};

/// Installs the operator as docs/getting-started.md does.
const INSTALL: &str = "helm install workflow-run-stop-operator charts/workflow-run-stop-operator \
    --namespace workflow-run-stop-operator --create-namespace >/dev/null
kubectl create secret generic amperity --from-literal=token=good-token\n";

// Each document with its setup and with texts that the output must contain.
macro_rules! documents {
    ($($test:ident: $path:literal $setup:expr, $expected:expr;)*) => {
        /// The documents with commands.
        const DOCUMENTS: &[&str] = &[$($path,)*];
        $(
            #[tokio::test]
            async fn $test() {
                run($path, $setup, &$expected).await;
            }
        )*
    };
}

documents! {
    the_commands_of_the_readme_work: "README.md" Empty, ["condition met"];
    the_commands_of_getting_started_work: "docs/getting-started.md" Empty, ["canceled   Stopped   True    RunStopped", "WorkflowRunStops can be listed"];
    the_commands_of_gitops_work: "docs/gitops.md" InstalledAnd("kubectl create namespace argocd"), ["argocd-cm serverside-applied", "stop-"];
    the_commands_of_operations_work: "docs/operations.md" Installed, ["REVISION: 3", "workflowrunstops.workflow.amperity.com\" deleted"];
    the_commands_of_security_work: "docs/security.md" Installed, ["events.events.k8s.io", "secret/amperity configured"];
    the_commands_of_reasons_work: "docs/reasons.md" InstalledAnd(STOPPED), ["The run is stopped: state canceled."];
    the_commands_of_alerts_work: "docs/alerts.md" InstalledAnd(STOPPED_AND_WITHOUT_A_SECRET), ["CredentialsMissing", "StopAccepted", "yes"];
    the_commands_of_kubectl_plugin_work: "docs/kubectl-plugin.md" Installed, ["Stopped (RunStopped): The run is stopped: state canceled.", "stop-wf-20240619-14418-6uhqse created (server dry run)"];
    the_commands_of_faq_work: "docs/faq.md" InstalledAnd(STOPPED), ["\"httpStatus\":200", "\" deleted from"];
}

/// Creates a stop and waits until it has succeeded.
const STOPPED: &str = "sed 's/wf-demo-1/wf-20240619-14418-6UhqSe/' examples/stop.yaml | kubectl apply -f -
kubectl wait wrs/stop-nightly --for=condition=Ready --timeout=60s";

/// The same, and a stop that waits for its Secret.
const STOPPED_AND_WITHOUT_A_SECRET: &str = "sed 's/wf-demo-1/wf-20240619-14418-6UhqSe/' examples/stop.yaml | kubectl apply -f -
sed 's/stop-nightly/stop-secretless/; s/name: amperity/name: none/' examples/stop.yaml | kubectl apply -f -
kubectl wait wrs/stop-nightly --for=condition=Ready --timeout=60s
kubectl wait wrs/stop-secretless --for=jsonpath='{.status.conditions[?(@.type==\"Ready\")].reason}'=CredentialsMissing --timeout=60s";

/// Returns the commands for a block; empty for a block that is not run.
fn script(block: &Block) -> String {
    match (block.language.as_str(), &block.mark) {
        ("sh", None) => block.text.clone(),
        (_, Some(Mark::File(name))) => format!("cat >{name} <<'END_OF_BLOCK'\n{}END_OF_BLOCK\n", block.text),
        _ => String::new(),
    }
}

async fn run(path: &str, setup: Setup, expected: &[&str]) {
    let _permit = PERMITS.acquire().await.unwrap();
    let environment = Environment::new(&path.replace('/', "-")).await;
    let mut commands = match setup {
        Empty => String::new(),
        Installed => INSTALL.to_owned(),
        InstalledAnd(more) => format!("{INSTALL}{more}\n"),
    };
    let blocks = Document::at(path).blocks();
    let mut has_commands = false;
    for block in &blocks {
        let script = script(block);
        has_commands |= !script.is_empty();
        // Shows which block failed.
        write!(commands, "printf '%s\\n' '--- {}'\n{script}", block.place).unwrap();
    }
    assert!(has_commands, "{path} has no commands any more: remove it from `documents!`");
    let ended = tokio::select! {
        ended = environment.run(&commands) => ended,
        () = environment.run_deployments() => unreachable!("it never returns"),
    };
    assert!(ended.status.success(), "{path}: {}, after\n{}", ended.status, ended.output);
    for text in expected {
        assert!(ended.output.contains(text), "{path} does not print '{text}' but\n{}", ended.output);
    }
    environment.stop().await;
}

#[test]
fn every_document_with_commands_has_a_test() {
    for document in all().iter().filter(|document| !document.is_generated()) {
        let has_commands = document.blocks().iter().any(|block| !script(block).is_empty());
        assert_eq!(
            has_commands,
            DOCUMENTS.contains(&document.path.as_str()),
            "{}: `documents!` has every document with commands and no other",
            document.path
        );
    }
}

#[test]
fn every_block_has_a_known_language_and_mark() {
    for block in all().iter().filter(|document| !document.is_generated()).flat_map(Document::blocks) {
        let is_known = match (block.language.as_str(), &block.mark) {
            ("sh", None | Some(Mark::Outside(_))) => true,
            ("yaml", None | Some(Mark::Fragment(_) | Mark::Values | Mark::File(_))) => true,
            // Diagrams and the output of programs.
            ("text" | "promql", None) => true,
            _ => false,
        };
        assert!(is_known, "{}: a block of '{}' with the mark {:?}", block.place, block.language, block.mark);
    }
}

#[tokio::test]
async fn the_api_server_accepts_every_manifest_and_the_chart_all_values() {
    let _permit = PERMITS.acquire().await.unwrap();
    let environment = Environment::new("manifests").await;
    environment.apply_crd().await;
    let mut count = 0;
    for block in all().iter().flat_map(Document::blocks).filter(|block| block.language == "yaml") {
        let program = match block.mark {
            Some(Mark::Fragment(_)) => continue,
            Some(Mark::Values) => {
                "helm template release charts/workflow-run-stop-operator --kube-version 1.37.0 --values -"
            }
            _ => "kubectl apply --dry-run=server --filename -",
        };
        let ended = environment.run_with_stdin(program, &block.text).await;
        assert!(ended.status.success(), "{}: {}", block.place, ended.output);
        count += 1;
    }
    assert!(3 < count);
    environment.stop().await;
}
