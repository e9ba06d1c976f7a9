//! Owns the connections that are kept for the next read of a run: connecting takes most of the CPU time of a read.
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

/// The time for which a connection is kept: shorter than what load balancers wait before they close one, often a minute.
pub const KEPT_FOR: Duration = Duration::from_secs(20);

/// The capacity. Each takes up to about 60 KiB with its buffers.
const MOST: usize = 32;

/// The sender of requests on a connection.
pub type Sender = SendRequest<Full<Bytes>>;

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
    sender: Sender,
    until: Instant,
}

impl KeptConnections {
    /// Returns a connection to this origin that the server has not closed, the one that was used last.
    pub async fn take(&self, origin: &str) -> Option<Sender> {
        loop {
            let mut sender = self.lock().take(origin, Instant::now())?;
            if sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    /// Keeps a connection on which nothing is in flight.
    fn put(&self, origin: Arc<str>, sender: Sender) {
        let mut state = self.lock();
        if state.kept.len() == MOST {
            state.kept.pop_front();
        }
        state.kept.push_back(Kept { origin, sender, until: Instant::now() + KEPT_FOR });
        if !std::mem::replace(&mut state.is_closing, true) {
            let this = self.clone();
            let close = move || this.lock().close(Instant::now());
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
    fn take(&mut self, origin: &str, now: Instant) -> Option<Sender> {
        let usable = |kept: &Kept| *kept.origin == *origin && now < kept.until && !kept.sender.is_closed();
        let index = self.kept.iter().rposition(usable)?;
        self.kept.remove(index).map(|kept| kept.sender)
    }

    /// Closes what was kept for long enough, and returns when to do that again.
    fn close(&mut self, now: Instant) -> Option<Instant> {
        self.kept.retain(|kept| now < kept.until && !kept.sender.is_closed());
        let next = self.kept.front().map(|kept| kept.until);
        self.is_closing = next.is_some();
        next
    }
}

/// The body of a response whose connection is kept when the body has been read to its end.
pub struct KeepingBody {
    body: Incoming,
    then_keep: Option<(KeptConnections, Arc<str>, Sender)>,
}

impl KeepingBody {
    /// Keeps this connection to this origin once the body is read.
    pub fn new(body: Incoming, connections: KeptConnections, origin: Arc<str>, sender: Sender) -> Self {
        Self { body, then_keep: Some((connections, origin, sender)) }
    }
}

impl Body for KeepingBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none()
            && let Some((connections, origin, sender)) = self.then_keep.take()
        {
            connections.put(origin, sender);
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
    async fn connection() -> (Sender, DuplexStream) {
        let (client, server) = duplex(64);
        let (sender, driver) = handshake(TokioIo::new(client)).await.unwrap();
        tokio::spawn(driver);
        (sender, server)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_kept_for_twenty_seconds_for_its_origin_and_then_closed() {
        let kept = KeptConnections::default();
        let (sender, mut server) = connection().await;
        kept.put("https://a".into(), sender);
        assert!(kept.take("https://b").await.is_none());
        advance(KEPT_FOR - Duration::from_millis(1)).await;
        let sender = kept.take("https://a").await.expect("it is kept");
        assert!(kept.take("https://a").await.is_none(), "it is in use");
        kept.put("https://a".into(), sender);
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0, "it is closed without another request");
        assert!(kept.take("https://a").await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_the_server_closed_is_passed_over() {
        let kept = KeptConnections::default();
        let (open, _server) = connection().await;
        kept.put("https://a".into(), open);
        let (closed, server) = connection().await;
        kept.put("https://a".into(), closed);
        drop(server);
        assert!(kept.take("https://a").await.is_some_and(|sender| !sender.is_closed()));
        assert!(kept.take("https://a").await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_connections_that_were_used_last_are_kept_and_no_more_than_fit() {
        let kept = KeptConnections::default();
        let mut servers = vec![];
        for number in 0..=MOST {
            let (sender, server) = connection().await;
            kept.put(format!("https://{number}").into(), sender);
            servers.push(server);
        }
        assert!(kept.take("https://0").await.is_none());
        assert_eq!(kept.lock().kept.len(), MOST);
    }
}
