//! Owns the bound for concurrent requests to the API server. Namespaces take turns, and each gets a share of it.
//! Never sends a request.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

use crate::fair_queue::{FairQueue, Popped};

/// The capacity for requests in flight. Each has a connection with its buffers, about 60 KiB. One namespace gets at most
/// half of it.
const IN_FLIGHT: usize = 64;

/// The purpose of a request to the API server. Within a namespace, those go first that are nearest to the end of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ApiRequest {
    /// Writes a status other than a claim.
    Write,
    /// Claims the right to send a stop request.
    Claim,
    /// Reads a resource or a Secret.
    Read,
}

/// The requests to the API server that wait and that are in flight.
#[derive(Clone)]
pub struct ApiTurns(Arc<Mutex<State>>);

struct State {
    queue: FairQueue<(ApiRequest, u64), oneshot::Sender<ApiTurn>>,
    last: u64,
}

/// The right to send one request. Dropping it gives it back.
#[must_use]
pub struct ApiTurn {
    turns: ApiTurns,
    namespace: Arc<str>,
    taken: usize,
}

impl Default for ApiTurns {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { queue: FairQueue::new(IN_FLIGHT), last: 0 })))
    }
}

impl ApiTurns {
    /// Waits until a request for an object of this namespace may be sent. Dropping the future gives up the turn.
    pub async fn turn(&self, namespace: &str, request: ApiRequest) -> ApiTurn {
        loop {
            let (sender, turn) = oneshot::channel();
            {
                let mut state = self.lock();
                state.last += 1;
                let position = (request, state.last);
                state.queue.push(&namespace.into(), position, 1, sender);
            }
            self.start();
            // The queue keeps the sender until it sends a turn.
            if let Ok(turn) = turn.await {
                return turn;
            }
        }
    }

    /// Starts the requests that may start now.
    fn start(&self) {
        let mut unused = vec![];
        let mut state = self.lock();
        while let Some(Popped { namespace, position: _, item, taken }) = state.queue.pop() {
            if item.is_closed() {
                state.queue.end(&namespace, taken);
            } else {
                unused.extend(item.send(ApiTurn { turns: self.clone(), namespace, taken }).err());
            }
        }
        // A request that stops waiting right now gives its turn back when that is dropped, without the lock.
        drop(state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

impl Drop for ApiTurn {
    fn drop(&mut self) {
        self.turns.lock().queue.end(&self.namespace, self.taken);
        self.turns.start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use tokio::task::unconstrained;

    /// Takes as many turns as a namespace gets at once.
    fn all(turns: &ApiTurns, namespace: &str) -> Vec<ApiTurn> {
        std::iter::from_fn(|| unconstrained(turns.turn(namespace, ApiRequest::Read)).now_or_never()).collect()
    }

    #[tokio::test]
    async fn a_namespace_whose_requests_hang_leaves_half_of_the_connections_to_others() {
        let turns = ApiTurns::default();
        let hostile = all(&turns, "hostile");
        assert_eq!(hostile.len(), IN_FLIGHT / 2);
        assert_eq!(all(&turns, "victim").len(), IN_FLIGHT / 4);
    }

    #[tokio::test]
    async fn a_request_that_no_longer_waits_takes_no_turn() {
        let turns = ApiTurns::default();
        for _ in 0..3 {
            let hanging = all(&turns, "a");
            assert_eq!(hanging.len(), IN_FLIGHT / 2, "the last one found no room, and waits no longer");
        }
    }

    #[tokio::test]
    async fn writes_go_first_then_claims_then_reads() {
        let turns = ApiTurns::default();
        let mut hanging = all(&turns, "a");
        let mut waiting =
            [ApiRequest::Read, ApiRequest::Claim, ApiRequest::Write].map(|request| Box::pin(turns.turn("a", request)));
        for turn in &mut waiting {
            assert!(turn.as_mut().now_or_never().is_none());
        }
        let [read, claim, write] = &mut waiting;
        drop(hanging.pop());
        assert!(claim.as_mut().now_or_never().is_none());
        let written = write.as_mut().now_or_never();
        assert!(written.is_some() && read.as_mut().now_or_never().is_none());
        drop(written);
        let claimed = claim.as_mut().now_or_never();
        assert!(claimed.is_some() && read.as_mut().now_or_never().is_none());
    }
}
