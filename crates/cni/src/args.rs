//! Parser for `CNI_ARGS`: `KEY=VALUE` pairs separated by `;`.

use crate::{Code, Error};

/// The requests and the pod name in `CNI_ARGS`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniArgs {
    /// `IP`: requested address, optionally with a prefix length.
    pub ip: Option<String>,
    /// `MAC`: requested hardware address of the container interface.
    pub mac: Option<String>,
    /// Name of the pod: `K8S_POD_NAMESPACE` and `K8S_POD_NAME` separated by a slash, or only the
    /// latter.
    pub pod: Option<String>,
}

impl CniArgs {
    /// Parses the variable. The pairs may be in any order: containerd sends them in random order.
    ///
    /// Returns an error with code 4 if a pair is not `KEY=VALUE`, or if a key is unknown and
    /// `IgnoreUnknown` is not true.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut args = Self::default();
        let mut ignore_unknown = false;
        let mut unknown = Vec::new();
        let (mut namespace, mut name) = (None, None);
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) = match pair.split_once('=') {
                Some((key, value)) if !value.contains('=') => (key, value),
                _ => return Err(invalid(format!("ARGS: invalid pair {pair:?}"))),
            };
            match key {
                "IgnoreUnknown" => {
                    ignore_unknown = match value.to_ascii_lowercase().as_str() {
                        "1" | "true" => true,
                        "0" | "false" => false,
                        _ => {
                            let reason = "IgnoreUnknown must be 1, 0, true or false";
                            return Err(invalid(format!("ARGS: {pair:?}: {reason}")));
                        }
                    }
                }
                "IP" => args.ip = Some(value.to_owned()),
                "MAC" => args.mac = Some(value.to_owned()),
                // Multus sends empty values for a container that is not a pod of Kubernetes.
                "K8S_POD_NAMESPACE" => namespace = Some(value).filter(|value| !value.is_empty()),
                "K8S_POD_NAME" => name = Some(value).filter(|value| !value.is_empty()),
                "K8S_POD_INFRA_CONTAINER_ID" | "K8S_POD_UID" => {}
                _ => unknown.push(pair),
            }
        }
        args.pod = name.map(|name| match namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_owned(),
        });
        if unknown.is_empty() || ignore_unknown {
            Ok(args)
        } else {
            let msg = format!("ARGS: unknown args {unknown:?}");
            let advice = "in CNI_ARGS; add IgnoreUnknown=1 to allow unknown keys";
            Err(Error::new(Code::INVALID_ENVIRONMENT, msg).with_details(advice))
        }
    }
}

fn invalid(msg: String) -> Error {
    let rule = "CNI_ARGS must be KEY=VALUE pairs joined by \";\", and no value may contain \"=\"";
    Error::new(Code::INVALID_ENVIRONMENT, msg).with_details(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_may_be_in_any_order() {
        let args = CniArgs::parse(
            "IP=10.10.1.6;K8S_POD_NAME=a;Other=1;IgnoreUnknown=TRUE;K8S_POD_NAMESPACE=n",
        );
        let args = args.expect("valid");
        assert_eq!(args.ip.as_deref(), Some("10.10.1.6"));
        assert_eq!(args.pod.as_deref(), Some("n/a"));
        assert_eq!(
            CniArgs::parse("").expect("nothing asked for"),
            CniArgs::default()
        );
    }

    #[test]
    fn an_empty_name_is_no_name() {
        let pod = |text: &str| CniArgs::parse(text).expect("valid").pod;
        assert_eq!(pod("K8S_POD_NAMESPACE=;K8S_POD_NAME="), None);
        assert_eq!(
            pod("K8S_POD_NAMESPACE=;K8S_POD_NAME=a").as_deref(),
            Some("a")
        );
        assert_eq!(pod("K8S_POD_NAMESPACE=n;K8S_POD_NAME="), None);
    }

    #[test]
    fn an_unknown_key_is_an_error_unless_ignored() {
        let error = CniArgs::parse("IP=10.10.1.6;Other=1").expect_err("Other is unknown");
        assert_eq!(error.msg, r#"ARGS: unknown args ["Other=1"]"#);
        let error = CniArgs::parse("IgnoreUnknown=0;Other=1").expect_err("Other is unknown");
        assert_eq!(error.code, Code::INVALID_ENVIRONMENT);
    }

    #[test]
    fn a_pair_has_one_equals_sign() {
        for bad in ["IP", "IP=1=2", "=", "IgnoreUnknown=maybe"] {
            assert!(CniArgs::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn damaged_text_never_panics() {
        let valid =
            "IP=10.10.1.6;MAC=02:00:00:00:00:01;IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=a";
        random_input::never_panics(&[valid.as_bytes()], |text| {
            drop(CniArgs::parse(&String::from_utf8_lossy(text)));
        });
    }
}
