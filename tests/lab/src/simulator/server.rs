//! Owns the listener and its connections: HTTP/1.1 with or without TLS, arrival times, resets and silences.
//! Never looks into a request beyond what the record needs: the handler does.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::answer::{Payload, Reply};
use super::handler;
use super::record::{Kind, Recorded};
use super::world::Shared;

const LARGEST_BODY: usize = 1024 * 1024;

/// Ends a connection without an answer.
#[derive(Debug)]
struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the simulator broke the connection")
    }
}

impl std::error::Error for Broken {}

pub(super) async fn bind(address: SocketAddr) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address).await.expect("the address can be bound");
    let address = listener.local_addr().expect("a bound socket has an address");
    (listener, address)
}

/// Serves until its task is aborted; its connections end with it.
pub(super) async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Only out of file descriptors does this fail: the next round tries again.
            Ok((stream, _)) = listener.accept() => {
                connections.spawn(connection(stream, tls.clone(), Arc::clone(&shared)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    // A second name for the same socket, for hyper and TLS take the first one.
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else {
        return;
    };
    if stream.set_nodelay(true).is_err() {
        return;
    }
    match tls {
        None => http(stream, socket, shared).await,
        Some(tls) => {
            // A client that does not trust the certificate leaves here.
            if let Ok(stream) = tls.accept(stream).await {
                http(stream, socket, shared).await;
            }
        }
    }
}

async fn http(stream: impl AsyncRead + AsyncWrite + Unpin, socket: OwnedFd, shared: Arc<Shared>) {
    let service = service_fn(|request| one(request, &socket, Arc::clone(&shared)));
    // Errors are the clients that left and the connections broken on purpose.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn one(request: Request<Incoming>, socket: &OwnedFd, shared: Arc<Shared>) -> Result<Response<Payload>, Broken> {
    let (at, wall) = (Instant::now(), SystemTime::now());
    let (head, body) = request.into_parts();
    let mut call = recorded(&head, at, wall);
    let entry = shared.journal.note(call.clone());

    let body = Limited::new(body, LARGEST_BODY).collect().await;
    let body = body.map_err(|_| Broken)?.to_bytes();
    if !body.is_empty() {
        call.body = String::from_utf8_lossy(&body).into_owned();
        shared.journal.amend(entry, |record| record.body.clone_from(&call.body));
    }

    // A task of its own: what has arrived takes its course, whether or not the client waits for the answer.
    let task = tokio::spawn({
        let shared = Arc::clone(&shared);
        async move {
            let mut ended = shared.ended.subscribe();
            tokio::select! {
                reply = handler::handle(&shared, entry, &call) => reply,
                _ = ended.wait_for(|ended| *ended) => Reply::Never,
            }
        }
    });
    match task.await.map_err(|_| Broken)? {
        Reply::Answer(answer) => {
            shared.journal.amend(entry, |record| record.answered = Some(answer.status));
            let answer = shared
                .world()
                .answer_headers
                .iter()
                .fold(answer, |answer, (name, value)| answer.header(name, Some(value.clone())));
            Ok(answer.into_response())
        }
        Reply::Reset => {
            // The kernel then answers the close, which follows from the error, with RST instead of FIN.
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
            Err(Broken)
        }
        // hyper drops this when the client leaves.
        Reply::Never => std::future::pending().await,
    }
}

fn recorded(head: &hyper::http::request::Parts, at: Instant, wall: SystemTime) -> Recorded {
    let method = head.method.as_str().to_owned();
    let path = head.uri.path_and_query().map_or_else(|| head.uri.to_string(), ToString::to_string);
    let (kind, run_id) = handler::asked(&method, &path);
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
    Recorded {
        at,
        wall,
        kind,
        method,
        path,
        tenant: tenant.filter(|tenant| !tenant.is_empty()).cloned(),
        run_id,
        headers,
        body: String::new(),
        answered: None,
        effect: false,
    }
}
