//! Owns the connections to the API: the proxy, TLS, and the certificates to trust.
//! Never sends a request, and keeps no connection.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use http::{
    HeaderMap, Uri,
    header::{HeaderValue, USER_AGENT},
};
use hyper::rt::{Read, Write};
use hyper_rustls::HttpsConnector;
use hyper_util::client::{
    legacy::connect::{HttpConnector, proxy::Tunnel},
    proxy::matcher::Matcher,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use thiserror::Error;
use tower::{BoxError, ServiceExt};

/// The value of the header `User-Agent`.
pub const AGENT: &str = concat!("workflow-run-stop-operator/", env!("CARGO_PKG_VERSION"));

/// The reason why no connection can be made.
#[derive(Debug, Error)]
pub enum CertificatesError {
    /// `SSL_CERT_FILE` cannot be used.
    #[error("SSL_CERT_FILE names {0}, which is not a readable file of PEM certificates")]
    Named(PathBuf),
    /// There are none.
    #[error(
        "no certificates of authorities were found on this system; set SSL_CERT_FILE to a file of PEM certificates"
    )]
    None,
}

/// Connects to hosts, over the proxy in `HTTPS_PROXY` unless the host is one of `NO_PROXY`.
pub struct Connector {
    direct: HttpsConnector<HttpConnector>,
    tls: Arc<ClientConfig>,
    proxies: Matcher,
}

/// A connection.
pub type Connection = Box<dyn ReadWrite>;

/// The two directions of a connection.
pub trait ReadWrite: Read + Write + Send + Unpin {}

impl<T: Read + Write + Send + Unpin> ReadWrite for T {}

impl Connector {
    /// Creates a connector that trusts the certificates of the system and of `SSL_CERT_FILE`.
    ///
    /// # Errors
    /// If these certificates cannot be used.
    pub fn new() -> Result<Self, CertificatesError> {
        let mut tls = ClientConfig::builder().with_root_certificates(roots()?).with_no_client_auth();
        // Some gateways choose by it what they do with a connection.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let (tls, mut http) = (Arc::new(tls), HttpConnector::new());
        http.enforce_http(false);
        http.set_nodelay(true);
        let direct = HttpsConnector::from((http, tls.clone()));
        Ok(Self { direct, tls, proxies: Matcher::from_env() })
    }

    /// Connects to the host of this URL, with TLS if it is an https URL.
    ///
    /// # Errors
    /// If the host or the proxy cannot be reached, or the certificate is not trusted.
    pub async fn connect(&self, url: Uri) -> Result<Connection, BoxError> {
        let is_https = url.scheme_str() == Some("https");
        let Some(proxy) = self.proxies.intercept(&url).filter(|_| is_https) else {
            return Ok(Box::new(self.direct.clone().oneshot(url).await?));
        };
        let agent = HeaderMap::from_iter([(USER_AGENT, HeaderValue::from_static(AGENT))]);
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.direct.clone()).with_headers(agent);
        if let Some(credentials) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(credentials.clone());
        }
        Ok(Box::new(HttpsConnector::from((tunnel, self.tls.clone())).oneshot(url).await?))
    }
}

/// The files in which the common distributions keep the certificates of the system.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Returns the certificates to trust. If `SSL_CERT_FILE` is set, those of the system are found only here: the library
/// that finds them otherwise returns only the ones in that file then, and those in `SSL_CERT_DIR`.
fn roots() -> Result<RootCertStore, CertificatesError> {
    let mut roots = RootCertStore::empty();
    let mut system = rustls_native_certs::load_native_certs().certs;
    if let Some(file) = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from) {
        let named = certificates(&file).filter(|named| !named.is_empty());
        let mut named = named.ok_or_else(|| CertificatesError::Named(file.clone()))?.into_iter();
        named.try_for_each(|named| roots.add(named)).map_err(|_| CertificatesError::Named(file))?;
        system.extend(SYSTEM_BUNDLES.iter().find_map(|bundle| certificates(Path::new(bundle))).unwrap_or_default());
    }
    // Some systems have certificates that no library can use.
    roots.add_parsable_certificates(system);
    if roots.is_empty() { Err(CertificatesError::None) } else { Ok(roots) }
}

fn certificates(bundle: &Path) -> Option<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(bundle).ok()?.collect::<Result<_, _>>().ok()
}
