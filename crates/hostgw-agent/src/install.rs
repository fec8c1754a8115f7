//! What a runtime finds of ours on a node: the plugin in its folder of programs, and the list of
//! plugins in its folder of configurations. Put there, kept there, and taken away again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use subnet_env::SubnetEnv;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::check;
use crate::error::chain;
use crate::files;
use crate::status::is_running;

/// The list where nobody gives one: flannel's own, with our plugin.
const LIST: &str = include_str!("../../../examples/10-cni-hostgw.conflist");
const LIST_NAME: &str = "10-cni-hostgw.conflist";
const PLUGIN_NAME: &str = "cni-hostgw";
/// The list that kube-flannel installs.
const FLANNELS_NAME: &str = "10-flannel.conflist";

/// What is to be installed, and where.
#[derive(Clone, Debug)]
pub(crate) struct Install {
    /// The list of plugins; else ours.
    pub(crate) list: Option<PathBuf>,
    /// The plugin; else the one beside this program.
    pub(crate) plugin: Option<PathBuf>,
    pub(crate) conf_dir: PathBuf,
    pub(crate) bin_dir: PathBuf,
    /// Whether kube-flannel's list makes way.
    pub(crate) takes_over_flannel: bool,
    /// Where it is written down what was done.
    pub(crate) record: PathBuf,
}

/// What was done, to be undone.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    files: BTreeMap<PathBuf, Put>,
}

/// A file that was put somewhere.
#[derive(Debug, Serialize, Deserialize)]
struct Put {
    /// What we put there: who changed it since then wants it so.
    sha256: String,
    /// Where what was there before is kept.
    before: Option<PathBuf>,
}

impl Install {
    /// Puts the plugin where the runtime starts it, unless it is there. By rename, so that one in
    /// use is never half-written. Gives the path where it did.
    pub(crate) fn put_plugin(&self) -> Result<Option<PathBuf>, String> {
        let from = match &self.plugin {
            Some(path) => path.clone(),
            None => std::env::current_exe()
                .map_err(|error| format!("find this program: {error}"))?
                .with_file_name(PLUGIN_NAME),
        };
        let content = fs::read(&from).map_err(|error| {
            format!(
                "the plugin to install: read {} (--cni-plugin): {error}",
                from.display()
            )
        })?;
        self.put(self.bin_dir.join(PLUGIN_NAME), &content, 0o755)
    }

    /// Puts the list where the runtime reads it, unless it is there. Only once there is a subnet
    /// file: from then on pods are attached. Gives the path where it did.
    pub(crate) fn put_list(&self) -> Result<Option<PathBuf>, String> {
        let (path, text) = self.wanted_list()?;
        let takes_place_of_flannels = path.file_name().is_some_and(|name| name == FLANNELS_NAME);
        let put = self.put(path, text.as_bytes(), 0o644)?;
        if takes_place_of_flannels {
            self.retire(&self.conf_dir.join(LIST_NAME))?;
        }
        Ok(put)
    }

    /// Undoes what was put there under an earlier setting, unless somebody changed it since.
    fn retire(&self, path: &Path) -> Result<(), String> {
        let mut record = Record::read(&self.record)?;
        let Some(put) = record.files.get(path) else {
            return Ok(());
        };
        let present = files::read(path)?;
        if present
            .as_ref()
            .is_some_and(|present| digest(present) != put.sha256)
        {
            return Ok(());
        }
        let failed = |error| format!("undo {}: {error}", path.display());
        info!(
            "{}",
            put.undo(path, present.is_some())
                .map_err(failed)?
                .trim_end()
        );
        record.files.remove(path);
        record.write(&self.record)
    }

    /// The list, and where it belongs.
    fn wanted_list(&self) -> Result<(PathBuf, String), String> {
        let given = match &self.list {
            Some(path) => {
                let said = |reason: String| format!("{} (--cni-conf): {reason}", path.display());
                let text = fs::read_to_string(path).map_err(|error| said(error.to_string()))?;
                check::list_of(&text).map_err(said)?;
                Some((path, text))
            }
            None => None,
        };
        let flannels = self.conf_dir.join(FLANNELS_NAME);
        let said = |reason: String| format!("{}: {reason}", flannels.display());
        // An error does not say that there is none: two lists would stand there.
        let is_there = flannels
            .try_exists()
            .map_err(|error| said(error.to_string()))?;
        if !self.takes_over_flannel || !is_there {
            let text = given.map_or_else(|| LIST.to_owned(), |(_, text)| text);
            return Ok((self.conf_dir.join(LIST_NAME), text));
        }
        let text = fs::read_to_string(&flannels).map_err(|error| said(error.to_string()))?;
        let theirs = check::list_of(&text).map_err(said)?;
        let Some((path, text)) = given else {
            return Ok((flannels, with_our_plugin(theirs)));
        };
        // Addresses are held in its name.
        let ours: Value = serde_json::from_str(&text).expect("it was checked");
        if ours["name"] != theirs["name"] {
            return Err(format!(
                "{} (--cni-conf): name is {}, but pods of this node were attached to {} of {}",
                path.display(),
                ours["name"],
                theirs["name"],
                flannels.display()
            ));
        }
        Ok((flannels, text))
    }

    /// The configuration that the runtime takes instead of ours, because its name sorts before.
    pub(crate) fn rival(&self) -> Option<PathBuf> {
        let names = fs::read_dir(&self.conf_dir).ok()?;
        let paths = names.filter_map(|entry| Some(entry.ok()?.path()));
        let is_configuration = |path: &PathBuf| {
            let end = path.extension().and_then(|end| end.to_str());
            matches!(end, Some("conf" | "conflist" | "json"))
        };
        let first = paths.filter(is_configuration).min()?;
        let ours = self.wanted_list().ok()?.0;
        (first < ours).then_some(first)
    }

    /// Puts a file there, and writes down that it was us.
    fn put(&self, path: PathBuf, content: &[u8], mode: u32) -> Result<Option<PathBuf>, String> {
        let present = files::read(&path)?;
        if present.as_deref() == Some(content) {
            return Ok(None);
        }
        let write = |path: &Path, content: &[u8], mode| {
            let written = files::replace(path, content, mode);
            written.map_err(|error| format!("write {}: {error}", path.display()))
        };
        let mut record = Record::read(&self.record)?;
        let before = match (record.files.get(&path), present) {
            // What we put there ourselves is not to come back.
            (Some(put), _) => put.before.clone(),
            (None, None) => None,
            (None, Some(present)) => {
                let name = path.display().to_string().replace('/', "%");
                let keep = self.record.with_file_name("before").join(name);
                write(&keep, &present, mode_of(&path).unwrap_or(mode))?;
                Some(keep)
            }
        };
        let sha256 = digest(content);
        record.files.insert(path.clone(), Put { sha256, before });
        record.write(&self.record)?;
        write(&path, content, mode)?;
        info!("installed {}", path.display());
        Ok(Some(path))
    }

    /// Installs both, the list once there is a subnet file. Says what it did.
    pub(crate) async fn run(&self, subnet_file: &Path, wait: Duration) -> Result<String, String> {
        let mut done: Vec<_> = self.put_plugin()?.into_iter().collect();
        let end = Instant::now() + wait;
        while let Err(error) = SubnetEnv::read(subnet_file) {
            if Instant::now() >= end {
                return Err(format!(
                    "{}; the list of plugins is not installed before there is one: is the agent running?",
                    chain(&error)
                ));
            }
            sleep(Duration::from_millis(100)).await;
        }
        done.extend(self.put_list()?);
        if let Some(rival) = self.rival() {
            warn!("{}", beats(&rival));
        }
        let line = |path: &PathBuf| format!("installed {}\n", path.display());
        Ok(done.iter().map(line).collect())
    }
}

/// What there is to say about a rival.
pub(crate) fn beats(rival: &Path) -> String {
    format!(
        "{} sorts before ours: the runtime takes it instead; remove it",
        rival.display()
    )
}

/// Undoes exactly what was installed. Says what it did.
pub(crate) async fn uninstall(record: &Path, socket: &Path) -> Result<String, String> {
    if is_running(socket).await {
        return Err(format!(
            "an agent runs here (it answers at {}), and may put everything back; stop it first",
            socket.display()
        ));
    }
    let mut files: Vec<_> = Record::read(record)?.files.into_iter().collect();
    // The plugin last: it is of use for as long as a list names it.
    files.sort_by_key(|(path, _)| path.file_name().is_some_and(|name| name == PLUGIN_NAME));
    let mut left = Record::default();
    let mut said = String::new();
    for (path, put) in files {
        let shown = path.display().to_string();
        let is_plugin = path.file_name().is_some_and(|name| name == PLUGIN_NAME);
        let present = files::read(&path)?;
        let is_changed = present
            .as_ref()
            .is_some_and(|present| digest(present) != put.sha256);
        if is_changed || is_plugin && !left.files.is_empty() {
            let why = if is_changed {
                "somebody changed it since"
            } else {
                "the list that was left needs it"
            };
            said.extend(["left ", &shown, ": ", why]);
            if let Some(before) = &put.before {
                said.extend(["; as it was before, it is ", &before.display().to_string()]);
            }
            said.push('\n');
            left.files.insert(path, put);
            continue;
        }
        let undone = put.undo(&path, present.is_some());
        said += &undone.map_err(|error| format!("{said}undo {shown}: {error}"))?;
    }
    if !left.files.is_empty() {
        let written = left.write(record);
        written.map_err(|error| format!("{said}{error}"))?;
        return Ok(said);
    }
    for path in [record.to_owned(), record.with_file_name("before")] {
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("{said}remove {}: {error}", path.display()));
            }
            _ => {}
        }
    }
    Ok(said)
}

impl Put {
    /// Makes it as it was before. Says what that was.
    fn undo(&self, path: &Path, is_there: bool) -> std::io::Result<String> {
        let shown = path.display();
        if let Some(before) = &self.before {
            files::replace(path, &fs::read(before)?, mode_of(before)?)?;
            return Ok(format!("put back {shown} as it was\n"));
        }
        if is_there {
            fs::remove_file(path)?;
            return Ok(format!("removed {shown}\n"));
        }
        Ok(String::new())
    }
}

impl Record {
    fn read(path: &Path) -> Result<Self, String> {
        let Some(text) = files::read(path)? else {
            return Ok(Self::default());
        };
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn write(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_vec_pretty(self).expect("paths and texts");
        let written = files::replace(path, &text, 0o644);
        written.map_err(|error| format!("write {}: {error}", path.display()))
    }
}

/// A list of flannel's, with our plugin in the place of theirs.
fn with_our_plugin(mut list: Value) -> String {
    let plugins = list["plugins"].as_array_mut().into_iter().flatten();
    for plugin in plugins.filter(|plugin| plugin["type"] == "flannel") {
        plugin["type"] = PLUGIN_NAME.into();
    }
    format!("{list:#}\n")
}

/// Who may do what with a file.
fn mode_of(path: &Path) -> std::io::Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o7777)
}

fn digest(content: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for byte in Sha256::digest(content) {
        write!(text, "{byte:02x}").expect("a text takes everything");
    }
    text
}
