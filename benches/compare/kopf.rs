//! Owns the installation and the start of the contender that is written with Kopf.
//! Never fails if Kopf cannot be installed: it prints the reason, and there is one contender less.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use lab::{control_plane::ControlPlane, simulator::Simulator};

use crate::{
    program::{self, Program},
    ready,
};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/compare");

/// The program `kopf`, installed at the first use in this process; `None` if that failed.
static KOPF: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kopf");
    let output = Command::new("sh").arg(format!("{SCRIPTS}/kopf.sh")).arg(environment).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    if !output.status.success() {
        println!("Kopf is not compared: {}", text(&output.stderr));
        return None;
    }
    Some(text(&output.stdout).into())
});

/// Returns whether Kopf is installed, and installs it if not.
pub fn is_available() -> bool {
    KOPF.is_some()
}

/// Starts it for one namespace, and waits until it is live.
pub async fn start(cluster: &ControlPlane, amperity: &Simulator, namespace: &str) -> Program {
    let http = ready::free_address();
    let log = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("compared-kopf.log")).unwrap();
    let mut command = program::command(KOPF.as_ref().expect("it is available"), cluster);
    command
        .args(["run", "--namespace", namespace, "--liveness", &format!("http://{http}/healthz")])
        .arg(format!("{SCRIPTS}/kopf_stop.py"))
        .env("AMPERITY_BASE_URL", amperity.base_url())
        // An image for Python does not have the variable of the operator's image.
        .env_remove("MALLOC_MMAP_THRESHOLD_")
        .stderr(log);
    let mut program = Program::start(&mut command);
    ready::wait_for(&mut program, &format!("http://{http}/healthz")).await;
    program
}
