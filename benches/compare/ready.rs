//! Owns how a contender is found to be ready: the address that it serves on, and waiting for its answer.
//! Never judges what it measures.

use std::net::TcpListener;

use tokio::time::{Duration, Instant, sleep};

use crate::program::Program;

/// The time within which a program must be ready.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Returns a free loopback address.
pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Waits until a program answers this URL with success.
pub async fn wait_for(program: &mut Program, url: &str) {
    let (client, started) = (reqwest::Client::new(), Instant::now());
    let ready = async || client.get(url).send().await?.error_for_status();
    while ready().await.is_err() {
        let exited = program.child.try_wait().unwrap();
        assert!(exited.is_none(), "it exited, see target/tmp/compared-*.log: {}", exited.unwrap_or_default());
        assert!(started.elapsed() < READY_WITHIN, "it never became ready, see target/tmp/compared-*.log");
        sleep(Duration::from_millis(20)).await;
    }
}
