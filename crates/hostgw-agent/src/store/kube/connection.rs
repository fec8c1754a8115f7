//! Connecting to the API server, and sending requests to it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures::TryStreamExt;
use futures::io::AsyncBufRead;
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

use super::error::Error;
use super::{object, proxy};
use cni::causes;

/// Path of the Nodes.
pub(super) const NODES: &str = "/api/v1/nodes";
/// The shortest and the longest pause after a request that was refused.
pub(super) const REFUSED_PAUSES: [Duration; 2] =
    [Duration::from_millis(500), Duration::from_secs(20)];
/// How long the API server may take to answer.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The API server and this node's credentials, from a kubeconfig file or from the pod's service
/// account.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// Overrides the URL of the kubeconfig file or of the service account.
    pub(crate) url: Option<http::Uri>,
    pub(crate) kubeconfig: Option<PathBuf>,
}

impl Access {
    /// Makes a client. Files are read each time, so that rotated certificates and tokens count; the
    /// files of a pod are read again while the client is in use, too.
    pub(super) async fn connect(&self) -> Result<Client, Error> {
        let mut proxy_url = None;
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let invalid = |error: &dyn std::error::Error| Error::Kubeconfig {
                    path: path.clone(),
                    reason: causes(error),
                };
                let mut file = Kubeconfig::read_from(path).map_err(|error| invalid(&error))?;
                proxy_url = take_proxy(&mut file);
                let options = KubeConfigOptions::default();
                let config = Config::from_custom_kubeconfig(file, &options).await;
                config.map_err(|error| invalid(&error))?
            }
            None => self.in_cluster()?,
        };
        if let Some(url) = &self.url {
            config.cluster_url = url.clone();
        }
        config.connect_timeout = Some(REQUEST_TIMEOUT);
        // The session decides whether and when to ask again.
        config.default_retry = false;
        config.proxy_url = None;
        let env = |name: &str| std::env::var(name).ok();
        let client = match proxy::for_server(&config.cluster_url, proxy_url.as_deref(), env)? {
            None => Client::try_from(config),
            Some(proxy) => proxied_client(&config, &proxy),
        };
        Ok(client?)
    }

    fn in_cluster(&self) -> Result<Config, Error> {
        let is_in_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        match (&self.url, is_in_cluster) {
            (Some(url), false) => Ok(Config::new(url.clone())),
            _ => Config::incluster().map_err(|error| Error::NotInCluster(causes(&error))),
        }
    }
}

/// Takes the proxy out of a kubeconfig file. We select the proxy ourselves because the rules of the
/// library differ from those of Go programs. A dummy proxy takes its place: without any, the
/// library would read the environment.
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

/// Returns a client that uses a proxy.
fn proxied_client(config: &Config, proxy: &Uri) -> kube::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    // The credentials for the proxy are part of its URL.
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

/// Returns a client on top of a connector, assembled as in the library.
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

/// Sends a request and waits up to `limit` for the start of the response. Returns its body; an
/// error status is a failure.
pub(super) async fn ask(
    client: &Client,
    request: Request<Vec<u8>>,
    limit: Duration,
) -> Result<Body, Error> {
    let answer = client.send(request.map(Body::from));
    let (head, body) = within(limit, answer).await?.into_parts();
    if head.status.is_success() {
        return Ok(body);
    }
    let code = head.status.as_u16();
    let text = within(REQUEST_TIMEOUT, body.collect_bytes()).await?;
    // Throttling sets a header, and proxies do not send a Status.
    let after = head.headers.get(RETRY_AFTER);
    let after = after.and_then(|value| value.to_str().ok()?.parse().ok());
    let after = after.unwrap_or_default();
    // An error is encoded in the format that the request accepts.
    let reason = object::status_message(&text).unwrap_or_else(|| {
        serde_json::from_slice::<Status>(&text)
            .map(|status| status.message)
            .unwrap_or_default()
    });
    let text = String::from_utf8_lossy(&text);
    let reason = if reason.is_empty() {
        text.trim()
    } else {
        &reason
    };
    Err(Error::from_status(code, reason, after))
}

/// Sends a request and decodes the complete JSON response.
pub(super) async fn answer<T: DeserializeOwned>(
    client: &Client,
    request: Request<Vec<u8>>,
) -> Result<T, Error> {
    let body = ask(client, request, REQUEST_TIMEOUT).await?;
    let text = within(REQUEST_TIMEOUT, body.collect_bytes()).await?;
    serde_json::from_slice(&text).map_err(|error| Error::Unavailable(causes(&error)))
}

/// Returns a response body as a stream.
pub(super) fn stream(body: Body) -> impl AsyncBufRead + Unpin {
    body.into_data_stream()
        .map_err(io::Error::other)
        .into_async_read()
}

/// Waits up to `limit` for an answer.
pub(super) async fn within<T, E: Into<Error>>(
    limit: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, Error> {
    match timeout(limit, answer).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(Error::Unavailable(format!(
            "no answer within {} s",
            limit.as_secs()
        ))),
    }
}
