//! `hostgw-agent`: leases the node's subnet, routes every other node's subnet to that node, and
//! says in the node's subnet file which one is its own.

mod agent;
mod apply;
mod cache;
mod check;
mod cleanup;
mod cli;
mod diverted;
mod error;
mod files;
mod firewall;
mod install;
mod lease;
mod metrics;
mod net_conf;
mod node;
mod pace;
mod peers;
mod plan;
mod programs;
mod release;
mod repeats;
mod serve;
mod state;
mod status;
mod store;
mod uplink;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use crate::agent::{Agent, Settings};
use crate::cli::{Cli, Log, LogFormat, Serving, Task};

fn main() -> ExitCode {
    let env = |name: &str| std::env::var(name).ok();
    let arguments = cli::arguments(std::env::args_os(), env);
    let cli = Cli::read(&arguments).unwrap_or_else(|error| error.exit());
    log(&cli.log());
    let outcome = cli.task(env).and_then(|task| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.expect("the runtime needs nothing but a poll descriptor");
        runtime.block_on(perform(task))
    });
    match outcome {
        Ok(text) => {
            // Who does not read to the end has what he wants.
            drop(std::io::stdout().write_all(text.as_bytes()));
            ExitCode::SUCCESS
        }
        Err(reason) => {
            drop(writeln!(std::io::stderr(), "hostgw-agent: {reason}"));
            ExitCode::FAILURE
        }
    }
}

/// Does it, and gives what is to be printed.
async fn perform(task: Task) -> Result<String, String> {
    match task {
        Task::Run(settings, serving) => run(*settings, serving).await.map(|()| String::new()),
        Task::Status(asked) => status::show(&asked.socket, asked.json).await,
        Task::Check(files) => check::check(&files),
        Task::Release(settings, serving) => {
            Box::pin(release::release(*settings, &serving.socket)).await
        }
        Task::Install(install, subnet_file, wait) => install.run(&subnet_file, wait).await,
        Task::Uninstall(record, socket) => install::uninstall(&record, &socket).await,
        Task::Cleanup(cleanup) => cleanup.run().await,
    }
}

async fn run(settings: Settings, serving: Serving) -> Result<(), String> {
    let shared = agent::shared();
    serve::start(&shared, &serving.socket, serving.address).await?;
    let agent = Agent::new(settings, shared).map_err(|error| error::chain(&error))?;
    agent.run().await.map_err(|error| error::chain(&error))
}

/// The log goes to standard error: as text to a terminal, as JSON to what collects it.
fn log(how: &Log) {
    let is_terminal = std::io::stderr().is_terminal();
    let level = match how.verbosity {
        ..=0 => LevelFilter::INFO,
        1..=4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // Libraries tell of every frame, with passwords in it.
    let ours = Targets::new().with_target(env!("CARGO_CRATE_NAME"), level);
    let text = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(is_terminal)
        .with_target(false);
    let registry = tracing_subscriber::registry();
    match how.log_format {
        LogFormat::Auto if !is_terminal => registry
            .with(text.json().flatten_event(true).with_filter(ours))
            .init(),
        LogFormat::Json => registry
            .with(text.json().flatten_event(true).with_filter(ours))
            .init(),
        LogFormat::Auto | LogFormat::Text => registry.with(text.with_filter(ours)).init(),
    }
}
