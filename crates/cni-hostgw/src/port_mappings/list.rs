//! The plugin list that our request belongs to.
//!
//! A plugin gets only its own entry of the list. Whether `portmap` follows, too, is in the list's
//! file.

use std::fs;
use std::io;
use std::path::Path;

use cni::{Call, Json};
use serde_json::Value;
use util::none_if_not_found;

use crate::error::Error;

/// Where runtimes read plugin lists by default.
const DIRECTORY: &str = "/etc/cni/net.d";

/// The plugin whose work we do.
const PORTMAP: &str = "portmap";

/// Fails if the list of this network also has `portmap` with the capability that our entry declares.
/// Nothing is refused if no list in the default directory has the network's name.
pub(super) fn refuse_second_plugin(call: &Call) -> Result<(), Error> {
    let found = lists_with_portmap(Path::new(DIRECTORY));
    // A list that cannot be read is none that a runtime uses.
    for (path, list) in found.unwrap_or_default() {
        let is_of_network = list.get("name").and_then(Value::as_str) == Some(call.network.as_str());
        if is_of_network && maps_twice(&list) {
            return Err(Error::MappedTwice {
                list: path,
                plugin: PORTMAP.to_owned(),
            });
        }
    }
    Ok(())
}

/// True if both `portmap` and another entry declare the capability.
fn maps_twice(list: &Json) -> bool {
    let plugins = list.get("plugins").and_then(Value::as_array);
    let plugins = plugins.into_iter().flatten();
    let declares = |plugin: &&Value| {
        let capabilities = plugin.get("capabilities");
        capabilities.and_then(|all| all.get("portMappings")) == Some(&Value::Bool(true))
    };
    let (portmap, others): (Vec<_>, Vec<_>) = plugins
        .filter(declares)
        .partition(|plugin| plugin.get("type").and_then(Value::as_str) == Some(PORTMAP));
    !portmap.is_empty() && !others.is_empty()
}

/// The files that name `portmap`, with their contents.
fn lists_with_portmap(directory: &Path) -> io::Result<Vec<(String, Json)>> {
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
            .windows(PORTMAP.len())
            .any(|part| part == PORTMAP.as_bytes())
        {
            continue;
        }
        if let Ok(list) = Json::parse(&text) {
            lists.push((path.display().to_string(), list));
        }
    }
    Ok(lists)
}
