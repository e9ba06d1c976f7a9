//! Owns the users of a control plane and their credentials: certificates, keys, tokens, kubeconfig files.
//! Never writes outside the control plane's folder, which is removed with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kube::Config;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// A user that the API server authenticates by a static token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// Has all permissions (group `system:masters`).
    Admin,
    /// Named `operator`, in no group. Has the permissions that a test binds to it with RBAC.
    Operator,
    /// Named `stranger`, in no group. Has no permissions unless a test grants some.
    Stranger,
}

impl User {
    /// All users.
    pub const ALL: [Self; 3] = [Self::Admin, Self::Operator, Self::Stranger];

    /// Returns the user name for a `RoleBinding`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::Stranger => "stranger",
        }
    }

    /// Returns the bearer token.
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

/// The API server's URL, the certificate authority, and the folder of the credential files.
#[derive(Clone, Debug)]
pub(super) struct Access {
    url: String,
    folder: PathBuf,
    authority: Vec<u8>,
}

impl Access {
    /// Writes the files that the API server needs to start, and a kubeconfig for each user.
    pub(super) fn create(folder: &Path, port: u16) -> io::Result<Self> {
        let authority_key = new_key();
        let mut authority = CertificateParams::new(Vec::new()).expect("an empty list of names is valid");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        // OpenSSL takes a certificate for self-signed if its issuer has the same name.
        authority.distinguished_name.push(DnType::CommonName, "lab");
        let certificate = authority.self_signed(&authority_key).expect("a new key can sign");
        let issuer = Issuer::new(authority, authority_key);

        let server_key = new_key();
        let names = ["127.0.0.1", "localhost", "kubernetes.default.svc"].map(str::to_owned);
        let mut server = CertificateParams::new(names).expect("these names are valid");
        // Python from 3.13 on requires it.
        server.use_authority_key_identifier_extension = true;
        let server = server.signed_by(&server_key, &issuer).expect("the authority can sign");

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

    /// Returns the configuration of a client in this process.
    pub(super) fn client_config(&self, user: User) -> Config {
        let mut config = Config::new(self.url.parse().expect("the URL is made of a port"));
        config.root_cert = Some(vec![self.authority.clone()]);
        config.auth_info.token = Some(user.token().into());
        // A test sees every response, also the failed ones.
        config.default_retry = false;
        config
    }

    /// Returns the path of the kubeconfig with this name.
    pub(super) fn kubeconfig_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("kubeconfig-{name}"))
    }

    /// Writes a kubeconfig with this token and returns its path.
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
    KeyPair::generate().expect("ring can generate a P-256 key")
}
