//! Owns a plain HTTP proxy that tunnels, for tests of `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`.
//! Never looks into a tunnel.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Serves until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Proxy {
    /// A proxy that connects to whatever it is asked for.
    pub async fn start() -> Self {
        Proxy::start_towards(None).await
    }

    /// A proxy that connects to this address, if there is one, whatever name it is asked for, as a private DNS would.
    pub async fn start_towards(upstream: Option<SocketAddr>) -> Self {
        let (listener, address) = super::server::bind(super::LOOPBACK).await;
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let serving = tokio::spawn(serve(listener, upstream, Arc::clone(&seen)));
        Proxy { address, seen, serving }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it was asked for so far: `CONNECT host:port`, or `GET http://host:port/path`.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, upstream: Option<SocketAddr>, seen: Arc<Mutex<Vec<String>>>) {
    let mut tunnels = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        tunnels.spawn(tunnel(client, upstream, Arc::clone(&seen)));
        while tunnels.try_join_next().is_some() {}
    }
}

/// Nothing where the client or the other side leaves: then the tunnel just ends.
async fn tunnel(mut client: TcpStream, upstream: Option<SocketAddr>, seen: Arc<Mutex<Vec<String>>>) -> Option<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if client.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut words = text.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{method} {target}"));
    let authority = target.trim_start_matches("http://").split('/').next()?;
    let mut server = match upstream {
        Some(upstream) => TcpStream::connect(upstream).await.ok()?,
        None => TcpStream::connect(authority).await.ok()?,
    };
    if method == "CONNECT" {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.ok()?;
    } else {
        // A server must take the absolute form as well, so the head goes on as it is.
        server.write_all(&head).await.ok()?;
    }
    copy_bidirectional(&mut client, &mut server).await.ok()?;
    None
}
