//! `hostgw-agent`: routes every other node's subnet to that node, and says in the node's
//! subnet file which one is its own.

mod agent;
mod lease;
mod net_conf;
mod node;
mod plan;
mod store;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::agent::Agent;

/// The node route agent of the host-gw pod network.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the node's subnet file and keep the routes to all other nodes until stopped.
    /// What was set up stays when the agent stops.
    Run(RunArgs),
}

#[derive(Args)]
struct RunArgs {
    /// The cluster: its network and its nodes. Watched; an edit takes effect at once.
    #[arg(long, value_name = "FILE", default_value = "/etc/hostgw/cluster.json")]
    cluster: PathBuf,
    /// This node's name in the cluster. Without it, the node is the one whose public address
    /// the interface has.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// The interface to the other nodes, by name or by address. Without it, the one with a
    /// node's public address, the default route's first; with --node-name, the default route's
    /// if none has it.
    #[arg(long, value_name = "NAME|ADDRESS")]
    iface: Option<String>,
    /// The node's subnet file, for the CNI plugin to read.
    #[arg(long, value_name = "FILE", default_value = subnet_env::DEFAULT_PATH)]
    subnet_file: PathBuf,
}

fn main() -> ExitCode {
    let Command::Run(args) = Cli::parse().command;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("the runtime needs nothing but a poll descriptor");
    let outcome = runtime.block_on(async {
        Agent::new(args.cluster, args.node_name, args.iface, args.subnet_file)?
            .run()
            .await
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", agent::chain(&error));
            ExitCode::FAILURE
        }
    }
}
