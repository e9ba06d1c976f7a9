//! Owns the listener and its connections: HTTP/1.1 with or without TLS, arrival times, resets, and missing responses.
//! Never interprets a request beyond what its record needs: the handler does that.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, atomic::Ordering};
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::api_state::Shared;
use super::handler;
use super::request_log::{Kind, RecordedRequest};
use super::response::{Payload, Reply};

const LARGEST_BODY: usize = 1024 * 1024;

/// An error that makes hyper close the connection without a response.
#[derive(Debug)]
struct ConnectionClosed;

impl std::fmt::Display for ConnectionClosed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the simulator closed the connection")
    }
}

impl std::error::Error for ConnectionClosed {}

/// Returns a socket that is bound to this address and refuses connections. While it exists, the system gives its port to
/// nobody who asks for a free one, but [`listen`] can use it.
pub(super) fn bind(address: SocketAddr) -> TcpSocket {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.expect("a socket is free");
    // Also while another bound socket, or a connection that was closed a moment ago, has the address.
    socket.set_reuseaddr(true).expect("a new socket takes options");
    socket.bind(address).expect("the address can be bound");
    socket
}

/// Listens at an address that is bound already.
pub(super) fn listen(bound: &TcpSocket) -> TcpListener {
    let address = bound.local_addr().expect("a bound socket has an address");
    bind(address).listen(1024).expect("a bound socket can listen")
}

/// Serves until its task is aborted, which also closes the connections.
pub(super) async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Accepting fails only if no file descriptor is free; the loop tries again.
            Ok((stream, _)) = listener.accept() => {
                connections.spawn(connection(stream, tls.clone(), Arc::clone(&shared)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    // A second file descriptor of the same socket, because hyper and TLS own the first one.
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else {
        return;
    };
    if stream.set_nodelay(true).is_err() {
        return;
    }
    match tls {
        None => http(stream, socket, shared).await,
        Some(tls) => {
            // Fails for a client that does not trust the certificate.
            if let Ok(stream) = tls.accept(stream).await {
                http(stream, socket, shared).await;
            }
        }
    }
}

async fn http(stream: impl AsyncRead + AsyncWrite + Unpin, socket: OwnedFd, shared: Arc<Shared>) {
    shared.connections.fetch_add(1, Ordering::Relaxed);
    let service = service_fn(|request| handle(request, &socket, Arc::clone(&shared)));
    // Errors mean that the client disconnected or that a fault closed the connection.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn handle(
    request: Request<Incoming>,
    socket: &OwnedFd,
    shared: Arc<Shared>,
) -> Result<Response<Payload>, ConnectionClosed> {
    let (at, wall) = (Instant::now(), SystemTime::now());
    let (head, body) = request.into_parts();
    let mut record = new_record(&head, at, wall);
    let entry = shared.requests.add(record.clone());

    let body = Limited::new(body, LARGEST_BODY).collect().await;
    let body = body.map_err(|_| ConnectionClosed)?.to_bytes();
    if !body.is_empty() {
        record.body = String::from_utf8_lossy(&body).into_owned();
        shared.requests.update(entry, |logged| logged.body.clone_from(&record.body));
    }

    // A separate task: the request is processed even if the client disconnects.
    let task = tokio::spawn({
        let shared = Arc::clone(&shared);
        async move {
            let mut ended = shared.ended.subscribe();
            tokio::select! {
                reply = handler::handle(&shared, entry, &record) => reply,
                _ = ended.wait_for(|ended| *ended) => Reply::Never,
            }
        }
    });
    match task.await.map_err(|_| ConnectionClosed)? {
        Reply::Response(response) => {
            shared.requests.update(entry, |logged| logged.response_status = Some(response.status));
            let response = shared
                .lock()
                .response_headers
                .iter()
                .fold(response, |response, (name, value)| response.header(name, Some(value.clone())));
            Ok(response.into_response())
        }
        Reply::Reset => {
            // Makes the kernel send RST instead of FIN when the error closes the socket.
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
            Err(ConnectionClosed)
        }
        // hyper drops this future when the client disconnects.
        Reply::Never => std::future::pending().await,
    }
}

fn new_record(head: &hyper::http::request::Parts, at: Instant, wall: SystemTime) -> RecordedRequest {
    let method = head.method.as_str().to_owned();
    let path = head.uri.path_and_query().map_or_else(|| head.uri.to_string(), ToString::to_string);
    let (kind, run_id) = handler::classify(&method, &path);
    let headers: std::collections::HashMap<_, _> = head
        .headers
        .iter()
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.as_str().to_owned(), value)
        })
        .collect();
    let tenant = match kind {
        Kind::Token => headers.get("x-amperity-tenant"),
        Kind::Stop | Kind::Read | Kind::Other => headers.get("amperity-tenant"),
    };
    RecordedRequest {
        at,
        wall,
        kind,
        method,
        path,
        tenant: tenant.filter(|tenant| !tenant.is_empty()).cloned(),
        run_id,
        headers,
        body: String::new(),
        response_status: None,
        effect: false,
    }
}
