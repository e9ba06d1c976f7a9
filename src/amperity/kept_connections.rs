//! Owns the connections that are kept for the next read of a followed run: connecting takes most of the CPU time of a read.
//! Never keeps one for long, and never one whose last response was not read to its end.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::http1::SendRequest,
};
use tokio::time::{Instant, sleep_until};

/// The time for which an unused connection is kept: shorter than what load balancers wait before they close one, often a
/// minute.
const KEPT_FOR: Duration = Duration::from_secs(20);

/// The age after which a connection is not kept any more, so that reads follow a change of the name's addresses.
const MAX_AGE: Duration = Duration::from_secs(120);

/// The capacity. Each takes up to about 60 KiB with its buffers.
const MOST: usize = 32;

/// A connection, on which requests can be sent.
pub struct Connected {
    /// The sender of requests.
    pub sender: SendRequest<Full<Bytes>>,
    /// The time at which the connection was established.
    pub since: Instant,
}

/// The connections that are kept.
#[derive(Clone, Default)]
pub struct KeptConnections(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The one that was used last is the last one.
    kept: VecDeque<Kept>,
    /// True while a task waits to close connections.
    is_closing: bool,
}

struct Kept {
    origin: Arc<str>,
    connected: Connected,
    until: Instant,
}

impl KeptConnections {
    /// Returns a connection to this origin that the server has not closed, the one that was used last.
    pub fn take(&self, origin: &str) -> Option<Connected> {
        let (mut state, now) = (self.lock(), Instant::now());
        let usable = |kept: &Kept| *kept.origin == *origin && now < kept.until && kept.connected.sender.is_ready();
        let index = state.kept.iter().rposition(usable)?;
        state.kept.remove(index).map(|kept| kept.connected)
    }

    /// Closes all connections to this origin: one of them failed, and the others may have the same fault.
    pub fn close(&self, origin: &str) {
        self.lock().kept.retain(|kept| *kept.origin != *origin);
    }

    /// Keeps a connection on which nothing is in flight.
    fn put(&self, origin: Arc<str>, connected: Connected) {
        let now = Instant::now();
        let until = (now + KEPT_FOR).min(connected.since + MAX_AGE);
        if until <= now {
            return;
        }
        let mut state = self.lock();
        if state.kept.len() == MOST {
            state.kept.pop_front();
        }
        state.kept.push_back(Kept { origin, connected, until });
        if !std::mem::replace(&mut state.is_closing, true) {
            let this = self.clone();
            let close = move || this.lock().close_old(Instant::now());
            tokio::spawn(async move {
                while let Some(until) = close() {
                    sleep_until(until).await;
                }
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

impl State {
    /// Closes what was kept for long enough, and returns when to do that again.
    fn close_old(&mut self, now: Instant) -> Option<Instant> {
        self.kept.retain(|kept| now < kept.until && !kept.connected.sender.is_closed());
        let next = self.kept.iter().map(|kept| kept.until).min();
        self.is_closing = next.is_some();
        next
    }
}

/// The body of a response whose connection is kept when the body has been read to its end.
pub struct KeepingBody {
    body: Incoming,
    then_keep: Option<(KeptConnections, Arc<str>, Connected)>,
}

impl KeepingBody {
    /// Keeps this connection to this origin once the body is read.
    pub fn new(body: Incoming, connections: KeptConnections, origin: Arc<str>, connected: Connected) -> Self {
        Self { body, then_keep: Some((connections, origin, connected)) }
    }
}

impl Body for KeepingBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none()
            && let Some((connections, origin, connected)) = self.then_keep.take()
        {
            connections.put(origin, connected);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::client::conn::http1::handshake;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};
    use tokio::time::advance;

    /// Returns a connection and the server's side of it.
    async fn connection() -> (Connected, DuplexStream) {
        let (client, server) = duplex(64);
        let (mut sender, driver) = handshake(TokioIo::new(client)).await.unwrap();
        tokio::spawn(driver);
        sender.ready().await.unwrap();
        (Connected { sender, since: Instant::now() }, server)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_kept_for_twenty_seconds_for_its_origin_and_then_closed() {
        let kept = KeptConnections::default();
        let (connected, mut server) = connection().await;
        kept.put("https://a".into(), connected);
        assert!(kept.take("https://b").is_none());
        advance(KEPT_FOR - Duration::from_millis(1)).await;
        let connected = kept.take("https://a").expect("it is kept");
        assert!(kept.take("https://a").is_none(), "it is in use");
        kept.put("https://a".into(), connected);
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0, "it is closed without another request");
        assert!(kept.take("https://a").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_always_in_use_is_closed_after_two_minutes() {
        let kept = KeptConnections::default();
        let (mut connected, _server) = connection().await;
        for _ in 0..119 {
            kept.put("https://a".into(), connected);
            advance(Duration::from_secs(1)).await;
            connected = kept.take("https://a").expect("it is kept");
        }
        advance(Duration::from_secs(1)).await;
        kept.put("https://a".into(), connected);
        assert!(kept.take("https://a").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_the_server_closed_is_passed_over() {
        let kept = KeptConnections::default();
        let (open, _server) = connection().await;
        kept.put("https://a".into(), open);
        let (mut closed, server) = connection().await;
        drop(server);
        assert!(
            closed.sender.ready().await.is_err() || closed.sender.is_closed() || {
                tokio::task::yield_now().await;
                closed.sender.is_closed()
            }
        );
        kept.put("https://a".into(), closed);
        assert!(kept.take("https://a").is_some_and(|connected| !connected.sender.is_closed()));
        assert!(kept.take("https://a").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_connections_that_were_used_last_are_kept_and_those_of_a_failed_origin_are_closed() {
        let kept = KeptConnections::default();
        let mut servers = vec![];
        for number in 0..=MOST {
            let (connected, server) = connection().await;
            kept.put(format!("https://{number}").into(), connected);
            servers.push(server);
        }
        assert!(kept.take("https://0").is_none());
        assert_eq!(kept.lock().kept.len(), MOST);
        kept.close("https://1");
        assert!(kept.take("https://1").is_none() && kept.take("https://2").is_some());
    }
}
