//! Programs of others, for the rules that netlink does not reach.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Where they are, when nobody says so.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Whether a program is there.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let mut paths = PATH
        .split(':')
        .map(|folder| PathBuf::from(folder).join(program));
    paths.find(|path| path.is_file())
}

/// Runs a program with these arguments and this input, and gives what it prints. An error names
/// the program and has its own words.
pub(crate) fn run(program: &str, args: &[&str], input: &str) -> Result<String, String> {
    let path = find(program).ok_or_else(|| format!("there is no program {program} in {PATH}"))?;
    let failed = |error: io::Error| format!("run {program}: {error}");
    let mut child = Command::new(path)
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut stdin = child.stdin.take().expect("it is piped");
    // A program that ends without reading says why itself.
    drop(stdin.write_all(input.as_bytes()));
    drop(stdin);
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{program} {}: {}",
        args.join(" "),
        words.trim().replace('\n', "; ")
    ))
}
