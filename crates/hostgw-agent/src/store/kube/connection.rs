//! How the API server is reached, and what it makes of a request.

use std::path::PathBuf;
use std::time::Duration;
use std::{fmt, io};

use futures_util::TryStreamExt;
use futures_util::io::AsyncBufRead;
use http::header::RETRY_AFTER;
use http::{Request, Uri};
use http_body_util::BodyExt;
use hyper::rt::{Read, Write};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tower::{BoxError, Service, ServiceBuilder};

use super::{object, proxy};

/// How long the API server may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// So many seconds we leave it alone at the most, whatever it wants.
const LONGEST_WAIT: u64 = 60;

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
        let mut fixed = None;
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let said = |error: &dyn std::error::Error| {
                    format!("{}: {}", path.display(), crate::error::chain(error))
                };
                let mut file = Kubeconfig::read_from(path).map_err(|error| said(&error))?;
                fixed = take_proxy(&mut file);
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
        config.proxy_url = None;
        let env = |name: &str| std::env::var(name).ok();
        let client = match proxy::to(&config.cluster_url, fixed.as_deref(), env)? {
            None => Client::try_from(config),
            Some(proxy) => through(&config, &proxy),
        };
        client.map_err(|error| crate::error::chain(&error))
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

/// Takes the proxy out of a kubeconfig file: whether there is one we decide, and not the library, whose
/// rules are others than those of Go's programs. It would look at the environment, where it finds none.
fn take_proxy(file: &mut Kubeconfig) -> Option<String> {
    let context = file.current_context.as_ref();
    let context = file
        .contexts
        .iter()
        .find(|named| Some(&named.name) == context);
    let name = context.and_then(|named| Some(named.context.as_ref()?.cluster.clone()));
    let mut fixed = None;
    for named in &mut file.clusters {
        let Some(cluster) = &mut named.cluster else {
            continue;
        };
        let proxy = cluster.proxy_url.replace("http://none".to_owned());
        if Some(&named.name) == name.as_ref() {
            fixed = proxy;
        }
    }
    fixed
}

/// A client by a proxy.
fn through(config: &Config, proxy: &Uri) -> kube::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    // Who we are to the proxy stands in its URL.
    let all = Matcher::builder().all(proxy.to_string()).build();
    let Some(proxy) = all.intercept(&Uri::from_static("https://any")) else {
        return client(config, tcp);
    };
    match proxy.uri().scheme_str() {
        Some("socks5") => {
            let mut socks = SocksV5::new(proxy.uri().clone(), tcp);
            if let Some((user, password)) = proxy.raw_auth() {
                socks = socks.with_auth(user.to_owned(), password.to_owned());
            }
            client(config, socks)
        }
        Some("https") => {
            let tls = config.rustls_https_connector_with_connector(tcp)?;
            let mut tunnel = Tunnel::new(proxy.uri().clone(), tls);
            if let Some(auth) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(auth.clone());
            }
            client(config, tunnel)
        }
        _ => {
            let mut tunnel = Tunnel::new(proxy.uri().clone(), tcp);
            if let Some(auth) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(auth.clone());
            }
            client(config, tunnel)
        }
    }
}

/// A client by whatever connects, as the library builds its own.
fn client<C>(config: &Config, connector: C) -> kube::Result<Client>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Connection + Read + Write + Send + Unpin,
    C::Future: Send + Unpin + 'static,
    C::Error: Into<BoxError>,
{
    let tls = config.rustls_https_connector_with_connector(connector)?;
    let mut timed = TimeoutConnector::new(tls);
    timed.set_connect_timeout(config.connect_timeout);
    timed.set_write_timeout(config.write_timeout);
    let http = legacy::Builder::new(TokioExecutor::new()).build::<_, Body>(timed);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// Why something was not done.
#[derive(Debug)]
pub(super) enum Failure {
    /// The API server does not know us. There may be another token or certificate by now.
    Unknown(String),
    /// What was asked for is too old to be had: everything is to be read anew.
    Gone,
    /// What is told is older than what was known: everything is to be read anew, from the store itself.
    Older(String),
    /// The API server says no.
    Refused(String),
    /// The API server says not now; how long it wants to be left alone.
    Busy(String, Duration),
    /// There is no answer, or none of use.
    Away(String),
}

impl Failure {
    /// The same, with what was to be done.
    pub(super) fn about(self, what: &str) -> Self {
        match self {
            Self::Refused(reason) => Self::Refused(format!("{what}: {reason}")),
            Self::Busy(reason, after) => Self::Busy(format!("{what}: {reason}"), after),
            Self::Away(reason) => Self::Away(format!("{what}: {reason}")),
            Self::Unknown(reason) => Self::Unknown(format!("{what}: {reason}")),
            Self::Gone | Self::Older(_) => self,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reason)
            | Self::Busy(reason, _)
            | Self::Away(reason)
            | Self::Unknown(reason)
            | Self::Older(reason) => f.write_str(reason),
            Self::Gone => f.write_str("it is gone"),
        }
    }
}

impl Failure {
    /// What the API server says instead of doing what was asked for.
    fn no(code: u16, said: &str, after: u64) -> Self {
        let reason = format!("{said} ({code})");
        let after = Duration::from_secs(after.min(LONGEST_WAIT));
        match code {
            410 => Self::Gone,
            401 => Self::Unknown(reason),
            429 | 500..=503 => Self::Busy(reason, after),
            _ => Self::Refused(reason),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let details = status.details.as_ref();
        let after = details.map_or(0, |details| details.retry_after_seconds.into());
        let said = if status.message.is_empty() {
            &status.reason
        } else {
            &status.message
        };
        Self::no(status.code, said, after)
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        Self::Away(why(&error))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Away(why(&error))
    }
}

/// Asks, and waits until the answer begins, for so long. A no is a failure.
pub(super) async fn ask(
    client: &Client,
    request: Request<Vec<u8>>,
    patience: Duration,
) -> Result<Body, Failure> {
    let answer = client.send(request.map(Body::from));
    let (head, body) = within(patience, answer).await?.into_parts();
    if head.status.is_success() {
        return Ok(body);
    }
    let code = head.status.as_u16();
    let text = within(PATIENCE, body.collect_bytes()).await?;
    // Who throttles says in the head of the answer for how long, and proxies know no Status.
    let after = head.headers.get(RETRY_AFTER);
    let after = after.and_then(|value| value.to_str().ok()?.parse().ok());
    let after = after.unwrap_or_default();
    // It says no in the language that the answer was asked for in.
    let said = object::refusal(&text).unwrap_or_else(|| {
        serde_json::from_slice::<Status>(&text)
            .map(|status| status.message)
            .unwrap_or_default()
    });
    let text = String::from_utf8_lossy(&text);
    let said = if said.is_empty() { text.trim() } else { &said };
    Err(Failure::no(code, said, after))
}

/// Asks, and waits for the whole answer.
pub(super) async fn answer<T: DeserializeOwned>(
    client: &Client,
    request: Request<Vec<u8>>,
) -> Result<T, Failure> {
    let body = ask(client, request, PATIENCE).await?;
    let text = within(PATIENCE, body.collect_bytes()).await?;
    serde_json::from_slice(&text).map_err(|error| Failure::Away(why(&error)))
}

/// What comes of an answer, as it comes.
pub(super) fn stream(body: Body) -> impl AsyncBufRead + Unpin {
    body.into_data_stream()
        .map_err(io::Error::other)
        .into_async_read()
}

/// Waits as long as is reasonable.
pub(super) async fn within<T, E: Into<Failure>>(
    patience: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    match timeout(patience, answer).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(Failure::Away(format!(
            "no answer within {} s",
            patience.as_secs()
        ))),
    }
}

/// A failure in few words.
fn why(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut cause = Some(error);
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
