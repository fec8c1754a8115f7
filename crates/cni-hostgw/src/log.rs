//! The log file: one line for each request, if a log file is configured.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use cni::CniArgs;

/// Timer that measures the duration of each step of a request.
#[derive(Debug)]
pub(crate) struct StepTimer {
    begin: Instant,
    last: Instant,
    done: Vec<(&'static str, Duration)>,
}

impl StepTimer {
    pub(crate) fn begin() -> Self {
        let now = Instant::now();
        Self {
            begin: now,
            last: now,
            done: Vec::new(),
        }
    }

    /// Records that the step `name` ends now.
    pub(crate) fn done(&mut self, name: &'static str) {
        let now = Instant::now();
        self.done.push((name, now - self.last));
        self.last = now;
    }
}

/// The operation and the attachment of a request, for its log line.
#[derive(Debug, Default)]
pub(crate) struct LogSubject {
    /// `CNI_COMMAND`.
    pub(crate) verb: String,
    /// The network's name.
    pub(crate) network: Option<String>,
    /// `CNI_CONTAINERID`.
    pub(crate) container_id: Option<String>,
    /// `CNI_IFNAME`.
    pub(crate) ifname: Option<String>,
    /// `CNI_ARGS`.
    pub(crate) args: Option<String>,
}

/// Appends the log line of a request: time, operation, attachment, outcome, and the duration of the
/// request and of each step in microseconds. The line has the logfmt format.
pub(crate) fn append(
    path: &Path,
    subject: LogSubject,
    outcome: Result<(), &cni::Error>,
    steps: &StepTimer,
) -> io::Result<()> {
    let mut line = format!(
        "time={}",
        humantime::format_rfc3339_micros(SystemTime::now())
    );
    let mut add = |key: &str, value: &str| {
        let is_plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '=';
        if !value.is_empty() && value.chars().all(is_plain) {
            write!(line, " {key}={value}")
        } else {
            write!(line, " {key}={value:?}")
        }
        .expect("writing to a string cannot fail");
    };
    let args = subject.args.and_then(|args| CniArgs::parse(&args).ok());
    for (key, value) in [
        ("verb", Some(subject.verb)),
        ("network", subject.network),
        ("container", subject.container_id),
        ("ifname", subject.ifname),
        ("pod", args.and_then(|args| args.pod)),
    ] {
        if let Some(value) = value {
            add(key, &value);
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
    // Opening a pipe would block until it has a reader.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(io::Error::other("not a regular file"));
    }
    // The line is appended with a single write, so that lines of concurrent requests do not mix.
    let mut options = File::options();
    let mut file = options.append(true).create(true).mode(0o640).open(path)?;
    file.write_all(line.as_bytes())
}
