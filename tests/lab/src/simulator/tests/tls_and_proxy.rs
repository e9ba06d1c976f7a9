//! Owns the tests of TLS and of the forward proxy.
//! Never tests behaviour that does not depend on the transport.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::proxy::Proxy;
use super::super::{Fault, Run, Simulator, StopEffect};
use super::{Call, RUN, Response, TENANT, simulator_with};

async fn connect_tls<S: AsyncRead + AsyncWrite + Unpin>(
    ca_pem: &str,
    name: &'static str,
    stream: S,
) -> std::io::Result<TlsStream<S>> {
    let mut roots = RootCertStore::empty();
    if !ca_pem.is_empty() {
        let authority = CertificateDer::from_pem_slice(ca_pem.as_bytes()).expect("PEM");
        roots.add(authority).expect("a CA certificate");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name).expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

#[tokio::test]
async fn the_certificate_is_valid_for_its_names_only() {
    let simulator = Simulator::start_tls().await;
    simulator.add_run(TENANT, Run::new(RUN));
    let origin = format!("https://localhost:{}", simulator.address().port());
    assert_eq!(simulator.base_url(), format!("{origin}/api"));

    for name in ["localhost", "127.0.0.1", "acme2-max.amperity.test"] {
        let stream = TcpStream::connect(simulator.address()).await.expect("connected");
        let stream = connect_tls(&simulator.ca_pem(), name, stream).await.expect(name);
        let response = Call::read().send_on(stream).await.expect("a response");
        assert_eq!(Response::read(response).await.status, 200);
    }
    for (ca, name) in [(simulator.ca_pem(), "example.com"), (String::new(), "localhost")] {
        let stream = TcpStream::connect(simulator.address()).await.expect("connected");
        assert!(connect_tls(&ca, name, stream).await.is_err(), "{name}");
    }
}

#[tokio::test]
async fn a_reset_works_with_tls() {
    let simulator = Simulator::start_tls().await;
    simulator.add_run(TENANT, Run::new(RUN));
    simulator.on_stop(RUN, [Fault::Reset(StopEffect::NoEffect)]);
    let stream = TcpStream::connect(simulator.address()).await.expect("connected");
    let stream = connect_tls(&simulator.ca_pem(), "localhost", stream).await.expect("TLS works");

    assert!(Call::stop().send_on(stream).await.is_err());
    assert_eq!(simulator.effects(RUN), 0);
}

#[tokio::test]
async fn the_proxy_tunnels_to_its_upstream_whatever_host_is_requested() {
    let simulator = Simulator::start_tls().await;
    simulator.add_run(TENANT, Run::new(RUN));
    let proxy = Proxy::start_with_upstream(Some(simulator.address())).await;
    let address = proxy.url().trim_start_matches("http://").to_owned();

    let mut stream = TcpStream::connect(address).await.expect("connected");
    let connect = b"CONNECT acme.amperity.test:443 HTTP/1.1\r\nhost: acme.amperity.test:443\r\n\r\n";
    stream.write_all(connect).await.expect("sent");
    let mut response = [0; 39];
    stream.read_exact(&mut response).await.expect("a response");
    assert!(response.starts_with(b"HTTP/1.1 200 ") && response.ends_with(b"\r\n\r\n"));
    let stream = connect_tls(&simulator.ca_pem(), "acme.amperity.test", stream).await.expect("TLS works");
    let response = Call::stop().send_on(stream).await.expect("a response");

    assert_eq!(Response::read(response).await.status, 200);
    assert_eq!(proxy.requests(), ["CONNECT acme.amperity.test:443"]);
}

#[tokio::test]
async fn the_proxy_forwards_plain_http() {
    let simulator = simulator_with(Run::new(RUN)).await;
    let proxy = Proxy::start().await;
    let address = proxy.url().trim_start_matches("http://").to_owned();
    let url = format!("{}/workflow/runs/{RUN}", simulator.base_url());

    let stream = TcpStream::connect(address).await.expect("connected");
    let response = Call::new("GET", &url).send_on(stream).await.expect("a response");

    assert_eq!(Response::read(response).await.status, 200);
    assert_eq!(proxy.requests(), [format!("GET {url}")]);
    assert_eq!(simulator.requests()[0].path, format!("/api/workflow/runs/{RUN}"));
}
