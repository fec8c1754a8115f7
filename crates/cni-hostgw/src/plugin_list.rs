//! The plugin list that our request belongs to.
//!
//! A plugin gets only its own entry of the list. Whether another plugin does the same work is in the
//! list's file.

use std::fs;
use std::io;
use std::path::Path;

use cni::{Call, Json};
use netconf::SharedCapability;
use serde_json::Value;
use util::{none_if_not_found, retry_on_eintr};

use crate::error::Error;

/// Where runtimes read plugin lists by default.
const DIRECTORY: &str = "/etc/cni/net.d";

/// Fails if the list of this network also has the reference's plugin, with the capability that our
/// entry declares. Nothing is refused if no list in the default directory has the network's name.
pub(crate) fn refuse_second_plugin(call: &Call, shared: SharedCapability) -> Result<(), Error> {
    let found = lists_with(shared.plugin(), Path::new(DIRECTORY));
    // A list that cannot be read is none that a runtime uses.
    for (path, list) in found.unwrap_or_default() {
        let is_of_network = list.get("name").and_then(Value::as_str) == Some(call.network.as_str());
        if is_of_network && shared.is_handled_twice(&list) {
            return Err(Error::HandledTwice {
                list: path,
                plugin: shared.plugin(),
                capability: shared.name(),
            });
        }
    }
    Ok(())
}

/// The files that name a plugin, with their contents.
fn lists_with(plugin: &str, directory: &Path) -> io::Result<Vec<(String, Json)>> {
    let mut lists = Vec::new();
    let list = || fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>();
    let entries = none_if_not_found(retry_on_eintr(list))?;
    for entry in entries.unwrap_or_default() {
        let path = entry.path();
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
