//! Which proxy leads to the API server, by the rules of Go's programs (`golang.org/x/net/http/httpproxy`):
//! what serves kubectl and flanneld serves here.

use std::net::IpAddr;

use http::Uri;
use ipnetwork::IpNetwork;

/// The proxy to `server`: `fixed` where the kubeconfig file names one, whatever the environment says; else
/// `HTTPS_PROXY` or `HTTP_PROXY`, unless `NO_PROXY` excepts the server. `env` gives variables.
pub(super) fn to(
    server: &Uri,
    fixed: Option<&str>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Option<Uri>, String> {
    if let Some(text) = fixed.filter(|text| !text.is_empty()) {
        return parse(text)
            .map(Some)
            .map_err(|reason| format!("proxy-url: {reason}"));
    }
    let said = |names: [&'static str; 2]| {
        let mut said = names
            .into_iter()
            .filter_map(|name| Some((name, env(name)?)));
        said.find(|(_, value)| !value.is_empty())
    };
    let names = if server.scheme_str() == Some("http") {
        ["HTTP_PROXY", "http_proxy"]
    } else {
        ["HTTPS_PROXY", "https_proxy"]
    };
    let Some((name, text)) = said(names) else {
        return Ok(None);
    };
    let excepted = said(["NO_PROXY", "no_proxy"]).map(|(_, value)| value);
    if is_excepted(server, &excepted.unwrap_or_default()) {
        return Ok(None);
    }
    parse(&text)
        .map(Some)
        .map_err(|reason| format!("{name}: {reason}"))
}

/// A proxy without a scheme is one of HTTP. Errors do not show its password.
fn parse(text: &str) -> Result<Uri, String> {
    let has_scheme = text.contains("://");
    let whole = if has_scheme {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let shown = match whole.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => whole.clone(),
    };
    let uri: Uri = whole.parse().map_err(|error| {
        format!("{shown:?} is not a proxy such as http://proxy.example:3128: {error}")
    })?;
    match uri.scheme_str() {
        Some("http" | "https" | "socks5") if uri.host().is_some_and(|host| !host.is_empty()) => {
            Ok(uri)
        }
        _ => Err(format!(
            "{shown:?} is not a proxy such as http://proxy.example:3128; http, https and socks5 are known"
        )),
    }
}

/// Whether a server is reached without a proxy: this machine itself, and what the list names.
fn is_excepted(server: &Uri, list: &str) -> bool {
    let host = server.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
    if host == "localhost" || address.is_some_and(|ip| ip.is_loopback()) {
        return true;
    }
    let usual = if server.scheme_str() == Some("http") {
        80
    } else {
        443
    };
    let port = server.port_u16().unwrap_or(usual);
    let host = host.to_lowercase();
    list.split(',')
        .map(|entry| entry.trim().to_lowercase())
        .any(|entry| {
            if entry == "*" {
                return true;
            }
            if let (Some(network), Some(address)) = (network(&entry), address) {
                return network.contains(address);
            }
            let (name, wanted) = with_port(&entry);
            if wanted.is_some_and(|wanted| wanted != port) {
                return false;
            }
            if let Ok(ip) = name.parse::<IpAddr>() {
                return address == Some(ip.to_canonical());
            }
            // A name is its domain, too; with a dot in front, that alone.
            let name = name
                .strip_prefix('*')
                .filter(|rest| rest.starts_with('.'))
                .unwrap_or(name);
            let domain = name.strip_prefix('.').unwrap_or(name);
            let is_itself = !name.starts_with('.') && host == domain;
            let is_below = host
                .strip_suffix(domain)
                .is_some_and(|rest| rest.ends_with('.'));
            !domain.is_empty() && address.is_none() && (is_itself || is_below)
        })
}

fn network(entry: &str) -> Option<IpNetwork> {
    let (address, prefix) = entry.split_once('/')?;
    let (address, prefix) = (address.parse::<IpAddr>().ok()?, prefix.parse().ok()?);
    IpNetwork::new(address, prefix).ok()
}

/// An entry of a list, and its port.
fn with_port(entry: &str) -> (&str, Option<u16>) {
    if let Some(rest) = entry.strip_prefix('[') {
        // Without a port, Go takes no brackets.
        return match rest.split_once("]:") {
            Some((address, port)) => (address, port.parse().ok()),
            None => (entry, None),
        };
    }
    match entry.rsplit_once(':') {
        // An IPv6 address has more colons than one.
        Some((name, port)) if !name.contains(':') => (name, port.parse().ok()),
        _ => (entry, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(server: &str, env: &[(&str, &str)]) -> Result<String, String> {
        let server = server.parse().expect("a URL");
        let get = |name: &str| {
            let mut env = env.iter();
            env.find(|(other, _)| *other == name)
                .map(|(_, value)| (*value).to_owned())
        };
        to(&server, None, get).map(|uri| uri.map_or("none".to_owned(), |uri| uri.to_string()))
    }

    #[test]
    fn the_environment_is_read_as_by_go() {
        for (server, env, said) in [
            (
                "https://10.0.0.1:6443",
                &[("HTTPS_PROXY", "http://p:3128")][..],
                "http://p:3128/",
            ),
            (
                "https://10.0.0.1:6443",
                &[("HTTPS_PROXY", "p:3128")],
                "http://p:3128/",
            ),
            (
                "https://10.0.0.1:6443",
                &[("HTTPS_PROXY", ""), ("https_proxy", "p:1")],
                "http://p:1/",
            ),
            (
                "https://10.0.0.1:6443",
                &[("HTTP_PROXY", "p:1"), ("ALL_PROXY", "p:1")],
                "none",
            ),
            (
                "http://10.0.0.1:8080",
                &[("HTTP_PROXY", "p:1")],
                "http://p:1/",
            ),
            ("http://10.0.0.1:8080", &[("HTTPS_PROXY", "p:1")], "none"),
            ("https://localhost:6443", &[("HTTPS_PROXY", "p:1")], "none"),
            ("https://127.0.0.9:6443", &[("HTTPS_PROXY", "p:1")], "none"),
            ("https://[::1]:6443", &[("HTTPS_PROXY", "p:1")], "none"),
        ] {
            assert_eq!(proxy(server, env).as_deref(), Ok(said), "{server} {env:?}");
        }
        let error = proxy(
            "https://10.0.0.1",
            &[("HTTPS_PROXY", "ftp://me:secret@p:1")],
        );
        let error = error.expect_err("it is none");
        assert!(
            error.starts_with("HTTPS_PROXY: ") && !error.contains("secret"),
            "{error}"
        );
    }

    #[test]
    fn no_proxy_excepts_what_go_excepts() {
        for (server, list, is_direct) in [
            ("https://10.0.0.1:6443", "10.0.0.1", true),
            ("https://10.0.0.1:6443", "10.0.0.1:6443", true),
            ("https://10.0.0.1:6443", "10.0.0.1:443", false),
            ("https://10.0.0.1", "10.0.0.1:443", true),
            ("https://10.0.0.1:6443", "10.0.0.0/8,", true),
            (
                "https://10.0.0.1:6443",
                " 192.168.0.0/16 , 10.0.0.0/8 ",
                true,
            ),
            ("https://10.0.0.1:6443", "11.0.0.0/8", false),
            ("https://10.0.0.1:6443", "*", true),
            ("https://10.0.0.1:6443", "0.0.1", false),
            ("https://[fd00::1]:6443", "fd00::/8", true),
            ("https://[fd00::1]:6443", "fd00::1", true),
            ("https://[fd00::1]:6443", "[fd00::1]:6443", true),
            ("https://[fd00::1]:6443", "[fd00::1]", false),
            ("https://api.example.com:6443", "example.com", true),
            ("https://example.com:6443", "example.com", true),
            ("https://example.com:6443", ".example.com", false),
            ("https://api.example.com:6443", ".example.com", true),
            ("https://api.example.com:6443", "*.example.com", true),
            ("https://api.example.com:6443", "*example.com", false),
            ("https://myexample.com:6443", "example.com", false),
            ("https://API.Example.com:6443", "example.COM", true),
            ("https://api.example.com:6443", "example.com:443", false),
            (
                "https://api.example.com:6443",
                "https://api.example.com",
                false,
            ),
            ("https://api.example.com:6443", "a;example.com", false),
            ("https://api.example.com:6443", "", false),
        ] {
            let env = [("HTTPS_PROXY", "p:1"), ("NO_PROXY", list)];
            let said = proxy(server, &env).expect("a proxy");
            assert_eq!(said == "none", is_direct, "{server} {list:?}");
        }
    }

    #[test]
    fn a_fixed_proxy_counts_whatever_the_environment_says() {
        let server = "https://127.0.0.1:6443".parse().expect("a URL");
        let env = |name: &str| (name == "NO_PROXY").then(|| "*".to_owned());
        let proxy = to(&server, Some("socks5://p:1080"), env).expect("a proxy");
        assert_eq!(
            proxy.map(|uri| uri.to_string()).as_deref(),
            Some("socks5://p:1080/")
        );
        let error = to(&server, Some("socks4://p:1080"), env).expect_err("unknown");
        assert!(error.starts_with("proxy-url: "), "{error}");
    }
}
