//! Owns the start of a control plane: programs, ports, folder, and the error of a failed start.
//! Never returns a control plane that is not ready, and never leaves processes of a failed start running.

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

/// Maximum number of attempts when another process takes one of the ports first.
const ATTEMPTS: usize = 5;

/// The range of ports, below the ephemeral ones. An ephemeral port could be taken while the API server is down, and a
/// client that retries the connection could get the same port as its source port and connect to itself.
const PORTS: Range<u16> = 20_000..32_000;

/// The error of a control plane that did not start.
pub struct StartError {
    pub(super) message: String,
    pub(super) port_taken: bool,
}

/// Fetches or builds the programs if they are missing, and starts them on free ports.
pub(super) async fn launch(flags: &[&str]) -> Result<ControlPlane, StartError> {
    let binaries = build(&[])?;
    let mut attempt = 1;
    loop {
        match launch_on(&binaries, free_ports()?, flags).await {
            Err(error) if error.port_taken && attempt < ATTEMPTS => attempt += 1,
            end => return end,
        }
    }
}

/// Starts a control plane on these ports and waits until it is ready.
pub(super) async fn launch_on(binaries: &Path, ports: Ports, flags: &[&str]) -> Result<ControlPlane, StartError> {
    let folder = tempfile::Builder::new().prefix("control-plane-").tempdir()?;
    let supervisor = Supervisor::spawn(folder.path(), binaries, ports, flags)?;
    // From here on the supervisor removes the folder, also when this process is killed.
    let folder = folder.keep();
    let access = Access::create(&folder, ports.apiserver)?;
    let ready = async {
        supervisor.start_apiserver().await?;
        wait_until_ready(access.client_config(User::Admin)).await
    };
    let started = tokio::select! {
        biased;
        exit = supervisor.wait_for_unexpected_exit() => Err(exit),
        ready = ready => ready.map_err(|error| format!("{error}\n{}", supervisor::logs(&folder))),
    };
    match started {
        Ok(()) => Ok(ControlPlane { access, ports, supervisor }),
        Err(message) => {
            supervisor.close();
            supervisor.wait_until_gone().await;
            Err(StartError::new(message))
        }
    }
}

/// Returns the path of kubectl, and fetches or builds it if it is missing.
///
/// # Errors
/// If it cannot be built.
pub fn kubectl() -> Result<PathBuf, StartError> {
    Ok(build(&["kubectl"])?.join("kubectl"))
}

/// Returns the folder of the programs, and fetches or builds them if they are missing. The progress is printed on
/// stderr.
pub(super) fn build(additional: &[&str]) -> Result<PathBuf, StartError> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/control-plane/build.sh");
    let mut command = Command::new("/bin/sh");
    let output = command.arg(script).args(additional).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(StartError::new(format!("{script} failed ({}), see its message above", output.status)));
    }
    let folder = String::from_utf8_lossy(&output.stdout);
    Ok(PathBuf::from(folder.trim_end_matches('\n')))
}

/// Returns three different free ports. Another process may still take one of them before it is used.
pub(super) fn free_ports() -> io::Result<Ports> {
    // All listeners stay open until all ports are known, so that the ports differ.
    let listeners = [free_port()?, free_port()?, free_port()?];
    let [apiserver, etcd, etcd_peer] =
        [listeners[0].local_addr()?.port(), listeners[1].local_addr()?.port(), listeners[2].local_addr()?.port()];
    Ok(Ports { apiserver, etcd, etcd_peer })
}

/// Binds a free port, starting at a random one, so that processes that start together seldom choose the same.
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

/// Same as `Display`: `unwrap` in a test prints this, and the log lines have to stay readable.
impl fmt::Debug for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StartError {
    fn new(message: String) -> Self {
        // The wording of Go and of the C library.
        let port_taken = message.to_lowercase().contains("address already in use");
        Self { message: format!("the control plane did not start: {message}"), port_taken }
    }
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::new(error.to_string())
    }
}
