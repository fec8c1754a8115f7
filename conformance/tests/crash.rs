//! A fixed tenth of the crash test, and one minute of the long run. `make crash` and `make soak`
//! run all of it.

use std::process::Command;

/// Runs a program of this crate. On failure, the message includes its output.
fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.expect("cargo has built the program");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}{stderr}");
}

#[test]
fn a_failed_or_killed_system_call_breaks_no_rule() {
    run(env!("CARGO_BIN_EXE_crash"), &["--tenth"]);
}

#[test]
fn a_minute_of_random_concurrent_operations_breaks_no_rule() {
    run(
        env!("CARGO_BIN_EXE_soak"),
        &["--minutes", "1", "--seed", "12"],
    );
}
