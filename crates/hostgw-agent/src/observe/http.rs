//! The HTTP server: `/healthz`, `/readyz` and `/metrics` on a port, and also `/status` on a socket.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use axum::Router;
use axum::extract::State as Extract;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use tokio::net::{TcpListener, UnixListener};
use tracing::{error, warn};

use super::client::is_running;
use super::metrics;
use super::state::{SharedState, lock};
use crate::error::{Error, Result};

/// Starts to answer: on a socket for `hostgw-agent status`, and on an address if there is one.
/// Fails if another agent answers on the socket, or if the address cannot be used.
pub(crate) async fn start(
    shared: &SharedState,
    socket: &Path,
    address: Option<SocketAddr>,
) -> Result<()> {
    let public = Router::new()
        .route("/healthz", get(|| async { "hostgw-agent is running\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics));
    // Details about the cluster are for users of this node only.
    let local = public.clone().route("/status", get(status));
    if is_running(socket).await {
        return Err(Error::AlreadyRunning(socket.to_owned()));
    }
    if let Some(address) = address {
        let listener = listen_tcp(address).map_err(|source| Error::Listen { address, source })?;
        let server = axum::serve(listener, public.with_state(shared.clone()));
        tokio::spawn(serve(server.into_future()));
    }
    match listen_unix(socket) {
        Ok(listener) => {
            let server = axum::serve(listener, local.with_state(shared.clone()));
            tokio::spawn(serve(server.into_future()));
        }
        // `status` does not work then, but everything else does.
        Err(error) => warn!(
            "failed to listen on {} (--socket): {error}",
            socket.display()
        ),
    }
    Ok(())
}

async fn serve(server: impl Future<Output = io::Result<()>>) {
    if let Err(error) = server.await {
        error!("failed to serve HTTP: {error}");
    }
}

/// Listens on an address. The unspecified IPv6 address means both families, whatever `bindv6only` is;
/// without IPv6, it means IPv4 alone.
fn listen_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = match bind(address) {
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)
            if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) =>
        {
            let any = Ipv4Addr::UNSPECIFIED.into();
            bind(SocketAddr::new(any, address.port()))
        }
        other => other,
    };
    TcpListener::from_std(listener?)
}

fn bind(address: SocketAddr) -> Result<std::net::TcpListener, Errno> {
    /// Connections that may wait to be accepted.
    const BACKLOG: i32 = 128;
    let domain = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = net::socket_with(domain, SocketType::STREAM, flags, None)?;
    net::sockopt::set_socket_reuseaddr(&listener, true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        net::sockopt::set_ipv6_v6only(&listener, false)?;
    }
    net::bind(&listener, &address)?;
    net::listen(&listener, BACKLOG)?;
    Ok(listener.into())
}

/// Listens on a socket, and replaces one that an earlier run left.
fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

async fn readyz(Extract(shared): Extract<SharedState>) -> (StatusCode, String) {
    let state = lock(&shared);
    if state.is_ready() {
        return (StatusCode::OK, "hostgw-agent is ready\n".to_owned());
    }
    let mut reasons = state.problems.join("\n");
    if reasons.is_empty() {
        "this node has no subnet yet".clone_into(&mut reasons);
    }
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("hostgw-agent is not ready\n{reasons}\n"),
    )
}

async fn metrics(Extract(shared): Extract<SharedState>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics::text(shared))
}

async fn status(Extract(shared): Extract<SharedState>) -> impl IntoResponse {
    let report = lock(&shared).report();
    let text = serde_json::to_string(&report).expect("texts and numbers");
    ([(header::CONTENT_TYPE, "application/json")], text)
}
