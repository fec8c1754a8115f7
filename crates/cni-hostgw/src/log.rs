//! The log: one line for each request, where somebody asked for it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use cni::{Call, CniArgs};

/// How long each step of a request took.
#[derive(Debug)]
pub(crate) struct Steps {
    begin: Instant,
    last: Instant,
    done: Vec<(&'static str, Duration)>,
}

impl Steps {
    pub(crate) fn begin() -> Self {
        let now = Instant::now();
        Self {
            begin: now,
            last: now,
            done: Vec::new(),
        }
    }

    /// Notes that the step called `name` ends here.
    pub(crate) fn done(&mut self, name: &'static str) {
        let now = Instant::now();
        self.done.push((name, now - self.last));
        self.last = now;
    }
}

/// Appends the line of one request: when, what, of whom, how it went, and the microseconds of
/// each step. Keys and values as logfmt has them.
pub(crate) fn append(
    path: &Path,
    call: &Call,
    outcome: Result<(), &cni::Error>,
    steps: &Steps,
) -> io::Result<()> {
    let mut line = format!(
        "time={} verb={} network={}",
        humantime::format_rfc3339_micros(SystemTime::now()),
        call.verb.name(),
        call.network
    );
    let mut add = |key: &str, value: &str| {
        let is_plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '=';
        if !value.is_empty() && value.chars().all(is_plain) {
            write!(line, " {key}={value}")
        } else {
            write!(line, " {key}={value:?}")
        }
        .expect("a string takes all text");
    };
    if let Some(attached) = call.verb.attached() {
        add("container", attached.container_id.as_str());
        add("ifname", attached.ifname.as_str());
        if let Some(pod) = CniArgs::parse(&attached.args)
            .ok()
            .and_then(|args| args.pod)
        {
            add("pod", &pod);
        }
    }
    match outcome {
        Ok(()) => add("outcome", "ok"),
        Err(error) => {
            add("outcome", "failed");
            add("code", &error.code.0.to_string());
            add("msg", &error.msg);
            add("details", &error.details);
        }
    }
    add("us", &steps.begin.elapsed().as_micros().to_string());
    for (name, time) in &steps.done {
        add(name, &time.as_micros().to_string());
    }
    line.push('\n');
    // One write to a file that is appended to: lines of others do not get in between.
    let mut options = File::options();
    let mut file = options.append(true).create(true).mode(0o640).open(path)?;
    file.write_all(line.as_bytes())
}
