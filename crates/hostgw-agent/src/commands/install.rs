//! `hostgw-agent install` and `uninstall`: the plugin in the runtime's folder of programs, and the CNI
//! configuration list in its folder of configurations. `run` keeps them there if asked to.

pub(crate) mod error;
mod flannel_list;
mod portmap;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kernel::Rtnl;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use subnet_env::SubnetEnv;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::check;
use crate::error::{Error as AgentError, Result};
use crate::files;
use crate::observe::is_running;

pub(crate) use error::Error;

/// The default list: flannel's own, with our plugin.
const LIST: &str = include_str!("../../../../examples/10-cni-hostgw.conflist");
const LIST_NAME: &str = "10-cni-hostgw.conflist";
/// Name of the plugin's executable.
const PLUGIN_NAME: &str = "cni-hostgw";
/// Name of the list that kube-flannel installs.
const FLANNEL_LIST_NAME: &str = "10-flannel.conflist";

/// Files to install, and their directories.
#[derive(Clone, Debug)]
pub(crate) struct Install {
    /// The CNI configuration list; ours by default.
    pub(crate) list: Option<PathBuf>,
    /// The plugin; by default, the one beside this program.
    pub(crate) plugin: Option<PathBuf>,
    pub(crate) conf_dir: PathBuf,
    pub(crate) bin_dir: PathBuf,
    /// Replace kube-flannel's list.
    pub(crate) takes_over_flannel: bool,
    /// The file that records what was installed.
    pub(crate) record: PathBuf,
}

/// Record of the installed files, for `uninstall`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    files: BTreeMap<PathBuf, InstalledFile>,
}

/// A file that we installed.
#[derive(Debug, Serialize, Deserialize)]
struct InstalledFile {
    /// Of our content: a file that was changed since is someone else's.
    sha256: String,
    /// A copy of the file that was there before.
    before: Option<PathBuf>,
}

impl Install {
    /// Installs the plugin, unless it is there. Returns the path if it wrote it. The file is
    /// replaced atomically, so that a running plugin is never half-written.
    pub(crate) fn install_plugin(&self) -> Result<Option<PathBuf>> {
        let from = match &self.plugin {
            Some(path) => path.clone(),
            None => std::env::current_exe()
                .map_err(Error::OwnPath)?
                .with_file_name(PLUGIN_NAME),
        };
        let content = fs::read(&from).map_err(|source| Error::Plugin { path: from, source })?;
        self.install_file(self.bin_dir.join(PLUGIN_NAME), &content, 0o755)
    }

    /// Installs the list, unless it is there. Returns the path if it wrote it. Must be called only
    /// once there is a subnet file: from then on, the runtime attaches pods.
    pub(crate) fn install_list(&self) -> Result<Option<PathBuf>> {
        let (path, text) = self.desired_list()?;
        let replaces_flannel = path
            .file_name()
            .is_some_and(|name| name == FLANNEL_LIST_NAME);
        let installed = self.install_file(path, text.as_bytes(), 0o644)?;
        if replaces_flannel {
            self.undo_unchanged(&self.conf_dir.join(LIST_NAME))?;
        }
        Ok(installed)
    }

    /// Moves host ports of running pods from the `portmap` plugin to ours, if kube-flannel's list was
    /// replaced and ours opens host ports.
    pub(crate) fn take_over_host_ports(&self, kernel: &Rtnl) -> Result<()> {
        if !self.takes_over_flannel {
            return Ok(());
        }
        let (_, list) = self.desired_list()?;
        let list = serde_json::from_str(&list).expect("it was checked");
        portmap::take_over(kernel, &list)
    }

    /// Undoes what was installed under an earlier setting, unless someone changed it since.
    fn undo_unchanged(&self, path: &Path) -> Result<()> {
        let mut record = Record::read(&self.record)?;
        let Some(file) = record.files.get(path) else {
            return Ok(());
        };
        let present = files::read(path)?;
        if file.was_changed(present.as_deref()) {
            return Ok(());
        }
        info!("{}", file.undo(path, present.is_some())?.trim_end());
        record.files.remove(path);
        record.write(&self.record)
    }

    /// The list, and its path.
    fn desired_list(&self) -> Result<(PathBuf, String), Error> {
        let given = match &self.list {
            Some(path) => Some((path, read_given_list(path)?)),
            None => None,
        };
        let flannel_path = self.conf_dir.join(FLANNEL_LIST_NAME);
        let invalid = |source| Error::FlannelList {
            path: flannel_path.clone(),
            source,
        };
        // An error does not mean that there is none: then there would be two lists.
        let exists = flannel_path
            .try_exists()
            .map_err(|error| invalid(error.to_string().into()))?;
        if !self.takes_over_flannel || !exists {
            let text = given.map_or_else(|| LIST.to_owned(), |(_, text)| text);
            return Ok((self.conf_dir.join(LIST_NAME), text));
        }
        let text = fs::read(&flannel_path).map_err(|error| invalid(error.to_string().into()))?;
        let list = check::parse_list(&text).map_err(invalid)?;
        let Some((path, text)) = given else {
            return Ok((flannel_path, flannel_list::with_our_plugin(list)));
        };
        // Pods' addresses are reserved in the name of the network.
        let given: Value = serde_json::from_str(&text).expect("it was checked");
        if given["name"] != list["name"] {
            return Err(Error::OtherNetwork {
                path: path.clone(),
                name: given["name"].clone(),
                flannel_path,
                flannel_name: list["name"].clone(),
            });
        }
        Ok((flannel_path, text))
    }

    /// The configuration that the runtime uses instead of ours, because its name sorts before.
    pub(crate) fn shadowing_config(&self) -> Option<PathBuf> {
        let entries = fs::read_dir(&self.conf_dir).ok()?;
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let is_configuration = |path: &PathBuf| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("conf" | "conflist" | "json"))
        };
        let first = paths.filter(is_configuration).min()?;
        let ours = self.desired_list().ok()?.0;
        (first < ours).then_some(first)
    }

    /// Writes a file, after it has recorded that.
    fn install_file(&self, path: PathBuf, content: &[u8], mode: u32) -> Result<Option<PathBuf>> {
        let present = files::read(&path)?;
        if present.as_deref() == Some(content) {
            return Ok(None);
        }
        let mut record = Record::read(&self.record)?;
        let before = match (record.files.get(&path), present) {
            // What we installed ourselves must not come back.
            (Some(file), _) => file.before.clone(),
            (None, None) => None,
            (None, Some(present)) => {
                let name = path.display().to_string().replace('/', "%");
                let copy = self.record.with_file_name("before").join(name);
                let mode = permissions(&path).unwrap_or(mode);
                files::replace(&copy, &present, mode)?;
                Some(copy)
            }
        };
        let sha256 = digest(content);
        let file = InstalledFile { sha256, before };
        record.files.insert(path.clone(), file);
        record.write(&self.record)?;
        files::replace(&path, content, mode)?;
        info!("installed {}", path.display());
        Ok(Some(path))
    }

    /// Installs the plugin, and then the list once there is a subnet file. Returns a line for each.
    pub(crate) async fn run(&self, subnet_file: &Path, wait: Duration) -> Result<String> {
        let mut installed: Vec<_> = self.install_plugin()?.into_iter().collect();
        let end = Instant::now() + wait;
        while let Err(error) = SubnetEnv::read(subnet_file) {
            if Instant::now() >= end {
                return Err(Error::NoSubnetFile(error).into());
            }
            sleep(Duration::from_millis(100)).await;
        }
        installed.extend(self.install_list()?);
        self.take_over_host_ports(&Rtnl::connect()?)?;
        if let Some(path) = self.shadowing_config() {
            warn!("{}", shadow_warning(&path));
        }
        let line = |path: &PathBuf| format!("installed {}\n", path.display());
        Ok(installed.iter().map(line).collect())
    }
}

fn read_given_list(path: &Path) -> Result<String, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::ReadList {
        path: path.to_owned(),
        source,
    })?;
    check::parse_list(text.as_bytes()).map_err(|source| Error::List {
        path: path.to_owned(),
        source,
    })?;
    Ok(text)
}

/// The warning about a configuration that the runtime uses instead of ours.
pub(crate) fn shadow_warning(path: &Path) -> String {
    format!(
        "{} sorts before our CNI configuration: the runtime uses it instead of ours; remove it",
        path.display()
    )
}

/// Undoes exactly what was installed. Returns a line for each file.
pub(crate) async fn uninstall(record_path: &Path, socket: &Path) -> Result<String> {
    if is_running(socket).await {
        return Err(AgentError::StopAgentFirst {
            socket: socket.to_owned(),
            consequence: "install everything again",
        });
    }
    let mut files: Vec<_> = Record::read(record_path)?.files.into_iter().collect();
    // The plugin last: it is needed for as long as a list names it.
    files.sort_by_key(|(path, _)| is_plugin(path));
    let mut left = Record::default();
    let mut lines = String::new();
    for (path, file) in files {
        let present = files::read(&path)?;
        let reason = if file.was_changed(present.as_deref()) {
            Some("someone changed it since")
        } else if is_plugin(&path) && !left.files.is_empty() {
            Some("the remaining network configuration list needs it")
        } else {
            None
        };
        if let Some(reason) = reason {
            lines += &file.describe_left(&path, reason);
            left.files.insert(path, file);
            continue;
        }
        let undone = file.undo(&path, present.is_some());
        lines += &undone.map_err(|error| incomplete(&lines, &error))?;
    }
    let cleaned = if left.files.is_empty() {
        remove_record(record_path)
    } else {
        left.write(record_path)
    };
    cleaned.map_err(|error| incomplete(&lines, &error))?;
    Ok(lines)
}

fn is_plugin(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == PLUGIN_NAME)
}

fn incomplete(done: &str, error: &AgentError) -> AgentError {
    AgentError::Incomplete {
        done: done.to_owned(),
        failed: error.text(),
    }
}

/// Removes the record, and the copies of earlier files.
fn remove_record(path: &Path) -> Result<()> {
    files::remove(path)?;
    let copies = path.with_file_name("before");
    match fs::remove_dir_all(&copies) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(files::Error::io("remove", &copies, error).into())
        }
        _ => Ok(()),
    }
}

impl InstalledFile {
    /// True if the file is not as we installed it. One that is gone was not changed.
    fn was_changed(&self, present: Option<&[u8]>) -> bool {
        present.is_some_and(|present| digest(present) != self.sha256)
    }

    /// Restores what was there before. Returns a line about it.
    fn undo(&self, path: &Path, exists: bool) -> Result<String> {
        let shown = path.display();
        if let Some(before) = &self.before {
            let read = || Ok((fs::read(before)?, permissions(before)?));
            let (content, mode) =
                read().map_err(|error| files::Error::io("read", before, error))?;
            files::replace(path, &content, mode)?;
            return Ok(format!("restored {shown}\n"));
        }
        if exists {
            files::remove(path)?;
            return Ok(format!("removed {shown}\n"));
        }
        Ok(String::new())
    }

    /// A line about a file that stays.
    fn describe_left(&self, path: &Path, reason: &str) -> String {
        let mut line = format!("left {}: {reason}", path.display());
        if let Some(before) = &self.before {
            write!(line, "; the file before it is {}", before.display())
                .expect("a String takes everything");
        }
        line + "\n"
    }
}

impl Record {
    fn read(path: &Path) -> Result<Self> {
        Ok(files::read_json(path)?.unwrap_or_default())
    }

    fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).expect("paths and texts");
        Ok(files::replace(path, &text, 0o644)?)
    }
}

/// The permission bits of a file.
fn permissions(path: &Path) -> io::Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o7777)
}

/// The SHA-256 in hexadecimal digits.
fn digest(content: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(content) {
        write!(text, "{byte:02x}").expect("a String takes everything");
    }
    text
}
