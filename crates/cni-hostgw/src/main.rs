//! `cni-hostgw`: the CNI plugin of the host-gw pod network.
//!
//! A runtime starts it once for each request. It reads the request from its environment and
//! standard input, does it in one straight line, and answers on standard output.

mod add;
mod bridge;
mod check;
mod config;
mod del;
mod error;
mod gc;
mod ipam;
mod iptables;
mod log;
mod masquerade;
mod names;
mod programs;
mod routes;
mod scratch;
mod source;
mod status;

use std::io::{self, Read, Write};
use std::panic::PanicHookInfo;
use std::process::ExitCode;

use cni::{Call, Code, Refused, Request, Verb, Version};
use serde::Serialize;
use serde_json::{Value, json};

use crate::config::{Config, Patience};
use crate::error::Error;
use crate::log::{Steps, Subject};

const HELP: &str = "\
Runtimes (containerd, CRI-O, cnitool) start it with CNI_COMMAND and the other variables of the
CNI SPEC, and with the network configuration on standard input. A person may give

  --help       this text
  --version    its version and those of the protocol";

fn main() -> ExitCode {
    if let Some(argument) = std::env::args().nth(1) {
        return for_a_person(&argument);
    }
    std::panic::set_hook(Box::new(answer_a_panic));
    let Err(Refused { version, error }) = serve() else {
        return ExitCode::SUCCESS;
    };
    if let Err(error) = print(&error.to_json(version)) {
        say(format_args!("cni-hostgw: write the answer: {error}"));
    }
    ExitCode::FAILURE
}

/// A panic is the end, and has an answer like every other failure.
#[expect(clippy::exit, reason = "an abort would be one without an exit code")]
fn answer_a_panic(panic: &PanicHookInfo<'_>) {
    let error = cni::Error::new(Code::INTERNAL, "stopped by an internal error");
    let error = error.with_details(panic.to_string());
    if print(&error.to_json(Version::LATEST)).is_err() {
        say(format_args!("cni-hostgw: {panic}"));
    }
    std::process::exit(1);
}

/// Does what one request asks for, and answers it where that succeeds.
fn serve() -> Result<(), Refused> {
    let mut steps = Steps::begin();
    let request = Request::read(env, stdin);
    let mut log_file = config::log_file(None, env("CNI_HOSTGW_LOG"));
    let mut network = None;
    let answer = match request {
        Ok(Request::About) => {
            say(format_args!("{}", about()));
            return Ok(());
        }
        Ok(Request::Version) => {
            print(&supported()).map_err(|error| Refused::from(Error::Answer(error).into_cni()))
        }
        Ok(Request::Call(call)) => {
            steps.done("read");
            log_file = config::log_file(Some(&call.config), env("CNI_HOSTGW_LOG"));
            network = Some(call.network.to_string());
            answer(&call, &mut steps).map_err(|error| Refused {
                version: call.version,
                error: error.into_cni(),
            })
        }
        Err(refused) => Err(refused),
    };
    if let Some(path) = log_file {
        let verb = env("CNI_COMMAND").unwrap_or_default();
        let is_of_one = matches!(verb.as_str(), "ADD" | "DEL" | "CHECK");
        let variable = |name| env(name).filter(|value| is_of_one && !value.is_empty());
        let subject = Subject {
            verb,
            network,
            container_id: variable("CNI_CONTAINERID"),
            ifname: variable("CNI_IFNAME"),
            args: variable("CNI_ARGS"),
        };
        let outcome = answer.as_ref().map(drop).map_err(|refused| &refused.error);
        if let Err(error) = log::append(&path, subject, outcome, &steps) {
            say(format_args!(
                "cni-hostgw: write the log {}: {error}",
                path.display()
            ));
        }
    }
    answer
}

fn answer(call: &Call, steps: &mut Steps) -> Result<(), Error> {
    match &call.verb {
        Verb::Add(attached) => {
            let config = Config::read(call, &attached.args, Patience::AsConfigured)?;
            steps.done("config");
            let (result, made) = add::add(call, attached, &config, steps)?;
            // The runtime takes an ADD whose result it does not get for one that failed.
            match print(&result.to_json(call.version)) {
                Ok(()) => made.keep(),
                Err(error) => {
                    made.undo();
                    return Err(Error::Answer(error));
                }
            }
        }
        Verb::Del(attached) => del::del(call, attached, steps)?,
        Verb::Check(attached) => {
            let config = Config::read(call, &attached.args, Patience::None)?;
            steps.done("config");
            check::check(call, attached, &config, steps)?;
        }
        Verb::Status => status::status(call, steps)?,
        Verb::Gc => gc::gc(call, steps)?,
    }
    Ok(())
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn stdin() -> io::Result<Vec<u8>> {
    // More than most configurations have, so that it is read at once.
    let mut text = Vec::with_capacity(8192);
    io::stdin().read_to_end(&mut text)?;
    Ok(text)
}

/// For the person who runs the plugin to see what it is.
fn for_a_person(argument: &str) -> ExitCode {
    let text = match argument {
        "--help" | "-h" => format!("{}\n\n{HELP}\n", about()),
        "--version" | "-V" => format!("{}\n", about()),
        other => {
            say(format_args!(
                "cni-hostgw: unknown argument {other:?}; --help says what there is"
            ));
            return ExitCode::FAILURE;
        }
    };
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Says something on standard error, where anybody listens there.
fn say(text: std::fmt::Arguments<'_>) {
    drop(writeln!(io::stderr(), "{text}"));
}

fn about() -> String {
    let versions: Vec<_> = Version::ALL.map(Version::as_str).into();
    format!(
        "cni-hostgw {}: the CNI plugin of the host-gw pod network.\n\
         CNI protocol versions supported: {}",
        env!("CARGO_PKG_VERSION"),
        versions.join(", ")
    )
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
