//! Owns the HTTP server below the health endpoints: its address, and the limits and timeouts of its connections.
//! Never knows what is served.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Router, extract::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::{AbortHandle, JoinSet, yield_now},
    time::{sleep, timeout},
};
use tower::ServiceExt;

/// The address by default. It accepts IPv4 as well, unless the machine sets `net.ipv6.bindv6only`, which a new network
/// namespace, such as a pod's, does not inherit.
pub const ANY: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 8080);

/// The address by default on a machine without IPv6.
pub const ANY_IPV4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080);

/// The longest time from accepting a connection to the end of the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest time of a connection: besides the head, a client has as long to read the response as Prometheus by default
/// has for a scrape.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);

/// The largest size of the head of a request, its first line and its headers: the size of the buffer to read it.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// The largest number of connections at the same time.
const MAX_CONNECTIONS: usize = 64;

/// The pause after no connection could be accepted, for example because the process has too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Listens on the given address. Without one it listens on `[::]:8080`, or on `0.0.0.0:8080` if the machine has no IPv6.
/// Returns the address as well, with the port that the system chose if the port was 0.
///
/// # Errors
/// With the address that cannot be used.
pub async fn bind(given: Option<SocketAddr>) -> Result<(TcpListener, SocketAddr), (SocketAddr, io::Error)> {
    let listen = async |address| {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    bind_with(given, listen).await
}

async fn bind_with<L, F>(
    given: Option<SocketAddr>,
    bind: impl Fn(SocketAddr) -> F,
) -> Result<L, (SocketAddr, io::Error)>
where
    F: Future<Output = io::Result<L>>,
{
    let address = given.unwrap_or(ANY);
    match bind(address).await {
        // Systems without IPv6 report several errors. Only a port in use is no sign of a missing IPv6.
        Err(error) if given.is_none() && error.kind() != ErrorKind::AddrInUse => {
            tracing::info!(%error, "cannot listen on IPv6, will serve on IPv4 only");
            bind(ANY_IPV4).await.map_err(|error| (ANY_IPV4, error))
        }
        bound => bound.map_err(|error| (address, error)),
    }
}

/// Serves until the future is dropped.
pub async fn serve(listener: TcpListener, router: Router) {
    serve_all(|| async { Ok(listener.accept().await?.0) }, router).await;
}

async fn serve_all<S, F>(accept: impl Fn() -> F, router: Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>>,
{
    let mut connections = Connections::default();
    loop {
        match accept().await {
            Ok(stream) => connections.add(stream, router.clone()).await,
            Err(error) if is_of_one_connection(error.kind()) => {}
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection to the health server, will retry");
                sleep(ACCEPT_PAUSE).await;
            }
        }
        // Lets the new connection read its request. Otherwise, a burst of others could close it before.
        yield_now().await;
    }
}

/// Returns true for an error of accept() that says nothing about the next connection.
fn is_of_one_connection(error: ErrorKind) -> bool {
    [ErrorKind::ConnectionAborted, ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused].contains(&error)
}

/// The open connections. Dropping it closes them.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// In the order in which they were accepted.
    open: VecDeque<Connection>,
}

struct Connection {
    task: AbortHandle,
    /// True as soon as the head of the request was read.
    has_request: Arc<AtomicBool>,
}

impl Connections {
    /// Starts to serve a connection. If there are too many, it closes another one first: a new one may be a probe.
    async fn add<S>(&mut self, stream: S, router: Router)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|connection| !connection.task.is_finished());
        if MAX_CONNECTIONS <= self.open.len() {
            if let Some(connection) = self.open.remove(self.least_needed()) {
                connection.task.abort();
            }
            // An aborted task closes its connection when the runtime gets to it.
            self.tasks.join_next().await;
        }
        let has_request = Arc::<AtomicBool>::default();
        let task = self.tasks.spawn(serve_connection(stream, router, has_request.clone()));
        self.open.push_back(Connection { task, has_request });
    }

    /// Returns the index of the oldest connection without a request: a flood of these does not interrupt responses.
    /// If most connections have a request, it is the oldest one of all, so that clients that do not read their responses
    /// do not leave new connections too few places: each remains until half of `MAX_CONNECTIONS` were accepted after it.
    fn least_needed(&self) -> usize {
        let has_no_request = |connection: &Connection| !connection.has_request.load(Relaxed);
        let most_have_one =
            self.open.iter().filter(|connection| has_no_request(connection)).count() < MAX_CONNECTIONS / 2;
        if most_have_one { 0 } else { self.open.iter().position(has_no_request).unwrap_or_default() }
    }
}

/// Serves one request. A connection for each costs probes and scrapes next to nothing, and there is no idle time to bound.
async fn serve_connection<S>(stream: S, router: Router, has_request: Arc<AtomicBool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(move |request: Request<Incoming>| {
        has_request.store(true, Relaxed);
        router.clone().oneshot(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD_BYTES).keep_alive(false);
    // A failure is of the client's making, and the client sees it.
    let _ = timeout(CONNECTION_TIMEOUT, http.serve_connection(TokioIo::new(stream), service)).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use futures::FutureExt;
    use std::future::pending;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        sync::{
            Mutex, Semaphore,
            mpsc::{UnboundedSender, unbounded_channel},
        },
        task::unconstrained,
        time::Instant,
    };
    use tokio_util::task::AbortOnDropHandle;

    const PROBE: &str = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
    const HALF_SENT: &str = "GET /healthz HTTP/1.1\r\nHost:";
    const LARGE: usize = 1 << 20;
    const EMFILE: i32 = 24;

    /// A server in virtual time whose connections are in memory.
    struct Server {
        accepted: UnboundedSender<io::Result<DuplexStream>>,
        /// Each permit answers one request for `/waits`.
        answers: Arc<Semaphore>,
        _task: AbortOnDropHandle<()>,
    }

    impl Server {
        fn start() -> Self {
            let answers = Arc::new(Semaphore::new(0));
            let waits = {
                let answers = answers.clone();
                async move || answers.acquire().await.map(|permit| permit.forget()).map_or("closed", |()| "ok\n")
            };
            let router = Router::new()
                .route("/healthz", get(async || "ok\n"))
                .route("/waits", get(waits))
                .route("/large", get(async || "x".repeat(LARGE)));
            let (accepted, queue) = unbounded_channel();
            let task = tokio::spawn(async move {
                let queue = Mutex::new(queue);
                // Unconstrained, because a burst is accepted without a pause in between.
                let accept = || {
                    unconstrained(async {
                        match queue.lock().await.recv().await {
                            Some(accepted) => accepted,
                            None => pending().await,
                        }
                    })
                };
                serve_all(accept, router).await;
            });
            Self { accepted, answers, _task: AbortOnDropHandle::new(task) }
        }

        /// Connects, and sends this text.
        async fn connect(&self, text: &str) -> DuplexStream {
            let (mut client, server) = duplex(64 * 1024);
            unconstrained(client.write_all(text.as_bytes())).await.unwrap();
            self.accepted.send(Ok(server)).unwrap();
            client
        }

        /// Returns all that the server answers to this text until it closes the connection.
        async fn response(&self, text: &str) -> String {
            rest(self.connect(text).await).await
        }
    }

    async fn rest(mut client: DuplexStream) -> String {
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        rest
    }

    fn is_ok(response: &str) -> bool {
        response.starts_with("HTTP/1.1 200 OK\r\n") && response.ends_with("\r\n\r\nok\n")
    }

    /// Returns the number of connections that the server has not closed.
    fn open(clients: &mut [DuplexStream]) -> usize {
        clients.iter_mut().map(|client| usize::from(unconstrained(client.read_u8()).now_or_never().is_none())).sum()
    }

    /// Lets the server do all that it can do without the passing of time.
    async fn settle() {
        sleep(Duration::from_millis(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_is_answered_at_once_before_during_and_after_a_flood_of_half_sent_requests() {
        let server = Server::start();
        let started = Instant::now();
        let first = server.connect(PROBE).await;
        let mut flood = vec![];
        for _ in 0..1000 {
            flood.push(server.connect(HALF_SENT).await);
        }
        let during = server.connect(PROBE).await;
        for _ in 0..1000 {
            flood.push(server.connect(HALF_SENT).await);
        }
        for probe in [first, during] {
            assert!(is_ok(&rest(probe).await));
        }
        assert!(is_ok(&server.response(PROBE).await));
        assert_eq!(started.elapsed(), Duration::ZERO);
        let newest = flood.split_off(2000 - MAX_CONNECTIONS + 1);
        assert_eq!((open(&mut flood), open(&mut { newest })), (0, MAX_CONNECTIONS - 1), "the oldest ones are closed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_half_sent_requests_does_not_interrupt_a_request_in_progress() {
        let server = Server::start();
        let waiting = server.connect("GET /waits HTTP/1.1\r\nHost: a\r\n\r\n").await;
        settle().await;
        let mut flood = vec![];
        for _ in 0..1000 {
            flood.push(server.connect(HALF_SENT).await);
        }
        settle().await;
        assert!(open(&mut flood) < MAX_CONNECTIONS);
        server.answers.add_permits(1);
        assert!(is_ok(&rest(waiting).await));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_do_not_end_leave_half_of_the_places_to_new_connections() {
        let server = Server::start();
        let mut waiting = vec![];
        for _ in 0..1000 {
            waiting.push(server.connect("GET /waits HTTP/1.1\r\nHost: a\r\n\r\n").await);
        }
        settle().await;
        assert_eq!(open(&mut waiting), MAX_CONNECTIONS);
        let mut slow = server.connect(HALF_SENT).await;
        let mut flood = vec![];
        for _ in 1..MAX_CONNECTIONS / 2 {
            flood.push(server.connect(HALF_SENT).await);
        }
        settle().await;
        slow.write_all(b" a\r\n\r\n").await.unwrap();
        assert!(is_ok(&rest(slow).await));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_whose_head_is_not_complete_in_time_is_closed_however_it_is_sent() {
        let server = Server::start();
        for text in ["", HALF_SENT, "GET /healthz HTTP/1.1\r\nHost: a\r\n"] {
            let started = Instant::now();
            assert_eq!(server.response(text).await, "", "{text}");
            let after = started.elapsed();
            assert!(HEAD_TIMEOUT <= after && after < HEAD_TIMEOUT + Duration::from_millis(10), "{after:?}");
        }
        let mut client = server.connect(HALF_SENT).await;
        let started = Instant::now();
        while client.write_all(b"a").await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
        assert!(started.elapsed() < HEAD_TIMEOUT + Duration::from_millis(200), "a byte now and then does not help");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_its_response_is_disconnected() {
        let server = Server::start();
        let large = "GET /large HTTP/1.1\r\nHost: a\r\n\r\n";
        let (slow, too_slow) = (server.connect(large).await, server.connect(large).await);
        sleep(CONNECTION_TIMEOUT - Duration::from_secs(1)).await;
        assert!(LARGE < rest(slow).await.len());
        sleep(Duration::from_secs(2)).await;
        assert!(rest(too_slow).await.len() < LARGE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_of_more_than_16_kib_is_refused() {
        let server = Server::start();
        let head = |bytes: usize| format!("GET /healthz HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(bytes));
        assert!(is_ok(&server.response(&head(MAX_HEAD_BYTES - 40)).await));
        for head in [&head(MAX_HEAD_BYTES), &head(60_000)[..50_000], &format!("GET /{}", "x".repeat(60_000))] {
            let response = server.response(head).await;
            assert!(response.starts_with("HTTP/1.1 431 "), "{response}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_connection_serves_one_request_whatever_the_client_sends_besides() {
        let server = Server::start();
        let started = Instant::now();
        for request in [
            PROBE,
            &PROBE.repeat(100),
            "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
            "GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe",
            "GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n",
            "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        ] {
            let response = server.response(request).await;
            assert!(is_ok(&response) && response.contains("\r\nconnection: close\r\n"), "{request}: {response}");
            assert_eq!(response.matches("HTTP/1.1").count(), 1, "{request}: {response}");
        }
        for (request, start) in [
            ("GET /healthz HTTP/1.0\r\n\r\n", "HTTP/1.0 200 OK\r\n"),
            ("GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "HTTP/1.0 200 OK\r\n"),
            ("HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\n"),
            ("POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\nx", "HTTP/1.1 405 "),
            ("GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 404 "),
            ("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\r\n\r\n", "HTTP/1.1 400 "),
        ] {
            let response = server.response(request).await;
            assert!(response.starts_with(start), "{request}: {response}");
        }
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_server_outlives_errors_of_accept_and_pauses_after_those_that_may_last() {
        let server = Server::start();
        let started = Instant::now();
        for _ in 0..1000 {
            server.accepted.send(Err(ErrorKind::ConnectionAborted.into())).unwrap();
        }
        assert!(is_ok(&server.response(PROBE).await));
        assert_eq!(started.elapsed(), Duration::ZERO);
        for _ in 0..3 {
            server.accepted.send(Err(io::Error::from_raw_os_error(EMFILE))).unwrap();
        }
        assert!(is_ok(&server.response(PROBE).await));
        assert_eq!(started.elapsed(), 3 * ACCEPT_PAUSE);
    }

    #[tokio::test]
    async fn the_default_address_is_that_of_ipv6_unless_the_machine_has_none() {
        let listen = async |given: Option<&str>, no_ipv6: Option<ErrorKind>| {
            let bind = async |address: SocketAddr| match no_ipv6 {
                Some(error) if address.is_ipv6() => Err(io::Error::from(error)),
                Some(_) | None => Ok(address.to_string()),
            };
            let given = given.map(|address| address.parse().unwrap());
            bind_with(given, bind).await.map_err(|(address, error)| (address.to_string(), error.kind()))
        };
        let ok = |address: &str| Ok(address.to_owned());
        let failed = |address: &str, error| Err((address.to_owned(), error));
        assert_eq!(listen(None, None).await, ok("[::]:8080"));
        for error in [ErrorKind::AddrNotAvailable, ErrorKind::Unsupported, ErrorKind::Other] {
            assert_eq!(listen(None, Some(error)).await, ok("0.0.0.0:8080"));
            assert_eq!(listen(Some("[::]:8080"), Some(error)).await, failed("[::]:8080", error), "it was given");
        }
        let in_use = ErrorKind::AddrInUse;
        assert_eq!(listen(None, Some(in_use)).await, failed("[::]:8080", in_use), "another port is not served");
        assert_eq!(listen(Some("127.0.0.1:1"), None).await, ok("127.0.0.1:1"));
    }
}
