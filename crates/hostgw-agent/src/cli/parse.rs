//! Values of flags.

use std::net::{IpAddr, ToSocketAddrs};

use ipnetwork::IpNetwork;

/// Reads a list of etcd's servers. One without a scheme gets the first scheme in the list; without any,
/// `https` if there is a certificate, and else `http`.
pub(super) fn endpoints(text: &str, is_tls: bool) -> Result<Vec<String>, String> {
    let all = text.split(',').map(str::trim).filter(|one| !one.is_empty());
    let all: Vec<_> = all.collect();
    let scheme_of = |one: &&str| {
        one.split_once("://")
            .map(|(scheme, _)| scheme.to_lowercase())
    };
    let default = if is_tls { "https" } else { "http" };
    let default = all.iter().find_map(scheme_of).unwrap_or(default.to_owned());
    let mut endpoints = Vec::new();
    for one in all {
        let rest = one.split_once("://").map_or(one, |(_, rest)| rest);
        let scheme = scheme_of(&one).unwrap_or(default.clone());
        let url = format!("{scheme}://{}", rest.trim_end_matches('/'));
        let parsed: Option<http::Uri> = url.parse().ok();
        let has_port = parsed.is_some_and(|url| url.port_u16().is_some());
        if !has_port || !matches!(scheme.as_str(), "http" | "https") {
            return Err(format!(
                "--etcd-endpoints: {one:?} is not a URL such as http://192.168.2.17:2379"
            ));
        }
        endpoints.push(url);
    }
    if endpoints.is_empty() {
        return Err(format!("--etcd-endpoints: {text:?} names no server"));
    }
    Ok(endpoints)
}

/// The folder of a prefix, as flanneld computes it (`path.Clean`): one slash between parts and at the end,
/// and one at the start only if it is written.
pub(super) fn folder(prefix: &str) -> String {
    let is_absolute = prefix.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in prefix.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if is_absolute => {}
            part => parts.push(part),
        }
    }
    let begin = if is_absolute { "/" } else { "" };
    let end = if parts.is_empty() { "" } else { "/" };
    format!("{begin}{}{end}", parts.join("/"))
}

/// Reads an address, or a name such as `localhost`.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    let named = || (text, 0).to_socket_addrs().ok()?.next();
    let address = text.parse().ok().or_else(|| Some(named()?.ip()));
    address.ok_or_else(|| "is not an address such as ::".to_owned())
}

/// Reads a network. An address alone is a network of one address.
pub(super) fn network(text: &str) -> Result<IpNetwork, String> {
    let address = || text.parse::<IpAddr>().ok().map(IpNetwork::from);
    let network = subnet::parse(text).or_else(address);
    network.ok_or_else(|| "is not a network such as 10.10.0.0/16".to_owned())
}
