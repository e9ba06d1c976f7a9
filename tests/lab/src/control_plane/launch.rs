//! Owns the start of a control plane: its programs, its ports, its folder, and why it did not start.
//! Never gives one out that is not ready, and never leaves one behind that did not get there.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::access::{Access, User};
use super::supervisor::{self, Ports, Supervisor};
use super::{ControlPlane, wait_until_ready};

/// How often a start is tried again because another process took one of the ports first.
const ATTEMPTS: usize = 5;

/// Below the range that outgoing connections take their ports from. A port from that range could be
/// taken while the API server is away;
/// worse, a client that keeps dialling it could be given the very same port and be connected to itself.
const PORTS: Range<u16> = 20_000..32_000;

/// Why a control plane did not start.
pub struct StartError {
    pub(super) message: String,
    pub(super) port_taken: bool,
}

/// Builds the programs if need be, and starts them on free ports.
pub(super) async fn launch() -> Result<ControlPlane, StartError> {
    let binaries = build(&[])?;
    let mut attempt = 1;
    loop {
        match launch_on(&binaries, free_ports()?).await {
            Err(error) if error.port_taken && attempt < ATTEMPTS => attempt += 1,
            end => return end,
        }
    }
}

/// One attempt.
pub(super) async fn launch_on(binaries: &Path, ports: Ports) -> Result<ControlPlane, StartError> {
    let folder = tempfile::Builder::new().prefix("control-plane-").tempdir()?;
    let supervisor = Supervisor::spawn(folder.path(), binaries, ports)?;
    // The supervisor removes it from here on, also when this process cannot.
    let folder = folder.keep();
    let access = Access::create(&folder, ports.apiserver)?;
    let ready = async {
        supervisor.start_apiserver().await?;
        wait_until_ready(access.client_config(User::Admin)).await
    };
    let started = tokio::select! {
        biased;
        fault = supervisor.failed() => Err(fault),
        ready = ready => ready.map_err(|error| format!("{error}\n{}", supervisor::logs(&folder))),
    };
    match started {
        Ok(()) => Ok(ControlPlane { access, ports, supervisor }),
        Err(message) => {
            supervisor.close();
            supervisor.gone().await;
            Err(StartError::new(message))
        }
    }
}

/// Where kubectl is, built first if need be.
///
/// # Errors
/// When it cannot be built.
pub fn kubectl() -> Result<PathBuf, StartError> {
    Ok(build(&["kubectl"])?.join("kubectl"))
}

/// Where the programs are, built first if need be. What it is doing goes to stderr as it happens.
pub(super) fn build(more: &[&str]) -> Result<PathBuf, StartError> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/control-plane/build.sh");
    let mut command = Command::new("/bin/sh");
    let output = command.arg(script).args(more).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(StartError::new(format!("{script} failed ({}), see its message above", output.status)));
    }
    let folder = String::from_utf8_lossy(&output.stdout);
    Ok(PathBuf::from(folder.trim_end_matches('\n')))
}

/// Three different free ports. They are free no longer when another process is quicker.
pub(super) fn free_ports() -> io::Result<Ports> {
    // All are held until all are known, so that they differ.
    let held = [free_port()?, free_port()?, free_port()?];
    let [apiserver, etcd, etcd_peer] =
        [held[0].local_addr()?.port(), held[1].local_addr()?.port(), held[2].local_addr()?.port()];
    Ok(Ports { apiserver, etcd, etcd_peer })
}

/// A free port at a random place, so that processes that start together seldom choose the same.
pub(super) fn free_port() -> io::Result<TcpListener> {
    let random = RandomState::new().hash_one(std::process::id());
    let length = PORTS.end - PORTS.start;
    let first = u16::try_from(random % u64::from(length)).expect("less than a u16");
    (0..length)
        .map(|step| PORTS.start + (first + step) % length)
        .find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
        .ok_or_else(|| io::ErrorKind::AddrInUse.into())
}

impl std::error::Error for StartError {}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// As it is displayed, because a test that unwraps it prints this, and the log lines in it are for reading.
impl fmt::Debug for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StartError {
    fn new(message: String) -> Self {
        // As Go and the C library put it.
        let port_taken = message.to_lowercase().contains("address already in use");
        Self { message: format!("the control plane did not start: {message}"), port_taken }
    }
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::new(error.to_string())
    }
}
