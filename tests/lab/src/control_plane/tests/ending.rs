//! Owns the tests of the end of a control plane: pause and kill, cleanup, and reports of unexpected exits.
//! Never touches the processes of the shared control plane, except in the child process that a test kills.

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

/// Environment variable of the child process that a test starts and kills; also the prefix of its report.
const CHILD: &str = "LAB_CONTROL_PLANE_CHILD";

fn sh(script: &str) -> bool {
    let command = Command::new("/bin/sh").args(["-c", script]).stderr(Stdio::null()).status();
    command.unwrap().success()
}

fn is_alive(process: u32) -> bool {
    sh(&format!("kill -0 {process}"))
}

async fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !is_true() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "not true within 30 s: {what}");
}

#[tokio::test]
async fn the_api_server_can_be_paused_and_killed_and_keeps_its_data() {
    let plane = ControlPlane::start().await.unwrap();
    let namespace = plane.namespace().await;

    plane.pause().await;
    let client = plane.client();
    let timed_out = tokio::time::timeout(Duration::from_millis(500), config_maps(client.clone(), &namespace)).await;
    assert!(timed_out.is_err(), "a paused API server responded");
    plane.resume().await;
    plane.ready().await;
    assert!(config_maps(client, &namespace).await.is_ok());

    plane.pause().await;
    plane.kill_apiserver().await;
    let refused = config_maps(plane.client(), &namespace).await.unwrap_err();
    assert!(!matches!(refused, kube::Error::Api(_)), "a killed API server responded: {refused}");
    plane.start_apiserver().await;
    let namespaces: Api<Namespace> = Api::all(plane.client());
    assert!(namespaces.get(&namespace).await.is_ok());
    assert_eq!(plane.unexpected_exit(), None);
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
async fn an_exited_process_is_reported_with_its_log() {
    let plane = ControlPlane::start().await.unwrap();
    let etcd = plane.processes()["etcd"];
    assert!(sh(&format!("kill -KILL {etcd}")));
    let exit = plane.wait_for_unexpected_exit().await;
    assert!(exit.starts_with("etcd exited with status 137\n") && exit.contains("--- etcd.log\n"), "{exit}");
    let folder = plane.access.folder().to_owned();
    drop(plane);
    wait_until("the folder of a dropped control plane is removed", || !folder.exists()).await;
}

#[tokio::test]
async fn a_taken_port_is_distinguished_from_other_errors() {
    let mut ports = free_ports().unwrap();
    let taken = free_port().unwrap();
    ports.etcd = taken.local_addr().unwrap().port();
    let binaries = tokio::task::spawn_blocking(|| build(&[])).await.unwrap().unwrap();
    let error = launch_on(&binaries, ports, &[]).await.unwrap_err();
    assert!(error.port_taken, "{error}");
    assert!(error.to_string().contains("--- etcd.log\n"), "{error}");
}

#[tokio::test]
async fn nothing_is_left_after_the_parent_process_is_killed() {
    // To this process only, like a timeout or the out-of-memory killer.
    let leftovers = end_a_child_with("kill -KILL $child").await;
    leftovers.are_gone().await;
}

#[tokio::test]
async fn nothing_is_left_after_ctrl_c_in_a_terminal() {
    // To the whole process group, like a terminal.
    let leftovers = end_a_child_with("kill -INT -$child").await;
    leftovers.are_gone().await;
}

struct Leftovers {
    processes: Vec<u32>,
    folder: PathBuf,
}

impl Leftovers {
    async fn are_gone(self) {
        wait_until("both processes have exited", || !self.processes.iter().any(|&process| is_alive(process))).await;
        wait_until("the folder is removed", || !self.folder.exists()).await;
    }
}

/// Starts a child process that starts a control plane, and sends this signal to the child.
async fn end_a_child_with(signal: &str) -> Leftovers {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "control_plane::tests::ending::child", "--ignored", "--nocapture"])
        .env(CHILD, "1")
        .process_group(0)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let line =
        stdout.lines().map(Result::unwrap).find_map(|line| line.split_once(CHILD).map(|(_, rest)| rest.to_owned()));
    let line = line.expect("the child starts a control plane");
    let mut words = line.split_whitespace();
    let folder = PathBuf::from(words.next().unwrap());
    let processes: Vec<u32> = words.map(|word| word.parse().unwrap()).collect();
    assert_eq!(processes.len(), 2);
    assert!(processes.iter().all(|&process| is_alive(process)) && folder.exists());

    assert!(sh(&signal.replace("$child", &child.id().to_string())));
    assert!(!child.wait().unwrap().success());
    Leftovers { processes, folder }
}

#[tokio::test]
#[ignore = "started by the tests above, which kill it"]
#[expect(clippy::print_stdout, reason = "the test that started this process reads stdout")]
async fn child() {
    if std::env::var_os(CHILD).is_some() {
        let plane = ControlPlane::shared().await;
        let processes = plane.processes();
        println!("{CHILD} {} {} {}", plane.access.folder().display(), processes["etcd"], processes["kube-apiserver"]);
        std::future::pending::<()>().await;
    }
}
