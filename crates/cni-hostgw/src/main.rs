//! `cni-hostgw`: the CNI plugin of the host-gw pod network.
//!
//! A runtime starts it once for each request. It reads the request from its environment and
//! standard input, does it in one straight line, and answers on standard output.

mod add;
mod check;
mod config;
mod del;
mod error;
mod names;
mod status;
mod unsupported;

use std::io::{self, Read, Write};
use std::process::ExitCode;

use cni::{Refused, Request, Verb, Version};
use serde::Serialize;
use serde_json::{Value, json};

use crate::config::Config;
use crate::error::Error;

fn main() -> ExitCode {
    let (answer, code) = match serve() {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(Refused { version, error }) => (Some(error.to_json(version)), ExitCode::FAILURE),
    };
    match answer.map_or(Ok(()), |answer| print(&answer)) {
        Ok(()) => code,
        Err(error) => {
            eprintln!("cni-hostgw: write the answer: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Answers one request; nothing is the answer of a verb without a result.
fn serve() -> Result<Option<Value>, Refused> {
    let (verb, version, network, json) = match Request::read(env, stdin)? {
        Request::About => {
            about();
            return Ok(None);
        }
        Request::Version => return Ok(Some(supported())),
        Request::Call {
            verb,
            version,
            network,
            config,
        } => (verb, version, network, config),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build();
    let refuse = |error: Error| Refused {
        version,
        error: error.into_cni(),
    };
    let runtime = runtime.map_err(|error| refuse(Error::Runtime(error)))?;
    let answer: Result<Option<Value>, Error> = runtime.block_on(async {
        match verb {
            Verb::Add(attached) => {
                let config = Config::read(network, &json, version, &attached.args)?;
                Ok(Some(add::add(&attached, &config).await?.to_json(version)?))
            }
            Verb::Del(attached) => del::del(&attached, &network, &json).await.map(|()| None),
            Verb::Check(attached) => {
                let config = Config::read(network, &json, version, &attached.args)?;
                check::check(&attached, &config, &json, version)
                    .await
                    .map(|()| None)
            }
            Verb::Status => status::status(network, &json, version).await.map(|()| None),
            Verb::Gc => Err(Error::Unsupported("CNI_COMMAND", "GC".to_owned())),
        }
    });
    answer.map_err(refuse)
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn stdin() -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text)?;
    Ok(text)
}

/// For the person who runs the plugin to see what it is.
fn about() {
    let versions: Vec<_> = Version::ALL.map(Version::as_str).into();
    eprintln!(
        "cni-hostgw {}: the CNI plugin of the host-gw pod network.",
        env!("CARGO_PKG_VERSION")
    );
    eprintln!("CNI protocol versions supported: {}", versions.join(", "));
}

fn supported() -> Value {
    json!({
        "cniVersion": Version::LATEST.as_str(),
        "supportedVersions": Version::ALL.map(Version::as_str),
    })
}

fn print(answer: &Value) -> io::Result<()> {
    // libcni's indentation, for the people who compare.
    let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut text = Vec::new();
    answer.serialize(&mut serde_json::Serializer::with_formatter(
        &mut text, format,
    ))?;
    text.push(b'\n');
    io::stdout().write_all(&text)
}
