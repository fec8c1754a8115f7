//! `subnet-env` writes and shows a node's subnet file on the command line.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use ipnetwork::IpNetwork;
use subnet_env::{DEFAULT_PATH, SubnetEnv};

/// Write or show a node's subnet file (flannel's subnet.env).
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the file. An existing file is replaced atomically.
    Write(WriteArgs),
    /// Validate the file and print it as the plugin reads it.
    Show {
        /// The file.
        #[arg(long, default_value = DEFAULT_PATH)]
        file: PathBuf,
    },
}

#[derive(Args)]
struct WriteArgs {
    /// Cluster network, such as 10.10.0.0/16. Repeat the option to give one for IPv4 and one for
    /// IPv6.
    #[arg(long, required = true, value_parser = network)]
    network: Vec<IpNetwork>,
    /// Subnet of the node, such as 10.10.1.0/24. Repeat the option to give one for IPv4 and one for
    /// IPv6.
    #[arg(long, required = true, value_parser = network)]
    subnet: Vec<IpNetwork>,
    /// MTU of the pods, in bytes.
    #[arg(long, default_value_t = 1500)]
    mtu: u32,
    /// Record that another program masquerades the traffic that leaves the network, so that the
    /// plugin does not.
    #[arg(long)]
    ip_masq: bool,
    /// The file.
    #[arg(long, default_value = DEFAULT_PATH)]
    file: PathBuf,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Write(args) => write(&args),
        Command::Show { file } => show(&file),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("subnet-env: {}", cni::causes(&*error));
            ExitCode::FAILURE
        }
    }
}

fn write(args: &WriteArgs) -> Result<(), Box<dyn Error>> {
    let env = SubnetEnv::new(&args.network, &args.subnet, args.mtu, args.ip_masq)?;
    Ok(env.write(&args.file)?)
}

fn show(file: &std::path::Path) -> Result<(), Box<dyn Error>> {
    let env = SubnetEnv::read(file)?;
    Ok(write!(std::io::stdout(), "{env}")?)
}

fn network(text: &str) -> Result<IpNetwork, String> {
    let network = subnet::parse(text).ok_or("not a network such as 10.10.0.0/16")?;
    if network.ip() != network.network() {
        return Err(format!(
            "has host bits set, the network address is {}",
            network.network()
        ));
    }
    Ok(network)
}
