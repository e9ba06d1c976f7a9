//! Tests of the API client against the simulated Amperity, without Kubernetes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use lab::simulator::{Fault, RetryAfter, Run, Simulator, StopEffect::NoEffect};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};
use workflow_run_stop_operator::amperity::{
    answer::{ReadAnswer, ReadFailure, StopAnswer, TokenAnswer},
    budget::{Budget, Slot},
    client::{Amperity, Settings},
    credentials::{OauthClient, Token},
    endpoint::{AllowedHosts, Endpoint, Endpoints, RunId},
    purpose::Purpose,
    transport::{CustomTransport, Fence, Request, Transport, TransportFuture},
    wait_queue::Requester,
};

fn run_id() -> RunId {
    RunId::parse("wf-1").unwrap()
}

struct Client {
    amperity: Amperity,
    budget: Budget,
    endpoint: Endpoint,
    sim: Simulator,
}

impl Client {
    async fn new() -> Self {
        // Another test of this process may have installed it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let sim = Simulator::start().await;
        sim.add_run("acme", Run::new("wf-1"));
        let settings = Settings { api_version: "2024-04-01".into(), request_timeout: Duration::from_secs(2) };
        let amperity = Amperity::new(&settings, Arc::new(|| Timestamp::UNIX_EPOCH)).unwrap();
        let endpoints = Endpoints::new(&sim.base_url(), AllowedHosts::parse("").unwrap()).unwrap();
        let endpoint = endpoints.of("acme", None).unwrap();
        Self { amperity, budget: Budget::new(10), endpoint, sim }
    }

    /// As [`Client::new`], but the API is a server that sends these parts to the first connection, 100 ms apart, and then
    /// closes it.
    async fn of_server(parts: Vec<Vec<u8>>) -> Self {
        let client = Self::new().await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/api", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            assert!(String::from_utf8_lossy(&request[..length]).contains("accept-encoding: gzip"));
            for part in parts {
                // The client closes the connection early if the answer is too large.
                if stream.write_all(&part).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let endpoints = Endpoints::new(&base, AllowedHosts::parse("").unwrap()).unwrap();
        Self { endpoint: endpoints.of("acme", None).unwrap(), ..client }
    }

    async fn stop(&self, fence: Fence) -> StopAnswer {
        let token = Token::bearer("good-token").unwrap();
        self.amperity.stop(&self.endpoint, &run_id(), &token, self.slot(Purpose::Stop).await, fence).await.0
    }

    async fn read(&self) -> Option<ReadAnswer> {
        let token = Token::bearer("good-token").unwrap();
        self.amperity.read_again(&self.endpoint, &run_id(), &token, self.slot(Purpose::Read).await).await
    }

    async fn is_read(&self) -> bool {
        matches!(self.read().await, Some(ReadAnswer::Run(_)))
    }

    /// Waits for a slot for this purpose.
    async fn slot(&self, purpose: Purpose) -> Slot {
        self.budget.acquire(&self.endpoint.budget_key(), &requester(purpose)).await
    }
}

/// Returns the requester of a slot for this purpose.
fn requester(purpose: Purpose) -> Requester {
    Requester::new("ops", "amperity", purpose, Timestamp::UNIX_EPOCH)
}

/// Returns a fence that passes this many checks.
fn open_for(checks: usize) -> Fence {
    let checked = AtomicUsize::new(0);
    let is_open = Arc::new(move || checked.fetch_add(1, Ordering::SeqCst) < checks);
    Fence { until: Instant::now() + Duration::from_secs(60), is_open }
}

#[tokio::test]
async fn nothing_is_sent_if_the_claim_is_too_old_when_the_connection_is_established() {
    let client = Client::new().await;
    assert!(matches!(client.stop(open_for(1)).await, StopAnswer::Accepted(..)));
    assert_eq!(client.stop(open_for(0)).await, StopAnswer::TooLate, "after another request was sent");
    assert_eq!(client.sim.requests().len(), 1);
}

#[tokio::test]
async fn the_client_never_repeats_a_request() {
    let client = Client::new().await;
    client.sim.always_on_stop("wf-1", Fault::Reset(NoEffect));
    assert!(matches!(client.stop(open_for(9)).await, StopAnswer::NoAnswer(_)));
    client.sim.always_on_stop("wf-1", Fault::NoResponse(NoEffect));
    assert!(matches!(client.stop(open_for(9)).await, StopAnswer::NoAnswer(_)));
    assert_eq!(client.sim.requests().len(), 2);
}

#[tokio::test]
async fn a_failed_connection_means_that_nothing_was_sent() {
    let client = Client::new().await;
    client.sim.go_offline().await;
    assert!(matches!(client.stop(open_for(9)).await, StopAnswer::NotSent(_)));
}

#[tokio::test]
async fn a_compressed_answer_is_decoded() {
    // {"id":"wf-1","state":"canceled","task_instances":[]}
    const BODY: [u8; 67] = [
        31, 139, 8, 0, 0, 0, 0, 0, 2, 3, 171, 86, 202, 76, 81, 178, 82, 42, 79, 211, 53, 84, 210, 81, 42, 46, 73, 44,
        73, 5, 114, 147, 19, 243, 146, 83, 115, 82, 83, 128, 66, 37, 137, 197, 217, 241, 153, 121, 64, 25, 160, 80,
        177, 146, 85, 116, 108, 45, 0, 157, 83, 54, 105, 52, 0, 0, 0,
    ];
    let head = format!("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n", BODY.len());
    let client = Client::of_server(vec![head.into_bytes(), BODY.to_vec()]).await;
    let answer = client.stop(open_for(9)).await;
    let StopAnswer::Accepted(Some(run), _) = &answer else { panic!("{answer:?}") };
    assert_eq!((run.state.as_str(), &run.tasks), ("canceled", &Some(vec![])));
}

#[tokio::test]
async fn a_stop_is_not_sent_if_a_429_moves_its_turn_past_the_end_of_its_claim() {
    let client = Client::new().await;
    let (slot, other) = (client.slot(Purpose::Stop).await, client.slot(Purpose::Stop).await);
    other.mark_sent();
    other.record_rate_limited(Some(Duration::from_secs(300)));
    let token = Token::bearer("good-token").unwrap();
    let fence = Fence { until: Instant::now() + Duration::from_millis(10), ..open_for(9) };
    let (answer, _) = client.amperity.stop(&client.endpoint, &run_id(), &token, slot, fence).await;
    assert_eq!((answer, client.sim.requests().len()), (StopAnswer::TooLate, 0));
}

#[tokio::test]
async fn the_wait_after_a_429_is_the_time_until_the_budget_of_the_tenant_reopens() {
    let client = Client::new().await;
    client.sim.always_on_stop("wf-1", Fault::TooManyRequests { retry_after: RetryAfter::Seconds(40) });
    let answer = client.stop(open_for(9)).await;
    let StopAnswer::RateLimited(_, reopens_in) = answer else { panic!("{answer:?}") };
    let left = client.budget.states()[0].closed_for.unwrap();
    assert!((left..=Duration::from_secs(40)).contains(&reopens_in), "{left:?} {reopens_in:?}");
    assert!(Duration::from_secs(30) < left, "{left:?}: Retry-After is respected");
}

/// Returns the head of a response.
fn head(status: &str, length: usize) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nlocation: https://login.example/x?y=1\r\ncontent-length: {length}\r\n\r\n")
        .into_bytes()
}

const RUN: &[u8] = br#"{"id":"wf-1","state":"canceled","task_instances":[]}"#;

#[tokio::test]
async fn an_answer_that_arrives_in_parts_is_read_to_its_end() {
    let (first, second) = RUN.split_at(RUN.len() / 2);
    let client = Client::of_server(vec![head("200 OK", RUN.len()), first.to_vec(), second.to_vec()]).await;
    let answer = client.stop(open_for(9)).await;
    assert!(matches!(answer, StopAnswer::Accepted(Some(_), _)), "{answer:?}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_counts_by_its_status_if_that_is_enough() {
    let broken = async |status| {
        let client = Client::of_server(vec![head(status, RUN.len()), RUN[..9].to_vec()]).await;
        client.stop(open_for(9)).await
    };
    let answer = broken("200 OK").await;
    assert!(matches!(answer, StopAnswer::NoAnswer(_)), "the run is needed: {answer:?}");
    let answer = broken("503 Service Unavailable").await;
    assert!(matches!(&answer, StopAnswer::ServerError(info, _) if info.status == 503), "{answer:?}");
}

#[tokio::test]
async fn an_answer_of_more_than_8_mib_is_no_answer() {
    const MAX: usize = 8 * 1024 * 1024;
    for (bytes, is_read) in [(MAX, true), (MAX + 1, false)] {
        let mut body = RUN.to_vec();
        body.resize(bytes, b' ');
        let client = Client::of_server(vec![head("200 OK", bytes), body]).await;
        let answer = client.stop(open_for(9)).await;
        assert_eq!(matches!(answer, StopAnswer::Accepted(Some(_), _)), is_read, "{bytes}");
        assert_eq!(matches!(&answer, StopAnswer::NoAnswer(why) if why.contains("larger")), !is_read, "{bytes}");
    }
}

#[tokio::test]
async fn a_head_that_does_not_end_is_not_read_to_its_end() {
    let mut client = Client::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/api", listener.local_addr().unwrap());
    client.endpoint = Endpoints::new(&base, AllowedHosts::parse("").unwrap()).unwrap().of("acme", None).unwrap();
    for line in [b"x: x\r\n".repeat(1000), vec![b'x'; 100_000]] {
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut sent = b"HTTP/1.1 200 OK\r\nx: ".to_vec();
            let mut bytes = 0;
            while stream.write_all(&sent).await.is_ok() {
                bytes += sent.len();
                sent.clone_from(&line);
            }
            bytes
        };
        let (answer, sent) = tokio::join!(client.stop(open_for(9)), server);
        assert!(matches!(&answer, StopAnswer::NoAnswer(_)), "{answer:?}");
        // What the client reads, and what the buffers of the connection hold.
        assert!(sent < 20_000_000, "{sent}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_its_target_is_named_without_its_path() {
    let client = Client::of_server(vec![head("302 Found", 0)]).await;
    let answer = client.stop(open_for(9)).await;
    assert!(matches!(&answer, StopAnswer::Redirected(_, to) if to == "https://login.example"), "{answer:?}");
}

#[tokio::test]
async fn reads_of_followed_runs_use_the_connection_that_an_earlier_one_left_and_no_other_request_does() {
    let client = Client::new().await;
    for _ in 0..3 {
        assert!(client.is_read().await);
    }
    assert_eq!(client.sim.connections(), 1);
    assert!(matches!(client.stop(open_for(1)).await, StopAnswer::Accepted(..)));
    assert_eq!(client.sim.connections(), 2);
    let token = Token::bearer("good-token").unwrap();
    let slot = client.slot(Purpose::Read).await;
    let decisive = client.amperity.read(&client.endpoint, &run_id(), &token, slot).await;
    assert!(matches!(decisive, ReadAnswer::Run(_)), "{decisive:?}");
    assert_eq!(client.sim.connections(), 3);
    assert!(client.is_read().await);
    assert_eq!((client.sim.connections(), client.sim.requests().len()), (3, 6));
}

#[tokio::test]
async fn concurrent_reads_have_a_connection_each() {
    let client = Client::new().await;
    client.sim.on_read("wf-1", [Fault::Slow(Duration::from_millis(300)), Fault::Slow(Duration::from_millis(300))]);
    assert_eq!(tokio::join!(client.is_read(), client.is_read()), (true, true));
    assert_eq!(tokio::join!(client.is_read(), client.is_read()), (true, true));
    assert_eq!(client.sim.connections(), 2);
}

#[tokio::test]
async fn a_read_is_sent_on_a_new_connection_if_the_server_has_closed_the_kept_one() {
    let client = Client::new().await;
    assert!(client.is_read().await);
    client.sim.go_offline().await;
    client.sim.go_online().await;
    // The client may notice only when it sends.
    let answer = match client.read().await {
        None => client.read().await,
        answer => answer,
    };
    assert!(matches!(answer, Some(ReadAnswer::Run(_))), "{answer:?}");
    assert_eq!((client.sim.connections(), client.sim.requests().len()), (2, 2));
}

#[tokio::test]
async fn a_read_whose_kept_connection_ends_before_the_answer_has_to_be_repeated_and_is_not_repeated_by_the_client() {
    let client = Client::new().await;
    client.sim.on_read("wf-1", [Fault::Reset(NoEffect)]);
    let broken = client.read().await;
    assert!(matches!(broken, Some(ReadAnswer::Failed(ReadFailure::Unavailable(..)))), "a new connection: {broken:?}");
    assert!(client.is_read().await);
    client.sim.on_read("wf-1", [Fault::Reset(NoEffect)]);
    assert_eq!(client.read().await, None, "nothing is known");
    assert_eq!((client.sim.connections(), client.sim.requests().len()), (2, 3));
    assert!(client.is_read().await);
    assert_eq!(client.sim.connections(), 3);
}

#[tokio::test]
async fn a_read_without_an_answer_on_a_kept_connection_closes_the_others_of_its_host() {
    let client = Client::new().await;
    client.sim.on_read("wf-1", [Fault::Slow(Duration::from_millis(300)), Fault::Slow(Duration::from_millis(300))]);
    assert_eq!(tokio::join!(client.is_read(), client.is_read()), (true, true));
    client.sim.on_read("wf-1", [Fault::NoResponse(NoEffect)]);
    let silent = client.read().await;
    assert!(matches!(silent, Some(ReadAnswer::Failed(ReadFailure::Unavailable(..)))), "{silent:?}");
    assert_eq!(client.sim.connections(), 2);
    assert!(client.is_read().await);
    assert_eq!(client.sim.connections(), 3);
}

#[tokio::test]
async fn every_stop_request_opens_its_own_connection() {
    let client = Client::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/api", listener.local_addr().unwrap());
    let accepted = Arc::new(AtomicUsize::new(0));
    tokio::spawn({
        let accepted = accepted.clone();
        async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                accepted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let mut request = vec![0; 4096];
                    while stream.read(&mut request).await.unwrap_or_default() != 0 {
                        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                    }
                });
            }
        }
    });
    let endpoints = Endpoints::new(&base, AllowedHosts::parse("").unwrap()).unwrap();
    let client = Client { endpoint: endpoints.of("acme", None).unwrap(), ..client };
    for _ in 0..3 {
        assert!(matches!(client.stop(open_for(1)).await, StopAnswer::Foreign(_)));
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 3);
}

/// A transport that connects in 200 ms and responds some time after the request is written.
struct DelayedTransport {
    response_delay: Duration,
    body: &'static str,
}

impl CustomTransport for DelayedTransport {
    fn send(&self, _: Request, connected: BoxFuture<'static, Result<(), tower::BoxError>>) -> TransportFuture {
        let (response_delay, body) = (self.response_delay, self.body);
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            connected.await?;
            tokio::time::sleep(response_delay).await;
            Ok(http::Response::new(Full::from(body).map_err(tower::BoxError::from).boxed_unsync()))
        })
    }
}

/// The request timeout.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Returns a client over this transport, a budget, and an endpoint.
fn client_over(transport: DelayedTransport) -> (Amperity, Budget, Endpoint) {
    let clock = Arc::new(|| Timestamp::UNIX_EPOCH);
    let amperity = Amperity::with_transport(Transport::Custom(Arc::new(transport)), clock, TIMEOUT);
    let endpoints = Endpoints::new("https://app.amperity.com/api", AllowedHosts::parse("").unwrap()).unwrap();
    (amperity, Budget::new(10), endpoints.of("acme", None).unwrap())
}

/// Closes the tenant's budget for a minute while another request connects.
async fn close_budget_while_connecting(budget: &Budget, endpoint: &Endpoint) {
    let slot = budget.acquire(&endpoint.budget_key(), &requester(Purpose::Stop)).await;
    slot.mark_sent();
    tokio::time::sleep(Duration::from_millis(100)).await;
    slot.record_rate_limited(Some(Duration::from_secs(60)));
}

#[tokio::test(start_paused = true)]
async fn a_read_or_token_request_that_waits_for_the_rate_limit_does_not_fail() {
    let body = r#"{"id": "wf-1", "state": "running", "access_token": "t"}"#;
    let (amperity, budget, endpoint) = client_over(DelayedTransport { response_delay: Duration::from_secs(1), body });
    let key = endpoint.budget_key();
    let start = Instant::now();
    let (read, token) =
        (budget.acquire(&key, &requester(Purpose::Read)).await, budget.acquire(&key, &requester(Purpose::Token)).await);
    let secret = Token::bearer("good-token").unwrap();
    let client = OauthClient { id: "id".into(), secret: "secret".into(), token_url: None };
    let run_id = run_id();
    let (read, token, ()) = tokio::join!(
        amperity.read(&endpoint, &run_id, &secret, read),
        amperity.token(endpoint.default_token_url(), &endpoint, &client, token),
        close_budget_while_connecting(&budget, &endpoint),
    );
    assert!(matches!(read, ReadAnswer::Run(_)), "{read:?}");
    assert!(matches!(token, TokenAnswer::Token(..)), "{token:?}");
    assert!(Duration::from_secs(60) <= start.elapsed(), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_request_timeout_starts_when_the_request_is_written() {
    for (response_delay, in_time) in [(1_900, true), (2_100, false)] {
        let body = r#"{"id": "wf-1", "state": "running"}"#;
        let response_delay = Duration::from_millis(response_delay);
        let (amperity, budget, endpoint) = client_over(DelayedTransport { response_delay, body });
        let slot = budget.acquire(&endpoint.budget_key(), &requester(Purpose::Read)).await;
        let start = Instant::now();
        let token = Token::bearer("good-token").unwrap();
        let answer = amperity.read(&endpoint, &run_id(), &token, slot).await;
        let no_answer = "no answer within the request timeout".to_owned();
        let timed_out = answer == ReadAnswer::Failed(ReadFailure::Unavailable(no_answer, None));
        assert_eq!((answer.is_active(), timed_out), (in_time, !in_time), "{answer:?}");
        let connecting = Duration::from_millis(200);
        assert_eq!(start.elapsed(), connecting + response_delay.min(TIMEOUT));
    }
}
