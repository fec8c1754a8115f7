//! `hostgw-agent`: leases the node's subnet, routes every other node's subnet to that node, and writes
//! the node's subnet file.

mod agent;
mod cli;
mod commands;
mod error;
mod fast_path;
mod files;
mod firewall;
mod network;
mod node;
mod observe;
mod routes;
mod store;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use crate::agent::{Agent, AgentConfig};
use crate::cli::{Cli, Listen, LogFormat, LogOptions, Task};
use crate::commands::{check, install, release, status};
use crate::error::Result;
use crate::observe::{SharedState, http};

fn main() -> ExitCode {
    let env = |name: &str| std::env::var(name).ok();
    let arguments = cli::arguments(std::env::args_os(), env);
    let cli = Cli::read(&arguments).unwrap_or_else(|error| error.exit());
    start_log(&cli.log());
    let result = cli.task(env).and_then(|task| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.expect("the runtime needs nothing but a poll descriptor");
        runtime.block_on(perform(task))
    });
    match result {
        Ok(text) => {
            // A reader that stops early, such as `head`, is no error.
            drop(std::io::stdout().write_all(text.as_bytes()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            drop(writeln!(
                std::io::stderr(),
                "hostgw-agent: {}",
                error.text()
            ));
            ExitCode::from(error.exit_code())
        }
    }
}

/// Performs a task. Returns the text to print.
async fn perform(task: Task) -> Result<String> {
    match task {
        Task::Run(config, listen) => run(*config, listen).await.map(|()| String::new()),
        Task::Status(options) => status::show(&options.socket, options.json).await,
        Task::Check(files) => check::check(&files),
        Task::Release(config, listen) => Box::pin(release::release(*config, &listen.socket)).await,
        Task::Install {
            install,
            subnet_file,
            wait,
        } => install.run(&subnet_file, wait).await,
        Task::Uninstall { record, socket } => install::uninstall(&record, &socket).await,
        Task::Cleanup(cleanup) => cleanup.run().await,
        Task::FlushFastPath => fast_path::flush_now(),
        Task::CheckFastPath => fast_path::check(),
    }
}

async fn run(config: AgentConfig, listen: Listen) -> Result<()> {
    let shared = SharedState::default();
    http::start(&shared, &listen.socket, listen.address).await?;
    Agent::new(config, Arc::clone(&shared))?.run().await
}

/// Logs to standard error: as text on a terminal, else as JSON.
fn start_log(options: &LogOptions) {
    let is_terminal = std::io::stderr().is_terminal();
    let level = match options.verbosity {
        ..=0 => LevelFilter::INFO,
        1..=4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // Libraries log every frame, with the passwords in it.
    let ours = Targets::new().with_target(env!("CARGO_CRATE_NAME"), level);
    let text = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(is_terminal)
        .with_target(false);
    let registry = tracing_subscriber::registry();
    match options.log_format {
        LogFormat::Auto if !is_terminal => registry
            .with(text.json().flatten_event(true).with_filter(ours))
            .init(),
        LogFormat::Json => registry
            .with(text.json().flatten_event(true).with_filter(ours))
            .init(),
        LogFormat::Auto | LogFormat::Text => registry.with(text.with_filter(ours)).init(),
    }
}
