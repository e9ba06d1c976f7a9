//! Owns who may enter a control plane and with what: certificates, keys, tokens, kubeconfig files.
//! Never writes outside the control plane's folder; whatever is written here is worth nothing once
//! that folder is gone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kube::Config;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// Somebody the API server knows by a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// May do everything (group `system:masters`).
    Admin,
    /// Named `operator`, in no group: may do what a test binds to it with RBAC.
    Operator,
    /// Named `stranger`, in no group: somebody to whom nothing is granted.
    Stranger,
}

impl User {
    /// Everybody.
    pub const ALL: [Self; 3] = [Self::Admin, Self::Operator, Self::Stranger];

    /// The name that a `RoleBinding` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::Stranger => "stranger",
        }
    }

    /// The bearer token.
    pub fn token(self) -> &'static str {
        match self {
            Self::Admin => "admin-token",
            Self::Operator => "operator-token",
            Self::Stranger => "stranger-token",
        }
    }

    fn group(self) -> &'static str {
        match self {
            Self::Admin => "system:masters",
            Self::Operator | Self::Stranger => "",
        }
    }
}

/// The way to the API server.
#[derive(Clone, Debug)]
pub(super) struct Access {
    url: String,
    folder: PathBuf,
    authority: Vec<u8>,
}

impl Access {
    /// Writes all that the API server needs in order to start, and a kubeconfig for each user.
    pub(super) fn create(folder: &Path, port: u16) -> io::Result<Self> {
        let authority_key = new_key();
        let mut authority = CertificateParams::new(Vec::new()).expect("no names cannot be wrong");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = authority.self_signed(&authority_key).expect("a fresh key signs");
        let issuer = Issuer::new(authority, authority_key);

        let server_key = new_key();
        let names = ["127.0.0.1", "localhost", "kubernetes.default.svc"].map(str::to_owned);
        let server = CertificateParams::new(names)
            .expect("these names are valid")
            .signed_by(&server_key, &issuer)
            .expect("the authority signs");

        let account_key = new_key();
        let tokens: String = User::ALL
            .iter()
            .map(|user| format!("{},{},{},{}\n", user.token(), user.name(), user.name(), user.group()))
            .collect();

        fs::write(folder.join("ca.pem"), certificate.pem())?;
        fs::write(folder.join("server.pem"), server.pem())?;
        fs::write(folder.join("server-key.pem"), server_key.serialize_pem())?;
        fs::write(folder.join("service-account-key.pem"), account_key.serialize_pem())?;
        fs::write(folder.join("service-account.pem"), account_key.public_key_pem())?;
        fs::write(folder.join("tokens.csv"), tokens)?;
        let access = Self {
            url: format!("https://127.0.0.1:{port}"),
            folder: folder.to_owned(),
            authority: certificate.der().to_vec(),
        };
        for user in User::ALL {
            access.write_kubeconfig(user.name(), user.token())?;
        }
        Ok(access)
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The same way in for a client inside this process.
    pub(super) fn client_config(&self, user: User) -> Config {
        let mut config = Config::new(self.url.parse().expect("the URL is made of a port"));
        config.root_cert = Some(vec![self.authority.clone()]);
        config.auth_info.token = Some(user.token().into());
        // A test sees each answer as it came.
        config.default_retry = false;
        config
    }

    /// Where the kubeconfig of that name is.
    pub(super) fn kubeconfig_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("kubeconfig-{name}"))
    }

    pub(super) fn write_kubeconfig(&self, name: &str, token: &str) -> io::Result<PathBuf> {
        let path = self.kubeconfig_path(name);
        let (url, authority) = (&self.url, self.folder.join("ca.pem"));
        let authority = authority.display();
        let text = format!(
            "apiVersion: v1
kind: Config
current-context: lab
contexts:
- name: lab
  context: {{cluster: lab, user: {name:?}}}
clusters:
- name: lab
  cluster: {{server: {url:?}, certificate-authority: \"{authority}\"}}
users:
- name: {name:?}
  user: {{token: {token:?}}}
"
        );
        fs::write(&path, text)?;
        Ok(path)
    }
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("ring makes a P-256 key")
}
