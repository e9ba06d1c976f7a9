//! Owns the tests of the certificate and of the proxy.
//! Never tests what does not depend on how a request travels.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::proxy::Proxy;
use super::super::{Fault, Run, Simulator, Took};
use super::{Answered, Call, RUN, TENANT, simulator_with};

async fn secured<S: AsyncRead + AsyncWrite + Unpin>(
    ca_pem: &str,
    name: &'static str,
    stream: S,
) -> std::io::Result<TlsStream<S>> {
    let mut roots = RootCertStore::empty();
    if !ca_pem.is_empty() {
        let authority = CertificateDer::from_pem_slice(ca_pem.as_bytes()).expect("PEM");
        roots.add(authority).expect("an authority");
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
async fn the_certificate_is_for_its_names_and_no_other() {
    let simulator = Simulator::start_tls().await;
    simulator.add_run(TENANT, Run::new(RUN));
    let origin = format!("https://localhost:{}", simulator.address().port());
    assert_eq!(simulator.base_url(), format!("{origin}/api"));

    for name in ["localhost", "127.0.0.1", "acme2-max.amperity.test"] {
        let stream = TcpStream::connect(simulator.address()).await.expect("connected");
        let stream = secured(&simulator.ca_pem(), name, stream).await.expect(name);
        let answer = Call::read().begin_over(stream).await.expect("an answer");
        assert_eq!(Answered::of(answer).await.status, 200);
    }
    for (ca, name) in [(simulator.ca_pem(), "example.com"), (String::new(), "localhost")] {
        let stream = TcpStream::connect(simulator.address()).await.expect("connected");
        assert!(secured(&ca, name, stream).await.is_err(), "{name}");
    }
}

#[tokio::test]
async fn a_reset_works_below_tls_as_well() {
    let simulator = Simulator::start_tls().await;
    simulator.add_run(TENANT, Run::new(RUN));
    simulator.on_stop(RUN, [Fault::Reset(Took::NoEffect)]);
    let stream = TcpStream::connect(simulator.address()).await.expect("connected");
    let stream = secured(&simulator.ca_pem(), "localhost", stream).await.expect("secured");

    assert!(Call::stop().begin_over(stream).await.is_err());
    assert_eq!(simulator.effects(RUN), 0);
}

#[tokio::test]
async fn the_proxy_tunnels_to_the_simulator_whatever_name_it_is_asked_for() {
    let simulator = Simulator::start_tls().await;
    simulator.add_run(TENANT, Run::new(RUN));
    let proxy = Proxy::start_towards(Some(simulator.address())).await;
    let address = proxy.url().trim_start_matches("http://").to_owned();

    let mut stream = TcpStream::connect(address).await.expect("connected");
    let connect = b"CONNECT acme.amperity.test:443 HTTP/1.1\r\nhost: acme.amperity.test:443\r\n\r\n";
    stream.write_all(connect).await.expect("sent");
    let mut answer = [0; 39];
    stream.read_exact(&mut answer).await.expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"\r\n\r\n"));
    let stream = secured(&simulator.ca_pem(), "acme.amperity.test", stream).await.expect("secured");
    let answer = Call::stop().begin_over(stream).await.expect("an answer");

    assert_eq!(Answered::of(answer).await.status, 200);
    assert_eq!(proxy.seen(), ["CONNECT acme.amperity.test:443"]);
}

#[tokio::test]
async fn the_proxy_passes_plain_http_on() {
    let simulator = simulator_with(Run::new(RUN)).await;
    let proxy = Proxy::start().await;
    let address = proxy.url().trim_start_matches("http://").to_owned();
    let url = format!("{}/workflow/runs/{RUN}", simulator.base_url());

    let stream = TcpStream::connect(address).await.expect("connected");
    let answer = Call::new("GET", &url).begin_over(stream).await.expect("an answer");

    assert_eq!(Answered::of(answer).await.status, 200);
    assert_eq!(proxy.seen(), [format!("GET {url}")]);
    assert_eq!(simulator.requests()[0].path, format!("/api/workflow/runs/{RUN}"));
}
