//! How to connect to etcd: endpoints, certificates, user and password.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::error::Error;

/// How long a server may take to answer a request.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// The endpoints of etcd and this node's credentials.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// URLs (`http://…` or `https://…`), tried in turn.
    pub(crate) endpoints: Vec<String>,
    /// CA certificates for the servers' certificates; the system's trust store if not set.
    pub(crate) ca: Option<PathBuf>,
    /// Client certificate and its private key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    /// User name and password.
    pub(crate) user: Option<(String, Password)>,
}

/// Source of a password. It is never shown, not even in debug output.
#[derive(Clone)]
pub(crate) enum Password {
    /// From the command line or the environment.
    Literal(String),
    /// From a file, without its last line break.
    File(PathBuf),
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

impl Access {
    /// Connects to one endpoint. Files are read each time, so that rotated certificates and
    /// passwords count.
    pub(super) async fn connect(&self, endpoint: &str) -> Result<Client, Error> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(REQUEST_TIMEOUT)
            // A member that has lost its leader must return errors, not stale data.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if !endpoint.starts_with("http://") {
            options = options.with_tls(self.tls()?);
        }
        let connect = async |options| {
            let client = Client::connect([endpoint], Some(options));
            match tokio::time::timeout(REQUEST_TIMEOUT, client).await {
                Ok(answer) => answer.map_err(Error::from),
                Err(_) => Err(Error::Unavailable("no answer".to_owned())),
            }
        };
        let Some((user, password)) = &self.user else {
            return connect(options).await;
        };
        let with_user = options.clone().with_user(user.clone(), password.read()?);
        match connect(with_user).await {
            Err(error) if error.is_auth_disabled() => connect(options).await,
            other => other,
        }
    }

    /// Reads and checks the files here, because etcd's library does not name the one that it cannot
    /// use.
    fn tls(&self) -> Result<TlsOptions, Error> {
        let mut tls = TlsOptions::new();
        tls = match &self.ca {
            Some(path) => {
                let text = read(path)?;
                certificates(path, &text)?;
                tls.ca_certificate(Certificate::from_pem(text))
            }
            None => tls.with_enabled_roots(),
        };
        if let Some((certificate, key)) = &self.identity {
            let (chain, secret) = (read(certificate)?, read(key)?);
            check_identity((certificate, &chain), (key, &secret))?;
            tls = tls.identity(Identity::from_pem(chain, secret));
        }
        Ok(tls)
    }

    /// Adds a likely reason to a failed TLS connection: a server that wants a certificate, or
    /// another one, just closes the connection, and the resulting error is not always the same.
    pub(super) fn explain(&self, endpoint: &str, error: &Error) -> String {
        const BROKEN: [&str; 6] = [
            "operation was canceled",
            "broken pipe",
            "CertificateRequired",
            "BadCertificate",
            "HandshakeFailure",
            "Connection reset",
        ];
        let reason = error.to_string();
        let is_broken = BROKEN.iter().any(|words| reason.contains(words));
        if !is_broken || endpoint.starts_with("http://") {
            return reason;
        }
        match &self.identity {
            None => format!(
                "{reason}; the server may want a certificate of this node, but there is none (--etcd-certfile, --etcd-keyfile)"
            ),
            Some((certificate, _)) => format!(
                "{reason}; the server may have rejected the client certificate {} (--etcd-certfile): is it signed by an authority that the server trusts, and still valid?",
                certificate.display()
            ),
        }
    }

    /// When the files last changed: after that, a new connection is worthwhile.
    pub(super) fn modification_times(&self) -> Vec<Option<SystemTime>> {
        let identity = self.identity.iter().flat_map(|(a, b)| [a, b]);
        let password = match &self.user {
            Some((_, Password::File(path))) => Some(path),
            _ => None,
        };
        let files = self.ca.iter().chain(identity).chain(password);
        let modified = |path: &PathBuf| fs::metadata(path).and_then(|file| file.modified()).ok();
        files.map(modified).collect()
    }
}

/// Reads the certificates of a file. Fails if there is none.
fn certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(Error::file(path, "the file contains no certificate (PEM)")),
        Err(_) => Err(Error::file(
            path,
            "a certificate in it is cut off or not in PEM",
        )),
    }
}

/// Checks that a certificate and a key can be used, and belong together.
fn check_identity(chain: (&Path, &[u8]), key: (&Path, &[u8])) -> Result<(), Error> {
    let certificates = certificates(chain.0, chain.1)?;
    let invalid = |reason: &str| Err(Error::file(key.0, reason));
    let text = String::from_utf8_lossy(key.1);
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
        return invalid("the key is encrypted, and there is no way to give its password");
    }
    let Ok(secret) = PrivateKeyDer::from_pem_slice(key.1) else {
        return invalid("the file contains no private key (PEM)");
    };
    let provider = rustls::crypto::ring::default_provider();
    match CertifiedKey::from_der(certificates, secret, &provider) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => invalid(&format!(
            "this private key does not match the certificate {}",
            chain.0.display()
        )),
        Err(error) => invalid(&format!("the key cannot be used: {error}")),
    }
}

impl Password {
    fn read(&self) -> Result<String, Error> {
        match self {
            Self::Literal(password) => Ok(password.clone()),
            Self::File(path) => {
                let text = read(path)?;
                let text = String::from_utf8(text)
                    .map_err(|_| Error::file(path, "the password is not UTF-8"))?;
                Ok(text.trim_end_matches(['\r', '\n']).to_owned())
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|error| Error::ReadFile {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}
