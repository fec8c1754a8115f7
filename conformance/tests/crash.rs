//! A fixed tenth of the crash test, and a minute of the long run: `make crash` and `make soak` do all.

use std::process::Command;

/// Runs one of this crate's programs, which prints what it found.
fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.expect("cargo built it");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}{stderr}");
}

#[test]
fn whatever_fails_and_whenever_it_is_killed_the_rules_hold() {
    run(env!("CARGO_BIN_EXE_crash"), &["--tenth"]);
}

#[test]
fn a_minute_of_everything_at_once_breaks_no_rule() {
    run(
        env!("CARGO_BIN_EXE_soak"),
        &["--minutes", "1", "--seed", "12"],
    );
}
