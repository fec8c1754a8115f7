//! Lists in which two plugins do the same work.

use cni::Json;
use serde_json::Value;

/// A capability that our plugin and a plugin of the reference can handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedCapability {
    /// Host ports.
    PortMappings,
    /// Limits of the traffic.
    Bandwidth,
}

impl SharedCapability {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::PortMappings, Self::Bandwidth];

    /// Name of the capability.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PortMappings => "portMappings",
            Self::Bandwidth => "bandwidth",
        }
    }

    /// Name of the reference's plugin.
    #[must_use]
    pub fn plugin(self) -> &'static str {
        match self {
            Self::PortMappings => "portmap",
            Self::Bandwidth => "bandwidth",
        }
    }

    /// True if in this list the reference's plugin and another one declare the capability.
    #[must_use]
    pub fn is_handled_twice(self, list: &Json) -> bool {
        let plugins = list.get("plugins").and_then(Value::as_array);
        let plugins = plugins.into_iter().flatten();
        let declares = |plugin: &&Value| {
            let capabilities = plugin.get("capabilities");
            capabilities.and_then(|all| all.get(self.name())) == Some(&Value::Bool(true))
        };
        let is_theirs = |plugin: &&Value| plugin["type"] == self.plugin();
        let (theirs, others): (Vec<_>, Vec<_>) = plugins.filter(declares).partition(is_theirs);
        !theirs.is_empty() && !others.is_empty()
    }
}
