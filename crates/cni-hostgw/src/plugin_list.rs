//! The plugin list that our request belongs to.
//!
//! A plugin gets only its own entry of the list. Whether another plugin does the same work is in the
//! list's file.

use std::fs;
use std::io;
use std::path::Path;

use cni::{Call, Json};
use serde_json::Value;
use util::none_if_not_found;

use crate::error::Error;

/// Where runtimes read plugin lists by default.
const DIRECTORY: &str = "/etc/cni/net.d";

/// A capability that another plugin handles, too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared {
    capability: &'static str,
    plugin: &'static str,
}

/// Host ports.
pub(crate) const PORT_MAPPINGS: Shared = Shared {
    capability: "portMappings",
    plugin: "portmap",
};

/// Limits of the traffic.
pub(crate) const BANDWIDTH: Shared = Shared {
    capability: "bandwidth",
    plugin: "bandwidth",
};

/// Fails if the list of this network also has the other plugin, with the capability that our entry
/// declares. Nothing is refused if no list in the default directory has the network's name.
pub(crate) fn refuse_second_plugin(call: &Call, shared: Shared) -> Result<(), Error> {
    let found = lists_with(shared.plugin, Path::new(DIRECTORY));
    // A list that cannot be read is none that a runtime uses.
    for (path, list) in found.unwrap_or_default() {
        let is_of_network = list.get("name").and_then(Value::as_str) == Some(call.network.as_str());
        if is_of_network && has_both(&list, shared) {
            return Err(Error::HandledTwice {
                list: path,
                plugin: shared.plugin,
                capability: shared.capability,
            });
        }
    }
    Ok(())
}

/// True if both the other plugin and another entry declare the capability.
fn has_both(list: &Json, shared: Shared) -> bool {
    let plugins = list.get("plugins").and_then(Value::as_array);
    let plugins = plugins.into_iter().flatten();
    let declares = |plugin: &&Value| {
        let capabilities = plugin.get("capabilities");
        capabilities.and_then(|all| all.get(shared.capability)) == Some(&Value::Bool(true))
    };
    let is_other =
        |plugin: &&Value| plugin.get("type").and_then(Value::as_str) == Some(shared.plugin);
    let (theirs, ours): (Vec<_>, Vec<_>) = plugins.filter(declares).partition(is_other);
    !theirs.is_empty() && !ours.is_empty()
}

/// The files that name a plugin, with their contents.
fn lists_with(plugin: &str, directory: &Path) -> io::Result<Vec<(String, Json)>> {
    let mut lists = Vec::new();
    let Some(entries) = none_if_not_found(fs::read_dir(directory))? else {
        return Ok(lists);
    };
    for entry in entries {
        let path = entry?.path();
        if path
            .extension()
            .is_none_or(|extension| extension != "conflist")
        {
            continue;
        }
        let text = fs::read(&path)?;
        if !text
            .windows(plugin.len())
            .any(|part| part == plugin.as_bytes())
        {
            continue;
        }
        if let Ok(list) = Json::parse(&text) {
            lists.push((path.display().to_string(), list));
        }
    }
    Ok(lists)
}
