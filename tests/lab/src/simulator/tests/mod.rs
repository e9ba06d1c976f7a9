//! Owns the HTTP client of the simulator's tests.
//! Never reuses a connection, so that a fault affects one call only.

mod api;
mod faults;
mod gateways;
mod recording;
mod tls_and_proxy;

use std::collections::HashMap;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Simulator;

const RUN: &str = "wf-20240619-14418-6UhqSe";
const TENANT: &str = "acme2-max";

/// A request, by default with valid headers.
#[derive(Clone)]
struct Call {
    method: &'static str,
    path: String,
    headers: HashMap<&'static str, String>,
    body: String,
}

/// A complete response.
struct Response {
    status: u16,
    headers: hyper::HeaderMap,
    body: String,
}

impl Call {
    fn new(method: &'static str, path: impl Into<String>) -> Self {
        let headers = [
            ("authorization", "Bearer good-token"),
            ("amperity-tenant", TENANT),
            ("api-version", "2024-04-01"),
            ("accept", "application/json"),
        ];
        Call {
            method,
            path: path.into(),
            headers: headers.map(|(name, value)| (name, value.to_owned())).into(),
            body: String::new(),
        }
    }

    fn stop() -> Self {
        Call::new("POST", format!("/api/workflow/runs/{RUN}/stop"))
    }

    fn read() -> Self {
        Call::new("GET", format!("/api/workflow/runs/{RUN}?view=verbose"))
    }

    fn token() -> Self {
        Call::new("POST", "/api/v0/oauth2/token")
            .header("x-amperity-tenant", TENANT)
            .body("grant_type=client_credentials&client_id=good-client&client_secret=good%2Dsecret")
    }

    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, value.to_owned());
        self
    }

    fn without(mut self, name: &'static str) -> Self {
        self.headers.remove(name);
        self
    }

    fn body(mut self, body: &str) -> Self {
        body.clone_into(&mut self.body);
        self
    }

    /// Sends the request on this connection and reads the head of the response.
    async fn send_on(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> hyper::Result<hyper::Response<Incoming>> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(self.method).uri(self.path);
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        let request = request.header("host", "localhost");
        let body = Full::new(Bytes::from(self.body));
        sender.send_request(request.body(body).expect("a valid request")).await
    }

    /// Sends the request and reads the head of the response.
    async fn send_head(self, simulator: &Simulator) -> hyper::Result<hyper::Response<Incoming>> {
        let stream = TcpStream::connect(simulator.address()).await.expect("the simulator accepts connections");
        self.send_on(stream).await
    }

    /// Sends the request and reads the whole response.
    async fn send(self, simulator: &Simulator) -> Response {
        Response::read(self.send_head(simulator).await.expect("a response")).await
    }
}

impl Response {
    async fn read(response: hyper::Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        Response {
            status: head.status.as_u16(),
            headers: head.headers,
            body: String::from_utf8(body.to_vec()).expect("text"),
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }
}

async fn simulator_with(run: super::Run) -> Arc<Simulator> {
    let simulator = Simulator::start().await;
    simulator.add_run(TENANT, run);
    Arc::new(simulator)
}
