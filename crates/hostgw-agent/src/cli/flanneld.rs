//! flanneld's way with its command line: one dash or two, a variable for each flag, and flags that
//! mean nothing here.

use std::ffi::OsString;

use clap::{Args, CommandFactory};

use super::Cli;

/// The arguments as clap takes them: flags with one dash get two, and each of flanneld's flags
/// that is not given comes from its variable, if that is not empty.
pub(crate) fn arguments(
    given: impl IntoIterator<Item = OsString>,
    env: impl Fn(&str) -> Option<String>,
) -> Vec<OsString> {
    let command = Cli::command();
    let flags: Vec<_> = command
        .get_arguments()
        .filter_map(|arg| arg.get_long())
        .chain(["help", "version"])
        .map(str::to_owned)
        .collect();
    let mut arguments: Vec<OsString> = given
        .into_iter()
        .map(|argument| double_dash(argument, &flags))
        .collect();
    // Other commands than these have no such flags.
    let takes_flags = match arguments.get(1).and_then(|first| first.to_str()) {
        None | Some("run" | "release") => true,
        Some(first) => first.starts_with('-'),
    };
    let is_given = |flag: &str| {
        let begin = format!("--{flag}");
        let mut texts = arguments.iter().filter_map(|argument| argument.to_str());
        texts.any(|text| {
            // This one has a short form, too.
            let is_short = flag == "v" && text.starts_with("-v");
            is_short
                || text
                    .strip_prefix(&begin)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        })
    };
    let mut more = Vec::new();
    let variables = flags
        .iter()
        .filter(|flag| !matches!(flag.as_str(), "help" | "version"));
    for flag in variables.filter(|flag| takes_flags && !is_given(flag)) {
        let variable = format!("FLANNELD_{}", flag.to_uppercase().replace(['-', '.'], "_"));
        if let Some(value) = env(&variable).filter(|value| !value.is_empty()) {
            more.push(format!("--{flag}={value}").into());
        }
    }
    arguments.extend(more);
    arguments
}

/// Go's programs take `-flag` for `--flag`.
fn double_dash(argument: OsString, flags: &[String]) -> OsString {
    let text = argument.to_str().and_then(|text| text.strip_prefix('-'));
    let name = text.map(|text| text.split('=').next().unwrap_or_default());
    match (text, name) {
        (Some(text), Some(name)) if name.len() > 1 && flags.iter().any(|flag| flag == name) => {
            format!("--{text}").into()
        }
        _ => argument,
    }
}

/// flanneld's flags that mean nothing here, so that each can be refused with its reason.
#[derive(Args, Debug)]
pub(super) struct Refused {
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ip_blackhole_route: Option<String>,
    #[arg(long, hide = true)]
    subnet_dir: Option<String>,
    #[arg(long, hide = true)]
    vmodule: Option<String>,
    #[arg(long = "log_backtrace_at", hide = true)]
    log_backtrace_at: Option<String>,
}

impl Refused {
    /// Refuses what was given.
    pub(super) fn check(&self) -> Result<(), String> {
        let is_on = |flag: &Option<String>| flag.as_ref().is_some_and(|value| value != "false");
        for (is_given, flag, reason) in [
            (
                is_on(&self.ip_blackhole_route),
                "ip-blackhole-route",
                "a blackhole for the node's own subnet is what the agent takes away: it would win against the bridge",
            ),
            (
                is_some(self.subnet_dir.as_ref()),
                "subnet-dir",
                "one agent serves one network, and a node has one agent",
            ),
            (
                is_some(self.vmodule.as_ref()),
                "vmodule",
                "the log has no modules; use -v",
            ),
            (
                is_some(self.log_backtrace_at.as_ref()),
                "log_backtrace_at",
                "the log has no lines to stop at",
            ),
        ] {
            if is_given {
                return Err(format!("--{flag}: {reason}"));
            }
        }
        Ok(())
    }
}

fn is_some(flag: Option<&String>) -> bool {
    flag.is_some_and(|value| !value.is_empty())
}
