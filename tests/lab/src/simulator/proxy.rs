//! Owns a forward proxy for tests of `HTTPS_PROXY` and `NO_PROXY`.
//! Never reads the data in a tunnel.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A proxy that serves until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    server: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy that connects to the requested host.
    pub async fn start() -> Self {
        Proxy::start_with_upstream(None).await
    }

    /// Starts a proxy that connects to `upstream`, if given, whatever host is requested.
    pub async fn start_with_upstream(upstream: Option<SocketAddr>) -> Self {
        let listener = TcpListener::bind(super::LOOPBACK).await.expect("a port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let server = tokio::spawn(serve(listener, upstream, Arc::clone(&requests)));
        Proxy { address, requests, server }
    }

    /// Returns `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the requests so far: `CONNECT host:port`, or `GET http://host:port/path`.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, upstream: Option<SocketAddr>, requests: Arc<Mutex<Vec<String>>>) {
    let mut tunnels = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        tunnels.spawn(tunnel(client, upstream, Arc::clone(&requests)));
        while tunnels.try_join_next().is_some() {}
    }
}

/// Forwards one connection until either side closes it. Errors just end it.
async fn tunnel(mut client: TcpStream, upstream: Option<SocketAddr>, requests: Arc<Mutex<Vec<String>>>) -> Option<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if client.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut words = text.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    requests.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{method} {target}"));
    let authority = target.trim_start_matches("http://").split('/').next()?;
    let mut server = match upstream {
        Some(upstream) => TcpStream::connect(upstream).await.ok()?,
        None => TcpStream::connect(authority).await.ok()?,
    };
    if method == "CONNECT" {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.ok()?;
    } else {
        // Servers must accept the absolute form, so the head is forwarded unchanged.
        server.write_all(&head).await.ok()?;
    }
    copy_bidirectional(&mut client, &mut server).await.ok()?;
    None
}
