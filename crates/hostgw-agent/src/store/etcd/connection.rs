//! How etcd is reached: endpoints, certificates, user and password.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{fs, io};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};

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
        if let Some((user, password)) = &self.user {
            options = options.with_user(user.clone(), password.read()?);
        }
        let client = Client::connect([endpoint], Some(options));
        match tokio::time::timeout(PATIENCE, client).await {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(error)) => Err(why(&error)),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    fn tls(&self) -> Result<TlsOptions, String> {
        let mut tls = TlsOptions::new();
        tls = match &self.ca {
            Some(ca) => tls.ca_certificate(Certificate::from_pem(read(ca)?)),
            None => tls.with_enabled_roots(),
        };
        if let Some((certificate, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        Ok(tls)
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
        if REFUSALS.contains(&code) {
            Self::Refused(why(&error))
        } else {
            Self::Away(why(&error))
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
