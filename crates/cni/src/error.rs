//! The error object that a plugin prints on standard output.

use serde_json::{Value, json};

use crate::Version;

/// A number that tells the runtime what kind of failure it was (SPEC, section "Error").
/// 1 to 99 belong to the SPEC, 100 and above to the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    /// `cniVersion` is not one that the plugin speaks.
    pub const INCOMPATIBLE_VERSION: Self = Self(1);
    /// A key or value that the plugin does not support; the message names both.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// The container is unknown; the runtime need not clean up.
    pub const UNKNOWN_CONTAINER: Self = Self(3);
    /// An environment variable is missing or invalid; the message names it.
    pub const INVALID_ENVIRONMENT: Self = Self(4);
    /// Reading or writing failed.
    pub const IO: Self = Self(5);
    /// Something that should be JSON of a known shape is not.
    pub const DECODE: Self = Self(6);
    /// The network configuration contradicts itself or lacks something.
    pub const INVALID_CONFIG: Self = Self(7);
    /// `CNI_NETNS` is the plugin's own network namespace (libcni's number, not in the SPEC).
    pub const OWN_NETNS: Self = Self(8);
    /// A transient condition: the same request may succeed later.
    pub const TRY_AGAIN_LATER: Self = Self(11);
    /// STATUS: the plugin cannot serve ADD.
    pub const NOT_AVAILABLE: Self = Self(50);
    /// A failure that no other number describes: a bug of ours.
    pub const INTERNAL: Self = Self(999);
}

/// What went wrong, for the runtime and for the person who reads its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The kind of failure.
    pub code: Code,
    /// What we were doing, and to what.
    pub msg: String,
    /// The chain of causes, outermost first; empty when the message says it all.
    pub details: String,
}

impl Error {
    /// An error whose message says it all.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// The same error with the chain of causes.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The object as the runtime reads it: `cniVersion`, `code`, `msg`, and `details` if any.
    #[must_use]
    pub fn to_json(&self, version: Version) -> Value {
        let mut object = json!({
            "cniVersion": version.as_str(),
            "code": self.code.0,
            "msg": self.msg,
        });
        if !self.details.is_empty() {
            object["details"] = json!(self.details);
        }
        object
    }
}
