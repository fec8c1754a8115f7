//! How etcd is reached: endpoints, certificates, user and password.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{fs, io};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// How long a server may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// Where etcd is, and who we are to it.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// `http://…` or `https://…`, tried in turn.
    pub(crate) endpoints: Vec<String>,
    /// Who signed the servers' certificates; else whom this machine trusts.
    pub(crate) ca: Option<PathBuf>,
    /// Our own certificate and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    /// User and password.
    pub(crate) user: Option<(String, Password)>,
}

/// Where a password comes from. It is never shown.
#[derive(Clone)]
pub(crate) enum Password {
    /// Said on the command line or in the environment.
    Said(String),
    /// Stands in a file, without its last line break.
    File(PathBuf),
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

impl Access {
    /// Connects to one endpoint. Files are read anew each time, so that rotated certificates and
    /// passwords count.
    pub(super) async fn connect(&self, endpoint: &str) -> Result<Client, String> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(PATIENCE)
            // A member that lost the others must not answer as if nothing had happened.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if !endpoint.starts_with("http://") {
            options = options.with_tls(self.tls()?);
        }
        let connect = async |options| {
            let client = Client::connect([endpoint], Some(options));
            match tokio::time::timeout(PATIENCE, client).await {
                Ok(answer) => answer.map_err(|error| why(&error)),
                Err(_) => Err("no answer".to_owned()),
            }
        };
        let Some((user, password)) = &self.user else {
            return connect(options).await;
        };
        let with_user = options.clone().with_user(user.clone(), password.read()?);
        match connect(with_user).await {
            // Nobody needs to log in there.
            Err(reason) if reason.contains(NO_AUTH) => connect(options).await,
            other => other,
        }
    }

    /// The files are looked at here, because nobody else names the one that is of no use.
    fn tls(&self) -> Result<TlsOptions, String> {
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

    /// A failure in words of use, where its own are of none: a server that wants another certificate, or
    /// any, ends the connection, and what is said of that is a matter of chance.
    pub(super) fn explain(&self, endpoint: &str, reason: String) -> String {
        const BROKEN: [&str; 6] = [
            "operation was canceled",
            "broken pipe",
            "CertificateRequired",
            "BadCertificate",
            "HandshakeFailure",
            "Connection reset",
        ];
        let is_broken = BROKEN.iter().any(|words| reason.contains(words));
        if !is_broken || endpoint.starts_with("http://") {
            return reason;
        }
        match &self.identity {
            None => format!(
                "{reason}; the server may want a certificate of this node, and none is given (--etcd-certfile, --etcd-keyfile)"
            ),
            Some((certificate, _)) => format!(
                "{reason}; the server may refuse the certificate {} (--etcd-certfile): is it signed by whom the server trusts, and still valid?",
                certificate.display()
            ),
        }
    }

    /// When the files last changed: others than before are worth a new connection.
    pub(super) fn age_of_files(&self) -> Vec<Option<SystemTime>> {
        let identity = self.identity.iter().flat_map(|(a, b)| [a, b]);
        let password = match &self.user {
            Some((_, Password::File(path))) => Some(path),
            _ => None,
        };
        let files = self.ca.iter().chain(identity).chain(password);
        let changed = |path: &PathBuf| fs::metadata(path).and_then(|file| file.modified()).ok();
        files.map(changed).collect()
    }
}

/// What etcd says where nobody can log in.
const NO_AUTH: &str = "authentication is not enabled";

/// What it says of a login that another one cures: the token is too old, or is of no use any more, or
/// there is none.
const LOGINS: [&str; 5] = [
    "invalid auth token",
    "revision of auth store is old",
    "user name is empty",
    "authentication failed",
    NO_AUTH,
];

/// Whether another login cures it.
pub(super) fn is_of_login(reason: &str) -> bool {
    LOGINS.iter().any(|words| reason.contains(words))
}

/// The certificates of a file, one at least.
fn certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let of_no_use = |reason: &str| format!("{}: {reason}", path.display());
    let all = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(of_no_use("there is no certificate in it (PEM)")),
        Err(_) => Err(of_no_use("a certificate in it is torn or not in PEM")),
    }
}

/// Checks that a certificate and a key are of use, and belong together.
fn check_identity(chain: (&Path, &[u8]), key: (&Path, &[u8])) -> Result<(), String> {
    let certificates = certificates(chain.0, chain.1)?;
    let of_no_use = |reason: &str| Err(format!("{}: {reason}", key.0.display()));
    let text = String::from_utf8_lossy(key.1);
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
        return of_no_use("the key is encrypted, and nobody is there to give its password");
    }
    let Ok(secret) = PrivateKeyDer::from_pem_slice(key.1) else {
        return of_no_use("there is no private key in it (PEM)");
    };
    let provider = rustls::crypto::ring::default_provider();
    match CertifiedKey::from_der(certificates, secret, &provider) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => {
            of_no_use(&format!("it is not the key of {}", chain.0.display()))
        }
        Err(error) => of_no_use(&format!("the key is of no use: {error}")),
    }
}

impl Password {
    fn read(&self) -> Result<String, String> {
        match self {
            Self::Said(password) => Ok(password.clone()),
            Self::File(path) => {
                let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
                Ok(text.trim_end_matches(['\r', '\n']).to_owned())
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("read {}: {error}", path.display())
}

/// Why something was not done.
#[derive(Debug)]
pub(super) enum Failure {
    /// etcd says no, and would say so again.
    Refused(String),
    /// There is no answer, or none of use.
    Away(String),
}

impl From<etcd_client::Error> for Failure {
    fn from(error: etcd_client::Error) -> Self {
        // gRPC's invalid argument, permission denied, resource exhausted, failed precondition.
        const REFUSALS: [i32; 4] = [3, 7, 8, 9];
        let code = match &error {
            etcd_client::Error::GRpcStatus(status) => status.code() as i32,
            _ => 0,
        };
        let reason = why(&error);
        // A new session logs in anew.
        if REFUSALS.contains(&code) && !is_of_login(&reason) {
            Self::Refused(reason)
        } else {
            Self::Away(reason)
        }
    }
}

impl From<Failure> for String {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(reason) | Failure::Away(reason) => reason,
        }
    }
}

/// What etcd or the way there says of a failure, in few words.
pub(super) fn why(error: &etcd_client::Error) -> String {
    let etcd_client::Error::GRpcStatus(status) = error else {
        return crate::error::chain(error);
    };
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let words = error.to_string();
        // Each wrapper says again what is within.
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}
