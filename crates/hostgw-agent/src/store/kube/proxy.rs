//! Which proxy to use for the API server, by the rules of Go programs
//! (`golang.org/x/net/http/httpproxy`), so that the settings of kubectl and flanneld work here, too.

use std::net::IpAddr;

use http::Uri;
use ipnetwork::IpNetwork;

use super::error::Error;

/// The proxy for `server`: `proxy_url`, which is the kubeconfig file's, comes first; then the variables
/// `HTTPS_PROXY` or `HTTP_PROXY`, unless `NO_PROXY` excepts the server. `env` reads a variable.
pub(super) fn for_server(
    server: &Uri,
    proxy_url: Option<&str>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Option<Uri>, Error> {
    let invalid = |setting| move |reason| Error::Proxy { setting, reason };
    if let Some(text) = proxy_url.filter(|text| !text.is_empty()) {
        return parse(text).map(Some).map_err(invalid("proxy-url"));
    }
    let first_set = |names: [&'static str; 2]| {
        let mut set = names
            .into_iter()
            .filter_map(|name| Some((name, env(name)?)));
        set.find(|(_, value)| !value.is_empty())
    };
    let names = if server.scheme_str() == Some("http") {
        ["HTTP_PROXY", "http_proxy"]
    } else {
        ["HTTPS_PROXY", "https_proxy"]
    };
    let Some((name, text)) = first_set(names) else {
        return Ok(None);
    };
    let no_proxy = first_set(["NO_PROXY", "no_proxy"]).map(|(_, value)| value);
    if is_excluded(server, &no_proxy.unwrap_or_default()) {
        return Ok(None);
    }
    parse(&text).map(Some).map_err(invalid(name))
}

/// Parses the URL of a proxy; the default scheme is `http`. Errors do not show the password.
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
            "{shown:?} is not a proxy such as http://proxy.example:3128; the supported schemes are http, https and socks5"
        )),
    }
}

/// Returns true if a server must be reached directly: it is this machine, or `list` excludes it.
fn is_excluded(server: &Uri, list: &str) -> bool {
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
            // A name also matches its subdomains; with a leading dot, it matches only these.
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

/// Splits an entry of the list into host and port.
fn with_port(entry: &str) -> (&str, Option<u16>) {
    if let Some(rest) = entry.strip_prefix('[') {
        // Go accepts brackets only together with a port.
        return match rest.split_once("]:") {
            Some((address, port)) => (address, port.parse().ok()),
            None => (entry, None),
        };
    }
    match entry.rsplit_once(':') {
        // More than one colon: an IPv6 address without a port.
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
        let uri = for_server(&server, None, get).map_err(|error| error.to_string())?;
        Ok(uri.map_or("none".to_owned(), |uri| uri.to_string()))
    }

    #[test]
    fn environment_variables_are_read_as_in_go() {
        for (server, env, message) in [
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
            assert_eq!(
                proxy(server, env).as_deref(),
                Ok(message),
                "{server} {env:?}"
            );
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
    fn no_proxy_excludes_the_same_servers_as_in_go() {
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
            let message = proxy(server, &env).expect("a proxy");
            assert_eq!(message == "none", is_direct, "{server} {list:?}");
        }
    }

    #[test]
    fn a_fixed_proxy_overrides_the_environment() {
        let server = "https://127.0.0.1:6443".parse().expect("a URL");
        let env = |name: &str| (name == "NO_PROXY").then(|| "*".to_owned());
        let proxy = for_server(&server, Some("socks5://p:1080"), env).expect("a proxy");
        assert_eq!(
            proxy.map(|uri| uri.to_string()).as_deref(),
            Some("socks5://p:1080/")
        );
        let error = for_server(&server, Some("socks4://p:1080"), env);
        let error = error.expect_err("unknown").to_string();
        assert!(error.starts_with("proxy-url: "), "{error}");
    }
}
