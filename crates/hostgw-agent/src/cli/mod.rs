//! The command line: our own commands, and flanneld's flags and variables unchanged.

mod flanneld;
mod parse;
mod run;
mod stores;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use flanneld::{Arguments, arguments};

use crate::agent::AgentConfig;
use crate::commands::cleanup::Cleanup;
use crate::commands::install::Install;
use crate::error::{Error, Result};
use run::{Files, InstallFlags, RECORD, Run, SOCKET};

/// The node route agent of the host-gw pod network.
///
/// Without a command it runs, so that flanneld's command lines work unchanged. Flags may be written
/// with one dash. The variable `FLANNELD_<FLAG>` sets a flag that is not given.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
    #[command(flatten)]
    log: LogOptions,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the node's subnet file, and keep routes and firewall as they should be until stopped.
    /// Everything stays when the agent stops.
    Run(Box<Run>),
    /// Show what the agent of this node does: its lease, its interface, and every other node.
    Status(StatusOptions),
    /// Check cluster files, net-conf.json files and CNI configurations.
    Check {
        /// The files. Their keys show what they are.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Release this node's lease in etcd, after the node was drained for good.
    Release(Box<Run>),
    /// Install the CNI plugin where container runtimes start it, and, once this node has a subnet,
    /// the CNI configuration list where they read it.
    Install(InstallCommand),
    /// Undo exactly what `install` did, or `run` with --cni-conf.
    Uninstall {
        /// The file that records what was installed.
        #[arg(long, value_name = "FILE", default_value = RECORD)]
        install_record: PathBuf,
        /// The socket on which an agent would answer.
        #[arg(long, value_name = "FILE", default_value = SOCKET)]
        socket: PathBuf,
    },
    /// Remove what the agent set up: routes, firewall rules, subnet file, saved state.
    Cleanup(CleanupFlags),
    /// Commands about the fast path for established flows (--fast-path).
    #[command(subcommand)]
    FastPath(FastPathCommand),
}

#[derive(Debug, Subcommand)]
enum FastPathCommand {
    /// Make every flow pass all firewall rules again, after a change of rules that the agent cannot see, such as those
    /// of iptables-legacy and sets of ipset. No packet is lost.
    Flush,
    /// Check in network namespaces of its own whether packets on this kernel's fast path arrive.
    Check,
}

#[derive(Args, Debug)]
struct InstallCommand {
    #[command(flatten)]
    install: InstallFlags,
    /// The node's subnet file. The list is installed only when it exists.
    #[arg(long, value_name = "FILE", default_value = subnet_env::DEFAULT_PATH)]
    subnet_file: PathBuf,
    /// How long to wait for the subnet file.
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// How the log is written to standard error.
#[derive(Args, Clone, Debug)]
pub(crate) struct LogOptions {
    /// Text for people, or JSON for programs. `auto` is text on a terminal, and JSON otherwise.
    #[arg(
        long,
        value_enum,
        value_name = "FORM",
        default_value = "auto",
        global = true
    )]
    pub(crate) log_format: LogFormat,
    /// How much is logged: from 1 on, every renewal and every route.
    #[arg(
        short,
        long = "v",
        value_name = "LEVEL",
        default_value = "0",
        value_parser = clap::value_parser!(i32),
        allow_negative_numbers = true,
        global = true
    )]
    pub(crate) verbosity: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Auto,
    Text,
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct StatusOptions {
    /// Print JSON, for programs.
    #[arg(long)]
    pub(crate) json: bool,
    /// The socket on which the agent answers.
    #[arg(long, value_name = "FILE", default_value = SOCKET)]
    pub(crate) socket: PathBuf,
}

#[derive(Args, Debug)]
struct CleanupFlags {
    /// Also remove flannel's tables, chains and routes.
    #[arg(long)]
    flannel: bool,
    /// Leave routes and subnet file to flanneld, which already runs: no packet is lost.
    #[arg(long, conflicts_with = "flannel")]
    hand_over: bool,
    /// Only list what would be removed.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    files: Files,
}

/// The task of this process, with validated settings.
pub(crate) enum Task {
    Run(Box<AgentConfig>, Listen),
    Status(StatusOptions),
    Check(Vec<PathBuf>),
    Release(Box<AgentConfig>, Listen),
    Install {
        install: Box<Install>,
        subnet_file: PathBuf,
        wait: Duration,
    },
    Uninstall {
        record: PathBuf,
        socket: PathBuf,
    },
    Cleanup(Cleanup),
    FlushFastPath,
    CheckFastPath,
}

/// Where the agent serves its state.
pub(crate) struct Listen {
    pub(crate) socket: PathBuf,
    pub(crate) address: Option<SocketAddr>,
}

impl Cli {
    /// Reads a command line. The error is for people, and names the variable if the value came from
    /// one.
    pub(crate) fn read(arguments: &Arguments) -> Result<Self, clap::Error> {
        Self::try_parse_from(&arguments.all).map_err(|error| {
            if !error.use_stderr() {
                // This is help or the version.
                return error;
            }
            let text = error.to_string();
            let mut variables = arguments.variables.iter();
            let names_flag = |flag: &str| {
                let rest = text.split_once(&format!("--{flag}")).map(|(_, rest)| rest);
                let is_part = |c: char| c.is_alphanumeric() || c == '-';
                rest.is_some_and(|rest| !rest.starts_with(is_part))
            };
            match variables.find(|(flag, _)| names_flag(flag)) {
                Some((flag, variable)) => {
                    let text = text.trim_start_matches("error: ");
                    let text =
                        format!("{text}(--{flag} is set by the environment variable {variable})\n");
                    clap::Error::raw(error.kind(), text)
                }
                None => error,
            }
        })
    }

    /// Checks the flags. Errors name the flag. `env` reads a variable.
    pub(crate) fn task(self, env: impl Fn(&str) -> Option<String>) -> Result<Task> {
        let command = self.command.unwrap_or(Command::Run(Box::new(self.run)));
        Ok(match command {
            Command::Run(run) => {
                let (config, listen) = run.check(&env).map_err(Error::Usage)?;
                Task::Run(config, listen)
            }
            Command::Release(run) => {
                let (config, listen) = run.check(&env).map_err(Error::Usage)?;
                Task::Release(config, listen)
            }
            Command::Status(options) => Task::Status(options),
            Command::Check { files } => Task::Check(files),
            Command::Install(command) => Task::Install {
                install: Box::new(command.install.into()),
                subnet_file: command.subnet_file,
                wait: command.wait,
            },
            Command::Uninstall {
                install_record: record,
                socket,
            } => Task::Uninstall { record, socket },
            Command::FastPath(FastPathCommand::Flush) => Task::FlushFastPath,
            Command::FastPath(FastPathCommand::Check) => Task::CheckFastPath,
            Command::Cleanup(flags) => Task::Cleanup(Cleanup {
                flannel: flags.flannel,
                hands_over: flags.hand_over,
                dry_run: flags.dry_run,
                subnet_file: flags.files.subnet_file,
                state_file: flags.files.state_file,
                socket: flags.files.socket,
            }),
        })
    }

    pub(crate) fn log(&self) -> LogOptions {
        self.log.clone()
    }
}
