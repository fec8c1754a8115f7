//! What the agent tells over HTTP and to systemd: `/healthz`, `/readyz`, `/metrics`, `/status`.

use std::collections::BTreeSet;
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
use sd_notify::NotifyState;
use tokio::net::{TcpListener, UnixListener};
use tracing::{error, warn};

use crate::metrics;
use crate::state::{Shared, lock};
use crate::status::is_running;

/// Answers on a socket for `hostgw-agent status`, and on an address where one was asked for. What
/// cannot be listened on is an error at once.
pub(crate) async fn start(
    shared: &Shared,
    socket: &Path,
    address: Option<SocketAddr>,
) -> Result<(), String> {
    let router = Router::new()
        .route("/healthz", get(|| async { "hostgw-agent is running\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics));
    // Who is where in the cluster is told on this node alone.
    let here = router.clone().route("/status", get(status));
    if is_running(socket).await {
        let socket = socket.display();
        return Err(format!(
            "an agent runs here already (it answers at {socket}): two would undo each other's work"
        ));
    }
    if let Some(address) = address {
        let listener = listen_on(address)
            .map_err(|error| format!("listen on {address} (--healthz-port): {error}"))?;
        tokio::spawn(serve(
            axum::serve(listener, router.with_state(shared.clone())).into_future(),
        ));
    }
    match listen(socket) {
        Ok(listener) => {
            tokio::spawn(serve(
                axum::serve(listener, here.with_state(shared.clone())).into_future(),
            ));
        }
        // Nobody can ask, and everything else works.
        Err(error) => warn!("listen on {} (--socket): {error}", socket.display()),
    }
    Ok(())
}

async fn serve(server: impl Future<Output = io::Result<()>>) {
    if let Err(error) = server.await {
        error!("answer over HTTP: {error}");
    }
}

/// Listens on an address; on that of all addresses, in both families, whatever the node's settings say of
/// that. Where there is no IPv6, IPv4 alone is left.
fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let bind = |address: SocketAddr| {
        let is_all = address.ip().is_unspecified();
        let (domain, socket) = match address {
            SocketAddr::V4(_) => (AddressFamily::INET, None),
            SocketAddr::V6(_) => (AddressFamily::INET6, Some(false).filter(|_| is_all)),
        };
        let listener = net::socket_with(
            domain,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        net::sockopt::set_socket_reuseaddr(&listener, true)?;
        if let Some(is_only) = socket {
            net::sockopt::set_ipv6_v6only(&listener, is_only)?;
        }
        net::bind(&listener, &address)?;
        net::listen(&listener, 128)?;
        Ok::<_, Errno>(std::net::TcpListener::from(listener))
    };
    let listener = match bind(address) {
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)
            if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) =>
        {
            bind(SocketAddr::new(
                Ipv4Addr::UNSPECIFIED.into(),
                address.port(),
            ))
        }
        other => other,
    };
    TcpListener::from_std(listener?)
}

/// A socket that is left from an earlier run makes way.
fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    UnixListener::bind(path)
}

async fn readyz(Extract(shared): Extract<Shared>) -> (StatusCode, String) {
    let state = lock(&shared);
    if state.is_ready() {
        return (StatusCode::OK, "hostgw-agent is ready\n".to_owned());
    }
    let mut reasons = state.troubles.join("\n");
    if reasons.is_empty() {
        "this node has no subnet yet".clone_into(&mut reasons);
    }
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("hostgw-agent is not ready\n{reasons}\n"),
    )
}

async fn metrics(Extract(shared): Extract<Shared>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics::text(shared))
}

async fn status(Extract(shared): Extract<Shared>) -> impl IntoResponse {
    let text = lock(&shared).json().to_string();
    ([(header::CONTENT_TYPE, "application/json")], text)
}

/// Tells systemd, where it listens, that this node is ready or why it is not.
pub(crate) fn tell_systemd(is_ready: bool, troubles: &BTreeSet<String>) {
    let status = match troubles.first() {
        Some(trouble) => trouble.as_str(),
        None if is_ready => "this node has its subnet and its routes",
        None => "waiting for a subnet",
    };
    let mut words = vec![NotifyState::Status(status), NotifyState::Watchdog];
    if is_ready {
        words.push(NotifyState::Ready);
    }
    // Nobody listens where there is no systemd.
    drop(sd_notify::notify(&words));
}

/// Tells systemd that we end.
pub(crate) fn tell_systemd_the_end() {
    drop(sd_notify::notify(&[NotifyState::Stopping]));
}
