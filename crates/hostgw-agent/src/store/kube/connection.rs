//! How the API server is reached, and what it makes of a request.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::time::timeout;

/// How long the API server may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Where the API server is, and who we are to it: by the kubeconfig file, else as a pod of its own.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// Instead of the one that the others say.
    pub(crate) url: Option<http::Uri>,
    pub(crate) kubeconfig: Option<PathBuf>,
}

impl Access {
    /// A client. Files are read anew each time, so that rotated certificates and tokens count; a
    /// pod's own are read again while it is in use, too.
    pub(super) async fn connect(&self) -> Result<Client, String> {
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let said = |error: &dyn std::error::Error| {
                    format!("{}: {}", path.display(), crate::error::chain(error))
                };
                let file = Kubeconfig::read_from(path).map_err(|error| said(&error))?;
                let options = KubeConfigOptions::default();
                let config = Config::from_custom_kubeconfig(file, &options).await;
                config.map_err(|error| said(&error))?
            }
            None => self.in_cluster()?,
        };
        if let Some(url) = &self.url {
            config.cluster_url = url.clone();
        }
        config.connect_timeout = Some(PATIENCE);
        // Whether and when to ask again is ours to say.
        config.default_retry = false;
        Client::try_from(config).map_err(|error| crate::error::chain(&error))
    }

    fn in_cluster(&self) -> Result<Config, String> {
        let is_in_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        match (&self.url, is_in_cluster) {
            (Some(url), false) => Ok(Config::new(url.clone())),
            _ => Config::incluster().map_err(|error| {
                let reason = crate::error::chain(&error);
                format!(
                    "{reason}; outside of a pod, --kubeconfig-file says where the API server is"
                )
            }),
        }
    }
}

/// Why something was not done.
#[derive(Debug)]
pub(super) enum Failure {
    /// What was asked for is too old to be had: everything is to be read anew.
    Gone,
    /// The API server says no; how long it wants to be left alone.
    Refused(String, Duration),
    /// There is no answer, or none of use.
    Away(String),
}

impl Failure {
    /// The same, with what was to be done.
    pub(super) fn about(self, what: &str) -> Self {
        match self {
            Self::Refused(reason, after) => Self::Refused(format!("{what}: {reason}"), after),
            Self::Away(reason) => Self::Away(format!("{what}: {reason}")),
            Self::Gone => Self::Gone,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reason, _) | Self::Away(reason) => f.write_str(reason),
            Self::Gone => f.write_str("it is gone"),
        }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 410 => Self::Gone,
            kube::Error::Api(status) => {
                let after = status
                    .details
                    .as_ref()
                    .map_or(0, |details| details.retry_after_seconds);
                let said = if status.message.is_empty() {
                    &status.reason
                } else {
                    &status.message
                };
                let reason = format!("{said} ({})", status.code);
                if status.code == 401 {
                    // There may be another token or certificate by now.
                    return Self::Away(reason);
                }
                Self::Refused(reason, Duration::from_secs(after.into()))
            }
            error => Self::Away(why(&error)),
        }
    }
}

/// Waits for an answer as long as is reasonable.
pub(super) async fn within<T>(
    answer: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Failure> {
    match timeout(PATIENCE, answer).await {
        Ok(answer) => answer.map_err(Failure::from),
        Err(_) => Err(Failure::Away(format!(
            "no answer within {} s",
            PATIENCE.as_secs()
        ))),
    }
}

/// A failure in few words.
fn why(error: &kube::Error) -> String {
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let words = error.to_string();
        // Each wrapper says again what is within.
        if error
            .source()
            .is_none_or(|inner| !words.contains(&inner.to_string()))
        {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}
