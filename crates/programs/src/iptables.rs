//! The programs of `iptables`, for rules that netlink cannot reach.

use std::io;
use std::path::PathBuf;
use std::process::Command;

use crate::{Output, Stderr, find, run};

/// The directories with the programs, whatever the environment says. An agent in a container and a
/// plugin under a runtime may have no `PATH`.
const DIRECTORIES: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program is not installed.
    #[error("{0} is not installed in any of {DIRECTORIES}")]
    NotInstalled(String),
    /// The program could not be found or started.
    #[error("run {program}")]
    Run {
        /// The name of the program.
        program: String,
        /// Why it could not be run.
        source: io::Error,
    },
    /// The program failed.
    #[error("{command}: {status}: {stderr}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// How it exited.
        status: std::process::ExitStatus,
        /// Its own message, on one line.
        stderr: String,
    },
}

/// A program for one address family, such as `ip6tables` or `iptables-legacy`, with its companions
/// `<name>-save` and `<name>-restore`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Iptables {
    /// The name of the program.
    pub name: &'static str,
    /// How many seconds it waits for the xtables lock, which it shares with kube-proxy and others.
    pub lock_wait: u8,
}

impl Iptables {
    /// Returns true if the program is installed.
    pub fn is_installed(&self) -> Result<bool, Error> {
        Ok(path(self.name)?.is_some())
    }

    /// Checks that the program is installed.
    pub fn check_installed(&self) -> Result<(), Error> {
        installed(self.name).map(drop)
    }

    /// Returns true if `table` has a rule (`-C`). `rule` starts with its chain.
    pub fn has_rule(&self, table: &str, rule: &[&str]) -> Result<bool, Error> {
        let args = ["-w", &self.lock_wait.to_string(), "-t", table, "-C"];
        let args = [&args[..], rule].concat();
        let output = output(self.name, &args, "")?;
        match output.status.code() {
            Some(0) => Ok(true),
            // The rule, or the chain that it jumps to, does not exist. Any other exit code means
            // that the check failed.
            Some(1 | 2) => Ok(false),
            _ => succeeded(self.name, &args, &output).map(|_| false),
        }
    }

    /// Returns the policies, chains and rules of a table, as the program takes them (`-S`).
    pub fn rules(&self, table: &str) -> Result<String, Error> {
        let args = ["-w", &self.lock_wait.to_string(), "-t", table, "-S"];
        succeeded(self.name, &args, &output(self.name, &args, "")?)
    }

    /// Returns a table in the format of `<name>-save`.
    pub fn save(&self, table: &str) -> Result<String, Error> {
        let (program, args) = (format!("{}-save", self.name), ["-t", table]);
        succeeded(&program, &args, &output(&program, &args, "")?)
    }

    /// Changes a table in one transaction. `lines` are in the format of `<name>-restore`, and each
    /// ends with a newline. Everything else in the table stays.
    pub fn restore(&self, table: &str, lines: &str) -> Result<(), Error> {
        let program = format!("{}-restore", self.name);
        let args = ["-w", &self.lock_wait.to_string(), "--noflush"];
        let text = format!("*{table}\n{lines}COMMIT\n");
        succeeded(&program, &args, &output(&program, &args, &text)?).map(drop)
    }
}

fn path(program: &str) -> Result<Option<PathBuf>, Error> {
    find(program, DIRECTORIES).map_err(|source| Error::Run {
        program: program.to_owned(),
        source,
    })
}

fn installed(program: &str) -> Result<PathBuf, Error> {
    path(program)?.ok_or_else(|| Error::NotInstalled(program.to_owned()))
}

fn output(program: &str, args: &[&str], stdin: &str) -> Result<Output, Error> {
    let mut command = Command::new(installed(program)?);
    // Only what the programs know: the agent's environment may have credentials.
    let own =
        std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"XTABLES_"));
    command
        .args(args)
        .env_clear()
        .envs(own)
        .env("PATH", DIRECTORIES);
    run(&mut command, stdin.as_bytes(), Stderr::Captured).map_err(|source| Error::Run {
        program: program.to_owned(),
        source,
    })
}

fn succeeded(program: &str, args: &[&str], output: &Output) -> Result<String, Error> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(Error::Failed {
        command: format!("{program} {}", args.join(" ")),
        status: output.status,
        stderr: stderr.trim().replace('\n', "; "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_installed_is_named() {
        let program = Iptables {
            name: "iptables-of-nobody",
            lock_wait: 1,
        };
        assert!(!program.is_installed().expect("the directories can be read"));
        let error = program.rules("nat").expect_err("not installed");
        let expected = "iptables-of-nobody is not installed in any of /usr/sbin";
        assert!(error.to_string().starts_with(expected), "{error}");
    }

    #[test]
    fn a_failed_program_is_reported_with_its_arguments_status_and_message() {
        let output = output("ls", &["/none"], "").expect("ls is installed");
        let error = succeeded("ls", &["/none"], &output).expect_err("no such file");
        let text = error.to_string();
        assert!(text.starts_with("ls /none: exit status: 2: "), "{text}");
        assert!(text.contains("/none"), "{text}");
    }
}
