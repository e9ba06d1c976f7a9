//! Owns the proof that a control plane's processes end when they should, are missed when they
//! should not, and leave nothing.
//! Never touches the shared control plane's processes, except in a process that is there to be killed.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;

use super::super::ControlPlane;
use super::super::launch::{build, free_port, free_ports, launch_on};
use super::config_maps;

/// Set for the process that a test starts in order to kill it.
const VICTIM: &str = "LAB_CONTROL_PLANE_VICTIM";

fn sh(script: &str) -> bool {
    let command = Command::new("/bin/sh").args(["-c", script]).stderr(Stdio::null()).status();
    command.unwrap().success()
}

fn is_alive(process: u32) -> bool {
    sh(&format!("kill -0 {process}"))
}

async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !is_true() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "not within 30 s: {what}");
}

#[tokio::test]
async fn the_api_server_can_be_paused_and_killed_and_keeps_its_data() {
    let plane = ControlPlane::start().await.unwrap();
    let namespace = plane.namespace().await;

    plane.pause().await;
    let client = plane.client();
    let unanswered = tokio::time::timeout(Duration::from_millis(500), config_maps(client.clone(), &namespace)).await;
    assert!(unanswered.is_err(), "a paused API server answered");
    plane.resume().await;
    plane.ready().await;
    assert!(config_maps(client, &namespace).await.is_ok());

    plane.pause().await;
    plane.kill_apiserver().await;
    let refused = config_maps(plane.client(), &namespace).await.unwrap_err();
    assert!(!matches!(refused, kube::Error::Api(_)), "a killed API server answered: {refused}");
    plane.start_apiserver().await;
    let namespaces: Api<Namespace> = Api::all(plane.client());
    assert!(namespaces.get(&namespace).await.is_ok());
    assert_eq!(plane.fault(), None);
    plane.stop().await;
}

#[tokio::test]
async fn stopping_ends_both_processes_and_removes_the_folder() {
    let plane = ControlPlane::start().await.unwrap();
    let (processes, folder) = (plane.processes(), plane.access.folder().to_owned());
    assert_eq!(processes.keys().collect::<Vec<_>>(), ["etcd", "kube-apiserver"]);
    assert!(processes.values().all(|&process| is_alive(process)));
    assert!(folder.join("etcd").exists());
    plane.stop().await;
    assert!(!processes.values().any(|&process| is_alive(process)));
    assert!(!folder.exists());
}

#[tokio::test]
async fn a_process_that_dies_is_noticed() {
    let plane = ControlPlane::start().await.unwrap();
    let etcd = plane.processes()["etcd"];
    assert!(sh(&format!("kill -KILL {etcd}")));
    let fault = plane.failed().await;
    assert!(fault.starts_with("etcd ended with status 137\n") && fault.contains("--- etcd.log\n"), "{fault}");
    let folder = plane.access.folder().to_owned();
    drop(plane);
    until("a dropped one's folder is gone", || !folder.exists()).await;
}

#[tokio::test]
async fn a_taken_port_is_told_apart_from_other_failures() {
    let mut ports = free_ports().unwrap();
    let taken = free_port().unwrap();
    ports.etcd = taken.local_addr().unwrap().port();
    let binaries = tokio::task::spawn_blocking(|| build(&[])).await.unwrap().unwrap();
    let error = launch_on(&binaries, ports).await.unwrap_err();
    assert!(error.port_taken, "{error}");
    assert!(error.to_string().contains("--- etcd.log\n"), "{error}");
}

#[tokio::test]
async fn nothing_is_left_after_the_process_that_started_one_was_killed() {
    // To the process alone, as a time limit or the out-of-memory killer does it.
    let remains = a_victim_ended_by("kill -KILL $victim").await;
    remains.are_gone().await;
}

#[tokio::test]
async fn nothing_is_left_after_ctrl_c_in_a_terminal() {
    // To the whole process group, as a terminal does it.
    let remains = a_victim_ended_by("kill -INT -$victim").await;
    remains.are_gone().await;
}

struct Remains {
    processes: Vec<u32>,
    folder: PathBuf,
}

impl Remains {
    async fn are_gone(self) {
        until("both processes are gone", || !self.processes.iter().any(|&process| is_alive(process))).await;
        until("the folder is gone", || !self.folder.exists()).await;
    }
}

/// Lets another process start a control plane, and ends that process.
async fn a_victim_ended_by(signal: &str) -> Remains {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "control_plane::tests::ending::victim", "--ignored", "--nocapture"])
        .env(VICTIM, "1")
        .process_group(0)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let told = BufReader::new(victim.stdout.take().unwrap());
    let line =
        told.lines().map(Result::unwrap).find_map(|line| line.split_once(VICTIM).map(|(_, rest)| rest.to_owned()));
    let line = line.expect("the victim started a control plane");
    let mut words = line.split_whitespace();
    let folder = PathBuf::from(words.next().unwrap());
    let processes: Vec<u32> = words.map(|word| word.parse().unwrap()).collect();
    assert_eq!(processes.len(), 2);
    assert!(processes.iter().all(|&process| is_alive(process)) && folder.exists());

    assert!(sh(&signal.replace("$victim", &victim.id().to_string())));
    assert!(!victim.wait().unwrap().success());
    Remains { processes, folder }
}

#[tokio::test]
#[ignore = "started by the tests above, which kill it"]
#[expect(clippy::print_stdout, reason = "stdout tells the test that started this process what to look for")]
async fn victim() {
    if std::env::var_os(VICTIM).is_some() {
        let plane = ControlPlane::shared().await;
        let processes = plane.processes();
        println!("{VICTIM} {} {} {}", plane.access.folder().display(), processes["etcd"], processes["kube-apiserver"]);
        std::future::pending::<()>().await;
    }
}
