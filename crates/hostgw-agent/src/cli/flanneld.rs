//! Reads command lines as flanneld does: one dash or two, Go's booleans and numbers, the last value of a
//! flag that is given several times, empty values, a variable for each flag, and flags that this agent
//! refuses.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, Args, CommandFactory};

use super::Cli;

/// Flags that may be given several times. Of all others, the last value counts.
const REPEATABLE: [&str; 3] = ["iface", "iface-regex", "non-masquerade-cidr"];

/// Flags for which an empty value has a meaning.
const EMPTY_ALLOWED: [&str; 3] = ["iface", "iface-regex", "etcd-prefix"];

/// The command line in the form that clap parses.
pub(crate) struct Arguments {
    pub(crate) all: Vec<OsString>,
    /// Flags whose values come from environment variables, each with its variable.
    pub(crate) variables: Vec<(String, String)>,
}

/// Converts the arguments to the form that clap parses. Flags with one dash get two, a value in an
/// argument of its own is joined to its flag, and each of flanneld's flags that is not given is
/// taken from its environment variable, unless that is empty.
pub(crate) fn arguments(
    given: impl IntoIterator<Item = OsString>,
    env: impl Fn(&str) -> Option<String>,
) -> Arguments {
    let command = Cli::command();
    let flags: Vec<_> = command
        .get_arguments()
        .filter(|arg| arg.get_long().is_some())
        .collect();
    let given: Vec<_> = given.into_iter().collect();
    // Other commands do not have these flags.
    let takes_flags = match given.get(1).and_then(|first| first.to_str()) {
        None | Some("run" | "release") => true,
        Some(first) => first.starts_with('-'),
    };
    if !takes_flags {
        let all = given
            .into_iter()
            .map(|argument| double_dash(argument, &flags));
        return Arguments {
            all: all.collect(),
            variables: Vec::new(),
        };
    }
    let (mut all, named) = joined(given, &flags);
    let mut variables = Vec::new();
    for flag in flags.iter().filter(|flag| !flag.is_hide_set()) {
        let name = flag.get_long().unwrap_or_default();
        if named.contains(name) {
            continue;
        }
        let variable = format!("FLANNELD_{}", name.to_uppercase().replace(['-', '.'], "_"));
        if let Some(value) = env(&variable).filter(|value| !value.is_empty()) {
            // Before the `--` that ends the flags.
            let end = all.iter().position(|argument| argument == "--");
            all.insert(end.unwrap_or(all.len()), format!("--{name}={value}").into());
            variables.push((name.to_owned(), variable));
        }
    }
    Arguments { all, variables }
}

/// Joins each flag and its value in one argument, and drops all values but the last of flags that
/// count once. Also returns the names of the flags that were given.
fn joined(given: Vec<OsString>, flags: &[&Arg]) -> (Vec<OsString>, HashSet<String>) {
    let mut all: Vec<(Option<String>, OsString)> = Vec::new();
    let mut named = HashSet::new();
    let mut arguments = given.into_iter();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            all.push((None, argument));
            all.extend(arguments.by_ref().map(|rest| (None, rest)));
            break;
        }
        if let Some((name, is_enabled)) = argument.to_str().and_then(help_or_version) {
            all.extend(is_enabled.then(|| (None, format!("--{name}").into())));
            continue;
        }
        let found = argument.to_str().and_then(|text| split(text, flags));
        let Some((flag, name, value)) = found else {
            all.push((None, argument));
            continue;
        };
        let value = match value {
            None if takes_value(flag) => arguments.next(),
            value => value,
        };
        named.insert(name.clone());
        if !REPEATABLE.contains(&name.as_str()) {
            all.retain(|(other, _)| other.as_ref() != Some(&name));
        }
        // An empty value counts as not given.
        let is_empty = value.as_deref() == Some(OsStr::new(""));
        if is_empty && takes_value(flag) && !EMPTY_ALLOWED.contains(&name.as_str()) {
            continue;
        }
        let mut whole = OsString::from(format!("--{name}"));
        if let Some(value) = value {
            whole.push("=");
            whole.push(value);
        }
        all.push((Some(name), whole));
    }
    // An empty value means the interface of the default route, as a last resort; if no other value
    // is given, it counts as not given.
    for name in ["iface", "iface-regex"] {
        let is_it = |argument: &(Option<String>, OsString)| argument.0.as_deref() == Some(name);
        let empty = OsString::from(format!("--{name}="));
        let mut given = all.iter().filter(|argument| is_it(argument));
        if given.all(|(_, whole)| *whole == empty) {
            all.retain(|argument| !is_it(argument));
        }
    }
    (
        all.into_iter().map(|(_, argument)| argument).collect(),
        named,
    )
}

/// Parses an argument into a known flag, its long name, and the value after the equals sign.
fn split<'a>(text: &str, flags: &[&'a Arg]) -> Option<(&'a Arg, String, Option<OsString>)> {
    let rest = text.strip_prefix("--").or_else(|| text.strip_prefix('-'))?;
    let (name, value) = match rest.split_once('=') {
        Some((name, value)) => (name, Some(value.into())),
        None => (rest, None),
    };
    let flag = flags.iter().find(|flag| flag.get_long() == Some(name))?;
    Some((flag, name.to_owned(), value))
}

/// Parses `help` or `version` in any of its forms, and whether it is on.
fn help_or_version(text: &str) -> Option<(&str, bool)> {
    let rest = text.strip_prefix("--").or_else(|| text.strip_prefix('-'))?;
    let (name, value) = rest.split_once('=').unwrap_or((rest, "true"));
    let is_it = matches!(name, "help" | "version");
    Some((name, parse_bool(value).ok()?)).filter(|_| is_it)
}

/// Returns true if a flag's value may be the next argument. As in Go, that of a boolean may not.
fn takes_value(flag: &Arg) -> bool {
    let has_value = matches!(flag.get_action(), ArgAction::Set | ArgAction::Append);
    has_value && !flag.is_require_equals_set()
}

/// Replaces `-flag` with `--flag`, because Go's programs accept both.
fn double_dash(argument: OsString, flags: &[&Arg]) -> OsString {
    let text = argument.to_str().and_then(|text| text.strip_prefix('-'));
    let name = text.map(|text| text.split('=').next().unwrap_or_default());
    match (text, name) {
        (Some(text), Some(name))
            if name.len() > 1 && flags.iter().any(|flag| flag.get_long() == Some(name)) =>
        {
            format!("--{text}").into()
        }
        _ => argument,
    }
}

/// Parses a boolean as Go does (`strconv.ParseBool`).
pub(super) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("is neither true nor false".to_owned()),
    }
}

/// Parses a number as Go does (`strconv.ParseInt` with base 0): `10`, `0x0a`, `0o12`, `012`,
/// `0b1010`, with underscores between digits.
pub(super) fn number(text: &str) -> Result<i64, String> {
    let failed = || "is not a whole number".to_owned();
    let (sign, digits) = match text.as_bytes() {
        [b'-', ..] => (-1, &text[1..]),
        [b'+', ..] => (1, &text[1..]),
        _ => (1, text),
    };
    let lower = digits.to_lowercase();
    let (base, rest) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    let is_underscored = rest.contains("__") || rest.ends_with('_') || lower.starts_with('_');
    let rest = rest.replace('_', "");
    let is_number = rest.chars().all(|c| c.is_digit(base));
    if is_underscored || !is_number {
        return Err(failed());
    }
    let number = i64::from_str_radix(&rest, base).map_err(|_| failed())?;
    Ok(sign * number)
}

/// Flags of flanneld that are not supported, so that each can be refused with a reason. Their
/// environment variables are ignored.
#[derive(Args, Debug)]
pub(super) struct UnsupportedFlags {
    #[arg(long, hide = true)]
    subnet_dir: Option<String>,
    #[arg(long, hide = true)]
    vmodule: Option<String>,
    #[arg(long = "log_backtrace_at", hide = true)]
    log_backtrace_at: Option<String>,
}

impl UnsupportedFlags {
    /// Fails if one of them was given.
    pub(super) fn check(&self) -> Result<(), String> {
        for (value, flag, reason) in [
            (
                &self.subnet_dir,
                "subnet-dir",
                "one agent serves one network, and a node has one agent",
            ),
            (&self.vmodule, "vmodule", "the log has no modules; use -v"),
            (
                &self.log_backtrace_at,
                "log_backtrace_at",
                "the log cannot print backtraces",
            ),
        ] {
            if value.is_some() {
                return Err(format!("--{flag}: {reason}"));
            }
        }
        Ok(())
    }
}
