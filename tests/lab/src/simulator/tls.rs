//! Owns the simulator's certificate authority and its server certificate.
//! Never installs a process-wide crypto provider: the program does that.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

/// Returns a TLS acceptor for these names and addresses, and the CA certificate as PEM.
pub fn acceptor(names: &[&str]) -> (TlsAcceptor, String) {
    let key = KeyPair::generate().expect("ring can generate a P-256 key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(rcgen::DnType::CommonName, "Simulator's authority");
    let authority = params.self_signed(&key).expect("a CA can sign itself");
    let issuer = Issuer::new(params, key);

    let key = KeyPair::generate().expect("ring can generate a P-256 key");
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let certificate = CertificateParams::new(names)
        .and_then(|params| params.signed_by(&key, &issuer))
        .expect("these names are valid");

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .expect("the key belongs to the certificate");
    // Faults act on connections, so each connection has one request at a time.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    (TlsAcceptor::from(Arc::new(config)), authority.pem())
}
