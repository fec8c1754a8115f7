//! Parser for a request of the runtime: the operation, its parameters and the network
//! configuration.

use std::io;
use std::path::PathBuf;

use serde::Deserialize;

use crate::{Code, ContainerId, Error, IfName, Json, NetworkName, Version};

/// A request. It is validated in the same order as in libcni's `skel`.
#[derive(Debug)]
pub enum Request {
    /// `CNI_COMMAND` is not set: a person ran the plugin.
    About,
    /// VERSION.
    Version,
    /// Any other operation.
    Call(Call),
}

/// An operation with its parameters and network configuration.
#[derive(Debug)]
pub struct Call {
    /// Operation to perform.
    pub verb: Verb,
    /// Version of the protocol in which to answer.
    pub version: Version,
    /// Name of the network.
    pub network: NetworkName,
    /// The network configuration.
    pub config: Json,
    /// `CNI_PATH`: directories that contain plugins, separated by `:`. Used only to run another
    /// plugin.
    pub path: Option<String>,
}

/// An operation of the protocol, with its parameters.
#[derive(Debug)]
#[expect(
    missing_docs,
    reason = "each variant is the SPEC operation of the same name"
)]
pub enum Verb {
    Add(Parameters),
    Del(Parameters),
    Check(Parameters),
    Gc,
    Status,
}

/// The parameters of ADD, DEL and CHECK.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// `CNI_CONTAINERID`.
    pub container_id: ContainerId,
    /// `CNI_IFNAME`.
    pub ifname: IfName,
    /// `CNI_NETNS`. Only DEL may omit it.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`, not parsed, because DEL does not need it.
    pub args: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Head {
    cni_version: Option<String>,
    name: Option<String>,
}

impl Request {
    /// Reads the request. `env` looks up a variable. `stdin` is called at most once, and not for
    /// VERSION. A variable that is set but empty counts as missing, because libcni sets all
    /// variables for every operation.
    pub fn read(
        env: impl Fn(&str) -> Option<String>,
        stdin: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> Result<Self, Refused> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let Some(command) = env("CNI_COMMAND") else {
            return Ok(Self::About);
        };
        if command == "VERSION" {
            return Ok(Self::Version);
        }
        let parameters = match command.as_str() {
            "ADD" | "CHECK" => Some(parameters(&env, true)?),
            "DEL" => Some(parameters(&env, false)?),
            _ => None,
        };
        let text = stdin()
            .map_err(|error| Error::new(Code::IO, format!("error reading from stdin: {error}")))?;
        let config = Json::parse(&text).map_err(|error| decode_error(&error))?;
        let head: Head = config.to().map_err(|error| decode_error(&error))?;
        let network = NetworkName::new(head.name.as_deref().unwrap_or_default())?;
        // A configuration without cniVersion is of version 0.1.0: it may be older than the key.
        let named = head
            .cni_version
            .as_deref()
            .filter(|text| !text.is_empty())
            .unwrap_or("0.1.0");
        let version = supported_version(named)?;
        let allowed = |since: Version, verb: Verb| {
            if version >= since {
                return Ok(verb);
            }
            let msg = format!("config version does not allow {command}");
            Err(Error::new(Code::INCOMPATIBLE_VERSION, msg)
                .with_details(format!("cniVersion is {version}, {command} needs {since}")))
        };
        let verb = match (command.as_str(), parameters) {
            ("ADD", Some(parameters)) => Ok(Verb::Add(parameters)),
            ("DEL", Some(parameters)) => Ok(Verb::Del(parameters)),
            ("CHECK", Some(parameters)) => allowed(Version::V0_4_0, Verb::Check(parameters)),
            ("GC", _) => allowed(Version::V1_1_0, Verb::Gc),
            ("STATUS", _) => allowed(Version::V1_1_0, Verb::Status),
            _ => {
                let msg = format!("unknown CNI_COMMAND: {command}");
                Err(Error::new(Code::INVALID_ENVIRONMENT, msg))
            }
        };
        match verb {
            Ok(verb) => Ok(Self::Call(Call {
                verb,
                version,
                network,
                config,
                path: env("CNI_PATH"),
            })),
            Err(error) => Err(Refused { version, error }),
        }
    }
}

/// The error for a request that cannot be served, with the protocol version for the answer.
#[derive(Debug)]
pub struct Refused {
    /// Version of the configuration, or the latest version if it is unknown.
    pub version: Version,
    /// Reason for the rejection.
    pub error: Error,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self {
            version: Version::LATEST,
            error,
        }
    }
}

/// Reads the parameters of ADD, DEL and CHECK from the environment. ADD and CHECK require every
/// variable of the attachment, DEL all but `CNI_NETNS`. An invalid variable is reported at once.
/// Missing variables are reported together.
fn parameters(
    env: &impl Fn(&str) -> Option<String>,
    needs_netns: bool,
) -> Result<Parameters, Error> {
    let container_id = env("CNI_CONTAINERID")
        .map(|text| ContainerId::new(&text))
        .transpose()?;
    let netns = env("CNI_NETNS").map(PathBuf::from);
    let ifname = env("CNI_IFNAME")
        .map(|text| IfName::new(&text))
        .transpose()?;
    let mut missing = Vec::new();
    if container_id.is_none() {
        missing.push("CNI_CONTAINERID");
    }
    if netns.is_none() && needs_netns {
        missing.push("CNI_NETNS");
    }
    if ifname.is_none() {
        missing.push("CNI_IFNAME");
    }
    match (container_id, ifname) {
        (Some(container_id), Some(ifname)) if missing.is_empty() => Ok(Parameters {
            container_id,
            ifname,
            netns,
            args: env("CNI_ARGS").unwrap_or_default(),
        }),
        _ => {
            let msg = format!("required env variables [{}] missing", missing.join(","));
            Err(Error::new(Code::INVALID_ENVIRONMENT, msg))
        }
    }
}

fn supported_version(named: &str) -> Result<Version, Error> {
    Version::supported(named).ok_or_else(|| {
        let supported: Vec<_> = Version::ALL.map(Version::as_str).into();
        Error::new(Code::INCOMPATIBLE_VERSION, "incompatible CNI versions").with_details(format!(
            "config is {named:?}, plugin supports {supported:?}"
        ))
    })
}

fn decode_error(reason: &str) -> Error {
    Error::new(
        Code::DECODE,
        format!("error unmarshall network config: {reason}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = r#"{"cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw"}"#;
    const POD: [(&str, &str); 4] = [
        ("CNI_CONTAINERID", "pod1"),
        ("CNI_NETNS", "/run/netns/pod1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];

    fn read(command: &str, vars: &[(&str, &str)], stdin: &str) -> Result<Request, Refused> {
        let env = |name: &str| {
            if name == "CNI_COMMAND" {
                return Some(command.to_owned());
            }
            vars.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        Request::read(env, || Ok(stdin.into()))
    }

    fn refused(command: &str, vars: &[(&str, &str)], stdin: &str) -> (u32, String) {
        let refused = read(command, vars, stdin).expect_err("must be refused");
        (refused.error.code.0, refused.error.msg)
    }

    #[test]
    fn all_missing_variables_are_reported_in_one_error() {
        let all = "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing";
        assert_eq!(refused("ADD", &[], "not even read"), (4, all.into()));
        assert_eq!(refused("CHECK", &[("CNI_NETNS", "")], ""), (4, all.into()));
        let two = "required env variables [CNI_CONTAINERID,CNI_IFNAME] missing";
        assert_eq!(refused("DEL", &[], ""), (4, two.into()));
    }

    #[test]
    fn an_invalid_variable_is_reported_before_missing_ones() {
        let bad = [("CNI_CONTAINERID", "a/b")];
        assert_eq!(
            refused("ADD", &bad, ""),
            (4, "invalid characters in containerID".into())
        );
    }

    #[test]
    fn the_configuration_is_validated_in_order() {
        assert_eq!(refused("ADD", &POD, "{").0, 6);
        assert_eq!(refused("ADD", &POD, r#"{"name": 5}"#).0, 6);
        assert_eq!(
            refused("ADD", &POD, "{}"),
            (7, "missing network name".into())
        );
        let version = r#"{"name": "n", "cniVersion": "9.9.9"}"#;
        assert_eq!(
            refused("ADD", &POD, version),
            (1, "incompatible CNI versions".into())
        );
        assert_eq!(refused("NOPE", &[], "{").0, 6);
        assert_eq!(
            refused("NOPE", &[], CONF),
            (4, "unknown CNI_COMMAND: NOPE".into())
        );
    }

    #[test]
    fn check_gc_and_status_require_their_minimum_version() {
        let old = r#"{"cniVersion": "0.3.1", "name": "cbr0"}"#;
        assert_eq!(
            refused("CHECK", &POD, old),
            (1, "config version does not allow CHECK".into())
        );
        assert_eq!(refused("STATUS", &[], CONF).0, 1);
        assert_eq!(refused("GC", &[], CONF).0, 1);
        assert!(read("CHECK", &POD, CONF).is_ok());
    }

    #[test]
    fn version_and_a_run_without_command_do_not_read_standard_input() {
        let env = |name: &str| (name == "CNI_COMMAND").then(|| "VERSION".to_owned());
        let request = Request::read(env, || panic!("VERSION must not read standard input"));
        assert!(matches!(request, Ok(Request::Version)));
        let request = Request::read(
            |_| None,
            || panic!("standard input must not be read without CNI_COMMAND"),
        );
        assert!(matches!(request, Ok(Request::About)));
    }

    #[test]
    fn an_empty_netns_counts_as_missing() {
        let vars = [
            ("CNI_CONTAINERID", "pod1"),
            ("CNI_NETNS", ""),
            ("CNI_IFNAME", "eth0"),
        ];
        let Ok(Request::Call(Call {
            verb: Verb::Del(parameters),
            version,
            ..
        })) = read("DEL", &vars, r#"{"name": "cbr0"}"#)
        else {
            panic!("DEL without CNI_NETNS is a valid request");
        };
        assert_eq!((parameters.netns, version), (None, Version::V0_1_0));
    }

    #[test]
    fn damaged_requests_never_panic() {
        let verbs = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"];
        let valid = br#"CNI\0pod1\0/run/netns/pod1\0eth0\0IP=10.10.1.6\0{"cniVersion": "1.1.0", "name": "cbr0", "type": "cni-hostgw", "cni.dev/valid-attachments": null}"#;
        random_input::never_panics(&[valid], |input| {
            // The fields are separated by zeros.
            let mut fields = input.split(|byte| *byte == 0);
            let mut text =
                || String::from_utf8_lossy(fields.next().unwrap_or_default()).into_owned();
            let (command, id, netns, ifname, args, conf) =
                (text(), text(), text(), text(), text(), text());
            let vars = [
                ("CNI_CONTAINERID", id.as_str()),
                ("CNI_NETNS", &netns),
                ("CNI_IFNAME", &ifname),
                ("CNI_ARGS", &args),
            ];
            for verb in verbs.iter().copied().chain([command.as_str()]) {
                drop(read(verb, &vars, &conf));
            }
        });
    }
}
