//! The client of the API against the simulated API, without Kubernetes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use jiff::Timestamp;
use lab::simulator::{Fault, Run, Simulator, Took::NoEffect};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};
use workflow_run_stop_operator::amperity::{
    answer::{ReadAnswer, ReadFailure, StopAnswer, TokenAnswer},
    budget::Budget,
    client::{Amperity, Settings},
    credentials::{Client as OauthClient, Token},
    endpoint::{AllowedHosts, Endpoint, Endpoints},
    purpose::Purpose,
    transport::{CustomTransport, Fence, Transport, TransportFuture},
};

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

    async fn stop(&self, fence: Fence) -> StopAnswer {
        let slot = self.budget.acquire(&self.endpoint.budget_key(), Purpose::Stop, Timestamp::UNIX_EPOCH).await;
        let token = Token::bearer("good-token").unwrap();
        self.amperity.stop(&self.endpoint, "wf-1", &token, slot, fence).await.0
    }
}

/// A fence that is open for so many looks.
fn open_for(looks: usize) -> Fence {
    let looked = AtomicUsize::new(0);
    let is_open = Arc::new(move || looked.fetch_add(1, Ordering::SeqCst) < looks);
    Fence { until: Instant::now() + Duration::from_secs(60), is_open }
}

#[tokio::test]
async fn a_claim_that_is_too_old_when_the_connection_is_there_sends_nothing() {
    let client = Client::new().await;
    assert!(matches!(client.stop(open_for(1)).await, StopAnswer::Accepted(..)));
    assert_eq!(client.stop(open_for(0)).await, StopAnswer::TooLate, "also after others were sent");
    assert_eq!(client.sim.requests().len(), 1);
}

#[tokio::test]
async fn a_request_is_never_repeated_by_the_client() {
    let client = Client::new().await;
    client.sim.always_on_stop("wf-1", Fault::Reset(NoEffect));
    assert!(matches!(client.stop(open_for(9)).await, StopAnswer::NoAnswer(_)));
    client.sim.always_on_stop("wf-1", Fault::NoAnswer(NoEffect));
    assert!(matches!(client.stop(open_for(9)).await, StopAnswer::NoAnswer(_)));
    assert_eq!(client.sim.requests().len(), 2);
}

#[tokio::test]
async fn who_cannot_connect_has_surely_not_sent() {
    let mut client = Client::new().await;
    client.sim.go_offline().await;
    assert!(matches!(client.stop(open_for(9)).await, StopAnswer::NotSent(_)));
}

#[tokio::test]
async fn a_compressed_answer_is_understood() {
    // {"id":"wf-1","state":"canceled","task_instances":[]}
    const BODY: [u8; 67] = [
        31, 139, 8, 0, 0, 0, 0, 0, 2, 3, 171, 86, 202, 76, 81, 178, 82, 42, 79, 211, 53, 84, 210, 81, 42, 46, 73, 44,
        73, 5, 114, 147, 19, 243, 146, 83, 115, 82, 83, 128, 66, 37, 137, 197, 217, 241, 153, 121, 64, 25, 160, 80,
        177, 146, 85, 116, 108, 45, 0, 157, 83, 54, 105, 52, 0, 0, 0,
    ];
    let client = Client::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/api", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.unwrap();
        assert!(String::from_utf8_lossy(&request[..length]).contains("accept-encoding: gzip"));
        let head = format!("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n", BODY.len());
        stream.write_all(&[head.as_bytes(), &BODY].concat()).await.unwrap();
    });
    let endpoints = Endpoints::new(&base, AllowedHosts::parse("").unwrap()).unwrap();
    let client = Client { endpoint: endpoints.of("acme", None).unwrap(), ..client };
    let answer = client.stop(open_for(9)).await;
    let StopAnswer::Accepted(Some(run), _) = &answer else { panic!("{answer:?}") };
    assert_eq!((run.state.as_str(), &run.tasks), ("canceled", &Some(vec![])));
}

#[tokio::test]
async fn a_claim_whose_turn_a_429_has_moved_is_given_up_when_it_is_over() {
    let client = Client::new().await;
    let slot = client.budget.acquire(&client.endpoint.budget_key(), Purpose::Stop, Timestamp::UNIX_EPOCH).await;
    let other = client.budget.acquire(&client.endpoint.budget_key(), Purpose::Stop, Timestamp::UNIX_EPOCH).await;
    other.send();
    other.rate_limited(Some(Duration::from_secs(300)));
    let token = Token::bearer("good-token").unwrap();
    let fence = Fence { until: Instant::now() + Duration::from_millis(10), ..open_for(9) };
    let (answer, _) = client.amperity.stop(&client.endpoint, "wf-1", &token, slot, fence).await;
    assert_eq!((answer, client.sim.requests().len()), (StopAnswer::TooLate, 0));
}

#[tokio::test]
async fn every_request_has_a_connection_of_its_own() {
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

/// Connects for 200 ms, and answers so long after the request is written.
struct Way {
    answers_after: Duration,
    body: &'static str,
}

impl CustomTransport for Way {
    fn carry(
        &self,
        _: reqwest::Request,
        connected: BoxFuture<'static, Result<(), tower::BoxError>>,
    ) -> TransportFuture {
        let (answers_after, body) = (self.answers_after, self.body);
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            connected.await?;
            tokio::time::sleep(answers_after).await;
            Ok(http::Response::new(body).into())
        })
    }
}

const TIMEOUT: Duration = Duration::from_secs(2);

/// A budget, and a client that waits two seconds for an answer.
fn over(way: Way) -> (Amperity, Budget, Endpoint) {
    let clock = Arc::new(|| Timestamp::UNIX_EPOCH);
    let amperity = Amperity::over(Transport::Other(Arc::new(way)), clock, TIMEOUT);
    let endpoints = Endpoints::new("https://app.amperity.com/api", AllowedHosts::parse("").unwrap()).unwrap();
    (amperity, Budget::new(10), endpoints.of("acme", None).unwrap())
}

/// While another request connects, the tenant's budget is closed for a minute.
async fn closed_meanwhile(budget: &Budget, endpoint: &Endpoint) {
    let slot = budget.acquire(&endpoint.budget_key(), Purpose::Stop, Timestamp::UNIX_EPOCH).await;
    slot.send();
    tokio::time::sleep(Duration::from_millis(100)).await;
    slot.rate_limited(Some(Duration::from_secs(60)));
}

#[tokio::test(start_paused = true)]
async fn a_read_or_token_request_that_waits_for_the_rate_limit_is_not_taken_for_a_failure() {
    let body = r#"{"id": "wf-1", "state": "running", "access_token": "t"}"#;
    let (amperity, budget, endpoint) = over(Way { answers_after: Duration::from_secs(1), body });
    let key = endpoint.budget_key();
    let begun = Instant::now();
    let (read, token) = (
        budget.acquire(&key, Purpose::Read, Timestamp::UNIX_EPOCH).await,
        budget.acquire(&key, Purpose::Token, Timestamp::UNIX_EPOCH).await,
    );
    let secret = Token::bearer("good-token").unwrap();
    let client = OauthClient { id: "id".into(), secret: "secret".into(), token_url: None };
    let (read, token, ()) = tokio::join!(
        amperity.read(&endpoint, "wf-1", &secret, read),
        amperity.token(endpoint.default_token_url(), &endpoint, &client, token),
        closed_meanwhile(&budget, &endpoint),
    );
    assert!(matches!(read, ReadAnswer::Run(_)), "{read:?}");
    assert!(matches!(token, TokenAnswer::Token(..)), "{token:?}");
    assert!(Duration::from_secs(60) <= begun.elapsed(), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_request_timeout_is_counted_from_the_writing_of_the_request() {
    for (answers_after, in_time) in [(1_900, true), (2_100, false)] {
        let body = r#"{"id": "wf-1", "state": "running"}"#;
        let (amperity, budget, endpoint) = over(Way { answers_after: Duration::from_millis(answers_after), body });
        let slot = budget.acquire(&endpoint.budget_key(), Purpose::Read, Timestamp::UNIX_EPOCH).await;
        let begun = Instant::now();
        let token = Token::bearer("good-token").unwrap();
        let answer = amperity.read(&endpoint, "wf-1", &token, slot).await;
        let no_answer = "no answer within the request timeout".to_owned();
        let too_late = answer == ReadAnswer::Failed(ReadFailure::Unavailable(no_answer, None));
        assert_eq!((answer.is_active(), too_late), (in_time, !in_time), "{answer:?}");
        let connecting = Duration::from_millis(200);
        assert_eq!(begun.elapsed(), connecting + Duration::from_millis(answers_after).min(TIMEOUT));
    }
}
