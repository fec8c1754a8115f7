//! `cni-hostgw`: the CNI plugin of the host-gw pod network.
//!
//! A runtime starts it once for each request. It reads the request from its environment and its standard
//! input, performs it, and answers on standard output.

mod add;
mod bandwidth;
mod bridge;
mod bridge_lock;
mod check;
mod config;
mod config_input;
mod del;
mod error;
mod gc;
mod ipam;
mod log;
mod masquerade;
mod names;
mod plugin_list;
mod port_mappings;
mod routes;
mod scratch;
mod state;
mod status;
mod transaction;

use std::io::{self, Read, Write};
use std::panic::PanicHookInfo;
use std::process::ExitCode;

use cni::{Call, Code, Refused, Request, Verb, Version};
use netconf::LenientConf;
use serde::Serialize;
use serde_json::{Value, json};

use crate::config::{Config, NoSubnetFile};
use crate::error::Error;
use crate::log::{LogSubject, StepTimer};

const HELP: &str = "\
Runtimes (containerd, CRI-O, cnitool) run it with CNI_COMMAND and the other variables of the
CNI SPEC, and with the network configuration on standard input. Options for manual use:

  --help       print this text
  --version    print the versions of the plugin and of the CNI protocol";

fn main() -> ExitCode {
    if let Some(argument) = std::env::args().nth(1) {
        return help(&argument);
    }
    std::panic::set_hook(Box::new(report_panic));
    let Err(Refused { version, error }) = serve() else {
        return ExitCode::SUCCESS;
    };
    if let Err(error) = print(&error.to_json(version)) {
        print_error(format_args!(
            "cni-hostgw: failed to write the answer: {error}"
        ));
    }
    ExitCode::FAILURE
}

/// Answers a panic like every other failure, and exits.
#[expect(
    clippy::exit,
    reason = "after an abort, the runtime would get no exit code"
)]
fn report_panic(panic: &PanicHookInfo<'_>) {
    let error = cni::Error::new(Code::INTERNAL, "stopped by an internal error");
    let error = error.with_details(panic.to_string());
    if print(&error.to_json(Version::LATEST)).is_err() {
        print_error(format_args!("cni-hostgw: {panic}"));
    }
    std::process::exit(1);
}

/// Performs one request, and answers it on success.
fn serve() -> Result<(), Refused> {
    let mut steps = StepTimer::begin();
    let request = Request::read(env, stdin);
    let mut log_file = config::log_file(None, env("CNI_HOSTGW_LOG"));
    let mut network = None;
    let answer = match request {
        Ok(Request::About) => {
            print_error(format_args!("{}", about()));
            return Ok(());
        }
        Ok(Request::Version) => {
            print(&supported()).map_err(|error| Refused::from(Error::Answer(error).into_cni()))
        }
        Ok(Request::Call(call)) => {
            steps.done("read");
            log_file = config::log_file(
                Some(&LenientConf::from_json(&call.config)),
                env("CNI_HOSTGW_LOG"),
            );
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
        let has_attachment = matches!(verb.as_str(), "ADD" | "DEL" | "CHECK");
        let variable = |name| env(name).filter(|value| has_attachment && !value.is_empty());
        let subject = LogSubject {
            verb,
            network,
            container_id: variable("CNI_CONTAINERID"),
            ifname: variable("CNI_IFNAME"),
            args: variable("CNI_ARGS"),
        };
        let outcome = answer.as_ref().map(drop).map_err(|refused| &refused.error);
        if let Err(error) = log::append(&path, subject, outcome, &steps) {
            print_error(format_args!(
                "cni-hostgw: failed to write the log {}: {error}",
                path.display()
            ));
        }
    }
    answer
}

fn answer(call: &Call, steps: &mut StepTimer) -> Result<(), Error> {
    match &call.verb {
        Verb::Add(parameters) => {
            let config = Config::read(call, &parameters.args, NoSubnetFile::Wait)?;
            steps.done("config");
            let (result, transaction) = add::add(call, parameters, &config, steps)?;
            // If the result cannot be written, the runtime treats the ADD as failed.
            match print(&result.to_json(call.version)) {
                Ok(()) => transaction.keep(),
                Err(error) => {
                    transaction.undo();
                    return Err(Error::Answer(error));
                }
            }
        }
        Verb::Del(parameters) => del::del(call, parameters, steps)?,
        Verb::Check(parameters) => {
            let config = Config::read(call, &parameters.args, NoSubnetFile::UseResult)?;
            steps.done("config");
            check::check(call, parameters, &config, steps)?;
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
    // More than most configurations have, so that one read is enough.
    let mut text = Vec::with_capacity(8192);
    io::stdin().read_to_end(&mut text)?;
    Ok(text)
}

/// Answers a person who runs the plugin with an argument.
fn help(argument: &str) -> ExitCode {
    let text = match argument {
        "--help" | "-h" => format!("{}\n\n{HELP}\n", about()),
        "--version" | "-V" => format!("{}\n", about()),
        other => {
            print_error(format_args!(
                "cni-hostgw: unknown argument {other:?}; see --help"
            ));
            return ExitCode::FAILURE;
        }
    };
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Writes a line to standard error, if it is open.
fn print_error(text: std::fmt::Arguments<'_>) {
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
    // Indented as libcni does it.
    let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut text = Vec::new();
    answer.serialize(&mut serde_json::Serializer::with_formatter(
        &mut text, format,
    ))?;
    text.push(b'\n');
    io::stdout().write_all(&text)
}
